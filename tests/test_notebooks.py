"""The notebooks keep their promise: short, stripped, one sentence first, run from top to bottom without a network."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from workbench.core.files import notebooks_dir

NOTEBOOKS = sorted(notebooks_dir().glob("*.ipynb"))
NAMES = [path.name for path in NOTEBOOKS]
OFFLINE = Path(__file__).parent / "offline"

IN_BROWSER = "1_first_look.ipynb"
"""Run cell by cell in a real JupyterLab by tests/browser, which asks more of it than this file does."""


def read(path: Path) -> nbformat.NotebookNode:
    """Read a notebook and check its form."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_the_notebooks_of_this_release_are_here():
    assert {"1_first_look.ipynb", "7_your_own_model.ipynb"} <= set(NAMES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_notebook_opens_with_one_sentence_of_promise(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    title, *rest = [line for line in first.source.splitlines() if line.strip()]
    assert title.startswith("# ")
    assert len(rest) == 1
    assert len(re.findall(r"[.!?](?:\s|$)", rest[0])) == 1, "one sentence"
    assert rest[0].endswith(".")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_notebook_is_short_and_its_functions_are_five_lines_at_most(path):
    notebook = read(path)
    assert len(notebook.cells) <= 25
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    assert node.end_lineno - node.lineno < 5, node.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_notebook_is_stripped_and_names_no_machine(path):
    notebook = read(path)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)


@pytest.mark.parametrize("path", [one for one in NOTEBOOKS if one.name != IN_BROWSER], ids=lambda one: one.name)
def test_notebook_runs_without_a_network_and_leaves_an_artefact(path, tmp_path, monkeypatch):
    paths = [str(OFFLINE), str(notebooks_dir().parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "projects"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    work = tmp_path / "work"
    work.mkdir()
    notebook = read(path)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(work)}}).execute()
    last = notebook.cells[-1]
    assert last.cell_type == "code"
    assert last.outputs, "the last cell shows what it left"
    left = [one for one in (*work.rglob("*"), *(tmp_path / "projects").rglob("*")) if one.is_file()]
    assert [one for one in left if one.suffix in (".wbspec", ".html")], f"no artefact among {left}"
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {}) or (
                "text/html" in output.data
            ), "a panel without a static form"
