"""What every compressor is: a dataclass that says which cached tokens stay."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar

import torch
from transformers import Cache

Pairs = list[tuple[torch.Tensor, torch.Tensor]] | tuple[tuple[torch.Tensor, torch.Tensor], ...]


def require(condition: bool, name: str, value, allowed: str) -> None:
    """Raise a ValueError that names the parameter, its value and what is allowed."""
    if not condition:
        raise ValueError(f"{name}={value!r}: allowed is {allowed}")


def require_int(name: str, value, low: int) -> None:
    """Raise a ValueError unless `value` is a whole number of at least `low`."""
    ok = isinstance(value, Integral) and not isinstance(value, bool) and value >= low
    require(ok, name, value, f"an int >= {low}")


def require_share(name: str, value, above: float | None = None) -> None:
    """Raise a ValueError unless `value` is a number from 0 to 1, and more than `above`."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    ok = number and 0 <= value <= 1 and (above is None or value > above)
    require(ok, name, value, "a number from 0 to 1" + ("" if above is None else f", above {above}"))


def layer_set(layers) -> tuple[int, ...]:
    """`skip_layers` as a tuple of layer indices, or a ValueError."""
    require(
        isinstance(layers, (list, tuple, set)), "skip_layers", layers, "a list of layer indices"
    )
    for layer in layers:
        require_int("skip_layers", layer, 0)
    return tuple(layers)


@dataclass(frozen=True)
class Window:
    """Position-only methods: query t sees j < start_size and t - recent_size <= j <= t."""

    start_size: int
    recent_size: int

    @property
    def budget(self) -> int:
        return self.start_size + self.recent_size


@dataclass
class Compressor(ABC):
    """Decides which tokens of a layer's cache stay; cutting and turning are the cache's work."""

    name: ClassVar[str]
    paper: ClassVar[str]

    @property
    @abstractmethod
    def budget(self) -> int | None:
        """Tokens kept per compressed layer between steps; None where there is no fixed number."""

    @property
    def window(self) -> Window | None:
        """The window of a method that looks at positions only; None for one that looks at keys."""
        return None

    @abstractmethod
    def keep(self, keys: torch.Tensor, layer_idx: int) -> torch.Tensor | None:
        """Indices of the tokens to keep, ascending, (n,) or (B, H, n), for keys (B, H, T, D).

        None keeps everything.
        """


def gather_tokens(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The tokens `index`, (n,) or (B, H, n), of `x` (B, H, T, D) or (B, H, T)."""
    if index.ndim == 1:
        return x.index_select(2, index)
    if x.ndim == 4:
        index = index[..., None].expand(-1, -1, -1, x.shape[-1])
    return x.gather(2, index)


def compress(past_key_values: Pairs | Cache, compressor: Compressor) -> Pairs | Cache:
    """Apply `compressor` once to a list or tuple of (key, value) or a transformers `Cache`.

    Pairs come back as a new list or tuple; a `Cache` is cut in place and returned. Keys keep the
    rotation they have (original positions): turning them needs the model, see `lib.cache`.
    """
    if isinstance(past_key_values, Cache):
        for layer_idx, layer in enumerate(past_key_values.layers):
            if layer.is_initialized and layer.keys.numel():
                layer.keys, layer.values = _cut(layer.keys, layer.values, compressor, layer_idx)
        return past_key_values
    if not isinstance(past_key_values, (list, tuple)):
        raise TypeError(
            f"past_key_values is a {type(past_key_values).__name__}: "
            "allowed are a list or tuple of (key, value) and a transformers Cache"
        )
    cut = [_cut(k, v, compressor, i) for i, (k, v) in enumerate(past_key_values)]
    return type(past_key_values)(cut)


def compress_function(method: type[Compressor]) -> Callable[..., Pairs | Cache]:
    """`method` as a function: `f(past_key_values, **parameters)`, see `compress`."""

    def function(past_key_values: Pairs | Cache, *args, **kwargs) -> Pairs | Cache:
        return compress(past_key_values, method(*args, **kwargs))

    function.__name__ = function.__qualname__ = f"{method.name.removesuffix('_compress')}_compress"
    function.__doc__ = f"{method.__name__}, applied once to (key, value) pairs or a Cache."
    function.method = method
    return function


def _cut(keys, values, compressor, layer_idx):
    index = compressor.keep(keys, layer_idx)
    if index is None:
        return keys, values
    return gather_tokens(keys, index), gather_tokens(values, index)
