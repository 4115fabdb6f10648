"""The methods: one file each, one line each in `METHODS`."""

from collections.abc import Callable

from .base import Compressor, compress
from .fix_size_l2 import FixSizeL2, fix_size_l2_compress
from .l2_compress import L2Compress, l2_compress
from .recent_only import RecentOnly, recent_only_compress
from .streaming_llm import StreamingLLM, streaming_llm_compress

# class, and the same as a function on (key, value) pairs or a Cache
METHODS: dict[str, tuple[type[Compressor], Callable]] = {
    StreamingLLM.name: (StreamingLLM, streaming_llm_compress),
    RecentOnly.name: (RecentOnly, recent_only_compress),
    L2Compress.name: (L2Compress, l2_compress),
    FixSizeL2.name: (FixSizeL2, fix_size_l2_compress),
}


def list_methods() -> list[str]:
    """Names of all methods."""
    return list(METHODS)


def get_compress_fn(name: str) -> Callable:
    """The compress function of a method by name; ValueError lists the names."""
    if name not in METHODS:
        raise ValueError(f"method {name!r}: allowed are {list_methods()}")
    return METHODS[name][1]


__all__ = [
    "METHODS",
    "Compressor",
    "FixSizeL2",
    "L2Compress",
    "RecentOnly",
    "StreamingLLM",
    "compress",
    "fix_size_l2_compress",
    "get_compress_fn",
    "l2_compress",
    "list_methods",
    "recent_only_compress",
    "streaming_llm_compress",
]
