"""The methods: one file and, here, one line each: importing a method is what lists it."""

# ruff: noqa: F401, I001 - the order of the imports is that of every list and table
from collections.abc import Callable

from .base import Compressor, Held
from .functions import compress_function
from .streaming_llm import StreamingLLM
from .recent_only import RecentOnly
from .l2_compress import L2Compress
from .fix_size_l2 import FixSizeL2
from .random import Random
from .keydiff import KeyDiff
from .lagkv import LagKV
from .h2o_l2 import H2OL2
from .adaptive_l2 import AdaptiveL2
from .pyramid import Pyramid
from .kvpress import KVPress
from .h2o import H2O
from .tova import TOVA
from .snapkv import SnapKV

METHODS: dict[str, type[Compressor]] = {
    found.name: found
    for found in list(globals().values())
    if isinstance(found, type) and issubclass(found, Compressor) and found is not Compressor
}
# a comparison's rows, by name: the method, and what its `at_budget` is given besides
ROWS: dict[str, tuple[type[Compressor], dict]] = {
    row: (method, more)
    for method in METHODS.values()
    for row, more in (method.rows or {method.name: {}}).items()
}


def list_methods() -> list[str]:
    """Names of all methods; `method_table` says what they keep."""
    return list(METHODS)


def method_table() -> "pandas.DataFrame":  # noqa: F821
    """One row per method: its name, its `rows` in a comparison, what it `keeps`, its `paper`."""
    import pandas as pd  # no method needs it to run

    return pd.DataFrame(
        {
            "method": method.name,
            "rows": ", ".join(method.rows or [method.name]),
            "keeps": method.__doc__.partition("\n")[0],
            "paper": method.paper,
        }
        for method in METHODS.values()
    )


def get_compress_fn(name: str) -> Callable:
    """A method as a function of a cache and the method's parameters; ValueError lists the names."""
    if name not in METHODS:
        raise ValueError(f"method {name!r}: allowed are {list_methods()}")
    return compress_function(METHODS[name])


streaming_llm_compress = get_compress_fn("streaming_llm")
recent_only_compress = get_compress_fn("recent_only")
l2_compress = get_compress_fn("l2_compress")
fix_size_l2_compress = get_compress_fn("fix_size_l2")
