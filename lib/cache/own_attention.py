"""Attention of models that don't take theirs from transformers' AttentionInterface.

GPT-J, CodeGen and GPT-NeoX-Japanese attend in a method of their own, Falcon by PyTorch's fused
function. All of them hand it the model's mask: one that carries a `kv_step` is answered by our
attention. The classes are wrapped once for the process; other masks go where they always went.
"""

import functools

from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from lib.require import require

from .hooks import attend, by_mask_only

METHODS = ("GPTJAttention", "CodeGenAttention", "GPTNeoXJapaneseAttention")
FUNCTIONS = ("FalconAttention",)
_wrapped: set[type] = set()


def check_attention(model: PreTrainedModel) -> None:
    """Refuse a model whose attention can't be exchanged for a step, or let masks bring it one."""
    kinds = {type(module) for module in model.modules()}
    kinds = {kind for kind in kinds if kind.__module__.startswith("transformers.")}
    ours = {kind for kind in kinds if kind.__name__ in METHODS + FUNCTIONS}
    what = "one that takes its attention from transformers' AttentionInterface"
    require(bool(ours) or not by_mask_only(model), "model", type(model).__name__, what)
    if any(kind.__name__ in FUNCTIONS for kind in ours):
        name = model.config._attn_implementation
        require(name == "sdpa", "attn_implementation", name, "'sdpa' for this model")
    for kind in ours - _wrapped:
        by_method = kind.__name__ in METHODS
        name, wrap = ("_attn", _method) if by_method else ("forward", _forward)
        setattr(kind, name, wrap(getattr(kind, name)))
        _wrapped.add(kind)


def _carries(mask) -> bool:
    return getattr(mask, "kv_step", None) is not None


def _method(own):
    """`own`, a method `_attn`, or our attention where the mask carries a step."""

    @functools.wraps(own)
    def attn(self, query, key, value, attention_mask=None):
        if not _carries(attention_mask):
            return own(self, query, key, value, attention_mask)
        dropout = getattr(self, "attn_dropout", None) or self.attention_dropout
        drop = dropout.p if self.training else 0.0
        query = query.to(key.dtype)  # CodeGen's are in float32 always
        return attend(None, self, query, key, value, attention_mask, drop)[0].transpose(1, 2), None

    return attn


def _forward(own):
    """`own`, a layer's forward, in which our attention stands in for PyTorch's."""

    @functools.wraps(own)
    def forward(self, *args, attention_mask=None, **kwargs):
        kwargs["attention_mask"] = attention_mask
        if not _carries(attention_mask):
            return own(self, *args, **kwargs)
        with _Exchanged(self):
            return own(self, *args, **kwargs)

    return forward


class _Exchanged(TorchFunctionMode):
    """In this thread and block `scaled_dot_product_attention` is ours."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        return attend(None, self.layer, *args, kwargs["attn_mask"])[0].transpose(1, 2)
