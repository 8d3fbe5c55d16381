"""A real browser without a window and without a network, for pages that must work in one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .devtools import Screen, chromium

WATCH = """<script>
window.problems = [];
addEventListener("error", (event) => problems.push(event.message));
addEventListener("unhandledrejection", (event) => problems.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => problems.push(event.violatedDirective + " " + event.blockedURI));
</script>"""
REPORT = """<script>
addEventListener("load", async () => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const result = {};
  try { %s } catch (error) { problems.push(String(error)); }
  const place = document.createElement("pre");
  place.id = "test-result";
  place.textContent = JSON.stringify({result, problems});
  document.body.append(place);
});
</script>"""


@dataclass(frozen=True)
class Visit:
    """What came of opening a page.

    Attributes:
        result: what the test's script put into `result`.
        problems: errors of scripts and violations of the page's content security policy.
        requested: every address that the page asked for over a network.
    """

    result: dict[str, Any]
    problems: list[str]
    requested: list[str]


Browser = Callable[..., Visit]


@pytest.fixture(scope="session")
def chromium_program() -> str:
    """Where Chromium is."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    return program


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's script, which checks a page's accessibility."""
    beside = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
    script = Path(os.environ.get("HOPINTERP_AXE", beside))
    if not script.is_file():
        pytest.skip(f"axe-core is not at {script} (npm install --no-save axe-core, or name its axe.min.js in HOPINTERP_AXE)")
    return script.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def screen(chromium_program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screen]:
    """A tab whose width, scheme and medium a test chooses."""
    with chromium(chromium_program, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="session")
def browser(chromium_program: str, tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """Opens HTML from a file in headless Chromium, where no name resolves, runs a script in it, and says what happened."""

    def visit(html: str, script: str = "", size: tuple[int, int] = (1200, 900)) -> Visit:
        folder = tmp_path_factory.mktemp("browser")
        # str.replace, not re.sub: the page is megabytes, and its script is full of backslashes
        watched = html.replace("<head>", "<head>" + WATCH, 1).replace("</body>", REPORT % script + "</body>", 1)
        (folder / "page.html").write_text(watched, encoding="utf-8")
        command = [chromium_program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]
        command += [f"--log-net-log={folder / 'net.json'}", f"--window-size={size[0]},{size[1]}"]
        command += ["--virtual-time-budget=20000", "--dump-dom", (folder / "page.html").as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        found = re.search(r'<pre id="test-result">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found, "the script of the test did not come to its end"
        told = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
        return Visit(told["result"], told["problems"], _requested(folder / "net.json"))

    return visit


def _requested(log: Path) -> list[str]:
    """Addresses that a file's page asked for; Chromium's own housekeeping carries no page's key."""
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    started = [event["params"] for event in events if "initiator" in event.get("params", {})]
    pages = [one for one in started if str(one.get("network_isolation_key", "")).startswith("file:")]
    return [one["url"] for one in pages if not one["url"].startswith(("file:", "data:"))]
