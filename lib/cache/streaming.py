"""One line that lets a model's plain `generate()` stream, and one that takes it back."""

from dataclasses import dataclass, field

from transformers import DynamicCache

from lib.compressors import StreamingLLM
from lib.require import require

from .compressed import CompressedCache
from .hooks import attach


@dataclass
class Streaming:
    """A forward pre-hook that puts a CompressedCache in the place of generate()'s empty cache."""

    method: StreamingLLM
    buffer: int
    prefill: str
    handles: list = field(default_factory=list)  # of all the hooks to remove with it

    def new_cache(self, model) -> CompressedCache:
        return CompressedCache(model, self.method, self.buffer, prefill=self.prefill)

    def __call__(self, model, args, kwargs):
        cache = kwargs.get("past_key_values")
        if cache is None or isinstance(cache, CompressedCache):
            return None
        ok = type(cache) is DynamicCache and cache.get_seq_length() == 0
        what = "an empty DynamicCache, as generate() makes it, or a CompressedCache"
        require(ok, "past_key_values", type(cache).__name__, what)
        return args, kwargs | {"past_key_values": self.new_cache(model)}


def enable_streaming_llm(
    model, start_size: int = 4, recent_size: int = 508, buffer: int = 64, prefill: str = "streamed"
) -> None:
    """From now on `model.generate(**inputs)` keeps `start_size` sinks and `recent_size` tokens.

    Parameters in tokens; the cache grows by `buffer` before it is cut. Every new stream gets its
    own `lib.CompressedCache`; raises ValueError for models that it can't work with. Calling it
    again replaces the sizes. A call without a cache (`use_cache=False`) stays dense.
    """
    hook = Streaming(StreamingLLM(start_size, recent_size), buffer, prefill)
    disable_streaming_llm(model)
    hook.handles += attach(model)
    try:
        hook.new_cache(model)  # raises where the model or a size won't do
    except ValueError:
        _remove(hook)
        raise
    hook.handles.append(model.register_forward_pre_hook(hook, with_kwargs=True, prepend=True))


def disable_streaming_llm(model) -> None:
    """Let `model.generate()` keep everything again, as before `enable_streaming_llm`."""
    for hook in list(model._forward_pre_hooks.values()):
        if isinstance(hook, Streaming):
            _remove(hook)


def _remove(hook: Streaming) -> None:
    for handle in hook.handles:
        handle.remove()
