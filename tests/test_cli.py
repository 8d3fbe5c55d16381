"""The command as a user types it: what it prints, what it refuses, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from hopinterp import cli
from hopinterp.models import store
from hopinterp.theory.construction import Construction


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process: (exit status, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hopinterp", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        captured = capsys.readouterr()
        return done.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def model(tmp_path, small_model, small_task):
    store.save(tmp_path / "m", small_model, small_task, {"how": "by a test"})
    return tmp_path / "m"


def one_json(output):
    assert output.count("\n") == 1
    return json.loads(output)


def test_eval_json(run, model):
    status, out, err = run("eval", model, "--hops", "1-3", "--sequences", 5, "--json")
    found = one_json(out)
    assert (status, err) == (0, "")
    assert set(found["errors"]) == set(found["low"]) == set(found["high"]) == {"1", "2", "3"}
    for k, error in found["errors"].items():
        assert 0 <= found["low"][k] <= error <= found["high"][k] <= 1
    assert found["settings"]["sequences"] == 5


def test_eval_table(run, model):
    status, out, _ = run("eval", model, "--hops", "2", "--sequences", 5)
    assert status == 0
    assert "error %" in out
    assert "m solves not even k = 2 in eval mode" in out


def test_probe_json(run, model):
    status, out, _ = run(
        "probe", model, "--hops", 2, "--method", "ridge", "--sequences", 10, "--train-sequences", 20, "--json"
    )
    found = one_json(out)
    assert status == 0
    assert found["hops"] == 2
    assert [row["layer"] for row in found["layers"]] == [0, 1]
    for row in found["layers"]:
        assert set(row["accuracy"]) == set(row["baseline"]) == {"0", "1", "2", "3", "4"}
        assert row["held"] == [0]
        assert (row["resolved"], row["frontier"]) == (0, 0)
    assert found["layers"][1]["theory"] == {"lookup": 1, "successor": 1, "sequential": 1}


def test_probe_one_layer(run, model):
    _, out, _ = run("probe", model, "--hops", 2, "--layer", 1, "--sequences", 10, "--train-sequences", 20)
    assert "Block 1 resolves 0 of 2 hops. Theory: lookup 1; successor 1; sequential 1." in out


def test_attention_json(run, model):
    status, out, _ = run("attention", model, "--hops", 2, "--sequences", 5, "--json")
    found = one_json(out)
    assert status == 0
    assert (len(found["scores"]), len(found["scores"][0]), len(found["scores"][0][0])) == (2, 2, 5)
    assert (len(found["scores_valid"][0]), len(found["previous_token"]), len(found["previous_token"][0])) == (2, 2, 2)


def test_transplant_json(run, model):
    status, out, err = run("transplant", model, "--hops", 2, "--sequences", 20, "--json")
    found = one_json(out)
    assert (status, err, found["hops"]) == (0, "", 2)
    assert [row["layer"] for row in found["layers"]] == [0, 1]
    for row in found["layers"]:
        for family in ("pointer", "content", "occurrence"):
            assert set(row[family]) == set(row["chance"][family]) == set(row["untrained"][family]) == {"0", "1", "2"}
        assert (row["best"], row["family"]) == (None, "none")
        leading = row[row["leading"]["family"]][str(row["leading"]["hop"])]
        assert row["low"] <= leading <= row["high"]
    assert found["settings"]["match"] == "nothing"


def test_transplant_table_and_heads(run, model):
    _, out, _ = run("transplant", model, "--hops", 2, "--sequences", 20, "--layer", 1)
    assert "At k = 2: block 1 none." in out
    found = one_json(run("transplant", model, "--hops", 2, "--sequences", 20, "--heads", "--match", "letter", "--json")[1])
    assert [(row["layer"], row["head"]) for row in found["layers"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_undefined_numbers_are_null(run, tmp_path, small_model, small_task):
    from dataclasses import replace

    task = replace(small_task, n_letters=2)
    store.save(tmp_path / "short", small_model, task, {"how": "by a test"})
    _, out, _ = run("attention", tmp_path / "short", "--hops", 1, "--sequences", 5, "--json")
    assert one_json(out)["scores"][0][0][4] is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "--sequences", 4),
        ("attention", "--hops", 2, "--sequences", 4),
        ("probe", "--hops", 2, "--method", "ridge", "--sequences", 8, "--train-sequences", 8),
        ("transplant", "--hops", 2, "--sequences", 20),
    ],
)
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plots_are_written_whole(run, model, tmp_path, arguments, ending):
    command, *rest = arguments
    status, _, _ = run(command, model, *rest, "--plot", tmp_path / f"figure.{ending}")
    assert status == 0
    head = (tmp_path / f"figure.{ending}").read_bytes()[:100]
    assert head.startswith(b"\x89PNG") if ending == "png" else b"<?xml" in head
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"figure.{ending}", "m"]


def test_models_lists_a_folder(run, model):
    status, out, _ = run("models", model.parent)
    assert status == 0
    assert "by a test" in out
    assert set(one_json(run("models", model.parent, "--json")[1])) == {"m"}


def test_import_of_a_paper_checkpoint(run, paper, tmp_path):
    status, out, _ = run("import", paper / "width4-depth3.pt", "--heads", 4, "--out", tmp_path / "d3")
    assert status == 0
    assert "3 blocks, d_model 128, 4 heads. Solves k = 1 to 3" in out
    card = store.read_card(tmp_path / "d3")
    assert card.made["how"] == "imported from width4-depth3.pt"
    assert card.errors["errors"]["3"] < 0.01
    status, out, _ = run("probe", tmp_path / "d3", "--hops", 3)
    assert "Blocks resolve 0, 1, 3 of 3 hops. Theory: lookup 0, 1, 2; successor 0, 1, 3; sequential 0, 1, 2." in out
    status, _, err = run("import", paper / "width4-depth3.pt", "--heads", 4, "--out", tmp_path / "d3")
    assert (status, "exists" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eval", "nowhere"), "no model 'nowhere'"),
        (("eval", "MODEL", "--hops", "5"), "hops is 5; this task has 0 to 4"),
        (("eval", "MODEL", "--hops", "x"), "--hops is 'x'"),
        (("eval", "MODEL", "--hops", "3-1"), "empty range"),
        (("eval", "MODEL", "--sequences", "0"), "at least one sequence"),
        (("eval", "MODEL", "--sequences", "many"), "--sequences"),
        (("eval", "MODEL", "--dropout", "2"), "dropout is 2.0"),
        (("eval", "MODEL", "--device", "abacus"), "--device is 'abacus'"),
        (("eval", "MODEL", "--plot", "nowhere/f.png"), "no directory nowhere"),
        (("eval", "MODEL", "--sequences", "2", "--plot", "f.docx"), "the ending must be one of"),
        (("eval", "MODEL", "--hops", "0", "--sequences", "2", "--plot", "f.png"), "no k above 0"),
        (("eval", "MODEL", "--seed", "99999999999999999999999"), "--seed"),
        (("probe", "MODEL"), "--hops"),
        (("probe", "MODEL", "--hops", "2", "--layer", "7"), "layer is 7; this model has 0 to 1"),
        (("probe", "MODEL", "--hops", "2", "--layer", "-1"), "layer is -1"),
        (("probe", "MODEL", "--hops", "2", "--target", "colour"), "target is 'colour'"),
        (("attention", "MODEL", "--hops", "99"), "hops is 99"),
        (("transplant", "MODEL", "--hops", "2", "--match", "all"), "match is 'all'"),
        (("transplant", "MODEL", "--hops", "2", "--heads", "--plot", "f.png"), "--plot and --heads do not go together"),
        (("models", "nowhere"), "no directory nowhere"),
        (("import", "nowhere.pt", "--heads", "4", "--out", "new"), "no file nowhere.pt"),
        (("import", "junk.pt", "--heads", "4", "--out", "new"), "junk.pt is no checkpoint"),
        (("import", "STATE", "--heads", "5", "--out", "new"), "5 heads were given; they must divide d_model = 32"),
        (("import", "STATE", "--heads", "4", "--alphabet", "20", "--out", "new"), "the task needs 39 tokens"),
        (("import", "STATE", "--heads", "4", "--letters", "500", "--out", "new"), "the task needs 501 positions"),
        (("frobnicate",), "No such command"),
    ],
)
def test_bad_input_gets_one_line_and_nothing_is_written(run, model, tmp_path, monkeypatch, capsys, arguments, words):
    from transformers import GPT2Config, GPT2Model

    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.pt").write_bytes(b"junk")
    torch.save(
        GPT2Model(GPT2Config(vocab_size=30, n_positions=100, n_embd=32, n_layer=1, n_head=4)).state_dict(), "state.pt"
    )
    before = sorted(path.name for path in tmp_path.iterdir())
    capsys.readouterr()  # transformers remarks on the small vocabulary
    status, out, err = run(*({"MODEL": model, "STATE": "state.pt"}.get(part, part) for part in arguments))
    assert (status, out) == (2, "")
    assert err.startswith("hopinterp: ")
    assert err.count("\n") == 1
    assert words in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_bugs_keep_their_traceback(run, model, monkeypatch):
    monkeypatch.setattr("hopinterp.evidence.reading.behaviour.evaluate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("eval", model)


def test_ctrl_c_is_one_line(model):
    process = subprocess.Popen(
        [sys.executable, "-c", "from hopinterp.cli import main; main()", "eval", model, "--sequences", "2000000"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "hopinterp: interrupted"
    assert "Traceback" not in err


def test_help_names_every_command(run):
    status, out, _ = run("--help")
    assert status == 0
    assert all(
        name in out
        for name in ("models", "import", "construct", "eval", "attention", "probe", "patch", "transplant", "verify")
    )


def test_construct_and_use(run, tmp_path):
    sizes = ("--letters", 30, "--alphabet", 3, "--max-hops", 5)
    status, out, _ = run("construct", "--hops", 5, "--algorithm", "successor", *sizes, "--out", tmp_path / "s")
    assert status == 0
    assert "s: 4 blocks, d_model" in out
    assert "Solves k = 5 (error ≤ 1%)." in out
    card = store.read_card(tmp_path / "s")
    assert card.made == {"how": "constructed: successor, k = 5", "algorithm": "successor", "hops": 5}
    assert set(card.errors["errors"]) == {"5"}
    found = one_json(run("construct", "--multi-task", *sizes, "--out", tmp_path / "m", "--json")[1])
    assert found["errors"]["errors"] == {str(k): 0.0 for k in range(1, 6)}
    attended = one_json(run("attention", tmp_path / "m", "--hops", 5, "--sequences", 5, "--json")[1])
    assert attended["scores_valid"][3][0][2] > 0.99
    assert run("eval", tmp_path / "m", "--sequences", 5)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "c"), "construct needs --hops K for a model of one k, or --multi-task"),
        (("--out", "c", "--hops", "3", "--multi-task"), "construct needs --hops K"),
        (("--out", "c", "--hops", "0"), "hop_0 is the identity, which needs no circuit"),
        (("--out", "c", "--hops", "17"), "hops is 17; this task has 0 to 16"),
        (("--out", "c", "--hops", "3", "--algorithm", "magic"), "no algorithm 'magic'"),
        (("--out", "c", "--hops", "3", "--alphabet", "1"), "alphabet_size is 1"),
        (("--out", "c", "--max-hops", "0", "--multi-task"), "max_hops is 0"),
        (("--out", "c", "--hops", "8", "--letters", "5"), "5 letters are too few"),
        (("--out", "m", "--hops", "3"), "m exists"),
    ],
)
def test_bad_constructions_get_one_line_and_nothing_is_written(run, model, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert model.exists()
    status, out, err = run("construct", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("hopinterp: ")
    assert err.count("\n") == 1
    assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.fixture
def doubling(tmp_path, small_task):
    """A constructed model, which has something to verify."""
    made = Construction.of(small_task, 4, "successor")
    store.save(tmp_path / "s", made.fused, small_task, {"how": "by a test", "hops": 4})
    return tmp_path / "s"


def test_verify(run, doubling, tmp_path):
    status, out, err = run("verify", doubling, "--sequences", 20, "--report", tmp_path / "r.html")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == ("s, k = 4: doubling (successor). Blocks resolve 0, 1, 3, 4 hops; theory 0, 1, 3, 4.")
    assert "Lookup fails at block 2: its output stands for 3 hops done (transplants), not 2." in out
    assert "All 4 controls passed." in out
    page = (tmp_path / "r.html").read_text()
    assert "doubling" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "s"]


def test_verify_json(run, doubling):
    found = one_json(run("verify", doubling, "--hops", 4, "--sequences", 20, "--json")[1])
    names = {"verdict", "form", "hops", "error", "resolved", "attended", "theory", "growth", "controls", "capacity"}
    assert names <= set(found)
    assert (found["verdict"], found["form"], found["hops"]) == ("doubling", "successor", 4)
    assert found["resolved"] == {
        "probe": [0, 1, 3, 4],
        "transplant": [0, 1, 3, 4],
        "light_cone": [[0, 1], [1, 2], [3, 4], [4, 4]],
    }
    assert found["attended"] == [[], [1], [2], [4]]
    assert found["theory"]["successor"] == [0, 1, 3, 4]
    assert found["growth"][0] == {"layers": [1, 2], "by": "probe", "ratio": 3.0, "low": 3.0, "high": 3.0}
    assert found["settings"]["solved"] == 0.05


def test_verify_every_k(run, tmp_path, small_task):
    made = Construction.of(small_task, None, "successor")
    store.save(tmp_path / "m", made.fused, small_task, {"how": "by a test"})
    status, out, _ = run("verify", tmp_path / "m", "--hops", "all", "--sequences", 12)
    assert status == 0
    assert "m: undetermined at k = 1, 2, 3; doubling (successor) at k = 4." in out
    assert "Capacity: every k ≤ 4 at 1%" in out
    found = one_json(run("verify", tmp_path / "m", "--hops", "3-4", "--sequences", 12, "--json")[1])
    assert set(found["verdicts"]) == {"3", "4"}
    assert found["capacity"]["measured"] == 4


def test_verify_asks_for_the_theorem_s_k(run, model):
    """Two blocks: k < 2^1. An untrained model is told what it is."""
    _, out, _ = run("verify", model, "--sequences", 8)
    assert out.splitlines()[-1].startswith("m, k = 1: none. Its error is ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--hops", "5"), "hops is 5; this task has 0 to 4"),
        (("--hops", "0"), "hops is 0: hop_0 is the input itself"),
        (("--hops", "some"), "--hops is 'some'"),
        (("--sequences", "1"), "--sequences"),
        (("--report", "nowhere/r.html"), "no directory nowhere"),
        (("--report", "r.pdf"), "the ending must be .html"),
    ],
)
def test_bad_verifications_get_one_line_and_nothing_is_written(run, model, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("verify", model, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("hopinterp: ")
    assert err.count("\n") == 1
    assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_train_resume_and_use(run, tmp_path):
    sizes = ["--layers", 1, "--d-model", 16, "--heads", 2, "--letters", 10, "--alphabet", 3, "--max-hops", 2]
    status, out, _ = run("train", "--out", tmp_path / "r", *sizes, "--steps", 5, "--batch", 4, "--threads", 1, "--no-bf16")
    assert status == 0
    assert "1 blocks, d_model 16, 2 heads" in out
    card = store.read_card(tmp_path / "r" / "model")
    assert card.made["settings"]["steps"] == 5
    assert "--letters 10" in card.made["command"]
    assert card.errors["settings"]["sequences"] == 400
    before = (tmp_path / "r" / "model" / "model.safetensors").read_bytes()
    assert run("train", "--resume", tmp_path / "r")[0] == 0
    assert (tmp_path / "r" / "model" / "model.safetensors").read_bytes() == before
    assert "k" in run("eval", tmp_path / "r", "--hops", 1, "--sequences", 2)[1]  # a run directory stands for its model


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "train needs --out for a new run, or --resume"),
        (("--out", "r", "--resume", "r"), "train needs --out for a new run, or --resume"),
        (("--out", "m"), "m exists"),
        (("--out", "r", "--preset", "slow"), "no preset 'slow'"),
        (("--out", "r", "--steps", "0"), "steps is 0"),
        (("--out", "r", "--lr", "-1"), "lr is -1.0"),
        (("--out", "r", "--heads", "7"), "7 heads were given"),
        (("--out", "r", "--threads", "0"), "--threads is 0"),
        (("--out", "r", "--samples", "5"), "a batch alone has 64"),
        (("--resume", "nowhere"), "nowhere is no training run"),
        (("--resume", "m", "--lr", "1"), "a resumed run has its own settings; --lr cannot change"),
    ],
)
def test_bad_training_gets_one_line_and_nothing_is_written(run, model, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert model.exists()
    status, out, err = run("train", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("hopinterp: ")
    assert err.count("\n") == 1
    assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_patch_json(run, model, tmp_path):
    arguments = ("patch", model, "--hops", 2, "--sequences", 20, "--json", "--plot", tmp_path / "cone.svg")
    status, out, err = run(*arguments)
    found = one_json(out)
    assert (status, err) == (0, "")
    assert (found["site"], found["by"], found["metric"]) == ("resid_post", "chain", "probability")
    assert found["axes"] == ["layer", "chain", "where"]
    assert [len(found["effect"]), len(found["effect"][0]), len(found["low"][0][0])] == [2, 3, 2]
    assert found["settings"]["direction"] == "noising"
    assert (tmp_path / "cone.svg").read_text().startswith("<?xml")
    assert one_json(run(*arguments)[1]) == found


def test_patch_by_position_and_head(run, model):
    settings = ("--site", "z", "--by", "position", "--pairs", "one-link", "--link", 2, "--sequences", 5)
    status, out, _ = run("patch", model, "--hops", 2, *settings, "--json")
    found = one_json(out)
    assert status == 0
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
        (("--pairs", "swap"), "resample or one-link"),
        (("--link", "1"), "it is for one-link pairs"),
        (("--by", "head"), "position, chain or all"),
    ],
)
def test_patch_refuses(run, model, settings, message):
    status, out, err = run("patch", model, "--hops", 2, *settings)
    assert (status, out) == (2, "")
    assert message in err
