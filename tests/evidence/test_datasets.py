"""What every result carries."""

import xarray as xr

from hopinterp.evidence.datasets import described
from hopinterp.models.subject import Subject


def test_results_say_whose_they_are_and_what_their_variables_mean(small_model, small_task, tmp_path):
    bare = xr.Dataset({name: ("layer", [0.0, 1.0]) for name in ("low", "logit_difference", "mine")}, {"layer": [0, 1]})
    subject = Subject.of(small_model, small_task, name="small")
    own = {"mine": "what I measure", "low": "lower end of mine"}
    found = described(bare, subject, small_task, seed=7, long_names=own, bar=0.25, shuffled=True)
    names = {name: variable.attrs["long_name"] for name, variable in found.variables.items()}
    assert (names["mine"], names["low"]) == ("what I measure", "lower end of mine")
    assert names["layer"] == "block, counted from 0"
    assert {name for name, variable in found.variables.items() if "units" in variable.attrs} == {"logit_difference"}
    assert found.logit_difference.attrs["units"] == "nats"
    assert found.attrs.pop("version")
    assert found.attrs.pop("model_digest") == small_model.digest()
    sizes = {"n_letters": 20, "alphabet_size": 4, "max_hops": 4}
    assert found.attrs == {"model": "small", **sizes, "seed": 7, "bar": 0.25, "shuffled": 1}
    found.to_netcdf(tmp_path / "found.nc")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "found.nc"), found)
