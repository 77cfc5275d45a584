"""docs/first_day.ipynb runs from its first cell to its last; gpu's benchmark at a small size."""
import json

import pytest

from benchmarks import gpu
from conftest import CACHE, ROOT

NOTEBOOK = ROOT / "docs" / "first_day.ipynb"


def test_cells_of_the_notebook_run_in_their_order(tmp_path, monkeypatch):
    """By nbclient, as a person runs it, but for the folders of its output and the cache."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    book = nbformat.read(NOTEBOOK, 4)
    folders = [f"--RUNS_DIR={tmp_path}", f"--CACHE_DIR={CACHE}"]
    for cell in book.cells:
        cell.source = cell.source.replace("'--MAX_EPOCHS=2'", f"'--MAX_EPOCHS=2', *{folders}")
    where = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(book, timeout=300, resources=where).execute()
    text = json.dumps(book)
    assert "integers that differ: 0" in text and "right: 0.9" in text


def test_notebook_is_stored_without_output():
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert len(cells) >= 10 and not any(cell.get("outputs") for cell in cells)


@pytest.mark.parametrize("word", ["--LANES=0", "--LANES=x", "--IMAGES=-1", "--LANES="])
def test_gpu_benchmark_refuses_other_counts_in_one_line(script, word):
    code, out, err = script(gpu.main, word)
    assert (code, out, len(err)) == (2, [], 1) and "whole numbers" in err[0]
