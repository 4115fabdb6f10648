"""A run's files reach the results folder only when the run is over and good.

A notebook run by `lib.run` or by papermill's command line writes into a staging folder inside the
results folder (`KVLAB_RESULTS` points there). A good run's files then replace the earlier ones,
each in one step; a failed run leaves them as they are and keeps its executed copy for reading.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat

from lib.paths import NOTEBOOKS, ROOT, results_dir
from lib.results.code import code_facts
from lib.results.manifest import MANIFEST, add_to_manifest, read_manifest

from . import params

_ADDED_BY_PAPERMILL = {"injected-parameters", "papermill-error-cell-tag"}
_WIDGET = "application/vnd.jupyter.widget-view+json"


@contextmanager
def staged_run(notebook: Path, parameters: dict[str, Any]) -> Iterator[Path]:
    """Yield the path for the executed copy of `notebook`, in a staging folder that holds its run.

    `KVLAB_RESULTS`, `KVLAB_NOTEBOOK`, `KVLAB_PARAMETERS` (those that are not the defaults, as JSON)
    and `KVLAB_RUN` (the code as it was when the run began) are set for the kernel while the block
    runs.
    """
    contract = params.read_contract(notebook)
    changed = params.changed(contract, parameters)
    code = code_facts(notebook, params.defaults_of(contract) | parameters)
    results = results_dir()
    results.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=results))
    copy = staging / "notebooks" / notebook.name
    copy.parent.mkdir()
    failed_copy = failed_copy_path(notebook)
    try:
        with environment(
            KVLAB_RESULTS=str(staging),
            KVLAB_NOTEBOOK=notebook.stem,
            KVLAB_PARAMETERS=json.dumps(changed),
            KVLAB_RUN=json.dumps(code),
        ):
            yield copy
        if copy.exists():
            tidy_copy(copy, copy_path(notebook).parent)
        _merge(staging, results)
        failed_copy.unlink(missing_ok=True)
    except BaseException:
        if copy.exists():
            failed_copy.parent.mkdir(exist_ok=True)
            os.replace(copy, failed_copy)
        raise
    finally:
        shutil.rmtree(staging)


def copy_path(notebook: Path) -> Path:
    """Where the executed copy of a good run is kept."""
    return results_dir() / "notebooks" / notebook.name


def failed_copy_path(notebook: Path) -> Path:
    """Where the executed copy of a failed run is kept."""
    return copy_path(notebook).with_suffix(".failed.ipynb")


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _merge(staging: Path, results: Path) -> None:
    """Move every file to its place; the manifest last: it names only files that are there."""
    for source in sorted(staging.rglob("*")):
        if source.is_file() and source.name != MANIFEST:
            target = results / source.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    if entries := read_manifest(staging):
        add_to_manifest(results, entries)


def tidy_copy(path: Path, folder: Path) -> None:
    """Drop from an executed copy what differs from run to run or renders as nothing.

    That is papermill's times and this machine's paths, and widgets, which no static page shows.
    Links into the repository are made to work from `folder`, where the copy will be.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    about = notebook.metadata.get("papermill", {})
    notebook.metadata["papermill"] = {
        key: about[key] for key in ("parameters", "version") if key in about
    }
    up = os.path.relpath(ROOT, folder) if folder.is_relative_to(ROOT) else ".."
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("](../", f"]({up}/")
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if _WIDGET not in out.get("data", {})]
    nbformat.write(notebook, path)


def last_cell(copy: Path) -> tuple[int, str] | None:
    """Number (from 1, as in the source notebook) and first line of the last cell that was begun."""
    last, number = None, 0
    for cell in nbformat.read(copy, as_version=4).cells if copy.exists() else []:
        number += not _ADDED_BY_PAPERMILL & set(cell.metadata.get("tags", []))
        # the status says little: papermill calls a cell completed when its kernel died in it
        if cell.metadata.get("papermill", {}).get("start_time"):
            last = number, cell.source.partition("\n")[0]
    return last


def is_ours(notebook: str | Path) -> bool:
    """Whether a path is a notebook of this repository."""
    path = Path(notebook)
    return path.suffix == ".ipynb" and path.is_file() and path.resolve().parent == NOTEBOOKS
