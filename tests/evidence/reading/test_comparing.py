"""Errors side by side: the differences, their intervals, and what cannot be compared."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import hopinterp as hi
from hopinterp import HopInterpError


@pytest.fixture(scope="module")
def found(small_model, small_task):
    solves = hi.construct(small_task, 4, algorithm="successor")
    return {name: hi.evaluate(model, small_task, sequences=20) for name, model in {"m": small_model, "s": solves}.items()}


def test_differences(found, tmp_path):
    compared = hi.compare(found)
    assert dict(compared.sizes) == {"model": 2, "hops": 4}
    assert compared.attrs["compared_with"] == "m"
    assert not compared.isel(model=0).differs.any()
    m, s = found["m"], found["s"]
    other = compared.sel(model="s")
    np.testing.assert_allclose(other.difference, s.error - m.error)
    # Newcombe's: from the two intervals alone
    np.testing.assert_allclose(
        other.difference_low, other.difference - np.sqrt((s.error - s.low) ** 2 + (m.high - m.error) ** 2)
    )
    np.testing.assert_allclose(
        other.difference_high, other.difference + np.sqrt((s.high - s.error) ** 2 + (m.error - m.low) ** 2)
    )
    assert other.differs.values.tolist() == ((other.difference_low > 0) | (other.difference_high < 0)).values.tolist()
    assert bool(other.sel(hops=4).differs)
    compared.to_netcdf(tmp_path / "c.nc")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "c.nc"), compared)


def test_a_model_and_itself(found):
    compared = hi.compare({"a": found["m"], "b": found["m"]})
    assert not compared.differs.any()
    assert (compared.difference == 0).all()
    assert (compared.sel(model="b").difference_low < 0).all()


def test_chance_alone_is_seldom_a_difference(small_model, small_task):
    """Two seeds of one model: 95% intervals leave out 0 no oftener than that."""
    seeds = [hi.evaluate(small_model, small_task, [1, 2], sequences=10, seed=seed) for seed in range(30)]
    pairs = [
        hi.compare({"a": a, "b": b.assign_attrs(seed=a.attrs["seed"])}) for a, b in zip(seeds[::2], seeds[1::2], strict=True)
    ]
    assert sum(int(pair.differs.sum()) for pair in pairs) <= 4  # of 30


def test_only_shared_k_are_compared(found):
    assert hi.compare({"m": found["m"], "s": found["s"].sel(hops=[2, 4])}).hops.values.tolist() == [2, 4]


def test_other_tasks_are_said_to_be_others(found, small_task):
    longer = replace(small_task, n_letters=30)
    known = hi.evaluate(hi.construct(longer, 4, algorithm="lookup"), longer, sequences=20)
    assert hi.compare(found).attrs["same_task"] == 1
    assert hi.compare({"s": found["s"], "l": known}).attrs["same_task"] == 0


def test_what_cannot_be_compared(found, small_model, small_task):
    with pytest.raises(HopInterpError, match="fewer than two"):
        hi.compare({"m": found["m"]})
    with pytest.raises(HopInterpError, match="another seed: 1 and 0"):
        hi.compare({"m": found["m"], "n": hi.evaluate(small_model, small_task, sequences=20, seed=1)})
    with pytest.raises(HopInterpError, match="no k at which all"):
        hi.compare({"m": found["m"].sel(hops=[1]), "s": found["s"].sel(hops=[2])})
