"""The state of a training run: weights, optimisers, curriculum and generators, and one step of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.spec import ModelSpec
from hopinterp.task import Batch
from hopinterp.training.config import TrainConfig
from hopinterp.training.curriculum import Curriculum


class Run:
    """The whole state of a training run: weights, optimisers, curriculum, generator, and how far it is.

    Weights are kept as matrices (W_Q of all heads side by side), which is how Muon sees them; `model` shows the same
    memory under HookedTransformer's names.
    """

    def __init__(self, config: TrainConfig, device: str | torch.device = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        self.spec: ModelSpec = config.spec
        initial = self.spec.initial_parameters(config.seed)
        self.matrices = {name: _as_matrix(name, p).to(self.device).contiguous() for name, p in initial.items()}
        for name, matrix in self.matrices.items():
            matrix.requires_grad_(self.spec.is_trained(name))
        self.learned = [matrix for matrix in self.matrices.values() if matrix.requires_grad]
        self.optimizers = _optimizers(config, self.matrices)
        self.average = {name: m.detach().clone() for name, m in self.matrices.items()} if config.average else {}
        self.curriculum = Curriculum(config)
        self.generator = torch.Generator().manual_seed(config.seed)
        # a stream far from that of the same seed, from which evaluation draws; torch's generator reads 32 bits of a seed
        apart = torch.Generator().manual_seed((config.seed + 2**31) % 2**32)
        self.fixed = config.task.sample(config.samples, generator=apart) if config.samples else None
        self.dropout = torch.Generator(self.device).manual_seed(config.seed)
        graphs = "reduce-overhead" if self.device.type == "cuda" else "default"
        self.forward = torch.compile(_logits, mode=graphs) if config.compile else _logits
        self.step = self.tokens = 0
        self.seconds = 0.0

    @property
    def model(self) -> FusedTransformer:
        """The model as it is now; gradients flow to the matrices."""
        return _model(self.spec, self.matrices)

    @property
    def averaged(self) -> FusedTransformer:
        """A copy of the model that the run has so far: of the running mean of its weights, or of the last ones."""
        found = _model(self.spec, self.average or self.matrices).parameters
        return FusedTransformer(self.spec, {name: p.detach().clone() for name, p in found.items()})

    def advance(self) -> float:
        """One step; returns its loss.

        Raises:
            HopInterpError: the loss or its gradient is not finite. The weights are still those of the step before.
        """
        batch, positions = self._batch()
        set_rate(self.optimizers, self.config, self.step)
        tokens, labels = batch.tokens.to(self.device), batch.labels.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            rows = None if positions is None else positions.to(self.device)
            draws = {"dropout": self.config.dropout, "generator": self.dropout} if self.config.dropout else {}
            logits = self.forward(self.spec, self.matrices, tokens, rows, **draws).float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        if not loss.isfinite():
            raise HopInterpError(f"the run diverged at step {self.step} (loss {loss.item()}); try a lower learning rate")
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.learned, self.config.clip or float("inf"))
        if not norm.isfinite():
            raise HopInterpError(f"the run diverged at step {self.step} (gradient {norm.item()}); try a lower learning rate")
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._take_mean()
        wrong = (logits.argmax(-1) != labels).cpu() & batch.scored
        self.curriculum.update(batch.hops, wrong.sum(1), batch.scored.sum(1), self.step)
        self.step += 1
        self.tokens += tokens.numel()
        return loss.item()

    def _take_mean(self) -> None:
        """Move the running mean towards the weights; faster at first, or it would remember how they began."""
        if self.average:
            decay = min(self.config.average, (1 + self.step) / (10 + self.step))
            matrices = [self.matrices[name].detach() for name in self.average]
            torch._foreach_lerp_(list(self.average.values()), matrices, 1 - decay)

    def _batch(self) -> tuple[Batch, Tensor | None]:
        if self.fixed is None:
            return self.curriculum.draw(self.step, self.generator)
        size = self.config.batch  # in order and without the remainder, as the authors' code goes through its samples
        start = self.step % (len(self.fixed) // size) * size
        return self.fixed[start : start + size], None

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "matrices": {name: matrix.detach() for name, matrix in self.matrices.items()},
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "curriculum": self.curriculum.state(),
            "generator": self.generator.get_state(),
            "dropout": self.dropout.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state. Sums depend on the number of threads, so that is restored as well.

        Raises:
            ValueError: it is not of the form that `state` gives.
        """
        _check_state(state, self)
        torch.set_num_threads(state["threads"])
        with torch.no_grad():
            for name, matrix in self.matrices.items():
                matrix.copy_(state["matrices"][name])
            for name, mean in self.average.items():
                mean.copy_(state["average"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.curriculum = Curriculum(self.config, **state["curriculum"])
        self.generator.set_state(state["generator"])
        self.dropout.set_state(state["dropout"])
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]


def _check_state(state: Mapping[str, Any], run: Run) -> None:
    """Raise ValueError unless a state has the fields, kinds and shapes of this run's, and steps that it can have."""
    # of a run of another class, which adds to the state, only what every run has
    wanted = {name: value for name, value in Run.state(run).items() if name != "optimizers"}
    _check_alike({name: state.get(name) for name in wanted}, wanted, "the state")
    counts = (("step", 0, run.config.steps), ("tokens", 0, 2**63), ("threads", 1, 2**16))
    if wrong := [name for name, least, most in counts if not least <= state[name] <= most]:
        raise ValueError(f"{wrong[0]} is {state[wrong[0]]}")
    if not 0 <= state["seconds"] < float("inf") or not 0 <= state["curriculum"]["largest"] <= run.config.max_hops:
        raise ValueError("its seconds or its hops are out of range")
    for found, optimizer in zip(state["optimizers"], run.optimizers, strict=True):
        _check_alike(found.get("param_groups"), optimizer.state_dict()["param_groups"], "param_groups")
        shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
        if found.keys() != {"state", "param_groups"} or not {*found["state"]} <= {*range(len(shapes))}:
            raise ValueError("the optimizer's state has other fields")
        for index, kept in found["state"].items():
            for name, value in kept.items():
                if not isinstance(value, Tensor) or value.shape not in (shapes[index], ()) or value.dtype != torch.float32:
                    raise ValueError(f"{name} of the optimizer is none of its tensors")


def _check_alike(found: Any, wanted: Any, where: str) -> None:
    """Raise ValueError unless nested values have the same keys, lengths, types, shapes and dtypes."""
    if wanted is None:
        return
    if isinstance(wanted, bool | int | float | str) and type(found) is type(wanted):
        return
    if isinstance(wanted, Tensor) and isinstance(found, Tensor):
        if found.shape == wanted.shape and found.dtype == wanted.dtype:
            return
    elif isinstance(wanted, dict) and isinstance(found, dict) and found.keys() == wanted.keys():
        for name, value in wanted.items():
            _check_alike(found[name], value, f"{where}'s {name}")
        return
    elif isinstance(wanted, list | tuple) and isinstance(found, list | tuple) and len(found) == len(wanted):
        for one, other in zip(found, wanted, strict=True):
            _check_alike(one, other, where)
        return
    raise ValueError(f"{where} is not what a run has")


def _optimizers(config: TrainConfig, matrices: Mapping[str, Tensor]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest; or AdamW for all, as the paper's code has it."""
    learned = {name: matrix for name, matrix in matrices.items() if matrix.requires_grad}
    betas = (0.9, config.beta2)
    if config.optimizer == "adamw":
        return [torch.optim.AdamW(learned.values(), lr=config.lr, betas=betas, weight_decay=config.weight_decay, fused=True)]
    inner = {name for name in learned if name.startswith("blocks.") and ".W_" in name}
    muon = torch.optim.Muon(
        [learned[name] for name in learned if name in inner],
        lr=config.lr,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    rest = [learned[name] for name in learned if name not in inner]
    return [muon, torch.optim.AdamW(rest, lr=config.lr, betas=betas, weight_decay=0.0, fused=True)]


def set_rate(optimizers: list[torch.optim.Optimizer], config: TrainConfig, step: int) -> None:
    """Linear warm-up, a plateau, linear decay to 0."""
    up = (step + 1) / config.warmup if config.warmup else 1.0
    down = (config.steps - step) / (config.decay * config.steps) if config.decay else 1.0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, up, down)


def _logits(
    spec: ModelSpec, matrices: Mapping[str, Tensor], tokens: Tensor, positions: Tensor | None, **settings: Any
) -> Float[Tensor, "batch position d_vocab"]:
    """The forward pass over matrices: what torch.compile sees."""
    return _model(spec, matrices)(tokens, positions=positions, **settings)


def _model(spec: ModelSpec, matrices: Mapping[str, Tensor]) -> FusedTransformer:
    return FusedTransformer(spec, {name: _as_parameter(name, matrix, spec) for name, matrix in matrices.items()})


def _as_matrix(name: str, parameter: Tensor) -> Tensor:
    """A parameter as one matrix: heads side by side. Others stay as they are."""
    if name.endswith((".W_Q", ".W_K", ".W_V")):
        return parameter.transpose(0, 1).flatten(1)
    return parameter.flatten(0, 1) if name.endswith(".W_O") else parameter


def _as_parameter(name: str, matrix: Tensor, spec: ModelSpec) -> Tensor:
    """The inverse of `_as_matrix`, on the same memory."""
    if name.endswith((".W_Q", ".W_K", ".W_V")):
        return matrix.view(spec.d_model, spec.n_heads, -1).transpose(0, 1)
    return matrix.view(spec.n_heads, -1, spec.d_model) if name.endswith(".W_O") else matrix
