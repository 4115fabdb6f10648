"""What every compressor is: a dataclass that says which cached tokens stay."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from lib.require import require, require_int


def require_budget(budget, start_size, more: int = 1) -> None:
    """Raise a ValueError unless `budget` holds `start_size` sinks and `more` tokens."""
    require_int("start_size", start_size, 0)
    require_int("budget", budget, start_size + more)


def layer_set(layers) -> tuple[int, ...]:
    """`skip_layers` as a tuple of layer indices, or a ValueError."""
    require(
        isinstance(layers, (list, tuple, set)), "skip_layers", layers, "a list of layer indices"
    )
    for layer in layers:
        require_int("skip_layers", layer, 0)
    return tuple(layers)


@dataclass(frozen=True)
class Window:
    """Position-only methods: query t sees j < start_size and t - recent_size <= j <= t."""

    start_size: int
    recent_size: int

    @property
    def budget(self) -> int:
        return self.start_size + self.recent_size


@dataclass
class Held:
    """What one layer of the cache holds when its compressor is asked what to keep.

    `scores` is the attention each token has received from the queries that count
    (`Compressor.layer_queries`): summed over them, averaged over the query heads that share the
    key. None where a method does not ask for it.
    """

    keys: torch.Tensor  # (B, H, T, D)
    values: torch.Tensor  # (B, H, T, D)
    layer_idx: int
    num_layers: int
    scores: torch.Tensor | None = None  # (B, H, T)

    @property
    def length(self) -> int:
        """Tokens held, T."""
        return self.keys.shape[2]


@dataclass
class Compressor(ABC):
    """Decides which tokens of a layer's cache stay; cutting and turning are the cache's work.

    `rows` are a comparison's rows of this method, by name, with what `at_budget` is given besides;
    where it is empty there is one, named as the method.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    rows: ClassVar[dict[str, dict]] = {}

    @property
    @abstractmethod
    def budget(self) -> int | None:
        """Tokens kept per compressed layer between steps; None where there is no fixed number."""

    def layer_budget(self, layer_idx: int, num_layers: int) -> int | None:
        """`budget` of one layer, for methods that give layers different ones."""
        return self.budget

    def layer_queries(self, layer_idx: int, num_layers: int) -> float:
        """By the attention of how many last queries one layer's tokens are scored.

        0: none, the scores are not asked for; `math.inf`: all queries since the token came.
        """
        return 0

    @property
    def window(self) -> Window | None:
        """The window of a method that looks at positions only; None for one that looks at keys."""
        return None

    @classmethod
    @abstractmethod
    def at_budget(
        cls, budget: int, start_size: int = 4, skip_layers: tuple[int, ...] = (), seed: int = 0
    ) -> Self:
        """The method such that a compressed layer holds at most `budget` tokens between steps.

        Of the sinks, the layers never cut and the seed a method takes what it has a use for.
        """

    @abstractmethod
    def keep(self, held: Held) -> torch.Tensor | None:
        """Indices of the tokens to keep, ascending, (n,) or (B, H, n); None keeps everything."""


def as_float(x: torch.Tensor) -> torch.Tensor:
    """`x` in float32, or in float64 if it is: in bfloat16 most norms and many scores tie."""
    return x if x.dtype == torch.float64 else x.float()


def scores_of(held: Held) -> torch.Tensor:
    """`held.scores`, (B, H, T), or a ValueError where there are keys and values alone."""
    what = "the attention that tokens receive: run the method in a CompressedCache"
    require(held.scores is not None, "scores", None, what)
    return held.scores


def share_of(share: float, n: int) -> int:
    """`share` of `n` tokens, rounded down."""
    return int(share * n + 1e-9)  # 0.29 of 100 is 29


def keep_best(scores: torch.Tensor, count: int, start: int = 0, recent: int = 0) -> torch.Tensor:
    """Indices (B, H, start + count + recent), ascending: the `count` highest of `scores` (B, H, n).

    The `start` tokens before these n and the `recent` ones after them stay too. Of equal scores the
    older token stays.
    """
    B, H, n = scores.shape
    # not topk, which leaves open what it takes of equal ones: equal tokens have equal norms
    order = scores.argsort(dim=-1, descending=True, stable=True)
    chosen = order[..., :count].sort(dim=-1).values + start
    index = torch.arange(start + n + recent, device=scores.device).expand(B, H, -1)
    return torch.cat((index[..., :start], chosen, index[..., start + n :]), dim=-1)


def gather_tokens(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The tokens `index`, (n,) or (B, H, n), of `x` (B, H, T, D) or (B, H, T)."""
    if index.ndim == 1:
        return x.index_select(2, index)
    if x.ndim == 4:
        index = index[..., None].expand(-1, -1, -1, x.shape[-1])
    return x.gather(2, index)


def key_norms(keys: torch.Tensor) -> torch.Tensor:
    """L2 norms (B, H, T) of keys (B, H, T, D)."""
    return as_float(keys).norm(dim=-1)


def random_scores(keys: torch.Tensor, layer_idx: int, seed: int) -> torch.Tensor:
    """Random scores (B, H, T) for keys (B, H, T, D).

    Seeded by what is cached too: the same cache is always cut alike, yet in a stream, where every
    cut sees the same length, not the same place leaves each time.
    """
    rows = []
    for row in keys:  # (H, T, D)
        content = row[:, -1].float().contiguous().view(torch.int32).sum().item()
        row_seed = hash((seed, layer_idx, row.shape[1], content)) % 2**63
        generator = torch.Generator().manual_seed(row_seed)
        rows.append(torch.rand(row.shape[:2], generator=generator))
    return torch.stack(rows).to(keys.device)
