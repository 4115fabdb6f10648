"""Which tokens of a stream a window holds, where they stand in a layer's buffer, who sees whom."""

import torch

from lib.compressors.base import Window

# free slots of a buffer: the held tokens are moved back to its front once in so many tokens
SPARE_SLOTS = 64


class Slots:
    """The places of `window`'s tokens where the cache may grow by `buffer` before it is cut.

    All layers share them. Slots `first .. first + start_size - 1` are the sinks, then comes the
    window in the order of the text; eviction moves `first` and copies nothing. With left padding
    (`pads`) a row's sinks are its own first real tokens, in front of a window of all columns, and
    masks hide what a row does not see.
    """

    def __init__(self, window: Window, buffer: int):
        self.start_size, self.recent_size = window.start_size, window.recent_size
        self.budget, self.buffer = window.budget, buffer
        self.size = self.budget + buffer + 1 + SPARE_SLOTS
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self.pads: torch.Tensor | None = None  # (B, 1) pad tokens in front of each row
        self.origin: torch.Tensor | int = self.budget  # index where cutting begins, or (B, 1)
        self.first = 0  # slot of the first sink
        self.stale = False  # whether the sinks in the buffer have the wrong slot or rotation

    def take(self, rows: torch.Tensor) -> None:
        """Take the rows `rows` of a padded batch."""
        for name in ("pads", "origin"):
            x = getattr(self, name)
            if isinstance(x, torch.Tensor):
                setattr(self, name, x[rows.to(x.device)])

    def cut_at(self, seen: torch.Tensor | int) -> None:
        """A dense prompt of `seen` tokens, (B, 1) with padding, is cut now if it is too long."""
        if isinstance(seen, int):
            self.origin = seen if seen > self.budget + self.buffer else self.budget
        else:
            self.origin = seen.where(seen > self.budget + self.buffer, self.budget)

    def held(self, seen: torch.Tensor | int) -> torch.Tensor | int:
        """Tokens a row holds once it has seen `seen`: it grows by `buffer`, then is cut again."""
        over = seen - self.origin
        cycle = self.budget + over % (self.buffer + 1)
        if isinstance(over, int):
            return seen if over < 0 else cycle
        return torch.where(over < 0, seen, cycle)

    def evicted(self, seen: int) -> int:
        """Tokens that have left, of the row that has seen most."""
        own = seen if self.pads is None else seen - self.pads
        return int(torch.as_tensor(own - self.held(own)).max())

    def cuts(self, seen: int) -> int:
        """How often the row that has seen most was cut."""
        own = seen if self.pads is None else seen - self.pads
        over, dense = torch.as_tensor(own - self.origin), torch.as_tensor(self.origin > self.budget)
        return int((over.div(self.buffer + 1, rounding_mode="floor") + dense.long()).max().clamp(0))

    def used(self, seen: int) -> int:
        """Slots in use once `seen` tokens (columns, with padding) have passed."""
        if self.pads is None:
            return self.held(seen)
        return self.start_size + min(seen, self.recent_size + self.buffer)

    def front(self, seen: int) -> int:
        """How many of the slots in use are sinks."""
        return min(self.start_size, seen) if self.pads is None else self.start_size

    def own(self, columns: torch.Tensor) -> torch.Tensor:
        """Index of these columns (n,) in each row's own text, (1 or B, n); below 0 for pads."""
        return columns[None] if self.pads is None else columns - self.pads

    def visible(self, columns: torch.Tensor, front: int, window: torch.Tensor) -> torch.Tensor:
        """Which of `front` sinks and of the columns `window` the queries at `columns` (n,) see.

        (1 or B, n, front + len(window)); whatever is older than a row's window is hidden.
        """
        own = self.own(columns)  # (1 or B, n)
        oldest = (columns - self.held(own) + self.start_size)[..., None]
        recent = (window >= oldest) & (window <= columns[:, None])
        sinks = torch.arange(front, device=columns.device) <= own[..., None]
        return torch.cat((sinks, recent), dim=-1)
