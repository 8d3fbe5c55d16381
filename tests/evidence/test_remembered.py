"""What was measured is found again to the last bit, and nothing is found for anything else."""

import dataclasses
import os

import numpy as np
import pytest
import torch
import xarray as xr

import hopinterp as hi
from hopinterp.evidence import remembered
from hopinterp.files import digest
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.subject import Subject

MEASURES = {
    "evaluate": lambda model, task: hi.evaluate(model, task, [1, 2], sequences=4, distinct=4),
    "align": lambda model, task: hi.align(model, task, 2, sequences=2),
    "probe": lambda model, task: hi.probe(model, task, 1, method="ridge", train_sequences=4, sequences=4),
    "patch": lambda model, task: hi.patch(model, task, 1, by="chain", sequences=4),
    "transplant": lambda model, task: hi.transplant(model, task, 1, sequences=4),
    "transplant of heads": lambda model, task: hi.transplant(model, task, 1, heads=True, sequences=4),
}


def found(cache, measure, *given, **settings):
    """What is measured within a cache, and how often it came from there."""
    with hi.cached(cache) as used:
        return measure(*given, **settings), len(used.found)


def evaluated(cache, model, task, **settings):
    return found(cache, hi.evaluate, model, task, **{"hops": [1, 2], "sequences": 4} | settings)


def exactly(found):
    """All of a Dataset, types and order included."""
    variables = [(name, v.dims, v.dtype.str, v.values.tolist(), repr(v.attrs)) for name, v in found.variables.items()]
    return repr((dict(found.sizes), list(found.data_vars), list(found.coords), found.attrs, variables))


@pytest.mark.parametrize("name", MEASURES)
def test_it_comes_back_to_the_last_bit(name, tmp_path, small_model, small_task):
    plain = MEASURES[name](small_model, small_task)
    first, served = found(tmp_path, MEASURES[name], small_model, small_task)
    again, served_again = found(tmp_path, MEASURES[name], small_model, small_task)
    assert (served, served_again) == (0, 1)
    assert exactly(plain) == exactly(first) == exactly(again)
    xr.testing.assert_identical(plain, again)
    assert plain.to_dataframe().to_csv() == again.to_dataframe().to_csv()
    assert all(array.flags.writeable for array in (again[name].values for name in again.data_vars))


def test_outside_everything_is_measured(tmp_path, small_model, small_task, monkeypatch):
    evaluated(tmp_path, small_model, small_task)
    before = sorted(os.listdir(tmp_path))
    hi.evaluate(small_model, small_task, [1, 2], sequences=3)
    assert sorted(os.listdir(tmp_path)) == before
    monkeypatch.chdir(tmp_path)
    with hi.cached() as used:  # the suite runs with HOPINTERP_CACHE=off
        hi.evaluate(small_model, small_task, [1, 2], sequences=3)
    assert used is None
    monkeypatch.setenv("HOPINTERP_CACHE", "here")
    for served in (0, 1):
        with hi.cached() as used:
            hi.evaluate(small_model, small_task, [1, 2], sequences=3)
        assert len(used.found) == served
    assert used.directory == tmp_path / "here"


@pytest.mark.parametrize(
    "change",
    [
        {"sequences": 5},
        {"seed": 1},
        {"hops": [2, 1]},
        {"hops": [1, 3]},
        {"dropout": 0.1},
        {"distinct": 2},
    ],
    ids=str,
)
def test_another_setting_is_measured(change, tmp_path, small_model, small_task):
    evaluated(tmp_path, small_model, small_task)
    settings = {"hops": [1, 2], "sequences": 4} | change
    again, served = evaluated(tmp_path, small_model, small_task, **settings)
    assert served == 0
    assert exactly(again) == exactly(hi.evaluate(small_model, small_task, **settings))


def test_the_same_settings_in_other_words_are_found(tmp_path, small_model, small_task):
    with hi.cached(tmp_path):
        hi.evaluate(small_model, small_task, range(1, 3), 4)
    for words in ({"hops": (1, 2)}, {"seed": 0}, {"hops": [np.int64(1), 2]}, {"sequences": np.int32(4)}, {"dropout": 0.0}):
        assert evaluated(tmp_path, small_model, small_task, **words)[1] == 1, words
    with hi.cached(tmp_path) as used:
        hi.patch(small_model, small_task, 1, by="chain", sequences=4)
        hi.patch(small_model, small_task, 1, by="chain", sequences=4, pairs="resample", link=None, position=None)
    assert len(used.found) == 1


def test_other_weights_sizes_names_and_tasks_are_measured(tmp_path, small_model, small_task):
    evaluated(tmp_path, small_model, small_task)
    parameters = {name: p.clone() for name, p in small_model.parameters.items()}
    same = FusedTransformer(small_model.spec, parameters)
    assert evaluated(tmp_path, same, small_task)[1] == 1
    last = parameters["blocks.1.attn.W_O"].view(-1)[-1:]
    last.copy_(torch.nextafter(last, torch.tensor([torch.inf])))  # in place, by one bit
    changed, served = evaluated(tmp_path, same, small_task)
    assert served == 0
    assert changed.attrs["model_digest"] != hi.evaluate(small_model, small_task, 1, sequences=2).attrs["model_digest"]
    wider = FusedTransformer(dataclasses.replace(small_model.spec, eps=1e-4), small_model.parameters)
    assert evaluated(tmp_path, wider, small_task)[1] == 0
    named, served = evaluated(tmp_path, Subject.of(small_model, small_task, name="mine"), small_task)
    assert (served, named.attrs["model"]) == (0, "mine")
    shorter = dataclasses.replace(small_task, n_letters=19)
    assert evaluated(tmp_path, small_model, shorter)[1] == 0


@pytest.mark.parametrize("what", ["code", "versions", "threads"])
def test_other_code_versions_and_threads_are_measured(what, tmp_path, small_model, small_task, monkeypatch):
    evaluated(tmp_path, small_model, small_task)
    if what == "code":
        monkeypatch.setattr(remembered, "_LOADED", "another")
        monkeypatch.setattr(remembered, "_source", lambda: "another")
    elif what == "versions":
        monkeypatch.setattr(remembered, "_versions", lambda: {"torch": "1.0"})
    else:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert evaluated(tmp_path, small_model, small_task)[1] == 0
    assert evaluated(tmp_path, small_model, small_task)[1] == 1


def test_code_that_is_edited_while_it_runs_is_neither_kept_nor_looked_up(tmp_path, small_model, small_task, monkeypatch):
    package = tmp_path / "package"
    (package / "evidence").mkdir(parents=True)
    (package / "cli").mkdir()
    (package / "evidence" / "a.py").write_text("1")
    (package / "cli" / "b.py").write_text("1")
    monkeypatch.setattr(remembered, "_PACKAGE", package)
    monkeypatch.setattr(remembered, "_LOADED", remembered._source())
    evaluated(tmp_path / "c", small_model, small_task)
    (package / "cli" / "b.py").write_text("2")  # on which no evidence depends
    assert evaluated(tmp_path / "c", small_model, small_task)[1] == 1
    (package / "evidence" / "a.py").write_text("2")
    for _ in range(2):
        assert evaluated(tmp_path / "c", small_model, small_task)[1] == 0
    assert len(os.listdir(tmp_path / "c")) == 1
    monkeypatch.setattr(remembered, "_PACKAGE", tmp_path / "nothing")  # no source to be read: nothing is known of the code
    monkeypatch.setattr(remembered, "_LOADED", remembered._source())
    assert evaluated(tmp_path / "c2", small_model, small_task)[1] == 0
    assert not (tmp_path / "c2").exists()


def test_what_no_key_can_tell_is_measured_each_time(tmp_path, small_model, small_task):
    class Mine(FusedTransformer):
        """Whose code is its user's."""

    hooked = FusedTransformer(small_model.spec, small_model.parameters)
    mine = Mine(small_model.spec, small_model.parameters)
    for model in (lambda tokens: small_model(tokens), mine):
        assert [evaluated(tmp_path, model, small_task)[1] for _ in range(2)] == [0, 0]
    evaluated(tmp_path, hooked, small_task)
    kept = len(os.listdir(tmp_path))
    with hooked.hooks([("blocks.0.hook_attn_out", lambda activation, hook: activation * 0)]):  # noqa: ARG005
        without, served = evaluated(tmp_path, hooked, small_task)
        assert served == 0
        assert exactly(without) == exactly(hi.evaluate(hooked, small_task, [1, 2], sequences=4))
    own = {"mine": lambda layer, base, source: source.labels}  # noqa: ARG005
    pairs = hi.draw_pairs(small_task, 1, 4)
    for _ in range(2):
        assert found(tmp_path, hi.transplant, small_model, small_task, 1, sequences=4, predictions=own)[1] == 0
        assert found(tmp_path, hi.patch, small_model, small_task, 1, pairs=pairs)[1] == 0
    assert len(os.listdir(tmp_path)) == kept


def test_a_model_of_transformer_lens_is_kept_unless_it_has_hooks(tmp_path, small_model, small_task):
    model = small_model.spec.build(small_model.parameters)
    assert [found(tmp_path, MEASURES["align"], model, small_task)[1] for _ in range(2)] == [0, 1]
    point = next(iter(model.hook_dict))
    with model.hooks(fwd_hooks=[(point, lambda activation, hook: activation * 2)]):  # noqa: ARG005
        assert found(tmp_path, MEASURES["align"], model, small_task)[1] == 0


def test_what_is_damaged_is_measured_again_and_mended(tmp_path, small_model, small_task):
    plain, _ = evaluated(tmp_path, small_model, small_task)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], data[:-1] + bytes([data[-1] ^ 1]), b"", b"hopinterp result 1 "):
        path.write_bytes(damaged)
        again, served = evaluated(tmp_path, small_model, small_task)
        assert served == 0
        assert exactly(again) == exactly(plain)
        assert path.read_bytes()[-100:] == data[-100:]
        assert evaluated(tmp_path, small_model, small_task)[1] == 1


@pytest.mark.parametrize("record", ["null", "[]", '{"attrs": {}, "variables": {"a": 1}}', '{"variables": {}}', "{"])
def test_a_record_of_another_hand_is_measured_again(record, tmp_path, small_model, small_task):
    """The digest is right, for anybody can reckon it."""
    plain, _ = evaluated(tmp_path, small_model, small_task)
    (path,) = tmp_path.iterdir()
    _, label, _, payload = path.read_bytes().split(b"\n", 3)
    rest = b"\n".join([label, record.encode(), payload])
    path.write_bytes(b"hopinterp result 1 " + digest(rest).encode() + b"\n" + rest)
    again, served = evaluated(tmp_path, small_model, small_task)
    assert (served, exactly(again)) == (0, exactly(plain))


def test_results_that_could_not_come_back_the_same_are_not_kept(tmp_path, small_model, small_task):
    subject = Subject.of(small_model, small_task)
    bare = xr.Dataset({"x": ("layer", [1.0, 2.0])}, {"layer": [0, 1]})
    odd = {
        "a tuple": bare.assign_attrs(pair=(1, 2)),
        "dates": bare.assign(when=("layer", np.array(["2026-01-01", "2026-01-02"], dtype="datetime64[ns]"))),
        "objects": bare.assign(what=("layer", np.array([None, "b"], dtype=object))),
        "no number": bare.assign_attrs(x=float("nan")),
        "numpy's": bare.assign_attrs(x=np.int64(3)),
    }
    for what, dataset in odd.items():
        for _ in range(2):
            with hi.cached(tmp_path / "c") as used:
                got = remembered.recall(what, subject, small_task, {}, remembered.DATASETS, lambda one=dataset: one)
            assert got is dataset, what
            assert not used.found, what
    assert not (tmp_path / "c").exists()


def test_errors_are_as_without_a_cache_and_not_kept(tmp_path, small_model, small_task, refuses):
    with hi.cached(tmp_path / "c"):
        for _ in range(2):
            with refuses("hops is 9"):
                hi.evaluate(small_model, small_task, 9)
            with refuses("the order is"):
                hi.evaluate(small_task, small_model)
        with pytest.raises(TypeError):
            hi.evaluate(small_model, small_task, nonsense=1)
    assert not (tmp_path / "c").exists()


def test_a_place_that_cannot_be_written_warns_once_and_changes_nothing(tmp_path, small_model, small_task):
    (tmp_path / "c").write_bytes(b"x")
    with pytest.warns(RuntimeWarning, match="the cache .* cannot be written") as said, hi.cached(tmp_path / "c"):
        results = [hi.evaluate(small_model, small_task, [1, 2], sequences=n) for n in (4, 5)]
    assert len(said) == 1
    assert exactly(results[0]) == exactly(hi.evaluate(small_model, small_task, [1, 2], sequences=4))


def test_progress_ends_at_its_end_either_way(tmp_path, small_model, small_task):
    for _ in range(2):
        told = []
        evaluated(tmp_path, small_model, small_task, report=told.append)
        assert told[-1].done == told[-1].total
