"""The documentation's site builds without a warning, its links lead somewhere, and it needs no network."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import hopinterp

ROOT = Path(__file__).parents[1]
LOADED = {"script": ("src",), "link": ("href",), "img": ("src", "srcset"), "iframe": ("src",), "source": ("src", "srcset")}
"""What a browser fetches by itself, and does not wait to be asked for."""
HINTS = ("index", "search", "next", "prev", "canonical")


class Page(HTMLParser):
    """A page's anchors, what it links to and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.links, self.loaded = {""}, [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if given.get("rel") not in HINTS:
            self.loaded += [given[name] for name in LOADED.get(tag, ()) if name in given]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        target / "read",
        ROOT / "docs",
        target / "html",
    ]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return target / "html"


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_link_leads_to_a_page_and_an_anchor(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme in ("https", "http", "data", "mailto"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = target in pages and unquote(parts.fragment) not in pages[target].anchors
            if not target.is_file() or known:
                broken.append(f"{path.relative_to(site)} → {link}")
    assert len(pages) > 20
    assert not broken


def test_nothing_is_loaded_from_elsewhere(site, pages):
    fetched = {link for page in pages.values() for link in page.loaded}
    assert any(link.startswith("_static/") for link in fetched)
    for sheet in site.rglob("*.css"):
        fetched |= set(re.findall(r"url\(['\"]?([^'\")]+)|@import ['\"]([^'\"]+)", sheet.read_text(encoding="utf-8")))
    assert not [link for link in fetched if re.match(r"(?:https?:)?//", "".join(link))]


def test_every_public_name_has_its_place(site):
    text = "".join(path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    missing = [
        name
        for name in vars(hopinterp)["__all__"]
        if f'id="hopinterp.{name}"' not in text and f'id="module-hopinterp.views.{name}"' not in text
    ]
    assert not missing, f"name them on a page of docs/api: {missing}"
