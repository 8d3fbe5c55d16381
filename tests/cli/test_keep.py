"""--save, --csv and --no-cache of every command that measures; and `hopinterp cache`."""

import json
import os
import shutil

import pandas as pd
import pytest
import xarray as xr

import hopinterp as hi
from hopinterp.cache import _MAGIC
from hopinterp.files import digest

FEW = ("--sequences", 4)
COMMANDS = {
    "eval": ("eval", *FEW),
    "attention": ("attention", "--hops", 2, *FEW),
    "probe": ("probe", "--hops", 1, "--method", "ridge", "--train-sequences", 8, *FEW),
    "patch": ("patch", "--hops", 1, *FEW),
    "transplant": ("transplant", "--hops", 1, *FEW),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOPINTERP_CACHE", str(tmp_path / "c"))
    return tmp_path / "c"


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_measured_is_written_and_said(name, run, model, tmp_path, small_model):
    command, *options = COMMANDS[name]
    place, table = tmp_path / "saved", tmp_path / "t.csv"
    status, out, err = run(command, model, *options, "--save", place, "--csv", table)
    assert (status, err) == (0, "")
    assert {f"Wrote {place}", f"Wrote {table}"} <= set(out.splitlines())
    assert os.listdir(place) == [f"{name}.nc"]
    found = xr.load_dataset(place / f"{name}.nc")
    assert found.attrs["model_digest"] == small_model.digest()
    assert (found.attrs["model"], found.attrs["seed"], found.attrs["sequences"]) == ("m", 0, 4)
    assert found.attrs["version"]
    found.to_netcdf(tmp_path / "again.nc")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "again.nc"), found)
    frame = pd.read_csv(table)
    size = 1
    for count in found.sizes.values():
        size *= count
    assert len(frame) == size
    assert set(map(str, [*found.data_vars, *found.dims])) <= set(frame.columns)
    assert set(frame.model) == {"m"}
    assert "hops" in frame
    first = next(iter(found.data_vars))
    for row in frame.to_dict("records")[::7]:
        kept = float(found[first].sel({dim: row[str(dim)] for dim in found[first].dims}))
        assert row[str(first)] == pytest.approx(kept, nan_ok=True)


def test_json_says_what_was_written(run_json, model, tmp_path):
    said = run_json("eval", model, *FEW, "--save", tmp_path / "s", "--csv", tmp_path / "t.csv")
    assert said["wrote"] == [str(tmp_path / "s"), str(tmp_path / "t.csv")]


@pytest.mark.parametrize("option", ["--save", "--csv"])
def test_a_place_that_cannot_be_is_refused_before_the_work(option, refused, model, tmp_path, monkeypatch):
    monkeypatch.setattr("hopinterp.evidence.reading.behaviour._answers", None)
    (tmp_path / "there").mkdir()
    assert "there" in refused("eval", model, *FEW, option, tmp_path / "there")


def test_a_verdict_and_a_program_are_saved(run, doubling, tmp_path):
    few = ("--hops", "4", "--sequences", 20)
    status, out, _ = run("verify", doubling, *few, "--save", tmp_path / "v", "--csv", tmp_path / "v.csv")
    assert status == 0
    assert f"Wrote {tmp_path / 'v'}\n" in out
    verdict = hi.load_verdict(tmp_path / "v")
    frame = pd.read_csv(tmp_path / "v.csv")
    assert frame.program.tolist() == list(verdict.reach) == [0, 1, 3, 4]
    assert frame.layer.tolist() == [0, 1, 2, 3]
    assert set(frame.verdict) == {"doubling"}
    status, out, _ = run("decompile", doubling, *few, "--save", tmp_path / "d", "--csv", tmp_path / "d.csv")
    assert status == 0
    program = hi.load_decompiled(tmp_path / "d")
    frame = pd.read_csv(tmp_path / "d.csv")
    assert frame.route.tolist() == [str(route) for routes in program.routes for route in routes]
    assert frame.carries.sum() == len({(node.layer, node.head) for node in program.tree.nodes})


def test_commands_find_what_others_measured(run, run_json, model, cache):
    plain = {name: run(command, model, *options, "--no-cache") for name, (command, *options) in COMMANDS.items()}
    assert not cache.exists()
    for name, (command, *options) in COMMANDS.items():
        assert run(command, model, *options) == plain[name]
    listed = run_json("cache")
    assert listed["directory"] == str(cache)
    assert sorted(one["what"] for one in listed["results"]) == ["align", "evaluate", "patch", "probe", "transplant"]
    assert {one["model"] for one in listed["results"]} == {"m"}
    assert {one["what"]: one["k"] for one in listed["results"]}["evaluate"] == "1–4"
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    for name, (command, *options) in COMMANDS.items():
        assert run(command, model, *options) == plain[name]
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before
    _, out, _ = run("cache")
    assert "5 result(s)" in out
    assert str(cache) in out
    assert run("cache", "clear")[1].startswith("Removed 5 result(s)")
    assert not cache.exists()
    assert run_json("cache")["results"] == []


def test_what_comes_from_the_cache_is_what_it_holds(run_json, model, cache):
    """That the command looks there at all: a result put under the key of another is what it shows."""
    command = ("eval", model, *FEW)
    plain = run_json(*command)
    shutil.copytree(cache, cache.parent / "first")
    other = run_json(*command, "--seed", 1)
    assert plain != other
    entries = {path.name: path for path in cache.iterdir()}
    (mine,) = (cache.parent / "first").iterdir()
    theirs = entries[next(name for name in entries if name != mine.name)]
    _, label, *_ = mine.read_bytes().split(b"\n", 2)
    _, _, body = theirs.read_bytes().split(b"\n", 2)
    rest = label + b"\n" + body
    (cache / mine.name).write_bytes(_MAGIC + digest(rest).encode() + b"\n" + rest)
    assert run_json(*command) == other
    assert run_json(*command, "--no-cache") == plain


def test_a_cache_that_is_off(run, run_json):
    assert "off" in run("cache")[1]
    assert run_json("cache") == {"directory": None, "results": []}
    assert "off" in run("cache", "clear")[1]


def test_a_cache_that_is_a_file_warns_in_one_line(run, model, tmp_path, monkeypatch):
    plain = run("eval", model, *FEW)
    (tmp_path / "f").write_bytes(b"x")
    monkeypatch.setenv("HOPINTERP_CACHE", str(tmp_path / "f"))
    status, out, err = run("eval", model, *FEW)
    assert (status, out) == plain[:2]
    assert err.startswith("hopinterp: the cache ")
    assert err.count("\n") == 1
    assert json.loads(run("eval", model, *FEW, "--json")[1])
    status, out, err = run("cache")
    assert (status, out) == (2, "")
