"""L2 compression: the tokens whose keys have the lowest norm stay (a share of the cache)."""

import math
from dataclasses import dataclass

import torch

from lib.require import require_int, require_share

from .base import Compressor, Held, keep_best, key_norms


@dataclass
class L2Compress(Compressor):
    """Keep the share `keep_ratio` of tokens with the lowest key norms, per head.

    Nothing is cut while a layer holds at most `prune_after` tokens, and never in `skip_layers`.
    A cache that is cut repeatedly moves between keep_ratio * prune_after and prune_after tokens.
    Devoto et al. 2024, arXiv:2406.11430; KnormPress in kvpress.
    """

    name = "l2_compress"
    paper = "Devoto et al. 2024, arXiv:2406.11430"
    rows = {f"l2_ratio_{ratio}": {"keep_ratio": ratio} for ratio in (1.0, 0.8, 0.5)}
    budget = None
    keep_ratio: float = 0.8
    prune_after: int = 1000
    skip_layers: tuple[int, ...] = (0, 1)

    def __post_init__(self):
        require_share("keep_ratio", self.keep_ratio, above=0)
        require_int("prune_after", self.prune_after, 0)
        super().__post_init__()

    @classmethod
    def sizes(cls, budget: int, start_size: int) -> dict:
        """Keep a share, such as 80%, whenever a layer holds more than `budget` tokens.

        80% stays within the budget for steps of up to a quarter of it, and after a long prompt
        takes several steps to come down to it; 100% is the control that never cuts.
        """
        return {"prune_after": budget}

    @property
    def bounded(self) -> bool:
        return self.keep_ratio < 1

    @property
    def longest_step(self) -> float:
        """Tokens that may come at once, if one cut is to bring a full layer back."""
        ratio = self.keep_ratio
        return math.inf if ratio == 1 else int(self.prune_after * (1 / ratio - 1))

    def choose(self, held: Held) -> torch.Tensor | None:
        T = held.length
        kept = math.ceil(self.keep_ratio * T - 1e-9)  # 0.55 of 100 is 55
        return None if kept == T else keep_best(-key_norms(held.keys), kept)
