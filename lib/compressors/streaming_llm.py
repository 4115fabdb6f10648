"""StreamingLLM: attention sinks and a window of recent tokens."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from lib.require import require_int

from .base import Compressor, Held, Window, require_budget


@dataclass
class StreamingLLM(Compressor):
    """Keep the first `start_size` tokens (sinks) and the last `recent_size` (Xiao et al. 2023).

    Parameters in tokens; arXiv:2309.17453. The budget is their sum.
    """

    name: ClassVar[str] = "streaming_llm"
    paper: ClassVar[str] = "Xiao et al. 2023, arXiv:2309.17453"
    rows: ClassVar[dict[str, dict]] = {"streaming": {}, "streaming_lazy": {}}
    start_size: int = 4
    recent_size: int = 508

    def __post_init__(self):
        require_int("start_size", self.start_size, 0)
        require_int("recent_size", self.recent_size, 1)

    @property
    def budget(self) -> int:
        return self.start_size + self.recent_size

    @property
    def window(self) -> Window:
        return Window(self.start_size, self.recent_size)

    @classmethod
    def at_budget(cls, budget: int, start_size: int = 4, skip_layers=(), seed: int = 0) -> Self:
        require_budget(budget, start_size)
        return cls(start_size, budget - start_size)

    def keep(self, held: Held) -> torch.Tensor | None:
        if held.length <= self.budget:
            return None
        index = torch.arange(held.length, device=held.keys.device)
        return torch.cat((index[: self.start_size], index[held.length - self.recent_size :]))
