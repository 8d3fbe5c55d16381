"""The report says what the verdict says, stands alone, and works in a real browser."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.judgement.records import Verdict
from hopinterp.judgement.verdict import judge, verify, verify_all
from hopinterp.theory.construction import Construction
from hopinterp.theory.hypotheses import Hypothesis, registered
from hopinterp.views import circuits
from hopinterp.views.report import report, write_report

TASK = hi.HopTask(40, 4, 5)
GROWTH = {
    "program": "growth of what it reaches",
    "transplant": "growth of what it stands for",
    "probe": "growth of what it holds",
}
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """A page taken apart: texts by element, attributes by element, and whether every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.attributes: dict[str, list[dict[str, str | None]]] = {}
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes.setdefault(tag, []).append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data


@pytest.fixture(scope="module")
def made():
    return Construction.of(TASK, 4, "successor").fused


@pytest.fixture(scope="module")
def verdict(made) -> Verdict:
    return verify(made, TASK, 4, sequences=30)


@pytest.fixture(scope="module")
def bare(verdict) -> Verdict:
    """The same verdict without the evidence whose figures take time to draw."""
    return replace(verdict, evidence=bare_of(verdict))


@pytest.fixture(scope="module")
def page(verdict, made) -> str:
    return report(verdict, "a <made> model", made, TASK)


@pytest.fixture(scope="module")
def every_k(small_task):
    return Construction.of(small_task, None, "lookup").fused


@pytest.fixture(scope="module")
def survey_page(survey, every_k, small_task) -> str:
    return report(survey, "m", every_k, small_task)


@pytest.fixture(scope="module")
def survey(every_k, small_task):
    return verify_all(every_k, small_task, [1, 2], sequences=20)


def test_what_the_verdict_says_is_on_the_page(verdict, page):
    assert verdict.verdict == "doubling"
    taken = Page(page)
    assert taken.texts["h1"] == ["How a <made> model solves k-hop induction"]
    assert taken.texts["h2"][0] == "The verdict at k = 4"
    assert any(text.strip() == "doubling, successor" for text in taken.texts["span"])
    beside = [verdict.foretold_text, verdict.disagreements_text]
    assert taken.texts["li"] == [*verdict.program.reading.splitlines(), *verdict.reasons, *beside]
    cells = re.findall(r'<th scope="row">([^<]*)</th>\s*((?:<td>[^<]*</td>\s*)+)', page)
    table = {label: re.findall(r"<td>([^<]*)</td>", row) for label, row in cells}
    for label, row in verdict.rows:
        assert table[label] == list(row)
    assert table["carried as"] == ["content", "occurrence", "occurrence", "content"]
    for step in verdict.growth:
        label = GROWTH[step.by]
        assert table[label][step.layers[1]] == f"×{step.figures}"
    for key, value in verdict.settings.items():
        assert table[key] == [str(value)]
    assert table["probe: method"] == ["logistic"]
    assert len([words for words in table.values() if words[0] == "passed"]) == len(verdict.controls)
    for k in verdict.evidence["behaviour"].hops.values:
        assert table[str(k)][0].startswith(f"{100 * float(verdict.evidence['behaviour'].error.sel(hops=k)):.2f}%")
    assert "transplants and probes in 4 of 4 blocks; transplants and light cone in" in " ".join(page.split())


def test_a_failed_control_is_said(bare):
    failed = {**bare.controls, "off_chain": replace(bare.controls["off_chain"], passed=False)}
    assert "FAILED" in report(replace(bare, controls=failed), "m")
    assert "FAILED" not in report(bare, "m")


def test_undefined_figures_are_said_to_be_undefined(bare):
    """A model of two blocks has no block between the first look-up and the last to be a control."""
    undefined = {"untrained_transplant": replace(bare.controls["untrained_transplant"], value=float("nan"))}
    assert "largest share of the gap undefined" in report(replace(bare, controls=undefined), "m")


@pytest.mark.parametrize(
    ("answer", "form", "words"),
    [
        ("doubling", None, "The hops that a block resolves about double from block to block, by pointer doubling."),
        ("doubling", "lookup", "takes the pointer that it finds there (lookup)."),
        ("sequential", None, "The model takes one hop a block."),
        ("mixed", None, "The evidence fits none of the hypotheses (doubling, sequential)."),
        ("undetermined", None, "What was measured does not tell the hypotheses apart (doubling, sequential)."),
        ("none", None, "The model fails at the task here, so nothing is claimed about its mechanism."),
    ],
)
def test_every_verdict_has_its_words(bare, answer, form, words):
    assert words in report(replace(bare, verdict=answer, form=form), "m")


def test_one_page_says_one_thing_of_what_is_solved(verdict):
    """The reasons, the capacity and the words of the error curve all mean: the upper end is at most 1%."""
    behaviour = verdict.evidence["behaviour"].copy(deep=True)
    behaviour["error"][:], behaviour["low"][:], behaviour["high"][:] = 0.005, 0.001, [0.009, 0.01, 0.0101, 0.02, 0.3]
    behaviour["solved"] = behaviour.high <= 0.01
    judged = judge({**verdict.evidence, "behaviour": behaviour}, 4)
    page = report(replace(judged, evidence={"behaviour": behaviour}), "m")
    assert "err_4 is 0.5% (0.1 to 2.0), not surely solved (1%), under 5%" in page
    assert "Capacity: every k ≤ 2 at 1%" in page
    assert "m solves k = 1 to 2 in eval mode" in page


def test_a_fourth_hypothesis_is_on_the_page(verdict):
    tripling = Hypothesis(
        "tripling", "The hops triple", step=lambda r: 3 * r + 1, looks=lambda r: range(1, r + 2), ink="#123456"
    )
    with registered(tripling):
        page = report(judge(verdict.evidence, 4), "m")
        claimed = report(replace(verdict, verdict="tripling", form=None, evidence=bare_of(verdict)), "m")
    assert '<th scope="row">theory: tripling</th>' in page
    assert "Tripling fails at block 2: its output stands for 3 hops done (transplants), not 4." in page
    assert "tripling 3 to 4" in page
    assert "tripling 0, 1, 4, 4" in page  # the staircase, in words
    assert "The hops triple." in claimed
    assert 'style="--tint: #123456">tripling<' in claimed


def bare_of(verdict):
    return {"behaviour": verdict.evidence["behaviour"]}


def test_the_page_stands_alone(page):
    """Whatever is loaded is a data URI, every address that is left is a link to click on, and the script is there once."""
    taken = Page(page)
    loaded = [
        attributes[name]
        for elements in taken.attributes.values()
        for attributes in elements
        for name in ("src", "srcset", "data", "poster", "background")
        if name in attributes
    ]
    assert loaded
    assert all(value.startswith("data:") for value in loaded)
    assert [link["href"] for link in taken.attributes["link"]] == ["data:,"]
    assert {link["href"] for link in taken.attributes["a"]} == {"https://arxiv.org/abs/2402.09268"}
    ours = page.replace(circuits.bundled_script(), "")
    assert len(page) - len(ours) == len(circuits.bundled_script())  # once
    assert re.findall(r"https?://[^\"'\s<)]+", ours) == ["https://arxiv.org/abs/2402.09268"]
    assert "@import" not in ours
    assert "url(" not in ours
    for source in (image["src"] for image in taken.attributes["img"]):
        drawing = base64.b64decode(source.partition("base64,")[2]).decode()
        assert not re.search(r'href="(?!#|data:)', drawing)
    assert len(page) < 3_000_000


def test_the_page_can_be_read_without_eyes(page):
    taken = Page(page)
    assert taken.attributes["html"][0]["lang"] == "en"
    images = taken.attributes["img"]
    assert len(images) == 7
    assert all(len(image["alt"]) > 40 for image in images)
    assert len({image["alt"] for image in images}) == 7
    levels = [int(level) for level in re.findall(r"<h([1-6])", page.partition("<script")[0])]
    assert levels[0] == 1
    assert max(np.diff(levels)) <= 1  # no level of headings is skipped
    assert all("scope" in cell for cell in taken.attributes["th"])


def test_without_a_model_there_is_no_script(bare):
    page = report(bare, "m")
    assert "<script" not in page
    assert len(page) < 100_000


def test_one_seed_one_page(verdict, made, page):
    assert report(verdict, "a <made> model", made, TASK) == page


def test_a_survey_has_a_part_for_every_k(survey, survey_page):
    taken = Page(survey_page)
    assert [part["id"] for part in taken.attributes["details"] if "id" in part] == ["k1", "k2"]
    assert str(survey.capacity) in taken.texts["p"]
    for k, verdict in survey.verdicts.items():
        assert f"k = {k}: {verdict.verdict}" in taken.texts["h2"]
    assert f"One sequence, k = {max(survey.verdicts)}" in taken.texts["h2"]
    assert survey_page.count("image/svg+xml") == 1  # the errors; the figures of each k are bitmaps
    assert survey_page.count("image/webp") == 6 * 2


def test_where_a_model_fails_there_is_nothing_to_draw(small_model, small_task):
    failing = verify_all(small_model, small_task, [1, 2], sequences=10)
    assert {one.verdict for one in failing.verdicts.values()} == {"none"}
    assert "image/webp" not in report(failing, "m", small_model, small_task)


def test_a_page_is_written_whole_or_not_at_all(bare, tmp_path, monkeypatch):
    write_report(tmp_path / "a.html", bare, "m")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == report(bare, "m")
    for place, message in (("a.txt", "the ending must be .html"), ("none/a.html", "no directory")):
        with pytest.raises(HopInterpError, match=message):
            write_report(tmp_path / place, bare, "m")
    (tmp_path / "b.html").mkdir()
    with pytest.raises(HopInterpError, match="it is a directory"):
        write_report(tmp_path / "b.html", bare, "m")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(HopInterpError, match="No space left"):
        write_report(tmp_path / "c.html", bare, "m")
    assert {path.name for path in tmp_path.iterdir()} == {"a.html", "b.html"}


# -- in a browser ------------------------------------------------------------------------------------------------------

LOOK = """
  const names = () => [...document.querySelectorAll("#attention h4")].map((label) => label.textContent);
  const ink = () => {
    const all = [...document.querySelectorAll("#attention canvas")];
    const large = all.reduce((a, b) => a.width >= b.width ? a : b);
    const pixels = large.getContext("2d").getImageData(0, 0, large.width, large.height).data;
    let blue = 0, orange = 0;
    for (let at = 0; at < pixels.length; at += 4) {
      if (pixels[at + 3] < 200) continue;
      if (pixels[at + 2] > pixels[at] + 60) blue++;
      if (pixels[at] > pixels[at + 2] + 60) orange++;
    }
    return {canvases: all.length, blue, orange};
  };
  const shown = () => document.querySelector("#attention h2").textContent;
  const choose = async (id, value) => {
    const select = document.getElementById(id);
    select.value = value;
    select.dispatchEvent(new Event("change"));
    await wait(1500);
  };
"""


def test_the_page_works_in_a_browser(browser, page):
    visit = browser(
        page,
        LOOK
        + """
  await wait(1500);
  result.images = [...document.images].map((image) => image.complete && image.naturalWidth > 100);
  result.first = {names: names(), shown: shown(), ...ink()};
  await choose("block", "2");
  result.block = {names: names(), shown: shown(), ...ink()};
  await choose("find", "2");
  result.right = {names: names(), said: document.getElementById("readout").textContent, ...ink()};
  await choose("find", "1");
  result.wrong = {names: names(), ...ink()};
  document.querySelectorAll("#attention h4")[1].click();
  await wait(500);
  result.clicked = shown();
  const maps = document.querySelectorAll("#attention [role=button]");
  maps[0].dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
  await wait(500);
  result.keyed = {shown: shown(), label: maps[0].getAttribute("aria-label"), focusable: maps[0].tabIndex};
  const fold = document.querySelector("details");
  const before = fold.offsetHeight;
  fold.querySelector("summary").click();
  await wait(100);
  result.unfolds = fold.open && fold.offsetHeight > before;
    """,
    )
    assert visit.problems == []
    assert visit.requested == []
    found = visit.result
    assert found["images"] == [True] * 7
    assert found["first"]["names"] == ["3.0", "3.1", "3.2", "find^4"]  # the last block, and what it attends to
    assert found["first"]["canvases"] == 5  # four small, one large
    assert found["first"]["blue"] > 0
    assert found["first"]["orange"] == 0
    assert found["block"]["names"] == ["2.0", "2.1", "2.2", "find^2"]
    assert found["block"]["shown"] == "2.0"
    assert "2.0: 100%" in found["right"]["said"]
    # under the find^j that the head follows, what is on it stays blue; under another, hardly anything does
    assert found["right"]["blue"] > 5 * found["wrong"]["blue"]
    assert found["wrong"]["orange"] > found["right"]["orange"]
    assert found["wrong"]["names"][-1] == "find^1"
    assert found["clicked"] == "2.1"
    assert found["keyed"] == {"shown": "2.0", "label": "show 2.0 large", "focusable": 0}
    assert found["unfolds"]


def test_no_request_leaves_even_if_the_policy_allowed_it(browser, page):
    without = re.sub(r"<meta http-equiv[^>]*>", "", page, count=1)
    assert len(without) < len(page)
    visit = browser(without, "await wait(1500); result.drawn = document.querySelectorAll('canvas').length;")
    assert visit.result["drawn"] == 5
    assert visit.requested == []


def test_the_watch_sees_what_a_page_asks_for(browser):
    """The control of the two tests above."""
    html = '<html><head></head><body><img src="http://127.0.0.1:9/a.png"></body></html>'
    script = 'await fetch("http://elsewhere.invalid/b").catch(() => null); await wait(500);'
    assert set(browser(html, script).requested) == {"http://127.0.0.1:9/a.png", "http://elsewhere.invalid/b"}
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; script-src 'unsafe-inline'\">"
    strict = browser(html.replace("</head>", policy + "</head>"), script)
    assert strict.requested == []
    assert len(strict.problems) == 2


def test_the_page_fits_a_phone(browser, page):
    visit = browser(
        page,
        "await wait(1500); result.widths = [innerWidth, document.documentElement.scrollWidth];"
        "result.text = parseFloat(getComputedStyle(document.querySelector('p.lead')).fontSize);",
        size=(500, 900),
    )
    inner, needed = visit.result["widths"]
    assert inner <= 500
    assert needed <= inner  # wide tables and figures scroll within themselves
    assert visit.result["text"] >= 16


def test_a_link_opens_its_part_of_a_survey(browser, survey_page):
    script = 'result.before = document.getElementById("k2").open; document.querySelector("a[href=\'#k2\']").click();'
    visit = browser(survey_page, script + 'await wait(300); result.after = document.getElementById("k2").open;')
    assert visit.result == {"before": False, "after": True}
    assert visit.problems == []


def test_a_picture_works_in_a_notebook_page(browser, made):
    batch = TASK.sample(1, hops=4, seed=0)
    example = circuits.read_example(made, batch)
    first = circuits.attention_heads(example, layers=[2])._repr_html_()
    second = circuits.attention_pattern(example, 2, 0, find=2).html(bundle=False)
    html = f"<html><head></head><body>{first}{second}</body></html>"
    visit = browser(html, "await wait(1500); result.drawn = document.querySelectorAll('canvas').length;")
    assert visit.problems == []
    assert visit.requested == []
    assert visit.result["drawn"] == 7 + 1 + 1  # three heads, four find^j, the large one; and the second picture
