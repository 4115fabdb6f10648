"""A transformers Cache that lets a compressor decide which tokens stay.

One forward pass is one step of n tokens. `CompressedCache.step(n)` gives the keyword arguments
that the step needs: position ids, and a `Step` that tells the attention function (`lib.attention`)
who sees whom. What a layer holds, and how it cuts and turns, is in `lib.layers`.
"""

import copy
from dataclasses import dataclass, field

import torch
from transformers import Cache

from .compressors import Compressor
from .compressors.base import Window, require, require_int
from .layers import Layer, ScatteredLayer, WindowLayer
from .rope import Rope, find_rope

POSITIONS = ("in_cache", "original")
# float32 angles lose precision with the position, so positions start again every so many tokens
REBASE_EVERY = 4096


@dataclass
class Step:
    """What the attention function must know of one step of `n` new tokens."""

    n: int
    start: int  # index in the stream of the first new token
    window: Window | None  # None: the new tokens see all that is cached
    rope: Rope | None = None
    sink_delta: torch.Tensor | None = None  # (n,): turns a query to where sinks are looked up from
    _masks: dict[int, torch.Tensor] = field(default_factory=dict)

    def mask(self, length: int, device, dtype) -> torch.Tensor | None:
        """Additive mask (n, length) for `length` cached and new keys; None where all are seen."""
        if self.n == 1:
            return None  # the cache holds just what one token may see
        if length not in self._masks:
            query = torch.arange(self.start, self.start + self.n, device=device)[:, None]
            key = torch.arange(self.start + self.n - length, self.start + self.n, device=device)
            seen = key <= query
            if self.window is not None:
                sinks = min(self.window.start_size, self.start + self.n)
                seen &= key >= query - self.window.recent_size
                seen[:, :sinks] = torch.arange(sinks, device=device) <= query
            mask = torch.zeros(seen.shape, device=device, dtype=dtype)
            self._masks[length] = mask.masked_fill(~seen, torch.finfo(dtype).min)
        return self._masks[length]


class CompressedCache(Cache):
    """A cache with one of our compressors, for the loops in `lib.generation` and `lib.perplexity`.

    `positions="in_cache"` counts distances inside the cache (keys are turned, in float32);
    `"original"` leaves keys as they were rotated, with gaps where tokens were cut.
    Raises ValueError where the model's keys can't be turned (`lib.rope.find_rope`).
    """

    def __init__(self, model, compressor: Compressor, positions: str = "in_cache"):
        check_method(compressor, positions)
        self.compressor = copy.deepcopy(compressor)
        self.positions = positions
        self.rope = find_rope(model) if positions == "in_cache" else None
        self.window = compressor.window
        self.num_layers = model.config.get_text_config().num_hidden_layers
        super().__init__(layers=self._empty_layers())
        self._announced = 0  # tokens of the step under way

    def _empty_layers(self) -> list[Layer]:
        if self.window is not None:
            return [WindowLayer(self.window, self.rope) for _ in range(self.num_layers)]
        n = self.num_layers
        return [ScatteredLayer(i, self.compressor, self.rope, n) for i in range(n)]

    def __repr__(self) -> str:
        return f"CompressedCache({self.compressor}, {self.positions}, held={self.cached_lengths})"

    def reset(self) -> None:
        """Forget everything: the next token begins a new stream."""
        self.layers = self._empty_layers()

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs):
        """What attention may see: all that is cached, and the new tokens (B, H, n, D)."""
        if key_states.shape[2] != self._announced:
            # positions that disagree with the cache's would go unnoticed
            raise RuntimeError(
                f"a step of {key_states.shape[2]} tokens was not announced: call the model with "
                "**cache.step(n), or use lib.generate and lib.evaluate"
            )
        if layer_idx == self.num_layers - 1:
            self._announced = 0
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def step(self, n: int, device="cpu") -> dict:
        """Keyword arguments of the model's forward for the next `n` tokens."""
        require_int("n", n, 1)
        self._rebase(n)
        self._announced = n
        position = self.layers[0].position
        step = Step(n, self.get_seq_length(), self.window, self.rope)
        positions = torch.arange(position, position + n, device=device)
        if n > 1 and self.rope is not None and self.window is not None:
            stream = torch.arange(step.start, step.start + n, device=device)
            delta = stream.clamp(max=self.window.budget) - positions
            if self.window.start_size and delta.any():
                step.sink_delta = delta
        return {"position_ids": positions[None], "past_key_values": self, "kv_step": step}

    def _rebase(self, n: int) -> None:
        """Keep positions small; distances, all that RoPE sees, stay the same."""
        longest = max(layer.length for layer in self.layers)
        if self.rope is None or not longest:
            return
        if self.layers[0].position + n > longest + max(REBASE_EVERY, n):
            shift = self.layers[0].position - longest
            for layer in self.layers:
                layer.rebase(shift)

    @property
    def cached_lengths(self) -> list[int]:
        """Tokens held now, per layer."""
        return [layer.length for layer in self.layers]

    @property
    def evictions(self) -> int:
        """Steps in which some layer was cut."""
        return max(layer.evictions for layer in self.layers)


def check_method(compressor, positions: str) -> None:
    """Raise a ValueError unless these are a compressor (or None) and a way to count positions."""
    ok = compressor is None or isinstance(compressor, Compressor)
    require(ok, "compressor", compressor, "None or a Compressor such as StreamingLLM(4, 508)")
    require(positions in POSITIONS, "positions", positions, f"one of {POSITIONS}")


def check_ids(model, input_ids: torch.Tensor, shortest: int) -> torch.Tensor:
    """Token ids as (B, T) on the model's device, or a ValueError."""
    tensor = isinstance(input_ids, torch.Tensor) and input_ids.dtype in (torch.int64, torch.int32)
    require(tensor, "input_ids", type(input_ids).__name__, "a tensor of whole numbers")
    shape = tuple(input_ids.shape)
    ok = len(shape) in (1, 2) and input_ids.numel() and shape[-1] >= shortest
    require(ok, "input_ids.shape", shape, f"(T,) or (B, T) with T >= {shortest}")
    vocabulary = model.config.get_text_config().vocab_size
    low, high = int(input_ids.min()), int(input_ids.max())
    require(low >= 0 and high < vocabulary, "input_ids", (low, high), f"ids in 0..{vocabulary - 1}")
    return (input_ids[None] if input_ids.ndim == 1 else input_ids).to(model.device)


def held_lengths(cache: Cache) -> list[int]:
    """Tokens held per layer, by our cache or transformers' own."""
    if isinstance(cache, CompressedCache):
        return cache.cached_lengths
    return [layer.keys.shape[2] for layer in cache.layers]


def cache_bytes(cache: Cache) -> int:
    """Bytes allocated for what `cache` holds: keys, values, and keys kept un-turned."""
    tensors = []
    for layer in cache.layers:
        tensors += [layer.keys, layer.values, *getattr(layer, "sinks", ())]
        tensors.append(getattr(layer, "source", None))
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
