"""What all workers share: a request a line in, an answer a line out, the loops and the memory.

Workers run in environments of their own, so this needs only torch, psutil and the standard
library. A request is {"task", "method", "length", "new_tokens", "memory"}; an answer is a dict of
numbers, or {"failure": "..."}.
"""

import ctypes
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F

Forward = Callable[[torch.Tensor, int], torch.Tensor]  # ids (1, n), position -> logits (1, *, V)


def serve(load: Callable, tasks: dict[str, Callable]) -> None:
    """Answer requests until the input ends.

    `load(folder, options)` gives the model, `tasks[name](model, method, ids, request, options)` a
    dict of numbers. The command line is the model's folder and the options as JSON.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    folder, options = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(options["threads"])
    ids = torch.tensor(json.loads(Path(folder, "ids.json").read_text()))
    model = load(folder, options)
    with torch.no_grad():  # read all weights in, so that no method's memory counts them
        model(input_ids=ids[None, :16], use_cache=True)
        sum(parameter.sum() for parameter in model.parameters())
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            with torch.no_grad(), PeakMemory(request.get("memory", False)) as memory:
                task = tasks[request["task"]]
                prompt = ids[None, : request["length"]]
                answer = task(model, request["method"], prompt, request, options)
            answer["peak_mib"] = memory.growth_mib
        except Exception as error:
            answer = {"failure": f"{type(error).__name__}: {error}".strip().split("\n")[0]}
        print(json.dumps(answer), file=answers, flush=True)


class PeakMemory:
    """How far the process' resident memory grew while the block ran, sampled every millisecond."""

    def __init__(self, active: bool):
        self.active = active
        self.growth_mib: float | None = None

    def __enter__(self) -> "PeakMemory":
        if self.active:
            gc.collect()
            give_back_freed_memory()
            self._process, self._over = psutil.Process(), threading.Event()
            self._before = self._peak = self._process.memory_info().rss
            self._thread = threading.Thread(target=self._sample)
            self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._over.wait(0.001):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *_) -> None:
        if self.active:
            self._over.set()
            self._thread.join()
            self.growth_mib = (self._peak - self._before) / 2**20


def give_back_freed_memory() -> None:
    """Let glibc return freed memory, so that what one method freed is not another's for nothing."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def greedy(forward: Forward, ids: torch.Tensor, new_tokens: int) -> dict:
    """The manual greedy loop, timed as `lib.generate` times its own."""
    times = []
    began = time.perf_counter()
    logits = forward(ids, 0)
    for index in range(new_tokens):
        token = logits[:, -1].argmax(-1, keepdim=True)
        times.append(time.perf_counter() - began)
        if index + 1 < new_tokens:
            began = time.perf_counter()
            logits = forward(token, ids.shape[1] + index)
    return {"ttft": times[0], "step_times": times[1:]}


def token_by_token(forward: Forward, ids: torch.Tensor) -> dict:
    """Mean NLL (nats) of the tokens 1 .. T-1, fed one at a time, and the time it took."""
    began = time.perf_counter()
    losses = []
    for index in range(ids.shape[1] - 1):
        logits = forward(ids[:, index : index + 1], index)
        losses.append(F.cross_entropy(logits[:, -1].float(), ids[:, index + 1]))
    nll = torch.stack(losses).double().mean().item()
    return {"nll": nll, "seconds": time.perf_counter() - began}
