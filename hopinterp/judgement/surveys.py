"""The verdict at every k: typed, printed, shown in a notebook, saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hopinterp.decompile.kept import packed, reading_record, unpacked, write_record
from hopinterp.errors import HopInterpError
from hopinterp.files import read_json
from hopinterp.judgement.records import FORMAT, Capacity, Verdict, hops_text, load_verdict
from hopinterp.models.subject import ModelLike
from hopinterp.shown import Row, Shown

_SURVEY = "survey.json"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Survey(Shown):
    """The verdict at every k, and whether the insides predict the outside.

    Attributes:
        model: its name.
        verdicts: by k.
        unmeasured: k → why no verdict could be had (too few positions count, say).
        capacity: as in Verdict, with R the largest over the k at which the model does not fail; over all, if it fails at
            each.
    """

    model: str
    verdicts: Mapping[int, Verdict]
    unmeasured: Mapping[int, str]
    capacity: Capacity

    @property
    def rows(self) -> list[Row]:
        """A row a k: error, verdict, form, what the blocks stand for, what they hold."""
        return [(str(k), self._cells(one)) for k, one in self.verdicts.items()]

    @staticmethod
    def _cells(one: Verdict) -> tuple[str, ...]:
        reached = ", ".join(map(str, one.reach)) or ("" if one.program is None else ", ".join(one.program.reach_words))
        seen = ("" if not any(one.resolved[kind]) else hops_text(one.resolved[kind]) for kind in ("transplant", "probe"))
        return (f"{100 * one.error['error']:.2f}", one.verdict, one.form or "", one.pace or "", reached, *seen)

    @property
    def columns(self) -> list[str]:
        """Over `rows`."""
        return ["k", "error %", "verdict", "form", "pace", "reaches", "stands for", "holds at most"]

    @property
    def reading(self) -> str:
        """How many k got which verdict, and the capacity."""
        by_verdict: dict[str, list[int]] = {}
        for k, one in self.verdicts.items():
            by_verdict.setdefault(one.verdict + (f" ({one.form})" if one.form else ""), []).append(k)
        parts = "; ".join(f"{verdict} at k = {', '.join(map(str, ks))}" for verdict, ks in by_verdict.items())
        unmeasured = [f"k = {k}: no verdict ({why})." for k, why in self.unmeasured.items()]
        return "\n".join([*unmeasured, str(self.capacity), f"{self.model or 'the model'}: {parts}."])

    def to_json(self) -> dict[str, Any]:
        """The verdict at every k, and the capacity."""
        verdicts = {str(k): one.to_json() for k, one in self.verdicts.items()}
        unmeasured = {str(k): why for k, why in self.unmeasured.items()}
        return {"verdicts": verdicts, "unmeasured": unmeasured, "capacity": self.capacity.to_json()}

    def save(self, directory: str | Path) -> None:
        """Write a directory, whole or not at all: survey.json, and for each k a folder, "k8", as `Verdict.save` writes it.

        Raises:
            HopInterpError: it exists, or cannot be written.
        """
        write_record(directory, self.files(), "a survey")

    def files(self) -> dict[str, bytes]:
        """What `save` writes, by the files' names."""
        kept = {"format": FORMAT, "model": self.model, "hops": list(self.verdicts)}
        kept |= {"unmeasured": packed(self.unmeasured), "capacity": asdict(self.capacity)}
        files = {_SURVEY: json.dumps(kept, indent=2).encode() + b"\n"}
        for k, one in self.verdicts.items():
            files |= {f"k{k}/{name}": data for name, data in one.files().items()}
        return files


def load_survey(directory: str | Path, model: ModelLike | None = None) -> Survey:
    """What `Survey.save` wrote. `load_verdict` reads one of its folders.

    Args:
        model: as of `load_verdict`.

    Raises:
        HopInterpError: no such directory, or one that holds no survey.
    """
    source = Path(directory)
    with reading_record(source, "survey"):
        given = read_json(source / _SURVEY)
        if given["format"] != FORMAT:
            raise HopInterpError("it was saved by another version")
        verdicts = {k: load_verdict(source / f"k{k}", model) for k in unpacked(list[int], given["hops"])}
        unmeasured = unpacked(dict[int, str], given["unmeasured"])
        capacity = unpacked(Capacity, given["capacity"])
        return Survey(model=str(given["model"]), verdicts=verdicts, unmeasured=unmeasured, capacity=capacity)
