"""What happens inside the cache: which tokens each step sees, and where their keys stand.

Measured, not computed from the rules: every value carries its token's index along through whatever
the cache does, and a key's place is read off its rotation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from lib.cache.baseline import held_lengths, make_cache
from lib.cache.checks import check_ids
from lib.cache.compressed import REBASE_EVERY, CompressedCache
from lib.cache.rope import Rope, find_rope
from lib.compressors import Compressor
from lib.compressors.base import gather_tokens
from lib.measure.generation import generate
from lib.measure.perplexity import evaluate
from lib.require import require

Way = tuple[Compressor | None, int]  # a method (None: dense) and its buffer


class MarkedCache(CompressedCache):
    """A `CompressedCache` whose values have two more dimensions, unknown to attention: the token.

    Its index is split in two, since bfloat16 knows whole numbers to 256 only.
    """

    def __init__(self, model, compressor: Compressor, buffer: int = 0, positions: str = "in_cache"):
        super().__init__(model, compressor, buffer, positions)
        self.angles = find_rope(model)
        self.tokens = [torch.empty(0)] * len(self.layers)  # the last step saw, each (H, S)
        self.keys = [torch.empty(0)] * len(self.layers)  # ... and their keys, each (H, S, D)
        self.plain = [[] for _ in self.layers]  # every token's key as at position 0, each (H, D)
        self.query = 0  # position of the last step's token

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs):
        index, place = value_states.new_tensor(divmod(self.seen, 256)), self.position
        index = index.expand(*value_states.shape[:-1], 2)
        marked = torch.cat((value_states, index), dim=-1)
        key, value = super().update(key_states, marked, layer_idx, *args, **kwargs)
        self.query = place
        high, low = value[0, ..., -2:].long().unbind(-1)
        self.tokens[layer_idx] = 256 * high + low
        self.keys[layer_idx] = key[0].clone()
        self.plain[layer_idx].append(self.angles.turn(key_states, -place)[0, :, 0])
        return key, value[..., :-2]

    def distances(self, layer_idx: int) -> torch.Tensor:
        """Distance (H, S) at which the last step's query saw each token, by the key's rotation."""
        plain = torch.stack(self.plain[layer_idx], dim=1)  # (H, T, D)
        plain = gather_tokens(plain[None], self.tokens[layer_idx][None])
        return rotation_of(self.angles, plain, self.keys[layer_idx][None], self.query)[0]


def rotation_of(rope: Rope, plain: torch.Tensor, turned: torch.Tensor, query: int) -> torch.Tensor:
    """How far before position `query` keys stand, (B, H, S): `turned` (B, H, S, D) are `plain` ones
    rotated to one of the positions 0 .. query."""
    places = range(query + 1)
    errors = [(rope.turn(plain, place) - turned).abs().sum(-1) for place in places]
    return query - torch.stack(errors).argmin(0)


def trace(model, ids: torch.Tensor, settings: Mapping[str, Way]) -> pd.DataFrame:
    """Feed `ids` (T,) one by one; a row per setting and step: tokens `held` after it, `evictions`.

    `evictions` counts the cuts so far, `evicted` the tokens that have left.
    """
    rows = []
    for name, (compressor, buffer) in settings.items():

        def note(done: int, cache, name=name) -> None:
            held = max(held_lengths(cache))
            cuts = getattr(cache, "evictions", 0)
            row = {"method": name, "step": done, "held": held, "evictions": cuts}
            rows.append(row | {"evicted": done - held})

        evaluate(model, ids, compressor, 1, buffer=buffer, after_chunk=note)
    return pd.DataFrame(rows)


def trace_table(traced: pd.DataFrame, first: int) -> pd.DataFrame:
    """What `trace` saw from step `first` on, where the cache is full: a row per setting.

    Lengths are over `n_steps` steps of the one text; `evictions` and `evicted` are those of all.
    """
    rows = []
    for name, part in traced.groupby("method", sort=False):
        full, last = part[part.step >= first], part.iloc[-1]
        row = {"method": name, "n_texts": 1, "n_steps": len(full), "shortest": full.held.min()}
        row |= {"mean_held": full.held.mean(), "longest": full.held.max()}
        row |= {"evictions": last.evictions, "evicted": last.evicted}
        cut = last.evicted / last.evictions if last.evictions else np.nan
        rows.append(row | {"tokens_per_eviction": cut})
    return pd.DataFrame(rows)


@dataclass
class Followed:
    """What `follow_tokens` returns for a text of T tokens, fed one by one."""

    seen: np.ndarray  # (T, T): share of all heads in which step t saw token j
    tokens: list[np.ndarray]  # what the last step saw, per layer (H, S)
    distances: list[np.ndarray]  # and at what distance, per layer (H, S)


@torch.no_grad()
def follow_tokens(
    model,
    ids: torch.Tensor,
    compressor: Compressor,
    buffer: int = 0,
    positions: str = "in_cache",
) -> Followed:
    """Feed `ids` (T,) one by one, at most `REBASE_EVERY` tokens, and note what each step sees.

    ValueError for methods that score tokens by their values, which carry the index here.
    """
    ids = check_ids(model, ids, 1)
    total = ids.shape[1]
    require(total <= REBASE_EVERY, "tokens", total, f"at most {REBASE_EVERY}")
    what = "a method that does not look at the values"
    require(not compressor.reads_values, "compressor", compressor, what)
    cache = MarkedCache(model, compressor, buffer, positions)
    seen = np.zeros((total, total))
    for step in range(total):
        model(input_ids=ids[:, step : step + 1], past_key_values=cache, use_cache=True)
        counts = sum(np.bincount(x.flatten().cpu(), minlength=total) for x in cache.tokens)
        seen[step] = counts / sum(len(x) for x in cache.tokens)
    tokens = [x.cpu().numpy() for x in cache.tokens]
    distances = [cache.distances(i).cpu().numpy() for i in range(len(tokens))]
    return Followed(seen, tokens, distances)


@torch.no_grad()
def run_generate(
    model, ids: torch.Tensor, compressor: Compressor | None, new_tokens: int, buffer: int = 0
) -> tuple[torch.Tensor, list[int], int]:
    """transformers' own greedy `generate()` on `ids` (T,): new tokens, cache lengths, evictions.

    The lengths are those after each forward pass, of the layer that holds most.
    """
    ids = check_ids(model, ids, 1)
    cache, lengths = make_cache(model, compressor, buffer), []
    note = model.register_forward_hook(lambda *_: lengths.append(max(held_lengths(cache))))
    mask = torch.ones_like(ids)
    options = {"do_sample": False, "eos_token_id": [], "pad_token_id": 0}  # nothing ends it early
    try:
        out = model.generate(
            ids, attention_mask=mask, past_key_values=cache, max_new_tokens=new_tokens, **options
        )
    finally:
        note.remove()
    return out[0, ids.shape[1] :].cpu(), lengths, getattr(cache, "evictions", 0)


def compare_loops(
    model, prompts: torch.Tensor, settings: Mapping[str, Way], new_tokens: int
) -> pd.DataFrame:
    """`lib.generate` and `model.generate()` on `prompts` (n, T), each alone: a row per setting.

    Lengths are compared after every forward pass, evictions summed over the prompts;
    `as_<first>_%` is the share of tokens that are those of the first setting.
    """
    rows, yardstick = [], []
    for name, (compressor, buffer) in settings.items():
        manual = [generate(model, x, compressor, new_tokens, buffer=buffer) for x in prompts]
        own = [run_generate(model, x, compressor, new_tokens, buffer) for x in prompts]
        tokens, lengths, evictions = zip(*own, strict=True)
        yardstick = yardstick or tokens
        same = [one.cache_lengths == other for one, other in zip(manual, lengths, strict=True)]
        row = {"method": name, "n_prompts": len(prompts), "new_tokens": len(prompts) * new_tokens}
        row["same_tokens_%"] = _agreement([one.tokens for one in manual], tokens)
        row |= {"same_lengths": all(same), "longest": max(map(max, lengths))}
        row["evictions_manual"] = sum(one.evictions for one in manual)
        row["evictions_generate"] = sum(evictions)
        row[f"as_{next(iter(settings))}_%"] = _agreement(tokens, yardstick)
        rows.append(row)
    return pd.DataFrame(rows)


def _agreement(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    """Percent of tokens that are the same."""
    return 100 * float((torch.cat(tuple(some)) == torch.cat(tuple(others))).double().mean())
