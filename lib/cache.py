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
from transformers.cache_utils import CacheLayerMixin

from .compressors import Compressor, RecentOnly, StreamingLLM
from .compressors.base import gather_tokens, require, require_int
from .rope import Rope, find_rope

POSITIONS = ("in_cache", "original")
# float32 angles lose precision with the position, so positions start again every so many tokens
REBASE_EVERY = 4096
# free slots a window's buffer is made with: it moves once in so many tokens
SPARE_SLOTS = 64


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


class _Layer(CacheLayerMixin):
    """What both kinds of layer share: counters of the tokens seen, held and cut."""

    def __init__(self, rope: Rope | None):
        super().__init__()
        self.rope = rope  # None: positions="original", keys are never turned
        self.seen = 0  # tokens of the stream so far
        self.position = 0  # position of the next token
        self.length = 0  # tokens held
        self.evictions = 0  # steps that cut
        self.evicted = 0  # tokens cut

    def _count(self, new: int, cut: int) -> None:
        self.seen += new
        self.position += new
        self.length += new - cut
        self.evictions += cut > 0
        self.evicted += cut

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1  # no limit: old tokens leave

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, self.seen - self.length


class WindowLayer(_Layer):
    """Sinks and a window in a buffer along which the held tokens wander, without a copy per token.

    The sinks are written anew before each step, in front of the window, over slots that eviction
    has freed. They alone are turned, always from their own un-cut copies.
    """

    def __init__(self, window: Window, rope: Rope | None):
        super().__init__(rope)
        self.window = window
        self.first = 0  # slot of the first sink

    def lazy_initialization(self, key_states, value_states):
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]  # (B, H, slots, D)
        self.sinks = (self.keys, self.values)  # as they came
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        n = key_states.shape[2]
        self._make_room(n)
        end = self.first + self.length + n
        self.keys[:, :, end - n : end] = key_states
        self.values[:, :, end - n : end] = value_states
        self._keep_sinks(key_states, value_states)
        if self.evicted:
            self._place_sinks(n)
        keys, values = (x[:, :, self.first : end] for x in (self.keys, self.values))
        cut = max(0, self.length + n - self.window.budget)
        self.first += cut
        self._count(n, cut)
        return keys, values

    def _make_room(self, n: int) -> None:
        """Move to a new buffer when slots run out, or when a long step has left far too many."""
        B, H, slots, D = self.keys.shape
        needed = self.length + n + SPARE_SLOTS
        if self.first + self.length + n <= slots <= needed + SPARE_SLOTS:
            return
        held, slots = slice(self.first, self.first + self.length), needed
        old, self.first = (self.keys, self.values), 0
        self.keys = old[0].new_empty(B, H, slots, D)
        self.values = old[1].new_empty(B, H, slots, old[1].shape[-1])
        self.keys[:, :, : self.length] = old[0][:, :, held]
        self.values[:, :, : self.length] = old[1][:, :, held]

    def _keep_sinks(self, keys, values) -> None:
        """Copy those of the new tokens that are sinks."""
        missing = self.window.start_size - self.seen
        if missing > 0:
            new = (keys[:, :, :missing], values[:, :, :missing])
            pairs = zip(self.sinks, new, strict=True)
            self.sinks = tuple(torch.cat((old, x), dim=2) for old, x in pairs)

    def _place_sinks(self, n: int) -> None:
        """For one token sinks are turned forward; for several `lib.attention` turns the queries."""
        keys, values = self.sinks
        delta = self.position - self.window.budget
        if n == 1 and delta and self.rope is not None:
            keys = self.rope.turn(keys, delta)
        place = slice(self.first, self.first + self.window.start_size)
        self.keys[:, :, place], self.values[:, :, place] = keys, values

    def rebase(self, shift: int) -> None:
        """Move all window keys (not the sinks, they stand where they stood) back by `shift`."""
        window = slice(self.first + self.window.start_size, self.first + self.length)
        self.keys[:, :, window] = self.rope.turn(self.keys[:, :, window], -shift)
        self.position -= shift

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Take the rows `beam_idx`."""
        rows = beam_idx.to(self.keys.device)
        self.keys, self.values = self.keys[rows], self.values[rows]
        self.sinks = tuple(x[rows] for x in self.sinks)


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

    def lazy_initialization(self, key_states, value_states):
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        B, H, n, _ = key_states.shape
        self.keys = keys = torch.cat((self.keys, key_states), dim=2)
        self.values = values = torch.cat((self.values, value_states), dim=2)
        index = self.compressor.keep(keys, self.layer_idx)
        if self.rope is not None:
            here = torch.arange(self.position, self.position + n, device=keys.device)
            self._append_source(key_states, here.expand(B, H, n))
        self._count(n, 0 if index is None else keys.shape[2] - index.shape[-1])
        if index is not None:
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

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Take the rows `beam_idx`."""
        rows = beam_idx.to(self.keys.device)
        self.keys, self.values = self.keys[rows], self.values[rows]
        if self.source is not None:
            self.source, self.source_position = self.source[rows], self.source_position[rows]


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
        self.window = window_of(compressor)
        self.num_layers = model.config.get_text_config().num_hidden_layers
        super().__init__(layers=self._empty_layers())
        self._announced = 0  # tokens of the step under way

    def _empty_layers(self) -> list[_Layer]:
        if self.window is not None:
            return [WindowLayer(self.window, self.rope) for _ in range(self.num_layers)]
        return [ScatteredLayer(i, self.compressor, self.rope) for i in range(self.num_layers)]

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


def window_of(compressor: Compressor) -> Window | None:
    """The window of a position-only method, None for methods that look at the keys."""
    if isinstance(compressor, StreamingLLM):
        return Window(compressor.start_size, compressor.recent_size)
    if isinstance(compressor, RecentOnly):
        return Window(0, compressor.window_size)
    return None


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
