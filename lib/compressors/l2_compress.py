"""L2 compression: the tokens whose keys have the lowest norm stay (a share of the cache)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import Compressor, layer_set, require_int, require_share


def key_norms(keys: torch.Tensor) -> torch.Tensor:
    """L2 norms (B, H, T) of keys (B, H, T, D), in float32: in bfloat16 most of them tie."""
    dtype = torch.float64 if keys.dtype == torch.float64 else torch.float32
    return keys.to(dtype).norm(dim=-1)


@dataclass
class L2Compress(Compressor):
    """Keep the share `keep_ratio` of tokens with the lowest key norms, per head.

    Nothing is cut while a layer holds at most `prune_after` tokens, and never in `skip_layers`.
    A cache that is cut repeatedly moves between keep_ratio * prune_after and prune_after tokens.
    Devoto et al. 2024, arXiv:2406.11430; KnormPress in kvpress.
    """

    name: ClassVar[str] = "l2_compress"
    paper: ClassVar[str] = "Devoto et al. 2024, arXiv:2406.11430"
    keep_ratio: float = 0.8
    prune_after: int = 1000
    skip_layers: tuple[int, ...] = (0, 1)

    def __post_init__(self):
        require_share("keep_ratio", self.keep_ratio, above=0)
        require_int("prune_after", self.prune_after, 0)
        self.skip_layers = layer_set(self.skip_layers)

    @property
    def budget(self) -> int | None:
        return None

    def keep(self, keys: torch.Tensor, layer_idx: int) -> torch.Tensor | None:
        length = keys.shape[2]
        kept = math.ceil(self.keep_ratio * length - 1e-9)  # 0.55 of 100 is 55
        if layer_idx in self.skip_layers or length <= self.prune_after or kept == length:
            return None
        # topk is unordered: sort, so that what is kept stays in time order
        return key_norms(keys).topk(kept, dim=-1, largest=False).indices.sort(dim=-1).values
