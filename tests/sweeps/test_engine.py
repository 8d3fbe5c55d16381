"""Engines: what Slurm is asked for; real processes of this machine that are killed; a real cluster, where there is one."""

import shutil
import subprocess
from typing import Any

import pytest

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.sweeps.engine import Engine, minutes, slurm_parameters


@pytest.mark.parametrize(
    ("text", "found"),
    [("90", 90), ("90:00", 90), ("1:30:00", 90), ("0:00:30", 1), ("2-12", 3600), ("1-00:30", 1470), ("1-0:0:1", 1441)],
)
def test_times_as_slurm_writes_them(text, found):
    assert minutes(text) == found


@pytest.mark.parametrize("text", ["", "soon", "0", "1:2:3:4", "-5", "1.5"])
def test_no_times(text):
    with pytest.raises(HopInterpError, match="--slurm time is"):
        minutes(text)


def test_what_submitit_does_not_know_goes_to_sbatch_as_it_is():
    given = {"partition": "cpu", "time": "2:00:00", "mem": "4GB", "cpus-per-task": "2", "reservation": "ours", "setup": "x"}
    assert slurm_parameters(given) == {
        "partition": "cpu",
        "time": 120,
        "mem": "4GB",
        "cpus_per_task": 2,
        "additional_parameters": {"reservation": "ours", "setup": "x"},
    }


def test_engines_that_are_not_to_be_had(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(HopInterpError, match="--engine is 'cloud'; it is local, slurm, debug"):
        Engine("cloud", 1)
    with pytest.raises(HopInterpError, match="there is no sbatch here"):
        Engine("slurm", 1)
    with pytest.raises(HopInterpError, match="--slurm is for --engine slurm; this is local"):
        Engine("local", 1, slurm={"time": "1"})


def test_slurms_batch_file(monkeypatch, tmp_path):
    """What sbatch would be given: submitit asks only whether there is an srun."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    made: Any = Engine("slurm", 3, slurm={"partition": "cpu", "time": "1:00:00", "reservation": "ours"})._executor(tmp_path)
    text = made._make_submission_file_text("command", "0")
    for line in ("cpus-per-task=3", "partition=cpu", "time=60", "reservation=ours", "job-name=hopinterp", "signal=USR2@90"):
        assert f"#SBATCH --{line}" in text, line
    assert f"{tmp_path}" in text


def cluster():
    """Whether a Slurm answers here."""
    if shutil.which("sbatch") is None:
        return False
    try:
        asked = subprocess.run(["sinfo", "-h"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return False
    return " up " in asked.stdout


@pytest.mark.slow
def test_a_real_cluster(tiny, tmp_path):
    if not cluster():
        pytest.skip("there is no Slurm here: no sbatch, or none that answers")
    table = tiny(layers=[1, 2])
    here = hi.sweep(table, tmp_path / "here", engine="debug", threads=1)
    there = hi.sweep(table, tmp_path / "there", engine="slurm", slurm={"time": "5", "mem": "1GB"})
    assert (there.status == "done").all(), there.failure.values
    assert there.error.equals(here.error)
    assert (tmp_path / "there" / "jobs" / "layers=2" / "1" / "job.json").read_text().startswith('{"engine": "slurm"')
