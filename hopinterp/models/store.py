"""Model directories, written whole or not at all, and loaded: safetensors beside a JSON card."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch

from hopinterp import files
from hopinterp.errors import HopInterpError
from hopinterp.models.card import Card as Card
from hopinterp.models.card import load_fused as load_fused
from hopinterp.models.card import read_card as read_card
from hopinterp.models.places import CARD, WEIGHTS
from hopinterp.models.places import find as find
from hopinterp.models.places import list_models as list_models
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
    fused = Subject.asked(model, task).weights_for("saving")
    target = Path(directory)
    check_free(target, overwrite)
    parameters = {name: p.detach().cpu().contiguous() for name, p in fused.parameters.items()}
    fused.spec.check_parameters(parameters)
    data = safetensors.torch.save(parameters)
    versions = {name: version for name in _PACKAGES if (version := _version(name))}
    card = Card(fused.spec, task, made, errors or {}, versions, files.digest(data))
    files.write_directory(target, {WEIGHTS: data, CARD: _text(card).encode()}, overwrite=overwrite)
    return card


def _text(card: Card) -> str:
    """A card as text. Raises HopInterpError where it could not be read back: `made` is no JSON, say."""
    try:
        text = card.to_json()
    except (TypeError, ValueError, RecursionError) as error:
        raise HopInterpError(
            f"what is said of the model cannot be kept as JSON ({' '.join(str(error).split())[:120]})"
        ) from None
    Card.from_json(text)
    return text


def check_free(target: Path, overwrite: bool, also: Collection[str] = ()) -> None:
    """Raise HopInterpError if a model directory could not be written here: ask before the work, not after it.

    Args:
        also: files that may be overwritten beside a model's own two.
    """
    files.recover(target)
    try:
        if not files.is_there(target):
            return
        if not overwrite:
            raise HopInterpError(f"{target} exists; give another --out, or --overwrite")
        if target.is_symlink() or not target.is_dir():
            raise HopInterpError(f"{target} is no directory; it is not overwritten")
        if {path.name for path in target.iterdir() if not files.leftover(path)} - {WEIGHTS, CARD, *also}:
            raise HopInterpError(f"{target} holds more than a model; it is not overwritten")
        if not os.access(target, os.W_OK | os.X_OK):
            raise HopInterpError(f"{target} is read-only; it is not overwritten")
    except (OSError, ValueError) as error:
        raise HopInterpError(f"cannot write {target} ({files.reason(error)})") from None


def load(name: str | Path, device: str | torch.device = "cpu") -> tuple[HookedTransformer, HopTask]:
    """A model directory, or a shipped model by its name, as a HookedTransformer (under TransformerLens 4 a
    TransformerBridge) in eval mode, and its task.

    Raises:
        HopInterpError: nothing by that name, or a directory whose contents fail any check.
    """
    model, task = load_fused(name)
    return model.spec.build(model.parameters, device), task


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
