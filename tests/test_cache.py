"""Results on disk: found by their keys, never served damaged, bounded, and without a word where nothing can be kept."""

import json
import os
import random
import sys

import pytest

from hopinterp import HopInterpError, cache
from hopinterp.cache import Cache
from hopinterp.files import digest

KEY = {"what": "probe", "model": "m", "settings": {"hops": 2}}


@pytest.fixture
def kept(tmp_path, said):
    return Cache(tmp_path / "c", said.append)


@pytest.fixture
def said():
    """What the cache says."""
    return []


def one(kept):
    (path,) = kept.directory.iterdir()
    return path


def test_what_is_kept_comes_back_by_its_key_alone(kept, said):
    assert kept.read(KEY) is None
    kept.keep(KEY, {"a": [1, 0.1, "x"]}, b"\n\x00payload\n")
    assert kept.read(KEY) == ({"a": [1, 0.1, "x"]}, b"\n\x00payload\n")
    assert kept.read(dict(reversed(KEY.items()))) is not None
    for other in (KEY | {"model": "n"}, KEY | {"settings": {"hops": 2.0}}, KEY | {"settings": {"hops": True}}, {}):
        assert kept.read(other) is None
    assert (one(kept).stat().st_mode & 0o077, kept.directory.stat().st_mode & 0o077)[1] == 0
    assert said == []


def test_no_damage_is_served(kept, said):
    kept.keep(KEY, {"a": 1}, bytes(range(64)))
    path, data = one(kept), one(kept).read_bytes()
    for bit in (*range(160), *random.Random(0).sample(range(8 * len(data)), 100)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        assert kept.read(KEY) is None
    for length in range(0, len(data), 5):
        path.write_bytes(data[:length])
        assert kept.read(KEY) is None
    path.write_bytes(data + b"\n")
    assert kept.read(KEY) is None
    kept.keep(KEY, {"a": 1}, bytes(range(64)))
    assert kept.read(KEY) == ({"a": 1}, bytes(range(64)))
    assert said == []


def test_a_file_under_anothers_name_is_not_served(kept):
    kept.keep(KEY, 1, b"")
    other = KEY | {"model": "n"}
    one(kept).rename(kept.directory / f"{digest(json.dumps(other, sort_keys=True).encode())}.kept")
    assert kept.read(other) is None


def test_what_was_not_used_for_longest_goes_first(kept, said):
    kept.most = 20_000
    keys = [KEY | {"seed": seed} for seed in range(6)]
    for age, key in enumerate(keys[:4]):
        kept.keep(key, 1, bytes(4000))
        os.utime(kept._path(key), (1000 + age, 1000 + age))
    kept.served(keys[0])
    (kept.directory / "mine").write_bytes(bytes(50_000))  # what is not the cache's neither counts nor goes
    kept.keep(keys[4], 1, bytes(4000))
    assert [kept.read(key) is not None for key in keys] == [True, False, True, True, True, False]
    kept.keep(keys[5], 1, bytes(40_000))  # larger than all there may be
    assert kept.read(keys[5]) is None
    assert (kept.directory / "mine").exists()
    assert said == []


def test_entries_are_listed_and_cleared_and_nothing_else(kept):
    assert kept.entries() == []
    kept.keep(KEY, 1, b"")
    kept.keep(KEY | {"seed": 1}, 1, b"")
    left = kept.directory / f".{'a' * 50}-{'b' * 12}.partial"  # by a process that was killed
    odd = kept.directory / f"{'0' * 64}.kept"
    left.write_bytes(b"half")
    odd.write_bytes(b"\xff\xfe{")
    os.utime(left, (1, 1))
    for name in ("mine", ".mine.partial"):
        (kept.directory / name).write_bytes(b"x")
        os.utime(kept.directory / name, (1, 1))
    (kept.directory / f"{'1' * 64}.kept").mkdir()
    entries = kept.entries()
    assert sorted(entry.key.get("what", "") for entry in entries) == ["", "probe", "probe"]
    assert all(entry.size == entry.path.stat().st_size for entry in entries)
    assert kept.clear() == (3, sum(entry.size for entry in entries))
    assert sorted(path.name for path in kept.directory.iterdir()) == [".mine.partial", "1" * 64 + ".kept", "mine"]


def test_an_empty_cache_leaves_no_directory(kept):
    kept.keep(KEY, 1, b"")
    assert kept.clear()[0] == 1
    assert not kept.directory.exists()
    assert kept.clear() == (0, 0)


@pytest.mark.parametrize("what", ["a file", "beneath a file", "closed", "a directory in the place", "no name"])
def test_where_nothing_can_be_kept_one_line_says_so(kept, said, tmp_path, what):
    if what == "a file":
        kept.directory.write_bytes(b"x")
    elif what == "beneath a file":
        (tmp_path / "f").write_bytes(b"x")
        kept.directory = tmp_path / "f" / "c"
    elif what == "closed":
        if os.geteuid() == 0:
            pytest.skip("root writes where it is closed: the disk that turns read-only is in tests/robustness")
        kept.directory.mkdir(mode=0o555)
    elif what == "no name":
        kept.directory = tmp_path / "a\0b"
    else:
        kept._path(KEY).mkdir(parents=True)
    for _ in range(3):
        assert kept.read(KEY) is None
        kept.keep(KEY, 1, b"")
    (line,) = said
    assert line.startswith("the cache ")
    assert "\n" not in line


def test_a_cache_that_is_a_file_cannot_be_listed(kept, refuses):
    kept.directory.write_bytes(b"x")
    with refuses("cannot read the cache"):
        kept.entries()
    with refuses("cannot read the cache"):
        kept.clear()


def test_any_bytes_are_listed_or_passed_over(kept):
    kept.keep(KEY, 1, b"")
    path, data, rng = one(kept), one(kept).read_bytes(), random.Random(0)
    for _ in range(60):
        start, length = rng.randrange(len(data)), rng.randrange(40)
        path.write_bytes(data[:start] + rng.randbytes(length) + data[start + length :])
        (entry,) = kept.entries()
        assert isinstance(entry.key, dict)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("HOPINTERP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.place() == tmp_path / ".cache" / "hopinterp"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to ignore
    assert cache.place() == tmp_path / ".cache" / "hopinterp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache.place() == tmp_path / "x" / "hopinterp"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.place() == tmp_path / "Library" / "Caches" / "hopinterp"
    monkeypatch.setenv("HOPINTERP_CACHE", str(tmp_path / "mine"))
    assert cache.place() == tmp_path / "mine"
    for word in ("off", "OFF"):
        monkeypatch.setenv("HOPINTERP_CACHE", word)
        assert cache.place() is None


def test_the_suite_itself_runs_without_a_cache():
    assert cache.place() is None


def test_errors_of_one_line(kept, tmp_path):
    kept.directory = tmp_path / ("n" * 300)
    with pytest.raises(HopInterpError) as caught:
        kept.entries()
    assert "\n" not in str(caught.value)
