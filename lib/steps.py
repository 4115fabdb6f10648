"""One forward pass of n new tokens: what it does to a window's slots, and who sees whom in it."""

from dataclasses import dataclass, field

import torch

from .rope import Rope
from .slots import Slots

# queries that one call of attention takes where old tokens leave within the step: fewer waste
# less on keys that most of them don't see, more make better matrix products
BLOCK = 64


@dataclass
class Step:
    """One step of `n` new tokens, planned before the model sees them; shared by all layers."""

    n: int
    seen: int  # tokens of the stream before it
    position: int  # of the first new token
    slots: Slots | None = None  # None: scattered tokens, where all that is cached is seen
    rope: Rope | None = None  # None: positions="original", nothing is turned
    dense: bool = False  # a prompt that sees all of itself
    first: int = 0  # slot of the first held token
    held: int = 0  # slots in use before the step, and how many of them are sinks
    held_front: int = 0
    held_after: int = 0  # and after it
    front_after: int = 0
    new_sinks: torch.Tensor | None = None  # (1 or B, start_size): which new tokens are sinks
    # several tokens: turns the queries to where the sinks are looked up from, (1 or B, n)
    sink_delta: torch.Tensor | None = None
    # one token: its slot (1,); the slots of sinks to be written anew, and what turns them
    slot: torch.Tensor | None = None
    sink_slots: torch.Tensor | None = None  # (start_size,)
    turn: tuple[torch.Tensor, torch.Tensor] | None = None  # cos, sin (1 or B, 1, 1, rotary_dim)
    _masks: dict = field(default_factory=dict)

    @property
    def front(self) -> int:
        """How many of the keys that attention gets are sinks; they come first."""
        return 0 if self.slots is None else self.slots.front(self.seen + self.n)

    def blocks(self, length: int) -> list[tuple[slice, slice]]:
        """Blocks of queries and which of `length` keys, sinks apart, they may need.

        The slice of keys has `front` more places in front, where the sinks are to be put.
        """
        if self.slots is None:
            return [(slice(0, self.n), slice(0, length))]
        reach = self.slots.recent_size + self.slots.buffer
        blocks = []
        for begin in range(0, self.n, BLOCK):
            end = min(begin + BLOCK, self.n)
            low = max(0, length - self.n + begin - reach - self.front)
            high = max(self.front, length - self.n + end)
            blocks.append((slice(begin, end), slice(low, high)))
        return blocks

    def mask(self, queries: slice, keys: slice, length: int, device, dtype) -> torch.Tensor:
        """Additive mask (1 or B, 1, queries, keys) for one of `blocks`; layers share it."""
        key = (queries.start, keys.start, keys.stop, device, dtype)
        if key not in self._masks:
            columns = torch.arange(queries.start, queries.stop, device=device) + self.seen
            window = torch.arange(keys.start + self.front, keys.stop, device=device)
            window += self.seen + self.n - length  # the column of each key
            if self.slots is None:
                visible = (window <= columns[:, None])[None]
            else:
                visible = self.slots.visible(columns, self.front, window)
            self._masks[key] = additive(visible, dtype)
        return self._masks[key]


def additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where (1 or B, n, S) is true, else the lowest number: (1 or B, 1, n, S)."""
    mask = torch.zeros(visible.shape, device=visible.device, dtype=dtype)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def plan(step: Step, dense: bool, device) -> Step:
    """Fill in what `step` does to its slots. `dense`: a prompt that is cut only after it."""
    slots, n, seen, step.dense = step.slots, step.n, step.seen, dense
    columns = torch.arange(seen, seen + n, device=device)
    own = slots.own(columns)  # (1 or B, n)
    step.first = slots.first
    step.held, step.held_front = slots.used(seen), slots.front(seen)
    if dense:
        slots.cut_at(seen + n if slots.pads is None else own[:, -1:] + 1)
    step.held_after, step.front_after = slots.used(seen + n), slots.front(seen + n)
    start = torch.arange(slots.start_size, device=device)
    if slots.start_size and (slots.pads is not None or seen < slots.start_size):
        step.new_sinks = start[None] + (0 if slots.pads is None else slots.pads) - seen
    if n == 1:
        _plan_one(step, own, start)
    elif step.rope is not None and slots.start_size and not dense:
        delta = (slots.held(own) - own - (step.position - seen)).where(own >= 0, 0)
        step.sink_delta = delta if bool(delta.any()) else None
    return step


def _plan_one(step: Step, own: torch.Tensor, start: torch.Tensor) -> None:
    slots = step.slots
    step.slot = torch.tensor([step.first + step.held], device=own.device)
    if slots.start_size and (slots.stale or slots.pads is not None):
        step.sink_slots = start + step.first
        if step.rope is not None:
            # a sink stands `held` before the query, whose position is own + (position - seen)
            delta = own + (step.position - step.seen) - slots.held(own)
            step.turn = step.rope.cos_sin(delta[..., None].clamp(min=0))


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
