"""Imports go one way down, file by file, and `import hopinterp` loads neither torch nor TransformerLens."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hopinterp

PACKAGE = Path(hopinterp.__file__).parent
HOUSE = {
    "errors": (),
    "progress": (),
    "signals": (),
    "dates": (),
    "devices": (),
    "shown": (),
    "files": (),
    "whole": (),
    "cache": (),
    "memory": (),
    "seeds": (),
    "task": (),
    "models": (
        "blocks",
        "bridge",
        "spec",
        "fused",
        "hooks",
        "torch_files",
        "places",
        "architectures",
        "gpt2",
        "card",
        "subject",
        "store",
        "hub",
    ),
    "engine": ("cached_run", "suffix", "sweeps", "per_position"),
    "theory": (
        "program",
        "compiler",
        "causal",
        "programs",
        "hypotheses",
        "construction",
        "predictions",
        "mpc",
        "doubling",
        "margins",
    ),
    "evidence": (
        "intervals",
        "datasets",
        "remembered",
        "reading.behaviour",
        "reading.comparing",
        "reading.attention",
        "reading.linear",
        "reading.probes",
        "patching.pairs",
        "patching.effects",
        "patching.positions",
        "patching.runs",
        "patching.activation",
        "patching.attribution",
        "patching.ablation",
        "patching.path",
        "transplants.pairs",
        "transplants.interchange",
        "transplants.alignment_search",
        "kinds",
    ),
    "training": ("config", "curriculum", "run", "record", "loop"),
    "decompile": (
        "abreast",
        "routes",
        "routed_runs",
        "route_fitting",
        "controls",
        "nodes",
        "watched_rows",
        "tree_runs",
        "fresh_runs",
        "effects",
        "halving",
        "derivations",
        "scrubbing",
        "live",
        "pointers",
        "readings",
        "joint",
        "queries",
        "program",
        "writing",
        "twin",
        "interventions",
        "robustness",
        "kept",
        "inputs",
        "records",
        "guards",
        "guard_fitting",
        "guard_errors",
        "transplants",
        "decompilation",
        "decompiled",
        "differences",
    ),
    "judgement": ("readings", "laws", "rules", "comparison", "records", "surveys", "verdict"),
    "sweeps": ("grid", "cells", "kept", "measure", "worker", "engine", "results", "sweep"),
    "views": (
        "style",
        "axes",
        "plots",
        "tables",
        "frames",
        "side_by_side",
        "statements",
        "trends",
        "sweeps",
        "circuits",
        "graph",
        "programs",
        "plates",
        "verdicts",
        "pictures",
        "glossary",
        "settings",
        "parts",
        "plot",
        "show",
        "report",
    ),
    "cli": (
        "shared",
        "keep",
        "make",
        "train",
        "read",
        "intervene",
        "judge",
        "decompile",
        "compare",
        "sweep",
        "commands",
        "__init__",
    ),
}
"""Rooms from the lowest up, and the files of each from the lowest up: a file imports only what stands before it."""
ORDER = [f"{room}.{name}" if name else room for room, files in HOUSE.items() for name in files or ("",)]


def place(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    name = ".".join(parts)
    return name if name in ORDER or parts[-1] != "__init__" else ".".join(parts[:-1])


def imported(path: Path) -> set[str]:
    """Every file of the house that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hopinterp":
            stem = node.module.partition(".")[2]
            inner = [".".join(filter(None, (stem, alias.name))) for alias in node.names]
            found |= {name if name in ORDER else stem for name in inner}
    return found


def floor(name: str) -> int:
    assert name in ORDER, f"{name} has no place in the house: add it to HOUSE"
    return ORDER.index(name)


FILES = [path for path in PACKAGE.rglob("*.py") if path.read_text(encoding="utf-8") and path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    above = [other for other in imported(path) if floor(other) >= floor(place(path))]
    assert not above, f"{place(path)} imports {above}, which do not stand below it"


def test_every_module_says_what_it_is():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not text or ast.get_docstring(ast.parse(text)), path


@pytest.mark.parametrize("statement", ["import hopinterp", "import hopinterp.cli"])
def test_importing_is_light(statement):
    heavy = ("torch", "transformer_lens", "matplotlib", "xarray")
    code = f"{statement}\nimport sys\nprint([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_commands_do_without_transformer_lens(tmp_path, small_model, small_task):
    from hopinterp.models import store

    store.save(tmp_path / "m", small_model, small_task, {"how": "by a test"})
    code = (
        "import sys\nfrom hopinterp import cli\n"
        f"sys.argv = ['hopinterp', 'eval', {str(tmp_path / 'm')!r}, '--sequences', '2', '--json']\n"
        "try:\n    cli.main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
        "print('transformer_lens' in sys.modules, 'matplotlib' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False False"


def test_public_names_resolve():
    names, package = set(dir(hopinterp)), vars(hopinterp)  # the stub is read when something is first asked for
    for name in package["__all__"]:
        assert getattr(hopinterp, name) is not None
    assert set(package["__all__"]) <= names
    with pytest.raises(AttributeError, match="nothing"):
        getattr(hopinterp, "nothing")  # noqa: B009
