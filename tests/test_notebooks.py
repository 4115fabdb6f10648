"""What the notebooks' cells leave on the page."""

import ast
import json
import re
import shlex
import subprocess

import nbformat
import pytest

from lib.paths import NOTEBOOKS, ROOT

# what a last line may begin with besides the name of what is shown: it shows a page's text or a
# table, or returns nothing
SHOWS = {"display", "readable", "print", "require", "save_table", "lib", "table", "explorer"}


def root(node: ast.AST) -> str | None:
    """The name that an expression begins with: `axes` of `axes[1].legend()`."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def leaves_a_stray_output(source: str) -> bool:
    """Whether a cell ends with a call such as `axes[1].legend()`, whose value is shown as text."""
    last = ast.parse(source).body[-1]
    shown = isinstance(last, ast.Expr) and not isinstance(last.value, ast.Name)
    return shown and root(last.value) not in SHOWS


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_cell_ends_with_a_drawing_call(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"}
    assert code
    assert [name for name, source in code.items() if leaves_a_stray_output(source)] == []


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_first_cell_leads_to_the_glossary(path):
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown"
    assert "Words: [glossary](../docs/glossary.md)" in "".join(first["source"])


@pytest.mark.parametrize(
    ("source", "stray"),
    [
        ("fig.align_ylabels()", True),
        ("axes[1].legend(title='a')", True),
        ("fig.colorbar(image, ax=axes)\n# a word", True),
        ("fig.axes[0].set_title('a')\nfig", False),
        ("lib.save_table(table, 'a')\nreadable(table)[['b']]", False),
        ("x = ax.legend()", False),
    ],
)
def test_stray_outputs_are_known(source, stray):
    assert leaves_a_stray_output(source) == stray


def clean(raw: bytes) -> bytes:
    """What git makes of a notebook before it commits it, by the line that `make setup` gives it."""
    lines = subprocess.run(["make", "-n", "-B", "setup"], cwd=ROOT, capture_output=True, text=True)
    given = re.search(r"git config (filter\.notebooks\.clean .*)", lines.stdout)
    _, filtering = shlex.split(given[1])
    command = shlex.split(filtering)
    return subprocess.run(command, cwd=ROOT, input=raw, stdout=subprocess.PIPE, check=True).stdout


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_what_jupyterlab_leaves_is_not_committed(path):
    raw = path.read_bytes()
    notebook = nbformat.reads(raw.decode(), as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(execution_count=3, outputs=[nbformat.v4.new_output("stream", text="x")])
            cell.metadata["execution"] = {"iopub.execute_input": "2026"}
    notebook.metadata.kernelspec |= {
        "display_name": "Python 3 (ipykernel)"
    }  # as ipykernel calls it
    notebook.metadata.language_info |= {"version": "3.11.9", "codemirror_mode": {"version": 3}}
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    assert clean(nbformat.writes(notebook).encode() + b"\n") == raw
    assert "notebooks/*.ipynb filter=notebooks" in (ROOT / ".gitattributes").read_text()
