"""Sinks and a window, in the same slots in all layers.

The store plans what a step does to the slots, each layer does it with its own keys and values, and
the store notes what has moved.
"""

from dataclasses import replace

import torch

from lib.compressors.base import Window

from .rope import Rotation
from .slots import Slots
from .step import Step
from .window_layer import WindowLayer

# cos and sin for each of a cache's ropes
Shifts = list[tuple[torch.Tensor, torch.Tensor]]
AT_ONCE = 64  # shifts of single steps that are computed together


class WindowStore(Slots):
    """Sinks and a window, in the same slots in all layers, which are turned by `rotations`.

    `dense`: a prompt is cut only after it. Keys are of `dtype`. Layers know their slots, and these
    are told of the layers only where they move what layers hold: no cycle keeps a cache in memory.
    """

    scored = False

    def __init__(
        self,
        window: Window,
        buffer: int,
        dense: bool,
        rotations: list[Rotation],
        dtype: torch.dtype,
    ):
        super().__init__(window, buffer)
        self.dense, self.rotations = dense, rotations
        # those that differ: (rope, dims of the heads it turns)
        self.ropes = list(dict.fromkeys((x.cached, x.width) for x in rotations if x.cached))
        self.exact = torch.promote_types(dtype, torch.float32)
        # what is made once for many steps, and where: slot numbers; shifts, and of which block
        self.numbers: tuple = (None, None)
        self.known: tuple[tuple | None, Shifts] = (None, [])

    def new_layers(self, static: bool) -> list[WindowLayer]:
        """The layers that share these slots."""
        known = {rope: which for which, (rope, _) in enumerate(self.ropes)}
        return [WindowLayer(self, x, known.get(x.cached, 0), static) for x in self.rotations]

    def lengths(self, seen: int) -> list[int]:
        """Tokens held per layer, once `seen` have passed."""
        return [min(self.used(seen), seen)] * len(self.rotations)

    def is_whole(self, seen: int) -> bool:
        """Whether all tokens are held once `seen` have passed, so that the last can be dropped."""
        if self.pads is None:
            return self.held(seen) == seen
        return seen <= self.recent_size + self.buffer

    def shorten(self, layers: list[WindowLayer], step: Step, n: int) -> None:
        """Let `step`, the last one and of several tokens, have been one of its first `n`."""
        seen = step.seen + n
        step = replace(step, n=n, held_after=self.used(seen), front_after=self.front(seen))
        for layer in layers:
            layer.shorten(step)
        self.stale = True

    def lost(self, n: int, seen: int, device) -> torch.Tensor | None:
        """For rows with pads that hold everything after `n` tokens more: a step's `lost`."""
        if self.pads is None or seen + n > self.budget + self.buffer:
            return None
        gone = torch.arange(seen - min(seen, self.recent_size + self.buffer), device=device)
        return self.own(gone).clamp(min=0)

    def is_plain(self, n: int, seen: int) -> bool:
        """Whether `n` tokens more see everything before them, so that any attention will do."""
        fits = self.pads is None and seen + n <= self.budget + self.buffer
        return n == 1 or fits or self._is_dense(n, seen)

    def _is_dense(self, n: int, seen: int) -> bool:
        return self.dense and seen == 0 and n > 1

    def is_causal(self, n: int, seen: int) -> bool:
        """Whether the model's own causal mask is right for `n` tokens more."""
        return self.pads is None and (n == 1 or self.is_plain(n, seen))

    def awaits_sinks(self, seen: int) -> bool:
        """Whether a row has not got all its sinks yet: it began with pads."""
        return self.pads is not None and seen < int(self.pads.max()) + self.start_size

    def rebase(self, layers: list[WindowLayer], seen: int, position: int, to: int) -> None:
        """Let the tokens that stand before `position` stand before `to`."""
        window = slice(self.first + self.front(seen), self.first + self.used(seen))
        for layer in layers:
            layer.rebase(position - to, window)
        self.stale = True

    def plan(self, step: Step, layers: list[WindowLayer], device) -> None:
        """Fill in what `step` does to the slots."""
        n, seen, step.slots = step.n, step.seen, self
        step.dense = self._is_dense(n, seen)
        if n == 1:
            self._make_room(layers, seen)
        own = seen  # places in the rows' own texts, (1 or B, n) where these aren't one for all
        if n > 1 or self.pads is not None:
            own = self.own(torch.arange(seen, seen + n, device=device))
        step.first = self.first
        step.held, step.held_front = self.used(seen), self.front(seen)
        if step.dense:
            self.cut_at(seen + n if self.pads is None else own[:, -1:] + 1)
        step.held_after, step.front_after = self.used(seen + n), self.front(seen + n)
        if self.start_size and (self.pads is not None or seen < self.start_size):
            start = torch.arange(self.start_size, device=device)
            step.new_sinks = start[None] + (0 if self.pads is None else self.pads) - seen
        if n == 1:
            self._plan_one(step, own, device)
        elif step.ropes is not None and self.start_size and not step.dense:
            delta = (self.held(own) - own - (step.position - seen)).where(own >= 0, 0)
            step.sink_delta = delta if bool(delta.any()) else None

    def _make_room(self, layers: list[WindowLayer], seen: int) -> None:
        """Move the held tokens to the front of the buffer where the next one would not fit."""
        if self.first + self.used(seen) >= self.size:
            for layer in layers:
                layer.move(self.first, self.used(seen))
            self.first = 0

    def _plan_one(self, step: Step, own: torch.Tensor | int, device) -> None:
        numbers, new = self._slot_numbers(device), step.first + step.held
        step.slot = numbers[new : new + 1]
        if self.start_size and (self.stale or self.pads is not None):
            step.sink_slots = numbers[step.first : step.first + self.start_size]
            if step.ropes is not None:
                # a sink stands `held` before the query, whose position is own + (position - seen)
                delta = own + (step.position - step.seen) - self.held(own)
                if isinstance(delta, int):
                    step.sink_shift = self._known_shift(delta, device)
                else:
                    step.sink_shift = self._shifts(delta)

    def _slot_numbers(self, device) -> torch.Tensor:
        """0 .. size - 1: slices of it are had for less than a tensor at every step."""
        if self.numbers[0] != device:
            with torch.inference_mode(False):
                self.numbers = device, torch.arange(self.size, device=device)
        return self.numbers[1]

    def _shifts(self, delta: torch.Tensor) -> Shifts:
        """What turns by `delta` (m, 1), (m, 1, 1, D) each."""
        found = (rope.cos_sin(delta[..., None], width) for rope, width in self.ropes)
        return [(cos.to(self.exact), sin.to(self.exact)) for cos, sin in found]

    def _known_shift(self, delta: int, device) -> Shifts:
        """What turns by `delta`, made for some that follow one another at once."""
        block, place = divmod(delta, AT_ONCE)
        if self.known[0] != (block, device):
            with torch.inference_mode(False):
                deltas = torch.arange(block * AT_ONCE, (block + 1) * AT_ONCE, device=device)
                self.known = (block, device), self._shifts(deltas[:, None])
        here = slice(place, place + 1)
        return [(cos[here], sin[here]) for cos, sin in self.known[1]]

    def settle(self, step: Step) -> None:
        """The step's tokens are in their slots: note what has moved."""
        cut = step.held + step.n - step.held_after
        self.first = step.first + cut if step.n == 1 else 0
        placed = step.n > 1 or step.sink_slots is not None
        turned = step.n > 1 and step.held_after < step.seen + step.n  # written un-turned
        self.stale = cut > 0 or turned or (self.stale and not placed)
