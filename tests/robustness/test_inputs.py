"""The quick tier of the campaign on inputs, and bits flipped in every file that keeps numbers."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hopinterp import HopInterpError
from hopinterp.models import store, torch_files
from hopinterp.training import record
from hopinterp.training.config import TrainConfig

from . import samples, values

QUICK = {"cards": 30, "weights": 16, "checkpoints": 16, "runs": 12, "commands": 12, "records": 12, "caches": 12}
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the campaign forks, and reads /proc")
def test_campaign():
    """In a process of its own, which imports once and forks for each case: a test's process has other things in memory."""
    counts = [word for kind, count in QUICK.items() for word in (f"--{kind}", str(count))]
    words = [sys.executable, "-m", "tests.robustness", *counts, "--seed", "11", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout, f"status {done.returncode}: {done.stderr[-2000:]}"
    tallies = json.loads(done.stdout)
    assert {kind: tally["cases"] for kind, tally in tallies.items()} == QUICK
    assert [bad for tally in tallies.values() for bad in tally["bad"]] == []
    assert tallies.pop("caches")["accepted"] == QUICK["caches"]  # what is damaged there is measured again
    for tally in tallies.values():  # a campaign that refuses all, or takes all, says nothing
        assert tally["accepted"]
        assert tally["refused"] > tally["cases"] / 4


def bits(data: bytes, count: int) -> list[int]:
    """Bits to flip: those of the first and the last bytes, and others anywhere."""
    drawn = random.Random(0)
    return [*range(64), *range(8 * len(data) - 64, 8 * len(data)), *(drawn.randrange(8 * len(data)) for _ in range(count))]


def test_bits_of_a_model(tmp_path):
    samples.write(tmp_path, samples.model())
    data = samples.model()["model.safetensors"]
    store.load_fused(tmp_path)
    for bit in bits(data, 300):
        (tmp_path / "model.safetensors").write_bytes(values.flip(data, bit))
        with pytest.raises(HopInterpError, match="damaged or changed"):
            store.load_fused(tmp_path)


def test_bits_of_a_file_to_import():
    """A flip is noticed, or no tensor depends on it: a zip says some things twice."""
    plain = samples.gpt2()
    data, noticed = samples.torch_saved(plain), 0
    numbers = [(data.index(one.numpy().tobytes()), 4 * one.numel()) for one in plain.values()]
    for bit in bits(data, 300):
        try:
            found = torch_files.unpack(values.flip(data, bit), Path("x.pt"))
        except HopInterpError:
            noticed += 1
        else:
            assert not any(start <= bit // 8 < start + size for start, size in numbers)
            assert found.keys() == plain.keys()
            assert all(torch.equal(found[name], one) for name, one in plain.items())
    assert noticed > 250


def test_numbers_to_be_negated_when_read():
    """torch can save a tensor with a flag that turns every sign: what reads bytes would miss it."""
    data = samples.torch_saved({"one": torch._neg_view(torch.ones(3))})
    with pytest.raises(HopInterpError, match="not of plain numbers"):
        torch_files.unpack(data, Path("x.pt"))


@pytest.mark.parametrize("config", ['{"layers": 3, 4}', "\ud800", None, "[]"])
def test_a_checkpoint_made_by_hand(tmp_path, config):
    """Its digest is right, and its settings are none."""
    data = samples.torch_saved({"config": config})
    (tmp_path / "checkpoint.pt").write_bytes(data + record._sealed(data))
    with pytest.raises(HopInterpError):
        record.read_checkpoint(tmp_path, TrainConfig())


def test_bits_of_a_checkpoint(tmp_path):
    samples.write(tmp_path, samples.run())
    config = TrainConfig.from_dict(json.loads(samples.run()["config.json"]))
    data = samples.run()["checkpoint.pt"]
    record.read_checkpoint(tmp_path, config)
    for bit in bits(data, 300):
        (tmp_path / "checkpoint.pt").write_bytes(values.flip(data, bit))
        with pytest.raises(HopInterpError, match="damaged"):
            record.read_checkpoint(tmp_path, config)
