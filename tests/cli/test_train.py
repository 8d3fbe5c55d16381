"""train: its options are the settings of TrainConfig; what it makes and refuses."""

import re
from dataclasses import fields

import pytest

from hopinterp import TrainConfig
from hopinterp.models import store
from hopinterp.training.record import read_config


def test_train_resume_and_use(run, tmp_path):
    sizes = ["--layers", 1, "--d-model", 16, "--heads", 2, "--letters", 10, "--alphabet", 3, "--max-hops", 2]
    status, out, _ = run("train", "--out", tmp_path / "r", *sizes, "--steps", 5, "--batch", 4, "--threads", 1, "--no-bf16")
    assert status == 0
    assert "1 blocks, d_model 16, 2 heads" in out
    card = store.read_card(tmp_path / "r" / "model")
    assert card.made["settings"]["steps"] == 5
    assert "--letters 10" in card.made["command"]
    assert card.errors["settings"]["sequences"] == 400
    before = (tmp_path / "r" / "model" / "model.safetensors").read_bytes()
    assert run("train", "--resume", tmp_path / "r")[0] == 0
    assert (tmp_path / "r" / "model" / "model.safetensors").read_bytes() == before
    assert "k" in run("eval", tmp_path / "r", "--hops", 1, "--sequences", 2)[1]  # a run directory stands for its model


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "train needs --out for a new run, or --resume"),
        (("--out", "r", "--resume", "r"), "train needs --out for a new run, or --resume"),
        (("--out", "m"), "m exists"),
        (("--out", "r", "--preset", "slow"), "no preset 'slow'"),
        (("--out", "r", "--steps", "0"), "steps is 0"),
        (("--out", "r", "--lr", "-1"), "lr is -1.0"),
        (("--out", "r", "--seed", "-1"), "seed is -1"),
        (("--out", "r", "--optimizer", "sgd"), "optimizer is 'sgd'; it must be muon or adamw"),
        (("--out", "r", "--short-until", "0.5", "0.2"), "two rising shares"),
        (("--out", "r", "--heads", "7"), "7 heads were given"),
        (("--out", "r", "--threads", "0"), "--threads is 0"),
        (("--out", "r", "--samples", "5"), "a batch alone has 21"),
        (("--resume", "nowhere"), "nowhere is no training run"),
        (("--resume", "m", "--lr", "1"), "a resumed run has its own settings; --lr cannot change"),
    ],
)
def test_bad_training_gets_one_line_and_nothing_is_written(refused, model, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert model.exists()
    assert words in refused("train", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_help_names_every_setting_and_its_defaults(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    status, out, _ = run("train", "--help")
    assert status == 0
    panels = re.findall(r"^╭─ (.*?) ─+╮$", out, re.MULTILINE)
    assert panels == ["Options", "The model", "The task", "Optimisation", "What is trained on", "Speed", "Records and seed"]
    rows = dict(re.findall(r"^│ --([\w-]+)\s+(.*?)\s*│$", out, re.MULTILINE))
    settings = {one.name.replace("_", "-"): one for one in fields(TrainConfig)}
    assert set(rows) == {*settings, "out", "resume", "preset", "threads", "device", "help"}
    for name, one in settings.items():
        assert one.metadata["help"] in rows[name]
        assert ("--no-" + name in rows[name]) == isinstance(one.default, bool)
    assert rows["layers"].endswith("Default: 4; quick 3.")
    assert rows["lr"].endswith("Default: 0.0025; quick 0.002; paper 0.0001; first 0.002; full from 5 layers on 0.0015.")
    assert rows["bf16"].endswith("Default: on; quick off; paper off.")
    assert rows["short-until"].endswith("Default: 0.12 0.2; quick 0.0 0.0; paper 0.0 0.0; first 0.2 0.5.")
    assert rows["samples"].endswith("Default: 0.")


def test_every_option_reaches_the_run(run, tmp_path):
    """All settings as typed come back from the run's config.json."""
    wanted = {"layers": 1, "d_model": 32, "heads": 2, "act_fn": "relu", "unembed": "identity", "letters": 10, "alphabet": 3}
    wanted |= {"max_hops": 2, "steps": 2, "batch": 4, "optimizer": "adamw", "lr": 0.01, "warmup": 1, "decay": 0.5}
    wanted |= {
        "weight_decay": 0.5,
        "beta2": 0.9,
        "clip": 0.0,
        "dropout": 0.1,
        "average": 0.9,
        "focus": 2.0,
        "samples": 8,
        "seed": 3,
        "checkpoint_every": 2,
    }
    wanted |= {"keep_every": 2, "log_every": 2, "eval_every": 2}
    typed = [part for name, value in wanted.items() for part in (f"--{name.replace('_', '-')}", value)]
    typed += [
        "--short-until",
        0,
        0,
        "--no-curriculum",
        "--no-even-tokens",
        "--no-bf16",
        "--no-compile",
        "--no-tensorboard",
        "--no-wandb",
    ]
    assert run("train", "--out", tmp_path / "r", *typed)[0] == 0
    wanted |= {
        "short_until": (0.0, 0.0),
        "curriculum": False,
        "even_tokens": False,
        "bf16": False,
        "compile": False,
        "tensorboard": False,
        "wandb": False,
    }
    assert read_config(tmp_path / "r") == TrainConfig(**wanted)
    assert wanted.keys() == {one.name for one in fields(TrainConfig)}
