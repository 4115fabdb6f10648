"""The methods: one file each, one line each in `METHODS`."""

from collections.abc import Callable

from .adaptive_l2 import AdaptiveL2
from .base import Compressor, Held
from .fix_size_l2 import FixSizeL2
from .functions import compress, compress_function
from .h2o import H2O
from .h2o_l2 import H2OL2
from .keydiff import KeyDiff
from .kvpress import KVPress
from .l2_compress import L2Compress
from .lagkv import LagKV
from .pyramid import Pyramid
from .random import Random
from .recent_only import RecentOnly
from .snapkv import SnapKV
from .streaming_llm import StreamingLLM
from .tova import TOVA

METHODS: dict[str, type[Compressor]] = {
    method.name: method
    for method in (
        StreamingLLM,
        RecentOnly,
        L2Compress,
        FixSizeL2,
        Random,
        KeyDiff,
        LagKV,
        H2OL2,
        AdaptiveL2,
        Pyramid,
        KVPress,
        H2O,
        TOVA,
        SnapKV,
    )
}
# a comparison's rows, by name: the method, and what its `at_budget` is given besides
ROWS: dict[str, tuple[type[Compressor], dict]] = {
    row: (method, more)
    for method in METHODS.values()
    for row, more in (method.rows or {method.name: {}}).items()
}
_FUNCTIONS = {name: compress_function(method) for name, method in METHODS.items()}


def list_methods() -> list[str]:
    """Names of all methods."""
    return list(METHODS)


def get_compress_fn(name: str) -> Callable:
    """A method as a function of a cache and the method's parameters; ValueError lists the names."""
    if name not in _FUNCTIONS:
        raise ValueError(f"method {name!r}: allowed are {list_methods()}")
    return _FUNCTIONS[name]


streaming_llm_compress = get_compress_fn("streaming_llm")
recent_only_compress = get_compress_fn("recent_only")
l2_compress = get_compress_fn("l2_compress")
fix_size_l2_compress = get_compress_fn("fix_size_l2")

__all__ = [
    "METHODS",
    "ROWS",
    "TOVA",
    "AdaptiveL2",
    "Compressor",
    "FixSizeL2",
    "H2O",
    "H2OL2",
    "Held",
    "KVPress",
    "KeyDiff",
    "L2Compress",
    "LagKV",
    "Pyramid",
    "Random",
    "RecentOnly",
    "SnapKV",
    "StreamingLLM",
    "compress",
    "fix_size_l2_compress",
    "get_compress_fn",
    "l2_compress",
    "list_methods",
    "recent_only_compress",
    "streaming_llm_compress",
]
