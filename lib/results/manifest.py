"""The manifest of the results: what made a figure or table, when, and on what machine.

`results/manifest.json` is written in one step, so it is always whole. On disk the facts that the
files of a run share stand once, under `runs`, and each of `files` names its run; in Python an entry
is whole: `provenance.entry` says what it holds.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from filelock import FileLock

from lib.paths import atomic_path, cache_dir

MANIFEST = "manifest.json"
Entries = dict[str, dict[str, Any]]
# what differs between the files of a run
_OF_A_FILE = ("caption", "seconds", "cpu_peak_mib", "gpu_peak_mib")


def read_manifest(folder: Path) -> Entries:
    """Whole entries of a results folder by file; none if it has no manifest yet."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    manifest = json.loads(path.read_text(encoding="utf-8"))
    return {file: _whole(entry, manifest["runs"]) for file, entry in manifest["files"].items()}


def add_to_manifest(folder: Path, entries: Entries) -> None:
    """Enter whole `entries`, replacing those of the same files.

    Writers of a folder wait for each other, so that none loses another's entries.
    """
    with FileLock(_lock_of(folder)):
        manifest = _shared(read_manifest(folder) | entries)
        with atomic_path(folder / MANIFEST) as path:
            text = json.dumps(manifest, indent=1, ensure_ascii=False)
            path.write_text(f"{text}\n", encoding="utf-8")


def _lock_of(folder: Path) -> Path:
    """The lock of a results folder: not in it, since all of it is results."""
    locks = cache_dir() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return locks / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.lock"


def _shared(entries: Entries) -> dict[str, Entries]:
    """Whole entries as they stand on disk: what the files of a run share stands once."""
    runs, files = {}, {}
    for file, entry in sorted(entries.items()):
        shared = {name: fact for name, fact in entry.items() if name not in _OF_A_FILE}
        run = _run_id(shared)
        runs[run] = shared
        files[file] = {name: entry[name] for name in _OF_A_FILE if name in entry} | {"run": run}
    return {"files": files, "runs": dict(sorted(runs.items()))}


def _whole(entry: dict[str, Any], runs: Entries) -> dict[str, Any]:
    own = {name: fact for name, fact in entry.items() if name != "run"}
    return own | runs[entry["run"]]


def _run_id(shared: dict[str, Any]) -> str:
    """The notebook and a hash of all that the run's files share."""
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:8]
    return f"{shared.get('notebook') or 'by hand'} {digest}"
