"""Window attention: recent tokens only, no sinks."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import Compressor, Window, require_int


@dataclass
class RecentOnly(Compressor):
    """Keep the last `window_size` tokens (Longformer's sliding window, arXiv:2004.05150)."""

    name: ClassVar[str] = "recent_only"
    paper: ClassVar[str] = "Beltagy et al. 2020, arXiv:2004.05150"
    window_size: int = 512

    def __post_init__(self):
        require_int("window_size", self.window_size, 1)

    @property
    def budget(self) -> int:
        return self.window_size

    @property
    def window(self) -> Window:
        return Window(0, self.window_size)

    def keep(self, keys: torch.Tensor, layer_idx: int) -> torch.Tensor | None:
        length = keys.shape[2]
        if length <= self.window_size:
            return None
        return torch.arange(length - self.window_size, length, device=keys.device)
