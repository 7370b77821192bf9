"""The notebooks: every cell runs, and none keeps what it printed."""

import json
import os
import re

import pytest
from tiny_models import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def cells(notebook, kind: str) -> list[str]:
    of_kind = [
        cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == kind
    ]
    return ["".join(cell["source"]) for cell in of_kind]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_not_kept(notebook):
    for cell in json.loads(notebook.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_the_package_where_it_is_not(notebook):
    first = cells(notebook, "code")[0]
    assert 'find_spec("trl_r1zero") is None' in first and "%pip install" in first


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_pages_that_it_names_are_there(notebook):
    for page in re.findall(r"docs/\w+\.md", " ".join(cells(notebook, "markdown"))):
        assert (REPOSITORY / page).is_file(), page


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(notebook, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("NOTEBOOK_SHORT", "1")
    monkeypatch.setenv("NOTEBOOK_FOLDER", str(tmp_path))
    path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    book = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(book, timeout=240, kernel_name="python3").execute(cwd=str(tmp_path))
    shown = [
        output["data"]
        for cell in book.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "data" in output
    ]
    tables = [
        data["text/html"] for data in shown if "<th>accuracy</th>" in data.get("text/html", "")
    ]
    assert tables and "No log" not in tables[-1] and "2 of 2 updates" in tables[-1]
    assert any("image/png" in data for data in shown)
    for name in ("final", "best", "report.md", "index.html"):
        assert (tmp_path / "grpo" / name).exists()
