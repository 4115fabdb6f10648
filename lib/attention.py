"""Attention: the exact sinks + window attention, attention maps and the sink metric."""

from contextlib import contextmanager

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .compressors.base import require, require_int
from .rope import rotate_half

NAME = "kv_lab"


def kv_lab_attention(
    module, query, key, value, attention_mask, dropout=0.0, scaling=None, kv_step=None, **kwargs
):
    """SDPA under the mask of a `lib.cache.Step`: query (B, H, n, D), key and value (B, Hkv, S, D).

    Where sinks are looked up from another position than the window (`sink_delta`), the rotary
    dims are appended once more to the head: window keys are zero there, sink keys zero in the
    ordinary ones. One fused call then gives each query both distances.
    """
    if kv_step is None:
        raise ValueError("kv_lab attention needs the keyword arguments of CompressedCache.step(n)")
    mask = kv_step.mask(key.shape[2], query.device, query.dtype)
    D = value.shape[-1]
    if kv_step.sink_delta is not None:
        query, key = _append_sink_dims(query, key, kv_step)
        value = pad(value, (0, key.shape[-1] - D))
    output, weights = sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=False
    )
    return output[..., :D], weights  # (B, n, H, D)


def _append_sink_dims(query, key, step):
    rope, start = step.rope, step.window.start_size
    R = rope.rotary_dim
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    cos, sin = rope.cos_sin(step.sink_delta, dtype)  # (n, R)
    rotated = query[..., :R].to(dtype)
    for_sinks = (rotated * cos + rotate_half(rotated) * sin).to(query.dtype)
    query = torch.cat((query, for_sinks), dim=-1)  # (B, H, n, D + R)
    sinks, window = key[:, :, :start], key[:, :, start:]
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
