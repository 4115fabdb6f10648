"""Key norms against attention: does a key's norm say whether later tokens will look at it?"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from transformers import DynamicCache

from lib.cache.checks import check_ids
from lib.cache.rope import find_rope
from lib.compressors.base import as_float, key_norms
from lib.load.texts import texts_of
from lib.measure.attention_maps import with_attention
from lib.progress import progress
from lib.require import require_int


@dataclass
class CachedKeys:
    """The keys of `C` cached tokens, and how the tokens after them look at them.

    N texts, L layers, H key-value heads. Rotation turns a key and keeps its length, so norms are
    the same before and after it; `turning` is the largest relative difference in floating point.
    """

    norms: np.ndarray  # (N, L, H, C)
    rotated: np.ndarray  # (N, L, H, C), norms of the dims of a head that are rotated
    received: np.ndarray  # (N, L, H, C), shares of the attention paid to the cache; they sum to 1
    turning: float

    @property
    def rest(self) -> np.ndarray:
        """Norms of the dims that are not rotated (GPT-NeoX has some); zero where all are."""
        return np.sqrt((self.norms**2 - self.rotated**2).clip(0))


def two_sets(
    tokens: torch.Tensor, ours: tuple[int, int], others: tuple[int, int], bos_token_id: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of texts, (number, length) each, both spread over all of `tokens` and begun alike.

    No token is in both: `lib.load.texts.texts_of` stretches are cut in two, and of the set that
    needs fewer texts some are left out, evenly.
    """
    (ours_number, ours_length), (others_number, others_length) = ours, others
    number = max(ours_number, others_number)
    both = texts_of(tokens, number, ours_length + others_length, bos_token_id)
    first, second = both.split([ours_length, others_length], dim=1)
    if tokens[0] == bos_token_id:
        second = second.clone()
        second[:, 0] = bos_token_id
    first, second = (
        texts[torch.linspace(0, number - 1, count).round().long()]
        for texts, count in ((first, ours_number), (second, others_number))
    )
    return first, second


@torch.no_grad()
def cached_keys(model, texts: torch.Tensor, cached: int) -> CachedKeys:
    """The first `cached` tokens of `texts` (N, T), seen by the T - cached tokens after them.

    Attention received is the mean over these queries, and over the query heads that share a
    key-value head, since a method keeps tokens per key-value head.
    """
    require_int("cached", cached, 1)
    ids = check_ids(model, texts, cached + 1)
    rope, parts, turning = find_rope(model), [], 0.0
    eager = with_attention(model, "eager")
    for row in progress(ids, desc="attention"):
        past = DynamicCache(config=model.config)
        output = eager(input_ids=row[None], past_key_values=past, output_attentions=True)
        keys = torch.stack([as_float(layer.keys[0, :, :cached]) for layer in past.layers])
        seen = torch.stack([as_float(a[0, :, cached:, :cached]) for a in output.attentions])
        seen = seen.unflatten(1, (keys.shape[1], -1)).mean((2, 3))  # (L, H, C)
        back = rope.turn(keys, -torch.arange(cached, device=keys.device))
        norms = key_norms(keys)
        turning = max(turning, float((key_norms(back) / norms - 1).abs().max()))
        rotated = key_norms(keys[..., : rope.rotary_dim])
        parts.append([norms, rotated, seen / seen.sum(-1, keepdim=True)])
    arrays = (torch.stack(part).double().cpu().numpy() for part in zip(*parts, strict=True))
    return CachedKeys(*arrays, turning)


def attention_lost(received: np.ndarray, badness: np.ndarray) -> np.ndarray:
    """Share of attention lost when 1, 2, ... C keys are dropped, the highest `badness` first.

    Arrays are (..., C). Of equal keys the newer one goes first, as in the methods.
    """
    newest_first = np.argsort(-badness[..., ::-1], axis=-1, kind="stable")
    order = badness.shape[-1] - 1 - newest_first
    return np.take_along_axis(received, order, axis=-1).cumsum(-1)


def loss_curves(keys: CachedKeys) -> dict[str, np.ndarray]:
    """`attention_lost` (N, L, H, C) by order: ideal, low norms kept, high norms kept, at random.

    `ideal` drops the key that receives least first; `random` is what is expected of it. The area
    between `keep_low` and `ideal`, per dropped key, is the ALR of Devoto et al. 2024.
    """
    C = keys.norms.shape[-1]
    return {
        "ideal": attention_lost(keys.received, -keys.received),
        "keep_low": attention_lost(keys.received, keys.norms),
        "keep_high": attention_lost(keys.received, -keys.norms),
        "random": np.broadcast_to(np.arange(1, C + 1) / C, keys.received.shape),
    }


def without_first(keys: CachedKeys) -> CachedKeys:
    """The cache without its first token, the sink; shares of attention sum to 1 again."""
    received = keys.received[..., 1:] / keys.received[..., 1:].sum(-1, keepdims=True)
    return CachedKeys(keys.norms[..., 1:], keys.rotated[..., 1:], received, keys.turning)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's correlation over the last axis."""
    x, y = (rankdata(a, axis=-1) for a in (x, y))
    x, y = (a - a.mean(-1, keepdims=True) for a in (x, y))
    return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))


def by_norm(keys: CachedKeys, parts: int = 10) -> np.ndarray:
    """Attention received by equal parts of the keys, lowest norms first: (N, L, H, parts).

    Relative to what an equal share for each key would give: 1 is the mean of all.
    """
    order = np.argsort(keys.norms, axis=-1, kind="stable")
    received = np.take_along_axis(keys.received, order, axis=-1)
    split = np.array_split(received, parts, axis=-1)
    return np.stack([part.mean(-1) for part in split], axis=-1) * received.shape[-1]


def first_over_median(norms: np.ndarray) -> np.ndarray:
    """The first token's norm over the median of all: (...,) for norms (..., C)."""
    return norms[..., 0] / np.median(norms, axis=-1)
