"""The commands in their order of use, each in its group and with examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rich.markup import escape

from hopinterp.cli import decompile, intervene, judge, keep, make, read, sweep, train
from hopinterp.cli.compare import compare
from hopinterp.cli.shared import app as app

EXAMPLES: dict[str, dict[str, tuple[Callable[..., Any], list[str]]]] = {
    "Make a model": {
        "train": (
            train.train,
            ["train --preset quick --out runs/quick", "train --layers 4 --out runs/depth4", "train --resume runs/depth4"],
        ),
        "sweep": (
            sweep.sweep,
            [
                "sweep grid.toml --out runs/grid --workers 4",
                "sweep --preset paper-depths --seeds 0-7 --verify granted --out runs/depths --plot figure2.pdf",
                "sweep grid.toml --out runs/grid --engine slurm --slurm partition=cpu --slurm time=4:00:00",
            ],
        ),
        "construct": (make.construct, ["construct --hops 8 --algorithm successor --out known/successor8"]),
        "import": (make.import_, ["import checkpoint.pt --heads 4 --out imported", "import saved/ --out imported"]),
        "export": (make.export, ["export depth5 --out share/depth5", "export depth5 --layout gpt2 --out share/gpt2"]),
        "models": (make.models, ["models", "models runs"]),
    },
    "Look at it": {
        "eval": (read.eval_, ["eval depth5 --plot errors.png", "eval depth3 depth4 depth5 --plot figure2.pdf"]),
        "attention": (read.attention, ["attention depth4 --hops 7 --plot heads.png"]),
        "probe": (read.probe, ["probe depth4 --hops 7 --plot probes.png", "probe depth4 --hops 7 --method ridge --layer 2"]),
    },
    "Intervene": {
        "patch": (
            intervene.patch,
            ["patch depth5 --hops 8 --plot cone.png", "patch depth5 --hops 8 --site z --by position --sequences 10"],
        ),
        "transplant": (intervene.transplant, ["transplant depth5 --hops 15 --plot blocks.png"]),
    },
    "Judge": {
        "decompile": (decompile.decompile, ["decompile depth5 --hops 8 --plot tree.png --out program"]),
        "verify": (judge.verify, ["verify depth5 --hops 8 --report depth5.html", "verify depth5 --hops all --json"]),
        "compare": (
            compare,
            ["compare depth4 depth5", "compare depth4 depth5 --verify", "compare depth5 depth6 --hops 8 --program"],
        ),
    },
}
"""By group and name: what the command does, and command lines that use it."""


def _help(command: Callable[..., Any]) -> str:
    """A docstring with each of its paragraphs on one line, which the terminal then breaks."""
    return "\n\n".join(" ".join(one.split()) for one in (inspect.getdoc(command) or "").split("\n\n"))


def _epilog(lines: list[str]) -> str:
    """Examples as the foot of a command's help, a line each."""
    return "\n\n".join(["Example:" if len(lines) == 1 else "Examples:", *(f"  hopinterp {escape(line)}" for line in lines)])


for _group, _commands in EXAMPLES.items():
    for _name, (_command, _lines) in _commands.items():
        app.command(_name, rich_help_panel=_group, help=_help(_command), epilog=_epilog(_lines))(_command)
app.add_typer(keep.cache, name="cache", rich_help_panel="Keep", epilog=_epilog(["cache", "cache clear"]))
