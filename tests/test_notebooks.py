from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from optkit.core.ledger import Ledger
from tests.report.test_report import _run

pytestmark = pytest.mark.slow

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_run_from_top_to_bottom(path, tmp_path, monkeypatch):
    run = tmp_path / "runs" / "quickstart-0"
    run.mkdir(parents=True)
    for record in _run():
        Ledger(run / "ledger.jsonl").append(record)
    book = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells)
    monkeypatch.setenv("OPTKIT_RUNS", str(tmp_path / "runs"))
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    drawn = [o for cell in book.cells for o in cell.get("outputs", []) if "data" in o]
    assert any("vega" in kind or "vega" in str(value) for o in drawn for kind, value in o["data"].items())
