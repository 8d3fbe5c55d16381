"""One version everywhere, and a README that reads without the repository beside it."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import hopinterp

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)]*)\)")


def test_the_version_is_one():
    assert metadata.version("hopinterp") == hopinterp.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {hopinterp.__version__}\n" in citation
    released = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released[0] == hopinterp.__version__


def test_a_package_index_is_shown_no_link_into_the_repository():
    hook = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["metadata"]["hooks"]
    plain = "".join((ROOT / one["path"]).read_text(encoding="utf-8") for one in hook["fancy-pypi-readme"]["fragments"])
    shown = plain
    for one in hook["fancy-pypi-readme"]["substitutions"]:
        shown = re.sub(one["pattern"], one["replacement"], shown)
    assert any(not target.startswith("https:") for target in LINK.findall(plain)), "nothing was there to be replaced"
    assert LINK.findall(shown)
    assert all(target.startswith("https:") for target in LINK.findall(shown))
    for words in re.findall(r"!\[([^\]]*)\]\((?!https:)", plain):
        assert words in shown
