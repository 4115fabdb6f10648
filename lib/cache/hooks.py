"""Hooks by which a model announces its steps to the cache that it is given."""

from weakref import WeakSet

import torch
from transformers import Cache

from .attention import NAME
from .checks import check_weights


class Announced(Cache):
    """A cache that must know of a step before the model takes it: `step` gives its arguments."""

    def step(self, n: int, device="cpu", attention_mask=None, attention: str = "sdpa") -> dict:
        """Keyword arguments of the model's forward for the next `n` tokens."""
        raise NotImplementedError


# the attention implementation to go back to after the step under way
_before: dict[torch.nn.Module, str] = {}
_switched: WeakSet[torch.nn.Module] = WeakSet()  # models that could be switched


def attach(model: torch.nn.Module) -> list:
    """Let `model` announce its steps to every `Announced` cache; handles of the hooks it lacked."""
    if _announce in model._forward_pre_hooks.values():
        return []
    return [
        model.register_forward_pre_hook(_announce, with_kwargs=True),
        model.register_forward_hook(_restore, always_call=True),
    ]


def _announce(model, args, kwargs):
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, Announced):
        return None
    ids = args[0] if args else kwargs.get("input_ids")
    ids = kwargs["inputs_embeds"] if ids is None else ids
    own = model.config._attn_implementation
    step = cache.step(ids.shape[1], ids.device, kwargs.get("attention_mask"), own)
    padded = getattr(cache, "padded", False)
    check_weights(model, kwargs.get("output_attentions"), "kv_step" in step, padded)
    if "kv_step" in step:
        _before[model] = own
        _switch(model, NAME)
    return args, kwargs | step


def _restore(model, args, output):
    if model in _before:
        _switch(model, _before.pop(model))


def _switch(model, name: str) -> None:
    """Set the attention implementation; the checks, which look at all modules, are made once."""
    if model in _switched:
        model.config._attn_implementation = name
    else:
        model.set_attn_implementation(name)
        _switched.add(model)
