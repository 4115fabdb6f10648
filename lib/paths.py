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


def results_dir() -> Path:
    """Folder for figures, tables and executed notebooks: `KVLAB_RESULTS`, else `results/`."""
    return Path(os.environ.get("KVLAB_RESULTS", ROOT / "results")).resolve()


def cache_dir() -> Path:
    """Folder for corpus, tokens and checkpoints: `KVLAB_CACHE`, else `~/.cache/kv-lab`."""
    return Path(os.environ.get("KVLAB_CACHE", Path.home() / ".cache" / "kv-lab")).expanduser()


def local_path(name: str | Path) -> Path:
    """`name` from the working directory, or from the repository root if it is only there."""
    path = Path(name)
    return ROOT / path if (ROOT / path).exists() and not path.exists() else path


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
