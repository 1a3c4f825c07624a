"""The notebook runs from top to bottom on real drawings."""

import nbformat
import pytest
from nbclient import NotebookClient
from points import HANGS

from metadraw.command.config import CONFIGS


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pictures"), [("one_task", 5), ("a_sweep", None)])
def test_notebook_runs(name, pictures):
    folder = CONFIGS.parent / "notebooks"
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    waits = {"timeout": HANGS, "startup_timeout": HANGS, "iopub_timeout": HANGS}
    NotebookClient(notebook, resources={"metadata": {"path": folder}}, **waits).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    drawn = sum("image/png" in out.get("data", {}) for out in outputs)
    assert drawn == pictures if pictures else drawn >= 2


@pytest.mark.parametrize("path", sorted((CONFIGS.parent / "notebooks").glob("*.ipynb")))
def test_notebook_can_be_opened(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
