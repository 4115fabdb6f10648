"""The code that makes a result: where it stands in git, and hashes of what it is.

Hashes are 16 hexadecimal digits of SHA-256. Nothing here needs torch: a run is begun with it.
"""

import hashlib
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lib.loaded import files_hash
from lib.paths import ROOT

# what a run reads of the repository; the pages among it aside
READS = ("lib", "notebooks", "params", "models", "benchmarks", "pyproject.toml", "constraints.txt")


def code_facts(notebook: Path | None = None, parameters: dict[str, Any] | None = None) -> dict:
    """The code as it is now, with the time; `parameters` are all of a run, defaults included.

    `dirty` tells whether anything that a run reads is not as committed.
    """
    status = _git("status", "--porcelain", "--", *READS, ":(exclude)*.md")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "lib_sha256": files_hash([*(ROOT / "lib").rglob("*.py")], ROOT),
        "notebook_sha256": files_hash([notebook], notebook.parent) if notebook else None,
        "parameters_sha256": None if parameters is None else hash_of(parameters),
        "seed": (parameters or {}).get("seed"),
        "start": utc_now().isoformat(),
    }


def _git(*arguments: str) -> str | None:
    """What git says of the repository; None without git, or where this is no checkout."""
    if not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def hash_of(facts: Any) -> str:
    """Of what JSON can hold, such as the parameters of a run."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def utc_now() -> datetime:
    """The time in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)
