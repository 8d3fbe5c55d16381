"""The programs of one model at several k; and what was found at one or several, read back from a directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from hopinterp.decompile.kept import check_shown, packed, reading_record, unpacked, write_record
from hopinterp.decompile.records import FORMAT, FOUND, TENSORS, Decompiled, found_files, percent, read_record
from hopinterp.errors import HopInterpError
from hopinterp.evidence.reading.behaviour import FAILED
from hopinterp.files import read_digested, read_json
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.shown import Row, Shown


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Decompilation(Shown):
    """The programs of one model at several k.

    Attributes:
        model: its name.
        by_hops: what was found at each k that the model does not fail at.
        unsolved: err_k of each k that it fails at, which no program is sought for.
    """

    model: str
    by_hops: Mapping[int, Decompiled]
    unsolved: Mapping[int, float]

    def __getitem__(self, hops: int) -> Decompiled:
        if hops in self.by_hops:
            return self.by_hops[hops]
        raise HopInterpError(unsolved(self.name, hops, self.unsolved[hops]) if hops in self.unsolved else f"k is not {hops}")

    @property
    def name(self) -> str:
        """The model's name, or what stands for it."""
        return self.model or "the model"

    @property
    def hops(self) -> list[int]:
        """Every k that was asked for."""
        return sorted({*self.by_hops, *self.unsolved})

    @property
    def columns(self) -> list[str]:
        """Over `rows`."""
        return ["k", "own %", "routed %", "tree %", "nodes", "joint %", "explained", "reach", "derivations"]

    @property
    def rows(self) -> list[Row]:
        """A row a k; one that the model fails at says so."""
        return [(str(k), self._cells(k)) for k in self.hops]

    def _cells(self, k: int) -> tuple[str, ...]:
        if k in self.unsolved:
            return (f"{100 * self.unsolved[k]:.1f}", *["–"] * 4, "unsolved", "–", "–")
        one = self.by_hops[k]
        errors = [
            f"{100 * value:.1f}" for value in (one.error["own"], one.error["routed"], one.tree.error, one.error["joint"])
        ]
        said = "yes" if one.explained else f"no ({one.inputs_explained:.1%})"
        return (*errors[:3], str(len(one.tree.nodes)), errors[3], said, " ".join(one.reach_words), one.sums)

    @property
    def reading(self) -> str:
        """Which k are explained, why the others are not, and which the model does not solve."""
        lines = [f"k = {k}: not explained: {'; '.join(one.missed)}." for k, one in self.by_hops.items() if not one.explained]
        explained = [str(k) for k, one in self.by_hops.items() if one.explained]
        said = f"{len(explained)} of {len(self.by_hops)} solved k explained"
        lines += [f"{self.name}: {said}{': k = ' if explained else ''}{', '.join(explained)}."]
        if self.unsolved:
            lines[-1] += f" Not solved: k = {', '.join(map(str, self.unsolved))}."
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """What was found at every k; of one that the model fails at its own error, and null or nothing for all else."""
        found = {k: one.to_json() for k, one in self.by_hops.items()}
        found |= {k: _nothing(self.model, k, own) for k, own in self.unsolved.items()}
        return {"model": self.model, "by_hops": {str(k): found[k] for k in self.hops}}

    def save(self, directory: str | Path) -> None:
        """As `Decompiled.save`, all k in one directory.

        Raises:
            HopInterpError: it exists, or cannot be written.
        """
        write_record(directory, self.files(), "what was found")

    def files(self) -> dict[str, bytes]:
        """What `save` writes, by the files' names."""
        return found_files(self.by_hops, {"model": self.model, "unsolved": packed(self.unsolved)})


def unsolved(name: str, hops: int, error: float) -> str:
    """Why no program is sought at a k."""
    return (
        f"{name} does not solve k = {hops}: its error is {percent(error)}, clearly above {FAILED:.0%}; there is no program"
    )


def _nothing(model: str, hops: int, own: float) -> dict[str, Any]:
    """The JSON result of a k that a model fails at."""
    errors = dict.fromkeys(("routed", "routed_hard", "joint", "low", "high"))
    controls = dict.fromkeys(("shuffled", "shuffled_within_block", "one_hop_off", "content_free", "untrained"))
    tree: dict[str, Any] = {"nodes": [], "stray": [], **dict.fromkeys(("error", "low", "high", "without"))}
    lists: dict[str, Any] = {name: [] for name in ("routes", "queries", "derivations", "reach")}
    found = {"model": model, "hops": hops, "error": {"own": own, **errors}, "controls": controls, "tree": tree, **lists}
    return found | {"explained": False, "inputs_explained": None}


def load_decompiled(directory: str | Path, model: ModelLike | None = None) -> Decompiled | Decompilation:
    """What `save` wrote.

    Args:
        model: the model that it was found in, so that it can be run again.

    Raises:
        HopInterpError: no such directory, or one that holds nothing of the kind.
    """
    source = Path(directory)
    network = None if model is None else Subject.of(model).weights_for("a program's run").to("cpu")
    with reading_record(source, "decompiled model"):
        given = read_json(source / FOUND)
        if given["format"] != FORMAT:
            raise HopInterpError("it was saved by another version")
        tensors = safetensors.torch.load(read_digested(source / TENSORS, given["sha256"], FOUND))
        found = {int(k): read_record(one, int(k), tensors, network) for k, one in given["by_hops"].items()}
        read: Decompiled | Decompilation
        if "one" in given:
            read = found[given["one"]]
        else:
            unsolved_ks = unpacked(dict[int, float], given["unsolved"])
            read = Decompilation(model=given["model"], by_hops=found, unsolved=unsolved_ks)
        check_shown(read)
        return read
