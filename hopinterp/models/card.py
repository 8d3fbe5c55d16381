"""Model directories, read: safetensors beside a JSON card, checked in full."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
from torch import Tensor

from hopinterp import files
from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.places import CARD, WEIGHTS, find
from hopinterp.models.spec import ModelSpec, check_fits
from hopinterp.shown import finite
from hopinterp.task import HopTask

if TYPE_CHECKING:
    import torch

_FORMAT = 1
_LARGEST_CARD, _LARGEST_HEADER = 2**20, 8 * 2**20


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

    @property
    def granted(self) -> int:
        """The k that the model was built for, or the largest k < 2^(L−1), which Theorem 4.2 grants its depth."""
        built_for: int | None = self.made.get("hops")
        return built_for or max(1, min(2 ** (self.spec.n_layers - 1) - 1, self.task.max_hops))

    def to_json(self) -> str:
        """The text of card.json."""
        return json.dumps(finite({"format": _FORMAT} | asdict(self)), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Read card.json. Raises HopInterpError where it is not one."""
        try:
            given = files.parse_json(text.encode("utf-8", "surrogatepass"), Path(CARD))
        except HopInterpError as error:
            raise HopInterpError(f"{CARD} is no model card ({error})") from None
        try:
            if given.pop("format") != _FORMAT:
                raise HopInterpError(f"the card's format is not {_FORMAT}; it was written by another version")
            if odd := given.keys() ^ {one.name for one in fields(cls)}:
                raise ValueError(f"{min(odd)!r:.80} is missing, or is no field of a card")
            given["spec"] = ModelSpec.from_dict(given["spec"])
            if given["task"].keys() != {one.name for one in fields(HopTask)}:
                raise ValueError("the task has other fields than a HopTask")
            given["task"] = HopTask(**given["task"])
            card = cls(**given)
            card._check()
            return card
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HopInterpError(f"card.json is no model card ({type(error).__name__}: {error})") from None

    def _check(self) -> None:
        """Raise ValueError where a field is of another kind than the attributes say."""
        mappings = {"made": self.made, "errors": self.errors, "versions": self.versions}
        if wrong := [name for name, value in mappings.items() if not isinstance(value, dict)]:
            raise ValueError(f"{wrong[0]} is no object")
        hops = self.made.get("hops")
        if hops is not None and (isinstance(hops, bool) or not isinstance(hops, int) or not 0 < hops <= self.task.max_hops):
            raise ValueError(f"made.hops is {hops!r:.40}; this task has 1 to {self.task.max_hops}")
        if not all(isinstance(value, str) for value in self.versions.values()):
            raise ValueError("versions are words")
        for name in ("errors", "low", "high"):
            for k, value in self.errors.get(name, {}).items():
                self.task.check_hops(int(k))
                if str(int(k)) != k:
                    raise ValueError(f"errors.{name} has {k!r:.40}, which is no k")
                if value is not None and (
                    isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value > 1
                ):
                    raise ValueError(f"errors.{name} has {value!r:.40}, which is no share")
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256 is no digest")


def load_fused(name: str | Path, device: str | torch.device = "cpu") -> tuple[FusedTransformer, HopTask]:
    """As `store.load`, without the seconds that importing TransformerLens takes: a FusedTransformer and its task.

    Raises:
        HopInterpError: nothing by that name, or a directory whose contents fail any check.
    """
    directory = find(name)
    card = read_card(directory)
    parameters = _read_weights(directory / WEIGHTS, card)
    return FusedTransformer(card.spec, parameters).to(device), card.task


def read_card(directory: Path) -> Card:
    """The card of a model directory. Raises HopInterpError where it is missing, damaged, or fits no model."""
    try:
        card = Card.from_json(files.read_file(directory / CARD, _LARGEST_CARD).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise HopInterpError(f"{directory} is no model directory: {CARD} is no text ({error.reason})") from None
    except HopInterpError as error:
        reason = str(error).replace(f"{directory / CARD}", CARD)
        if (directory / WEIGHTS).is_file() and not (directory / CARD).exists():
            reason += "; what save_pretrained wrote is taken in by `hopinterp import`"
        raise HopInterpError(f"{directory} is no model directory: {reason}") from None
    check_fits(card.spec, card.task)
    return card


def _read_weights(path: Path, card: Card) -> dict[str, Tensor]:
    numbers = sum(math.prod(shape) for shape in card.spec.parameter_shapes().values())
    data = files.read_digested(path, card.sha256, "card", 4 * numbers + _LARGEST_HEADER)
    try:
        parameters = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise HopInterpError(f"{path} is no safetensors file ({error})") from None
    try:
        card.spec.check_parameters(parameters)
    except HopInterpError as error:
        raise HopInterpError(f"{path}: {error}") from None
    return parameters
