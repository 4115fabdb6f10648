"""What happens in an open notebook: wrong values, missing files, and where results go."""

import json
import os
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from lib.paths import ROOT
from lib.run.session import is_contract

CELL = "size: int = {}  # tokens [1..10]\nname: str = 'x'  # a name"


@pytest.fixture
def run(monkeypatch):
    """Run cells in a kernel of their own, as JupyterLab does: what each of them leaves."""
    for name in ("KVLAB_RESULTS", "KVLAB_NOTEBOOK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(*cells: str) -> list[str]:
        made = [nbformat.v4.new_code_cell(cell) for cell in cells]
        notebook = nbformat.v4.new_notebook(cells=made)
        NotebookClient(notebook, timeout=120, allow_errors=True).execute()
        outputs = (cell.outputs for cell in notebook.cells)
        return [
            "".join("\n".join(x.get("traceback", [x.get("text", "")])) for x in o) for o in outputs
        ]

    return run


def test_a_wrong_value_is_one_sentence(run):
    again = [CELL.format(77), "print(size)", "size = 99", CELL.format(7), "print(size)"]
    found = run(CELL.format(50), "import lib", CELL.format(5), *again)
    told = "ParameterError: parameter size must be an int in [1..10]; got {}\n"
    told += "(Cell In[{}], line 1; %tb shows all of it)"
    assert found[1] == told.format(50, 2)
    assert found[3] == told.format(77, 4)
    assert found[4] == "5\n"
    assert found[7] == "7\n"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("size = 50", "not a line `name: type = value  # meaning`: size = 50"),
        ("size: int = 4 * 2  # tokens [1..10]", "not a plain value: size: int = 4 * 2"),
        ("size: integer = 4  # tokens", "a parameter cannot be of type integer"),
    ],
)
def test_a_line_that_is_no_parameters_is_one_sentence(run, line, told):
    """Before lib is imported, and after."""
    cell = f"{line}\nname: str = 'x'  # a name\nother: int = 1  # another"
    for lines in (run(cell, "import lib")[1], run("import lib", cell)[1]):
        assert told in lines
        assert len(lines.splitlines()) == 2


def test_a_value_set_afterwards_is_checked_too(run):
    found = run(CELL.format(5), "size = 0", "import lib", "int('x')", "%tb")
    assert "got 0\n" in found[2]
    assert len(found[2].splitlines()) == 2
    assert "Traceback" in found[3]  # not lib's error: as ever


def test_what_is_missing_is_one_sentence(run):
    lines = run("from lib import load_model, load_tokens", "load_tokens('no.txt', None)", "%tb")
    assert lines[1] == (
        "FileNotFoundError: text 'no.txt': no such file\n(Cell In[2], line 1; %tb shows all of it)"
    )
    assert "Traceback" in lines[2]


def test_interactive_results_go_where_they_replace_nothing(run):
    where = "import lib, os\nprint(os.environ['KVLAB_RESULTS'])"
    assert run(where) == [f"{ROOT / 'results' / 'interactive'}\n"]
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "results/interactive/" in ignored


def test_asked_for_results_go_there(run, monkeypatch, tmp_path):
    monkeypatch.setenv("KVLAB_RESULTS", str(tmp_path))
    assert run("import lib, os\nprint(os.environ['KVLAB_RESULTS'])") == [f"{tmp_path}\n"]


def test_every_parameters_cell_is_known_as_one():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        known = [is_contract("".join(cell["source"])) for cell in code]
        tagged = ["parameters" in cell["metadata"].get("tags", []) for cell in code]
        assert known == tagged, path.name


def test_outside_a_notebook_nothing_is_set():
    where = "import lib, os; print(os.environ.get('KVLAB_RESULTS'))"
    environment = {name: x for name, x in os.environ.items() if name != "KVLAB_RESULTS"}
    command, told = [sys.executable, "-c", where], {"capture_output": True, "text": True}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, **told)
    assert done.stdout == "None\n"
