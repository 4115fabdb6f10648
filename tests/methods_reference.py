"""Slow and obvious: which tokens the papers' rules keep, in plain Python loops.

Nothing here uses `lib` or torch's functions. A rule is told one head's keys and values, a list of
numbers per token, and gives the tokens that stay; of equally good tokens the older one stays.
"""

import math
from fractions import Fraction


def per_head(rule, keys, values) -> list[list[list[int]]]:
    """What `rule(keys, values)` keeps, ascending, for every row and head of (B, H, T, D)."""
    return [
        [sorted(rule(*head)) for head in zip(*row, strict=True)]
        for row in zip(keys.tolist(), values.tolist(), strict=True)
    ]


def norm(x: list[float]) -> float:
    return math.sqrt(sum(number * number for number in x))


def cosine(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True)) / (norm(x) * norm(y))


def worst(tokens, badness, count: int) -> list[int]:
    """The `count` of `tokens` with the highest `badness`, the newer first among equals."""
    return sorted(tokens, key=lambda token: (badness[token], token), reverse=True)[:count]


def without(length: int, evicted) -> set[int]:
    return set(range(length)) - set(evicted)


def keydiff(keys, values, budget: int, recent_size: int = 0):
    """Park et al. 2025: evict the keys most like the anchor, the mean of the normalised keys."""
    T, D = len(keys), len(keys[0])
    unit = [[number / norm(key) for number in key] for key in keys]
    anchor = [sum(key[d] for key in unit) / T for d in range(D)]
    likeness = [cosine(key, anchor) for key in keys]
    return without(T, worst(range(T - recent_size), likeness, T - budget))


def standard_deviation(x: list[float]) -> float:
    mean = sum(x) / len(x)
    return math.sqrt(sum((number - mean) ** 2 for number in x) / (len(x) - 1))


def lag_scores(ours: list[list[float]], following: list[list[float]]) -> list[float]:
    """Liang et al. 2025, for the tokens of one partition: min-max of the next, std, softmax."""
    spread = []
    for state in ours:
        scaled = []
        for d, number in enumerate(state):
            channel = [other[d] for other in following]
            low, high = min(channel), max(channel)
            scaled.append((number - low) / (high - low if high > low else 1))
        spread.append(standard_deviation(scaled))
    weights = [math.exp(x - max(spread)) for x in spread]
    return [weight / sum(weights) for weight in weights]


def lagkv(keys, values, budget: int, start_size: int, lag_size: int):
    """Sinks and the last partition stay; the lowest scores leave the others one by one in turn."""
    T, partitions, first = len(keys), [], start_size
    while first + lag_size <= T:
        partitions.append(list(range(first, first + lag_size)))
        first += lag_size
    leaving = [0] * (len(partitions) - 1)
    for turn in range(T - budget):
        leaving[turn % len(leaving)] += 1
    evicted = []
    for number, count in enumerate(leaving):
        tokens, following = partitions[number : number + 2]
        score = dict.fromkeys(tokens, 0.0)
        for states in (keys, values):
            scores = lag_scores([states[t] for t in tokens], [states[t] for t in following])
            for token, one in zip(tokens, scores, strict=True):
                score[token] += one
        evicted += worst(tokens, {token: -score[token] for token in tokens}, count)
    return without(T, evicted)


def h2o_l2(norms, start_size: int, heavy_size: int, recent_size: int):
    """The first tokens, the last, and the lowest norms between them."""
    T = len(norms)
    if start_size + heavy_size + recent_size >= T:
        return set(range(T))
    middle = range(start_size, T - recent_size)
    return without(T, worst(middle, norms, len(middle) - heavy_size))


def adaptive_l2(norms, soft_limit: int, hard_limit: int, prune_share: Fraction):
    """Highest norms leave: a share of what is above the soft limit, all above the hard one."""
    T = len(norms)
    if soft_limit >= T:
        return set(range(T))
    pruned = math.floor(prune_share * (T - soft_limit))
    return without(T, worst(range(T), norms, max(pruned, T - hard_limit)))


def pyramid_budgets(budget: int, layers: int, base_size: int, beta) -> list[Fraction]:
    """Cai et al. 2024: an arithmetic sequence, of which all layers have `base_size` besides."""
    total = Fraction(layers * (budget - base_size))
    top = total / (Fraction(beta) * layers)
    bottom = 2 * total / layers - top
    step = (bottom - top) / (layers - 1)
    return [base_size + bottom - step * layer for layer in range(layers)]


def pyramid_budgets_within(length, budget: int, layers: int, base_size: int, beta):
    """The same of a prompt of `length` tokens: PyramidKV's code caps the first layer's budget at
    the prompt and takes the last's from the same sum."""
    top, *_, bottom = pyramid_budgets(budget, layers, base_size, beta)
    if top > length:
        top = Fraction(max(length, budget))
        bottom = 2 * budget - top
    return [top - (top - bottom) * layer / (layers - 1) for layer in range(layers)]


def heavy_hitters(held, given, heavy_size: int, recent_size: int):
    """H2O: recent tokens, and of the others those to which all queries together gave most."""
    kept = []
    for tokens, rows in zip(held, given, strict=True):
        if len(tokens) > heavy_size + recent_size:
            older, recent = tokens[:-recent_size], tokens[-recent_size:]
            total = {j: sum(row.get(j, 0.0) for row in rows) for j in older}
            tokens = [*best(older, total, heavy_size), *recent]
        kept.append(tokens)
    return kept


def tova(held, given, budget: int):
    """What the last query, all heads together, gave least to leaves; all heads hold the same."""
    last = {j: sum(rows[-1][j] for rows in given) for j in held[0]}
    return [best(tokens, last, budget) for tokens in held]


def snapkv(held, given, budget: int, window_size: int, kernel_size: int, pooling: str):
    """The window, and what its queries gave most to, pooled over the neighbours in the cache."""
    kept = []
    for tokens, rows in zip(held, given, strict=True):
        if len(tokens) > budget:
            older, window = tokens[:-window_size], tokens[-window_size:]
            total = [sum(row.get(j, 0.0) for row in rows[-window_size:]) for j in older]
            reach, pooled = kernel_size // 2, {}
            for place, j in enumerate(older):
                near = total[max(0, place - reach) : place + reach + 1]
                pooled[j] = max(near) if pooling == "max" else sum(near) / kernel_size
            tokens = [*best(older, pooled, budget - window_size), *window]
        kept.append(tokens)
    return kept


def best(tokens, value, count: int) -> list[int]:
    """The `count` of `tokens` with the highest `value`, the older first among equals."""
    return sorted(tokens, key=lambda token: (-value[token], token))[:count]
