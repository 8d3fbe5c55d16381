"""The training plan: every setting of a run, checked, and the named presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from hopinterp.errors import HopInterpError
from hopinterp.models.spec import ModelSpec
from hopinterp.task import HopTask


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The defaults are the `full` preset, our recipe; see `preset`.

    Args:
        layers, d_model, heads, act_fn, unembed: the model (see ModelSpec).
        letters, alphabet, max_hops: the task.
        steps, batch: gradient steps, and sequences a step.
        optimizer: "muon" (torch.optim.Muon on the blocks' matrices, AdamW on the rest, one learning rate for both) or
            "adamw" on everything.
        lr, warmup, decay: peak learning rate; steps of linear warm-up; the share of the run, at its end, over which the
            rate falls linearly to 0.
        weight_decay, beta2, clip: AdamW's and Muon's decay; AdamW's second beta; largest gradient norm (0: no clipping).
        dropout: GPT-2's, while training.
        curriculum: draw hard k more often and add k one at a time (see Curriculum); otherwise k is uniform throughout.
        short_until: shares of the run until which sequences have 1/3 and 2/3 of the letters; (0, 0) for none. Shorter
            sequences stand at a random offset, so that every row of W_pos learns.
        samples: train on a fixed set of this many sequences, as in the paper's appendix G.5; 0 for fresh ones.
        bf16: matrix products in bfloat16 (weights and everything else stay float32).
        compile: torch.compile, with CUDA graphs on a GPU, where thousands of tiny kernels are the cost; not with dropout.
        tensorboard: also write the metrics for TensorBoard (needs its package).
        seed: of weights, data and dropout.
        checkpoint_every, keep_every, log_every, eval_every: in steps; 0 for never.

    Raises:
        HopInterpError: a setting out of range, or settings that contradict each other.
    """

    layers: int = 4
    d_model: int = 128
    heads: int = 4
    act_fn: str = "gelu"
    unembed: Literal["learned", "identity"] = "learned"
    letters: int = 98
    alphabet: int = 4
    max_hops: int = 16
    steps: int = 7000
    batch: int = 64
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float = 2e-3
    warmup: int = 100
    decay: float = 0.3
    weight_decay: float = 0.01
    beta2: float = 0.98
    clip: float = 1.0
    dropout: float = 0.0
    curriculum: bool = True
    short_until: tuple[float, float] = (0.2, 0.5)
    samples: int = 0
    bf16: bool = True
    compile: bool = False
    tensorboard: bool = False
    seed: int = 0
    checkpoint_every: int = 200
    keep_every: int = 0
    log_every: int = 50
    eval_every: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "short_until", tuple(self.short_until))
        for name, least in (
            ("steps", 1),
            ("batch", 1),
            ("warmup", 0),
            ("samples", 0),
            ("log_every", 1),
            ("checkpoint_every", 1),
        ):
            _check(self, name, getattr(self, name) >= least, f"at least {least}")
        for name in ("keep_every", "eval_every"):
            _check(self, name, getattr(self, name) >= 0, "0 (never) or more")
        _check(self, "lr", 0 < self.lr < float("inf"), "above 0")
        for name in ("weight_decay", "clip"):
            _check(self, name, 0 <= getattr(self, name) < float("inf"), "0 or more")
        for name in ("decay", "dropout"):
            _check(self, name, 0 <= getattr(self, name) < 1, "at least 0 and under 1")
        _check(self, "beta2", 0 < self.beta2 < 1, "between 0 and 1")
        _check(self, "optimizer", self.optimizer in ("muon", "adamw"), "muon or adamw")
        first, second = self.short_until
        _check(self, "short_until", 0 <= first <= second < 1, "two rising shares of the run")
        if self.samples and (self.curriculum or second):
            raise HopInterpError(
                "a fixed set of samples leaves no choice of k or length: it needs no curriculum, short_until 0 0"
            )
        if self.compile and self.dropout:
            raise HopInterpError("a compiled run draws no dropout; give --dropout 0 or --no-compile")
        if 0 < self.samples < self.batch:
            raise HopInterpError(f"samples is {self.samples}; a batch alone has {self.batch}")
        _ = self.spec  # the model and the task check themselves

    @property
    def task(self) -> HopTask:
        """The task at this size."""
        return HopTask(self.letters, self.alphabet, self.max_hops)

    @property
    def spec(self) -> ModelSpec:
        """The model at this size. With an identity unembedding it has the paper's 30 tokens, unless the task needs more."""
        sizes = {"d_model": self.d_model, "n_heads": self.heads, "act_fn": self.act_fn, "unembed": self.unembed}
        if self.unembed == "identity":
            sizes["d_vocab"] = max(30, self.task.d_vocab)
        return ModelSpec.for_task(self.task, self.layers, **sizes)

    @classmethod
    def preset(cls, name: str, **settings: Any) -> TrainConfig:
        """A named plan, with some settings changed (those that are not None).

        *full*: our recipe. *quick*: three narrow blocks on short sequences, about a minute. *paper*: as published: AdamW at
        1e-4 for 100,000 steps of 32, dropout 0.1, GPT-2's architecture, every k from the start.

        Raises:
            HopInterpError: no such preset or setting.
        """
        if name not in _PRESETS:
            raise HopInterpError(f"no preset {name!r}; there are {', '.join(_PRESETS)}")
        given = {key: value for key, value in settings.items() if value is not None}
        if unknown := given.keys() - {field.name for field in fields(cls)}:
            raise HopInterpError(f"training has no setting {min(unknown)!r}")
        if given.get("samples"):
            given = {"curriculum": False, "short_until": (0.0, 0.0)} | given
        return replace(cls(**_PRESETS[name]), **given)

    def command(self) -> str:
        """The command line that trains this model again."""
        plain = TrainConfig()
        words = ["hopinterp train --preset full"]
        for name, value in self.to_dict().items():
            flag = name.replace("_", "-")
            unchanged = value == getattr(plain, name) and name not in ("layers", "steps", "seed")
            if unchanged or name.endswith("_every"):  # how often things are written changes no weight
                continue
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words.append(f"--{flag} {' '.join(map(str, value)) if isinstance(value, tuple) else value}")
        return " ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


_PRESETS: dict[str, dict[str, Any]] = {
    "full": {},
    "quick": {
        "layers": 3,
        "d_model": 64,
        "letters": 30,
        "max_hops": 3,
        "steps": 1500,
        "batch": 32,
        "short_until": (0.0, 0.0),
        "bf16": False,
    },
    "paper": {
        "act_fn": "gelu_new",
        "unembed": "identity",
        "steps": 100_000,
        "batch": 32,
        "optimizer": "adamw",
        "lr": 1e-4,
        "warmup": 1000,
        "decay": 0.99,
        "beta2": 0.999,
        "clip": 0.0,
        "dropout": 0.1,
        "curriculum": False,
        "short_until": (0.0, 0.0),
        "bf16": False,
    },
}


def _check(config: TrainConfig, name: str, good: bool, wanted: str) -> None:
    if not good:
        raise HopInterpError(f"{name} is {getattr(config, name)!r}; it must be {wanted}")
