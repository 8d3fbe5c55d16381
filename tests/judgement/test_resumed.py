"""A survey that was interrupted goes on from what is kept, and ends as if it had not been."""

import os

import pytest

import hopinterp as hi
from hopinterp.decompile import decompiled
from hopinterp.evidence.reading import probes


@pytest.fixture(scope="module")
def task():
    return hi.HopTask(n_letters=16, alphabet_size=3, max_hops=2)


@pytest.fixture(scope="module")
def model(task):
    return hi.Construction.of(task, 2, "successor").fused


def told(survey):
    """All of a survey, its evidence included."""
    evidence = {(k, kind): one for k, verdict in survey.verdicts.items() for kind, one in verdict.evidence.items()}
    return str(survey), survey.to_json(), {key: one.to_dict() for key, one in evidence.items()}


def test_an_interrupted_survey_goes_on(tmp_path, model, task, monkeypatch):
    whole = hi.verify_all(model, task, sequences=10)
    looked_into = [k for k, verdict in whole.verdicts.items() if verdict.verdict != "none"]
    assert looked_into
    seen = set()
    for stop in range(2, 40, 3):
        calls = 0

        def report(now, stop=stop):
            nonlocal calls
            calls += 1
            seen.add(now.what)
            if calls == stop:
                raise KeyboardInterrupt

        with hi.cached(tmp_path) as used:
            try:
                survey = hi.verify_all(model, task, sequences=10, report=report)
            except KeyboardInterrupt:
                continue
        break
    assert stop > 8  # it was interrupted at several stages, programs and evidence among them
    assert {"probes", "transplants"} <= {what.partition(": ")[2] or what for what in seen}
    assert str(told(survey)) == str(told(whole))

    def nothing(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(decompiled, "find_tree", nothing)
    monkeypatch.setattr(probes, "_probe_grid", nothing)
    with hi.cached(tmp_path) as used:
        again = hi.verify_all(model, task, sequences=10)
    assert {key["what"] for key in used.found} >= {
        "evaluate",
        "decompile",
        "untrained control",
        "probe",
        "measure_transplants",
    }
    assert str(told(again)) == str(told(whole))
    assert again.verdicts[2].program.network is not None


def test_each_command_s_evidence_serves_the_verdict(tmp_path, model, task):
    """What the commands measure by default is what a verdict asks for; `decompile` and `verify` alike."""
    with hi.cached(tmp_path):
        hi.evaluate(model, task, [1, 2], sequences=40)
        hi.align(model, task, 2, sequences=10)
        hi.probe(model, task, 2, layers=None, furthest=2, train_sequences=32, sequences=20)
        hi.patch(model, task, 2, by="chain", pairs="resample", link=None, position=None, sequences=20, memory=2**28)
        hi.transplant(model, task, 2, None, heads=False, sequences=20)
        hi.decompile(model, task, 2, sequences=40, every_way=True)
    kept = len(os.listdir(tmp_path))
    with hi.cached(tmp_path) as used:
        verdict = hi.verify(model, task, 2, sequences=20)
    assert len(os.listdir(tmp_path)) == kept + 1  # what the program foretells
    assert {key["what"] for key in used.found} == {"evaluate", "align", "probe", "patch", "transplant", "decompile"}
    assert verdict.to_json() == hi.verify(model, task, 2, sequences=20).to_json()


def test_a_survey_is_saved_and_loaded(tmp_path, model, task, refuses):
    survey = hi.verify_all(model, task, sequences=10)
    survey.save(tmp_path / "s")
    with refuses("exists"):
        survey.save(tmp_path / "s")
    loaded = hi.load_survey(tmp_path / "s")
    assert (str(loaded), str(loaded.to_json())) == (str(survey), str(survey.to_json()))
    for k, verdict in survey.verdicts.items():
        assert all(loaded.verdicts[k].evidence[kind].identical(one) for kind, one in verdict.evidence.items())
    assert str(hi.load_verdict(tmp_path / "s" / "k2", model)) == str(survey.verdicts[2])
    (tmp_path / "s" / "k2" / "probe.nc").write_bytes(b"x")
    with refuses("holds no survey"):
        hi.load_survey(tmp_path / "s")
