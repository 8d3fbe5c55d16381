"""A verdict prints, shows itself, and comes back from disk as it was."""

import html
import json
from dataclasses import fields, replace

import pytest

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.judgement.records import Capacity, Growth, load_verdict
from hopinterp.judgement.verdict import judge
from hopinterp.theory.construction import Construction
from hopinterp.theory.hypotheses import Hypothesis, registered

TASK = hi.HopTask(20, 4, 4)
BY_BLOCKS = {"reach": (), "pace": None}


@pytest.fixture(scope="module")
def verdict():
    return hi.verify(Construction.of(TASK, 4, "successor").fused, TASK, 4, sequences=20)


@pytest.fixture(scope="module")
def survey():
    return hi.verify_all(Construction.of(TASK, None, "lookup").fused, TASK, [3, 4], sequences=20)


def test_it_knows_what_it_is_of(verdict):
    assert (verdict.task, verdict.hops, verdict.model) == (TASK, 4, "")
    assert verdict.version == verdict.evidence["behaviour"].attrs["version"]
    assert {name: verdict.settings[name] for name in ("sequences", "seed", "solved", "failed", "held", "stands_for")} == {
        "sequences": 20,
        "seed": 0,
        "solved": 0.01,
        "failed": 0.05,
        "held": 0.8,
        "stands_for": 0.1,
    }


def test_it_says_only_what_there_is(verdict):
    for name in ("verdict", "form"):
        with pytest.raises(HopInterpError, match="no hypothesis 'quadrupling'"):
            replace(verdict, **{name: "quadrupling"})


def test_print(verdict):
    named = replace(verdict, model="a <b>")
    lines = str(named).splitlines()
    assert lines[0].split() == [f"block {layer}".split()[n] for layer in range(4) for n in (0, 1)]
    assert [line.split()[-4:] for line in lines if line.startswith("theory")] == [
        ["0", "1", "2", "4"],
        ["0", "1", "3", "4"],
        ["0", "1", "2", "3"],
    ]
    assert len({len(line) for line in lines[: lines.index("")]}) == 1  # columns line up
    for reason in named.reasons:
        assert reason in lines
    assert lines[-1] == (
        "a <b>, k = 4: doubling (successor), at full pace. Blocks reach 0, 1, 3, 4 of at most 0, 1, 3, 7 hops."
    )
    assert repr(named) == f"<Verdict: {lines[-1]}>"
    assert "All 5 controls passed." in lines


def test_a_notebook_shows_the_same(verdict):
    named = replace(verdict, model="a <b>")
    shown = named._repr_html_()
    assert "a <b>" not in shown
    for label, cells in named.rows:
        assert html.escape(label) in shown
        assert all(f"<td>{cell}</td>" in shown for cell in cells)
    for line in named.reading.splitlines():
        assert html.escape(line) in shown


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({"verdict": "none", "form": None}, "k = 4: none. Its error is 0.0%."),
        ({"form": None} | BY_BLOCKS, "theory: doubling 0, 1, 2–3, 4; sequential 0, 1, 2, 3."),
        (BY_BLOCKS, "k = 4: doubling (successor). Blocks stand for 0, 1, 3, 4 hops; theory 0, 1, 3, 4."),
        (
            {"verdict": "sequential", "form": None} | BY_BLOCKS,
            "k = 4: sequential. Blocks stand for 0, 1, 3, 4 hops; theory 0, 1, 2, 3.",
        ),
        (
            {"pace": "slack"},
            "doubling (successor), with depth to spare. Blocks reach 0, 1, 3, 4 of at most 0, 1, 3, 7 hops.",
        ),
        (
            {"verdict": "beyond", "form": None, "pace": None},
            "k = 4: beyond. Blocks reach 0, 1, 3, 4 of at most 0, 1, 3, 7 hops.",
        ),
    ],
)
def test_headlines(verdict, changes, end):
    assert replace(verdict, **changes).headline.endswith(end)


def test_a_failed_control_is_said(verdict):
    off = replace(verdict.controls["off_chain"], passed=False)
    failed = replace(verdict, controls={**verdict.controls, "off_chain": off})
    assert "Controls failed: off_chain." in failed.reading
    unclear = replace(verdict, controls={**verdict.controls, "off_chain": replace(off, passed=None)})
    assert "4 controls passed; none failed." in unclear.reading


def test_growth_stands_beside_theory(verdict):
    step = Growth((1, 2), "probe", 3.0, 2.5, 3.0)
    said = "Growth before k: probe 1→2: 3 (2.5 to 3). In theory: doubling 2 to 3, sequential 1 to 2."
    assert said in replace(verdict, growth=(step,)).reading
    assert "Growth" not in replace(verdict, growth=()).reading


def test_capacity():
    found = Capacity(measured=10, held=5, stands_for=3, reach=4, worst=9)
    assert found.to_json() == {
        "measured": 10,
        "worst": 9,
        "predicted": 11,
        "predicted_sequential": 6,
        "predicted_transplant": 7,
        "predicted_program": 9,
    }
    assert str(found) == (
        "Capacity: every k ≤ 10 at 1% (k ≤ 9 on chains without a repeat); the last block could reach by the program, 9"
        " (doubling), 5 (sequential); by what the block before holds, 11 (doubling), 6 (sequential); by what that"
        " stands for, 7 (doubling), 4 (sequential)."
    )
    assert str(Capacity(0, None, None)) == "Capacity: k = 1 is not solved at 1%."
    assert str(Capacity(None, 1, None)).startswith("Capacity: not measured; the last block could reach by what the block")
    assert "stands for" not in str(Capacity(None, 1, None))


def test_a_saved_verdict_comes_back(verdict, tmp_path):
    verdict.save(tmp_path / "v")
    assert {path.name for path in (tmp_path / "v").iterdir()} == {
        "judgement.json",
        "decompiled.json",
        "patterns.safetensors",
        *(f"{kind}.nc" for kind in verdict.evidence),
    }
    again = load_verdict(tmp_path / "v")
    for name in (field.name for field in fields(verdict) if field.name not in ("evidence", "program")):
        assert getattr(again, name) == getattr(verdict, name), name
        assert type(getattr(again, name)) is type(getattr(verdict, name)), name
    for kind, found in verdict.evidence.items():
        assert found.identical(again.evidence[kind]), kind
    assert str(again) == str(verdict)
    assert again.program.to_json() == verdict.program.to_json()
    judged = judge(again.evidence, again.hops, program=again.program, foretold=again.foretold)
    assert judged.to_json() == verdict.to_json()


def test_what_is_undefined_comes_back_undefined(verdict, tmp_path):
    off = replace(verdict.controls["off_chain"], passed=None, value=float("nan"))
    odd = replace(verdict, controls={"off_chain": off}, error={"error": float("nan"), "low": 0.0, "high": 1.0}, evidence={})
    odd.save(tmp_path / "v")
    json.loads((tmp_path / "v/judgement.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    again = load_verdict(tmp_path / "v")
    assert again.controls["off_chain"].value != again.controls["off_chain"].value
    assert again.controls["off_chain"].passed is None
    assert again.error["error"] != again.error["error"]


def test_a_verdict_is_saved_whole_or_not_at_all(verdict, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    with pytest.raises(HopInterpError, match="there exists"):
        verdict.save(tmp_path / "there")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(HopInterpError, match=r"No space left on device.*nothing was written"):
        verdict.save(tmp_path / "v")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda place: (place / "judgement.json").unlink(), "holds no verdict: no file"),
        (lambda place: (place / "probe.nc").unlink(), "holds no verdict"),
        (lambda place: (place / "judgement.json").write_text("{}"), "holds no verdict .KeyError"),
        (lambda place: (place / "judgement.json").write_text("not json"), "holds no verdict: .*no plain JSON"),
        (lambda place: (place / "judgement.json").write_text('{"format": 99}'), "saved by another version"),
    ],
)
def test_what_is_no_verdict_is_named(verdict, tmp_path, harm, words):
    verdict.save(tmp_path / "v")
    harm(tmp_path / "v")
    with pytest.raises(HopInterpError, match=words):
        load_verdict(tmp_path / "v")


def test_a_survey_prints_and_shows_itself(survey):
    lines = str(survey).splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["3", "0.00", "undetermined"], ["4", "0.00", "doubling"]]
    assert lines[-1] == "the model: undetermined at k = 3; doubling (lookup) at k = 4."
    assert repr(survey) == f"<Survey: {lines[-1]}>"
    shown = survey._repr_html_()
    assert all(f"<td>{html.escape(cell)}</td>" in shown for _, cells in survey.rows for cell in cells)
    assert set(survey.to_json()["verdicts"]) == {"3", "4"}


def test_json_of_a_fourth_hypothesis(verdict):
    tripling = Hypothesis("tripling", "The hops triple", step=lambda r: 3 * r + 1, looks=lambda r: range(1, r + 2))
    with registered(tripling):
        found = judge(verdict.evidence, 4)
        values = json.loads(json.dumps(found.to_json()))
        assert values["theory"]["tripling"] == [0, 1, 4, 4]
        assert values["theory_attended"]["tripling"] == [[], [1], [1, 2], [1, 2, 3, 4]]
        assert values["capacity"]["predicted_tripling"] == 10
        assert ("theory: tripling", ("0", "1", "4", "4")) in found.rows
        assert "tripling 3 to 4" in found.reading
    assert found.verdict == "doubling"
    assert "Tripling fails at block 2: its output stands for 3 hops done (transplants), not 4." in found.reasons
