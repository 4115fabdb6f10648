"""Fixed-size L2: a constant budget of recent tokens and of the lowest (or highest) key norms."""

from dataclasses import dataclass

import torch

from lib.require import require, require_int, require_share

from .base import Compressor, Held, keep_best, key_norms, share_of

STRATEGIES = ("keep_low", "keep_high", "random")


def random_scores(held: Held, count: int, seed: int) -> torch.Tensor:
    """Random scores (B, H, count), the same on every machine.

    Seeded by the layer and the tokens seen so far, so that not the same places leave at every cut.
    Row b of a batch is drawn with `seed` + b: an interval over texts is one over seeds as well.
    """
    B, H = held.keys.shape[:2]
    scores = torch.empty(B, H, count)
    for row in range(B):
        row_seed = hash((seed + row, held.layer_idx, held.seen or held.length)) % 2**63
        scores[row] = torch.rand(H, count, generator=torch.Generator().manual_seed(row_seed))
    return scores.to(held.keys.device)


@dataclass
class FixSizeL2(Compressor):
    """Keep `fix_kv_size` tokens: a share `keep_ratio` for the most recent, the rest by key norm.

    `strategy` picks among the older tokens, per head: lowest norms, highest norms, or at random
    with `seed`. Layers in `skip_layers` are never cut. After Devoto et al. 2024, arXiv:2406.11430.
    """

    name = "fix_size_l2"
    paper = "after Devoto et al. 2024, arXiv:2406.11430"
    rows = {
        "fix_l2_low": {"strategy": "keep_low"},
        "fix_l2_high": {"strategy": "keep_high"},
        "fix_l2_random": {"strategy": "random"},
    }
    fix_kv_size: int = 512
    keep_ratio: float = 0.2
    strategy: str = "keep_low"
    skip_layers: tuple[int, ...] = (0, 1)
    seed: int = 0

    def __post_init__(self):
        require_int("fix_kv_size", self.fix_kv_size, 1)
        require_share("keep_ratio", self.keep_ratio)
        super().__post_init__()
        require(self.strategy in STRATEGIES, "strategy", self.strategy, f"one of {STRATEGIES}")

    @property
    def budget(self) -> int:
        return self.fix_kv_size

    @classmethod
    def sizes(cls, budget: int, start_size: int) -> dict:
        return {"fix_kv_size": budget}

    def choose(self, held: Held) -> torch.Tensor:
        recent = share_of(self.keep_ratio, self.fix_kv_size)
        older = held.keys[:, :, : held.length - recent]
        if self.strategy == "random":
            scores = random_scores(held, older.shape[2], self.seed)
        else:
            scores = key_norms(older) * (-1 if self.strategy == "keep_low" else 1)
        return keep_best(scores, self.fix_kv_size - recent, recent=recent)
