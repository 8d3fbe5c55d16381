"""The command as a user types it, in this process."""

import json
import signal
import sys

import pytest

from hopinterp import cli
from hopinterp.models import store
from hopinterp.signals import STOPPING
from hopinterp.theory.construction import Construction


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process: (exit status, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hopinterp", *map(str, arguments)])
        before = {number: signal.getsignal(number) for number in STOPPING}
        try:
            with pytest.raises(SystemExit) as done:
                cli.main()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return done.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def run_json(run):
    """Run a command with --json: the one object that it prints, and nothing else."""

    def call(*arguments):
        status, out, err = run(*arguments, "--json")
        assert (status, err, out.count("\n")) == (0, "", 1)
        return json.loads(out)

    return call


@pytest.fixture
def refused(run):
    """Run a command that is refused in one line: the line."""

    def call(*arguments):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith("hopinterp: ")
        assert err.count("\n") == 1
        return err

    return call


@pytest.fixture
def model(tmp_path, small_model, small_task):
    store.save(tmp_path / "m", small_model, small_task, {"how": "by a test"})
    return tmp_path / "m"


@pytest.fixture
def doubling(tmp_path, small_task):
    """A constructed model, which has something to verify."""
    made = Construction.of(small_task, 4, "successor")
    store.save(tmp_path / "s", made.fused, small_task, {"how": "by a test", "hops": 4})
    return tmp_path / "s"
