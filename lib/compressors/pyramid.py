"""PyramidKV's budgets: more tokens for the lower layers, fewer for the higher, for any method."""

from dataclasses import dataclass, field
from numbers import Real

import torch

from lib.require import require, require_int

from .base import Compressor, Held
from .h2o_l2 import H2OL2
from .snapkv import SnapKV


def layer_budgets(
    budget: int, num_layers: int, base_size: int, beta: float, seen: int | None = None
) -> list[int]:
    """Budgets of `num_layers` layers that fall linearly and whose mean is exactly `budget`.

    The last layer gets `base_size` and 1 / `beta` of what a layer has on average besides. If the
    first then had room for more than the `seen` tokens of the text, it has room for these, and
    the last as much more as the first has less.
    """
    spread = (budget - base_size) * (1 - 1 / beta)
    if seen is not None:
        spread = min(spread, max(0, seen - budget))
    last = max(1, num_layers - 1)
    top = spread if num_layers > 1 else 0
    # opposite layers lie as far above the mean as below it, rounded too: the sum is exact
    return [budget + round(top * (last - 2 * layer) / last) for layer in range(num_layers)]


@dataclass
class Pyramid(Compressor):
    """`method` with a budget of its own for each layer, falling linearly from the lowest layer up.

    `budget` is the mean over the layers that are cut, met exactly. Every layer has `base_size`
    tokens (None: the window that all layers have, or the sinks and 8 more); of what is beyond
    them the highest layer gets 1 / `beta` of the mean. No layer has room for more tokens than the
    text has so far: the others then have the more, so that budgets are steeper the longer the text.
    `method` is made with its `at_budget` from `start_size`, `skip_layers`, `seed` and `parameters`;
    its `sizes_in_common`, such as SnapKV's window, are those of the mean. Cai et al. 2024,
    arXiv:2406.02069, who choose tokens by the attention of the last ones: `method=SnapKV`.
    """

    name = "pyramid"
    paper = "Cai et al. 2024, arXiv:2406.02069"
    reads_values = True  # as what it runs may
    rows = {
        "pyramid_h2o_l2": {"method": H2OL2},
        "pyramid_snapkv": {"method": SnapKV},
    }
    method: type[Compressor] = H2OL2
    budget: int = 512
    base_size: int | None = None
    beta: float = 20
    start_size: int = 4
    skip_layers: tuple[int, ...] = ()
    seed: int = 0
    parameters: dict = field(default_factory=dict)

    def __post_init__(self):
        ok = isinstance(self.method, type) and issubclass(self.method, Compressor)
        ok = ok and self.method is not Pyramid
        require(ok, "method", self.method, "the class of another method, such as KeyDiff")
        super().__post_init__()
        self.parameters = self.method.sizes_in_common(self.budget) | self.parameters
        if self.base_size is None:
            own = self.parameters.get("window_size", self.start_size + 8)
            self.base_size = min(own, self.budget)
        require_int("base_size", self.base_size, 1)
        require_int("budget", self.budget, self.base_size)
        beta = self.beta
        ok = isinstance(beta, Real) and not isinstance(beta, bool) and 1 <= beta < float("inf")
        require(ok, "beta", beta, "a number >= 1")
        self._method_at(self.base_size)  # refuses what the smallest layer could not have

    def _method_at(self, budget: int) -> Compressor:
        return self.method.at_budget(
            budget, self.start_size, self.skip_layers, self.seed, **self.parameters
        )

    def layer_budget(self, layer_idx: int, num_layers: int, seen: int | None = None) -> int | None:
        cut = [layer for layer in range(num_layers) if layer not in self.skip_layers]
        if layer_idx not in cut:
            return None  # never cut
        budgets = layer_budgets(self.budget, len(cut), self.base_size, self.beta, seen)
        return budgets[cut.index(layer_idx)]

    def layer_queries(self, layer_idx: int, num_layers: int) -> float:
        budget = self.layer_budget(layer_idx, num_layers)
        return 0 if budget is None else self._method_at(budget).layer_queries(layer_idx, num_layers)

    def keep(self, held: Held) -> torch.Tensor | None:
        seen = held.length if held.seen is None else held.seen
        budget = self.layer_budget(held.layer_idx, held.num_layers, seen)
        return None if budget is None else self._method_at(budget).keep(held)
