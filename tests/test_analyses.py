"""The notebooks run from a fresh clone, quickly, without a network; what they keep is small and names no machine."""

import io
import os
import re
import runpy
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from hopinterp.views import circuits

ANALYSES = Path(__file__).parents[1] / "analyses"
NOTEBOOKS = sorted(ANALYSES.glob("*.ipynb"), key=lambda path: int(path.stem.split("_")[0]))
WITH_AUTHORS_FILES = [path for path in NOTEBOOKS if "HOPINTERP_PAPER_DIR" in path.read_text(encoding="utf-8")]
QUICK = {
    "HOPINTERP_SEQUENCES": "12",
    "HOPINTERP_QUICK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "default",
}
_KILOBYTE = 1000


def names(paths):
    return [path.stem for path in paths]


def executed(path, folder, monkeypatch, authors_files=None):
    """The notebook's cells, run on a copy of `analyses/`. Raises where a cell does."""
    work = folder / "analyses"
    shutil.copytree(ANALYSES, work)
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HOPINTERP_PAPER_DIR", raising=False)
    if authors_files is not None:
        monkeypatch.setenv("HOPINTERP_PAPER_DIR", str(authors_files))
    notebook = nbformat.read(work / path.name, as_version=4)
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(work)}})
    return client.execute().cells


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_every_cell_runs(path, tmp_path, monkeypatch):
    cells = executed(path, tmp_path, monkeypatch)
    assert any(cell.get("outputs") for cell in cells)
    if path in WITH_AUTHORS_FILES:  # a clone has none: the cells that need them say so
        assert "HOPINTERP_PAPER_DIR is not set" in str([cell.get("outputs") for cell in cells])


@pytest.mark.parametrize("path", WITH_AUTHORS_FILES, ids=names(WITH_AUTHORS_FILES))
def test_every_cell_runs_with_the_authors_files(path, tmp_path, monkeypatch, paper):
    cells = executed(path, tmp_path, monkeypatch, authors_files=paper)
    outputs = str([cell.get("outputs") for cell in cells])
    assert "is not set" not in outputs
    assert str(paper) not in outputs


def test_all_ten_are_there():
    assert [path.stem.split("_")[0] for path in NOTEBOOKS] == [str(number) for number in range(1, 11)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_outputs_are_kept_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run from top to bottom"
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) or output.output_type == "stream" for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"], "warnings are no result"
    views = [output for output in outputs if "CircuitsVis.render" in str(output)]
    assert max(len(str(output)) for output in outputs if output not in views) < 250 * _KILOBYTE
    assert path.stat().st_size < 1500 * _KILOBYTE
    assert len(views) == (path.stem == "2_attention")
    assert all(circuits.packed_script() in output.data["text/html"] for output in views), "drawn without a network"
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8"))
    assert not re.search(r"/(work|home|root|tmp|Users)/", text), "no path of the machine that made it"


def test_together_they_are_small():
    size = sum(
        path.stat().st_size for path in ANALYSES.rglob("*") if path.is_file() and "ipynb_checkpoints" not in str(path)
    )
    assert size < 7000 * _KILOBYTE
    study = [
        f"study{rest}"
        for rest in (".nc", *(f"_{of}.jsonl" for of in ("distances", "distinct", "programs", "series")), "_heads.nc")
    ]
    assert set(os.listdir(ANALYSES / "data")) == {"depth4_dynamics.nc", "verdicts.jsonl", *study}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_it_starts_with_the_question_and_the_finding(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert "**Question.**" in first.source
    assert "**Finding.**" in first.source


def test_notebook_1_runs_with_whatever_files_there_are(tmp_path, monkeypatch, paper):
    """Checkpoints without the published table."""
    some = tmp_path / "some"
    some.mkdir()
    shutil.copy(paper / "width4-depth3.pt", some)
    cells = executed(NOTEBOOKS[0], tmp_path, monkeypatch, authors_files=some)
    outputs = str([cell.get("outputs") for cell in cells])
    assert "Found: depth 3; no published table." in outputs
    assert "points from the published" not in outputs


def test_the_index_shows_a_picture_of_each_from_its_own_outputs():
    drawn = runpy.run_path(str(ANALYSES / "pictures.py"))
    index = (ANALYSES / "README.md").read_text(encoding="utf-8")
    for number, path in enumerate(NOTEBOOKS, start=1):
        kept = ANALYSES / "pictures" / f"{number}.png"
        assert f"({path.name})" in index
        assert f'src="pictures/{number}.png"' in index
        assert kept.stat().st_size < 60 * _KILOBYTE
        now = io.BytesIO(drawn["picture"](number, drawn["SHOWN"][number]))
        pixels = [np.asarray(Image.open(file).convert("L"), dtype=float) for file in (kept, now)]
        assert pixels[0].shape == pixels[1].shape
        assert np.abs(pixels[0] - pixels[1]).mean() < 3, "run analyses/pictures.py again"
