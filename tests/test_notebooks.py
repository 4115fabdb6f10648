"""What the notebooks' cells leave on the page."""

import ast
import json

import pytest

from lib.paths import NOTEBOOKS

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
