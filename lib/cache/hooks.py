"""How a model announces its steps to the cache that it is given, and what attends in them.

The hook sits on the model's body, which every call goes through: those of a wrapper (PEFT) or of a
compiled model, too. A step that needs our attention carries a `kv_step` among its keyword
arguments, and on its mask, down to the attention function (models pass on one or both): nothing is
switched that another thread could see, or that an interrupt could leave behind. A `kv_watch` goes
the same way: it is called with what the attention of each layer is given. For that
`AttentionInterface.get_interface` is wrapped, once for the process; what carries nothing of ours
goes to the function that the model names.
"""

import copy
import functools
import inspect
import math
from collections.abc import Callable
from weakref import WeakKeyDictionary, WeakSet

import torch
from transformers import AttentionInterface, Cache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lib.require import require

from .attention import NAME
from .checks import check_checkpointing, check_text


class Announced(Cache):
    """A cache that must know of a step before the model takes it: `step` gives its arguments."""

    announced: torch.Tensor | None = None  # position ids of the step that was announced last
    static = False  # whether a step of one token has a fixed shape, and is counted beforehand
    under_way = False  # whether a step is being read: one that breaks off leaves the cache midway

    def step(
        self,
        n: int,
        device="cpu",
        attention_mask: torch.Tensor | None = None,
        attention: str = "sdpa",
        position_ids: torch.Tensor | None = None,
        weights: bool = False,
    ) -> dict:
        """Keyword arguments of the model's forward for the next `n` tokens."""
        raise NotImplementedError

    def check_rows(self, rows: int) -> None:
        """Refuse tokens of another number of rows than the cache holds, where it matters."""

    def __deepcopy__(self, memo):
        """A copy whose steps the model announces, too."""
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        for caches in _caches.values():
            if self in caches:
                caches.add(twin)
        return twin


# the caches of a body, which keeps its hook while one of them lives
_caches: WeakKeyDictionary[torch.nn.Module, WeakSet[Announced]] = WeakKeyDictionary()


def transformers_model(model: torch.nn.Module) -> PreTrainedModel:
    """`model`, or the transformers model that it wraps (PEFT, torch.compile)."""
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    found = next((m for m in modules if isinstance(m, PreTrainedModel)), None)
    what = "a transformers model, or a module around one"
    require(found is not None, "model", type(model).__name__, what)
    return found


def body_of(model: torch.nn.Module) -> PreTrainedModel:
    """What every call of `model` goes through, beneath wrappers and heads."""
    body = transformers_model(model).base_model
    return getattr(body, "decoder", body)  # which the head of an OPT or Whisper calls itself


def attach(model: torch.nn.Module, cache: Announced) -> None:
    """Let `model` announce its steps to every `Announced` cache, as long as `cache` lives."""
    body = body_of(model)
    if _announce not in body._forward_pre_hooks.values():
        body.register_forward_pre_hook(_announce, with_kwargs=True)
        body.register_forward_hook(_has_read, with_kwargs=True)
    _caches.setdefault(body, WeakSet()).add(cache)


def detach(model: torch.nn.Module) -> None:
    """Remove the model's hook unless a cache needs it."""
    body = body_of(model)
    if not _caches.get(body):
        remove_hooks(body, lambda hook: hook in (_announce, _has_read))


def remove_hooks(module: torch.nn.Module, which: Callable[[Callable], bool]) -> None:
    """Remove those hooks before and after the forward of which `which(hook)` is true."""
    for hooks, with_kwargs in (
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        (module._forward_hooks, module._forward_hooks_with_kwargs),
    ):
        for key, hook in list(hooks.items()):
            if which(hook):
                del hooks[key]
                with_kwargs.pop(key, None)


def _announce(model, args, kwargs):
    cache, ids = kwargs.get("past_key_values"), kwargs.get("position_ids")
    known = not isinstance(cache, Announced) or (ids is not None and ids is cache.announced)
    if known and len(args) < 2:  # else the cache may be among them
        return None  # what a compiled model traces ends here: its steps are announced before
    return _step(model, args, kwargs)


@torch.compiler.disable
def _step(model, args, kwargs):
    kwargs = by_name(model, args, kwargs)
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, Announced):
        return None
    check_checkpointing(model)
    tokens = kwargs.get("input_ids")
    tokens = kwargs["inputs_embeds"] if tokens is None else tokens
    # which makes a mask for single tokens, too, where it isn't exchangeable
    own = "eager" if by_mask_only(model) else model.config._attn_implementation
    n = tokens.shape[1]
    what = "at least 1 (generate() wants all of the text, or a mask over all of it)"
    require(n > 0, "new tokens", n, what)
    weights = kwargs.get("output_attentions")
    weights = getattr(model.config, "output_attentions", False) if weights is None else weights
    check_text(model, kwargs)
    cache.check_rows(tokens.shape[0])
    given = kwargs.get("attention_mask"), own, kwargs.get("position_ids"), bool(weights)
    told = cache.step(n, tokens.device, *given)
    cache.under_way = True
    if by_mask_only(model) and told.pop("kv_step", None) is not None:
        told["attention_mask"].fill_(math.nan)  # a copy, which has lost its step, shows
    return (), kwargs | told


def _has_read(model, args, kwargs, output) -> None:
    """Behind the forward, if it ends: what it has read was read to the end."""
    cache = kwargs.get("past_key_values")
    if isinstance(cache, Announced) and cache.under_way:
        _read(cache)


@torch.compiler.disable
def _read(cache: Announced) -> None:
    cache.under_way = False


def by_mask_only(model: PreTrainedModel) -> bool:
    """Whether a step reaches the model's attention on its mask alone (`own_attention.py`)."""
    return not model._can_set_attn_implementation()


def by_name(model, args: tuple, kwargs: dict) -> dict:
    """All arguments of a call by their names."""
    return dict(zip(_names(type(model)), args, strict=False)) | kwargs if args else kwargs


@functools.cache
def _names(kind: type) -> list[str]:
    """Parameters of a kind of model's forward."""
    return list(inspect.signature(kind.forward).parameters)[1:]


def no_mask(device, dtype: torch.dtype) -> torch.Tensor:
    """A mask of four dims, which a model passes on as it is, and which hides nothing."""
    return torch.zeros(1, 1, 1, 1, device=device, dtype=dtype)


def carrier(kv_step, device, dtype: torch.dtype) -> dict:
    """Keyword arguments of a model's forward that bring `kv_step` to its attention."""
    mask = no_mask(device, dtype)
    mask.kv_step = kv_step  # for models that keep keyword arguments to themselves (StableLM)
    return {"attention_mask": mask, "kv_step": kv_step}


class Recorder:
    """In a `kv_step`'s place: notes what attention is given for tokens that are alone."""

    def __init__(self):
        self.calls: list[tuple] = []  # module, query, key, value and options of each

    def attend(self, module, query, key, value, attention_mask, dropout=0.0, **options):
        """Attention of such tokens, query (rows, H, 1, D): their values."""
        options["attention_mask"] = attention_mask
        self.calls.append((module, query, key, value, options))
        groups = query.shape[1] // value.shape[1]
        return value.repeat_interleave(groups, dim=1).transpose(1, 2).contiguous(), None


_get_interface = AttentionInterface.get_interface


def _interface(self, attn_implementation: str, default):
    """The attention function that a model asks for, which a step with a `kv_step` passes by."""
    return functools.partial(attend, _get_interface(self, attn_implementation, default))


def attend(
    own,
    module,
    query,
    key,
    value,
    attention_mask=None,
    *args,
    kv_step=None,
    kv_watch=None,
    **kwargs,
):
    """Attention of a layer: `own`, or what the step that is carried to it says."""
    args = (module, query, key, value, attention_mask, *args)
    kv_step = getattr(attention_mask, "kv_step", None) if kv_step is None else kv_step
    if kv_watch is not None:
        kv_watch(kv_step, *args, **kwargs)
    if kv_step is None:
        return own(*args, **kwargs)
    if isinstance(kv_step, Recorder):
        return kv_step.attend(*args, **kwargs)
    return ALL_ATTENTION_FUNCTIONS[NAME](*args, kv_step=kv_step, **kwargs)


AttentionInterface.get_interface = _interface
