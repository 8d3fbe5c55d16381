"""Public functions refuse what cannot be in one line, before any work."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.models.fused import FusedTransformer

# each public function that runs a model, with everything else as small as it may be
FUNCTIONS = {
    "evaluate": hi.evaluate,
    "align": hi.align,
    "probe": hi.probe,
    "patch": hi.patch,
    "transplant": hi.transplant,
    "transplant_subspaces": lambda model, task, hops, **others: hi.transplant_subspaces(model, task, hops, 0, 1, **others),
    "ablate": hi.ablate,
    "path_patch": hi.path_patch,
    "attribution_patch": hi.attribution_patch,
    "direct_logit_attribution": hi.direct_logit_attribution,
    "decompile": hi.decompile,
    "verify": hi.verify,
    "verify_all": hi.verify_all,
}
Cases = list[tuple[str, Callable[[], object]]]
SEVERAL = {"evaluate", "align", "decompile", "verify_all"}  # for which None stands for every k
HOPS = (
    True,
    2.0,
    1.5,
    math.nan,
    "3",
    "",
    [],
    -1,
    99,
    10**30,
    object(),
    [1, True],
    [1, 99],
    [[1]],
    (2.0,),
    torch.tensor(1.0),
    b"1",
    {},
)
SEEDS = (-1, 2**64, True, 1.5, "0", None, math.nan, [0], torch.tensor(0.5))
SEQUENCES = (0, -1, True, 2.5, "4", None, 10**12, math.nan, [4])


class Worked(Exception):
    """A model ran."""


@pytest.fixture
def types_unchecked(pytestconfig):
    """Skipped where the suite executes plain types."""
    if pytestconfig.getoption("jaxtyping_packages"):
        pytest.skip("the checker of types comes first")


@pytest.fixture
def idle(monkeypatch):
    """A model that runs is noticed."""

    def ran(*_, **__):
        raise Worked

    for name in ("__call__", "run_with_cache", "embed"):
        monkeypatch.setattr(FusedTransformer, name, ran)


def faults(cases):
    """What is wrong with each call that ought to be refused."""
    found = []
    for name, call in cases:
        try:
            call()
        except HopInterpError as error:
            if "\n" in str(error) or not 5 < len(str(error)) < 1000:
                found.append(f"{name}: says {str(error)!r:.500}")
        except Worked:
            found.append(f"{name}: the model ran first")
        except Exception as error:
            found.append(f"{name}: {type(error).__name__}: {error!s:.200}")
        else:
            found.append(f"{name}: accepted")
    return found


@pytest.mark.usefixtures("types_unchecked", "idle")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_numbers(name, small_model, small_task):
    function = FUNCTIONS[name]
    hops = HOPS if name in SEVERAL else (*HOPS, None)
    cases: Cases = [(f"hops={k!r}", lambda k=k: function(small_model, small_task, k)) for k in hops]
    cases += [(f"seed={one!r}", lambda one=one: function(small_model, small_task, 2, seed=one)) for one in SEEDS]
    cases += [
        (f"sequences={one!r}", lambda one=one: function(small_model, small_task, 2, sequences=one)) for one in SEQUENCES
    ]
    assert "\n".join(faults(cases)) == ""


def models(small_model):
    """Things that are no model, or one that cannot be reckoned with."""

    def changed(change):
        return FusedTransformer(small_model.spec, {name: change(name, p) for name, p in small_model.parameters.items()})

    def spoilt(number):
        def change(name, p):
            return p.clone().fill_(number) if name == "blocks.1.attn.W_K" else p

        return changed(change)

    return {
        "NaN": spoilt(math.nan),
        "infinite": spoilt(math.inf),
        "half": changed(lambda _, p: p.half()),
        "bfloat16": changed(lambda _, p: p.bfloat16()),
        "meta": changed(lambda _, p: p.to("meta")),
        "whole": changed(lambda _, p: p.long()),
        "a part missing": FusedTransformer(small_model.spec, dict(list(small_model.parameters.items())[3:])),
        "another shape": changed(lambda name, p: p[..., :-1] if name == "blocks.0.mlp.W_in" else p),
        "other sizes": FusedTransformer(replace(small_model.spec, n_layers=3), small_model.parameters),
        "nothing": None,
        "a number": 3,
        "a name": "nowhere",
        "no name": "",
        "a list": [small_model],
        "an empty mapping": {},
        "a module": torch.nn.Linear(3, 3),
        "a class": FusedTransformer,
        "a function": len,
        "a function that gives NaN": lambda tokens: torch.full((*tokens.shape, 30), math.nan),
    }


@pytest.mark.usefixtures("types_unchecked", "idle")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_models_and_tasks(name, small_model, small_task):
    function = FUNCTIONS[name]
    cases: Cases = [
        (f"model: {what}", lambda model=model: function(model, small_task, 2)) for what, model in models(small_model).items()
    ]
    tasks = {"none": None, "a word": "task", "a number": 3, "a class": hi.HopTask, "too long": hi.HopTask(500, 4, 4)}
    tasks["too many tokens"] = hi.HopTask(20, 40, 4)
    cases += [(f"task: {what}", lambda task=task: function(small_model, task, 2)) for what, task in tasks.items()]
    cases += [("the other way round", lambda: function(small_task, small_model, 2))]
    assert "\n".join(faults(cases)) == ""


def test_sizes_and_settings(small_model, small_task, tmp_path):
    from hopinterp.training.config import TrainConfig

    quick = TrainConfig.preset("quick", layers=1, d_model=16, heads=2, letters=10, max_hops=2, batch=4, steps=2)
    kept = (True, 1.5, "3", None, -1, 10**12, math.nan, [3], 2**70)
    cases: Cases = [(f"HopTask({one!r})", lambda one=one: hi.HopTask(one, 4, 4)) for one in kept]
    cases += [(f"HopTask(4, {one!r})", lambda one=one: hi.HopTask(4, one, 4)) for one in kept]
    cases += [(f"HopTask(4, 4, {one!r})", lambda one=one: hi.HopTask(4, 4, one)) for one in kept]
    cases += [(f"ModelSpec({one!r})", lambda one=one: hi.ModelSpec(one)) for one in kept]
    for name in ("d_model", "n_heads", "n_ctx", "d_vocab"):
        cases += [(f"ModelSpec({name}={one!r})", lambda name=name, one=one: hi.ModelSpec(2, **{name: one})) for one in kept]
    for name in ("layers", "steps", "batch", "seed", "log_every"):
        cases += [
            (f"{name}={one!r}", lambda name=name, one=one: replace(quick, **{name: one})) for one in kept if one != 10**12
        ]
    for one in (math.nan, -1.0, 0, "x", None, math.inf, True):
        cases += [(f"lr={one!r}", lambda one=one: replace(quick, lr=one))]
    cases += [(f"sample({one!r})", lambda one=one: small_task.sample(one, seed=0)) for one in SEQUENCES]
    cases += [(f"sample(seed={one!r})", lambda one=one: small_task.sample(4, seed=one)) for one in SEEDS]
    cases += [(f"sample(hops={one!r})", lambda one=one: small_task.sample(4, one, seed=0)) for one in HOPS]
    letters = (
        "",
        "abz",
        3,
        None,
        [[]],
        ["ab", "a"],
        [[0.5, 1.0]],
        torch.zeros(2, 2, 2, dtype=torch.long),
        [[0, 9]],
        "ab" * 50,
        [None],
        b"ab",
    )
    cases += [(f"from_letters({one!r:.30})", lambda one=one: small_task.from_letters(one, 2)) for one in letters]
    for plan in (None, 3, "quick", {}, small_model):
        cases += [(f"train({type(plan).__name__})", lambda plan=plan: hi.train(plan, tmp_path / "r"))]
    places = (tmp_path / "nowhere", tmp_path, "", "\x00", "x" * 300)
    for function in (hi.resume, hi.load, hi.load_fused, hi.load_verdict, hi.load_decompiled, hi.import_gpt2):
        cases += [(f"{function.__name__}({one!r:.30})", lambda f=function, one=one: f(one)) for one in places]
    cases += [
        (f"save({one!r:.30})", lambda one=one: hi.save(one, small_model, small_task, {}))
        for one in ("\x00", "x" * 300, tmp_path, "")
    ]
    cases += [
        (f"made={one!r:.30}", lambda one=one: hi.save(tmp_path / "s", small_model, small_task, one))
        for one in (None, 3, {"hops": 99})
    ]
    cases += [("made of what is no JSON", lambda: hi.save(tmp_path / "s", small_model, small_task, {"how": object()}))]
    for one in (True, 2.0, "2", -1, 99):
        cases += [(f"construct({one!r})", lambda one=one: hi.construct(small_task, one))]
        cases += [(f"draw_pairs({one!r})", lambda one=one: hi.draw_pairs(small_task, one, 4))]
    assert "\n".join(faults(cases)) == ""
    assert not list(tmp_path.iterdir())
