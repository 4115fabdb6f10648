"""What the notebooks declare to save, and whether it is there: `python -m lib.results.declared`.

A notebook declares an output by calling `save_figure` or `save_table` with its name written out.
"""

import ast
import json
import sys
from pathlib import Path

from lib.paths import all_notebooks, results_dir

_FILES = {
    "save_figure": ("figures/{}.png", "figures/{}.svg"),
    "save_table": ("tables/{}.csv", "tables/{}.md"),
}


def declared_outputs(notebook: Path) -> list[str]:
    """Files a notebook says it saves, relative to the results folder; its executed copy first."""
    outputs = [f"notebooks/{notebook.name}"]
    for source in code_cells(notebook):
        for node in ast.walk(ast.parse(without_magics(source))):
            outputs += [pattern.format(_saved_name(node)) for pattern in _patterns(node)]
    return outputs


def code_cells(notebook: Path) -> list[str]:
    """What a notebook's code cells hold."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def without_magics(source: str) -> str:
    """Python without the lines of IPython, such as `%matplotlib inline`."""
    return "\n".join(line for line in source.splitlines() if not line.startswith(("%", "!")))


def _patterns(node: ast.AST) -> tuple[str, ...]:
    """File names of a call that saves under a literal name; none for any other node."""
    if not isinstance(node, ast.Call) or _saved_name(node) is None:
        return ()
    function = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
    return _FILES.get(function, ())


def _saved_name(node: ast.Call) -> str | None:
    given = [*node.args[1:2], *(word.value for word in node.keywords if word.arg == "name")]
    return given[0].value if given and isinstance(given[0], ast.Constant) else None


def missing_outputs(notebook: Path, results: Path) -> list[str]:
    """Declared files that are not in a results folder."""
    return [name for name in declared_outputs(notebook) if not (results / name).is_file()]


def main() -> None:
    """Fail unless every notebook's declared outputs are in the results folder."""
    notebooks = all_notebooks()
    missing = [name for notebook in notebooks for name in missing_outputs(notebook, results_dir())]
    if missing or not notebooks:
        sys.exit(f"missing in {results_dir()}: {', '.join(missing) or 'everything, no notebooks'}")
    print(f"all declared outputs of {len(notebooks)} notebooks are in {results_dir()}")


if __name__ == "__main__":
    main()
