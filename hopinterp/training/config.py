"""The settings of a training run, each with its type, default, range and help in one place, and the named presets.

The command line reads this file before anything is trained: it loads neither torch nor a model until a config is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from hopinterp.errors import HopInterpError

if TYPE_CHECKING:
    from hopinterp.models.spec import ModelSpec
    from hopinterp.task import HopTask


class _Range(NamedTuple):
    """What a setting may be, in words and as a test."""

    words: str
    allows: Callable[[Any], bool]


_ONE_OR_MORE = _Range("from 1 to 10^9", lambda value: 1 <= value <= 10**9)
_NEVER_OR_EVERY = _Range("from 0 (never) to 10^9", lambda value: 0 <= value <= 10**9)
_COUNT = _Range("from 0 to 10^9", lambda value: 0 <= value <= 10**9)
_ABOVE_0 = _Range("above 0", lambda value: 0 < value < float("inf"))
_FINITE = _Range("0 or more", lambda value: 0 <= value < float("inf"))
_SHARE = _Range("at least 0 and under 1", lambda value: 0 <= value < 1)
_BETWEEN = _Range("between 0 and 1", lambda value: 0 < value < 1)
_RISING = _Range("two rising shares of the run", lambda value: 0 <= value[0] <= value[1] < 1)
_OPTIMIZER = _Range("muon or adamw", lambda value: value in ("muon", "adamw"))
_STEPS = _Range("from 1 to 10^9", lambda value: 1 <= value <= 10**9)
_SEED = _Range("between 0 and 2^32 − 1", lambda value: 0 <= value < 2**32)


_KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number"}
_KINDS |= {str: "a word", tuple: "two numbers"}


def _is_of(value: object, default: object) -> bool:
    """Whether a setting is of its default's kind; whole numbers are numbers too."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) == len(default) and all(_is_of(one, 0.0) for one in value)
    if isinstance(value, bool) or isinstance(default, bool | str):
        return type(value) is type(default)
    return isinstance(value, int | float if isinstance(default, float) else int)


def _setting(default: Any, words: str, allowed: _Range | None = None) -> Any:
    """A field with its help; sizes of the model and the task are checked by these."""
    return field(default=default, metadata={"help": words, "allowed": allowed})


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The defaults are the `full` preset, our recipe, up to four blocks; see `preset`.

    What each setting means stands beside it, and is what `hopinterp train --help` says.

    Raises:
        HopInterpError: a setting out of range, or settings that contradict each other.
    """

    layers: int = _setting(4, "Depth, the number of blocks.")
    d_model: int = _setting(128, "Width of the residual stream.")
    heads: int = _setting(4, "Attention heads a block.")
    act_fn: str = _setting("gelu", "The MLPs' activation: gelu (erf), gelu_new or relu.")
    unembed: str = _setting("learned", "Unembedding: learned, or identity as in the paper.")
    letters: int = _setting(98, "Letters in a sequence.")
    alphabet: int = _setting(4, "Size of the alphabet.")
    max_hops: int = _setting(16, "The largest k.")
    steps: int = _setting(4000, "Gradient steps.", _STEPS)
    batch: int = _setting(21, "Sequences a step, at full length.", _ONE_OR_MORE)
    even_tokens: bool = _setting(True, "Short sequences come in larger batches, as many tokens a step as at full length.")
    optimizer: str = _setting(
        "muon", "muon (the blocks' matrices; AdamW at the same rate on the rest) or adamw on everything.", _OPTIMIZER
    )
    lr: float = _setting(2.5e-3, "Peak learning rate.", _ABOVE_0)
    warmup: int = _setting(100, "Steps of linear warm-up.", _COUNT)
    decay: float = _setting(0.3, "Share of the run, at its end, over which the rate falls linearly to 0.", _SHARE)
    weight_decay: float = _setting(0.01, "AdamW's and Muon's decay of the matrices.", _FINITE)
    beta2: float = _setting(0.98, "AdamW's second beta.", _BETWEEN)
    clip: float = _setting(1.0, "Largest gradient norm; 0 for no clipping.", _FINITE)
    dropout: float = _setting(0.0, "GPT-2's dropout, while training.", _SHARE)
    average: float = _setting(
        0.99, "Decay of the running mean of the weights, which is the model that comes out; 0 for the last weights.", _SHARE
    )
    curriculum: bool = _setting(True, "Add k one at a time and ask hard k more often; otherwise k is uniform throughout.")
    focus: float = _setting(
        2.0,
        "How much the curriculum holds back a k while a smaller one is wrong: by e^(−focus × the largest error of these).",
        _FINITE,
    )
    short_until: tuple[float, float] = _setting(
        (0.12, 0.2),
        "Shares of the run until which sequences have 1/3 and 2/3 of the letters, at a random offset so that every row of "
        "W_pos learns; 0 0 for none.",
        _RISING,
    )
    samples: int = _setting(0, "Train on a fixed set of this many sequences (appendix G.5); 0 for fresh ones.", _COUNT)
    bf16: bool = _setting(True, "Matrix products in bfloat16; weights and everything else stay float32.")
    compile: bool = _setting(False, "torch.compile, with CUDA graphs on a GPU; not with dropout.")
    tensorboard: bool = _setting(False, "Also write the metrics for TensorBoard (needs its package).")
    wandb: bool = _setting(
        False, "Also send the metrics to Weights & Biases (needs the extra wandb); WANDB_MODE=offline keeps them here."
    )
    seed: int = _setting(0, "Seed of weights, data and dropout.", _SEED)
    checkpoint_every: int = _setting(200, "Steps between checkpoints.", _ONE_OR_MORE)
    keep_every: int = _setting(0, "Keep the model every so many steps, for its dynamics; 0 for never.", _NEVER_OR_EVERY)
    log_every: int = _setting(50, "Steps between lines of metrics.jsonl.", _ONE_OR_MORE)
    eval_every: int = _setting(1000, "Steps between measurements of every err_k; 0 for never.", _NEVER_OR_EVERY)

    def __post_init__(self) -> None:
        if isinstance(self.short_until, list):
            object.__setattr__(self, "short_until", tuple(self.short_until))
        for one in fields(self):
            value, allowed = getattr(self, one.name), one.metadata["allowed"]
            if not _is_of(value, one.default):
                raise HopInterpError(f"{one.name} is {value!r:.40}; it must be {_KINDS[type(one.default)]}")
            if allowed is not None and not allowed.allows(value):
                raise HopInterpError(f"{one.name} is {value!r}; it must be {allowed.words}")
        object.__setattr__(self, "short_until", tuple(map(float, self.short_until)))
        if self.samples and (self.curriculum or any(self.short_until)):
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
        from hopinterp.task import HopTask

        return HopTask(self.letters, self.alphabet, self.max_hops)

    @property
    def spec(self) -> ModelSpec:
        """The model at this size. With an identity unembedding it has the paper's 30 tokens, unless the task needs more."""
        from hopinterp.models.spec import ModelSpec

        sizes = {"d_model": self.d_model, "n_heads": self.heads, "act_fn": self.act_fn, "unembed": self.unembed}
        if self.unembed == "identity":
            sizes["d_vocab"] = max(30, self.task.d_vocab)
        return ModelSpec.for_task(self.task, self.layers, **sizes)

    @property
    def memory(self) -> int:
        """Bytes that a step needs at least: weights, gradients and the optimiser's state, what a block keeps of each token
        for the backward pass, logits, attention patterns where they are kept, and the fixed samples."""
        tokens, spec = self.batch * (self.letters + 1), self.spec
        kept = tokens * (spec.n_layers * (10 * spec.d_model + 2 * (spec.d_mlp or 0)) + 2 * spec.d_vocab)
        patterns = tokens * (self.letters + 1) * self.heads * spec.n_layers if self.bf16 or self.dropout else 0
        samples = 4 * self.samples * (self.letters + 1) * (self.max_hops + 1)
        return 4 * (4 * spec.n_parameters + kept + samples) + 2 * patterns

    @classmethod
    def preset(cls, name: str, **settings: Any) -> TrainConfig:
        """A named plan (see PRESETS), as it is for that depth, with some settings changed: those that are not None.

        Raises:
            HopInterpError: no such preset or setting.
        """
        if name not in PRESETS:
            raise HopInterpError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        given = {key: value for key, value in settings.items() if value is not None}
        if unknown := given.keys() - {one.name for one in fields(cls)}:
            raise HopInterpError(f"training has no setting {min(unknown)!r}")
        if given.get("samples"):
            given = {"curriculum": False, "short_until": (0.0, 0.0)} | given
        _, plan, deep = PRESETS[name]
        layers = (plan | given).get("layers", cls.layers)
        is_deep = isinstance(layers, int) and layers >= DEEP
        return cls(**plan | (deep if is_deep else {}) | given)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> TrainConfig:
        """From what `to_dict` gave, as JSON brings it back."""
        known = {one.name for one in fields(cls)}
        if not isinstance(given, dict):
            raise HopInterpError(f"the settings of a run are an object; this is {given!r:.80}")
        if odd := sorted(name for name in known ^ given.keys() if name not in known or not only_records(name)):
            raise HopInterpError(f"a run has {len(known)} settings; {odd[0]!r:.80} is missing, or is none of them")
        values: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in given.items()}
        return cls(**values)

    def command(self) -> str:
        """The command line that trains this model again."""
        plain = TrainConfig.preset("full", layers=self.layers)
        words = ["hopinterp train --preset full"]
        for name, value in self.to_dict().items():
            flag = name.replace("_", "-")
            unchanged = value == getattr(plain, name) and name not in ("layers", "steps", "seed")
            if unchanged or only_records(name):
                continue
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words.append(f"--{flag} {' '.join(map(str, value)) if isinstance(value, tuple) else value}")
        return " ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def deciding(self) -> dict[str, Any]:
        """The settings that change what a run comes to: all but those that only say what is recorded of it."""
        return {name: value for name, value in self.to_dict().items() if not only_records(name)}


def only_records(setting: str) -> bool:
    """Whether a setting says only what is written of a run, and how often: it changes no weight, and a model's card leaves
    it out."""
    return setting.endswith("_every") or setting in ("tensorboard", "wandb")


class Preset(NamedTuple):
    """A named plan: what it is for, what it changes of the defaults, and what besides from DEEP blocks on."""

    words: str
    settings: dict[str, Any]
    deep: dict[str, Any]


_PLAIN: dict[str, Any] = {"short_until": (0.0, 0.0), "bf16": False}
_QUICK = {"layers": 3, "d_model": 64, "letters": 30, "max_hops": 3, "steps": 1500, "batch": 32, "lr": 2e-3, "focus": 4.0}
_PAPER = {"act_fn": "gelu_new", "unembed": "identity", "steps": 100_000, "batch": 32, "optimizer": "adamw", "lr": 1e-4}
_PAPER |= {"warmup": 1000, "decay": 0.99, "beta2": 0.999, "clip": 0.0, "dropout": 0.1, "average": 0.0, "curriculum": False}
_FIRST = {
    "steps": 7000,
    "batch": 64,
    "even_tokens": False,
    "lr": 2e-3,
    "average": 0.0,
    "focus": 0.0,
    "short_until": (0.2, 0.5),
}

DEEP = 5
"""From so many blocks on the recipe has a lower rate and holds nothing back: benchmarks/recipes.md."""
PRESETS = {
    "full": Preset("our recipe", {}, deep={"lr": 1.5e-3, "focus": 0.0}),
    "quick": Preset("a tiny model in a minute", _QUICK | _PLAIN, {}),
    "paper": Preset("as published: GPT-2's architecture, every k from the start", _PAPER | _PLAIN, {}),
    "first": Preset("the recipe of version 0.1, which trained the shipped models", _FIRST, {}),
}
