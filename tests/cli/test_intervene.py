"""patch and transplant: what they print and refuse."""

import pytest


def test_transplant_json(run_json, model):
    found = run_json("transplant", model, "--hops", 2, "--sequences", 20)
    assert found["hops"] == 2
    assert [row["layer"] for row in found["layers"]] == [0, 1]
    for row in found["layers"]:
        for family in ("pointer", "content", "occurrence"):
            assert set(row[family]) == set(row["chance"][family]) == set(row["untrained"][family]) == {"0", "1", "2"}
        assert (row["best"], row["family"]) == (None, "none")
        leading = row[row["leading"]["family"]][str(row["leading"]["hop"])]
        assert row["low"] <= leading <= row["high"]
    assert found["settings"]["match"] == "nothing"


def test_transplant_table_and_heads(run, run_json, model):
    _, out, _ = run("transplant", model, "--hops", 2, "--sequences", 20, "--layer", 1)
    assert "At k = 2: block 1 none." in out
    found = run_json("transplant", model, "--hops", 2, "--sequences", 20, "--heads", "--match", "letter")
    assert [(row["layer"], row["head"]) for row in found["layers"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_patch_json(run_json, model, tmp_path):
    arguments = ("patch", model, "--hops", 2, "--sequences", 20, "--plot", tmp_path / "cone.svg")
    found = run_json(*arguments)
    assert (found["site"], found["by"], found["metric"]) == ("resid_post", "chain", "probability")
    assert found["axes"] == ["layer", "chain", "where"]
    assert [len(found["effect"]), len(found["effect"][0]), len(found["low"][0][0])] == [2, 3, 2]
    assert found["settings"]["direction"] == "noising"
    assert (tmp_path / "cone.svg").read_text().startswith("<?xml")
    assert run_json(*arguments) == found


def test_patch_by_position_and_head(run, run_json, model):
    settings = ("--site", "z", "--by", "position", "--pairs", "one-link", "--link", 2, "--sequences", 5)
    found = run_json("patch", model, "--hops", 2, *settings)
    assert found["axes"] == ["layer", "head", "position"]
    assert [len(found["effect"]), len(found["effect"][0]), len(found["effect"][0][0])] == [2, 2, 21]
    assert (found["metric"], found["settings"]["link"]) == ("logit_difference", 2)
    status, out, _ = run("patch", model, "--hops", 2, *settings)
    assert status == 0
    assert "Effect of patching z (denoising, 5 one-link pairs, k = 2) on the answer's logit difference" in out


def test_patch_table(run, doubling):
    status, out, _ = run("patch", doubling, "--hops", 4, "--sequences", 20)
    assert status == 0
    assert "off chain" in out
    assert "The answer at i hangs on chain positions: block 0: " in out


def test_patch_says_that_an_untrained_model_has_no_scale(run, model):
    _, out, _ = run("patch", model, "--hops", 2, "--sequences", 20, "--metric", "logit_difference")
    assert "Nothing to measure: the model's logit difference does not tell the clean from the corrupt sequences." in out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("--metric", "loss"), "it is one of logit_difference, probability, accuracy"),
        (("--site", "resid"), "it is one of resid_pre"),
        (("--pairs", "swap"), "--pairs is 'swap'; it is one of resample, one-link"),
        (("--direction", "both"), "--direction is 'both'; it is one of noising, denoising"),
        (("--link", "1"), "it is for one-link pairs"),
        (("--by", "head"), "--by is 'head'; it is one of position, chain, all"),
    ],
)
def test_patch_refuses(refused, model, settings, message):
    assert message in refused("patch", model, "--hops", 2, *settings)
