"""A hook of the user's that raises passes through whatever was at work, and no hook but the user's is there afterwards."""

import pytest

import hopinterp as hi


class Mine(Exception):
    """What no part of the package raises or catches."""


WORK = {
    "evaluate": lambda model, task: hi.evaluate(model, task, [1], 2),
    "align": lambda model, task: hi.align(model, task, 1, 2),
    "probe": lambda model, task: hi.probe(model, task, 1, train_sequences=20, sequences=20),
    "patch": lambda model, task: hi.patch(model, task, 1, sequences=4),
    "transplant": lambda model, task: hi.transplant(model, task, 1, sequences=20),
    "ablate": lambda model, task: hi.ablate(model, task, 1, sequences=4),
}


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("name", WORK)
def test_it_passes_through_and_nothing_is_left(small_model, small_task, name, last):
    model, calls, at = small_model.spec.build(small_model.parameters), 0, 0

    def mine(value, hook):  # noqa: ARG001
        nonlocal calls
        calls += 1
        if calls == at:
            raise Mine
        return value

    model.hook_dict["blocks.1.hook_resid_post"].add_hook(mine)
    WORK[name](model, small_task)
    assert calls
    at, calls = calls if last else 1, 0
    with pytest.raises(Mine):
        WORK[name](model, small_task)
    left = {place: len(point.fwd_hooks) + len(point.bwd_hooks) for place, point in model.hook_dict.items()}
    assert {place for place, count in left.items() if count} == {"blocks.1.hook_resid_post"}
    assert left["blocks.1.hook_resid_post"] == 1
