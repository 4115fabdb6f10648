"""Attention: sinks + window, exactly; what tokens receive; attention maps and the sink metric."""

import math
from collections.abc import Iterator

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from lib.compressors.base import as_float

from .step import Step

NAME = "kv_lab"


def kv_lab_attention(
    module, query, key, value, attention_mask, dropout=0.0, scaling=None, kv_step=None, **kwargs
):
    """SDPA under the mask of a `Step`: query (B, H, n, D), key and value (B, Hkv, S, D).

    A query may look up the sinks from another position than the window (`sink_delta`). Its logits
    for them are computed apart and ride along as more dims of the head, in which sink j's key is
    the unit vector j and window keys are zero: one fused call then gives each query both
    distances. A step longer than a block goes block by block, so that time and memory grow with
    its length only. Layers that score their tokens by attention are told what these receive.
    """
    extra = [name for name in ("softcap", "s_aux") if kwargs.get(name) is not None]
    if extra:
        raise ValueError(f"attention {NAME!r} knows nothing of {extra}")
    if kv_step is None:
        raise ValueError(f"attention {NAME!r} is only for steps with a CompressedCache")
    layer = None if kv_step.layers is None else kv_step.layers[module.layer_idx]
    if layer is not None and layer.queries:
        layer.receive(received_attention(query, key, kv_step, layer.queries, scaling))
    rope = None if kv_step.ropes is None else kv_step.ropes[module.layer_idx]
    D, groups = value.shape[-1], query.shape[1] // key.shape[1]
    if groups > 1:  # grouped queries
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    if kv_step.sink_delta is not None and rope is not None:
        query, key = _append_sink_logits(query, key, kv_step, rope)
        value = pad(value, (0, key.shape[-1] - D))
    if kv_step.slots is None and kv_step.n == key.shape[2] > 1:  # a whole prompt, seen densely
        output = scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scaling
        )
        return output.transpose(1, 2), None
    front, outputs = kv_step.front, []
    sinks = key[:, :, :front].clone(), value[:, :, :front].clone()
    for queries, keys, mask in kv_step.blocks(key.shape[2], query.device, query.dtype):
        # the sinks go where no later block looks, just in front of this block's window
        place = slice(keys.start, keys.start + front)
        key[:, :, place], value[:, :, place] = sinks
        q, k, v = query[:, :, queries], key[:, :, keys], value[:, :, keys]
        outputs.append(scaled_dot_product_attention(q, k, v, mask, dropout, scale=scaling))
    return torch.cat(outputs, dim=2)[..., :D].transpose(1, 2), None  # (B, n, H, D)


def _append_sink_logits(query, key, step, rope):
    """Query and key (B, H, n or S, D + E); E is the number of sinks, twice that in 16 bits."""
    sinks = key[:, :, : step.front]
    exact = torch.promote_types(key.dtype, torch.float32)
    turned = rope.turn(query.to(exact), step.sink_delta[:, None])  # (B, H, n, D)
    logits = turned @ sinks.to(exact).mT  # (B, H, n, front)
    parts = [logits.to(query.dtype)]
    if query.dtype != exact:  # 16 bits round them too coarsely: the rest rides along as well
        parts.append((logits - parts[0].to(exact)).to(query.dtype))
    key = pad(key, (0, len(parts) * step.front))
    units = torch.eye(step.front, dtype=key.dtype, device=key.device).repeat(1, len(parts))
    key[:, :, : step.front] = pad(units, (query.shape[-1], 0))
    return torch.cat((query, *parts), dim=-1), key


def received_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    step: Step,
    queries: float = math.inf,
    scaling: float | None = None,
) -> torch.Tensor:
    """Attention that each key gets from each of the last `queries` queries, (B, Hkv, S, q).

    `math.inf` is the sum over all of them, q = 1. Query heads that share a key are averaged. The
    weights exist for one block of queries at a time: memory grows with the length only.
    """
    S, blocks = key.shape[2], _weights(query, key, step, queries, scaling)
    if queries != math.inf:
        return torch.cat([pad(w, (0, S - w.shape[3])) for w in blocks], dim=2).mT
    total = as_float(key.new_zeros(key.shape[0], key.shape[1], S, 1))
    for weights in blocks:
        total[:, :, : weights.shape[3], 0] += weights.sum(dim=2)
    return total


def _weights(query, key, step, queries, scaling) -> Iterator[torch.Tensor]:
    """Attention weights of the last `queries` of (B, H, n, D), block by block.

    Each (B, Hkv, block, S) in float32 or float64, without the keys behind the block.
    """
    n, D, heads = query.shape[2], query.shape[3], key.shape[1]
    key, scale = as_float(key), D**-0.5 if scaling is None else scaling
    start = 0 if queries == math.inf else max(0, n - queries)
    for block, keys, mask in step.blocks(key.shape[2], query.device, query.dtype, start):
        first = max(block.start, start)
        q = scale * as_float(query[:, :, first : block.stop])
        q = q.unflatten(1, (heads, -1))  # (B, Hkv, group, block, D)
        logits = (q.flatten(2, 3) @ key[:, :, keys].mT).unflatten(2, q.shape[2:4])
        if mask is not None:
            logits += mask[:, :, None, first - block.start :]
        yield logits.softmax(dim=-1).mean(dim=2)


AttentionInterface.register(NAME, kv_lab_attention)
# the mask is the step's: layers may hold different numbers of tokens
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
