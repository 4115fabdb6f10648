"""What a cache holds between steps, and how generate() changes it: its rows, its last tokens."""

import math
from collections.abc import Sequence

import torch

from lib.compressors import Compressor
from lib.require import require

from .hooks import Announced
from .scattered import ScatteredStore
from .step import Step
from .turning import Rope
from .window import WindowStore


class Holding(Announced):
    """A cache that tells what it holds, in its layers and their `store`.

    Its rows (beam search) and last tokens (assisted decoding) can be changed.
    """

    compressor: Compressor
    store: WindowStore | ScatteredStore
    seen: int  # tokens of the stream so far
    position: int  # position of the next token
    ropes: list[Rope | None] | None  # what turns the queries, by layer; None: nothing is turned

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the stream seen so far, kept or not."""
        return self.seen

    @property
    def cached_lengths(self) -> list[int]:
        """Tokens held now, per layer."""
        return self.store.lengths(self.seen)

    @property
    def evictions(self) -> int:
        """How often some layer was cut."""
        return self.store.cuts(self.seen)

    @property
    def evicted(self) -> int:
        """Tokens that have left the layer that lost most."""
        return self.store.evicted(self.seen)

    @property
    def nbytes(self) -> int:
        """Bytes allocated: keys, values, the keys kept un-turned, and attention received."""
        return sum(x.nbytes for layer in self.layers for x in layer.tensors().values())

    def check_rows(self, rows: int) -> None:
        """Refuse another number of rows than the stream has."""
        self.layers[0].check_rows(rows, self.seen)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Take the rows `beam_idx`, as many as there are: the beams that go on."""
        super().reorder_cache(beam_idx)
        self.store.take(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor | Sequence[int]) -> None:
        """Keep the rows `indices`."""
        if self.seen:
            rows = torch.arange(len(self.layers[0].keys))[torch.as_tensor(indices, device="cpu")]
            for layer in self.layers:
                layer.take(rows)
            self.store.take(rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Have each row `repeats` times."""
        if self.seen:
            rows = len(self.layers[0].keys)
            self.batch_select_indices(torch.arange(rows).repeat_interleave(repeats))

    def activate_past_recording(self) -> None:
        """From now on the last step's tokens can be taken back (assisted decoding)."""
        name, ok = self.compressor.name, self.compressor.window is not None
        require(ok, "compressor", name, "one that looks at positions only for assisted decoding")
        for layer in self.layers:
            layer.recording = math.inf

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` tokens; ValueError if others had to come back."""
        ok = -self.seen <= tokens_to_remove <= 0
        require(ok, "tokens_to_remove", tokens_to_remove, f"{-self.seen}..0")
        if tokens_to_remove == 0:
            return
        step, seen = self.layers[0].step, self.seen + tokens_to_remove
        if self.store.is_whole(self.seen):
            for layer in self.layers:
                layer.crop(tokens_to_remove)
        elif -tokens_to_remove <= self.layers[0].undoable:
            self.store.shorten(self.layers, step, seen - step.seen)
        else:
            self._require_whole(self.seen)
        self.seen, self.position = seen, self.position + tokens_to_remove
        for layer in self.layers:
            layer.step = Step(0, seen, self.position, self.ropes)

    def _require_whole(self, seen: int) -> None:
        """Raise a ValueError unless tokens can be taken back when `seen` have passed."""
        what = "as few as stay without a cut: tokens that left a CompressedCache can't come back"
        require(self.store.is_whole(seen), "tokens", seen, what)
