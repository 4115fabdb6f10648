"""What every compressor is: a dataclass that says which cached tokens stay."""

import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import torch

from lib.require import require, require_int

# the least that parameters of these names may be, in every method that has them
LEAST = {"start_size": 0, "budget": 1, "seed": 0, "heavy_size": 0, "window_size": 1}


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
    seen: int | None = None  # tokens of the text so far, kept or not; None: all are held

    @property
    def length(self) -> int:
        """Tokens held, T."""
        return self.keys.shape[2]


class Compressor:
    """Decides which tokens of a layer's cache stay; cutting and turning are the cache's work.

    A method is a dataclass of its parameters with a rule, `choose`. Whatever else is particular to
    it, it says by overriding what is below. `rows` are a comparison's rows of this method, by name,
    with what `at_budget` is given besides; where it is empty there is one, named as the method.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    rows: ClassVar[dict[str, dict]] = {}
    # tokens kept per compressed layer between steps; None where there is no fixed number
    budget: int | None
    # layers that are never cut; a parameter of the methods that have it among theirs
    skip_layers: tuple[int, ...] = ()
    # tokens are scored by the attention of so many last queries; 0: scores are not asked for,
    # math.inf: of all queries since the token came
    queries: float = 0
    # whether the cache stops growing, however long the text
    bounded: bool = True
    # whether the rule looks at the values, and not at keys or attention alone
    reads_values: ClassVar[bool] = False
    # `at_budget` needs so many tokens besides the sinks
    least_besides: ClassVar[int] = 1

    def __post_init__(self):
        """Check the parameters that methods share, by name; a method checks its own besides."""
        for name, least in LEAST.items():
            if name in vars(self):
                require_int(name, getattr(self, name), least)
        if "skip_layers" in vars(self):
            self.skip_layers = layer_set(self.skip_layers)

    @property
    def prune_after(self) -> int:
        """A layer that holds at most so many tokens is left alone: `budget`, unless told."""
        return self.budget or 0

    @property
    def longest_step(self) -> float:
        """Tokens that may come at once, if one cut is to bring a full layer back."""
        return math.inf

    @property
    def window(self) -> Window | None:
        """The window of a method that looks at positions only; None for one that looks at keys."""
        return None

    def layer_budget(self, layer_idx: int, num_layers: int, seen: int | None = None) -> int | None:
        """`budget` of one layer, for methods that give layers different ones.

        After `seen` tokens of a text; None: of a text without end.
        """
        return self.budget

    def layer_queries(self, layer_idx: int, num_layers: int) -> float:
        """`queries` of one layer: one that is never cut needs no scores."""
        return 0 if layer_idx in self.skip_layers else self.queries

    @classmethod
    def at_budget(
        cls,
        budget: int,
        start_size: int = 4,
        skip_layers: tuple[int, ...] = (),
        seed: int = 0,
        **more,
    ) -> Self:
        """The method such that a compressed layer holds at most `budget` tokens between steps.

        Of the sinks, the layers never cut and the seed a method takes those that are parameters of
        its own; `more` are others. ValueError if the budget doesn't hold the sinks and a token.
        """
        require_int("start_size", start_size, 0)
        require_int("budget", budget, start_size + cls.least_besides)
        common = {"start_size": start_size, "skip_layers": skip_layers, "seed": seed}
        own = {field.name for field in fields(cls)}
        taken = {name: value for name, value in common.items() if name in own}
        return cls(**taken | cls.sizes(budget, start_size) | more)

    @classmethod
    def sizes(cls, budget: int, start_size: int) -> dict:
        """The parameters, by name, that share out a budget of which `start_size` are sinks."""
        return {"budget": budget}

    @classmethod
    def sizes_in_common(cls, budget: int) -> dict:
        """Those of `sizes` that are alike in layers whose mean budget is `budget` (`Pyramid`)."""
        return {}

    def keep(self, held: Held) -> torch.Tensor | None:
        """Indices of the tokens to keep, ascending, (n,) or (B, H, n); None keeps everything."""
        if held.layer_idx in self.skip_layers or held.length <= self.prune_after:
            return None
        if self.queries:
            what = "the attention that tokens receive: run the method in a CompressedCache"
            require(held.scores is not None, "scores", None, what)
        return self.choose(held)

    def choose(self, held: Held) -> torch.Tensor | None:
        """The rule: what `keep` gives for a layer that holds more than `prune_after` tokens."""
        raise NotImplementedError(f"{type(self).__name__} has no rule: it needs `choose`")


class Around(Compressor):
    """Another method, to do something around its `keep`; every layer is cut by itself."""

    def __init__(self, method: Compressor):
        self.method, self.name = method, method.name
        self.budget = method.budget
        self.queries = method.queries
        self.skip_layers = method.skip_layers

    @property
    def prune_after(self) -> int:
        return self.method.prune_after

    def layer_budget(self, layer_idx: int, num_layers: int, seen: int | None = None) -> int | None:
        return self.method.layer_budget(layer_idx, num_layers, seen)

    def layer_queries(self, layer_idx: int, num_layers: int) -> float:
        return self.method.layer_queries(layer_idx, num_layers)

    def keep(self, held: Held) -> torch.Tensor | None:
        return self.method.keep(held)


def layer_set(layers: Collection[int]) -> tuple[int, ...]:
    """`skip_layers` as a tuple of layer indices, or a ValueError."""
    require(
        isinstance(layers, (list, tuple, set)), "skip_layers", layers, "a list of layer indices"
    )
    for layer in layers:
        require_int("skip_layers", layer, 0)
    return tuple(layers)


def as_float(x: torch.Tensor) -> torch.Tensor:
    """`x` in float32, or in float64 if it is: in bfloat16 most norms and many scores tie."""
    return x if x.dtype == torch.float64 else x.float()


def share_of(share: float, n: int) -> int:
    """`share` of `n` tokens, rounded down."""
    return int(share * n + 1e-9)  # 0.29 of 100 is 29


def keep_best(scores: torch.Tensor, count: int, start: int = 0, recent: int = 0) -> torch.Tensor:
    """Indices (B, H, start + count + recent), ascending: the `count` highest of `scores` (B, H, n).

    The `start` tokens before these n and the `recent` ones after them stay too. Of equal scores the
    older token stays.
    """
    B, H, n = scores.shape
    scores = torch.where(scores.isnan(), math.inf, scores)
    # not topk, which leaves open what it takes of equal ones: equal tokens have equal norms
    least = scores.kthvalue(n - max(count, 1) + 1, dim=-1, keepdim=True).values
    above, equal = scores > least, scores == least
    stay = above | equal & (equal.cumsum(dim=-1) <= count - above.sum(dim=-1, keepdim=True))
    chosen = stay.nonzero()[:, -1].view(B, H, count) + start
    index = torch.arange(start + n + recent, device=scores.device).expand(B, H, -1)
    return torch.cat((index[..., :start], chosen, index[..., start + n :]), dim=-1)


def gather_tokens(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The tokens `index`, (n,) or (B, H, n), of `x` (B, H, T, D) or (B, H, T)."""
    if index.ndim == 1:
        return x.index_select(2, index)
    if x.ndim == 3:
        return x.gather(2, index)
    B, H, T, D = x.shape  # whole rows are copied, several times as fast as `gather` takes numbers
    rows = index + torch.arange(0, B * H * T, T, device=x.device).view(B, H, 1)
    return x.reshape(-1, D).index_select(0, rows.flatten()).view(B, H, -1, D)


def key_norms(keys: torch.Tensor) -> torch.Tensor:
    """L2 norms (B, H, T) of keys (B, H, T, D)."""
    return as_float(keys).norm(dim=-1)
