"""The archive: a model is a directory of safetensors and a JSON card, written whole, checked in full when read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
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
    from transformer_lens import HookedTransformer

WEIGHTS, CARD = "model.safetensors", "card.json"
_FORMAT = 1
_PACKAGES = ("hopinterp", "torch", "transformer-lens", "safetensors")


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


def save(
    directory: str | Path,
    model: HookedTransformer | FusedTransformer,
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
    fused = model if isinstance(model, FusedTransformer) else FusedTransformer.of(model)
    check_fits(fused.spec, task)
    target = Path(directory)
    check_free(target, overwrite)
    parameters = {name: p.detach().cpu().contiguous() for name, p in fused.parameters.items()}
    fused.spec.check_parameters(parameters)
    data = safetensors.torch.save(parameters)
    versions = {name: version for name in _PACKAGES if (version := _version(name))}
    card = Card(fused.spec, task, made, errors or {}, versions, hashlib.sha256(data).hexdigest())
    _write_directory(target, {WEIGHTS: data, CARD: card.to_json().encode()})
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
    """A model directory, or a shipped model by its name, as a HookedTransformer in eval mode, and its task.

    Raises:
        HopInterpError: nothing by that name, or a directory whose contents fail any check.
    """
    model, card = load_fused(name)
    return card.spec.build(model.parameters, device), card.task


def load_fused(name: str | Path, device: str | torch.device = "cpu") -> tuple[FusedTransformer, Card]:
    """As `load`, without the seconds that importing TransformerLens takes: the fused model and the card."""
    directory = find(name)
    card = read_card(directory)
    parameters = _read_weights(directory / WEIGHTS, card)
    return FusedTransformer(card.spec, parameters).to(device), card


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


def _write_directory(target: Path, contents: Mapping[str, bytes]) -> None:
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


def _shipped_folders() -> list[Path]:
    """trained_models/ beside the package in a clone, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    return [folder for folder in (package.parent / "trained_models", package / "trained_models") if folder.is_dir()]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
