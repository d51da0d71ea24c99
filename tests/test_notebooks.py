"""The notebooks run from top to bottom, and use nothing that a user could not."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import asyncsim

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "analysis").glob("*.ipynb"))

#: What a notebook may import: the public names of asyncsim, four of its modules, and what scientists have at hand.
NAMES = {"asyncsim", *(f"asyncsim.{name}" for name in asyncsim.__all__)}
MODULES = re.compile(r"(asyncsim\.(estimates|plots|staleness|theory)|numpy|pandas|matplotlib|seaborn)(\.[a-z]\w*)*")


@pytest.fixture
def execute(monkeypatch):
    """Return a function that runs a notebook in a kernel of this Python, with the asyncsim that is being tested."""
    package = str(Path(asyncsim.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")

    def run(notebook, folder):
        NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        ).execute()

    return run


def sources(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def foreign(source):
    """Return what a piece of code imports that is not public."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name not in NAMES and not MODULES.fullmatch(name)}


def test_there_are_notebooks():
    assert {"staleness.ipynb", "momentum.ipynb", "real_vs_simulated.ipynb"} <= {path.name for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_draws(path, execute):
    notebook = nbformat.read(path, as_version=4)
    execute(notebook, path.parent)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if "Warning" in output.get("text", "")]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_the_public_interface_alone(path):
    notebook = nbformat.read(path, as_version=4)
    for source in sources(notebook):
        assert foreign(source) == set()
        assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize(
    "line",
    [
        "from asyncsim.replay import _Loop",
        "import asyncsim.sources",
        "from asyncsim import sweep",
        "from asyncsim.staleness import _resamples",
    ],
)
def test_the_check_sees_what_is_not_public(line):
    assert foreign(line)


def test_a_notebook_that_fails_fails(execute):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert False")])
    with pytest.raises(CellExecutionError):
        execute(notebook, ROOT)
