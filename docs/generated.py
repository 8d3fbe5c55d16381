"""Pages whose text stands elsewhere: public names in the stub, options in the commands, findings in the notebooks."""

import ast
import importlib
import json
import pkgutil
import re
from pathlib import Path
from typing import Any

import typer.main

import hopinterp.cli

ROOT = Path(__file__).parents[1]


def api(room: str) -> str:
    """The public names of one room of the package, file by file in the stub's order, as reStructuredText for autodoc."""
    stub = ast.parse((ROOT / "hopinterp" / "__init__.pyi").read_text(encoding="utf-8"))
    files: dict[str, list[str]] = {}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{room}."):
            for one in node.names:
                files.setdefault(f"{node.module}.{one.name}" if node.module == "views" else str(node.module), []).append(
                    one.name
                )
    return "\n\n".join(_file(name, names) for name, names in files.items())


def _file(name: str, names: list[str]) -> str:
    module = importlib.import_module(f"hopinterp.{name}")
    if module is getattr(hopinterp, names[0]):
        imported = "   :imported-members:" * ("__all__" in vars(module))  # what it gives a name of its own
        return f"{names[0]}\n{'-' * len(names[0])}\n\n.. automodule:: hopinterp.{name}\n   :members:\n{imported}"
    parts = [name, "-" * len(name), "", (module.__doc__ or "").split("\n\n")[0].replace("`", "``"), ""]
    for one in names:
        kind = "class" if isinstance(given := getattr(hopinterp, one), type) else "function"
        kind = "exception" if kind == "class" and issubclass(given, Exception) else kind
        parts += [f".. auto{kind}:: hopinterp.{one}", "   :members:" * (kind == "class"), ""]
    return "\n".join(parts)


def commands() -> str:
    """Every command with its arguments, options and defaults, as `--help` has them."""
    for module in pkgutil.iter_modules(hopinterp.cli.__path__):  # importing them registers their commands
        importlib.import_module(f"hopinterp.cli.{module.name}")
    group: Any = typer.main.get_command(importlib.import_module("hopinterp.cli.shared").app)
    return "\n\n".join(_command(name, group.commands[name]) for name in group.list_commands(None))


def _command(name: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    usage = " ".join(
        [f"hopinterp {name}", *(f"{one.name.upper()}{' …' * (one.nargs == -1)}" for one in arguments), "[OPTIONS]"]
    )
    rows = [f"| {_name(one)} | {_words(one)} |" for one in command.params if not getattr(one, "hidden", False)]
    table = "\n".join(["| option | what it does |", "| --- | --- |", *rows])
    examples = [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  hopinterp")]
    shown = "\n".join([usage, *(["", *examples] if examples else [])])
    return f"## `{name}`\n\n{command.help.strip()}\n\n```text\n{shown}\n```\n\n{table}"


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
    for path in sorted((ROOT / "analyses").glob("[0-9]*.ipynb"), key=lambda path: int(path.stem.split("_")[0])):
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        title, text = first.removeprefix("# ").split("\n", 1)
        text = re.split(r"\n\n(?!\*\*)", text.strip())[0]
        picture = ROOT / "analyses" / "pictures" / f"{title.split('.')[0]}.png"
        shown = f"![]({Path('..') / picture.relative_to(ROOT)})\n\n" if picture.is_file() else ""
        parts.append(f"### {title}\n\n{shown}{text}\n\n{{download}}`{path.name} <../analyses/{path.name}>`")
    return "\n\n".join(parts)
