"""SnapKV: what the last queries look at, and its neighbours, stays."""

from dataclasses import dataclass

import torch
from torch.nn.functional import avg_pool1d, max_pool1d

from lib.require import require, require_int

from .base import Compressor, Held, keep_best

POOLING = {"avg": avg_pool1d, "max": max_pool1d}


@dataclass
class SnapKV(Compressor):
    """Keep the last `window_size` tokens and, per KV head, those that their queries attend to most.

    Attention is summed over these queries, averaged over the query heads that share a key, and
    pooled over `kernel_size` neighbours in the cache ("avg", where missing ones count as 0, or
    "max"). In the paper a prompt is cut once, and its last tokens are the question: what nobody has
    asked for yet is not looked at, and leaves. Here the same is done whenever more than `budget`
    tokens are held: the window is then the last tokens seen, prompt or not, and what their queries
    gave counts as it was given, by each at its own step and to what was held then.
    Layers in `skip_layers` are never cut. Li et al. 2024, arXiv:2404.14469.
    """

    name = "snapkv"
    paper = "Li et al. 2024, arXiv:2404.14469"
    budget: int = 512
    window_size: int = 32
    kernel_size: int = 5
    pooling: str = "avg"
    skip_layers: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        require_int("budget", self.budget, self.window_size)
        require_int("kernel_size", self.kernel_size, 1)
        require(self.kernel_size % 2 == 1, "kernel_size", self.kernel_size, "an odd number")
        require(self.pooling in POOLING, "pooling", self.pooling, f"one of {tuple(POOLING)}")

    @classmethod
    def sizes(cls, budget: int, start_size: int) -> dict:
        return {"budget": budget} | cls.sizes_in_common(budget)

    @classmethod
    def sizes_in_common(cls, budget: int) -> dict:
        """A window of half the budget, at most 32 tokens."""
        return {"window_size": min(32, max(1, budget // 2))}

    @property
    def queries(self) -> int:
        return self.window_size

    def choose(self, held: Held) -> torch.Tensor:
        window, size = self.window_size, self.kernel_size
        older = held.scores[:, :, : held.length - window]
        pooled = POOLING[self.pooling](older, size, stride=1, padding=size // 2)
        return keep_best(pooled, self.budget - window, recent=window)
