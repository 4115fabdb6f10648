"""One text read under one setting: the loss of every token, and what a chosen step attends to.

Reading leaves copies of the cache along the way, so that any step can be looked at afterwards: the
nearest copy before it is fed the tokens in between, as the reading itself was fed them.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from transformers import Cache

from lib.cache.attention import Own, last_weights
from lib.cache.baseline import LARGE_CHUNK, any_chunk, make_cache
from lib.cache.checks import check_ids
from lib.cache.probe import cached_by, probe
from lib.compressors import Compressor, Held
from lib.compressors.base import Around
from lib.measure.perplexity import feed
from lib.measure.rows import BASELINE
from lib.require import require

from .setting import Setting

MOST_BYTES = 256 * 2**20  # of copies of a cache along a text


class Noting(Around):
    """`method`, noting the index in the text of every token that its layers hold."""

    def __init__(self, method: Compressor):
        super().__init__(method)
        self.held: dict[int, torch.Tensor] = {}  # by layer (Hkv, T)
        self.seen: dict[int, int] = {}  # tokens of the text that a layer has come to know

    def keep(self, held: Held) -> torch.Tensor | None:
        tokens = self.tokens(held.layer_idx, *held.keys.shape[1:3])
        index = super().keep(held)
        if index is not None:
            index = index.expand(*held.keys.shape[:2], -1) if index.ndim == 1 else index
            tokens = tokens.gather(1, index[0].cpu())
        self.held[held.layer_idx] = tokens
        return index

    def tokens(self, layer: int, heads: int, length: int) -> torch.Tensor:
        """Indices of the `length` tokens held, (Hkv, length): those noted, and all after them."""
        known = self.held.get(layer, torch.empty(heads, 0, dtype=torch.long))
        seen = self.seen.get(layer, 0)
        new = torch.arange(seen, seen + length - known.shape[1]).expand(heads, -1)
        self.seen[layer] = seen + new.shape[1]
        self.held[layer] = torch.cat((known, new), dim=1)
        return self.held[layer]


@dataclass
class Look:
    """What the query at `step` attends to in every layer and head, itself included."""

    step: int
    tokens: list[torch.Tensor]  # by layer (Hkv, n), indices in the text
    weights: list[torch.Tensor]  # by layer (H, n), each head's sum is 1 at most

    def of(self, layer: int, head: int) -> tuple[list[int], list[float]]:
        """Tokens and weights of one head."""
        tokens, weights = self.tokens[layer], self.weights[layer]
        own = tokens[head * len(tokens) // len(weights)]
        return own.tolist(), [round(x, 5) for x in weights[head].tolist()]

    def share(self, first: int) -> list[float]:
        """Share of a layer's attention that goes to the text's `first` tokens, mean over heads."""
        return [
            float((w * (t < first).repeat_interleave(len(w) // len(t), 0)).sum(1).mean())
            for t, w in zip(self.tokens, self.weights, strict=True)
        ]


@dataclass
class Reading:
    """`tokens` (T,) read under `setting`: `run` finds the loss, `look` looks at a step."""

    model: torch.nn.Module
    tokens: torch.Tensor
    setting: Setting
    copies: dict[int, Cache] = field(default_factory=dict)  # by tokens read
    near: dict[int, Cache] = field(default_factory=dict)  # one more, just before the last look
    done: int | None = None  # tokens that `run` has read, while it is under way

    def run(self, step: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """After every chunk: tokens predicted so far, and their NLL with zeros behind (T - 1,).

        A look at `step` is cheap from then on.
        """
        nll, cache = torch.zeros(len(self.tokens) - 1), self._new_cache()
        ids, self.done = check_ids(self.model, self.tokens, 2), 0
        try:
            for start, end in pairwise(self._edges(len(nll), step)):
                piece, _ = feed(self.model, ids[:, start : end + 1], end - start, cache)
                nll[start:end] = piece[0]
                self._keep(end, cache, end == step)
                self.done = end
                yield end, nll
        finally:
            self.done = None

    @torch.no_grad()
    def look(self, step: int) -> Iterator[Look | None]:
        """What the token at `step` attends to, at the end; None after each chunk before it."""
        (cache, done), size = self._before(step), self.setting.chunk_size
        while (end := (done // size + 1) * size) <= step:
            self._feed(cache, done, end)
            done = end
            self._keep(done, cache)
            yield None
        if self._any_chunk and done < step:
            self._feed(cache, done, step)
            done = step
        if self._any_chunk:  # the next look is often at the step behind
            self._keep(step, cache, near=True)
        tokens, watch = self._given(cache, done, step + 1), _Watch()
        self._feed(cache, done, step + 1, kv_watch=watch)
        what = "one that takes its attention from transformers' AttentionInterface, to look at it"
        require(bool(watch.seen), "model", type(self.model).__name__, what)
        # a layer with a window of its own is given the last tokens only
        seen = [
            own[:, -given:][:, keys]
            for own, given, keys in zip(tokens, watch.given, watch.seen, strict=True)
        ]
        yield Look(step, seen, watch.weights)

    @property
    def _any_chunk(self) -> bool:
        """Whether chunks may end anywhere: else they are part of the method's definition."""
        return any_chunk(self.setting.compressor())

    def _edges(self, length: int, step: int | None) -> list[int]:
        """Where the chunks of a run begin and end: at the `step` as well, if they may."""
        size, edges = self.setting.chunk_size, [0]
        for end in (step, length) if self._any_chunk and step and step < length else (length,):
            start = edges[-1]
            if self._any_chunk:  # of one size: a short one would take nearly as long
                size = math.ceil((end - start) / math.ceil((end - start) / LARGE_CHUNK))
            edges += [*range(start + size, end, size), end]
        return edges

    def _new_cache(self) -> Cache:
        """An empty cache, whose method notes what it keeps where no rule says it."""
        method = self.setting.compressor()
        if method is not None and method.window is None:
            method = Noting(method)
        return make_cache(self.model, method, self.setting.buffer, self.setting.positions)

    def _feed(self, cache: Cache, start: int, end: int, **more) -> None:
        ids = check_ids(self.model, self.tokens[start:end], 1)
        self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **more)

    def _keep(self, done: int, cache: Cache, near: bool = False) -> None:
        """Keep a copy of the cache after `done` tokens, if there is room for one from here."""
        if self.setting.method == BASELINE:  # of a dense cache a part is what it was before
            if done > max(self.copies, default=0):
                self.copies = {done: cache}
            return
        if near:
            self.near = {done: copy.deepcopy(cache)}
            return
        if not self._any_chunk and done % self.setting.chunk_size:
            return  # the text's end: a look at its last token is a step of the whole last chunk
        apart = len(self.tokens) * cache.nbytes / MOST_BYTES
        apart = max(apart, self.setting.chunk_size / 2)
        if all(abs(done - other) >= apart for other in self.copies):
            self.copies[done] = copy.deepcopy(cache)

    def _before(self, step: int) -> tuple[Cache, int]:
        """A cache of the reading before `step`, to be fed, and how many tokens it has read."""
        if self.setting.method == BASELINE:
            cache, read = self._new_cache(), max(self.copies, default=0)
            layers = self.copies[read].layers if read else ()
            if any(x.keys is None or x.keys.shape[2] < read for x in layers):
                return cache, 0  # a layer has a window of its own, or is another's: read anew
            done = min(step, read)
            for index, layer in enumerate(layers if done else ()):
                cache.update(layer.keys[:, :, :done], layer.values[:, :, :done], index)
            return cache, done
        copies = self.copies | self.near
        done = max((at for at in copies if at <= step), default=0)
        return (copy.deepcopy(copies[done]) if done else self._new_cache()), done

    def _given(self, cache: Cache, start: int, end: int) -> list[torch.Tensor]:
        """Place in the text of each key that start .. end - 1 are given: by layer (Hkv, S)."""
        new, method = torch.arange(start, end), getattr(cache, "compressor", None)
        layers = self.model.config.get_text_config().num_hidden_layers
        if method is None:
            return [torch.arange(end)[None]] * layers
        if isinstance(method, Noting):
            if not start:
                return [new[None]] * layers
            held = [method.tokens(i, *x.keys.shape[1:3]) for i, x in enumerate(cache.layers)]
            held = [held[i] for i in cached_by(probe(self.model))]
            return [torch.cat((old, new.expand(len(old), -1)), dim=1) for old in held]
        front, held = cache.store.front(start), cache.store.used(start)
        recent = torch.arange(start - (held - front), end)
        return [torch.cat((torch.arange(front), recent))[None]] * layers


class _Watch:
    """Notes what the last query of a step attends to in every layer, as attention is called."""

    def __init__(self):
        self.given: list[int] = []  # keys
        self.seen: list[torch.Tensor] = []
        self.weights: list[torch.Tensor] = []

    def __call__(self, step, module, query, key, value, mask=None, dropout=0.0, **options):
        names = {"scaling": "scaling", "softcap": "softcap", "s_aux": "sinks"}
        own = {field: options.get(name) for name, field in names.items()}
        own = Own(**own, window=options.get("sliding_window"))
        seen, weights = last_weights(query, key, step, len(self.seen), own)
        self.given.append(key.shape[2])
        self.seen.append(seen.cpu())
        self.weights.append(weights.float().cpu())
