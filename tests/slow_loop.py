"""Slow and obvious for any decoder: token by token, keys un-rotated, the model's own RoPE.

Nothing here uses `lib`, and nothing knows how a model rotates. Each token is fed as a batch of rows
that differ in their position only: row d has the query rotated by d, row 0 the key rotated by
nothing. A score at distance d is the product of row d's query and a stored key.
"""

import copy
import itertools
import math
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import torch
from torch.nn.functional import softmax
from transformers import AttentionInterface

NAME = "slow_loop"


def slow_attention(module, query, key, value, attention_mask, loop=None, **kwargs):
    """Attention of one token, query (rows, H, 1, D), over what `loop` has stored and shows it.

    Some models pass on their keyword arguments, and all of them the mask, of which it is a part.
    """
    loop = attention_mask.loop if loop is None else loop
    output = loop.attend(module.layer_idx, query[:, :, 0], key[0, :, 0], value[0, :, 0], kwargs)
    return output.expand(len(query), 1, -1, -1).contiguous(), None  # (rows, 1, H, D)


AttentionInterface.register(NAME, slow_attention)


class Loop:
    """Keys and values of all tokens so far by layer, and who sees what: `see(t, layer, head)`."""

    def __init__(self, see, after, at_distances):
        self.see, self.after, self.at_distances = see, after, at_distances
        self.keys, self.values, self.t = {}, {}, 0

    def attend(self, layer, query, key, value, options) -> torch.Tensor:
        call = 0  # of this token's: some attend twice, to halves of the values
        while len(self.keys.setdefault((layer, call), [])) > self.t:
            call += 1
        self.keys[layer, call].append(key)
        self.values.setdefault((layer, call), []).append(value)
        keys, values = (torch.stack(x[layer, call]) for x in (self.keys, self.values))
        heads, group = query.shape[1], query.shape[1] // keys.shape[1]
        window, sinks = options.get("sliding_window"), options.get("s_aux")
        output, attention = [], []
        for head in range(heads):
            seen = self.see(self.t, layer, head // group)
            seen = seen[-(window or len(seen)) :]  # a model's own window counts what is held
            index, distance = (list(x) for x in zip(*seen, strict=True))
            turned = query[distance if self.at_distances else 0, head]
            scores = (turned * keys[index, head // group]).sum(-1)
            scores = scores * (options.get("scaling") or query.shape[-1] ** -0.5)
            if options.get("softcap") is not None:
                scores = options["softcap"] * (scores / options["softcap"]).tanh()
            if sinks is not None:
                scores = torch.cat((scores, sinks[head : head + 1].to(scores)))
            weights = softmax(scores, dim=-1)[: len(index)]
            output.append(weights @ values[index, head // group])
            attention.append(dict(zip(index, weights.tolist(), strict=True)))
        if self.after is not None:
            self.after(self.t, layer, keys, attention)
        return torch.stack(output)


@torch.no_grad()
def slow_loop(model, ids: torch.Tensor, see, after=None, at_distances=True) -> torch.Tensor:
    """Logits (T, V) of feeding `ids` (T,) one by one: `reference.literal`, for any decoder.

    `see` and `after` are as there; distances are below the length of the text. For models without
    RoPE, not `at_distances`: each token is fed at its position in the text, and distances are not
    looked at.
    """
    model, loop, logits = copy.deepcopy(model), Loop(see, after, at_distances), []
    with _taken_over(model, loop) as more:
        for loop.t, token in enumerate(ids):
            rows = torch.arange(len(ids))[:, None] if at_distances else torch.tensor([[loop.t]])
            alike = token.expand(len(rows), 1)
            mask = torch.zeros(1, 1, 1, 1, dtype=model.dtype)  # of four dims: it is not looked at
            mask.loop = loop
            more["attention_mask"] = mask
            out = model(input_ids=alike, position_ids=rows, use_cache=False, **more)
            logits.append(out.logits[0, 0])
    return torch.stack(logits)


@contextmanager
def _taken_over(model, loop):
    """Let `loop` attend in `model`; further arguments of its forward."""
    if model._can_set_attn_implementation():
        model.set_attn_implementation(NAME)
        yield {"loop": loop}
        return
    layers = itertools.cycle(range(model.config.num_hidden_layers))

    def attend(query, key, value, mask=None, attn_mask=None, **kwargs):
        """Of the layer whose turn it is: (rows, H, 1, D)."""
        layer = SimpleNamespace(layer_idx=next(layers))
        return slow_attention(layer, query, key, value, None, loop)[0].transpose(1, 2)

    for module in model.modules():
        if hasattr(module, "_attn"):
            module._attn = lambda *args: (attend(*args), None)
    with mock.patch("torch.nn.functional.scaled_dot_product_attention", attend):
        yield {}


def held_after(keep, ends, positions="in_cache"):
    """`see` and `after` for `slow_loop` where `keep` cuts each layer after the tokens `ends`.

    `keep(held, keys, given, layer)` says per key head which of the tokens `held` stay; `keys`
    (t + 1, Hkv, D); `given` lists what each query so far has given, by token, averaged over the
    query heads that share the key.
    """
    held, given = {}, {}

    def see(t, layer, head):
        tokens = held.setdefault((layer, head), [])
        if not tokens or tokens[-1] != t:
            tokens.append(t)
        last = len(tokens) - 1
        return [
            (j, last - place if positions == "in_cache" else t - j)
            for place, j in enumerate(tokens)
        ]

    def after(t, layer, keys, attention):
        heads = range(keys.shape[1])
        group = len(attention) // len(heads)
        for head in heads:
            own = attention[head * group : (head + 1) * group]
            mean = {j: math.fsum(weights[j] for weights in own) / group for j in own[0]}
            given.setdefault((layer, head), []).append(mean)
        if t in ends:
            tokens, rows = ([x[layer, head] for head in heads] for x in (held, given))
            for head, kept in enumerate(keep(tokens, keys, rows, layer)):
                held[layer, head] = sorted(kept)

    return see, after


def lowest_norms(budget: int, recent: int):
    """`keep` for `held_after`: the `recent` last tokens and, per head, the lowest key norms."""

    def keep(held, keys, given, layer):
        kept = []
        for head, tokens in enumerate(held):
            older = sorted(
                tokens[: len(tokens) - recent], key=lambda j: keys[j, head].norm().item()
            )
            kept.append(
                tokens if len(tokens) <= budget else tokens[-recent:] + older[: budget - recent]
            )
        return kept

    return keep


def most_attended(budget: int):
    """`keep` for `held_after`: the tokens the last query attends to most, over all heads (TOVA)."""

    def keep(held, keys, given, layer):
        last = [rows[-1] for rows in given]
        best = sorted(held[0], key=lambda j: -math.fsum(row.get(j, 0) for row in last))
        return [best[:budget] for _ in held]

    return keep
