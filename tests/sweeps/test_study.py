"""The study's scripts: what they keep of a sweep, and what they say of models whose answers and residuals are known."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import xarray as xr

import hopinterp as hi
from hopinterp import HopTask

ANALYSES = Path(__file__).parents[2] / "analyses"
TASK = HopTask(n_letters=40, alphabet_size=4, max_hops=8)


class Told:
    """A model that is told its batch: it errs where `wrong` holds, and its residuals name a letter where `knows` holds."""

    def __init__(self, wrong=None, knows=None):
        self.wrong, self.knows = wrong, knows

    def batch(self, tokens):
        return TASK.from_letters(tokens[:, 1:] - TASK.first_letter, tokens[:, 0])

    def __call__(self, tokens):
        batch = self.batch(tokens)
        letter = batch.labels == TASK.first_letter
        answers = torch.where(self.wrong(batch), TASK.first_letter + letter.long(), batch.labels)
        return F.one_hot(answers, TASK.d_vocab).float()

    def run_with_cache(self, tokens, names):
        batch = self.batch(tokens)
        letters = F.one_hot(tokens.gather(1, batch.find[:, 2]), TASK.d_vocab).float()
        return None, dict.fromkeys(names, letters * self.knows(batch)[..., None])


@pytest.fixture
def script(monkeypatch):
    """Runs one of the study's scripts, as its name says or as `__main__`, and gives what it defines."""
    monkeypatch.syspath_prepend(str(ANALYSES))
    return lambda name, **settings: runpy.run_path(str(ANALYSES / name), **settings)


@pytest.fixture
def distances(script):
    return script("distances.py")


def test_errors_are_counted_by_repeats_and_near_hops(distances):
    far = lambda batch: (batch.find[:, :3] - batch.find[:, 1:4] > 2).all(1)  # noqa: E731
    counted = distances["errors"](Told(wrong=far), TASK, 3)
    assert {one["near"] for one in counted} == {0, 1, 2, 3}
    assert all(one["wrong"] == (one["positions"] if one["near"] == 0 else 0) for one in counted)
    batch = TASK.sample(distances["ASKED"], 3, seed=3)
    assert sum(one["positions"] for one in counted) == int(batch.scored.sum())
    assert sum(one["positions"] for one in counted if one["repeats"] == 0) == int(batch.no_repeats.sum())


def test_a_probe_is_right_at_the_distances_whose_letters_are_there(distances):
    near = Told(knows=lambda batch: batch.find[:, 1] - batch.find[:, 2] <= 2)
    nothing = Told(knows=lambda batch: torch.zeros_like(batch.scored))
    _, found = distances["probes"]({"trained": near, "untrained": nothing}, TASK, 3)
    assert (found["block"], found["hop"]) == (1, 2)
    for distance, positions, trained, untrained in zip(
        *(found[name] for name in ("distance", "positions", "trained", "untrained")), strict=True
    ):
        if positions > 500:
            assert (trained == positions) == (distance <= 2)
            assert untrained < 0.5 * positions
    assert sum(found["positions"]) > 2000


def test_what_stands_there_is_not_measured_again(tmp_path, tiny, monkeypatch, script):
    runs, data = tmp_path / "runs", tmp_path / "data"
    data.mkdir()
    hi.sweep(tiny(layers=2, seed="0-1", keep_every=6, max_hops=8, letters=30), runs, engine="debug", threads=1)
    monkeypatch.setattr(sys, "argv", ["study.py", str(runs), "--data", str(data)])
    for name in ("study.py", "distances.py"):
        script(name, run_name="__main__")
    first = {path.name: path.read_bytes() for path in data.iterdir()}
    assert sorted(first) == sorted(
        f"study{rest}"
        for rest in (".nc", "_distances.jsonl", "_distinct.jsonl", "_heads.nc", "_programs.jsonl", "_series.jsonl")
    )
    cells = ["seed=0", "seed=1"]
    assert xr.load_dataset(data / "study.nc").cell.values.tolist() == cells
    assert [json.loads(line)["of"][0] for line in first["study_programs.jsonl"].decode().splitlines()] == cells
    for name in ("study.py", "distances.py"):
        script(name, run_name="__main__")
    assert {path.name: path.read_bytes() for path in data.iterdir() if path.suffix == ".jsonl"} == {
        name: kept for name, kept in first.items() if name.endswith("jsonl")
    }
