"""The manifest of the results: what made a figure or table, and on what machine.

`results/manifest.json` maps a file to its entry: caption, notebook, the run's parameters where they
are not the defaults, and machine. It is written in one step, so it is always whole.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from filelock import FileLock

from lib.paths import atomic_path, cache_dir

MANIFEST = "manifest.json"
Entries = dict[str, dict[str, Any]]


def read_manifest(folder: Path) -> Entries:
    """Entries of a results folder by file; none if it has no manifest yet."""
    path = folder / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _one_at_a_time(write):
    """Let the writers of a folder's manifest wait for each other: none loses another's entries."""

    @functools.wraps(write)
    def locked(folder: Path, entries: Entries) -> None:
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        locks = cache_dir() / "locks"  # not in the folder, all of which is results
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{name}.lock"):
            write(folder, entries)

    return locked


@_one_at_a_time
def add_to_manifest(folder: Path, entries: Entries) -> None:
    """Enter `entries`, replacing those of the same files."""
    merged = dict(sorted((read_manifest(folder) | entries).items()))
    with atomic_path(folder / MANIFEST) as path:
        path.write_text(json.dumps(merged, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
