"""The whole command: help, what it refuses, bugs, Ctrl-C."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eval", "nowhere"), "no model 'nowhere'"),
        (("eval", "MODEL", "--hops", "5"), "hops is 5; this task has 0 to 4"),
        (("eval", "MODEL", "--hops", "x"), "--hops is 'x'"),
        (("eval", "MODEL", "--hops", "3-1"), "empty range"),
        (("eval", "MODEL", "--sequences", "0"), "batch_size is 0"),
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
        (("probe", "MODEL", "--hops", "2", "--target", "colour"), "--target is 'colour'; it is one of token, position"),
        (("probe", "MODEL", "--hops", "2", "--method", "guess"), "--method is 'guess'; it is one of logistic, ridge"),
        (("attention", "MODEL", "--hops", "99"), "hops is 99"),
        (("transplant", "MODEL", "--hops", "2", "--match", "all"), "match is 'all'"),
        (("transplant", "MODEL", "--hops", "2", "--heads", "--plot", "f.png"), "--plot and --heads do not go together"),
        (("models", "nowhere"), "no directory 'nowhere'"),
        (("import", "nowhere.pt", "--heads", "4", "--out", "new"), "no file nowhere.pt"),
        (("import", "junk.pt", "--heads", "4", "--out", "new"), "junk.pt is no checkpoint"),
        (("import", "STATE", "--heads", "5", "--out", "new"), "5 heads were given; they must divide d_model = 32"),
        (("import", "STATE", "--heads", "4", "--alphabet", "20", "--out", "new"), "the task needs 39 tokens"),
        (("import", "STATE", "--heads", "4", "--letters", "500", "--out", "new"), "the task needs 501 positions"),
        (("frobnicate",), "No such command"),
    ],
)
def test_bad_input_gets_one_line_and_nothing_is_written(refused, model, tmp_path, monkeypatch, capsys, arguments, words):
    from transformers import GPT2Config, GPT2Model

    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.pt").write_bytes(b"junk")
    torch.save(
        GPT2Model(GPT2Config(vocab_size=30, n_positions=100, n_embd=32, n_layer=1, n_head=4)).state_dict(), "state.pt"
    )
    before = sorted(path.name for path in tmp_path.iterdir())
    capsys.readouterr()  # transformers remarks on the small vocabulary
    assert words in refused(*({"MODEL": model, "STATE": "state.pt"}.get(part, part) for part in arguments))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_bugs_keep_their_traceback(run, model, monkeypatch):
    monkeypatch.setattr("hopinterp.evidence.reading.behaviour.evaluate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("eval", model)


FOREVER = """
import signal
from hopinterp import cli
from hopinterp.evidence.reading import behaviour

evaluate = behaviour.evaluate

def forever(*arguments, **settings):
    print("working", flush=True)
    while True:
        evaluate(*arguments, **settings)

behaviour.evaluate = forever
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background with it ignored
cli.main()
"""


def test_ctrl_c_is_one_line(model):
    """Pressed while the command is at work, however long it takes to get there."""
    words = [sys.executable, "-c", FOREVER, "eval", str(model), "--sequences", "5"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, **pipes, start_new_session=True)
    try:
        assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "hopinterp: interrupted"
    assert "Traceback" not in err


def test_help_names_every_command(run, monkeypatch):
    """A row a command with the first line of what it does, and no others."""
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = run("--help")
    assert status == 0
    commands = {
        "models": "List the models that can be named.",
        "import": "Import a Hugging Face GPT-2 checkpoint of the task, exactly.",
        "export": "Write a model as the Hugging Face Hub keeps them, to share it",
        "construct": "Write a model whose weights are set by hand",
        "train": "Train a model of the task, or go on with a run that was interrupted.",
        "eval": "err_k: the share of answers that are wrong, for each k.",
        "attention": "Which find^j each head attends to.",
        "probe": "Which hops can be read off each block's output, linearly.",
        "patch": "Activation patching: where, at each block, the information is",
        "transplant": "Interchange interventions: what each block's output stands for",
        "verify": "The verdict: does the model double its hops",
        "decompile": "The program that the model runs: where e",
    }
    rows = dict(re.findall(r"^│ (\w+)\s+(.*?)\s*│$", out.partition("Commands")[2], re.MULTILINE))
    assert set(rows) == set(commands)
    for name, words in commands.items():
        assert rows[name].startswith(words)
