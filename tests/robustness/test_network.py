"""No command reaches for the network: test_output.py runs each with sockets refused. Here: that they are, and a command
where there is no network at all."""

import shutil
import subprocess
import sys

import pytest

from .test_crash_points import CONSTRUCT


@pytest.mark.parametrize(
    "reaching",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=0.1)",
        "import urllib.request; urllib.request.urlopen('http://example.invalid/', timeout=0.1)",
    ],
)
def test_the_guard_is_one(server, tmp_path, reaching):
    done = server.run(":nothing", cwd=tmp_path, offline=True, before=f"try:\n    {reaching}\nexcept OSError:\n    pass")
    assert done.status == 99


def test_a_command_without_a_network(tmp_path, server):
    alone = ["unshare", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody leave the network")
    assert server.run(*CONSTRUCT, cwd=tmp_path).status == 0
    command = [*alone, sys.executable, "-c", "from hopinterp.cli import main; main()", "eval", "m", "--sequences", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "m solves not even k = 1" in done.stdout
