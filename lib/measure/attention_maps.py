"""Attention maps, how strong a sink each head has in them, and how many heads have one."""

import copy

import numpy as np
import torch

from lib.require import require, require_int


def with_attention(model, name: str):
    """A twin of `model` that shares its weights and runs the attention implementation `name`.

    Nothing is switched in `model`, which other threads may be running.
    """
    shared = {id(x): x for x in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    twin.set_attn_implementation(name)
    return twin


@torch.no_grad()
def attention_maps(model, input_ids: torch.Tensor) -> torch.Tensor:
    """Attention of every layer and head, (L, B, H, T, T) on CPU, for ids (B, T) or (T,)."""
    if input_ids.ndim == 1:
        input_ids = input_ids[None]
    eager, ids = with_attention(model, "eager"), input_ids.to(model.device)
    output = eager(input_ids=ids, use_cache=False, output_attentions=True)
    return torch.stack([a.float().cpu() for a in output.attentions])


def sink_strength(model, input_ids: torch.Tensor, num_keys: int = 4) -> torch.Tensor:
    """Mean attention each of the first keys receives from itself and all later queries.

    alpha[l, h, k] = mean over i >= k of A[i, k]: (L, H, num_keys) for ids (T,), and for ids (B, T)
    that of each text, (B, L, H, num_keys). A head has a sink at k in a text when alpha > 0.3 (Gu et
    al. 2024, arXiv:2410.10781); `heads_with_sink` counts them.
    """
    length = input_ids.shape[-1]
    require_int("num_keys", num_keys, 1)
    require(num_keys <= length, "num_keys", num_keys, f"at most the text's length, {length}")
    if input_ids.ndim == 2:
        return torch.stack([sink_strength(model, ids, num_keys) for ids in input_ids])
    maps = attention_maps(model, input_ids)[:, 0]  # (L, H, T, T)
    return torch.stack([maps[..., k:, k].mean(-1) for k in range(num_keys)], -1)


def heads_with_sink(strength: torch.Tensor | np.ndarray, threshold: float = 0.3) -> np.ndarray:
    """Share of heads with a sink at the first token in each text, (B,), of `sink_strength`.

    `strength` (B, L, H, num_keys). The mean is the share of all pairs of a text and a head, as Gu
    et al. 2024 count (arXiv:2410.10781); heads whose average over texts is above the threshold are
    other ones.
    """
    return (np.asarray(strength)[..., 0] > threshold).mean((1, 2))
