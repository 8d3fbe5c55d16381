"""Model directories, written whole or not at all, and loaded: safetensors beside a JSON card."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch

from hopinterp.errors import HopInterpError
from hopinterp.models.card import CARD, WEIGHTS
from hopinterp.models.card import Card as Card
from hopinterp.models.card import find as find
from hopinterp.models.card import list_models as list_models
from hopinterp.models.card import load_fused as load_fused
from hopinterp.models.card import read_card as read_card
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.task import HopTask

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformer

_PACKAGES = ("hopinterp", "torch", "transformer-lens", "safetensors")


def save(
    directory: str | Path,
    model: ModelLike,
    task: HopTask,
    made: Mapping[str, Any],
    errors: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Card:
    """Write a model directory, whole or not at all.

    Raises:
        HopInterpError: the directory exists (unless `overwrite`), cannot be written, or the model cannot be described
            by a ModelSpec or read this task.
    """
    fused = Subject.of(model, task).weights_for("saving")
    target = Path(directory)
    check_free(target, overwrite)
    parameters = {name: p.detach().cpu().contiguous() for name, p in fused.parameters.items()}
    fused.spec.check_parameters(parameters)
    data = safetensors.torch.save(parameters)
    versions = {name: version for name in _PACKAGES if (version := _version(name))}
    card = Card(fused.spec, task, made, errors or {}, versions, hashlib.sha256(data).hexdigest())
    write_directory(target, {WEIGHTS: data, CARD: card.to_json().encode()})
    return card


def check_free(target: Path, overwrite: bool) -> None:
    """Raise HopInterpError if a model directory could not be written here: ask before the work, not after it."""
    if not target.exists():
        return
    if not overwrite:
        raise HopInterpError(f"{target} exists; give another --out, or --overwrite")
    if not target.is_dir() or {path.name for path in target.iterdir()} - {WEIGHTS, CARD}:
        raise HopInterpError(f"{target} holds more than a model; it is not overwritten")


def load(name: str | Path, device: str | torch.device = "cpu") -> tuple[HookedTransformer, HopTask]:
    """A model directory, or a shipped model by its name, as a HookedTransformer (under TransformerLens 4 a
    TransformerBridge) in eval mode, and its task.

    Raises:
        HopInterpError: nothing by that name, or a directory whose contents fail any check.
    """
    model, task = load_fused(name)
    return model.spec.build(model.parameters, device), task


def write_directory(target: Path, contents: Mapping[str, bytes]) -> None:
    """Write a directory beside its place, then put it there by renaming."""
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        for name, data in contents.items():
            write_through(temporary / name, data)
        temporary.chmod(0o755)
        if target.exists():
            _replace(target, temporary)
        else:
            temporary.rename(target)
    except OSError as error:
        raise HopInterpError(f"cannot write {target} ({error.strerror}); nothing was written") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_through(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it: only then may it be renamed over another."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _replace(target: Path, new: Path) -> None:
    """Swap a model directory for a new one."""
    old = new.with_name(new.name + "-old")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
