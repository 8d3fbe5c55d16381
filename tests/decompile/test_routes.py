"""Routes: exactly the program's on constructed models; what the parts of a rule mean; controls that must do worse."""

import pytest
import torch

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.decompile.controls import measure_controls, measure_faithfulness
from hopinterp.decompile.route_fitting import fit_routes
from hopinterp.decompile.routed_runs import run_routed
from hopinterp.decompile.routes import Part, Route, Routing, positions, same_letter
from hopinterp.models.fused import FusedTransformer
from hopinterp.theory.construction import ALGORITHMS, Construction

NAMES = {"previous": "previous token", "first": "first", "itself": "self", "same_letter": "same letter"}


@pytest.fixture(scope="module")
def task():
    return hi.HopTask(60, 4, 8)


def expected(made, k):
    """The rules that a constructed model's program says."""
    model = made.asked(k)
    return [
        [f"hop {target.hop}" if target.where == "find" else NAMES[target.where] for target in model.attends(layer)]
        for layer in range(model.n_layers)
    ]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("built_for", "k"), [(1, 1), (4, 4), (7, 7), (None, 3), (None, 6)])
def test_the_routes_of_a_constructed_model_are_its_program(task, algorithm, built_for, k):
    made = Construction.of(task, built_for, algorithm)
    routing = fit_routes(made.fused, task, k, sequences=20)
    assert [[str(route) for route in block] for block in routing.routes] == expected(made, k)
    assert all(route.null == "first" and route.explained > 0.9999 for _, _, route in routing.heads)
    batch = task.sample(10, hops=k, seed=5)
    answers = run_routed(made.fused, batch, routing).argmax(-1)
    assert torch.equal(answers[:, 1:], batch.labels[:, 1:])


def one_head(task, part, null="first", **more):
    n = task.n_positions
    means = torch.full((1, 1, n, n), 0.5)
    return Routing(task, 2, ((Route(part, null, **more),),), means, means + 1)


def test_a_rule_is_a_pattern(task):
    batch = task.sample(5, hops=2, seed=0)
    own = torch.arange(task.n_positions)
    pattern = one_head(task, (Part("hop", 2),)).pattern(batch, 0)[:, 0]
    assert torch.equal(pattern.argmax(-1), batch.find[:, 2])  # null rows look at the hop token
    assert torch.equal(pattern.sum(-1), torch.ones(5, task.n_positions))
    previous = one_head(task, (Part("before hop", 0),)).pattern(batch, 0)[0, 0]
    assert torch.equal(previous.argmax(-1), (own - 1).clamp_min(0))
    assert torch.equal(
        positions(batch, Part("before hop", 1))[batch.find[:, 1] > 0], (batch.find[:, 1] - 1)[batch.find[:, 1] > 0]
    )


def test_a_mixture_gives_all_to_the_part_that_is_not_null(task):
    batch = task.sample(5, hops=2, seed=0)
    routing = one_head(task, (Part("hop", 1, 0.75), Part("hop", 3, 0.25)), null="mean")
    pattern = routing.pattern(batch, 0)[:, 0]
    one, three = batch.find[:, 1] > 0, batch.find[:, 3] > 0
    at_one = pattern.gather(-1, batch.find[:, 1][..., None])[..., 0]
    assert (at_one[three] == 0.75).all()
    assert (at_one[one & ~three] == 1).all()
    assert (one & ~three).any()
    rows = ~one
    rows[:, 0] = False
    assert (pattern[rows] == 1.5).all()  # the mean of null rows, which is what this rule says they do
    assert str(routing.hard.routes[0][0]) == "hop 1"


def test_counting_heads_look_at_their_letter(task):
    batch = task.sample(3, hops=1, seed=1)
    pattern = same_letter(batch, 5.0)[0, -1]
    same = int((batch.tokens[0] == batch.tokens[0, -1]).sum())
    assert pattern[0] == pytest.approx(5 / (5 + same))
    assert pattern[-1] == pytest.approx(1 / (5 + same))


def test_a_mixture_is_found_with_its_shares(task):
    """A head of which every pattern is 0.6 find² and 0.4 the previous token, which no single rule fits."""

    class Fixed:
        device = torch.device("cpu")
        spec = type("Spec", (), {"n_layers": 1})

        def run_with_cache(self, tokens, names):
            letters = task.from_letters(tokens[:, 1:] - task.first_letter, 2)
            mixture = one_head(task, (Part("hop", 2, 0.6), Part("before hop", 0, 0.4))).pattern(letters, 0)
            return None, dict.fromkeys(names, mixture)

    route = fit_routes(Fixed(), task, 2, sequences=20).routes[0][0]
    assert [(part.kind, part.hop) for part in route.parts] == [("hop", 2), ("before hop", 0)]
    assert route.parts[0].share == pytest.approx(0.6, abs=1e-3)


def test_a_hop_is_moved_within_the_task(task):
    routing = one_head(task, (Part("hop", 1),))
    assert str(routing.moved(0, 0, -1).routes[0][0]) == "self"
    assert str(routing.moved(0, 0, 1).routes[0][0]) == "hop 2"
    assert str(one_head(task, (Part("hop", 8),)).moved(0, 0, 1).routes[0][0]) == "hop 8"


def test_the_program_beats_its_controls(task):
    made = Construction.of(task, 4, "lookup")
    routing = fit_routes(made.fused, task, 4, sequences=20)
    faithful = measure_faithfulness(made.fused, routing, sequences=30)
    assert faithful.own == faithful.routed == faithful.routed_hard == 0
    assert faithful.by_block == (0, 0, 0, 0)
    assert -0.01 < faithful.low < 0 < faithful.high < 0.01
    assert faithful.kl < 1e-4
    controls = measure_controls(made.fused, routing, sequences=20)
    assert max(controls.shuffled) > 0.3  # not each: where one head a block jumps, their order does not matter
    assert min(controls.one_hop_off) > 0.3  # every head of this program is needed
    assert controls.content_free[0] > 0.3
    assert controls.heads_moved == ((1, 0), (2, 0), (3, 0))


def test_an_untrained_model_has_no_hops(task):
    fresh = FusedTransformer(spec := Construction.of(task, 2, "lookup").fused.spec, spec.initial_parameters(0))
    routing = fit_routes(fresh, task, 2, sequences=20)
    assert not any(part.hop for _, _, route in routing.heads for part in route.parts)


def test_the_same_seed_gives_the_same_routes(task):
    fused = Construction.of(task, 3, "successor").fused
    first, second = (fit_routes(fused, task, 3, sequences=10, seed=4) for _ in range(2))
    assert first.routes == second.routes
    assert torch.equal(first.mean, second.mean)


def test_what_cannot_be_fitted_is_refused(task):
    fused = Construction.of(task, 2, "lookup").fused
    with pytest.raises(HopInterpError, match="at least two"):
        fit_routes(fused, task, 2, sequences=1)
    with pytest.raises(HopInterpError, match="hops is 9"):
        fit_routes(fused, task, 9)
