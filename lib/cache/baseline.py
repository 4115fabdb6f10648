"""The cache of a run, ours or transformers' own, and what either holds and takes."""

import torch
from transformers import Cache, DynamicCache, StaticCache

from lib.compressors import Compressor
from lib.require import require

from .checks import check_checkpointing, check_method
from .compressed import CompressedCache
from .hooks import Announced, attach, transformers_model
from .rope import check_limit, check_rope_type, length_limit

# given in a compressor's place: dense attention in transformers' `StaticCache`, which never copies
STATIC = "static"
LARGE_CHUNK = 512  # tokens fed at once where that changes nothing


def make_cache(
    model,
    compressor: Compressor | str | None,
    buffer: int = 0,
    positions: str = "in_cache",
    prefill: str = "streamed",
    static: bool = False,
    room: int = 0,
) -> Cache:
    """The cache of a run: a `lib.CompressedCache`, or for None a dense `DynamicCache`.

    For `STATIC` it is a `StaticCache` with room for `room` tokens, dense too.

    Raises ValueError unless these are a compressor and a way to run it on this model.
    """
    if compressor == STATIC:
        what = "None or a Compressor; a static cache needs its room"
        require(room > 0, "compressor", compressor, what)
        check_method(None, positions, buffer, prefill)
        check_checkpointing(transformers_model(model))
        check_limit(length_limit(model.config), room)
        return DenseStatic(config=model.config, max_cache_len=room)
    if compressor is not None:
        return CompressedCache(model, compressor, buffer, positions, prefill, static)
    check_method(None, positions, buffer, prefill)
    inner = transformers_model(model)
    check_checkpointing(inner)
    limit = length_limit(inner.config)
    return Dense(config=inner.config) if limit is None else Limited(inner, limit)


class Dense(DynamicCache):
    """A `DynamicCache` that stays one where streaming is enabled."""


class DenseStatic(StaticCache):
    """A `StaticCache` that stays one where streaming is enabled."""


def streams(compressor: Compressor | str | None) -> bool:
    """Whether the method reads its prompt by chunks, every token through its own window."""
    return isinstance(compressor, Compressor) and bool(compressor.window)


def any_chunk(compressor: Compressor | str | None) -> bool:
    """Whether a text gives the same in chunks of any size: so in `LARGE_CHUNK`, which is fast."""
    return not isinstance(compressor, Compressor) or streams(compressor)


class Limited(DynamicCache, Announced):
    """A `DynamicCache` that ends where all keys would have to change: `limit`, (RoPE type, tokens).

    Beyond it the model rotates by other frequencies, and keys that are cached don't fit.
    """

    def __init__(self, model, limit: tuple[str, int]):
        super().__init__(config=model.config)
        self.limit = limit
        attach(model, self)

    def step(self, n: int, *args, **kwargs) -> dict:
        check_limit(self.limit, self.get_seq_length() + n)
        return {"past_key_values": self}


class OriginalPositions(DynamicCache, Announced):
    """A `DynamicCache` for others to cut: positions count the text's tokens, not those held."""

    def __init__(self, model):
        super().__init__()
        check_rope_type(model.config)
        self.seen = 0  # tokens of the text so far
        attach(model, self)

    def step(self, n: int, device="cpu", *args, **kwargs) -> dict:
        # layers cut to different lengths share no mask: only single tokens can follow them
        alike = len(set(held_lengths(self))) <= 1
        require(alike or n == 1, "chunk_size", n, "1 for layers cut unlike")
        position_ids = torch.arange(self.seen, self.seen + n, device=device)[None]
        return {"past_key_values": self, "position_ids": position_ids}

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs):
        if layer_idx == 0:
            self.seen += key_states.shape[2]
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def held_lengths(cache: Cache) -> list[int]:
    """Tokens held per layer, by our cache or transformers' own."""
    if isinstance(cache, CompressedCache):
        return cache.cached_lengths
    if isinstance(cache, StaticCache):
        return [int(layer.get_seq_length()) for layer in cache.layers]
    return [layer.keys.shape[2] for layer in cache.layers]


def cache_bytes(cache: Cache) -> int:
    """Bytes allocated for what `cache` holds, by our cache or transformers' own."""
    if isinstance(cache, CompressedCache):
        return cache.nbytes
    return sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
