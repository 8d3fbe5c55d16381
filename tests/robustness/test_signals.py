"""Signals to processes at work: a checkpoint, one line, 128 and the signal's number; resumed, they come to the same bits."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from hopinterp import signals

from . import chains
from .chains import digest
from .faults import Fault
from .test_crash_points import CONSTRUCT, leftovers, one_line, state

SIZES = ("--layers", 1, "--d-model", 8, "--heads", 1, "--letters", 6, "--alphabet", 3, "--max-hops", 1, "--batch", 2)
TRAIN: tuple = (
    "train",
    "--out",
    "r",
    *SIZES,
    "--steps",
    400,
    "--checkpoint-every",
    1000,
    "--log-every",
    10,
    "--eval-every",
    0,
)
TRAIN += ("--threads", 1)
NUMBERS = {"SIGHUP": 1, "SIGINT": 2, "SIGTERM": 15}
SLOWLY = "import hopinterp.training.run as r, time; a = r.Run.advance; r.Run.advance = lambda s: (time.sleep(.002), a(s))[1]"
"""Steps long enough to be met by a signal."""
FOREVER = """
import sys
from hopinterp.evidence.reading import behaviour
from hopinterp.judgement import verdict
def forever(*_, **__):
    open("at work", "w").close()
    while True:
        sum(range(1000))
behaviour.evaluate = verdict.verify = forever
"""


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """What an uninterrupted run comes to."""
    where = tmp_path_factory.mktemp("whole")
    assert server.run(*TRAIN, cwd=where).status == 0
    return digest(where / "r"), metrics(where)


def metrics(where):
    lines = [json.loads(line) for line in (where / "r" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def step(where):
    return torch.load(io.BytesIO((where / "r" / "checkpoint.pt").read_bytes()), weights_only=True)["step"]


def until(path, running):
    while not path.exists():
        assert running.alive, running.wait()
        time.sleep(0.002)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_training_is_saved_and_goes_on(server, whole, tmp_path, name):
    running = server.start(*TRAIN, cwd=tmp_path, before=SLOWLY)
    until(tmp_path / "r" / "metrics.jsonl", running)  # some steps on
    running.signal(name)
    line = one_line(running.wait(), 128 + NUMBERS[name])
    what = "interrupted" if name == "SIGINT" else f"stopped by {name}"
    assert line == f"hopinterp: {what}; go on with: hopinterp train --resume r\n"
    assert 10 <= step(tmp_path) < 400  # not the checkpoint of no steps
    assert not leftovers(tmp_path)
    assert server.run("train", "--resume", "r", cwd=tmp_path).status == 0
    assert (digest(tmp_path / "r"), metrics(tmp_path)) == whole


@pytest.mark.parametrize("name", NUMBERS)
def test_a_second_one_ends_at_once(server, whole, tmp_path, name):
    """While a step takes for ever, say."""
    hangs = (
        f"{SLOWLY}; r.Run.advance = lambda s: (a(s), s.step == 30 and (open('at work', 'w').close(), time.sleep(600)))[0]"
    )
    running = server.start(*TRAIN, cwd=tmp_path, before=hangs)
    until(tmp_path / "at work", running)
    running.signal(name)
    time.sleep(0.05)
    assert running.alive
    running.signal(name)
    assert one_line(running.wait(), 128 + NUMBERS[name])
    assert not leftovers(tmp_path)
    assert server.run("train", "--resume", "r", cwd=tmp_path).status == 0
    assert digest(tmp_path / "r") == whole[0]


def test_under_nohup_a_hangup_is_nothing(server, whole, tmp_path):
    running = server.start(*TRAIN, cwd=tmp_path, before=SLOWLY, ignored=("SIGHUP",))
    until(tmp_path / "r" / "metrics.jsonl", running)
    running.signal("SIGHUP")
    assert running.wait().status == 0
    assert digest(tmp_path / "r") == whole[0]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "words",
    [
        ("eval", "m"),
        ("verify", "m", "--hops", 1, "--report", "r.html"),
        ("import", "s.pt", "--heads", 1, "--letters", 6, "--alphabet", 3, "--max-hops", 1, "--out", "new/i"),
        (*CONSTRUCT[:-1], "new/c"),
    ],
    ids=lambda words: words[0],
)
def test_a_command_at_work_ends_in_one_line(server, small, words, name):
    before = state(small)
    running = server.start(*words, cwd=small, before=FOREVER)
    until(small / "at work", running)
    running.signal(name)
    what = "interrupted" if name == "SIGINT" else f"stopped by {name}"
    assert one_line(running.wait(), 128 + NUMBERS[name]) == f"hopinterp: {what}\n"
    (small / "at work").unlink()
    assert state(small) == before
    assert not leftovers(small)


def test_a_signal_while_everything_is_imported(server, small):
    """The first thing that a command does is to say how it ends."""
    late = "import hopinterp.cli.shared as s, time; s.open_model = 0\n"
    late += "import hopinterp.models.places as o\no.search = lambda _: (open('at work', 'w').close(), time.sleep(600))"
    running = server.start("models", ".", cwd=small, before=late)
    until(small / "at work", running)
    running.signal("SIGTERM")
    assert one_line(running.wait(), 143) == "hopinterp: stopped by SIGTERM\n"
    (small / "at work").unlink()


SLOW_TORCH = """
import time
try:
    open("importing", "w").close()
    time.sleep(600)
except BaseException:
    raise ImportError("what imports make of an exception") from None
"""


@pytest.mark.parametrize("name", NUMBERS)
def test_a_signal_while_torch_is_imported(tmp_path, name):
    """A real process, in the first seconds of a command: one line, whatever the import would have made of it."""
    (tmp_path / "torch.py").write_text(SLOW_TORCH)
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom hopinterp.cli import main; main()"
    words = [sys.executable, "-c", code, "eval", "depth3"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True, start_new_session=True)
    try:
        while not (tmp_path / "importing").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(getattr(signal, name))
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    what = "interrupted" if name == "SIGINT" else f"stopped by {name}"
    assert (process.returncode, out, err) == (128 + NUMBERS[name], "", f"hopinterp: {what}\n")


def test_an_import_at_work_is_interrupted_as_work_is(tmp_path, monkeypatch):
    """There may be something to save."""
    (tmp_path / "interrupts.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    monkeypatch.syspath_prepend(tmp_path)
    before = {number: signal.getsignal(number) for number in signals.STOPPING}
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        last = signals.raise_when_stopped()
        with signals.at_work(), pytest.raises(signals.Stopped):
            import interrupts  # type: ignore[import-not-found]  # noqa: F401
        assert last() is not None
        signals.let_end()
        os.kill(os.getpid(), signal.SIGTERM)  # nothing is left to stop
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # but a second one would end it
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("at", [3, 7])
def test_a_second_signal_in_the_middle_of_a_write_leaves_nothing(server, tmp_path, at):
    """Two within one call."""
    twice = "import os, signal; k = os.kill; os.kill = lambda p, n: (k(p, n), k(p, n))"
    done = server.run(*CONSTRUCT, cwd=tmp_path, before=twice, fault=Fault(at, "SIGTERM"))
    one_line(done, 143)
    assert not leftovers(tmp_path)


def test_a_chain_of_kills(server, tmp_path):
    """A long tier: python -m tests.robustness.chains --count 50 --seed 0."""
    found = chains.chain(server, tmp_path, seed=1)
    assert found.identical, found
    assert found.kills
