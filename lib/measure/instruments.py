"""Where a run's time went: seconds inside the attention, and in named parts."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lib.cache.attention import NAME
from lib.cache.hooks import transformers_model
from lib.require import require

from .machine import now


class AttentionWatch:
    """Seconds of every call of an attention function, in order. A GPU is asked, not waited for."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._spans = []

    def run(self, function: Callable, *args, **kwargs):
        """Call an attention function and note how long it takes."""
        began = self._mark()
        result = function(*args, **kwargs)
        self._spans.append((began, self._mark()))
        return result

    def _mark(self):
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @property
    def seconds(self) -> list[float]:
        """One number for each call so far."""
        if not self._cuda:
            return [end - began for began, end in self._spans]
        torch.cuda.synchronize()
        return [began.elapsed_time(end) / 1000 for began, end in self._spans]


@contextmanager
def watched_attention(model) -> Iterator[AttentionWatch]:
    """Time each call of the model's attention function, or of ours in its place, in the block."""
    own, what = model.config._attn_implementation, "one that takes it from AttentionInterface"
    require(transformers_model(model)._can_set_attn_implementation(), "attention", own, what)
    allowed = "one of transformers' attention functions, such as 'sdpa'"
    require(own in ALL_ATTENTION_FUNCTIONS, "attn_implementation", own, allowed)
    watch = AttentionWatch(model.device)
    before = {name: ALL_ATTENTION_FUNCTIONS[name] for name in (own, NAME)}
    for name, function in before.items():
        ALL_ATTENTION_FUNCTIONS[name] = partial(watch.run, function)
    try:
        yield watch
    finally:
        for name, function in before.items():
            del ALL_ATTENTION_FUNCTIONS[name]  # the registered one shows again
            if ALL_ATTENTION_FUNCTIONS[name] is not function:
                ALL_ATTENTION_FUNCTIONS[name] = function


class Stopwatch:
    """Adds up the seconds spent in named parts, an accelerator's work included."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds = Counter()

    def run(self, part: str, function: Callable, *args, **kwargs):
        """Call `function` on `part`'s time."""
        began = now(self.device)
        result = function(*args, **kwargs)
        self.seconds[part] += now(self.device) - began
        return result
