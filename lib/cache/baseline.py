"""What a cache holds and takes, by ours or transformers' own."""

from transformers import Cache

from .compressed import CompressedCache


def held_lengths(cache: Cache) -> list[int]:
    """Tokens held per layer, by our cache or transformers' own."""
    if isinstance(cache, CompressedCache):
        return cache.cached_lengths
    return [layer.keys.shape[2] for layer in cache.layers]


def cache_bytes(cache: Cache) -> int:
    """Bytes allocated for what `cache` holds, by our cache or transformers' own."""
    if isinstance(cache, CompressedCache):
        return cache.nbytes
    return sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
