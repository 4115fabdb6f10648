"""Methods as functions of plain (key, value) pairs or of a transformers `Cache`."""

from collections.abc import Callable
from functools import cache

import torch
from transformers import Cache

from .base import Compressor, Held, gather_tokens

Pairs = list[tuple[torch.Tensor, torch.Tensor]] | tuple[tuple[torch.Tensor, torch.Tensor], ...]


def compress(past_key_values: Pairs | Cache, compressor: Compressor) -> Pairs | Cache:
    """Apply `compressor` once to a list or tuple of (key, value) or a transformers `Cache`.

    Pairs come back as a new list or tuple; a `Cache` is cut in place and returned. Keys keep the
    rotation they have (original positions): turning them needs the model (`lib.CompressedCache`).
    """
    if isinstance(past_key_values, Cache):
        layers = past_key_values.layers
        for layer_idx, layer in enumerate(layers):
            if layer.is_initialized and layer.keys.numel():
                held = Held(layer.keys, layer.values, layer_idx, len(layers))
                layer.keys, layer.values = _cut(held, compressor)
        return past_key_values
    if not isinstance(past_key_values, (list, tuple)):
        raise TypeError(
            f"past_key_values is a {type(past_key_values).__name__}: "
            "allowed are a list or tuple of (key, value) and a transformers Cache"
        )
    held = [Held(k, v, i, len(past_key_values)) for i, (k, v) in enumerate(past_key_values)]
    cut = [_cut(layer, compressor) for layer in held]
    return type(past_key_values)(cut)


@cache
def compress_function(method: type[Compressor]) -> Callable[..., Pairs | Cache]:
    """`method` as a function: `f(past_key_values, **parameters)`, see `compress`."""

    def function(past_key_values: Pairs | Cache, *args, **kwargs) -> Pairs | Cache:
        return compress(past_key_values, method(*args, **kwargs))

    function.__name__ = function.__qualname__ = f"{method.name.removesuffix('_compress')}_compress"
    function.__doc__ = f"{method.__name__}, applied once to (key, value) pairs or a Cache."
    function.method = method
    return function


def _cut(held: Held, compressor: Compressor) -> tuple[torch.Tensor, torch.Tensor]:
    index = compressor.keep(held)
    if index is None:
        return held.keys, held.values
    return gather_tokens(held.keys, index), gather_tokens(held.values, index)
