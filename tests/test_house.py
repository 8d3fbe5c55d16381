"""The plan of the house is kept: imports go one way down, and the front door opens without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hopinterp

PACKAGE = Path(hopinterp.__file__).parent
FLOORS = ["errors", "task", "models", "theory", "training", "evidence", "rules", "verdict", "views", "cli"]


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hopinterp"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


def test_imports_go_down():
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for other in imported_rooms(path) - {room}:
            assert FLOORS.index(other) < FLOORS.index(room), f"{path.name} imports {other}, which is above it"


def test_every_module_says_what_it_is():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not text or ast.get_docstring(ast.parse(text)), path


@pytest.mark.parametrize("statement", ["import hopinterp", "import hopinterp.cli"])
def test_the_front_door_is_light(statement):
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
    for name in hopinterp.__all__:
        assert getattr(hopinterp, name) is not None
    assert set(hopinterp.__all__) <= set(dir(hopinterp))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hopinterp.nothing
