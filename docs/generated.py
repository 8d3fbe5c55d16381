"""Pages whose text stands elsewhere: the options in the command's own declarations, the findings in the notebooks."""

import json
import re
from pathlib import Path
from typing import Any

import typer.main

ROOT = Path(__file__).parents[1]


def commands() -> str:
    """Every command with its arguments, options and defaults, as `--help` has them."""
    from hopinterp.cli import app

    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, group.commands[name]) for name in group.list_commands(None))


def _command(name: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    usage = " ".join(
        [f"hopinterp {name}", *(f"{one.name.upper()}{' …' * (one.nargs == -1)}" for one in arguments), "[OPTIONS]"]
    )
    rows = [f"| {_name(one)} | {_words(one)} |" for one in command.params if not getattr(one, "hidden", False)]
    table = "\n".join(["| option | what it does |", "| --- | --- |", *rows])
    return f"## `{name}`\n\n{command.help.strip()}\n\n```\n{usage}\n```\n\n{table}"


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    return " ".join(f"`{one}`" for one in (*parameter.opts, *parameter.secondary_opts))


def _words(parameter: Any) -> str:
    words = (parameter.help or "").replace("|", r"\|").replace("\n", " ")
    default = parameter.default
    if parameter.required:
        return f"{words} *Required.*"
    if "Default:" in words or isinstance(default, bool) or not isinstance(default, int | float | str):
        return words
    return f"{words} Default: `{default}`."


def notebooks() -> str:
    """Title, question and finding of every notebook, from its first cell, with the notebook itself."""
    parts = []
    for path in sorted((ROOT / "analyses").glob("[0-9]*.ipynb")):
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        title, text = first.removeprefix("# ").split("\n", 1)
        text = re.split(r"\n\n(?!\*\*)", text.strip())[0]
        parts.append(f"### {title}\n\n{text}\n\n{{download}}`{path.name} <../analyses/{path.name}>`")
    return "\n\n".join(parts)
