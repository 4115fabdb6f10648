"""One line that lets a model's plain `generate()` stream, and one that takes it back."""

from weakref import WeakKeyDictionary

from transformers import DynamicCache

from .cache import CompressedCache
from .compressors import StreamingLLM
from .compressors.base import require
from .hooks import attach

_handles: WeakKeyDictionary = WeakKeyDictionary()  # model -> its hooks


def enable_streaming_llm(
    model, start_size: int = 4, recent_size: int = 508, buffer: int = 64, prefill: str = "streamed"
) -> None:
    """From now on `model.generate(**inputs)` keeps `start_size` sinks and `recent_size` tokens.

    Parameters in tokens; the cache grows by `buffer` before it is cut. Every new stream gets its
    own `lib.CompressedCache`; raises ValueError for models that it can't work with. Calling it
    again replaces the sizes. A call of the model without a cache stays dense.
    """
    method = StreamingLLM(start_size, recent_size)

    def new_cache():
        return CompressedCache(model, method, buffer, prefill=prefill)

    disable_streaming_llm(model)
    handles = attach(model)
    try:
        new_cache()  # raises where the model or a size won't do
    except ValueError:
        for handle in handles:
            handle.remove()
        raise

    def stream(model, args, kwargs):
        cache = kwargs.get("past_key_values")
        if cache is None or isinstance(cache, CompressedCache):
            return None
        ok = type(cache) is DynamicCache and cache.get_seq_length() == 0
        what = "an empty DynamicCache, as generate() makes it, or a CompressedCache"
        require(ok, "past_key_values", type(cache).__name__, what)
        return args, kwargs | {"past_key_values": new_cache()}

    hook = model.register_forward_pre_hook(stream, with_kwargs=True, prepend=True)
    _handles[model] = [hook, *handles]


def disable_streaming_llm(model) -> None:
    """Let `model.generate()` keep everything again, as before `enable_streaming_llm`."""
    for handle in _handles.pop(model, []):
        handle.remove()
