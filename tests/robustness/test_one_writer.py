"""Several processes at once in one place: one writer each, or one after the other; never a mixture."""

import hashlib
import json

import pytest

from hopinterp.models.store import load_fused

from .chains import digest
from .test_crash_points import CONSTRUCT, OTHER, leftovers, one_line, some_time_later, state
from .test_signals import TRAIN, until, whole  # noqa: F401 (a fixture)

TOGETHER = """
import hopinterp.files as f, os, time
real = f._write_through
def slowly(*given):
    time.sleep(.03)
    real(*given)
f._write_through = slowly
"""


def at_once(server, where, commands, **settings):
    """Started together, each waiting a little between its calls: how they ended."""
    running = [server.start(*words, cwd=where, before=TOGETHER, **settings) for words in commands]
    return [one.wait() for one in running]


@pytest.mark.parametrize("place", ["m", "new/er/m"])
def test_one_construct_of_four_succeeds(server, tmp_path, place):
    done = at_once(server, tmp_path, [(*words[:-1], place) for words in (CONSTRUCT, OTHER, CONSTRUCT, OTHER)])
    assert sorted(one.status for one in done) == [0, 2, 2, 2]
    for one in done:
        assert one.status == 0 or "exists" in one_line(one)
    winner = next(number for number, one in enumerate(done) if one.status == 0)
    assert load_card(tmp_path / place)["made"]["hops"] == 1 + winner % 2
    load_fused(tmp_path / place)  # its digest is that of its weights
    assert not leftovers(tmp_path)


def load_card(directory):
    return json.loads((directory / "card.json").read_text())


def test_four_that_overwrite_never_mix(server, tmp_path):
    assert server.run(*CONSTRUCT, cwd=tmp_path).status == 0
    for _ in range(3):
        words = [(*words, "--overwrite") for words in (CONSTRUCT, OTHER, CONSTRUCT, OTHER)]
        done = at_once(server, tmp_path, words)
        for one in done:
            assert one.status == 0 or one_line(one)
        assert any(one.status == 0 for one in done)
        _, task = load_fused(tmp_path / "m")
        assert task.n_letters == 12
        assert not leftovers(tmp_path)


@pytest.mark.parametrize("name", ["r.html", "p.png", "p.svg"])
def test_four_pages_to_one_name(server, tmp_path, name):
    """Each whole; the last one stays."""
    assert server.run(*CONSTRUCT, cwd=tmp_path).status == 0
    if name == "r.html":
        words = ("verify", "m", "--hops", 1, "--report", name)
    else:
        words = ("eval", "m", "--sequences", 2, "--plot", name)
    assert server.run(*words, cwd=tmp_path, quick=True).status == 0
    alone = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    (tmp_path / name).unlink()
    assert [one.status for one in at_once(server, tmp_path, [words] * 4, quick=True)] == [0] * 4
    assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == alone
    assert not leftovers(tmp_path)


def test_two_trainings_in_one_directory(server, whole, tmp_path):  # noqa: F811
    done = at_once(server, tmp_path, [TRAIN] * 3)
    assert sorted(one.status for one in done) == [0, 2, 2]
    for one in done:
        assert one.status == 0 or any(words in one_line(one) for words in ("another process is training in r", "r exists"))
    assert digest(tmp_path / "r") == whole[0]


def test_two_resumes(server, whole, tmp_path):  # noqa: F811
    running = server.start(*TRAIN, cwd=tmp_path, before=TOGETHER)
    until(tmp_path / "r" / "metrics.jsonl", running)
    assert "another process is training in r" in one_line(server.run("train", "--resume", "r", cwd=tmp_path))
    running.signal("SIGKILL")
    assert running.wait().status == -9
    done = at_once(server, tmp_path, [("train", "--resume", "r")] * 2)
    assert sorted(one.status for one in done) in ([0, 2], [0, 0])  # [0, 0]: one after the other
    assert digest(tmp_path / "r") == whole[0]
    assert not leftovers(tmp_path)


def test_a_run_killed_before_it_was_one_is_started_anew(server, whole, tmp_path):  # noqa: F811
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".config.json-0123456789ab.partial").touch()
    some_time_later(tmp_path)
    assert "is no training run" in one_line(server.run("train", "--resume", "r", cwd=tmp_path))
    assert server.run(*TRAIN, cwd=tmp_path).status == 0
    assert digest(tmp_path / "r") == whole[0]
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    "words", [("eval", "m", "--sequences", 2), (*OTHER, "--overwrite"), CONSTRUCT], ids=["eval", "new", "old"]
)
def test_a_model_between_two_renames_is_found_by_its_name(server, tmp_path, words):
    assert server.run(*CONSTRUCT, cwd=tmp_path).status == 0
    before = state(tmp_path / "m")
    (tmp_path / "m").rename(tmp_path / ".m-0123456789ab.old")
    done = server.run(*words, cwd=tmp_path)
    if words == CONSTRUCT:
        assert "m exists" in one_line(done)
    else:
        assert done.status == 0, done.err
    assert (state(tmp_path / "m") == before) == (words[-1] != "--overwrite")
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("code", ["ENOSYS", "ENOTSUP", "ENOLCK"])
def test_a_disk_that_knows_no_locks_is_written_to(server, tmp_path, code):
    lockless = f"""
import errno, fcntl
def flock(*_):
    raise OSError(errno.{code}, "no locks here")
fcntl.flock = flock
"""
    for words in (CONSTRUCT, (*OTHER, "--overwrite"), (*TRAIN[:-4], "--threads", 1)):
        done = server.run(*words, cwd=tmp_path, before=lockless)
        assert done.status == 0, done.err
    assert not leftovers(tmp_path)
