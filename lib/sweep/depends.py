"""What a notebook's numbers depend on: code, modules of `lib` it reaches, packages, files."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lib
from lib.loaded import files_hash
from lib.paths import MODELS, ROOT
from lib.results.declared import code_cells, without_magics

# of those that compute; the last two are the default text (lib/load/docstrings.py)
PACKAGES = ("numpy", "scipy", "pandas", "torch", "transformers", "tokenizers", "networkx", "sympy")


def version_of(notebook: Path, values: Iterable[Any]) -> str:
    """Eight hex digits that change with anything the notebook's numbers depend on.

    That is the source of its cells, the modules of `lib` that they import, directly or not, the
    versions of `PACKAGES`, and the content of models and texts that `values` (of its parameters)
    name as local files.
    """
    digest = hashlib.sha256("".join(f"{name} {version(name)}\n" for name in PACKAGES).encode())
    files = [*modules_of(notebook), *_named_files(values)]
    parts = [*code_cells(notebook), *(files_hash([path], path.parent) for path in files)]
    digest.update("\0".join(parts).encode())
    return digest.hexdigest()[:8]


def _named_files(values: Iterable[Any]) -> list[Path]:
    """Files that strings among `values` name: a text, or all of a model's folder."""
    found = set()
    for value in values:
        if isinstance(value, str) and value:
            for path in (MODELS / value, ROOT / Path(value).expanduser()):
                found |= {path} if path.is_file() else set()
                found |= set(path.iterdir()) if (path / "config.json").is_file() else set()
    return sorted(path.resolve() for path in found if path.is_file())


@cache
def modules_of(notebook: Path) -> tuple[Path, ...]:
    """Files of `lib` that a notebook imports, and that these import in turn, sorted."""
    reached, waiting = set(), []
    for source in code_cells(notebook):
        waiting += _imported(ast.parse(without_magics(source)), ())
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            package = path.relative_to(ROOT).parent.parts
            waiting += _imported(ast.parse(path.read_text(encoding="utf-8")), package)
    return tuple(sorted(reached))


def _imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[Path]:
    """Files of `lib` that a piece of code in `package` imports, or names as `lib.X`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield from _files(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                yield from _files(f"{module}.{alias.name}")


def _files(name: str) -> Iterator[Path]:
    """The file of a module, or of the module that has `name`, and its packages' own files."""
    parts = name.split(".")
    if parts[0] != "lib":
        return
    if len(parts) == 2 and parts[1] in lib._HOME:  # public names are imported when first used
        parts = ["lib", *lib._HOME[parts[1]].split(".")]
    for end in range(1, len(parts) + 1):
        path = ROOT.joinpath(*parts[:end])
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                yield file
