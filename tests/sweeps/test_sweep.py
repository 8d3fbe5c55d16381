"""A sweep trains and measures each cell once, goes on wherever it was stopped, and sets all in one Dataset."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import xarray as xr

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.files import alone_in
from hopinterp.models import store
from hopinterp.models.card import read_card
from hopinterp.sweeps.cells import Home, say_failed
from hopinterp.sweeps.engine import Engine
from hopinterp.training import loop
from hopinterp.training.run import Run

TIMES = ["seconds", "cpu_seconds", "training_cpu_seconds"]


def swept(table, where, **settings):
    return hi.sweep(table, where, engine="debug", threads=1, **settings)


def weights(where):
    return {
        path.parent.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in where.glob("*/model/*.safetensors")
    }


def stamps(where):
    """When each model and each measurement was written."""
    paths = [*where.glob("*/model/*.safetensors"), *where.glob("*/measured/results.nc")]
    return {str(path.relative_to(where)): path.stat().st_mtime_ns for path in paths}


@pytest.fixture(scope="module")
def once(tiny, tmp_path_factory):
    table, where = tiny(layers=[1, 2], seed="0-1"), tmp_path_factory.mktemp("once") / "s"
    return table, where, swept(table, where)


@pytest.fixture
def whole(once, tmp_path):
    """A sweep that nothing stopped: its grid, its directory (each test has its own), its results."""
    table, where, found = once
    shutil.copytree(where, tmp_path / "s")
    return table, tmp_path / "s", found


def test_results(whole, tiny):
    table, where, found = whole
    assert found.cell.values.tolist() == ["layers=1,seed=0", "layers=1,seed=1", "layers=2,seed=0", "layers=2,seed=1"]
    assert dict(found.sizes) == {"cell": 4, "hops": 2, "layer": 2}
    assert found.layers.values.tolist() == [1, 1, 2, 2]
    assert found.seed.values.tolist() == [0, 1, 0, 1]
    assert set(found.status.values) == {"done"}
    assert json.loads(found.attrs["settings"])["d_model"] == 8
    assert "layers" not in json.loads(found.attrs["settings"])
    for name in found.cell.values.tolist():
        card = read_card(where / name / "model")
        assert card.made["settings"]["layers"] == int(found.layers.sel(cell=name))
        model, task = store.load_fused(where / name)
        own = hi.evaluate(model, task, sequences=20)
        for variable in own.data_vars:
            np.testing.assert_array_equal(found[variable].sel(cell=name), own[variable])
        assert float(found.tokens.sel(cell=name)) == card.made["tokens"]
    assert (found.training_cpu_seconds <= found.cpu_seconds).all()
    assert xr.load_dataset(where / "results.nc").equals(found)
    assert hi.sweep_results(where).equals(found)
    assert hi.sweep_results(where / "results.nc").equals(found)
    assert all(one.attrs.get("long_name") for name, one in found.data_vars.items())
    assert tiny(layers=[1, 2], seed="0-1") == table


def test_what_is_done_is_not_done_again_and_a_grid_may_grow(whole, tiny):
    _, where, found = whole
    before = stamps(where)
    assert hi.sweep(None, where, engine="debug", threads=1).drop_vars(TIMES).equals(found.drop_vars(TIMES))
    assert stamps(where) == before
    # the setting that varies now too gives the cells other names; their runs are found by what they are
    more = swept(tiny(layers=[1, 2], seed="0-1", lr=[hi.TrainConfig().lr, 0.01]), where)
    assert more.sizes["cell"] == 8
    assert {name: stamp for name, stamp in stamps(where).items() if name in before} == before
    assert more.sel(cell=found.cell).error.equals(found.error.sel(hops=[1, 2])) or np.array_equal(
        more.sel(cell=found.cell).error, found.error
    )
    with pytest.raises(HopInterpError, match=r"layers=1,seed=0 has other settings: steps is 12, the grid has 13"):
        swept(tiny(layers=[1, 2], seed="0-1", steps=13), where)
    assert hi.sweep_results(where).sizes["cell"] == 8  # what was refused changed nothing


def test_what_is_asked_of_models_may_change(whole, tiny):
    _, where, found = whole
    before = weights(where), stamps(where)
    more = swept(tiny(layers=[1, 2], seed="0-1", after={"sequences": 30, "distinct": 10, "verify": "all"}), where)
    assert weights(where) == before[0]
    assert stamps(where).keys() == before[1].keys()
    assert (more.positions > found.positions).all()
    assert set(more.verdict.values.ravel()) == {"none"}  # they have learned nothing
    assert "distinct_error" in more
    survey = hi.load_survey(where / "layers=2,seed=1" / "verdicts")
    assert [one.verdict for one in survey.verdicts.values()] == ["none", "none"]


def test_a_model_that_is_known_is_judged_and_decompiled(tmp_path, tiny):
    """The constructed successor in the place of a trained model: the program that it was built from is in the results."""
    task = hi.HopTask(n_letters=16, alphabet_size=4, max_hops=4)
    made = hi.Construction.of(task, 4, "successor").fused
    settings = {"layers": 4, "letters": 16, "alphabet": 4, "max_hops": 4}
    swept(tiny(**settings), tmp_path / "s")
    run = tmp_path / "s" / "seed=0"
    card = read_card(run / "model")
    store.save(run / "model", made, task, dict(card.made), overwrite=True)
    found = swept(tiny(**settings, after={"sequences": 20, "verify": 4, "decompile": "1,4"}), tmp_path / "s")
    at4 = found.isel(cell=0).sel(hops=4)
    assert (at4.verdict.item(), at4.form.item(), bool(at4.explained)) == ("doubling", "successor", True)
    verdict = hi.load_verdict(run / "verdicts")
    assert at4.reach.values.tolist() == list(verdict.reach)
    assert at4.derivations.item() == verdict.program.sums
    assert found.isel(cell=0).derivations.values.tolist() == ["", "", "", verdict.program.sums]  # it does not solve k = 1
    only = swept(tiny(**settings, after={"sequences": 20, "decompile": True}), tmp_path / "s").isel(cell=0).sel(hops=4)
    assert (only.verdict.item(), bool(only.explained), only.reach.values.tolist()) == ("", True, [0, 1, 3, 4])
    assert hi.load_decompiled(run / "programs").hops == 4


def test_a_cell_that_fails_stops_no_other_and_is_tried_again(tiny, tmp_path):
    table = tiny(layers=1, lr=[0.002, 1e18], optimizer="adamw", clip=0.0, warmup=0)
    found = swept(table, tmp_path / "s")
    assert found.status.values.tolist() == ["done", "failed"]
    assert "diverged" in found.failure.values[1]
    assert np.isnan(found.error.values[1]).all()
    assert hi.sweep_results(tmp_path / "s").equals(found)
    again = swept(table, tmp_path / "s")
    assert again.status.values.tolist() == ["done", "failed"]
    assert sorted(path.name for path in (tmp_path / "s" / "jobs" / "lr=1e+18").iterdir()) == ["1", "2"]


def test_a_cell_that_is_killed_is_started_again_so_often(tiny, tmp_path, monkeypatch):
    calls = []

    def dies(*_given, **_settings):
        calls.append(1)
        raise SystemExit(137)

    class Job:
        job_id = "1"

        def done(self):
            return True

    def start(_self, work):
        with pytest.raises(SystemExit):
            work()
        (work.folder / "1_0_log.err").write_text("much\nout of memory\n\n")
        return Job()

    monkeypatch.setattr(loop, "train", dies)
    monkeypatch.setattr("hopinterp.sweeps.engine.Engine.start", start)
    found = swept(tiny(), tmp_path / "s", retries=2)
    assert len(calls) == 3
    assert found.status.values.tolist() == ["failed"]
    assert "its process ended 3 times with nothing done (out of memory); see " in found.failure.item()
    assert hi.sweep_results(tmp_path / "s").failure.equals(found.failure)


def test_ctrl_c_then_the_same_again_is_bit_identical(whole, tmp_path, monkeypatch):
    table, where, found = whole
    real, steps = Run.advance, []

    def pressed(run):
        steps.append(1)
        if len(steps) == 30:
            raise KeyboardInterrupt
        return real(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "advance", pressed)
        with pytest.raises(KeyboardInterrupt):
            swept(table, tmp_path / "t")
    half = hi.sweep_results(tmp_path / "t")
    assert sorted(half.status.values) == ["done", "done", "training", "waiting"]
    assert xr.load_dataset(tmp_path / "t" / "results.nc").equals(half)
    again = swept(None, tmp_path / "t")
    assert weights(tmp_path / "t") == weights(where)
    assert again.drop_vars(TIMES).equals(found.drop_vars(TIMES))


def test_progress_counts_the_work_that_is_left(tiny, tmp_path):
    told = []
    swept(tiny(layers=[1, 2]), tmp_path / "s", report=told.append)
    assert told[-1].what == "sweeping  2 of 2 cells done"
    assert (told[-1].done, told[-1].total) == (1000, 1000)
    assert [one.done for one in told] == sorted(one.done for one in told)


def test_one_sweep_a_directory(whole):
    _, where, _ = whole
    with alone_in(where), pytest.raises(HopInterpError, match="another process is sweeping in"):
        hi.sweep(None, where, engine="debug")
    home = Home(where, "layers=1,seed=0")
    assert not home.held()
    with alone_in(home.jobs):
        assert home.held()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"engine": "cloud"}, "--engine is 'cloud'"),
        ({"workers": 0}, "workers is 0"),
        ({"threads": 10**9}, "threads is 1000000000"),
        ({"retries": -1}, "retries is -1"),
        ({"device": "tpu"}, "--device is 'tpu'"),
        ({"slurm": {"time": "1"}}, "--slurm is for --engine slurm"),
    ],
)
def test_bad_settings_leave_nothing(tiny, tmp_path, settings, words):
    with pytest.raises(HopInterpError, match=words):
        hi.sweep(tiny(), tmp_path / "s", **{"engine": "local", **settings})
    assert not (tmp_path / "s").exists()


def test_places_that_are_none(tiny, tmp_path):
    with pytest.raises(HopInterpError, match="holds no sweep"):
        hi.sweep(None, tmp_path / "s", engine="debug")
    with pytest.raises(HopInterpError, match="holds no sweep"):
        hi.sweep_results(tmp_path / "s")
    (tmp_path / "note").touch()
    with pytest.raises(HopInterpError, match="holds something else than a sweep"):
        swept(tiny(), tmp_path)
    with pytest.raises(HopInterpError, match="takes no %"):
        swept(tiny(), tmp_path / "100%j")
    with pytest.raises(HopInterpError, match="holds no results"):
        hi.sweep_results(tmp_path / "note")


@pytest.mark.parametrize("text", ["{}", "[]", '{"format": 1}', '{"format": 1, "cells": [3], "after": {}}', "nothing"])
def test_a_damaged_grid(whole, text):
    _, where, _ = whole
    (where / "sweep.json").write_text(text)
    with pytest.raises(HopInterpError, match=r"sweep\.json") as refused:
        swept(None, where)
    assert "\n" not in str(refused.value)


def test_a_cells_name_leads_nowhere_else(whole):
    _, where, _ = whole
    kept = json.loads((where / "sweep.json").read_text())
    kept["cells"][0]["name"] = "../elsewhere"
    (where / "sweep.json").write_text(json.dumps(kept))
    with pytest.raises(HopInterpError, match="no file's name"):
        hi.sweep_results(where)


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        ("measured/results.nc", "results.nc is no result of a sweep"),
        ("model/card.json", "card.json is no model card"),
        ("config.json", "config.json is no plain JSON"),
    ],
)
def test_what_is_damaged_takes_nothing_from_the_others(whole, damaged, words):
    _, where, found = whole
    path = where / "layers=1,seed=0" / damaged
    path.write_bytes(path.read_bytes()[:100])
    if not damaged.startswith("measured"):
        shutil.rmtree(where / "layers=1,seed=0" / "measured")
    if damaged == "config.json":
        shutil.rmtree(where / "layers=1,seed=0" / "model")
    again = swept(None, where)
    assert again.status.values.tolist() == ["failed", "done", "done", "done"]
    assert words in again.failure.values[0]
    assert again.error[1:].equals(found.error[1:])
    assert hi.sweep_results(where).failure.equals(again.failure)
    shutil.rmtree(where / "layers=1,seed=0")
    assert swept(None, where).drop_vars(TIMES).equals(found.drop_vars(TIMES))


def test_before_any_cell_is_done_all_is_there_and_empty(tiny, tmp_path, monkeypatch):
    calls = []

    def stopped(_run):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "advance", stopped)
    with pytest.raises(KeyboardInterrupt):
        swept(tiny(layers=[1, 2]), tmp_path / "s")
    found = hi.sweep_results(tmp_path / "s")
    assert calls
    assert np.isnan(found.error.values).all()
    assert np.isnan(found.reach.values).all()
    assert not found.solved.any()
    assert set(found.verdict.values.ravel()) == {""}
    assert hi.show(found)


def test_a_job_that_cannot_be_started_stops_no_other(tiny, tmp_path, monkeypatch):
    """A queue that is too busy for one job at times; a cell in whose folder nothing can be made."""
    real, refused = Engine.start, []

    def start(engine, work):
        if "seed=1" in work.home.name and len(refused) < 2:
            refused.append(1)
            raise HopInterpError("a job cannot be started (sbatch: Socket timed out)")
        object.__setattr__(engine, "_started", 1)
        return real(engine, work)

    monkeypatch.setattr(Engine, "start", start)
    (tmp_path / "s" / "jobs").mkdir(parents=True)
    (tmp_path / "s" / "sweep.json").touch()
    (tmp_path / "s" / "jobs" / "seed=2").touch()
    found = swept(tiny(seed="0-2"), tmp_path / "s")
    assert len(refused) == 2
    assert found.status.values.tolist() == ["done", "done", "failed"]
    assert "cannot write" in found.failure.values[2]


def test_what_runs_at_cells_that_are_gone_is_told_to_stop(tiny, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(Engine, "tell", lambda _engine, home, _job: told.append(home.name))
    swept(tiny(), tmp_path / "s")
    gone = Home(tmp_path / "s", "gone")
    gone.new_job()
    swept(tiny(), tmp_path / "s")
    assert not told  # nobody is at work there
    with alone_in(gone.jobs):
        swept(tiny(), tmp_path / "s")
    assert told == ["gone"]


def test_why_there_is_no_program(tiny, tmp_path):
    found = swept(tiny(after={"sequences": 20, "decompile": "all"}), tmp_path / "s")
    assert found.status.item() == "done"
    assert all("does not solve k" in why for why in found.no_program.values.ravel())


def test_a_full_disk(whole, tmp_path, monkeypatch):
    """The sweep ends in one line, or reports its cells; with room again the same command ends as it would have."""
    table, where, found = whole
    calls = 0

    def full(_descriptor):
        nonlocal calls
        calls += 1
        if calls > 30:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(HopInterpError, match="No space left on device"):
            swept(table, tmp_path / "t")
    again = swept(table, tmp_path / "t")
    assert weights(tmp_path / "t") == weights(where)
    assert again.drop_vars(TIMES).equals(found.drop_vars(TIMES))


def test_words_of_failure_are_one_line(tmp_path):
    say_failed(tmp_path, "two\nlines")
    from hopinterp.sweeps.cells import failed

    assert failed(tmp_path) == "two lines"
    assert failed(None) == ""
    (tmp_path / "failed.json").write_text("[")
    assert failed(tmp_path)
