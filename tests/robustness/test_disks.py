"""Real disks that are full or read-only: small ones in memory, where the system lets them be mounted."""

import shutil
import subprocess
from pathlib import Path

import pytest

from .test_crash_points import CONSTRUCT, OTHER, TRAIN, checkpoint_step, leftovers, one_line, state


@pytest.fixture
def disk(tmp_path):
    """A disk of 192 KB."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(where)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this system lets no disk be mounted")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def fill(disk: Path, left: int) -> None:
    """Take all but so many KB."""
    free = shutil.disk_usage(disk).free // 1024
    (disk / "ballast").write_bytes(bytes(1024 * max(0, free - left)))


@pytest.mark.parametrize("left", [0, 4, 8])
def test_a_model_that_has_no_room(server, disk, left):
    assert server.run(*CONSTRUCT, cwd=disk).status == 0
    fill(disk, left)
    before = state(disk)
    for words in ((*CONSTRUCT[:-1], "new"), (*OTHER, "--overwrite"), ("eval", "m", "--sequences", 2, "--plot", "p.png")):
        assert "No space left on device); nothing was written" in one_line(server.run(*words, cwd=disk, quick=True))
        assert state(disk) == before
        assert not leftovers(disk)
    (disk / "ballast").unlink()
    assert server.run(*OTHER, "--overwrite", cwd=disk).status == 0


@pytest.mark.parametrize("left", range(0, 80, 8))
def test_a_training_that_has_no_room(server, disk, left):
    fill(disk, left)
    done = server.run(*TRAIN, "--out", "r", cwd=disk)
    if done.status:
        assert "No space left on device" in one_line(done)
    assert not leftovers(disk)
    (disk / "ballast").unlink()
    words = ("train", "--resume", "r") if (disk / "r").exists() else (*TRAIN, "--out", "r")
    assert server.run(*words, cwd=disk).status == 0
    assert checkpoint_step(disk) == 6


def test_a_read_only_disk(server, disk):
    for made in (CONSTRUCT, (*TRAIN, "--out", "r")):
        assert server.run(*made, cwd=disk).status == 0
    before = state(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    refused: list[tuple] = [
        (*CONSTRUCT[:-1], "new"),
        (*CONSTRUCT[:-1], "new/er"),
        (*OTHER, "--overwrite"),
        ("eval", "m", "--sequences", 2, "--plot", "p.svg"),
        ("verify", "m", "--hops", 1, "--report", "r.html"),
        ("decompile", "m", "--hops", 1, "--out", "d"),
        ("train", "--resume", "r"),
        (*TRAIN, "--out", "s"),
    ]
    for words in refused:
        one_line(server.run(*words, cwd=disk, quick=True))
    assert server.run("eval", "m", "--sequences", 2, cwd=disk).status == 0
    assert state(disk) == before
