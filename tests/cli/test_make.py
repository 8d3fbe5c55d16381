"""models, import and construct: what they list, write and refuse."""

import pytest

from hopinterp.models import store


def test_models_lists_a_folder(run, run_json, model):
    status, out, _ = run("models", model.parent)
    assert status == 0
    assert "by a test" in out
    assert set(run_json("models", model.parent)) == {"m"}


def test_import_of_a_paper_checkpoint(run, refused, paper, tmp_path):
    status, out, _ = run("import", paper / "width4-depth3.pt", "--heads", 4, "--out", tmp_path / "d3")
    assert status == 0
    assert "3 blocks, d_model 128, 4 heads. Solves k = 1 to 3" in out
    card = store.read_card(tmp_path / "d3")
    assert card.made["how"] == "imported from width4-depth3.pt"
    assert card.errors["errors"]["3"] < 0.01
    status, out, _ = run("probe", tmp_path / "d3", "--hops", 3)
    assert "Blocks resolve 0, 1, 3 of 3 hops. Theory: lookup 0, 1, 2; successor 0, 1, 3; sequential 0, 1, 2." in out
    assert "exists" in refused("import", paper / "width4-depth3.pt", "--heads", 4, "--out", tmp_path / "d3")


def test_construct_and_use(run, run_json, tmp_path):
    sizes = ("--letters", 30, "--alphabet", 3, "--max-hops", 5)
    status, out, _ = run("construct", "--hops", 5, "--algorithm", "successor", *sizes, "--out", tmp_path / "s")
    assert status == 0
    assert "s: 4 blocks, d_model" in out
    assert "Solves k = 5 (the error's upper 95% end ≤ 1%)." in out
    card = store.read_card(tmp_path / "s")
    assert card.made == {"how": "constructed: successor, k = 5", "algorithm": "successor", "hops": 5}
    assert set(card.errors["errors"]) == {"5"}
    found = run_json("construct", "--multi-task", *sizes, "--out", tmp_path / "m")
    assert found["errors"]["errors"] == {str(k): 0.0 for k in range(1, 6)}
    attended = run_json("attention", tmp_path / "m", "--hops", 5, "--sequences", 5)
    assert attended["scores_valid"][3][0][2] > 0.99
    assert run("eval", tmp_path / "m", "--sequences", 5)[0] == 0


def test_import_of_what_save_pretrained_wrote(run, tmp_path, capsys):
    """Its config says the heads."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 30, "n_positions": 22, "n_embd": 32, "n_layer": 1, "n_head": 4}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).save_pretrained(tmp_path / "gpt2")
    capsys.readouterr()  # transformers remarks on the small vocabulary
    status, out, _ = run("import", tmp_path / "gpt2", "--max-hops", 4, "--out", tmp_path / "m")
    assert status == 0
    assert "1 blocks, d_model 32, 4 heads. Solves not even k = 1" in out
    card = store.read_card(tmp_path / "m")
    assert card.made == {"how": "imported from gpt2", "heads": 4}
    assert (card.task.n_letters, card.task.max_hops) == (20, 4)
    assert set(card.errors["high"]) == {"1", "2", "3", "4"}


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
def test_bad_constructions_get_one_line_and_nothing_is_written(refused, model, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert model.exists()
    assert words in refused("construct", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_export_and_back(run, run_json, refused, model, tmp_path):
    status, out, _ = run("export", model, "--out", tmp_path / "shared", "--license", "mit")
    assert status == 0
    assert "README.md, card.json, config.json, model.safetensors" in out
    assert store.read_card(tmp_path / "shared") == store.read_card(model)
    assert run("eval", tmp_path / "shared", "--hops", 1, "--sequences", 2)[0] == 0
    found = run_json("export", model, "--layout", "gpt2", "--out", tmp_path / "gpt2")
    assert found["files"] == ["README.md", "config.json", "model.safetensors"]
    assert run("import", tmp_path / "gpt2", "--out", tmp_path / "again")[0] == 0
    weights = [(place / "model.safetensors").read_bytes() for place in (model, tmp_path / "again")]
    assert weights[0] == weights[1]
    assert "--layout is 'onnx'; it is one of hopinterp, gpt2" in refused(
        "export", model, "--layout", "onnx", "--out", tmp_path / "x"
    )
    assert "exists" in refused("export", model, "--out", tmp_path / "shared")
