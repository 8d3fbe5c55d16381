"""--wandb: off unless asked; its records, kept offline; what is said where its package is missing."""

import json
import sys

import pytest

from hopinterp import HopInterpError, TrainConfig, resume, train
from hopinterp.training import record

TINY = TrainConfig(
    layers=1, d_model=8, heads=1, letters=8, alphabet=3, max_hops=1, steps=4, batch=2, bf16=False, log_every=2, eval_every=0
)
WITH = TrainConfig(**{**TINY.to_dict(), "wandb": True})


class Remote:
    """Stands where the package's run does, and keeps what it is told."""

    def __init__(self, **given):
        self.given, self.logged, self.finished = given, {}, False

    def log(self, values, step):
        self.logged[step] = values

    def finish(self):
        self.finished = True


@pytest.fixture
def remotes(monkeypatch):
    """Every run that was begun at Weights & Biases."""
    wandb, begun = pytest.importorskip("wandb"), []

    def begin(**given):
        begun.append(Remote(**given))
        return begun[-1]

    monkeypatch.setattr(wandb, "init", begin)
    return begun


def test_it_is_off_by_default(tmp_path, remotes):
    train(TINY, tmp_path / "r")
    assert not TrainConfig().wandb
    assert not remotes
    assert not (tmp_path / "r" / record.WANDB).exists()


def test_what_is_recorded(tmp_path, remotes):
    train(WITH, tmp_path / "r")
    (remote,) = remotes
    assert (remote.given["project"], remote.given["name"], remote.given["dir"]) == ("hopinterp", "r", str(tmp_path / "r"))
    assert remote.given["config"]["layers"] == 1
    assert remote.finished
    lines = [json.loads(line) for line in (tmp_path / "r" / record.METRICS).read_text().splitlines()]
    assert sorted(remote.logged) == [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert remote.logged[line["step"]]["loss"] == line["loss"]
        assert remote.logged[line["step"]]["error/1"] == line["running_errors"]["1"]


def test_a_resumed_run_goes_on_as_the_same_one(tmp_path, remotes):
    train(WITH, tmp_path / "r")
    resume(tmp_path / "r")
    assert len({remote.given["id"] for remote in remotes}) == 1
    assert [remote.given["resume"] for remote in remotes] == ["allow", "allow"]
    (tmp_path / "r" / record.WANDB).write_text("../elsewhere")
    with pytest.raises(HopInterpError, match="holds no run's id"):
        resume(tmp_path / "r")


def test_the_weights_are_those_of_a_run_without(tmp_path, remotes):
    train(WITH, tmp_path / "with")
    train(TINY, tmp_path / "without")
    assert len(remotes) == 1
    weights, cards = (
        [(tmp_path / name / "model" / file).read_bytes() for name in ("with", "without")]
        for file in ("model.safetensors", "card.json")
    )
    assert weights[0] == weights[1]
    assert "wandb" not in cards[0].decode()


def test_a_run_of_an_earlier_version_goes_on():
    """Its config.json and its checkpoint know no such setting."""
    old = {name: value for name, value in TINY.to_dict().items() if name != "wandb"}
    assert TrainConfig.from_dict(old) == TINY


@pytest.mark.usefixtures("remotes")
def test_it_refuses_in_one_line(tmp_path, monkeypatch):
    def offline(**_given):
        raise sys.modules["wandb"].Error("no API key\nconfigured")

    monkeypatch.setattr(sys.modules["wandb"], "init", offline)
    with pytest.raises(
        HopInterpError, match="--wandb: no API key configured; WANDB_MODE=offline keeps the records here; the"
    ):
        train(WITH, tmp_path / "r")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(HopInterpError, match=r"--wandb needs its package, the extra \[wandb\]"):
        train(WITH, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_offline_it_writes_in_the_run_and_reaches_nothing(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_CACHE_DIR": str(tmp_path),
        "WANDB_CONFIG_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    train(WITH, tmp_path / "r")
    (kept,) = (tmp_path / "r" / "wandb").glob("offline-run-*/run-*.wandb")
    data = kept.read_bytes()
    assert b"loss" in data
    assert b"error/1" in data
