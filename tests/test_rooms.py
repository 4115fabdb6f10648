"""The plan of `lib`: which room may import which, read from the imports themselves."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from lib.paths import ROOT

LIB = ROOT / "lib"
# at the root of `lib`: what every room may use
TOOLS = {"require", "paths", "progress", "names", "plots", "loaded"}
# what else a room may import; arrows run downward only
BELOW = {
    "compressors": set(),
    "cache": {"compressors"},
    "load": set(),
    "measure": {"cache", "compressors"},
    "training": {"measure", "cache", "compressors", "load"},
    "experiments": {"training", "measure", "cache", "compressors", "load"},
    "results": {"measure"},
    "run": {"results", "load"},
    "sweep": {"run", "results"},
    "report": {"results", "measure", "load", "compressors"},
}
MODULES = sorted(path for path in LIB.rglob("*.py") if path != LIB / "__init__.py")


def imports(path: Path) -> set[str]:
    """The modules and names of `lib` that a file imports, as `room.module.name`."""
    package, found = path.relative_to(ROOT).parent.parts, set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("lib.") for name in found if name.startswith("lib.")}


def room(path: Path) -> str:
    """`cache` of lib/cache/slots.py, and the module's own name for lib/paths.py."""
    return path.relative_to(LIB).with_suffix("").parts[0]


def named(path: Path) -> str:
    return str(path.relative_to(LIB))


def test_every_file_has_a_room():
    assert any(imports(path) for path in MODULES)
    rooms = {room(path) for path in MODULES}
    assert rooms == TOOLS | BELOW.keys()
    TopologicalSorter(BELOW).prepare()  # CycleError, were there a way back


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_arrows_run_downward(path):
    allowed = {room(path)} | TOOLS | BELOW.get(room(path), set())
    if room(path) in TOOLS:
        allowed = TOOLS
    assert {name.split(".")[0] for name in imports(path)} <= allowed


def family(module: str) -> str:
    """The experiment that a module belongs to: its figures are beside it."""
    return module.split(".")[0].removesuffix("_plots")


@pytest.mark.parametrize("path", sorted((LIB / "experiments").rglob("*.py")), ids=named)
def test_no_experiment_imports_another(path):
    own = family(".".join(path.relative_to(LIB / "experiments").with_suffix("").parts))
    others = {name.split(".", 1)[1] for name in imports(path) if name.startswith("experiments.")}
    assert {family(name) for name in others} <= {own}


def test_experiments_are_named_as_notebooks():
    notebooks = {path.stem[3:] for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    modules = {path.stem for path in (LIB / "experiments").iterdir() if path.stem[0] != "_"}
    assert {family(module) for module in modules} <= notebooks


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_no_module_knows_a_notebook(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    texts = [node.value for node in texts if isinstance(node.value, str) and id(node) not in prose]
    assert not [text for text in texts if re.search(r"\d\d_[a-z]\w+", text)]


def test_packages_are_empty_apart_from_the_methods():
    full = [path for path in LIB.rglob("__init__.py") if path.read_text(encoding="utf-8").strip()]
    assert sorted(map(named, full)) == ["__init__.py", "compressors/__init__.py"]
