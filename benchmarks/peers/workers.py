"""A worker process: started once a model, asked again and again, one at a time."""

import contextlib
import json
import os
import subprocess
import threading
from pathlib import Path

from environments import HERE, environment, error_line
from methods import PACKAGES

from lib.paths import ROOT

PATIENCE = 600  # seconds for one answer


class Worker:
    """A process that answers requests (`serve.py`); `failure` says why there is none."""

    def __init__(self, peer: str | None, script: str, folder: Path, options: dict):
        python, self.failure = environment(peer)
        self._log = folder / f"{script}.log"
        self._process = None
        if self.failure is None:
            threads = str(options["threads"])
            settings = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    [python, HERE / f"worker_{script}.py", folder, json.dumps(options)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    cwd=ROOT,
                    env=os.environ | settings | {"HF_HUB_OFFLINE": "1"},
                )
            self._read()  # a first line says that the model is loaded

    def ask(self, request: dict) -> dict:
        """The answer to a request; it holds `failure` if it could not be done."""
        if self.failure is None:
            with contextlib.suppress(BrokenPipeError):  # the process is gone: reading says why
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
            answer = self._read()
        return answer if self.failure is None else {"failure": self.failure}

    def _read(self) -> dict:
        timer = threading.Timer(PATIENCE, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if line:
            return json.loads(line)
        code = self._process.wait()
        reason = error_line(self._log.read_text(encoding="utf-8", errors="replace"))
        self.failure = f"worker ended with {code}: {reason}"
        return {}

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def start_workers(folder: Path, options: dict) -> dict[str, Worker]:
    """All workers that `PACKAGES` name."""
    peers = {package.worker: package.environment for package in PACKAGES}
    return {script: Worker(peer, script, folder, options) for script, peer in peers.items()}
