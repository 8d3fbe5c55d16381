"""The documentation's site builds without a warning, its links lead somewhere, and it needs no network."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

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


def built(target: Path) -> Path:
    """The site, in a folder of `target`."""
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


def broken_links(site: Path, pages: dict[Path, Page]) -> list[str]:
    """Links to files or anchors that are not there."""
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme in ("https", "http", "data", "mailto"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            missed = target in pages and unquote(parts.fragment) not in pages[target].anchors
            if missed or not target.is_file():
                broken.append(f"{path.relative_to(site)} → {link}")
    return broken


def fetched_from_elsewhere(site: Path, pages: dict[Path, Page]) -> list[str]:
    """What pages and style sheets would ask a server for."""
    fetched = {link for page in pages.values() for link in page.loaded}
    assert any(link.startswith("_static/") for link in fetched)
    for sheet in site.rglob("*.css"):
        found = re.findall(r"url\(['\"]?([^'\")]+)|@import ['\"]([^'\"]+)", sheet.read_text(encoding="utf-8"))
        fetched |= {"".join(one) for one in found}
    return [link for link in fetched if re.match(r"(?:https?:)?//", link)]


def without_a_place(site: Path) -> list[str]:
    """Public names that no page of the API describes."""
    text = "".join(path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    return [
        name
        for name in dir(hopinterp)
        if f'id="hopinterp.{name}"' not in text and f'id="module-hopinterp.views.{name}"' not in text
    ]


def test_the_site_builds_and_holds_together(tmp_path):  # one test: two workers would build it twice
    site = built(tmp_path)
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 20
    assert not broken_links(site, pages)
    assert not fetched_from_elsewhere(site, pages)
    assert not without_a_place(site)
