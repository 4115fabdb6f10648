"""Methods as functions of plain (key, value) pairs or of a transformers `DynamicCache`."""

from collections.abc import Callable
from functools import cache

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .base import Compressor, Held, gather_tokens

Pairs = list[tuple[torch.Tensor, torch.Tensor]] | tuple[tuple[torch.Tensor, torch.Tensor], ...]


def compress(past_key_values: Pairs | DynamicCache, compressor: Compressor) -> Pairs | DynamicCache:
    """Apply `compressor` once to a list or tuple of (key, value) or a transformers `DynamicCache`.

    Pairs come back as a new list or tuple; a cache is cut in place and returned. Keys keep the
    rotation they have (original positions): turning them needs the model (`lib.CompressedCache`).
    TypeError on anything else, such as a cache of fixed size or with layers of their own window.
    """
    if isinstance(past_key_values, DynamicCache):
        layers = past_key_values.layers
        for layer in layers:
            if type(layer) is not DynamicLayer:
                raise TypeError(_refusal(f"DynamicCache with a {type(layer).__name__}"))
        for layer_idx, layer in enumerate(layers):
            if layer.is_initialized and layer.keys.numel():
                held = Held(layer.keys, layer.values, layer_idx, len(layers))
                layer.keys, layer.values = _cut(held, compressor)
        return past_key_values
    if not isinstance(past_key_values, (list, tuple)):
        raise TypeError(_refusal(type(past_key_values).__name__))
    held = [Held(k, v, i, len(past_key_values)) for i, (k, v) in enumerate(past_key_values)]
    cut = [_cut(layer, compressor) for layer in held]
    return type(past_key_values)(cut)


def _refusal(kind: str) -> str:
    return (
        f"past_key_values is a {kind}: allowed are a list or tuple of (key, value) and a "
        "transformers DynamicCache that keeps all it is given (made without a config, it does)"
    )


@cache
def compress_function(method: type[Compressor]) -> Callable[..., Pairs | DynamicCache]:
    """`method` as a function: `f(past_key_values, **parameters)`, see `compress`."""

    def function(past_key_values: Pairs | DynamicCache, *args, **kwargs) -> Pairs | DynamicCache:
        return compress(past_key_values, method(*args, **kwargs))

    function.__name__ = function.__qualname__ = f"{method.name.removesuffix('_compress')}_compress"
    function.__doc__ = (
        f"{method.__name__}, applied once to (key, value) pairs or a DynamicCache. Layers that it "
        "skips stay longer: transformers then takes single tokens only, under sdpa."
    )
    function.method = method
    return function


def _cut(held: Held, compressor: Compressor) -> tuple[torch.Tensor, torch.Tensor]:
    index = compressor.keep(held)
    if index is None:
        return held.keys, held.values
    return gather_tokens(held.keys, index), gather_tokens(held.values, index)
