"""A training run learns, repeats itself, and goes on bit for bit after whatever stopped it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import hopinterp as hi
from hopinterp import HopInterpError, TrainConfig
from hopinterp.files import alone_in
from hopinterp.models import store
from hopinterp.training import loop, record
from hopinterp.training.run import Run

SIZES = {"layers": 2, "d_model": 32, "heads": 2, "letters": 12, "alphabet": 3, "max_hops": 3}
TINY = TrainConfig(**SIZES, steps=24, batch=8, checkpoint_every=5, log_every=4, eval_every=0)


def digest(directory):
    return hashlib.sha256((directory / "model" / "model.safetensors").read_bytes()).hexdigest()


def metrics(directory):
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "whole"
    loop.train(TINY, directory)
    return directory


def test_a_run_directory(uninterrupted):
    assert {path.name for path in uninterrupted.iterdir()} == {"config.json", "metrics.jsonl", "checkpoint.pt", "model"}
    assert record.read_config(uninterrupted) == TINY
    records = metrics(uninterrupted)
    assert [record["step"] for record in records] == [4, 8, 12, 16, 20, 24]
    assert all(set(record["running_errors"]) == {"0", "1", "2", "3"} for record in records)
    card = store.read_card(uninterrupted / "model")
    assert card.task == TINY.task
    assert set(card.errors["errors"]) == set(card.errors["high"]) == {"1", "2", "3"}
    assert card.errors["settings"]["sequences"] == 400
    assert TrainConfig.from_dict(card.made["settings"] | {"checkpoint_every": 5, "log_every": 4, "eval_every": 0}) == TINY


def test_progress_reaches_its_end_and_says_how_it_goes():
    told = []
    hi.train(replace(TINY, steps=3), report=told.append)
    assert [(one.what, one.done, one.total) for one in told] == [("training", step, 3) for step in (1, 2, 3)]
    assert all(set(one.details) == {"loss", "largest_hops", "error", "tokens_per_second"} for one in told)
    assert told[0].details["loss"] > 0


def test_errors_are_measured_on_the_way(tmp_path):
    loop.train(replace(TINY, eval_every=12), tmp_path / "run")
    measured = [record for record in metrics(tmp_path / "run") if "eval" in record]
    assert [record["step"] for record in measured] == [12, 24]
    assert all(set(record["eval"]) == {"1", "2", "3"} for record in measured)


def stop_at(step, error):
    def report(progress):
        if progress.done == step:
            raise error

    return report


@pytest.mark.parametrize("step", [1, 7, 10, 23])
def test_ctrl_c_then_resume_is_bit_identical(uninterrupted, tmp_path, step):
    with pytest.raises(KeyboardInterrupt):
        loop.train(TINY, tmp_path / "run", report=stop_at(step, KeyboardInterrupt()))
    assert not (tmp_path / "run" / "model").exists()
    loop.resume(tmp_path / "run")
    assert digest(tmp_path / "run") == digest(uninterrupted)
    assert metrics(tmp_path / "run") == metrics(uninterrupted)


@pytest.mark.parametrize("step", [3, 8, 10, 20])
def test_a_real_ctrl_c_is_answered_between_steps(uninterrupted, tmp_path, step):
    """Pressed in the middle of a step (here: of the report), the step is finished, logged and saved first."""

    def press(progress):
        if progress.done == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        loop.train(TINY, tmp_path / "run", report=press)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == step
    loop.resume(tmp_path / "run")
    assert digest(tmp_path / "run") == digest(uninterrupted)
    assert metrics(tmp_path / "run") == metrics(uninterrupted)


def test_a_run_killed_before_its_first_checkpoint_starts_again(uninterrupted, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text((uninterrupted / "config.json").read_text())
    loop.resume(tmp_path / "run")
    assert digest(tmp_path / "run") == digest(uninterrupted)


def test_an_interrupt_inside_a_step_is_bit_identical_too(uninterrupted, tmp_path, monkeypatch):
    calls = 0
    real = torch.nn.utils.clip_grad_norm_

    def interrupted(*arguments):
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.train(TINY, tmp_path / "run")
    loop.resume(tmp_path / "run")
    assert digest(tmp_path / "run") == digest(uninterrupted)


@pytest.mark.parametrize("step", [2, 13])
def test_a_crash_then_resume_is_bit_identical(uninterrupted, tmp_path, step):
    """As after SIGKILL, nothing is saved on the way out; what was logged after the checkpoint is logged again."""
    with pytest.raises(ZeroDivisionError):
        loop.train(TINY, tmp_path / "run", report=stop_at(step, ZeroDivisionError()))
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "cut sho')
    loop.resume(tmp_path / "run")
    assert digest(tmp_path / "run") == digest(uninterrupted)
    assert metrics(tmp_path / "run") == metrics(uninterrupted)


def test_dropout_samples_and_adamw_resume_as_well(tmp_path):
    config = TrainConfig.preset("paper", **SIZES, steps=12, batch=8, samples=20, checkpoint_every=3, bf16=True)
    whole = loop.train(config, tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        loop.train(config, tmp_path / "run", report=stop_at(8, ZeroDivisionError()))
    resumed = loop.resume(tmp_path / "run")
    assert all(torch.equal(whole.parameters[name], resumed.parameters[name]) for name in whole.parameters)
    config.spec.check_parameters(whole.parameters)  # the identity unembedding is one still


def test_sigkill_at_any_moment(uninterrupted, tmp_path):
    """Kill the real command again and again, wherever it is; it always gets to the same weights."""
    arguments = ["--preset", "full", "--threads", "1"]
    for name, value in TINY.to_dict().items():
        if value != getattr(TrainConfig(), name):
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    command = [sys.executable, "-c", "from hopinterp.cli import main; main()", "train"]
    run = tmp_path / "run"
    with a_command([*command, "--out", str(run), *arguments]) as first:
        wait_for(run / "checkpoint.pt", first)  # its first one, of no steps yet
        kill(first)
    assert not (run / "model").exists()
    before = changed(run / "checkpoint.pt")
    with a_command([*command, "--resume", str(run)]) as second:
        while second.poll() is None and changed(run / "checkpoint.pt") == before:
            time.sleep(0.001)
        kill(second)  # some steps on, in the middle of whatever it does
    with a_command([*command, "--resume", str(run)]) as third:
        assert third.wait() == 0
    assert digest(run) == digest(uninterrupted)


@contextmanager
def a_command(words):
    """A process in a group of its own, which is gone when the test is, however that ends."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen(words, **quiet)
    try:
        yield process
    finally:
        kill(process)


def kill(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, "the command ended before its first checkpoint"
        time.sleep(0.001)


def changed(path):
    """A stamp that a file has until another takes its place."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_a_full_disk_keeps_the_last_checkpoint(uninterrupted, tmp_path, monkeypatch):
    calls = 0

    def full(_descriptor):
        nonlocal calls
        calls += 1
        if calls > 4:  # the config and the first checkpoint still fit, each with its directory
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(HopInterpError, match=r"No space left on device\); nothing was written; the run can go on"):
            loop.train(TINY, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint.pt", "config.json", "metrics.jsonl"]
    loop.resume(tmp_path / "run")
    assert digest(tmp_path / "run") == digest(uninterrupted)


def test_a_run_that_diverges_says_so():
    with pytest.raises(HopInterpError, match=r"diverged at step \d+ \((loss|gradient) \w+\); try a lower learning rate"):
        loop.train(replace(TINY, optimizer="adamw", lr=1e18, clip=0.0, warmup=0))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_last_good_checkpoint_is_kept(uninterrupted, tmp_path, monkeypatch, what):
    calls = 0
    real = torch.nn.functional.cross_entropy

    def breaks(*arguments):
        nonlocal calls
        calls += 1
        loss = real(*arguments)
        return loss if calls < 8 else loss * float("nan") if what == "loss" else (loss * 0).sqrt() + loss.detach()

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "cross_entropy", breaks)
        with pytest.raises(HopInterpError, match=rf"diverged at step 7 \({what} nan\)"):
            loop.train(TINY, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 5
    assert not (tmp_path / "run" / "model").exists()
    loop.resume(tmp_path / "run")
    assert digest(tmp_path / "run") == digest(uninterrupted)


def test_one_process_a_directory(uninterrupted):
    with alone_in(uninterrupted, "training"), pytest.raises(HopInterpError, match="another process is training in"):
        loop.resume(uninterrupted)


def test_a_fixed_training_set_does_not_meet_the_evaluation():
    config = TrainConfig.preset("full", layers=1, d_model=16, heads=2, samples=400)
    trained_on = {tuple(row) for row in Run(config).fixed.tokens[:, 1:].tolist()}
    measured_on = {tuple(row) for row in config.task.sample(400, hops=1, seed=0).tokens[:, 1:].tolist()}
    assert len(trained_on) == 400
    assert not trained_on & measured_on


def test_the_series_of_weights_is_kept(tmp_path):
    loop.train(replace(TINY, keep_every=10), tmp_path / "run")
    kept = store.list_models(tmp_path / "run" / "series")
    assert [path.name for path in kept] == ["0000010", "0000020"]
    early, late = (store.load_fused(path)[0].parameters["embed.W_E"] for path in kept)
    assert not torch.equal(early, late)


def test_one_seed_one_model(tmp_path):
    one, same, other = (hi.train(replace(TINY, seed=seed, steps=3)) for seed in (0, 0, 1))
    assert all(torch.equal(one.parameters[name], same.parameters[name]) for name in one.parameters)
    assert not torch.equal(one.parameters["embed.W_E"], other.parameters["embed.W_E"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_it_learns_two_hops(optimizer):
    config = replace(TINY, steps=500, batch=32, lr=4e-3, optimizer=optimizer, max_hops=1, bf16=False)
    model = hi.train(config)
    untrained = hi.FusedTransformer(config.spec, config.spec.initial_parameters(0))
    learned, before = (float(hi.evaluate(m, config.task, hops=[1]).error[0]) for m in (model, untrained))
    assert learned < 0.1 < 0.5 < before


def test_matrices_are_the_hooked_parameters():
    run = Run(TINY)
    initial = TINY.spec.initial_parameters(TINY.seed)
    shown = run.model.parameters
    assert all(torch.equal(shown[name], initial[name]) for name in initial)
    run.advance()
    TINY.spec.check_parameters({name: p.detach() for name, p in run.model.parameters.items()})
    for name, p in shown.items():  # the same memory: the view taken before the step shows what came of it
        assert torch.equal(p, run.model.parameters[name])


def test_the_model_is_the_running_mean_of_the_weights():
    config = replace(TINY, steps=30, average=0.5)
    run, last = Run(config), Run(replace(config, average=0.0))
    mean = {name: p.clone() for name, p in run.averaged.parameters.items()}
    for step in range(30):
        run.advance()
        decay = min(0.5, (1 + step) / (10 + step))
        mean = {name: decay * mean[name] + (1 - decay) * p.detach() for name, p in run.model.parameters.items()}
    found = run.averaged.parameters
    assert all(torch.allclose(found[name], mean[name], atol=1e-6) for name in mean)
    assert any(not torch.allclose(found[name], p, atol=1e-4) for name, p in run.model.parameters.items())
    for _ in range(30):  # a mean changes nothing of what is learned
        last.advance()
    assert all(torch.equal(p, run.model.parameters[name]) for name, p in last.averaged.parameters.items())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch.compile looks at views of weights
def test_a_compiled_run_computes_the_same(pytestconfig):
    if pytestconfig.getoption("jaxtyping_packages", None):
        pytest.skip("torch.compile cannot trace a checker of types")
    config = replace(TINY, steps=2, bf16=False, short_until=(0.0, 0.0))
    plain, compiled = Run(config), Run(replace(config, compile=True))
    assert [plain.advance() for _ in range(2)] == pytest.approx([compiled.advance() for _ in range(2)], abs=1e-4)


def test_what_cannot_be_resumed_is_named(tmp_path, uninterrupted):
    with pytest.raises(HopInterpError, match="is no training run"):
        loop.resume(tmp_path / "nowhere")
    with pytest.raises(HopInterpError, match="exists; give another --out, or --resume"):
        loop.train(TINY, uninterrupted)
    (tmp_path / "config.json").write_text((uninterrupted / "config.json").read_text())
    (tmp_path / "checkpoint.pt").write_bytes((uninterrupted / "checkpoint.pt").read_bytes()[:5000])
    with pytest.raises(HopInterpError, match=r"checkpoint\.pt is damaged"):
        loop.resume(tmp_path)
