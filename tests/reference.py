"""Slow and obvious: what the library computes, written out token by token from the definitions.

Nothing here uses `lib`. Keys are kept unrotated; a score depends on the distance between query and
key only, so the query is rotated by that distance and multiplied with the plain key.
"""

import copy
import functools
import math

import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

VOCAB = 61
FAMILIES = ("neox_25", "neox_50", "llama", "llama_gqa", "qwen3")
SCALED = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
}
MORE_FAMILIES = (*FAMILIES, "mistral", "mistral_sliding", "qwen2", *SCALED)


def tiny_model(family: str, dtype: torch.dtype = torch.float64, seed: int = 0, **config):
    """A random two-layer model whose attention is peaked, so that positions matter."""
    torch.manual_seed(seed)
    config = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2 if family.startswith("neox") else 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": None,
    } | config
    rope = {"rope_type": "default", "rope_theta": 100.0}
    if family.startswith("neox"):
        rope["partial_rotary_factor"] = int(family.removeprefix("neox_")) / 100
        kind, model_class = GPTNeoXConfig, GPTNeoXForCausalLM
    elif family == "qwen3":
        config |= {"num_key_value_heads": 2, "head_dim": 16}
        kind, model_class = Qwen3Config, Qwen3ForCausalLM
    elif family == "qwen2":
        config["num_key_value_heads"] = 2
        kind, model_class = Qwen2Config, Qwen2ForCausalLM
    elif family.startswith("mistral"):
        sliding = {"sliding_window": 40 if family == "mistral_sliding" else None}
        config = {"num_key_value_heads": 2} | sliding | config
        kind, model_class = MistralConfig, MistralForCausalLM
    else:
        rope |= SCALED.get(family, {})
        config["num_key_value_heads"] = 4 if family == "llama" else 2
        kind, model_class = LlamaConfig, LlamaForCausalLM
    model = model_class(kind(**{"rope_parameters": rope} | config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms start at 0 and 1, where mistakes hide
                parameter += 0.1 * torch.randn_like(parameter)
    return model.to(dtype)


cached_model = functools.cache(tiny_model)  # one and the same for all that don't change it


def tiny_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def distinct_ids(length: int, vocabulary: int = VOCAB, seed: int = 0) -> torch.Tensor:
    """Ids without repeats: equal tokens have equal key norms in layer 0, and ties are no one's."""
    return torch.randperm(vocabulary, generator=torch.Generator().manual_seed(seed))[:length]


def rotate(x: torch.Tensor, distances: list[int], config) -> torch.Tensor:
    """`x` (H, D) rotated by each of `distances`: (H, n, D), in float64.

    Some RoPE scalings make what is rotated longer as well, here as in the models.
    """
    rope, scale = config.rope_parameters, 1.0
    head_dim = x.shape[-1]
    rotary_dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    half = rotary_dim // 2
    frequency = torch.tensor(
        [rope["rope_theta"] ** (-2 * i / rotary_dim) for i in range(half)], dtype=torch.float64
    )
    if rope["rope_type"] != "default":
        frequency, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")
    angle = torch.tensor(distances, dtype=torch.float64)[:, None] * frequency  # (n, half)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    first, second, rest = x[:, None, :half], x[:, None, half:rotary_dim], x[:, None, rotary_dim:]
    return torch.cat(
        (first * cos - second * sin, second * cos + first * sin, rest.expand(-1, len(angle), -1)),
        dim=-1,
    )


def windows(
    length: int,
    start_size: int,
    recent_size: int | None,
    positions: str = "in_cache",
    buffer: int = 0,
    cut_from: int = 0,
) -> list[list[tuple[int, int]]]:
    """For each of `length` queries (index, distance) of every token it sees; None is no limit.

    A query sees the tokens held, and itself. If more than the budget and `buffer` are held then,
    sinks and recent tokens stay; nothing is cut before `cut_from` tokens were fed.
    """
    held, seen = [], []
    for t in range(length):
        held.append(t)
        last = len(held) - 1
        in_cache = positions == "in_cache"
        seen.append([(j, last - place if in_cache else t - j) for place, j in enumerate(held)])
        if recent_size is None or t + 1 < cut_from:
            continue
        if len(held) > start_size + recent_size + buffer:
            held = held[:start_size] + held[-recent_size:]
    return seen


def project(layer, x: torch.Tensor, config):
    """Unrotated query (H, D), key and value (Hkv, D) of one token x (hidden,)."""
    if config.model_type == "gpt_neox":
        heads = layer.attention.query_key_value(layer.input_layernorm(x))
        return heads.view(config.num_attention_heads, -1).chunk(3, dim=-1)
    attention, x = layer.self_attn, layer.input_layernorm(x)
    query, key, value = (
        linear(x).view(heads, -1)
        for linear, heads in (
            (attention.q_proj, config.num_attention_heads),
            (attention.k_proj, config.num_key_value_heads),
            (attention.v_proj, config.num_key_value_heads),
        )
    )
    if config.model_type == "qwen3":
        query, key = attention.q_norm(query), attention.k_norm(key)
    return query, key, value


def _finish(layer, x: torch.Tensor, heads: torch.Tensor, config) -> torch.Tensor:
    """What the layer makes of token x (hidden,) and its attention output (H, D)."""
    if config.model_type == "gpt_neox":
        attended = layer.attention.dense(heads.flatten())
        return x + attended + layer.mlp(layer.post_attention_layernorm(x))
    x = x + layer.self_attn.o_proj(heads.flatten())
    return x + layer.mlp(layer.post_attention_layernorm(x))


def _attend(query, keys, values, seen, config) -> tuple[torch.Tensor, list[dict[int, float]]]:
    """One query (H, D) over all keys and values so far, of which each head sees its own.

    `seen[h]` lists (index, distance) for key head h. Also each query head's attention, by index.
    """
    group = len(query) // keys.shape[1]  # query heads per key head
    output, attention = [], []
    for head in range(len(query)):
        index, distance = zip(*seen[head // group], strict=True)
        turned = rotate(query[head : head + 1], list(distance), config)[0]  # (n, D)
        key, value = (x[list(index), head // group] for x in (keys, values))
        scores = (turned * key).sum(-1) / math.sqrt(query.shape[1])
        weights = (scores - scores.max()).exp()
        weights = weights / weights.sum()
        output.append(weights @ value)
        attention.append(dict(zip(index, weights.tolist(), strict=True)))
    return torch.stack(output), attention


@torch.no_grad()
def literal(model, ids: torch.Tensor, see, after=None) -> torch.Tensor:
    """Logits (T, V) of feeding `ids` (T,) one by one, in float64.

    `see(t, layer, head)` lists (index, distance) of what the query at t sees; `after(t, layer,
    keys, attention)` is told, when the step is done, the keys (t + 1, Hkv, D), as rotated at 0, and
    for each query head by index the attention it gave.
    """
    model = copy.deepcopy(model).double()
    config, body = model.config, model.base_model
    norm = body.final_layer_norm if config.model_type == "gpt_neox" else body.norm
    cached = [([], []) for _ in body.layers]
    logits = []
    for t, token in enumerate(ids):
        x = model.get_input_embeddings()(token)
        for number, layer in enumerate(body.layers):
            query, key, value = project(layer, x, config)
            key = rotate(key, [0], config)[:, 0]
            keys, values = cached[number]
            keys.append(key)
            values.append(value)
            seen = [see(t, number, head) for head in range(len(key))]
            stacked = torch.stack(keys)
            heads, attention = _attend(query, stacked, torch.stack(values), seen, config)
            x = _finish(layer, x, heads, config)
            if after is not None:
                after(t, number, stacked, attention)
        logits.append(model.get_output_embeddings()(norm(x)))
    return torch.stack(logits)


def literal_window(model, ids, start_size=0, recent_size=None, *args, **kwargs) -> torch.Tensor:
    """Logits (T, V) under `windows`; dense where `recent_size` is None."""
    seen = windows(len(ids), start_size, recent_size, *args, **kwargs)
    return literal(model, ids, lambda t, *_: seen[t])


def literal_scattered(model, ids, keep, positions="in_cache", cut_from: int = 0):
    """Logits (T, V) where after each step every key head keeps what `keep(norms, layer)` says.

    `norms` are those of the tokens held, oldest first; `keep` gives their places to keep. Nothing
    is cut before `cut_from` tokens were fed. Kept tokens stand, in order, at distances 1, 2, ...
    before the query, or where they stood in the text (`positions="original"`).
    """
    held: dict[tuple[int, int], list[int]] = {}

    def see(t, layer, head):
        tokens = held.setdefault((layer, head), [])
        tokens.append(t)
        if positions == "original":
            return [(j, t - j) for j in tokens]
        return [(j, len(tokens) - 1 - place) for place, j in enumerate(tokens)]

    def after(t, layer, keys, attention):
        if t + 1 < cut_from:
            return
        for head in range(keys.shape[1]):
            tokens = held[layer, head]
            norms = [keys[j, head].norm().item() for j in tokens]
            held[layer, head] = [tokens[place] for place in sorted(keep(norms, layer))]

    return literal(model, ids, see, after)


def literal_attended(model, ids, keep, ends, positions="in_cache"):
    """Logits (T, V), and tokens held at the end by (layer, key head), where attention decides.

    After the tokens `ends` every layer keeps what `keep(held, given, layer)` says: per key head, of
    the tokens `held`, oldest first, by what each query so far has `given`, in the order of the
    text, as a dictionary by token, averaged over the query heads that share the key.
    """
    held, given = {}, {}

    def see(t, layer, head):
        tokens = held.setdefault((layer, head), [])
        tokens.append(t)
        if positions == "original":
            return [(j, t - j) for j in tokens]
        return [(j, len(tokens) - 1 - place) for place, j in enumerate(tokens)]

    def after(t, layer, keys, attention):
        heads = range(keys.shape[1])
        group = len(attention) // len(heads)
        for head in heads:
            own = attention[head * group : (head + 1) * group]
            mean = {j: sum(weights[j] for weights in own) / group for j in own[0]}
            given.setdefault((layer, head), []).append(mean)
        if t in ends:
            tokens, rows = ([x[layer, head] for head in heads] for x in (held, given))
            for head, kept in enumerate(keep(tokens, rows, layer)):
                held[layer, head] = sorted(kept)

    return literal(model, ids, see, after), held


def nll_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Nats per predicted token, (T - 1,): minus the log of the softmax at the next token."""
    scores = logits[:-1] - logits[:-1].max(dim=-1, keepdim=True).values
    total = scores.exp().sum(-1).log()
    return total - scores[torch.arange(len(ids) - 1), ids[1:]]


@torch.no_grad()
def own_generate(model, ids: torch.Tensor, new: int, cache=None, **kwargs):
    """New tokens (B, new) and their logits (B, new, V) by the model's own `generate`, greedy."""
    ids = ids if ids.ndim == 2 else ids[None]
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    options |= {} if cache is None else {"past_key_values": cache}
    output = model.generate(
        ids,
        max_new_tokens=new,
        output_logits=True,
        return_dict_in_generate=True,
        **(options | kwargs),
    )
    return output.sequences[:, ids.shape[1] :], torch.stack(output.logits, dim=1)


def assert_greedy(expected: torch.Tensor, new: torch.Tensor, logits=None, atol: float = 1e-4):
    """`new` (n,) are the likeliest tokens by `expected`, whose last n rows `logits` equals.

    `expected` (T, V) are the literal logits of the prompt and `new` but for its last token, so
    the literal model, left alone, would have chosen the same.
    """
    expected = expected[-len(new) :]
    if logits is not None:
        assert (logits.double() - expected).abs().max() < atol
    chosen = expected.gather(1, new[:, None])[:, 0]
    assert (expected.max(-1).values - chosen).max() < atol
