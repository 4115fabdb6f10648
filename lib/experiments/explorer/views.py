"""What the explorer shows, as plain numbers and words: drawn by the page, and by `figure.py`."""

import math
from collections.abc import Mapping
from itertools import pairwise

import torch

from lib.measure.limits import cache_bytes_per_token, decoding_work, least_seconds
from lib.measure.machine import Machine
from lib.measure.stats import for_json, log_edges, nll_by_position, ppl_ci, ppl_ratio_ci, stretches

from .reading import Look
from .setting import MOST_SINKS, Setting, held_by_rule

MOST_BARS = 480  # about one a pixel
BEHIND = 900  # tokens before the step whose text is shown, besides the first


def curve(nll: torch.Tensor, done: int, before: dict | None = None) -> dict:
    """NLL (nats) by position of the first `done` tokens, with 95% intervals, and their perplexity.

    Only spans of the text that are whole are among them; those of the curve `before`, of fewer
    tokens of the same, are taken over.
    """
    edges = log_edges(16, len(nll), per_octave=2)
    edges = edges[edges <= done]
    columns = {"x": "position", "y": "nll", "low": "nll_low", "high": "nll_high"}
    spans = {name: before[name] if before else [] for name in columns}
    known = len(spans["x"])
    if len(edges) > 1 + known:
        table = nll_by_position(nll[None], edges[known:])
        spans = {name: spans[name] + for_json(table[x]) for name, x in columns.items()}
    part = stretches(nll[:done])
    return {"done": done, "total": len(nll), "ppl": for_json(ppl_ci(part))} | spans


def ratios(nll: Mapping[str, torch.Tensor]) -> dict[str, list[float | None]]:
    """Perplexity of the "chosen" over that of each other: ratio, low, high.

    Paired over 16 stretches of the text.
    """
    if "chosen" not in nll:
        return {}
    parts = {name: stretches(values) for name, values in nll.items()}
    chosen = parts.pop("chosen")
    return {name: for_json(ppl_ratio_ci(chosen, other)) for name, other in parts.items()}


def attention(setting: Setting, step: int, look: Look | None, layer: int, head: int) -> dict | None:
    """The tokens that one head's query at `step` sees, and how much it attends to each.

    Without a look the weights are not known yet, and the tokens only where the rule tells them.
    """
    found = no_attention(setting, step, layer, head)
    if look is None:
        held = held_by_rule(setting, step)
        return None if held is None else found | {"tokens": held.tolist()}
    tokens, weights = look.of(layer, head)
    shares = [round(x, 4) for x in look.share(found["first"])]
    return found | {"tokens": tokens, "weights": weights, "shares": shares}


def no_attention(setting: Setting, step: int, layer: int, head: int) -> dict:
    """The same where nothing is known yet."""
    sinks = setting.start_size if setting.has_sinks else 0
    found = {"step": step, "layer": layer, "head": head, "sinks": sinks, "first": sinks or 4}
    return found | {"tokens": [], "weights": None, "shares": None}


def for_page(shown: dict) -> dict:
    """What `attention` gives as the page needs it: no more than it can draw.

    Of many tokens there are those whose text is shown, and `bars` of neighbours: of which token
    each is the first, and the highest weight among them.
    """
    tokens, weights, n = shown["tokens"], shown["weights"], len(shown["tokens"])
    shown = shown | {"seen": n}
    if n <= 2 * MOST_BARS:
        return shown
    each = math.ceil((n - MOST_SINKS) / (MOST_BARS - MOST_SINKS))
    edges = [*range(MOST_SINKS), *range(MOST_SINKS, n, each), n]
    bars = {"tokens": [tokens[at] for at in edges[:-1]], "each": each, "weights": None}
    near = [i for i, x in enumerate(tokens) if x < MOST_SINKS or x >= shown["step"] - BEHIND]
    if weights is not None:
        bars["weights"] = [max(weights[low:high]) for low, high in pairwise(edges)]
        shown["weights"] = [weights[i] for i in near]
    return shown | {"tokens": [tokens[i] for i in near], "bars": bars}


def cost(model, setting: Setting, step: int, look: Look | None, machine: Machine | None) -> dict:
    """What the cache holds before the token at `step`, beside a dense one, and what it allows.

    Bytes are of keys and values; tokens/s is the most that this machine's memory and arithmetic
    allow a model that decodes with so much in its cache, batch 1.
    """
    held = None
    if look is not None:
        held = sum(x.shape[1] - 1 for x in look.tokens) / len(look.tokens)
    elif (rule := held_by_rule(setting, step)) is not None:
        held = len(rule) - 1
    rows = {"dense": step, "chosen": held}
    found = {}
    for name, tokens in rows.items():
        if tokens is None:
            continue
        work = decoding_work(model, round(tokens))
        held_bytes = round(tokens * cache_bytes_per_token(model))
        found[name] = {"tokens": round(tokens, 1), "bytes": held_bytes}
        if machine is not None:
            found[name]["tokens_per_s"] = round(1 / least_seconds(work, machine), 1)
    return found


def pieces(tokenizer, tokens: torch.Tensor) -> list[str]:
    """Each token as text: what it adds to the text before it, so that the pieces read on.

    A letter whose bytes are several tokens is the last one's; those before it are empty.
    """
    ids, found = tokens.tolist(), []
    start = whole = 0  # tokens before `whole` are decoded, of which those from `start` are context
    for end in range(1, len(ids) + 1):
        before, now = (tokenizer.decode(ids[start:to]) for to in (whole, end))
        ready = not now.endswith("\N{REPLACEMENT CHARACTER}") or end == len(ids)
        found.append(now[len(before) :] if ready else "")
        start, whole = (whole, end) if ready else (start, whole)
    return found
