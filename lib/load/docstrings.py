"""The offline text: docstrings of the pinned packages in this environment.

Every machine that can run the project has this text, so nothing is downloaded and nothing
is committed. Whole packages are held out from training for evaluation.
"""

import ast
import hashlib
import importlib.util
import inspect
import json
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from lib.paths import atomic_path, cache_dir
from lib.progress import progress

# import name -> distribution name, in reading order
HELDOUT = {"networkx": "networkx", "sympy": "sympy"}
TRAIN = {
    "accelerate": "accelerate",
    "datasets": "datasets",
    "fontTools": "fonttools",
    "fsspec": "fsspec",
    "huggingface_hub": "huggingface-hub",
    "hypothesis": "hypothesis",
    "IPython": "ipython",
    "jinja2": "jinja2",
    "jupyter_server": "jupyter-server",
    "matplotlib": "matplotlib",
    "mpl_toolkits": "matplotlib",
    "mpmath": "mpmath",
    "numpy": "numpy",
    "pandas": "pandas",
    "PIL": "pillow",
    "prompt_toolkit": "prompt-toolkit",
    "pygments": "pygments",
    "scipy": "scipy",
    "seaborn": "seaborn",
    "setuptools": "setuptools",
    "torch": "torch",
    "tornado": "tornado",
    "traitlets": "traitlets",
    "transformers": "transformers",
}
SPLITS = {"heldout": HELDOUT, "train": TRAIN}
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = (ast.stmt, ast.excepthandler, ast.match_case)


def _header(node: ast.AST, module: str) -> str:
    """The line above a docstring: `module x.y`, `class A(B):` or `def f(a, b=1):`."""
    if isinstance(node, ast.Module):
        return f"module {module}"
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    return f"def {node.name}({ast.unparse(node.args)}):"


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Modules, classes and functions in file order (`ast.walk` is breadth first)."""
    if isinstance(node, (ast.Module, *_DEFINITIONS)):
        yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _BLOCKS):  # most nodes are expressions, which define nothing
            yield from _walk(child)


def _file_docstrings(path: Path, module: str) -> Iterator[tuple[str, str]]:
    """(header, docstring) of everything documented in one file; nothing if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return
    for node in _walk(tree):
        docstring = ast.get_docstring(node)
        if docstring and len(docstring) >= 20:
            yield _header(node, module), docstring


def _package_docstrings(package: str, distribution: str) -> list[tuple[str, str]]:
    """(header, docstring) of all that one package documents, files sorted by path.

    A package is read once: from then on it comes from the cache.
    """
    recipe = f"{distribution}=={version(distribution)}\n{inspect.getsource(sys.modules[__name__])}"
    key = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    cached = cache_dir() / "text" / f"docs-{package}-{key}.json"
    if cached.exists():
        return json.loads(cached.read_bytes())
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"package {package!r} is not installed; run `make setup`")
    root = Path(next(iter(spec.submodule_search_locations)))
    paths = sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix())
    found = []
    for path in progress(paths, desc=f"docstrings of {package}", unit="file", leave=False):
        module = ".".join([package, *path.relative_to(root).with_suffix("").parts])
        found += _file_docstrings(path, module.removesuffix(".__init__"))
    with atomic_path(cached) as temporary:
        temporary.write_text(json.dumps(found), encoding="utf-8")
    return found


def docs_rows(split: str = "heldout") -> Iterator[str]:
    """The text of one split, `"heldout"` (networkx, sympy) or `"train"`, package by package.

    Signatures and docstrings, repeats dropped. Joined by line ends it is deterministic for a set of
    installed versions. Packages that are not asked for are not read. Raises ValueError on an
    unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: allowed are {sorted(SPLITS)}")
    seen: set[str] = set()
    for package, distribution in SPLITS[split].items():
        parts = []
        for header, docstring in _package_docstrings(package, distribution):
            if docstring not in seen:
                seen.add(docstring)
                parts.append(f"{header}\n{docstring}\n")
        # lone surrogates can't be written as UTF-8; one package's tests hold some
        yield "\n".join(parts).encode("utf-8", errors="replace").decode("utf-8")


def docs_text(split: str = "heldout") -> str:
    """All of a split's text, see `docs_rows`."""
    return "\n".join(docs_rows(split))
