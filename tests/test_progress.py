"""Progress bars are shown where someone looks."""

import sys

import nbformat
import pytest
from nbclient import NotebookClient

from lib.paths import ROOT
from lib.progress import progress

COUNT = "for _ in progress([1, 2], desc='counting'): pass"
HEADLESS = "import os; os.environ['KVLAB_NOTEBOOK'] = '03_speed'\n"


@pytest.fixture(autouse=True)
def no_headless_run(monkeypatch):
    monkeypatch.delenv("KVLAB_NOTEBOOK", raising=False)


def stderr_is_terminal(monkeypatch, answer: bool) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: answer, raising=False)


def test_at_a_terminal(monkeypatch, capsys):
    stderr_is_terminal(monkeypatch, True)
    assert list(progress([1, 2], desc="counting")) == [1, 2]
    bar = progress(total=7, desc="reading", unit="token")
    bar.update(7)
    bar.close()
    shown = capsys.readouterr().err
    assert "counting: 100%" in shown
    assert "7/7" in shown
    assert "token/s" in shown


def test_not_where_nobody_looks(monkeypatch, capsys):
    stderr_is_terminal(monkeypatch, False)
    assert progress([1]).disable
    stderr_is_terminal(monkeypatch, True)
    assert progress([1], disable=True).disable
    monkeypatch.setenv("KVLAB_NOTEBOOK", "03_speed")
    assert list(progress([1, 2])) == [1, 2]
    progress(total=7).update(1)
    assert capsys.readouterr().err == ""


def test_a_widget_in_an_open_notebook_and_none_in_a_headless_one():
    cells = ["from lib.progress import progress", COUNT, HEADLESS + COUNT]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, kernel_name="python3", resources=resources).execute()
    _, (output,), headless = (cell.outputs for cell in notebook.cells)
    assert "application/vnd.jupyter.widget-view+json" in output.data
    (state,) = notebook.metadata.widgets.values()
    shown = [widget["state"].get("value") for widget in state["state"].values()]
    assert any("2/2" in str(value) for value in shown)  # its end, not how it began
    assert headless == []
