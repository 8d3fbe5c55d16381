"""Where the output goes: a terminal without Σ, a closed pipe, a full disk; and no network, whatever the command."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from .test_crash_points import CONSTRUCT, TRAIN, one_line
from .test_sweeps import tiny, toml

PROBE = ("--sequences", 20, "--train-sequences", 20)
COMMANDS = {
    "models": ("models", "."),
    "eval": ("eval", "m", "--sequences", 2, "--plot", "p.png"),
    "compare": ("compare", "m", "./m", "--sequences", 2, "--plot", "c.png"),
    "attention": ("attention", "m", "--hops", 1, "--sequences", 2, "--plot", "a.svg"),
    "probe": ("probe", "m", "--hops", 1, *PROBE, "--plot", "b.pdf"),
    "patch": ("patch", "m", "--hops", 1, "--sequences", 4, "--plot", "c.jpg"),
    "transplant": ("transplant", "m", "--hops", 1, "--sequences", 20),
    "decompile": ("decompile", "m", "--hops", 1, "--sequences", 20, "--out", "d"),
    "verify": ("verify", "m", "--hops", 1, "--sequences", 20, "--report", "r.html"),
    "construct": (*CONSTRUCT, "--overwrite"),
    "import": ("import", "s.pt", "--heads", 1, "--letters", 6, "--alphabet", 3, "--max-hops", 1, "--out", "i"),
    "export": ("export", "m", "--out", "e"),
    "train": (*TRAIN, "--out", "t"),
    "sweep": ("sweep", "g.toml", "--out", "w", "--engine", "debug", "--threads", 1, "--plot", "w.png"),
}
JSON = {name: words for name, words in COMMANDS.items() if name != "train"}


@pytest.fixture
def copy(small, tmp_path):
    shutil.copytree(small, tmp_path / "copy")
    (tmp_path / "copy" / "g.toml").write_text(toml(tiny(layers=[1, 2], steps=2)))
    return tmp_path / "copy"


@pytest.mark.parametrize("name", COMMANDS)
def test_offline_and_in_ascii(server, copy, name):
    """Every command, with no network, on a terminal that has ASCII alone."""
    done = server.run(*COMMANDS[name], cwd=copy, encoding="ascii", offline=True)
    assert (done.status, done.err) == (0, "")
    assert done.out.strip()
    assert done.out.isascii()
    assert "?" not in done.out  # every character has its stand-in


@pytest.mark.parametrize("name", [*COMMANDS, ""])
def test_help_in_ascii(server, small, name):
    done = server.run(*filter(None, [name]), "--help", cwd=small, encoding="ascii")
    assert (done.status, done.err) == (0, "")
    assert done.out.isascii()
    assert "Usage" in done.out


@pytest.mark.parametrize("name", JSON)
def test_json_is_one_line_of_ascii(server, copy, name):
    done = server.run(*JSON[name], "--json", cwd=copy)
    assert (done.status, done.err) == (0, "")
    assert done.out.isascii()
    assert done.out.count("\n") == 1
    assert isinstance(json.loads(done.out), dict)


def test_an_error_line_in_ascii(server, small):
    line = one_line(server.run("eval", "Σ → ℓ", cwd=small, encoding="ascii"))
    assert line.isascii()
    assert "S -> l" in line


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "words", [("eval", "m", "--sequences", 2), ("eval", "m", "--sequences", 2, "--json"), ("--help",), ("models", ".")]
)
def test_a_full_output_is_one_line(server, small, words):
    line = one_line(server.run(*words, cwd=small, out="/dev/full"))
    assert "No space left on device" in line


@pytest.mark.parametrize("words", [["eval", "m", "--sequences", "2"], ["--help"]])
def test_a_closed_pipe_is_quiet(small, words):
    """The whole command, whose reader has gone."""
    command = [sys.executable, "-c", "from hopinterp.cli import main; main()", *words]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(command, cwd=small, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
