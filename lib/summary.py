"""What a comparison comes down to: the Pareto front, and which method to take for which goal."""

import numpy as np
import pandas as pd

from .compressors.base import require_share

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
