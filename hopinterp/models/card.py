"""Model directories, read: safetensors beside a JSON card, checked in full; and the shipped ones, by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.spec import ModelSpec, check_fits
from hopinterp.task import HopTask

if TYPE_CHECKING:
    import torch

WEIGHTS, CARD = "model.safetensors", "card.json"
_FORMAT = 1


@dataclass(frozen=True)
class Card:
    """What a model directory says of its model.

    Attributes:
        made: how it came to be (imported from which file; trained by which command and seed).
        errors: measured err_k by k, with `low`, `high` and the settings of the measurement; empty if never measured.
        versions: the packages that made it.
        sha256: digest of the weights file; filled in on saving.
    """

    spec: ModelSpec
    task: HopTask
    made: Mapping[str, Any]
    errors: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""

    def to_json(self) -> str:
        """The text of card.json."""
        return json.dumps({"format": _FORMAT} | asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Read card.json. Raises HopInterpError where it is not one."""
        try:
            given = json.loads(text)
            if given.pop("format") != _FORMAT:
                raise HopInterpError(f"the card's format is not {_FORMAT}; it was written by another version")
            given["spec"] = ModelSpec.from_dict(given["spec"])
            given["task"] = HopTask(**given["task"])
            return cls(**given)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HopInterpError(f"card.json is no model card ({type(error).__name__}: {error})") from None


def load_fused(name: str | Path, device: str | torch.device = "cpu") -> tuple[FusedTransformer, HopTask]:
    """As `store.load`, without the seconds that importing TransformerLens takes: a FusedTransformer and its task.

    Raises:
        HopInterpError: nothing by that name, or a directory whose contents fail any check.
    """
    directory = find(name)
    card = read_card(directory)
    parameters = _read_weights(directory / WEIGHTS, card)
    return FusedTransformer(card.spec, parameters).to(device), card.task


def find(name: str | Path) -> Path:
    """The directory that a path or a shipped model's name stands for. Raises HopInterpError if there is none."""
    directory = Path(name)
    if directory.is_dir():
        finished = directory / "model"  # where a training run leaves its model
        return finished if (finished / CARD).is_file() and not (directory / CARD).exists() else directory
    names = {path.name: path for path in list_models()}
    if str(name) in names:
        return names[str(name)]
    known = ", ".join(names) or "none are shipped"
    raise HopInterpError(f"no model {str(name)!r}: it is neither a directory nor a shipped model ({known})")


def list_models(directory: str | Path | None = None) -> list[Path]:
    """Model directories in a folder, by default the shipped ones, sorted by name."""
    folders = [Path(directory)] if directory else _shipped_folders()
    found = (path.parent for folder in folders for path in folder.glob(f"*/{CARD}"))
    return sorted(path for path in found if not path.name.startswith("."))  # a dot: one that was never finished


def read_card(directory: Path) -> Card:
    """The card of a model directory. Raises HopInterpError where it is missing, damaged, or fits no model."""
    try:
        card = Card.from_json((directory / CARD).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise HopInterpError(f"{directory} is no model directory: cannot read {CARD} ({error})") from None
    check_fits(card.spec, card.task)
    return card


def _read_weights(path: Path, card: Card) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HopInterpError(f"cannot read {path} ({error.strerror})") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != card.sha256:
        raise HopInterpError(
            f"{path} has sha256 {digest[:12]}…; its card says {card.sha256[:12]}…: it is damaged or changed"
        )
    try:
        parameters = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise HopInterpError(f"{path} is no safetensors file ({error})") from None
    try:
        card.spec.check_parameters(parameters)
    except HopInterpError as error:
        raise HopInterpError(f"{path}: {error}") from None
    return parameters


def _shipped_folders() -> list[Path]:
    """trained_models/ beside the package in a clone, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    return [folder for folder in (package.parent / "trained_models", package / "trained_models") if folder.is_dir()]
