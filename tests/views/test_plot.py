"""hi.plot has a figure, and hi.show a table, for what each function returns; every result shows itself in a few lines."""

import html

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.judgement.surveys import Survey
from hopinterp.theory.construction import Construction


@pytest.fixture(scope="module")
def made(small_task):
    return Construction.of(small_task, 3, "successor")


@pytest.fixture(scope="module")
def found(made, small_task):
    """What each function of evidence returns, by its name."""
    few, subject = {"sequences": 8}, hi.Subject.of(made.fused, name="made")
    return {
        "evaluate": hi.evaluate(subject, small_task, [3, 4], **few),
        "align": hi.align(subject, small_task, 3, **few),
        "probe": hi.probe(subject, small_task, 3, train_sequences=12, **few),
        "patch": hi.patch(subject, small_task, 3, **few),
        "transplant": hi.transplant(subject, small_task, 3, **few),
    }


@pytest.fixture(scope="module")
def program(made, small_task):
    return hi.decompile(made.fused, small_task, hops=3, sequences=20)


NAMES = ("evaluate", "align", "probe", "patch", "transplant")


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_by_the_functions_name(found, name):
    figure = getattr(hi.plot, name)(found[name], title="as named")
    assert isinstance(figure, Figure)
    told = [axes.get_title("left") for axes in figure.axes] + [figure.get_suptitle()]
    assert any("as named" in text for text in told)


def test_several_results_beside_each_other(found, made, small_task, program):
    assert isinstance(hi.plot.evaluate({"one": found["evaluate"], "two": found["evaluate"]}), Figure)
    several = hi.align(made.fused, small_task, [2, 3], sequences=4)
    assert len(hi.plot.align(several).axes[0].texts) == 2 * 3 * 3  # a number a head and k
    assert isinstance(hi.plot.align(several, 2), Figure)
    assert isinstance(hi.plot.decompile(program), Figure)
    by_position = hi.patch(made.fused, small_task, 3, by="position", sequences=4)
    assert isinstance(hi.plot.patch(by_position), Figure)
    with pytest.raises(HopInterpError, match="hops is 4; measured were 2, 3"):
        hi.plot.align(several, 4)
    with pytest.raises(HopInterpError, match="of heads there is a table"):
        hi.plot.transplant(found["transplant"].expand_dims("head"))


def test_a_verdicts_circuit_and_a_survey(made, small_task):
    verdict = hi.verify(made.fused, small_task, 3, sequences=20)
    assert isinstance(hi.plot.verify(verdict), Figure)
    survey = Survey(model="made", verdicts={3: verdict}, unmeasured={}, capacity=verdict.capacity)
    assert isinstance(hi.plot.verify(survey), Figure)


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_table_and_reading(found, name):
    shown = hi.show(found[name])
    answer = shown.reading.splitlines()[-1]
    assert str(shown).endswith(shown.reading)
    assert len(str(shown).splitlines()) > 4
    assert f"<strong>{html.escape(answer)}" in shown._repr_html_()
    assert answer in repr(shown)


def test_what_show_does_not_know(found, made, small_task):
    with pytest.raises(HopInterpError, match="others show themselves"):
        hi.show(hi.ablate(made.fused, small_task, 3, sequences=4))
    with pytest.raises(HopInterpError, match="metric is speed; measured were"):
        hi.show(found["patch"], metric="speed")
    several = hi.align(made.fused, small_task, [2, 3], sequences=4)
    assert "Strongest alignment" in str(hi.show(several, hops=2))
    with pytest.raises(HopInterpError, match="this has 2 k: say which"):
        hi.show(several)


def test_all_that_is_returned_shows_itself(made, small_task, program):
    batch = small_task.sample(3, hops=3, seed=0)
    results = {
        "3 sequences of 20 letters of 4, k = 3": batch,
        "d_model": made.fused,
        "made: a FusedTransformer, its weights are known": hi.Subject.of(made.fused, name="made"),
        "8 resample pairs, k = 3": hi.draw_pairs(small_task, 3, 8),
        "8 one-link pairs, k = 3": hi.draw_pairs(small_task, 3, 8, kind="one-link"),
        "successor, k = 3: 3 blocks": made,
        "lookup, reads k": Construction.of(small_task, None, "lookup"),
        "A program as weights": hi.compile_program(made.program),
        "the answer is that letter in": hi.measure_transplants(program, sequences=20),
        "heads that no fixed rule fits": hi.measure_guards(program, fit_sequences=20, sequences=20, draws=1),
        "logits alone are known": hi.Subject.of(lambda tokens: torch.zeros(*tokens.shape, 11), small_task),
    }
    for words, one in results.items():
        assert words in repr(one)
        assert words in str(one)
        assert len(repr(one)) < 300  # no tensors
        page = one._repr_html_()
        assert "<table>" in page
        assert len(page) < 20_000


def test_a_batch_shows_its_own_letters(small_task):
    batch = small_task.from_letters(["abcab", "bcabc"], hops=1)
    rows = dict(batch.rows)
    assert batch.columns == ["i", "1", "2", "3", "4", "5"]
    assert rows["X"] == ("a", "b", "c", "a", "b")
    assert rows["find¹(i)"] == ("–", "–", "–", "2", "3")
    assert rows["answer"] == ("⊥", "⊥", "⊥", "b", "c")
    assert np.array_equal(batch.find1[0, 1:], [0, 0, 0, 2, 3])
    assert "shown" in batch[:0].reading
