"""What is shown of a sweep: a table, its reading, a figure with the spread over seeds."""

import numpy as np
import pytest
import xarray as xr

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.views import frames, sweeps


@pytest.fixture
def found():
    """Two depths with three seeds each, as `sweep` returns them; one cell has failed."""
    names = [f"layers={depth},seed={seed}" for depth in (2, 3) for seed in range(3)]
    error = np.array([[0.0, 0.2 + 0.1 * seed, 0.5] for seed in range(3)] + [[0.0, 0.0, 0.1 * seed] for seed in range(3)])
    error[5] = np.nan
    shape, done = error.shape, np.isfinite(error)
    words = np.full(shape, "", dtype="U30")
    values = {
        "error": error,
        "low": error,
        "high": error,
        "solved": done & (error <= 0.01),
        "verdict": np.where(error[:, :] == 0, "doubling", words),
        "form": np.where(error[:, :] == 0, "successor", words),
        "pace": words,
        "explained": done & (error == 0),
        "derivations": np.where(error == 0, "1+1", words),
    }
    coords = {"cell": names, "hops": [1, 2, 3], "layer": [0, 1, 2]}
    made = xr.Dataset({name: (("cell", "hops"), value) for name, value in values.items()}, coords)
    made = made.assign_coords(layers=("cell", [2, 2, 2, 3, 3, 3]), seed=("cell", [0, 1, 2] * 2))
    reach = np.full((*shape, 3), np.nan)
    reach[:3, 0, :2], reach[3:5, 1] = [0, 1], [0, 1, 2]
    by_cell: dict[str, list] = {
        "status": ["done"] * 5 + ["failed"],
        "failure": [""] * 5 + ["it diverged"],
        "device": ["cpu"] * 6,
    }
    by_cell |= {"seconds": [60.0] * 5 + [np.nan], "cpu_seconds": [50.0] * 6, "tokens": [9.0] * 6, "threads": [1] * 6}
    made = made.assign({name: ("cell", value) for name, value in by_cell.items()})
    return made.assign(reach=(("cell", "hops", "layer"), reach)).assign_attrs(
        settings='{"d_model": 8}', version="0", distinct=0
    )


def test_the_reading_counts_seeds(found):
    depth2, depth3, last = sweeps.sweep_reading(found).splitlines()
    assert depth2 == "depth 2: 3 of 3 solve k = 1; at k = 1: 3 doubling (successor)."
    assert depth3.startswith(
        "depth 3: 1 of 2 solve k ≤ 3; 1 of 2 solve k ≤ 2; at k = 1: 2 doubling (successor); at k = 2: 2 "
    )
    assert last == "5 of 6 cells done, 1 failed."


def test_the_table_has_a_row_a_cell(found):
    shown = str(hi.show(found))
    rows = [line.split() for line in shown.splitlines() if "layers=" in line]
    assert [row[0] for row in rows] == found.cell.values.tolist()
    assert rows[0][1:] == [
        "done",
        "k",
        "=",
        "1",
        "doubling",
        "(successor)",
        "at",
        "k",
        "=",
        "1",
        "1",
        "0",
        "1",
        "1+1",
        "1.0",
    ]
    assert "2 doubling (successor)" in " ".join(rows[4])
    assert rows[5] == ["layers=3,seed=2", "failed"]
    assert shown.splitlines()[-1] == "5 of 6 cells done, 1 failed."


def test_the_table_has_settings_that_names_do_not_tell(found):
    assert "depth 2, seed 0" not in str(hi.show(found))
    named = found.assign_coords(cell=["seed=0", "seed=1", "seed=2", *found.cell.values[3:]])  # of a grid of one depth, once
    rows = [line for line in str(hi.show(named)).splitlines() if "seed=" in line]
    assert rows[1].split()[:5] == ["seed=1", "depth", "2,", "seed", "1"]
    assert "depth 3, seed 2" in rows[5]


def test_the_figure_has_a_band_from_the_least_to_the_largest(found):
    figure = hi.plot.sweep(found, {"depth 2": {1: 0.0, 2: 0.4}}, title="seeds")
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines if str(line.get_label()).startswith("depth")}
    assert set(lines) == {"depth 2", "depth 3", "depth 2, published"}
    np.testing.assert_allclose(lines["depth 2"].get_ydata(), [0, 30, 50])
    np.testing.assert_allclose(lines["depth 3"].get_ydata(), [0, 0, 5])  # of the seeds that are done
    np.testing.assert_allclose(lines["depth 2, published"].get_ydata(), [0, 40])
    assert lines["depth 2, published"].get_color() == lines["depth 2"].get_color()
    heights = [set(band.get_paths()[0].vertices[:, 1].round(6)) for band in axes.collections]
    assert {20.0, 40.0} <= heights[0]
    assert figure.legends[0].get_texts()[-1].get_text() == "least to largest of 2 to 3 seeds"
    mixed = sweeps.figure(found.isel(cell=[0, 1, 3])).legends[0].get_texts()[-1].get_text()
    assert mixed == "least to largest of 2 seeds,\nof one seed its 95% interval"
    one = sweeps.figure(found.isel(cell=[0]))
    assert one.legends[0].get_texts()[-1].get_text() == "95% interval"
    with pytest.raises(HopInterpError, match="no cell is done"):
        sweeps.figure(found.isel(cell=[5]))


def test_settings_that_follow_others_are_not_named(found):
    wide = found.assign_coords(d_model=("cell", [8, 8, 8, 16, 16, 16]), heads=("cell", [1, 1, 1, 2, 2, 2]))
    assert sweeps.sweep_reading(wide).startswith("depth 2: ")
    both = found.assign_coords(d_model=("cell", [8, 8, 16, 8, 8, 16]), heads=("cell", [1, 1, 2, 1, 1, 2]))
    assert [line.partition(":")[0] for line in sweeps.sweep_reading(both).splitlines()[:-1]] == [
        "depth 2, width 8",
        "depth 2, width 16",
        "depth 3, width 8",
    ]
    curriculum = ("cell", [True, True, False] * 2)  # which the samples imply, though it comes before them
    fixed = found.assign_coords(curriculum=curriculum, samples=("cell", [0, 0, 1000] * 2))
    assert "depth 2, fresh samples: " in sweeps.sweep_reading(fixed)
    assert "depth 2, 1,000 samples: " in sweeps.sweep_reading(fixed)


def test_json_and_csv(found):
    told = sweeps.sweep_json(found)
    assert (told["settings"], told["version"], told["measured"]) == ({"d_model": 8}, "0", {"distinct": 0})
    assert told["cells"]["layers=3,seed=1"]["settings"] == {"layers": 3, "seed": 1}
    assert told["cells"]["layers=3,seed=1"]["by_hops"]["2"]["reach"] == [0, 1, 2]
    frame = frames.of_sweep(found)
    assert len(frame) == 18
    assert frame[(frame.cell == "layers=3,seed=1") & (frame.hops == 2)].reach.item() == "0 1 2"
    bare = found.drop_vars([name for name in found.data_vars if "hops" in found[name].dims])
    assert len(frames.of_sweep(bare)) == 6
