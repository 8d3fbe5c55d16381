"""Sweeps that are killed, they or their workers, come to the same results as one left alone, bit for bit."""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from contextlib import suppress

import pytest
import torch
import xarray as xr

import hopinterp as hi
from hopinterp.sweeps.cells import Beat, Home

from .faults import Fault
from .test_crash_points import leftovers, some_time_later

SLOWLY = """
import hopinterp.training.run as r, time
a = r.Run.advance
r.Run.advance = lambda s: (time.sleep(.004), a(s))[1]
"""
"""Steps long enough to be met by a signal."""
FORKS = """
import os
from hopinterp.sweeps import engine
class Forked:
    def __init__(self, pid):
        self.job_id, self.state, self.over = str(pid), "", False
    def done(self):
        self.over = self.over or os.waitpid(int(self.job_id), os.WNOHANG)[0] != 0
        return self.over
def start(self, work):
    pid = os.fork()
    if pid:
        return Forked(pid)
    os.closerange(3, 256)  # the sweep's own lock among them, as a process of its own does not have it
    try:
        work()
    finally:
        os._exit(0)
engine.Engine.start = start
"""
"""Workers without the seconds that imports take: forked from the sweep, which they outlive as those of submitit do."""


TINY = {"d_model": 8, "heads": 1, "letters": 6, "alphabet": 3, "max_hops": 2, "batch": 2, "steps": 12}
TINY |= {"checkpoint_every": 4, "log_every": 4, "eval_every": 0, "bf16": False}
TIMES = ["seconds", "cpu_seconds", "training_cpu_seconds"]


def tiny(**changed):
    """A grid of cells that take a fraction of a second each."""
    return {**TINY, "after": {"sequences": 20}, **changed}


def weights(where):
    return {
        path.parent.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in where.glob("*/model/*.safetensors")
    }


def toml(table):
    shared = "".join(f"{name} = {json.dumps(value)}\n" for name, value in table.items() if name != "after")
    return shared + "[after]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in table["after"].items())


def worker(where, rng):
    """The process id of some worker that is alive."""
    beats = [Beat.read(home.last_job()) for home in homes(where) if home.held()]
    pids = [beat.pid for beat in beats if beat.pid]
    return rng.choice(pids) if pids else None


def homes(where):
    return [Home(where, path.name) for path in sorted((where / "jobs").glob("*"))] if (where / "jobs").is_dir() else []


def kill(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def same(where, alone):
    assert weights(where) == weights(alone)
    found, wanted = (xr.load_dataset(one / "results.nc").drop_vars(TIMES) for one in (where, alone))
    assert found.equals(wanted)
    assert set(found.status.values) == {"done"}
    assert not any(home.held() for home in homes(where))


@pytest.mark.parametrize("seed", range(20) if "HOPINTERP_LONG" in os.environ else [0])
def test_two_by_two_by_two_killed_twice(server, tmp_path, seed):
    table = tiny(layers=[1, 2], d_model=[8, 16], seed="0-1", steps=30)
    hi.sweep(table, tmp_path / "alone", engine="debug", threads=1)
    (tmp_path / "grid.toml").write_text(toml(table))
    words, rng = ("sweep", "grid.toml", "--out", "s", "--workers", 2, "--threads", 1), random.Random(seed)
    where = tmp_path / "s"
    running = server.start(*words, cwd=tmp_path, before=SLOWLY + FORKS)
    for what in rng.sample(["sweep", "worker"], 2):
        time.sleep(rng.uniform(0.2, 0.8))
        while (pid := worker(where, rng)) is None:  # something is at work, whatever it does
            assert running.alive, running.wait()
            time.sleep(0.005)
        if what == "worker":
            kill(pid)
        else:
            running.signal("SIGKILL")
            assert running.wait().status == -9
            running = server.start(*words, cwd=tmp_path, before=SLOWLY + FORKS)
    done = running.wait()
    assert done.status == 0, done.err
    same(where, tmp_path / "alone")


def test_what_a_killed_sweep_left_running_is_adopted(server, tmp_path):
    table = tiny(steps=200)
    hi.sweep(table, tmp_path / "alone", engine="debug", threads=1)
    (tmp_path / "grid.toml").write_text(toml(table))
    words, home = ("sweep", "grid.toml", "--out", "s", "--threads", 1), Home(tmp_path / "s", "seed=0")
    running = server.start(*words, cwd=tmp_path, before=SLOWLY + FORKS)
    until(lambda: (home.run / "metrics.jsonl").exists(), running)
    running.signal("SIGKILL")
    assert running.wait().status == -9
    assert home.held()
    assert server.run(*words, cwd=tmp_path, before=SLOWLY + FORKS).status == 0
    assert [path.name for path in home.jobs.iterdir()] == ["1"]
    same(home.sweep, tmp_path / "alone")


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_sweep_that_is_stopped_stops_its_workers_at_a_checkpoint(server, tmp_path, name, status):
    table = tiny(seed=[0, 1], steps=200, checkpoint_every=1000)
    hi.sweep(table, tmp_path / "alone", engine="debug", threads=1)
    (tmp_path / "grid.toml").write_text(toml(table))
    words, where = ("sweep", "grid.toml", "--out", "s", "--workers", 2, "--threads", 1), tmp_path / "s"
    running = server.start(*words, cwd=tmp_path, before=SLOWLY + FORKS)
    until(lambda: len(list(where.glob("*/metrics.jsonl"))) == 2, running)
    running.signal(name)
    done = running.wait()
    what = "interrupted" if name == "SIGINT" else f"stopped by {name}"
    assert (done.status, done.out) == (status, "")
    assert done.err == f"hopinterp: {what}; go on with: hopinterp {' '.join(map(str, words))}\n"
    assert not any(home.held() for home in homes(where))
    steps = [torch.load(path / "checkpoint.pt", weights_only=True)["step"] for path in where.glob("seed=*")]
    assert all(4 <= step < 200 for step in steps)
    assert hi.sweep_results(where).status.values.tolist() == ["training", "training"]
    assert server.run(*words, cwd=tmp_path, before=FORKS).status == 0
    same(where, tmp_path / "alone")


@pytest.mark.slow
def test_real_processes_killed_and_adopted(server, tmp_path):
    """Submitit's local jobs: a worker is killed and started again, the sweep is killed, and what it left is adopted."""
    table = {**TINY, "layers": [1, 2], "steps": 400, "checkpoint_every": 50, "after": {"sequences": 20}}
    hi.sweep(table, tmp_path / "alone", engine="debug", threads=1)
    (tmp_path / "grid.toml").write_text(toml(table))
    words, where = ("sweep", "grid.toml", "--out", "s", "--workers", 2, "--threads", 1), tmp_path / "s"
    running = server.start(*words, cwd=tmp_path)
    first, second = Home(where, "layers=1"), Home(where, "layers=2")
    until(lambda: (first.run / "metrics.jsonl").exists(), running)
    kill(Beat.read(first.last_job()).pid)
    until(lambda: (second.run / "metrics.jsonl").exists(), running)
    running.signal("SIGKILL")
    assert running.wait().status == -9
    adopted = second.last_job() if second.held() else None
    done = server.run(*words, cwd=tmp_path)
    assert done.status == 0, done.err
    assert adopted is None or adopted == second.last_job()  # it was not started a second time
    same(where, tmp_path / "alone")
    shutil.rmtree(where / "jobs")
    assert hi.sweep_results(where).status.values.tolist() == ["done", "done"]


@pytest.mark.parametrize("how", ["kill", "SIGTERM", "full"])
def test_whatever_call_is_the_last(server, tmp_path, how):
    """As in test_crash_points: the sweep is killed, stopped or refused at a call that changes the disk, and goes on."""
    table = tiny(steps=6, checkpoint_every=3)
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "grid.toml").write_text(toml(table))
    words = ("sweep", "grid.toml", "--out", "s", "--threads", 1, "--engine", "debug")
    whole = server.run(*words, cwd=tmp_path / "first", counted=True)
    assert whole.status == 0, whole.err
    stride = 1 if "HOPINTERP_LONG" in os.environ else 12
    for at in range(len(how) % stride, len(whole.calls), stride):
        where = tmp_path / f"{how}-{at}"
        where.mkdir()
        (where / "grid.toml").write_text(toml(table))
        done = server.run(*words, cwd=where, fault=Fault(at, how))
        if how == "kill":
            assert done.status == -9
        elif done.status:  # in one line; where a cell could say that it failed, after the table
            assert done.err.count("\n") == 1, done.err
            assert done.status == {"SIGTERM": 143}.get(how, done.status)
            assert done.err.startswith("hopinterp: "), done.err
        some_time_later(where)
        again = server.run(*words, cwd=where)
        assert again.status == 0, (at, whole.calls[at], again.err)
        same(where / "s", tmp_path / "first" / "s")
        assert not leftovers(where), (at, whole.calls[at])


def until(condition, running):
    while not condition():
        assert running.alive, running.wait()
        time.sleep(0.01)
