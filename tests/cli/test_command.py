"""The whole command: help, what it refuses, bugs, Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
from importlib import metadata
from typing import get_args

import pytest
import torch
import typer

from hopinterp.cli import commands, intervene, make, read, sweep
from hopinterp.cli.shared import app


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eval", "nowhere"), "no model 'nowhere'"),
        (("eval", "MODEL", "--hops", "5"), "hops is 5; this task has 0 to 4"),
        (("eval", "MODEL", "--hops", "x"), "--hops is 'x'"),
        (("eval", "MODEL", "--hops", "3-1"), "empty range"),
        (("eval", "MODEL", "--sequences", "0"), "batch_size is 0"),
        (("eval", "MODEL", "--sequences", "many"), "--sequences"),
        (("eval", "MODEL", "--sequences", "1000000000"), "1,000,000,000 sequences need about"),
        (("eval", "MODEL", "--distinct", "1000000000"), "1,000,000,000 sequences need about"),
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


def test_help_names_every_command_in_order_of_use(run, monkeypatch):
    """In its group, a row a command with the first line of what it does, and no others."""
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = run("--help")
    assert status == 0
    groups = {
        "Make a model": {
            "train": "Train a model of the task, or go on with a run that was interrupted.",
            "sweep": "Train and measure every model of a grid, several at a time",
            "construct": "Write a model whose weights are set by hand",
            "import": "Import a Hugging Face GPT-2 checkpoint of the task, exactly.",
            "export": "Write a model as the Hugging Face Hub keeps them, to share it",
            "models": "List the models that can be named",
        },
        "Look at it": {
            "eval": "err_k: the share of answers that are wrong, for each k",
            "attention": "Which find^j each head attends to.",
            "probe": "Which hops can be read off each block's output, linearly.",
        },
        "Intervene": {
            "patch": "Activation patching: where, at each block, the information is",
            "transplant": "Interchange interventions: what each block's output stands for",
        },
        "Judge": {
            "decompile": "The program that the model runs: where e",
            "verify": "The verdict: does the model double its hops",
            "compare": "Two or more models side by side",
        },
        "Keep": {"cache": "What was measured and is kept"},
    }
    panels = re.findall(r"^╭─ (.*?) ─+╮$(.*?)^╰", out, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in panels] == ["Options", *groups]
    for group, panel in panels[1:]:
        rows = dict(re.findall(r"^│ (\w+)\s+(.*?)\s*│$", panel, re.MULTILINE))
        assert list(rows) == list(groups[group])
        for name, words in groups[group].items():
            assert rows[name].startswith(words)


def test_alone_it_shows_its_help_and_nothing_else(run):
    status, out, err = run()
    assert (status, err) == (2, "")
    helped = run("--help")
    assert (0, out.strip(), "") == (helped[0], helped[1].strip(), helped[2])
    assert run("-h") == helped


def test_the_version(run):
    assert run("--version") == (0, f"hopinterp {metadata.version('hopinterp')}\n", "")


COMMANDS = vars(typer.main.get_command(app))["commands"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_every_default_and_gives_an_example(run, monkeypatch, name):
    """An option is required, a flag that is off, shows a default, or says in words what holds without it."""
    monkeypatch.setenv("COLUMNS", "400")
    command = COMMANDS[name]
    status, out, err = run(name, "-h")
    assert (status, err) == (0, "")
    rows = dict(re.findall(r"^│ [* ]?\s*(--[\w-]+)\s+(.*?)\s*│$", out, re.MULTILINE))
    assert {option.opts[0] for option in command.params if option.opts[0].startswith("--")} <= set(rows) | {"--help"}
    plain = {
        "--help",
        "--plot",
        "--out",
        "--report",
        "--resume",
        "--save",
        "--csv",
    }  # written, or gone on with, only where they are given
    for option in (one for one in command.params if one.param_type_name == "option"):
        row = rows.get(option.opts[0], "")
        silent = option.opts[0] in plain or option.required
        off = option.is_flag and not option.secondary_opts
        assert silent or off or "default" in row.lower() or "else" in row, option.opts[0]
    assert f"hopinterp {name} " in out.partition("Example")[2] or f"hopinterp {name}\n" in out.partition("Example")[2]


EXAMPLES = [line for group in commands.EXAMPLES.values() for _, lines in group.values() for line in lines]


@pytest.mark.parametrize("line", EXAMPLES)
def test_examples_are_command_lines(line):
    """The parser takes them; what they do stands in the tests of each command."""
    name, *words = line.split()
    assert COMMANDS[name].make_context(name, words).params


def test_every_example_is_of_its_own_command():
    for group in commands.EXAMPLES.values():
        for name, (_, lines) in group.items():
            assert lines
            assert {line.split()[0] for line in lines} == {name}


def complete(place, *words):
    """What the shell is told that may follow, as bash asks; and whether torch was loaded for it."""
    code = "import sys; sys.argv[0] = 'hopinterp'; from hopinterp.cli import main\n"
    code += "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    asked = {"_HOPINTERP_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert done.stderr == "False\n"
    return done.stdout.split()


def test_the_shell_completes_models_and_choices_without_torch(tmp_path):
    (tmp_path / "depths").mkdir()
    assert complete(tmp_path, "hopinterp", "eval", "depth") == ["depth2", "depth3", "depth4", "depth5", "depth6", "depths"]
    assert complete(tmp_path, "hopinterp", "construct", "--algorithm", "s") == ["successor", "sequential"]


def test_choices_are_all_there_are():
    """Those that the shell completes, and those that the package knows."""
    from hopinterp.evidence.patching import effects, positions, runs
    from hopinterp.evidence.patching.pairs import Kind
    from hopinterp.evidence.reading import probes
    from hopinterp.evidence.transplants import pairs
    from hopinterp.sweeps import engine
    from hopinterp.theory.hypotheses import HYPOTHESES

    assert set(make.ALGORITHMS) == {name for name, one in HYPOTHESES.items() if one.program}
    assert (intervene.METRICS, intervene.MATCHES) == (effects.METRICS, pairs.MATCHES)
    assert set(intervene.BY) == set(get_args(positions.By))
    assert set(intervene.PAIRS) == set(get_args(Kind))
    assert set(intervene.DIRECTIONS) == set(get_args(runs.Direction))
    assert set(read.TARGETS) == set(get_args(probes.Target))
    assert set(read.METHODS) == set(get_args(probes.Method))
    assert set(sweep.ENGINES) == set(engine.ENGINES)


def test_completion_can_be_installed(run):
    _, out, _ = run("--help")
    assert "--install-completion" in out
    assert "--show-completion" in out
