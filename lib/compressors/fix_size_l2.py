"""Fixed-size L2: a constant budget of recent tokens and of the lowest (or highest) key norms."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import Compressor, layer_set, require, require_int, require_share
from .l2_compress import key_norms

STRATEGIES = ("keep_low", "keep_high", "random")


@dataclass
class FixSizeL2(Compressor):
    """Keep `fix_kv_size` tokens: a share `keep_ratio` for the most recent, the rest by key norm.

    `strategy` picks among the older tokens, per head: lowest norms, highest norms, or at random
    with `seed`. Layers in `skip_layers` are never cut. After Devoto et al. 2024, arXiv:2406.11430.
    """

    name: ClassVar[str] = "fix_size_l2"
    paper: ClassVar[str] = "after Devoto et al. 2024, arXiv:2406.11430"
    fix_kv_size: int = 512
    keep_ratio: float = 0.2
    strategy: str = "keep_low"
    skip_layers: tuple[int, ...] = (0, 1)
    seed: int = 0

    def __post_init__(self):
        require_int("fix_kv_size", self.fix_kv_size, 1)
        require_share("keep_ratio", self.keep_ratio)
        require_int("seed", self.seed, 0)
        self.skip_layers = layer_set(self.skip_layers)
        require(self.strategy in STRATEGIES, "strategy", self.strategy, f"one of {STRATEGIES}")

    @property
    def budget(self) -> int:
        return self.fix_kv_size

    def keep(self, keys: torch.Tensor, layer_idx: int) -> torch.Tensor | None:
        B, H, T, _ = keys.shape
        if layer_idx in self.skip_layers or T <= self.fix_kv_size:
            return None
        recent = int(self.keep_ratio * self.fix_kv_size + 1e-9)  # 0.29 of 100 is 29
        scores = self._scores(keys[:, :, : T - recent], layer_idx)
        chosen = scores.topk(self.fix_kv_size - recent, dim=-1).indices.sort(dim=-1).values
        last = torch.arange(T - recent, T, device=keys.device).expand(B, H, recent)
        return torch.cat((chosen, last), dim=-1)

    def _scores(self, keys: torch.Tensor, layer_idx: int) -> torch.Tensor:
        """Higher stays, (B, H, T)."""
        if self.strategy == "random":
            rows = [self._random_row(row, layer_idx) for row in keys]
            return torch.stack(rows).to(keys.device)
        norms = key_norms(keys)
        return -norms if self.strategy == "keep_low" else norms

    def _random_row(self, keys: torch.Tensor, layer_idx: int) -> torch.Tensor:
        """Random scores (H, T) for one row's keys (H, T, D).

        Seeded by what is cached too: the same cache is always cut alike, yet in a stream, where
        every cut sees the same length, not the same place leaves each time.
        """
        content = keys[:, -1].float().contiguous().view(torch.int32).sum().item()
        seed = hash((self.seed, layer_idx, keys.shape[1], content)) % 2**63
        return torch.rand(keys.shape[:2], generator=torch.Generator().manual_seed(seed))
