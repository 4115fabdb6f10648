"""All methods on the same texts, at each length and budget: quality against cost."""

import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch

from lib.measure.perplexity import Evaluation
from lib.measure.rows import budget_of, group_of, split_names
from lib.measure.stats import (
    over_medians,
    ppl_ci,
    ppl_ratio_ci,
    summarise,
    with_interval,
)
from lib.require import require_share

# the main columns of a comparison's table, for a page
BRIEF = ["length", "method", "ppl", "ppl_change_%", "accuracy_%", "tpot_ms", "cache_length"]
BRIEF += ["cache_mib"]

# the columns of a recommendation
ADVICE = ["length", "goal", "rule", "method", "ppl", "ppl_low", "ppl_high", "tpot_ms", "tpot_ms_q1"]
ADVICE += ["tpot_ms_q3", "throughput", "throughput_q1", "throughput_q3", "cache_mib"]
ADVICE += ["n_texts", "n_repeats"]


def _shared(
    results: Mapping[int, Mapping[str, Evaluation]], names: Iterable[str]
) -> Iterable[tuple[int, float, dict[str, torch.Tensor]]]:
    """Each length and budget with the NLL of its rows in `names`, best first."""
    names = list(names)
    for length, budget in itertools.product(results, sorted({budget_of(name) for name in names})):
        own = {x: results[length][x].nll for x in names if x in results[length]}
        own = {x: nll for x, nll in own.items() if budget_of(x) == budget}
        if own:
            order = sorted(own, key=lambda x: float(own[x].double().mean()))
            yield length, budget, {x: own[x] for x in order}


def ranking(results: Mapping[int, Mapping[str, Evaluation]], names: Iterable[str]) -> pd.DataFrame:
    """All rows of each length and budget by perplexity, and whether each is parted from the next.

    `next_ratio` is the next row's perplexity over this one's with its 95% interval over texts,
    paired; `told_apart` says whether it excludes 1 ("–" for the last).
    """
    rows = []
    for length, budget, own in _shared(results, names):
        order = list(own)
        for place, (x, after) in enumerate(zip(order, [*order[1:], None], strict=True), 1):
            row = {"length": length, "budget": budget, "place": place, "method": x}
            row |= with_interval("ppl", ppl_ci(own[x]))
            last = after is None
            ahead = (float("nan"),) * 3 if last else ppl_ratio_ci(own[after], own[x])
            row |= with_interval("next_ratio", ahead)
            row["told_apart"] = "–" if last else "yes" if ahead[1] > 1 else "no"
            rows.append(row | {"n_texts": len(own[x])})
    return pd.DataFrame(rows)


def ends_apart(
    results: Mapping[int, Mapping[str, Evaluation]], names: Iterable[str], count: int = 3
) -> dict[tuple[int, float], tuple[int, int]]:
    """Of the pairs of one of the `count` best and one of the `count` worst rows, how many differ.

    By length and budget: (pairs whose paired 95% interval excludes 1, all pairs). No row is in
    both.
    """
    found = {}
    for length, budget, own in _shared(results, names):
        order, size = list(own), min(count, len(own) // 2)
        pairs = list(itertools.product(order[:size], order[len(own) - size :]))
        lows = [ppl_ratio_ci(own[worse], own[better])[1] for better, worse in pairs]
        found[length, budget] = sum(low > 1 for low in lows), len(pairs)
    return found


def lead_table(
    results: Mapping[int, Mapping[str, Evaluation]], names: Iterable[str]
) -> pd.DataFrame:
    """The best row of each length and budget against all others there, paired by text.

    Columns `best`, `next` (the runner-up), `ratio` of its perplexity to the best one's with
    `ratio_low` and `ratio_high`, and `as_good`, the rows whose interval includes the best one's
    perplexity; none where a row has no other. The best is found on the same texts, which flatters
    it.
    """
    rows = []
    for length, budget, own in _shared(results, names):
        best, *others = own
        ratios = {x: ppl_ratio_ci(own[x], own[best]) for x in others}
        second = others[0] if others else None
        lead = {"length": length, "budget": budget, "best": best, "next": second}
        ahead = ratios.get(second, (float("nan"),) * 3)
        lead |= with_interval("ratio", ahead)
        as_good = [x for x, (_, low, _) in ratios.items() if not low > 1]
        lead |= {"as_good": ", ".join(as_good), "n_texts": len(own[best])}
        rows.append(lead)
    return pd.DataFrame(rows)


def level_rows(leads: pd.DataFrame) -> pd.DataFrame:
    """The best row of each length and budget in a `lead_table`, and those that are as good.

    Columns `length`, `budget`, `method`, `group`.
    """
    names = leads.assign(method=[[x.best, *x.as_good.split(", ")] for x in leads.itertuples()])
    names = names.explode("method")
    names = names[names.method != ""][["length", "budget", "method"]]
    return names.assign(group=names.method.map(group_of)).reset_index(drop=True)


def lead_of(
    results: Mapping[int, Mapping[str, Evaluation]], first: str, second: str, budgets: Iterable[int]
) -> tuple[float, float, float]:
    """Perplexity of one group over another's, mean over the lengths and budgets that both have.

    The ratio's geometric mean, and its 95% interval over texts, paired: ratio, low, high.
    """
    gaps = []
    for length, budget in itertools.product(results, budgets):
        one, other = (results[length].get(f"{group}_{budget}") for group in (first, second))
        if one is not None and other is not None:
            gaps.append((one.nll - other.nll).double().mean(-1, keepdim=True))  # (B, 1)
    gap = torch.cat(gaps, dim=1)
    return ppl_ratio_ci(gap, torch.zeros_like(gap))


def cost_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Cost of each method and context length over the repeats of `lib.measure.speed.measure`.

    Median and quartiles of times and of the share of the machine's limit; the change of the medians
    against the first method, dense where there is one (`over_medians`); tokens held, MiB
    allocated and at peak, with their changes.
    """
    changing = ["ttft_s", "tpot_ms", "throughput", "attention_ms"]
    by = ["context", "method", "prefill"]
    cost = summarise(runs, by, [*changing, "limit_%"]).rename(columns={"n": "n_repeats"})
    first = cost[cost.method == runs.method.iloc[0]]
    for column in changing:
        change = 100 * (over_medians(cost, column, first, ["context"]) - 1)
        cost[[f"{column}_change_%{end}" for end in ("", "_q1", "_q3")]] = change
    held = ["cache_length", "cache_mib", "peak_mib"]
    cost = cost.merge(runs.groupby(by, sort=False)[held].first().reset_index(), on=by)
    for column in held:
        base = cost.groupby("context", sort=False)[column].transform("first")
        cost[f"{column}_change_%"] = 100 * (cost[column] / base.where(base > 0) - 1)
    return cost


def joined(tables: Mapping[int, pd.DataFrame], cost: pd.DataFrame) -> pd.DataFrame:
    """The quality tables of several lengths, one below the other, with the cost where measured."""
    table = pd.concat(part.assign(length=length) for length, part in tables.items())
    table = table.merge(
        cost.rename(columns={"context": "length"}), on=["length", "method"], how="left"
    )
    table.insert(0, "length", table.pop("length"))
    return table


def by_group(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with `group` and `budget`, and its perplexity as a ratio to that of the first row."""
    change, low, high = (table[f"ppl_change_{x}"] for x in ("%", "low", "high"))
    return split_names(table).assign(
        ratio=1 + change / 100,
        ratio_low=1 + low / 100,
        ratio_high=1 + high / 100,
    )


RULES = {
    "quality first": "lowest perplexity",
    "speed first": "most tokens/s within {share:.0%} of the lowest perplexity",
    "least memory": "smallest cache within {share:.0%} of the lowest perplexity",
    "endless streams": "lowest perplexity of what streams its prompt through a bounded cache",
}


def pareto_front(table: pd.DataFrame, *costs: str) -> pd.DataFrame:
    """Rows that no other row beats: none is as low in all of `costs` and lower in one of them."""
    values = table[list(costs)].to_numpy(dtype=float)  # (n, costs)
    no_worse = (values[:, None] <= values[None]).all(axis=-1)  # [i, j]: i is no worse than j
    better = (values[:, None] < values[None]).any(axis=-1)
    return table[~(no_worse & better).any(axis=0)].sort_values(costs[0])


def beaten(table: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Rows that cost more than one of no higher perplexity, quartiles apart."""
    ppl, low, high = (table[x].to_numpy(dtype=float) for x in ("ppl", f"{cost}_q1", f"{cost}_q3"))
    beats = (ppl[:, None] <= ppl[None]) & (high[:, None] < low[None])  # [i, j]: i beats j
    return table[beats.any(axis=0)].sort_values(cost)


def recommended(table: pd.DataFrame, share: float = 0.1) -> pd.DataFrame:
    """For each length the rows of a comparison that `RULES` choose, one for each goal.

    `table` has columns `length`, `method`, `ppl`, `throughput`, `cache_mib` and `streams`;
    `throughput` and `cache_mib` are missing where no speed was measured; `share` is what may be
    given up of the lowest perplexity for speed or memory. Streams are endless, so that only the
    longest length tells of them. A goal for which no row qualifies is left out.
    """
    require_share("share", share)
    chosen, longest = [], table.length.max()
    for length, part in table.groupby("length", sort=False):
        near = part[part.ppl <= (1 + share) * part.ppl.min()].dropna(subset="throughput")
        streamed = part[part.streams & (part.length == longest)]
        orders = [(part, "ppl", 1), (near, "throughput", -1), (near, "cache_mib", 1)]
        for goal, (rows, column, sign) in zip(RULES, [*orders, (streamed, "ppl", 1)], strict=True):
            if len(rows):
                row = rows.iloc[int(np.argmin(sign * rows[column]))]
                rule = RULES[goal].format(share=share)
                chosen.append({"length": length, "goal": goal, "rule": rule, **row.drop("length")})
    return pd.DataFrame(chosen)
