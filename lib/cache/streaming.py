"""One line that lets a model's plain `generate()` stream, and one that takes it back."""

from dataclasses import dataclass

import torch

from lib.compressors import StreamingLLM
from lib.require import require

from .baseline import Dense, DenseStatic
from .compressed import CompressedCache
from .hooks import Announced, body_of, by_name, detach, remove_hooks

OURS = (Announced, Dense, DenseStatic)  # caches that stay what they are
CANDIDATES = 64  # tokens that assisted decoding may guess wrong in one step


@dataclass
class Streaming:
    """A forward pre-hook by which the empty cache that a call brings becomes a CompressedCache.

    It stays the same object, which the caller may keep for the next call.
    """

    settings: dict  # arguments of the caches

    def __call__(self, model, args, kwargs) -> None:
        cache = kwargs.get("past_key_values")
        if len(args) < 2 and (cache is None or isinstance(cache, OURS)):
            return
        self._convert(model, by_name(model, args, kwargs).get("past_key_values"))

    @torch.compiler.disable
    def _convert(self, model, cache) -> None:
        if cache is None or isinstance(cache, OURS):
            return
        kind = "offloaded" if getattr(cache, "offloading", False) else type(cache).__name__
        ok = kind == "DynamicCache" and cache.get_seq_length() == 0
        what = (
            "an empty DynamicCache, as generate() makes it without cache_implementation, or a "
            "CompressedCache, while streaming is enabled"
        )
        require(ok, "past_key_values", kind, what)
        cache.__class__ = CompressedCache
        cache.__init__(model, **self.settings)
        for layer in cache.layers:  # if this is assisted decoding, which doesn't say so any more
            layer.recording = CANDIDATES


def enable_streaming_llm(
    model, start_size: int = 4, recent_size: int = 508, buffer: int = 64, prefill: str = "streamed"
) -> None:
    """From now on `model.generate(**inputs)` keeps `start_size` sinks and `recent_size` tokens.

    Parameters in tokens; the cache grows by `buffer` before it is cut. Every new stream gets its
    own `lib.CompressedCache`; raises ValueError for models that it can't work with. Calling it
    again replaces the sizes. A call without a cache (`use_cache=False`) stays dense.
    """
    method = StreamingLLM(start_size, recent_size)
    settings = {"compressor": method, "buffer": buffer, "prefill": prefill}
    body = body_of(model)
    first = CompressedCache(body, **settings)  # raises where the model or a size won't do
    disable_streaming_llm(model)
    body.register_forward_pre_hook(Streaming(settings), with_kwargs=True, prepend=True)
    del first  # till here it kept the hook that announces steps


def disable_streaming_llm(model) -> None:
    """Let `model.generate()` keep everything again, as before `enable_streaming_llm`."""
    remove_hooks(body_of(model), lambda hook: isinstance(hook, Streaming))
    detach(model)
