"""The report says what the verdict says, stands alone, and works in a real browser."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from datetime import UTC, datetime
from html import unescape
from html.parser import HTMLParser
from importlib import metadata

import numpy as np
import pytest
from matplotlib.colors import to_rgb

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.decompile.decompilation import Decompilation
from hopinterp.judgement.records import Verdict
from hopinterp.judgement.verdict import judge, verify, verify_all
from hopinterp.models import store
from hopinterp.theory.construction import Construction
from hopinterp.theory.hypotheses import Hypothesis, claims, registered
from hopinterp.views import circuits, glossary
from hopinterp.views.report import report, write_report
from hopinterp.views.settings import Setting, named_settings, number
from hopinterp.views.style import SCHEMES

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


@pytest.fixture(autouse=True, scope="module")
def one_day():
    """All pages of these tests are of one day."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1722500000")
        yield


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
    assert any(text.strip() == "doubling, successor" for text in taken.texts["span"])
    assert verdict.headline in taken.texts["p"]
    beside = [verdict.foretold_text, verdict.disagreements_text]
    headline, *lines = verdict.program.reading.splitlines()
    assert printed(headline) in taken.texts["strong"]  # below the tree
    contents = taken.texts["li"][: page.partition("</nav>")[0].count("<li>")]
    assert taken.texts["li"][len(contents) :] == [printed(line) for line in (*lines, *verdict.reasons, *beside)]
    table = rows_of(page)
    for label, row in verdict.rows:
        assert table[printed(label)] == list(row)
    assert table["block 3"] == ["hop 4", "first", "first"]  # where each head looks
    assert "block 2  *hop 2 (by pointer 1) brings *pointer 3" in taken.texts["pre"][0]
    assert table["carried as"] == ["content", "occurrence", "occurrence", "content"]
    for step in verdict.growth:
        label = GROWTH[step.by]
        assert table[label][step.layers[1]] == f"×{step.figures}"
    assert len([words for words in table.values() if words[0] == "passed"]) == len(verdict.controls)
    for k in verdict.evidence["behaviour"].hops.values:
        assert table[str(k)][0].startswith(f"{100 * float(verdict.evidence['behaviour'].error.sel(hops=k)):.2f}%")
    assert "transplants and probes in 4 of 4 blocks; transplants and light cone in" in " ".join(page.split())


def test_growth_is_explained_where_there_is_a_row_of_it(bare):
    assert "Growth: how many times" in report(bare, "m")
    assert "Growth: how many times" not in report(replace(bare, growth=()), "m")


def test_a_program_that_explains_nothing_is_said_to_first(verdict, bare):
    worse = replace(verdict.program, tree=replace(verdict.program.tree, error=0.438))
    taken = Page(report(replace(bare, program=worse), "m"))
    assert "A program that does not explain the model" in taken.texts["h2"]
    assert taken.texts["strong"][0].startswith("Not explained: the tree errs on 43.8%, above 5%. ")


def rows_of(page):
    """Every table's rows: label → cells."""
    text = re.sub(r"</?(code|strong|a|sup|sub)\b[^>]*>", "", page)
    cells = re.findall(r'<th scope="row"[^>]*>([^<]*)</th>\s*((?:<td[^>]*>[^<]*</td>\s*)+)', text)
    return {label: re.findall(r"<td[^>]*>([^<]*)</td>", row) for label, row in cells}


def printed(text):
    """A text whose raised and lowered characters are such: as a parser reads it, without their signs."""
    return re.sub(r"\b(X|err|hop)_", r"\1", re.sub(r"\^(?=[\wℓ])", "", text))


def test_every_setting_is_named_in_words(verdict, page):
    settings = named_settings(verdict)
    assert list(settings) == ["verdict", "program", "behaviour", "transplants", "probes", "light cone", "attention"]
    assert {one.name: one.value for one in settings["verdict"]} == {k: number(v) for k, v in verdict.settings.items()}
    assert Setting("how probes are fitted", "method", "logistic") in settings["probes"]
    assert "not of the file" in next(one.words for one in settings["probes"] if one.name == "model_digest")
    assert Setting("sequences for its tree", "sequences: tree", "30") in settings["program"]
    shown = re.findall(r"<td><code>(.*?)</code></td><td>(.*?)</td>", page)
    every = [one for group in settings.values() for one in group]
    assert [(name, unescape(value)) for name, value in shown] == [(one.name, one.value) for one in every]
    assert [one.name for one in every if one.words == one.name.replace("_", " ")] == []


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
    assert "err<sub>4</sub> is 0.5% (0.1 to 2.0), not surely solved (1%), under 5%" in page
    assert "Capacity: every k ≤ 2 at 1%" in page
    assert "m solves k = 1 to 2 in eval mode" in page


def test_a_fourth_hypothesis_is_on_the_page(verdict):
    tripling = Hypothesis(
        "tripling", "The hops triple", step=lambda r: 3 * r + 1, looks=lambda r: range(1, r + 2), ink="#123456"
    )
    with registered(tripling):
        page = report(judge(verdict.evidence, 4), "m")
        claimed = report(replace(verdict, verdict="tripling", form=None, evidence=bare_of(verdict)), "m")
    assert "theory: tripling" in rows_of(page)
    assert "Tripling fails at block 2: its output stands for 3 hops done (transplants), not 4." in page
    assert "tripling 3 to 4" in page
    assert "Tripling" in Page(page).texts["dt"]
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
    inner = [link["href"][1:] for link in taken.attributes["a"] if link["href"].startswith("#")]
    named = [element["id"] for elements in taken.attributes.values() for element in elements if "id" in element]
    assert len(named) == len(set(named))
    assert len(inner) == 9
    assert set(inner) <= set(named)
    outer = {link["href"] for link in taken.attributes["a"]} - {f"#{name}" for name in inner}
    assert outer == {"https://arxiv.org/abs/2402.09268"}
    ours = page.replace(circuits.bundled_script(), "")
    assert len(page) - len(ours) == len(circuits.bundled_script())  # once
    assert re.findall(r"https?://[^\"'\s<)]+", ours) == ["https://arxiv.org/abs/2402.09268"]
    assert "@import" not in ours
    assert "url(" not in ours
    drawings = [image["src"] for image in taken.attributes["img"] if image["src"].startswith("data:image/svg+xml")]
    assert drawings
    for source in drawings:
        drawing = base64.b64decode(source.partition("base64,")[2]).decode()
        assert not re.search(r'href="(?!#|data:)', drawing)
    assert len(page) < 3_500_000  # every figure twice, and the script of the maps


def test_the_page_can_be_read_without_eyes(page):
    taken = Page(page)
    assert taken.attributes["html"][0]["lang"] == "en"
    images = taken.attributes["img"]
    assert len(images) == 7 * 2  # by day and by night, of which one is shown
    assert all(len(image["alt"]) > 40 for image in images)
    assert len({image["alt"] for image in images}) == 7
    levels = [int(level) for level in re.findall(r"<h([1-6])", page.partition("<script")[0])]
    assert levels[0] == 1
    assert max(np.diff(levels)) <= 1  # no level of headings is skipped
    assert all("scope" in cell for cell in taken.attributes["th"])


def test_without_a_model_there_is_no_script(bare):
    page = report(bare, "m")
    assert "<script" not in page
    assert len(page) < 250_000


def test_one_seed_one_page(verdict, made, page):
    assert report(verdict, "a <made> model", made, TASK) == page


def test_the_page_says_when_it_was_made(bare, monkeypatch):
    page = report(bare, "m")
    facts = facts_of(page)
    assert facts["Date"] == "2024-08-01 08:13 UTC"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1722600000")
    assert report(bare, "m") == page.replace("2024-08-01 08:13 UTC", "2024-08-02 12:00 UTC")  # and nothing else differs
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(HopInterpError, match="SOURCE_DATE_EPOCH is 'yesterday'; it must be whole seconds since 1970"):
        report(bare, "m")
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    before = datetime.now(UTC).replace(second=0, microsecond=0)
    made = datetime.strptime(facts_of(report(bare, "m"))["Date"], "%Y-%m-%d %H:%M UTC").replace(tzinfo=UTC)
    assert before <= made <= datetime.now(UTC)


def facts_of(page):
    taken = Page(page.partition("</dl>")[0].partition("<dl")[2].join(("<dl", "</dl>")))
    return dict(zip(taken.texts["dt"], taken.texts["dd"], strict=True))


def test_the_page_says_what_the_model_is_and_how_it_came_to_be(bare, made, tmp_path):
    store.save(tmp_path / "made", made, TASK, {"how": "set by hand", "command": "hopinterp construct --hops 4"})
    facts = facts_of(report(bare, "m", tmp_path / "made", TASK, command="hopinterp verify made --report m.html"))
    assert facts["Model"] == f"4 blocks of 3 heads, width {made.spec.d_model}, attention only, no layer norm"
    assert facts["Parameters"] == f"{sum(p.numel() for p in made.parameters.values()):,}"
    assert facts["Task"] == "40 letters of an alphabet of 4, k up to 5"
    assert (facts["Where from"], facts["Made by"]) == ("set by hand", "hopinterp construct --hops 4")
    assert facts["Command"] == "hopinterp verify made --report m.html"
    assert (facts["Seed"], facts["Sequences"]) == ("0", "30")
    assert facts["Version"] == f"hopinterp {metadata.version('hopinterp')}"
    bare_facts = facts_of(report(replace(bare, version="0.0.9"), "m"))
    assert not {"Command", "Where from", "Made by", "Parameters"} & bare_facts.keys()  # nobody said so
    assert bare_facts["Version"].startswith("judged by hopinterp 0.0.9, shown by ")


def test_the_words_are_explained_on_a_chain_that_is_drawn(bare):
    page = report(bare, "m")
    taken = Page(page)
    words = " ".join(taken.texts["dt"])
    for word in ("findj(i)", "errk", "R(ℓ)", "Pointer, content, occurrence", "derivation", "Doubling", "Sequential"):
        assert word in words
    assert glossary.chain() == [9, 7, 5]  # by hand: the b before 9 stands at 6, the a before 7 at 4
    assert taken.attributes["svg"][0]["aria-label"].endswith("find^1(9) = 7; find^2(9) = 5.")
    assert "so find¹(9) = 7." in glossary.task_words()
    assert "so the answer is d." in glossary.task_words()
    assert "the letter and which of its occurrences it is (a, number 3)." in page
    for one in claims().values():
        for form in one.forms:
            assert form.words in page


def test_a_survey_has_a_part_for_every_k(survey, survey_page):
    taken = Page(survey_page)
    assert [part["id"] for part in taken.attributes["details"] if "id" in part] == ["k1", "k2"]
    badges = [text.strip() for text in taken.texts["span"]]
    assert badges == [one.verdict for one in survey.verdicts.values()] * 2  # in the table, and over each part
    assert survey.reading.splitlines()[-1] in taken.texts["p"]
    assert str(survey.capacity) in taken.texts["p"]
    for k, verdict in survey.verdicts.items():
        assert f"k = {k} {verdict.verdict}" in [" ".join(text.split()) for text in taken.texts["h2"]]
    assert f"One sequence, head by head, k = {max(survey.verdicts)}" in taken.texts["h2"]
    assert survey_page.count("image/svg+xml") == 2  # the errors, light and dark; the figures of each k are bitmaps
    assert survey_page.count("image/webp") == 6 * 2 * 2


def test_a_program_alone_has_its_page(verdict, made):
    page = report(verdict.program, "m", made, TASK)
    taken = Page(page)
    headline, *lines = map(printed, verdict.program.reading.splitlines())
    assert [text.strip() for text in taken.texts["span"]] == ["explained"]
    assert headline in taken.texts["strong"]
    assert taken.texts["li"][-len(lines) :] == lines
    assert rows_of(page)["reaches (program)"] == ["0", "1", "3", "4"]
    assert rows_of(page)["routes shuffled"][0] == f"{100 * verdict.program.controls.means()['shuffled']:.1f}% wrong"
    assert facts_of(page)["Task"] == "40 letters of an alphabet of 4, k up to 5"
    assert page.count("<img") == 2  # the tree by day and by night
    assert "light cone" not in " ".join(taken.texts["p"])  # nothing of evidence that was not gathered


def test_programs_at_several_k_have_a_page(verdict):
    several = Decompilation(model="m", by_hops={4: verdict.program}, unsolved={5: 0.25})
    page = report(several)
    assert "m: 1 of 1 solved k explained: k = 4. Not solved: k = 5." in Page(page).texts["p"]
    assert "explained" in [text.strip() for text in Page(page).texts["span"]]
    assert "k = 5: no program (the model fails there: 25.0% of its answers are wrong)." in page
    assert page.count("image/svg+xml") == 2  # where each head looks at every k
    assert "k = 5: no program" in report(replace(several, by_hops={}))


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
    assert found["images"] == [True] * 7 * 2
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


PHONE = 390
MEASURE = """
  const wide = (element) => element.getBoundingClientRect().right;
  const all = [...document.querySelectorAll("table td, table th, p, li, dd, nav a, .chain")];
  const cells = all.filter((one) => one.checkVisibility());
  const image = document.querySelector(".by-day"), scroll = image.closest(".scroll");
  const result = {needed: document.documentElement.scrollWidth, cells: cells.length, widest: Math.max(...cells.map(wide))};
  result.images = Math.max(...[...document.images].map(wide));
  document.querySelector(".full input").click();
  result.enlarged = [image.offsetWidth, image.offsetWidth > scroll.clientWidth, scroll.scrollWidth > scroll.clientWidth];
  result.afterwards = document.documentElement.scrollWidth;
  result.text = parseFloat(getComputedStyle(document.querySelector("p.lead")).fontSize);
  return result;
"""


def test_the_page_fits_a_phone(screen, page, tmp_path):
    """Text, tables and figures stand on the screen whole; a figure at its full size scrolls within itself."""
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    screen.open(tmp_path / "a.html", PHONE)
    found = screen.run(MEASURE)
    assert found["cells"] > 100
    assert found["needed"] == found["afterwards"] == PHONE
    assert found["widest"] <= PHONE
    assert found["images"] <= PHONE
    width = int(re.search(r'style="width: ([0-9]+)px"', page)[1])
    assert found["enlarged"] == [width, True, True]
    assert found["text"] >= 16


COLOURS = """
  const seen = (element, name) => getComputedStyle(element)[name];
  const fold = document.querySelector("#settings ~ details");
  return {ground: seen(document.body, "backgroundColor"), ink: seen(document.body, "color"),
    figures: [...new Set([...document.images].filter((one) => one.checkVisibility()).map((one) => one.className))],
    box: seen(document.querySelector(".chain rect"), "fill"), unfolded: fold.querySelector("table").checkVisibility()};
"""


def test_the_page_follows_the_scheme_that_the_reader_prefers(screen, page, tmp_path):
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    screen.open(tmp_path / "a.html", 1400)
    light = screen.run(COLOURS)
    white, near_black = "rgb(255, 255, 255)", "rgb(27, 31, 36)"
    assert light == {"ground": white, "ink": near_black, "figures": ["by-day"], "box": white, "unfolded": False}
    screen.prefer(dark=True)
    dark = screen.run(COLOURS)
    assert (dark["figures"], dark["unfolded"]) == (["by-night"], False)
    assert dark["ground"] == dark["box"] == "rgb(13, 17, 23)" == rgb(SCHEMES["dark"].ground)  # as the figures'
    assert dark["ink"] == "rgb(230, 237, 243)"
    screen.prefer(dark=True, media="print")
    assert screen.run(COLOURS) == light | {"unfolded": True}  # paper is white, and what is folded cannot be opened on it


def rgb(colour):
    return f"rgb({', '.join(str(round(255 * part)) for part in to_rgb(colour))})"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_is_accessible(screen, page, axe, tmp_path, dark):
    """By axe-core: contrast of all text, names of all controls and pictures, the order of headings, landmarks, tables."""
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    screen.open(tmp_path / "a.html", 1400, dark=dark)
    screen.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    screen("Runtime.evaluate", expression=axe)
    check = "const found = await axe.run(document, {resultTypes: ['violations']}); await document.fonts.ready;"
    told = "[one.id, ...one.nodes.map((node) => node.html.slice(0, 200))]"
    assert screen.run(f"{check} return found.violations.map((one) => {told});") == []
    faint = "document.querySelector('p.lead').style.color = 'var(--line)';"
    assert "color-contrast" in screen.run(f"{faint} {check} return found.violations.map((one) => one.id);")


def test_a_link_opens_its_part_of_a_survey(browser, survey_page):
    script = 'result.before = document.getElementById("k2").open; document.querySelector("a[href=\'#k2\']").click();'
    visit = browser(survey_page, script + 'await wait(300); result.after = document.getElementById("k2").open;')
    assert visit.result == {"before": False, "after": True}
    assert visit.problems == []


def test_a_picture_works_in_a_notebook_page(browser, made):
    batch = TASK.sample(1, hops=4, seed=0)
    example = circuits.read_example(made, batch)
    first = circuits.attention_heads(example, layers=[2])._repr_html_()
    second = circuits.attention_pattern(example, 2, 0, find=2)._repr_html_()
    html = f"<html><head></head><body>{first}{second}</body></html>"
    visit = browser(html, "await wait(1500); result.drawn = document.querySelectorAll('canvas').length;")
    assert visit.problems == []
    assert visit.requested == []
    assert visit.result["drawn"] == 7 + 1 + 1  # three heads, four find^j, the large one; and the second picture
