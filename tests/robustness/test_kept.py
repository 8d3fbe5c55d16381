"""The cache on disks that fail, under kills at every call, and under two processes at once."""

import json
import shutil

import pytest

from .faults import Fault
from .test_crash_points import some_time_later

EVAL = ("eval", "m", "--sequences", 2, "--hops", 1, "--json")
SURVEY = ("verify", "m", "--hops", "all", "--sequences", 4, "--json")
CACHE = "import os; os.environ['HOPINTERP_CACHE'] = 'c'"


@pytest.fixture
def place(small, tmp_path):
    shutil.copytree(small / "m", tmp_path / "p" / "m")
    return tmp_path / "p"


def answer(done):
    """What a command said, but when and by which words it was asked."""
    assert (done.status, done.err) == (0, "")
    return {name: value for name, value in json.loads(done.out).items() if name not in ("date", "command")}


def files(place):
    return {path.name: path.read_bytes() for path in (place / "c").iterdir()} if (place / "c").exists() else {}


def content(data):
    """A kept result, but when it was written."""
    return data.split(b"\n", 2)[2]


def test_killed_at_every_call_it_is_whole_or_not_there(server, place, tmp_path):
    plain = server.run(*EVAL, cwd=place)
    counted = server.run(*EVAL, cwd=place, before=CACHE, counted=True)
    assert counted.out == plain.out
    (name,) = files(place)
    assert len(counted.calls) >= 5
    for at in range(len(counted.calls)):
        where = tmp_path / f"kill{at}"
        shutil.copytree(place / "m", where / "m")
        assert server.run(*EVAL, cwd=where, before=CACHE, fault=Fault(at, "kill")).status == -9
        if name in files(where):
            assert content(files(where)[name]) == content(files(place)[name])
        some_time_later(where)
        again = server.run(*EVAL, cwd=where, before=CACHE)
        assert (again.out, again.err) == (plain.out, "")
        assert list(files(where)) == [name]  # and no leftover


@pytest.mark.parametrize("how", ["full", "read-only", "once"])
def test_on_a_disk_that_fails_one_line_says_so_and_the_answer_stands(how, server, place, tmp_path):
    plain = server.run(*EVAL, cwd=place)
    calls = server.run(*EVAL, cwd=place, before=CACHE, counted=True).calls
    for at in range(0, len(calls), 2):
        where = tmp_path / f"{how}{at}"
        shutil.copytree(place / "m", where / "m")
        done = server.run(*EVAL, cwd=where, before=CACHE, fault=Fault(at, how))
        assert (done.status, done.out) == (0, plain.out)
        assert done.err == "" or (done.err.startswith("hopinterp: the cache ") and done.err.count("\n") == 1), done.err
        assert server.run(*EVAL, cwd=where, before=CACHE).out == plain.out


def test_a_survey_that_is_killed_again_and_again_ends_as_one_that_was_not(server, place):
    plain = answer(server.run(*SURVEY, cwd=place))
    calls = server.run(*SURVEY, cwd=place, before=CACHE, counted=True).calls
    each = calls.count("replace")
    shutil.rmtree(place / "c")
    kept = []
    for _ in range(each):
        done = server.run(*SURVEY, cwd=place, before=CACHE, fault=Fault(3 * len(calls) // each, "kill"))
        kept.append(len(files(place)))
        if done.status == 0:
            break
    assert len(kept) > 3
    assert kept == sorted(kept)
    assert answer(done) == plain == answer(server.run(*SURVEY, cwd=place, before=CACHE))


def test_two_processes_at_once_do_not_mix(server, place):
    plain = answer(server.run(*SURVEY, cwd=place))
    running = [server.start(*SURVEY, cwd=place, before=CACHE) for _ in range(2)]
    assert [answer(one.wait()) for one in running] == [plain, plain]
    before = files(place)
    assert answer(server.run(*SURVEY, cwd=place, before=CACHE)) == plain
    assert files(place) == before
