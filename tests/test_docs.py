"""The code on the pages of docs/ runs as it stands there, and every name and file that they mention exists."""

import re
from pathlib import Path

import pytest

from hopinterp.evidence.datasets import LONG_NAMES
from hopinterp.models.architectures import ARCHITECTURES
from hopinterp.sweeps import results

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.fixture
def _architectures_restored():
    before = dict(ARCHITECTURES)
    yield
    ARCHITECTURES.clear()
    ARCHITECTURES.update(before)


@pytest.mark.usefixtures("_architectures_restored")
@pytest.mark.parametrize(("page", "count"), [("extending.md", 3), ("bring-a-model.md", 6)])
def test_a_guide_runs_from_top_to_bottom(page, count):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == count
    names = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:[a-z_]+/)*[a-z_0-9]+\.(?:py|pyi|md))`", text):
        places = (ROOT / name, ROOT / "hopinterp" / name, *(ROOT / "hopinterp").rglob(name))
        assert any(place.is_file() for place in places), f"{page.name} names {name}"
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).is_file(), f"{page.name} links to {link}"


def test_results_lists_every_variable_with_its_long_name():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for name, words in (LONG_NAMES | results.LONG_NAMES).items():
        assert f"| `{name}` | {words} |" in text
