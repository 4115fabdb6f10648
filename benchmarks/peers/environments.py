"""An environment of its own for every peer, made on first use and kept in the cache folder."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lib.paths import cache_dir

HERE = Path(__file__).resolve().parent
VERSIONS = ("version", "transformers", "torch", "python")
_ASK = """
import json, platform, sys
from importlib.metadata import version
print(json.dumps([*map(version, sys.argv[1:]), platform.python_version()]))
"""


class Environment(NamedTuple):
    """An interpreter, or why there is none."""

    python: str
    failure: str | None = None


@cache
def environment(peer: str | None) -> Environment:
    """A peer's environment, made as `<peer>.txt` says if needed; ours for None.

    Pip's own settings hold, such as where to look for a build of torch.
    """
    if peer is None:
        return Environment(sys.executable)
    pins = (HERE / f"{peer}.txt").read_text(encoding="utf-8")
    folder = cache_dir() / "peers" / peer
    python = str(folder / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    stamp = folder / "installed.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == pins:
        return Environment(python)
    print(f"installing {peer} into {folder}", file=sys.stderr, flush=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        # torch first and alone: whatever a peer asks for, this one stays
        [*pip, next(line for line in pins.splitlines() if line.startswith("torch=="))],
        [*pip, "-r", str(HERE / f"{peer}.txt")],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = error_line(done.stdout + done.stderr)
            return Environment(python, f"not installed: {reason}")
    stamp.write_text(pins, encoding="utf-8")
    return Environment(python)


def error_line(output: str) -> str:
    """The line that says what went wrong: the first of pip's errors, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    of_pip = [line for line in lines if line.startswith("ERROR:")]
    return (of_pip or lines[-1:] or ["no output"])[0]


@cache
def versions(peer: str | None, package: str) -> dict[str, str]:
    """Versions of `package`, transformers, torch and Python in an environment, empty if unknown."""
    python, failure = environment(peer)
    if failure is None:
        command = [python, "-c", _ASK, package, "transformers", "torch"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return dict(zip(VERSIONS, json.loads(done.stdout), strict=True))
    return dict.fromkeys(VERSIONS, "")
