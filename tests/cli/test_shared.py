"""Progress is shown where there is a terminal, with its figures."""

import io
from functools import partial

import pytest
import rich.console

from hopinterp.cli.shared import progress_text, working
from hopinterp.progress import Progress


def test_figures_are_short():
    now = Progress("training", 3, 9, {"loss": 1.23456, "largest_hops": 4.0, "error": 0.0123, "tokens_per_second": 51234.5})
    assert progress_text(now) == "training  loss 1.23  largest hops 4  error 0.0123  tokens per second 51,234"
    assert progress_text(Progress("probes", 0, 5)) == "probes"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_sees_what_is_done(monkeypatch, terminal):
    seen = io.StringIO()
    console = partial(rich.console.Console, file=seen, force_terminal=terminal, width=100)
    monkeypatch.setattr(rich.console, "Console", console)
    with working("starting") as report:
        report(Progress("attention", 1, 4))
        report(Progress("probes", 2, 5, {"loss": 0.5}))
    shown = seen.getvalue()
    assert ("probes  loss 0.5" in shown and "2/5" in shown) if terminal else not shown
