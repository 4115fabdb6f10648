"""Window attention: recent tokens only, no sinks."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from lib.require import require_int

from .base import Compressor, Held, Window, require_budget


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

    @classmethod
    def at_budget(cls, budget: int, start_size: int = 4, skip_layers=(), seed: int = 0) -> Self:
        require_budget(budget, start_size)
        return cls(budget)

    def keep(self, held: Held) -> torch.Tensor | None:
        if held.length <= self.window_size:
            return None
        first = held.length - self.window_size
        return torch.arange(first, held.length, device=held.keys.device)
