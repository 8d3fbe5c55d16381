"""sweep: a grid from a file, a preset or the directory; what it prints and writes; its refusals."""

import json

import pandas as pd
import pytest

from hopinterp.sweeps import sweep as sweeps

GRID = """
layers = [1, 2]
d_model = 8
heads = 1
letters = 6
alphabet = 3
max_hops = 2
batch = 2
steps = 4
bf16 = false
eval_every = 0
[after]
sequences = 10
"""
HERE = ("--engine", "debug", "--threads", 1)


@pytest.fixture
def grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.toml").write_text(GRID)
    return tmp_path / "grid.toml"


@pytest.mark.usefixtures("grid")
def test_a_sweep_and_what_it_leaves(run, run_json, tmp_path):
    status, out, err = run("sweep", "grid.toml", "--out", "s", *HERE, "--plot", "p.png", "--csv", "t.csv")
    assert (status, err) == (0, "")
    assert out.startswith("Wrote s/results.nc\nWrote t.csv\nWrote p.png\n")
    assert "layers=1" in out
    assert out.endswith("2 of 2 cells done.\n")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert pd.read_csv("t.csv").shape[0] == 4
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"sweep.json", "results.nc", "jobs", "layers=1", "layers=2"}
    told = run_json("sweep", "--out", "s", *HERE)  # the grid that is kept there; all is done
    assert told["wrote"] == ["s/results.nc"]
    assert {name: cell["status"] for name, cell in told["cells"].items()} == {"layers=1": "done", "layers=2": "done"}
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["cells"][0]["steps"] == 4
    assert run("models", "s")[1].count("layers=") == 2


def test_a_cell_that_fails_is_a_line_and_a_status(run, grid):
    grid.write_text(
        GRID.replace("layers = [1, 2]", "layers = 1\nlr = [0.002, 1e18]\noptimizer = 'adamw'\nclip = 0.0\nwarmup = 0")
    )
    status, out, err = run("sweep", "grid.toml", "--out", "s", *HERE)
    assert status == 1
    assert out.endswith("1 of 2 cells done, 1 failed.\n")
    assert err.startswith("hopinterp: lr=1e+18: the run diverged")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "s"), "s holds no sweep"),
        (("none.toml", "--out", "s"), "no file none.toml"),
        (("grid.toml", "--preset", "paper-depths", "--out", "s"), "a grid's file or --preset, not both"),
        (("grid.toml", "--seeds", "0-3", "--out", "s"), "--recipe and --seeds are for --preset"),
        (("--preset", "paper", "--out", "s"), "no preset 'paper'; there are paper-depths"),
        (("--preset", "paper-depths", "--recipe", "best", "--out", "s"), "no recipe 'best'; there are full, paper"),
        (("--preset", "paper-depths", "--seeds", "x", "--out", "s"), "seed is 'x'; a range of it is such as 0-7"),
        (("--verify", "all", "--out", "s"), "give the grid too"),
        (("grid.toml", "--verify", "most", "--out", "s"), "verify is 'most'"),
        (("grid.toml", "--out", "s", "--engine", "cloud"), "--engine is 'cloud'; it is local, slurm, debug"),
        (("grid.toml", "--out", "s", "--engine", "slurm", "--slurm", "time"), "--slurm is 'time'; it is KEY=VALUE"),
        (("grid.toml", "--out", "s", "--slurm", "time=1"), "--slurm is for --engine slurm"),
        (("grid.toml", "--out", "s", "--workers", "0"), "0 is not at least 1"),
        (("grid.toml", "--out", "s", "--plot", "p.xyz"), "p.xyz"),
        (("grid.toml", "--out", "s", "--csv", "no/t.csv"), "no directory no"),
        (("grid.toml", "--out", "grid.toml"), "cannot write grid.toml"),
        (("grid.toml", "--out", "."), ". holds something else than a sweep"),
    ],
)
def test_bad_sweeps_get_one_line_and_nothing_is_written(refused, grid, arguments, words):
    assert words in refused("sweep", *arguments)
    assert [path.name for path in grid.parent.iterdir()] == ["grid.toml"]


def test_options_reach_the_sweep(run, grid, monkeypatch):
    asked = []

    def remember(found, out, **settings):
        asked.append((found, str(out), settings))
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "sweep", remember)
    words: tuple = (
        "sweep",
        "--preset",
        "paper-samples",
        "--recipe",
        "paper",
        "--seeds",
        "0-1",
        "--out",
        "s",
        "--device",
        "cpu",
    )
    words += ("--verify", "granted", "--decompile", "1-3", "--workers", 3, "--threads", 2, "--retries", 5, "--no-cache")
    status, _, err = run(*words)
    assert status == 130
    assert err == f"hopinterp: interrupted; go on with: hopinterp {' '.join(map(str, words))}\n"
    (found, out, settings), *_ = asked
    assert (len(found.cells), found.after.verify, found.after.decompile, out) == (30, "granted", "1-3", "s")
    assert {cell.config.dropout for cell in found.cells} == {0.1}
    del settings["report"]
    wanted = {"engine": "local", "workers": 3, "threads": 2, "device": "cpu", "retries": 5, "slurm": {}, "use_cache": False}
    assert settings == wanted
    assert grid.exists()
