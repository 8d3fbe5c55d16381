"""While tests run, a tensor of a wrong shape or dtype is caught where it is handed over or returned."""

from dataclasses import replace

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from hopinterp.evidence.intervals import bootstrap, korn_graubard

from .executed_shapes import checked


def test_a_wrong_shape_is_caught(small_task, small_model):
    rates = torch.zeros(5, 2)
    assert bootstrap(rates, rates + 1, seed=0)[0].shape == (2,)
    with pytest.raises(TypeCheckError, match="counted"):
        korn_graubard(rates, torch.ones(4, 2))
    with pytest.raises(TypeCheckError, match="tokens"):
        small_model.embed(torch.zeros(1, 5))
    batch = small_task.sample(2, hops=1, seed=0)
    with pytest.raises(TypeCheckError, match="labels"):
        replace(batch, labels=batch.labels[:, :3])


def test_what_is_returned_is_checked_too():
    def twice(x: Float[Tensor, "row column"]) -> tuple[Float[Tensor, "column row"], int]:
        return torch.cat([x, x]), len(x)

    with pytest.raises(TypeCheckError, match=r"twice: what it returns is a tuple"):
        checked(twice)(torch.zeros(2, 3))


def test_functions_without_shapes_are_left_alone():
    def plain(x: int, y: Tensor) -> None: ...

    assert checked(plain) is plain
