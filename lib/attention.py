"""Attention: the exact sinks + window attention, attention maps and the sink metric."""

from contextlib import contextmanager

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .compressors.base import require, require_int

NAME = "kv_lab"


def kv_lab_attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, kv_step=None, **kwargs
):
    """SDPA under the mask of a `lib.steps.Step`: query (B, H, n, D), key and value (B, Hkv, S, D).

    Where sinks are looked up from another position than the window (`sink_delta`), the rotary
    dims are appended once more to the head: window keys are zero there, sink keys zero in the
    ordinary ones. One fused call then gives each query both distances. A step much longer than
    the window goes block by block, so that time and memory grow with its length only.
    """
    if kv_step is None:
        raise ValueError(f"attention {NAME!r} is only for steps with a CompressedCache")
    D, length = value.shape[-1], key.shape[2]
    if kv_step.sink_delta is not None:
        query, key = _append_sink_dims(query, key, kv_step)
        value = pad(value, (0, key.shape[-1] - D))
    front, outputs = kv_step.front, []
    sinks = key[:, :, :front].clone(), value[:, :, :front].clone()
    for queries, keys in kv_step.blocks(length):
        # the sinks go where no later block looks, just in front of this block's window
        place = slice(keys.start, keys.start + front)
        key[:, :, place], value[:, :, place] = sinks
        mask = kv_step.mask(queries, keys, length, query.device, query.dtype)
        q, k, v = query[:, :, queries], key[:, :, keys], value[:, :, keys]
        output = sdpa_attention_forward(
            module, q, k, v, mask, dropout=dropout, scaling=scaling, is_causal=False
        )[0]
        outputs.append(output[..., :D])  # (B, n, H, D)
    return torch.cat(outputs, dim=1), None


def _append_sink_dims(query, key, step):
    rope, front = step.rope, step.front
    R = rope.rotary_dim
    cos, sin = rope.cos_sin(step.sink_delta[:, None])  # (1 or B, 1, n, R)
    for_sinks = rope.rotate(query[..., :R], cos, sin)
    query = torch.cat((query, for_sinks), dim=-1)  # (B, H, n, D + R)
    sinks, window = key[:, :, :front], key[:, :, front:]
    sinks = torch.cat((pad(sinks[..., R:], (R, 0)), sinks[..., :R]), dim=-1)
    return query, torch.cat((sinks, pad(window, (0, R))), dim=2)


AttentionInterface.register(NAME, kv_lab_attention)
# the mask is the step's: layers may hold different numbers of tokens
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


@contextmanager
def attention_implementation(model, name: str):
    """Run a block with another attention implementation, then restore the model's own."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def attention_maps(model, input_ids: torch.Tensor) -> torch.Tensor:
    """Attention of every layer and head, (L, B, H, T, T) on CPU, for ids (B, T) or (T,)."""
    if input_ids.ndim == 1:
        input_ids = input_ids[None]
    with attention_implementation(model, "eager"):
        ids = input_ids.to(model.device)
        output = model(input_ids=ids, use_cache=False, output_attentions=True)
    return torch.stack([a.float().cpu() for a in output.attentions])


def sink_strength(model, input_ids: torch.Tensor, num_keys: int = 4) -> torch.Tensor:
    """Mean attention each of the first keys receives from itself and all later queries.

    alpha[l, h, k] = mean over i >= k of A[i, k], (L, H, num_keys), averaged over the batch;
    a head has a sink at k when alpha > 0.3 (Gu et al. 2024, arXiv:2410.10781).
    """
    length = input_ids.shape[-1]
    require_int("num_keys", num_keys, 1)
    require(num_keys <= length, "num_keys", num_keys, f"at most the text's length, {length}")
    return key_strength(attention_maps(model, input_ids), num_keys)


def key_strength(maps: torch.Tensor, num_keys: int) -> torch.Tensor:
    """`sink_strength` of attention maps (L, B, H, T, T)."""
    columns = [maps[..., k:, k].mean(-1).mean(1) for k in range(num_keys)]  # each (L, H)
    return torch.stack(columns, -1)
