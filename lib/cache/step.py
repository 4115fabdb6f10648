"""One forward pass of n new tokens: what it does to a window's slots, and who sees whom in it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch

from .slots import Slots
from .turning import Rope

# queries that one call of our attention takes: fewer waste less on keys that most of them don't
# see, more cost fewer calls
BLOCK = 64
GPU_BLOCK = 512
Block = tuple[slice, slice, torch.Tensor | None]


@dataclass
class Step:
    """One step of `n` new tokens, planned before the model sees them; shared by all layers."""

    n: int
    seen: int  # tokens of the stream before it
    position: int  # of the first new token
    # what turns the queries, by layer; None: positions="original", nothing is turned
    ropes: list[Rope | None] | None = None
    slots: Slots | None = None  # None: scattered tokens, where all that is cached is seen
    # the cache's layers, where attention is to tell them what their tokens receive
    layers: list | None = None
    dense: bool = False  # a prompt that sees all of itself
    shares: bool = False  # whether the keys that a layer caches are attended to several times
    first: int = 0  # slot of the first held token
    held: int = 0  # slots in use before the step, and how many of them are sinks
    held_front: int = 0
    held_after: int = 0  # and after it
    front_after: int = 0
    new_sinks: torch.Tensor | None = None  # (1 or B, start_size): which new tokens are sinks
    # several tokens: turns the queries to where the sinks are looked up from, (1 or B, n)
    sink_delta: torch.Tensor | None = None
    # one token: its slot (1,); the slots of sinks to be written anew, and by how much to turn them
    slot: torch.Tensor | None = None
    sink_slots: torch.Tensor | None = None  # (start_size,)
    # cos and sin for each of the cache's ropes, (1 or B, 1, 1, D) each
    sink_shift: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    # where attention is to see the text's columns, in their order, of rows with pads: for each
    # column that has left the window the sink which it was, (B, columns), any for a pad
    lost: torch.Tensor | None = None
    _blocks: dict = field(default_factory=dict)

    @property
    def front(self) -> int:
        """How many of the keys that attention gets are sinks; they come first."""
        return 0 if self.slots is None else self.slots.front(self.seen + self.n)

    def blocks(
        self, length: int, device, dtype, window: int | None = None, start: int = 0
    ) -> Iterable[Block]:
        """Blocks of queries, which of `length` keys each may need, and its additive mask.

        Scattered tokens are seen by the next `window` only, counted among those held (all of them
        for None). Blocks before the query `start` are left out. The slice of keys begins with
        `front` places where the sinks are to be put. A mask, (1 or B, 1, queries, keys), may be of
        the last keys only: those before are seen. Layers share the masks, unless these would grow
        with the square of the length.
        """
        size = BLOCK if device.type == "cpu" else GPU_BLOCK
        limited = self.slots is None and (window or length) < length
        if limited and self.n > size:  # each is made when it is needed
            return self._make_blocks(length, size, device, dtype, window, start // size * size)
        known = length, device, window
        if known not in self._blocks:
            self._blocks[known] = list(self._make_blocks(length, size, device, dtype, window))
        return [block for block in self._blocks[known] if block[0].stop > start]

    def _make_blocks(
        self, length: int, size: int, device, dtype, window: int | None, start: int = 0
    ) -> Iterator[Block]:
        window = min(window or length, length)
        if self.n == 1:  # sees everything
            yield slice(0, 1), slice(length - window, length), None
            return
        reach = window - 1 if self.slots is None else self.slots.recent_size + self.slots.buffer
        old, masks = length - self.n, {}
        whole = self.slots is None and window == length
        for begin in range(start, self.n, size):
            end = min(begin + size, self.n)
            low = max(0, old + begin - reach - self.front)
            keys = slice(low, max(self.front, old + end))
            # scattered tokens without a window: those before the block are seen by all of it
            masked = slice(old + begin, keys.stop) if whole else keys
            key = (end - begin,) if whole else self._alike(begin, end, keys)
            if self.slots is None and not whole:  # no two are alike: a matrix of the whole text
                masks.clear()
            if key not in masks:
                visible = self._visible(begin, end, masked, length, window, device)
                masks[key] = additive(visible, dtype)
            yield slice(begin, end), keys, masks[key]

    def _alike(self, begin: int, end: int, keys: slice) -> tuple:
        """The same for blocks with the same mask: within a window that is full, and as full."""
        if self.slots is None or self.slots.pads is not None:
            return (begin,)
        over = self.seen + begin - self.slots.origin
        if over < 0 or keys.start == 0:
            return (begin,)
        return end - begin, keys.stop - keys.start, over % (self.slots.buffer + 1)

    def _visible(self, begin, end, keys: slice, length: int, window: int, device) -> torch.Tensor:
        """Whether queries begin .. end see each of `keys`, the sinks in front: (1 or B, n, S)."""
        queries = torch.arange(begin, end, device=device) + self.seen  # columns of the text
        recent = torch.arange(keys.start + self.front, keys.stop, device=device)
        recent += self.seen + self.n - length
        if self.slots is None:
            age = queries[:, None] - recent
            return ((age >= 0) & (age < window))[None]
        return self.slots.visible(queries, self.front, recent)


def additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where (1 or B, n, S) is true, else the lowest number: (1 or B, 1, n, S)."""
    mask = torch.zeros(visible.shape, device=visible.device, dtype=dtype)
    # a softmax in float32 makes NaN of a row that is lower throughout: that of a pad
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    return mask.masked_fill_(~visible, lowest)[:, None]


def mask_of_text(step: Step, device, dtype) -> torch.Tensor:
    """Mask (B, 1, n, T) where rows with pads are seen whole, column by column."""
    columns = torch.arange(step.seen + step.n, device=device)
    causal = columns <= columns[step.seen :, None]
    return additive(causal & (step.slots.own(columns) >= 0)[:, None], dtype)


def mask_of_one(step: Step, size: int | None, device, dtype) -> torch.Tensor:
    """Mask (1 or B, 1, 1, S) of a single token: over the slots in use, or all `size` slots."""
    front = step.slots.front(step.seen + 1)
    length = step.held + 1
    keys = torch.arange(front, length, device=device) + step.seen + 1 - length
    visible = step.slots.visible(torch.tensor([step.seen], device=device), front, keys)
    if size is not None:
        everywhere = visible.new_zeros(*visible.shape[:-1], size)
        everywhere[..., step.first : step.first + length] = visible
        visible = everywhere
    return additive(visible, dtype)
