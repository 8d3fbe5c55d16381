"""Guards: none where fixed rules fit, and those that were planted, with what they look at; nothing in untrained models."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from hopinterp.decompile.guard_errors import guard_routing
from hopinterp.decompile.guard_fitting import fit_guards
from hopinterp.decompile.guards import Case, Fact, Guard, GuardedRouting
from hopinterp.decompile.inputs import routing_hooks
from hopinterp.decompile.route_fitting import fit_routes
from hopinterp.decompile.routes import Part, Route
from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.task import HopTask
from hopinterp.theory.construction import ALGORITHMS, Construction

TASK, K = HopTask(n_letters=60, alphabet_size=4, max_hops=8), 4


def guard(layer, head, fact, hop, otherwise):
    """Look `hop` hops back where the fact holds, else `otherwise`."""
    cases = tuple(Case(((fact, holds),), Route((Part("hop", j),)), 0.0) for holds, j in ((True, hop), (False, otherwise)))
    return Guard(layer, head, cases[1].route, cases, 0.0, 0.0)


TWO = (guard(1, 0, Fact(0, 2), 3, 1), guard(3, 0, Fact(0, 3), 4, 2))


def planted(*guards):
    """A constructed model whose patterns are those of guards, put in as hooks."""
    made = Construction.of(TASK, K, "lookup").fused
    truth = GuardedRouting(**vars(fit_routes(made, TASK, K, sequences=20)), guards=guards)

    class Planted(FusedTransformer):
        def run_with_cache(self, tokens, names=()):
            cache = {}

            def keep(activation, hook):
                cache[hook.name] = activation

            with self.hooks([*routing_hooks(self, truth, tokens), (names, keep)]):
                return super().__call__(tokens), cache

        def __call__(self, tokens, **_):
            return self.run_with_cache(tokens)[0]

    return Planted(made.spec, made.parameters)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_constructed_model_needs_no_guard(algorithm):
    made = Construction.of(TASK, K, algorithm).fused
    routing = fit_routes(made, TASK, K, sequences=20)
    guarded = fit_guards(made, routing, sequences=20)
    assert (guarded.guards, guarded.asked) == ((), frozenset())
    batch = TASK.sample(5, hops=K, seed=9)
    assert all(torch.equal(guarded.pattern(batch, layer), routing.pattern(batch, layer)) for layer in range(4))


def test_an_untrained_model_has_no_guard():
    spec = Construction.of(TASK, K, "lookup").fused.spec
    fresh = FusedTransformer(spec, spec.initial_parameters(0))
    assert fit_guards(fresh, fit_routes(fresh, TASK, K, sequences=20), sequences=20).guards == ()


@pytest.fixture(scope="module")
def found():
    model = planted(*TWO)
    return guard_routing(model, fit_routes(model, TASK, K, sequences=30), fit_sequences=60, sequences=60)


def test_planted_guards_are_found(found):
    told = [(one.layer, one.head, [(case.given, str(case.route)) for case in one.cases]) for one in found.guards]
    assert told == [
        (1, 0, [(((Fact(0, 2), True),), "hop 3"), (((Fact(0, 2), False),), "hop 1")]),
        (3, 0, [(((Fact(0, 3), True),), "hop 4"), (((Fact(0, 3), False),), "hop 2")]),
    ]
    assert all(one.explains > 0.999 > 0.9 > one.fixed_explains for one in found.guards)


def test_guards_give_the_answers_that_fixed_rules_miss(found):
    assert found.guarded.same == 1
    assert found.guarded.error == found.own
    assert found.fixed.same < 0.9
    assert found.one_by_input.same == found.two_by_input.same == 1
    assert (len(found.shuffled), len(found.permuted)) == (3, 3)
    assert max(one.same for one in (*found.shuffled, *found.permuted)) < 0.9  # others' heads, or others' cases


def test_every_input_is_one_case():
    batch = TASK.sample(20, hops=K, seed=3)
    one = TWO[0]
    expected = one.cases[0].given[0][0].holds(batch)
    letters = batch.hop_letters
    assert torch.equal(expected, (batch.find[:, 2] > 0) & (letters[:, 0] == letters[:, 2]))
    assert torch.equal(one.case_of(batch) == 0, expected)


def test_it_prints_the_guards_and_what_they_gain(found):
    lines = str(replace(found, model="made")).splitlines()
    assert lines[1].split() == ["the", "model", "itself", f"{100 * found.own:.1f}%", "–"]
    assert lines[-1].startswith("made, k = 4: 2 of 2 heads that no fixed rule fits have a guard; ")
    assert "guards shuffled among heads" in lines[-2]
    assert lines[7].startswith(
        "1.0: if X_i = X_find²(i): hop 3; if not X_i = X_find²(i): hop 1 (explains 100% of the pattern"
    )
    given = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert given["guarded"]["same"] == 1
    assert given["guards"] == [str(one) for one in found.guards]


def test_too_few_sequences_are_refused():
    made = Construction.of(TASK, K, "lookup").fused
    routing = fit_routes(made, TASK, K, sequences=20)
    with pytest.raises(HopInterpError, match="sequences is 3"):
        fit_guards(made, routing, sequences=3)
