"""Subspaces: the search finds a pointer whose place is known, and its controls find nothing."""

import numpy as np
import pytest
import torch
import xarray as xr

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.evidence.transplants.alignment_search import transplant_subspaces
from hopinterp.theory.construction import Construction


@pytest.fixture(scope="module")
def made():
    """Lookup at k = 4: block 2 holds the pointer to find²(i), in four coordinates."""
    return Construction.of(hi.HopTask(n_letters=30, alphabet_size=4, max_hops=4), 4, "lookup")


@pytest.fixture(scope="module")
def found(made):
    task = made.program.task
    return transplant_subspaces(made.fused, task, 4, 2, 2, "pointer", dimensions=[4, 16], steps=300)


def test_the_search_finds_the_pointer(made, found):
    one = found.sel(family="pointer", hop=2)
    iia = {(m, int(d)): float(x) for m, d, x in zip(one.method.values, one.dimension.values, one.iia, strict=True)}
    width = made.fused.spec.d_model
    assert iia["full", width] > 0.99
    assert iia["search", 16] > 0.99
    assert iia["search", 4] > 0.85
    assert max(iia["random", 4], iia["random", 16]) < 0.6
    where = made.subspaces["pointer_2"]
    basis = found.basis.isel(subspace=one.method.values.tolist().index("search"), axis=slice(4)).values
    within = np.square(basis[where]).sum() / 4  # the share of the subspace that lies in the pointer's coordinates
    assert within > 0.7


def test_the_controls_find_nothing(found):
    one = found.sel(family="pointer", hop=2)
    assert (one.untrained < one.chance + 0.05).all()
    others = found.sel(family="pointer", hop=[0, 1, 3]).isel(subspace=0)
    assert (others.iia < 0.5).all()


def test_bases_are_orthonormal_and_runs_repeat(made):
    task = made.program.task
    twice = [transplant_subspaces(made.fused, task, 4, 2, 2, "pointer", [3], steps=5, train_sequences=20) for _ in range(2)]
    for subspace in range(1, twice[0].sizes["subspace"]):
        size = int(twice[0].dimension[subspace])
        basis = twice[0].basis.isel(subspace=subspace, axis=slice(size)).values
        np.testing.assert_allclose(basis.T @ basis, np.eye(size), atol=1e-5)
    np.testing.assert_array_equal(twice[0].basis, twice[1].basis)


def test_gradients_leave_the_model_alone(made):
    assert all(p.grad is None for p in made.fused.parameters.values())
    state = torch.random.get_rng_state()
    transplant_subspaces(made.fused, made.program.task, 4, 2, 2, "pointer", [2], steps=2, train_sequences=20, sequences=20)
    assert torch.equal(state, torch.random.get_rng_state())


def test_bad_questions_are_named(made):
    model, task = made.fused, made.program.task
    with pytest.raises(HopInterpError, match="layer is 9; this model has 0 to 3"):
        transplant_subspaces(model, task, 4, 9, 2)
    with pytest.raises(HopInterpError, match="hop is 5; it must be 0 to 4"):
        transplant_subspaces(model, task, 4, 2, 5)
    with pytest.raises(HopInterpError, match="family is 'letter'"):
        transplant_subspaces(model, task, 4, 2, 2, "letter")
    with pytest.raises(HopInterpError, match="a subspace of 99 dimensions"):
        transplant_subspaces(model, task, 4, 2, 2, dimensions=[99])
    hooked = model.spec.build(model.parameters)
    hooked.add_hook("blocks.1.hook_resid_post", lambda value, hook: value)  # noqa: ARG005
    with pytest.raises(HopInterpError, match="a search for subspaces needs the model's weights"):
        transplant_subspaces(hooked, task, 4, 2, 2)


def test_results_can_be_kept_and_progress_reaches_its_end(made, tmp_path):
    seen = []
    settings = {"steps": 2, "train_sequences": 20, "sequences": 20, "report": seen.append}
    found = transplant_subspaces(made.fused, made.program.task, np.int64(4), 2, 2, "pointer", [1, 2], **settings)
    assert [(now.what, now.done, now.total) for now in seen] == [("searching subspaces", n, 8) for n in range(1, 9)]
    found.to_netcdf(tmp_path / "found.nc")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "found.nc"), found)
    assert all("long_name" in variable.attrs for variable in found.variables.values())
    assert (found.attrs["hops"], found.attrs["layer"], found.attrs["hop"], found.attrs["steps"]) == (4, 2, 2, 2)
