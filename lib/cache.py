"""A transformers Cache that lets a compressor decide which tokens stay.

One forward pass is one step of n tokens. `CompressedCache.step(n)` gives the keyword arguments
that the step needs: position ids, and a `Step` that tells the attention function (`lib.attention`)
who sees whom. Eviction never blinds the current step: `update` returns what was cached and the new
tokens uncut, and cuts for the next step.
"""

import copy
from dataclasses import dataclass, field

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from .compressors import Compressor, RecentOnly, StreamingLLM
from .compressors.base import gather_tokens, require, require_int
from .rope import Rope, find_rope

POSITIONS = ("in_cache", "original")
# float32 angles lose precision with the position, so positions start again every so many tokens
REBASE_EVERY = 4096


@dataclass
class Window:
    """Position-only methods: query t sees j < start_size and t - recent_size <= j <= t."""

    start_size: int
    recent_size: int

    @property
    def budget(self) -> int:
        return self.start_size + self.recent_size


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


class _Layer(DynamicLayer):
    """What both kinds of layer share: counters of the tokens seen and cut."""

    def __init__(self, rope: Rope | None):
        super().__init__()
        self.rope = rope  # None: positions="original", keys are never turned
        self.seen = 0  # tokens of the stream so far
        self.position = 0  # position of the next token
        self.evictions = 0  # steps that cut
        self.evicted = 0  # tokens cut

    def _count_cut(self, tokens: int) -> None:
        self.evictions += tokens > 0
        self.evicted += tokens

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        cached = self.cached_length
        return cached + query_length, self.seen - cached

    @property
    def cached_length(self) -> int:
        """Tokens held now."""
        return self.keys.shape[2] if self.is_initialized and self.keys.ndim == 4 else 0


class WindowLayer(_Layer):
    """Sinks and a window. Only the sinks are ever turned, always from their own un-cut copies."""

    def __init__(self, window: Window, rope: Rope | None):
        super().__init__(rope)
        self.window = window

    def update(self, key_states, value_states, *args, **kwargs):
        n = key_states.shape[2]
        keys, values = super().update(key_states, value_states)  # (B, H, cached + n, D)
        start, recent = self.window.start_size, self.window.recent_size
        if keys.shape[2] > start + recent:
            self._count_cut(keys.shape[2] - start - recent)
            self.keys, self.values = (
                torch.cat((x[:, :, :start], x[:, :, -recent:]), dim=2) for x in (keys, values)
            )
        # for one token sinks are turned forward, for several `lib.attention` turns the queries
        delta = self.position - min(self.seen, start + recent)
        if n == 1 and start and delta and self.rope is not None:
            sinks = self.rope.turn(keys[:, :, :start], delta)
            keys = torch.cat((sinks, keys[:, :, start:]), dim=2)
        self.seen += n
        self.position += n
        return keys, values

    def rebase(self, shift: int) -> None:
        """Move all window keys (not the sinks, they stand where they stood) back by `shift`."""
        start = self.window.start_size
        moved = self.rope.turn(self.keys[:, :, start:], -shift)
        self.keys = torch.cat((self.keys[:, :, :start], moved), dim=2)
        self.position -= shift


class ScatteredLayer(_Layer):
    """Any compressor: kept tokens, in order, stand directly before the next token.

    `source` holds the keys as they were first rotated, at `source_position`: every turn starts
    from there, so that rounding errors don't add up.
    """

    def __init__(self, layer_idx: int, compressor: Compressor, rope: Rope | None):
        super().__init__(rope)
        self.layer_idx = layer_idx
        self.compressor = compressor
        self.source = None  # (B, H, n, D)
        self.source_position = None  # (B, H, n)

    def update(self, key_states, value_states, *args, **kwargs):
        B, H, n, _ = key_states.shape
        keys, values = super().update(key_states, value_states)
        index = self.compressor.keep(keys, self.layer_idx)
        if self.rope is not None:
            here = torch.arange(self.position, self.position + n, device=keys.device)
            self._append_source(key_states, here.expand(B, H, n))
        self.seen += n
        self.position += n
        if index is not None:
            self._count_cut(keys.shape[2] - index.shape[-1])
            self.keys, self.values = gather_tokens(keys, index), gather_tokens(values, index)
            if self.rope is not None:
                self.source = gather_tokens(self.source, index)
                self.source_position = gather_tokens(self.source_position, index)
                self._turn()
        return keys, values

    def _append_source(self, keys, positions):
        if self.source is None:
            self.source, self.source_position = keys, positions
        else:
            self.source = torch.cat((self.source, keys), dim=2)
            self.source_position = torch.cat((self.source_position, positions), dim=2)

    def _turn(self) -> None:
        kept = self.source.shape[2]
        target = torch.arange(self.position - kept, self.position, device=self.source.device)
        self.keys = self.rope.turn(self.source, target - self.source_position)

    def rebase(self, shift: int) -> None:
        """Move all keys back by `shift` positions."""
        self.position -= shift
        self._turn()


class CompressedCache(Cache):
    """A cache with one of our compressors, for the loops in `lib.generation` and `lib.perplexity`.

    `positions="in_cache"` counts distances inside the cache (keys are turned, in float32);
    `"original"` leaves keys as they were rotated, with gaps where tokens were cut.
    Raises ValueError where the model's keys can't be turned (`lib.rope.find_rope`).
    """

    def __init__(self, model, compressor: Compressor, positions: str = "in_cache"):
        require(positions in POSITIONS, "positions", positions, f"one of {POSITIONS}")
        self.compressor = copy.deepcopy(compressor)
        self.positions = positions
        self.rope = find_rope(model) if positions == "in_cache" else None
        self.window = window_of(compressor)
        count = model.config.get_text_config().num_hidden_layers
        if self.window is not None:
            layers = [WindowLayer(self.window, self.rope) for _ in range(count)]
        else:
            layers = [ScatteredLayer(i, self.compressor, self.rope) for i in range(count)]
        super().__init__(layers=layers)

    def step(self, n: int, device="cpu") -> dict:
        """Keyword arguments of the model's forward for the next `n` tokens."""
        require_int("n", n, 1)
        self._rebase(n)
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
        longest = max(layer.cached_length for layer in self.layers)
        if self.rope is None or not longest:
            return
        if self.layers[0].position + n > longest + max(REBASE_EVERY, n):
            shift = self.layers[0].position - longest
            for layer in self.layers:
                layer.rebase(shift)

    @property
    def cached_lengths(self) -> list[int]:
        """Tokens held now, per layer."""
        return [layer.cached_length for layer in self.layers]

    @property
    def evictions(self) -> int:
        """Steps in which some layer was cut."""
        return max(layer.evictions for layer in self.layers)


def window_of(compressor: Compressor) -> Window | None:
    """The window of a position-only method, None for methods that look at the keys."""
    if isinstance(compressor, StreamingLLM):
        return Window(compressor.start_size, compressor.recent_size)
    if isinstance(compressor, RecentOnly):
        return Window(0, compressor.window_size)
    return None


def cache_bytes(cache: Cache) -> int:
    """Bytes of the keys and values that `cache` holds."""
    tensors = [
        t for layer in cache.layers if layer.is_initialized for t in (layer.keys, layer.values)
    ]
    return sum(t.numel() * t.element_size() for t in tensors)
