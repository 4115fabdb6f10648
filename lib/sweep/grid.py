"""A sweep's file read as a list of runs: `params/sweep.yaml` says in its head how it is written."""

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lib.paths import NOTEBOOKS, all_notebooks, results_dir
from lib.require import require
from lib.results.manifest import read_manifest
from lib.run import params

from .depends import version_of

LIMITS = {"minutes": 60.0, "memory_gb": 8.0, "gpus": 0, "threads": 1}
KEYS = ("notebook", "table", "over", "parameters", *LIMITS)


@dataclass(frozen=True)
class Run:
    """One run of a notebook: what it is given, which of its tables counts, and what it may use."""

    notebook: Path
    table: str
    parameters: dict[str, Any]  # checked
    minutes: float
    memory_gb: float
    gpus: int
    threads: int
    key: str  # what is asked for
    version: str  # by what it is answered
    home: Path  # the folder of the sweep's files

    @property
    def id(self) -> str:
        """The name of its files: another question or other code is another name."""
        return f"{self.notebook.stem}-{self.key}-{self.version}"

    @property
    def rows(self) -> Path:
        """Its rows of the merged table, a CSV."""
        return self.home / "runs" / f"{self.id}.csv"

    @property
    def folder(self) -> Path:
        """All it saves: its results folder."""
        return self.home / "runs" / self.id

    @property
    def saved(self) -> Path:
        """Its table as the notebook saves it, a CSV."""
        return self.folder / "tables" / f"{self.table}.csv"

    @property
    def log(self) -> Path:
        """Its notebook as executed so far; it stays whatever the run comes to."""
        return self.home / "logs" / f"{self.id}.ipynb"

    def made_by(self) -> dict[str, Any]:
        """The manifest's entry of its table; empty where there is none."""
        name = self.saved.relative_to(self.folder).as_posix()
        return read_manifest(self.folder).get(name, {})


def sweep_dir() -> Path:
    """The folder of all sweeps' files, `sweep` in the results folder."""
    return results_dir() / "sweep"


def read_runs(file: Path) -> list[Run]:
    """All runs of a sweep's file, each once, in its order.

    ValueError that names the grid and what is allowed, before anything runs.
    """
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    grids = content.get("grids") if isinstance(content, dict) else None
    require(isinstance(grids, list) and grids, "grids", grids, "a list of grids, at least one")
    runs = {}
    for number, grid in enumerate(grids, start=1):
        try:
            runs |= {run.id: run for run in _runs_of(grid)}
        except ValueError as error:
            raise ValueError(f"{file.name}, grid {number}: {error}") from error
    return list(runs.values())


def _runs_of(grid: Any) -> list[Run]:
    require(isinstance(grid, dict), "grid", grid, f"a mapping with {', '.join(KEYS)}")
    for key in grid:
        require(key in KEYS, "key", key, f"one of {', '.join(KEYS)}")
    limits = {name: params.number(grid.get(name, default)) for name, default in LIMITS.items()}
    for name, value in limits.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == "gpus":
            require(number and value in (0, 1), name, value, "0 or 1")
        elif name == "threads":
            require(
                number and isinstance(value, int) and value > 0,
                name,
                value,
                "a whole number above 0",
            )
        else:
            require(number and value > 0, name, value, "a number above 0")
    notebook = NOTEBOOKS / f"{grid.get('notebook')}.ipynb"
    known = ", ".join(path.stem for path in all_notebooks())
    require(notebook.is_file(), "notebook", grid.get("notebook"), f"one of {known}")
    require(isinstance(grid.get("table"), str), "table", grid.get("table"), "a table it saves")
    contract = params.read_contract(notebook)
    over, fixed = grid.get("over") or {}, grid.get("parameters") or {}
    for key, named in (("over", over), ("parameters", fixed)):
        ok = isinstance(named, dict) and all(isinstance(name, str) for name in named)
        require(ok, key, named, "a mapping from names of parameters")
    for names, values in over.items():
        require(isinstance(values, list) and values, names, values, "a list of values to try")
    runs = []
    for chosen in itertools.product(*over.values()):
        given = dict(fixed)
        for names, value in zip(over, chosen, strict=True):
            given |= dict.fromkeys(names.split(), value)
        checked = params.check(contract, _with_lists(contract, given))
        # sums on a GPU, or by other threads, are others
        asked = [grid["table"], checked, limits["gpus"], limits["threads"]]
        key = json.dumps(asked, sort_keys=True)
        values = params.defaults_of(contract) | checked
        runs.append(
            Run(
                notebook,
                grid["table"],
                checked,
                **limits,
                key=hashlib.sha256(key.encode()).hexdigest()[:8],
                version=version_of(notebook, values.values()),
                home=sweep_dir(),
            )
        )
    return runs


def _with_lists(contract: list[params.Parameter], given: dict[str, Any]) -> dict[str, Any]:
    """`given` with `[x]` for an `x` that is given to a parameter that is a list."""
    lists = {parameter.name for parameter in contract if parameter.is_list}
    return {
        name: [value] if name in lists and not isinstance(value, list) else value
        for name, value in given.items()
    }
