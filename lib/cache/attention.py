"""Attention: sinks + window, exactly, and what each token receives."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from lib.compressors.base import as_float

from .step import Step

NAME = "kv_lab"


@dataclass(frozen=True)
class Own:
    """What a layer's attention has of its own: its scale, a soft cap, learned sinks (H,), a window.

    The window counts tokens held, the query's own among them.
    """

    scaling: float | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    window: int | None = None

    def scale(self, query: torch.Tensor) -> float:
        """What logits are multiplied with."""
        return query.shape[-1] ** -0.5 if self.scaling is None else self.scaling

    def is_plain(self, n: int) -> bool:
        """Whether a causal softmax is all there is to a prompt of `n` tokens."""
        return self.softcap is None and self.sinks is None and (self.window or n) >= n

    def softmax(self, logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Weights for scaled logits (B, Hkv, group, n, S) and a mask of the last keys, (., n, m).

        The mask is added to the logits in place.
        """
        if self.softcap is not None:
            logits = self.softcap * (logits / self.softcap).tanh()
        if mask is not None:
            logits[..., -mask.shape[-1] :] += mask
        if self.sinks is None:
            return logits.softmax(dim=-1)
        sinks = self.sinks.to(logits).view(*logits.shape[1:3], 1, 1)
        with_sinks = torch.cat((logits, sinks.expand(*logits.shape[:-1], 1)), dim=-1)
        return with_sinks.softmax(dim=-1)[..., :-1]


def _attend(query, key, value, mask, dropout, own: Own) -> torch.Tensor:
    """Attention of one block: query (B, H, n, D), key and value (B, Hkv, S, D)."""
    heads, S = key.shape[1:3]
    if own.softcap is None and own.sinks is None:
        if mask is not None:
            mask = pad(mask, (S - mask.shape[-1], 0))
        grouped, scale = heads < query.shape[1], own.scaling
        return scaled_dot_product_attention(
            query, key, value, mask, dropout, scale=scale, enable_gqa=grouped
        )
    logits = _by_group(own.scale(query) * as_float(query), heads) @ as_float(key)[:, :, None].mT
    weights = own.softmax(logits, None if mask is None else mask[:, :, None])
    return (F.dropout(weights.to(value.dtype), dropout) @ value[:, :, None]).flatten(1, 2)


def _by_group(query: torch.Tensor, heads: int) -> torch.Tensor:
    """Query (B, H, n, D) as (B, Hkv, group, n, D): those that share one of the `heads` keys."""
    return query.unflatten(1, (heads, -1))


def kv_lab_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    dropout=0.0,
    scaling=None,
    kv_step=None,
    sliding_window=None,
    softcap=None,
    s_aux=None,
    **kwargs,
):
    """SDPA under the mask of a `Step`: query (B, H, n, D), key and value (B, Hkv, S, D).

    A query may look up the sinks from another position than the window (`sink_delta`). Its logits
    for them are computed apart and ride along as more dims of the head, in which sink j's key is
    the unit vector j and window keys are zero: one fused call then gives each query both
    distances. A step longer than a block goes block by block, so that time and memory grow with
    its length only. Layers that score their tokens by attention are told what these receive.
    """
    if kv_step is None:
        raise ValueError(f"attention {NAME!r} is only for steps with a CompressedCache")
    own = Own(scaling, softcap, s_aux, sliding_window)
    layer = None if kv_step.layers is None else kv_step.layers[module.layer_idx]
    if layer is not None and layer.queries:
        layer.receive(received_attention(query, key, kv_step, layer.queries, own))
    rope = None if kv_step.ropes is None else kv_step.ropes[module.layer_idx]
    n, D, groups = query.shape[2], value.shape[-1], query.shape[1] // key.shape[1]
    if n < kv_step.n:  # a layer may be asked for the last tokens only (Gemma 4)
        query = pad(query, (0, 0, kv_step.n - n, 0))
    if groups > 1 and query.device.type != "cpu":  # kernels that take a mask want whole heads there
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    if kv_step.sink_delta is not None and rope is not None:
        own = replace(own, scaling=own.scale(query))
        query, key = _append_sink_logits(query, key, kv_step, rope)
        value = pad(value, (0, key.shape[-1] - D))
    whole = kv_step.slots is None and kv_step.n == key.shape[2] > 1
    if whole and own.is_plain(kv_step.n):  # a prompt that is seen densely
        grouped = key.shape[1] < query.shape[1]
        output = scaled_dot_product_attention(
            query, key, value, None, dropout, is_causal=True, scale=scaling, enable_gqa=grouped
        )
    else:
        output = _by_blocks(query, key, value, kv_step, dropout, own)
    # (B, n, H, D), of which models make a view
    return output[:, :, -n:, :D].transpose(1, 2).contiguous(), None


def _by_blocks(query, key, value, step: Step, dropout, own: Own) -> torch.Tensor:
    """Attention of a step, block by block: (B, H, n, D) as `value`."""
    if step.shares:  # they will be attended to again
        key, value = key.clone(), value.clone()
    front, outputs = step.front, []
    sinks = key[:, :, :front].clone(), value[:, :, :front].clone()
    for queries, keys, mask in step.blocks(key.shape[2], query.device, query.dtype, own.window):
        # the sinks go where no later block looks, just in front of this block's window
        place = slice(keys.start, keys.start + front)
        key[:, :, place], value[:, :, place] = sinks
        q, k, v = query[:, :, queries], key[:, :, keys], value[:, :, keys]
        outputs.append(_attend(q, k, v, mask, dropout, own))
    return torch.cat(outputs, dim=2)


def _append_sink_logits(query, key, step, rope):
    """Query and key (B, H or Hkv, n or S, D + E); E is the number of sinks, twice in 16 bits.

    The logits are not scaled yet: in float16 they may not fit and are divided by `unit`.
    """
    sinks = key[:, :, : step.front]
    exact = torch.promote_types(key.dtype, torch.float32)
    turned = rope.turn(query.to(exact), step.sink_delta[:, None])  # (B, H, n, D)
    unit = 2.0**10 if key.dtype == torch.float16 else 1.0
    highest = torch.finfo(query.dtype).max
    with torch.autocast(query.device.type, enabled=False):  # which would round them to 16 bits
        logits = _by_group(turned, key.shape[1]) @ sinks.to(exact)[:, :, None].mT / unit
    logits = logits.flatten(1, 2).clamp(-highest, highest)  # (B, H, n, front)
    parts = [logits.to(query.dtype)]
    if query.dtype != exact:  # 16 bits round them too coarsely: the rest rides along as well
        parts.append((logits - parts[0].to(exact)).to(query.dtype))
    key = pad(key, (0, len(parts) * step.front))
    units = torch.eye(step.front, dtype=key.dtype, device=key.device).repeat(1, len(parts))
    key[:, :, : step.front] = pad(unit * units, (query.shape[-1], 0))
    return torch.cat((query, *parts), dim=-1), key


def received_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    step: Step,
    queries: float = math.inf,
    own: Own = Own(),
) -> torch.Tensor:
    """Attention that each key gets from each of the last `queries` queries, (B, Hkv, S, q).

    `math.inf` is the sum over all of them, q = 1. Query heads that share a key are averaged. The
    weights exist for one block of queries at a time: memory grows with the length only.
    """
    S, blocks = key.shape[2], _weights(query, key, step, queries, own)
    if queries != math.inf:
        spread = [pad(w, (keys.start, S - keys.stop)) for keys, w in blocks]
        return torch.cat(spread, dim=2).mT
    total = as_float(key.new_zeros(key.shape[0], key.shape[1], S, 1))
    for keys, weights in blocks:
        total[:, :, keys, 0] += weights.sum(dim=2)
    return total


def _weights(query, key, step, queries, own: Own) -> Iterator[tuple[slice, torch.Tensor]]:
    """Attention weights of the last `queries` of (B, H, n, D), block by block, and of which keys.

    Each (B, Hkv, block, keys) in float32 or float64; other keys get nothing.
    """
    n, heads, S = query.shape[2], key.shape[1], key.shape[2]
    key, scale = as_float(key), own.scale(query)
    start = 0 if queries == math.inf else max(0, n - queries)
    for block, keys, mask in step.blocks(S, query.device, query.dtype, own.window, start):
        first = max(block.start, start)
        q = _by_group(scale * as_float(query[:, :, first : block.stop]), heads)
        logits = (q.flatten(2, 3) @ key[:, :, keys].mT).unflatten(2, q.shape[2:4])
        mask = None if mask is None else mask[:, :, None, first - block.start :]
        yield keys, own.softmax(logits, mask).mean(dim=2)


def last_weights(
    query: torch.Tensor, key: torch.Tensor, step: Step | None, layer_idx: int, own: Own = Own()
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the last query of a step attends to: which of the keys (n,), and how much (H, n).

    Query (B, H, n, D) and key (B, Hkv, S, D) as attention is given them, of one sequence; `step` is
    None where the model's own causal attention is run.
    """
    S, groups = key.shape[2], query.shape[1] // key.shape[1]
    query, key = query[:, :, -1:], key.repeat_interleave(groups, dim=1)
    seen = torch.arange(max(0, S - (own.window or S)), S, device=key.device)
    mask = None
    if step is not None:
        rope = None if step.ropes is None else step.ropes[layer_idx]
        if step.sink_delta is not None and rope is not None:
            own = replace(own, scaling=own.scale(query))
            last = replace(step, sink_delta=step.sink_delta[:, -1:])
            query, key = _append_sink_logits(query, key, last, rope)
        _, keys, mask = list(step.blocks(S, query.device, query.dtype, own.window))[-1]
        recent = torch.arange(keys.start + step.front, keys.stop, device=key.device)
        seen = torch.cat((torch.arange(step.front, device=key.device), recent))
        mask = None if mask is None else mask[:, :, None, -1:]
    logits = own.scale(query) * as_float(query) @ as_float(key[:, :, seen]).mT  # (B, H, 1, n)
    weights = own.softmax(logits[:, :, None], mask)[0, :, 0, 0]
    visible = weights.new_ones(len(seen), dtype=torch.bool)
    if mask is not None:  # it may be of the last keys only
        visible[-mask.shape[-1] :] = mask[0, 0, 0, 0] == 0
    return seen[visible], weights[:, visible]


AttentionInterface.register(NAME, kv_lab_attention)
