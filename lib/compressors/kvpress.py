"""A scorer press of NVIDIA's kvpress as one of our compressors."""

import copy
import importlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from lib.require import require

from .base import Compressor, Held, as_float, keep_best

# those that score by keys and values alone
PRESSES = ("KnormPress", "KeyDiffPress", "LagKVPress", "CURPress", "StreamingLLMPress")


def load_press(name: str) -> Any:
    """The press of that name with its defaults; ImportError says what to install."""
    try:
        kvpress = importlib.import_module("kvpress")
    except ImportError as error:
        raise ImportError(
            "kvpress is not installed: it is the extra kv-lab[kvpress], and since it asks for an "
            "older transformers than the pinned one, docs/methods.md says how to install it beside"
        ) from error
    press = getattr(kvpress, name, None)
    ok = isinstance(press, type) and issubclass(press, kvpress.ScorerPress)
    require(ok, "press", name, "the name of a ScorerPress, such as 'KnormPress'")
    return press()


@dataclass
class KVPress(Compressor):
    """Keep the `budget` tokens that a kvpress `ScorerPress` scores highest, per head.

    `press` is a press or the name of its class. It must score by keys and values alone, which it
    sees in float32, as the `PRESSES` do.
    Layers in `skip_layers` are never cut. github.com/NVIDIA/kvpress.
    """

    name = "kvpress"
    paper = "that of the press"
    reads_values = True  # as what it runs may
    rows = {f"kvpress_{press}": {"press": press} for press in PRESSES}
    press: Any = "KnormPress"
    budget: int = 512
    skip_layers: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.press, str):
            self.press = load_press(self.press)
        ok = callable(getattr(self.press, "score", None)) and hasattr(
            self.press, "compression_ratio"
        )
        require(ok, "press", self.press, "a ScorerPress or the name of one")

    def choose(self, held: Held) -> torch.Tensor:
        return keep_best(self._scores(held), self.budget)

    def _scores(self, held: Held) -> torch.Tensor:
        """Higher stays, (B, H, T)."""
        press = copy.copy(self.press)  # the caller's keeps its ratio
        # half a token less is to go: kvpress rounds what stays down
        press.compression_ratio = 1 - (self.budget + 0.5) / held.length
        keys, values = as_float(held.keys), as_float(held.values)
        module = SimpleNamespace(layer_idx=held.layer_idx, head_dim=keys.shape[-1])
        try:
            scores = press.score(module, None, keys, values, None, {})
        except (AssertionError, AttributeError, KeyError, TypeError) as error:
            allowed = "a press that scores by keys and values alone"
            raise ValueError(f"press={press!r}: allowed is {allowed}") from error
        shape = tuple(scores.shape)
        require(shape == keys.shape[:3], "scores.shape", shape, f"{tuple(keys.shape[:3])}")
        return as_float(scores)
