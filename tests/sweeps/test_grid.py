"""Grids: what a file says becomes cells, and what is wrong is refused in one line that names the cell."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hopinterp import HopInterpError, TrainConfig
from hopinterp.sweeps.grid import MOST_CELLS, PAPER, After, Grid


def names(grid):
    return [cell.name for cell in grid.cells]


def test_every_combination_is_a_cell(tiny):
    grid = Grid.of_table(tiny(layers=[1, 2], seed="0-1,4"))
    assert names(grid) == [f"layers={depth},seed={seed}" for depth in (1, 2) for seed in (0, 1, 4)]
    assert all(cell.config.d_model == 8 and cell.config.steps == 12 for cell in grid.cells)  # a scalar is shared
    assert [(cell.config.layers, cell.config.seed) for cell in grid.cells] == [(d, s) for d in (1, 2) for s in (0, 1, 4)]
    assert grid.after == After(sequences=20)


def test_a_file_says_the_same(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text('preset = "quick"\nlayers = [1, 2]\nseed = "0-1"\nlr = 1\n[after]\nverify = true\ndecompile = [1, 3]\n')
    grid = Grid.read(path)
    assert names(grid) == ["layers=1,seed=0", "layers=1,seed=1", "layers=2,seed=0", "layers=2,seed=1"]
    assert grid.cells[3].config == TrainConfig.preset("quick", layers=2, seed=1, lr=1)
    assert grid.after == After(verify="granted", decompile="1,3")
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid


def test_a_pair_is_one_value_and_pairs_are_several(tiny):
    assert len(Grid.of_table(tiny(short_until=[0.1, 0.4])).cells) == 1
    both = Grid.of_table(tiny(short_until=[[0.1, 0.4], [0.0, 0.0]]))
    assert [cell.config.short_until for cell in both.cells] == [(0.1, 0.4), (0.0, 0.0)]
    assert names(both) == ["short_until=0.1-0.4", "short_until=0.0-0.0"]


def test_tables_are_grids_of_their_own_and_a_name_has_what_tells_cells_apart(tiny):
    deep = [{"layers": 1, "steps": 5}, {"layers": 2, "steps": 9, "seed": 3}]
    grid = Grid.of_table(tiny(seed=[0, 1], grid=deep))
    assert names(grid) == ["layers=1,seed=0", "layers=1,seed=1", "layers=2,seed=3"]
    assert [cell.config.steps for cell in grid.cells] == [5, 5, 9]
    presets = Grid.of_table({"preset": ["full", "paper"], "layers": 2})
    assert names(presets) == ["preset=full", "preset=paper"]
    fixed = Grid.of_table({"samples": [0, 1000]})  # which takes the curriculum away too
    assert names(fixed) == ["samples=0", "samples=1000"]
    assert names(Grid.of_table(tiny())) == ["seed=0"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"layer": 2}, "a grid has no setting 'layer'; did you mean layers?"),
        ({"layers": [2, 0]}, "^cell layers=0: "),
        ({"layers": [1, 2], "heads": [1, 3]}, "^cell heads=3,layers=1: 3 heads were given"),
        ({"layers": "1-2", "lr": [0.1, -1.0]}, "^cell layers=1,lr=-1.0: lr is -1.0; it must be above 0"),
        ({"layers": "two"}, "layers is 'two'; a range of it is such as 0-7"),
        ({"layers": []}, "layers has no value"),
        ({"layers": "3-1"}, "layers has no value"),
        ({"seed": "0-999999999"}, "more than 10,000 values"),
        ({"seed": "0-200", "layers": "1-100"}, "20,100 cells; at most 10,000"),
        ({"seed": [1, 1]}, "two cells are the same"),
        ({"log_every": [1, 2]}, "two cells are the same, but for what is recorded of them: log_every=1 and log_every=2"),
        ({"max_hops": [3, 8], "after": {"verify": 7}}, "^cell max_hops=3: verify is 7; its k go up to 3"),
        ({"preset": "quik"}, "no preset 'quik'; there are full, quick, paper, first"),
        ({"lr": "fast"}, "lr is 'fast'; it must be a number"),
        ({"seed": True}, "seed is True; it must be a whole number"),
        ({"grid": {"layers": 2}}, "grid is no list of tables"),
        ({"grid": [{"layres": 2}]}, "no setting 'layres'"),
        ({"after": 3}, "after is no table"),
        ({"after": {"evaluate": 3}}, r"\[after\] has no setting 'evaluate'"),
        ({"after": {"sequences": 1}}, "sequences is 1"),
        ({"after": {"verify": "most"}}, "verify is 'most'; it is granted, solved, all, or numbers"),
        ({"after": {"verify": 3.5}}, "verify is 3.5"),
        ({"alphabet": [2, 3], "after": {"verify": True}}, "cell alphabet=2: alphabet is 2; verify needs 3"),
    ],
)
def test_what_is_wrong_is_one_line(tiny, changed, words):
    with pytest.raises(HopInterpError, match=words) as refused:
        Grid.of_table(tiny(**changed))
    assert "\n" not in str(refused.value)
    assert MOST_CELLS == 10_000


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=6) | st.dates()
    | st.sampled_from(["0-7", "3-1", "0-999999999", "granted", "all", "full", "muon"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip
KEYS = st.sampled_from([*(one.name for one in fields(TrainConfig)), "preset", "grid", "after", "odd", ""])


def given_or_refused(table):
    try:
        return Grid.of_table(table)
    except HopInterpError as error:
        return str(error)


@given(st.dictionaries(KEYS, JUNK, max_size=4))
@settings(max_examples=60)
def test_whatever_is_given_is_a_grid_or_one_line(table):
    grid = given_or_refused(table)
    if isinstance(grid, str):
        assert len(grid.splitlines()) == 1
        return
    assert len({cell.name for cell in grid.cells}) == len(grid.cells)
    assert all(name and name == Path(name).name and len(name) < 200 for name in names(grid))
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid


@pytest.mark.parametrize("text", ["layers = [1", "a = 1\na = 2", "x = " + "[" * 9000, "\0"])
def test_no_toml(tmp_path, text):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(HopInterpError, match=r"grid\.toml is no TOML"):
        Grid.read(path)


def test_which_k_are_looked_into():
    def at(asked, **known):
        return After().at(asked, **{"solved": [1, 2, 3], "granted": 7, "most": 8} | known)

    assert (at(""), at("granted"), at("solved"), at("all")) == ([], [7], [1, 2, 3], list(range(1, 9)))
    assert (at("2,0,7-12"), at("3")) == ([2, 7, 8], [3])


def test_the_papers_grids_have_its_sizes():
    """Table 3: parameters by depth and width."""
    width128 = [413_440, 611_712, 809_984, 1_008_256, 1_206_528]
    width256 = [1_613_312, 2_403_072, 3_192_832, 3_982_592, 4_772_352]
    sizes = {(depth, 4): n for depth, n in zip(range(2, 7), width128, strict=True)}
    sizes |= {(depth, 8): n for depth, n in zip(range(2, 7), width256, strict=True)}
    found = {name: Grid.of_preset(name, "paper") for name in PAPER}
    assert {name: len(grid.cells) for name, grid in found.items()} == {
        "paper-depths": 5,
        "paper-widths": 10,
        "paper-samples": 15,
    }
    for grid in found.values():
        for cell in grid.cells:
            assert cell.config.spec.n_parameters == sizes[cell.config.layers, cell.config.heads], cell.name
    assert {cell.config.samples for cell in found["paper-samples"].cells} == {0, 1000, 3000}
    ours = Grid.of_preset("paper-samples", seeds="0-2")
    assert len(ours.cells) == 45
    assert {cell.config.optimizer for cell in ours.cells} == {"muon"}
    with pytest.raises(HopInterpError, match="no preset 'paper'; there are paper-depths, paper-widths, paper-samples"):
        Grid.of_preset("paper")
