"""Where model directories are: the shipped ones by name, and those in a folder, however deep. Loads no torch."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path

from hopinterp import files
from hopinterp.errors import HopInterpError

WEIGHTS, CARD = "model.safetensors", "card.json"
MODEL, CONFIG, CHECKPOINT = "model", "config.json", "checkpoint.pt"
"""What a training run leaves: the directory of its model, its settings, its state."""
_DEEPEST = 5


def find(name: str | Path) -> Path:
    """The directory that a path or a shipped model's name stands for. Raises HopInterpError if there is none."""
    if not str(name):
        raise HopInterpError("no model '': a name is empty")
    directory = Path(name)
    try:
        files.recover(directory)
        if directory.is_dir():
            finished = directory / MODEL
            files.recover(finished)
            return finished if (finished / CARD).is_file() and not (directory / CARD).exists() else directory
    except (OSError, ValueError) as error:  # a name that is too long, a folder that is closed
        raise HopInterpError(f"no model {str(name)!r:.200} ({files.reason(error)})") from None
    names = {path.name: path for path in list_models()}
    if str(name) in names:
        return names[str(name)]
    if directory.is_file():
        raise HopInterpError(f"{str(name)!r} is a file, not a model directory: `hopinterp import` makes one of a checkpoint")
    known = ", ".join(names) or "none are shipped"
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise HopInterpError(f"no model {str(name)!r}: it is neither a directory nor a shipped model ({known}){hint}")


def model_name(path: str | Path) -> str:
    """What a model at a path is called: its directory's name, that of a link's target and of "." too."""
    return os.path.basename(os.path.realpath(path))  # Path.resolve raises on a link to itself


def list_models(directory: str | Path | None = None) -> list[Path]:
    """Model directories in a folder, by default the shipped ones, sorted by name; also one whose replacement was killed."""
    folders = [Path(directory)] if directory else _shipped_folders()
    try:
        for folder in folders:
            files.recover_all(folder)
        found = [folder / name for folder in folders for name in os.listdir(folder) if (folder / name / CARD).is_file()]
    except (OSError, ValueError) as error:
        raise HopInterpError(f"cannot list {directory} ({files.reason(error)})") from None
    return sorted(path for path in found if not path.name.startswith("."))  # a dot: one that was never finished


@dataclass(frozen=True)
class Listing:
    """What is in a folder and below it.

    Attributes:
        models: model directories and run directories whose model is finished, by the path that names them.
        unfinished: directories of runs that have no model yet.
    """

    models: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)

    def look(self, folder: Path, deepest: int, disk: int) -> None:
        """Add what is in a folder; links and other disks are not entered, nor folders that are closed."""
        try:
            names = sorted(os.listdir(folder))
            files.recover_all(folder)
        except (OSError, ValueError):
            return
        for path in (folder / name for name in names if not name.startswith(".")):
            try:
                if self._add(path) or not deepest or path.is_symlink():
                    continue
                if path.is_dir() and path.stat().st_dev == disk:
                    self.look(path, deepest - 1, disk)
            except OSError:
                continue

    def _add(self, path: Path) -> bool:
        """Whether a path is a model or a run, which is then entered in the list."""
        is_run = (path / CONFIG).is_file() and (path / CHECKPOINT).is_file()
        if is_run:
            files.recover(path / MODEL)
        if (path / CARD).is_file() or (path / MODEL / CARD).is_file():
            self.models.append(path)
        elif is_run:
            self.unfinished.append(path)
        else:
            return False
        return True


def search(directory: str | Path) -> Listing:
    """Models and training runs in a folder and in the folders below it; the folder itself where it is one.

    A run stands for its model, as in `find`; the series of models that it kept is not listed. Raises HopInterpError where
    the folder cannot be read.
    """
    folder, found = Path(directory), Listing()
    try:
        os.listdir(folder)
        if not found._add(folder):
            found.look(folder, _DEEPEST, folder.stat().st_dev)
    except (OSError, ValueError) as error:
        raise HopInterpError(f"cannot list {directory} ({files.reason(error)})") from None
    return found


def _shipped_folders() -> list[Path]:
    """trained_models/ beside the package in a clone, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    return [folder for folder in (package.parent / "trained_models", package / "trained_models") if folder.is_dir()]
