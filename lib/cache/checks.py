"""What a cache and the loops refuse before any work, each error naming value and allowed values."""

import torch
from transformers import PreTrainedConfig

from lib.compressors import Compressor
from lib.require import require, require_int

POSITIONS = ("in_cache", "original")
PREFILL = ("streamed", "dense")
ALIBI = ("bloom", "mpt")
# models that add to a token's embedding one of its kind; others make masks of the kinds
ADDED_KINDS = ("gpt2", "gpt_bigcode", "bert")


def check_config(config: PreTrainedConfig, compressor: Compressor, buffer: int) -> None:
    """Refuse models whose attention lays something over the text that a cut cache breaks."""
    alibi = config.model_type in ALIBI or getattr(config, "alibi", False)
    what = "models without ALiBi: its biases need the whole text's distances"
    require(not alibi, "model_type", config.model_type, what)
    both = getattr(config, "use_bidirectional_attention", None)
    what = "False: a cached token can't see those after it"
    require(both not in (True, "all"), "use_bidirectional_attention", both, what)
    chunked = "chunked_attention" in (getattr(config, "layer_types", None) or ())
    own = getattr(config, "attention_chunk_size", None) if chunked else None
    require(own is None, "attention_chunk_size", own, "None: pieces of the text hide one another")
    own = window_of(config)
    if own is not None:
        check_window(own, compressor, buffer)


def window_of(config: PreTrainedConfig) -> int | None:
    """The window of tokens that a model of this config attends to by itself, in some layers."""
    kinds = getattr(config, "layer_types", None)
    used = kinds is None or "sliding_attention" in kinds
    used = used and getattr(config, "use_sliding_window", True)
    return getattr(config, "sliding_window", None) if used else None


def check_window(own: int, compressor: Compressor, buffer: int) -> None:
    """Refuse a window of the model's own (in tokens) that hides what the method keeps."""
    needed = (compressor.budget or own - 1 - buffer) + buffer + 1
    what = f"None, or at least budget + buffer + 1 = {needed}"
    require(own >= needed, "sliding_window", own, what)


def smallest_window(layers: list) -> int | None:
    """The smallest window of tokens that one of a model's layers attends to by itself."""
    return min((x for layer in layers if (x := layer.options.get("sliding_window"))), default=None)


def check_layers(model, layers: list, compressor: Compressor, buffer: int) -> int | None:
    """Refuse what a method can't do with these layers (`lib.cache.probe`); the smallest window."""
    own, configured = smallest_window(layers), window_of(model.config.get_text_config())
    if own is not None:
        check_window(own, compressor, buffer)
    told = own is not None or compressor.window is not None
    what = "None: the model doesn't tell its attention, which long prompts of this method need"
    require(configured is None or told, "sliding_window", configured, what)
    if compressor.window is None:
        looks = [bool(compressor.layer_queries(i, len(layers))) for i in range(len(layers))]
        for i, (layer, at_attention) in enumerate(zip(layers, looks, strict=True)):
            what = (
                "a method that looks at positions only (or at attention, if all heads share what "
                "is cached): this model doesn't cache what its queries meet, head by head"
            )
            told = layer.direct or (layer.shared and at_attention) or i in compressor.skip_layers
            require(told, "compressor", compressor.name, what)
        what = (
            "a method that doesn't look at attention: this model attends several times to one cache"
        )
        once = all(len(layer.readers) == 1 for layer in layers)
        require(once or not any(looks), "compressor", compressor.name, what)
    return own


def check_checkpointing(model) -> None:
    """Refuse training with gradient checkpointing, which takes the cache from every layer."""
    dropped = model.training and getattr(model, "is_activation_checkpointing", False)
    what = "False (model.eval()) with gradient checkpointing, in which layers get no cache"
    require(not dropped, "model.training", model.training, what)


def check_text(model, given: dict) -> None:
    """Refuse what makes of some tokens more than text, with places or sight of their own."""
    for name in ("image_grid_thw", "video_grid_thw"):
        what = "None: pictures have positions of their own, which a stream doesn't keep"
        require(given.get(name) is None, name, "given", what)
    kinds = None if model.config.model_type in ADDED_KINDS else given.get("token_type_ids")
    what = "None or zeros: tokens of a kind may see one another both ways"
    require(kinds is None or not bool(kinds.any()), "token_type_ids", "not zeros", what)


def check_positions(position_ids: torch.Tensor | None, own: torch.Tensor | int, seen: int) -> None:
    """Refuse position ids (1 or B, n) other than the tokens' `own`, below 0 for pads."""
    if position_ids is None:
        return
    if isinstance(own, int):
        ok = bool((position_ids == own).all())
    else:
        alike = position_ids.shape[-1] == own.shape[-1]
        ok = alike and bool(((position_ids == own) | (own < 0)).all())
    if not ok:
        what = (
            f"None, or the tokens' places in the text, of which {seen} are known (generate() wants "
            "all of the text, or a mask over all of it; reset() the cache before another text)"
        )
        require(False, "position_ids", position_ids.flatten()[:8].tolist(), what)


def check_table(places: int | None, tokens: int) -> None:
    """Refuse to go beyond a table of so many `places`, from which a model takes its positions."""
    what = f"at most {places} in the cache and a step: positions are in a table"
    require(places is None or tokens <= places, "tokens", tokens, what)


def check_method(
    compressor: Compressor | None, positions: str, buffer: int = 0, prefill: str = "streamed"
) -> None:
    """Raise a ValueError unless these are a compressor (or None) and a way to run it."""
    ok = compressor is None or isinstance(compressor, Compressor)
    require(ok, "compressor", compressor, "None or a Compressor such as StreamingLLM(4, 508)")
    require(positions in POSITIONS, "positions", positions, f"one of {POSITIONS}")
    require(prefill in PREFILL, "prefill", prefill, f"one of {PREFILL}")
    require_int("buffer", buffer, 0)
    fixed = compressor is None or compressor.budget is not None
    require(fixed or not buffer, "buffer", buffer, "0 for a method without a fixed budget")


def check_output_attentions(wanted: bool, ours: bool) -> None:
    """Refuse `output_attentions` where `ours` gives no weights, or those of slots too many."""
    what = (
        "False where old tokens leave within a step, where attention is scored and in a static "
        "cache: give the prompt in pieces that fit the cache"
    )
    require(not (wanted and ours), "output_attentions", wanted, what)


def check_takes_masks(attention: str) -> None:
    """Refuse attention implementations (kernels of the hub, too) that take no mask of ours."""
    ok = not any(name in attention for name in ("flash", "flex", "paged"))
    require(ok, "attn_implementation", attention, "'sdpa' or 'eager'")


def left_pads(attention_mask: torch.Tensor, columns: int) -> torch.Tensor:
    """Pads in front of each row (B, 1) of a mask (B, columns); ValueError on any other padding."""
    shape = tuple(attention_mask.shape)
    ok = len(shape) == 2 and shape[1] == columns
    require(ok, "attention_mask.shape", shape, f"(batch, {columns}): all of the text so far")
    mask = attention_mask.bool()
    pads = (mask.cumsum(-1) == 0).sum(-1, keepdim=True)
    ok = bool((pads + mask.sum(-1, keepdim=True) == columns).all())
    require(ok, "attention_mask", "zeros after ones", "padding on the left only")
    return pads


def new_pads(
    attention_mask: torch.Tensor | None, n: int, seen: int, known: torch.Tensor | None
) -> torch.Tensor | None:
    """Pads (B, 1) in front, if a mask for `n` tokens after `seen` has others than the `known` ones.

    ValueError on any other padding, and for pads where a row had tokens already.
    """
    if attention_mask is None:
        return None
    what = (
        "None or one tensor (batch, all of the text so far): masks by kinds of layers can't be kept"
    )
    kind = type(attention_mask).__name__
    require(isinstance(attention_mask, torch.Tensor), "attention_mask", kind, what)
    if n == 1 and attention_mask.shape[1:] == (seen + 1,):  # every decoding step: few operations
        visible = attention_mask.bool()
        if bool(visible.all()) if known is None else _pads_are(visible, known):
            return None
    pads = left_pads(attention_mask, seen + n)
    known = torch.zeros_like(pads) if known is None else known
    if torch.equal(pads, known):
        return None
    # a row may have had nothing but pads up to here
    ok = bool((known == seen)[pads != known].all())
    require(ok, "attention_mask", "new padding", "the padding of the tokens before")
    return pads


def _pads_are(visible: torch.Tensor, pads: torch.Tensor) -> bool:
    """Whether (B, columns) is false in the first `pads` (B, 1) columns and true elsewhere."""
    columns = torch.arange(visible.shape[1], device=visible.device)
    return torch.equal(visible, columns >= pads.to(visible.device))


def check_ids(model, input_ids: torch.Tensor, shortest: int) -> torch.Tensor:
    """Token ids as (B, T) where the model wants them, or a ValueError."""
    tensor = isinstance(input_ids, torch.Tensor) and input_ids.dtype in (torch.int64, torch.int32)
    require(tensor, "input_ids", type(input_ids).__name__, "a tensor of whole numbers")
    shape = tuple(input_ids.shape)
    ok = len(shape) in (1, 2) and input_ids.numel() and shape[-1] >= shortest
    require(ok, "input_ids.shape", shape, f"(T,) or (B, T) with T >= {shortest}")
    vocabulary = model.config.get_text_config().vocab_size
    low, high = int(input_ids.min()), int(input_ids.max())
    require(low >= 0 and high < vocabulary, "input_ids", (low, high), f"ids in 0..{vocabulary - 1}")
    ids = input_ids[None] if input_ids.ndim == 1 else input_ids
    return ids.to(input_device(model), torch.long)


def input_device(model) -> torch.device:
    """Where the model computes first: its weights may be elsewhere (accelerate's offloading)."""
    if model.device.type != "meta":
        return model.device
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    devices = [getattr(hook, "execution_device", None) for hook in hooks]
    return torch.device(next((device for device in devices if device is not None), "cpu"))
