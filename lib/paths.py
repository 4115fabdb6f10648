"""Where things lie: the repository, its results, and the cache on disk."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
NOTEBOOKS = ROOT / "notebooks"
PARAMS = ROOT / "params"


def all_notebooks() -> list[Path]:
    """The numbered notebooks, in order."""
    return sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))


def results_dir() -> Path:
    """Folder for figures, tables and executed notebooks: `KVLAB_RESULTS`, else `results/`."""
    return _expanded(os.environ.get("KVLAB_RESULTS") or ROOT / "results").resolve()


def cache_dir() -> Path:
    """Folder for corpus, tokens and checkpoints: `KVLAB_CACHE`, else `~/.cache/kv-lab`."""
    return _expanded(os.environ.get("KVLAB_CACHE") or "~/.cache/kv-lab")


def headless() -> bool:
    """Whether a notebook runs with nobody looking at it: `lib/run/staging.py` names it then."""
    return "KVLAB_NOTEBOOK" in os.environ


def local_path(name: str | Path) -> Path:
    """`name` from the working directory, or from the repository root if it is only there."""
    path = _expanded(name)
    return ROOT / path if (ROOT / path).exists() and not path.exists() else path


def _expanded(name: str | Path) -> Path:
    """`~` and `~user` replaced by that home, where there is one."""
    return Path(os.path.expanduser(name))  # Path.expanduser raises on an unknown user


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that replaces it only if the block succeeds."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=".writing-", dir=target.parent)
    temporary = Path(folder) / target.name
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
        os.rmdir(folder)
