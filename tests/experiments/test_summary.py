"""The Pareto front and the recommended settings, against their rules spelled out."""

from math import nan

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.experiments.method_comparison import pareto_front, recommended

costs = st.integers(0, 6)


@given(st.lists(st.tuples(costs, costs), min_size=1, max_size=30))
def test_pareto_front(points):
    table = pd.DataFrame(points, columns=["ppl", "tpot_ms"])
    front = pareto_front(table, "ppl", "tpot_ms")
    expected = [
        (ppl, time)
        for ppl, time in points
        if not any(a <= ppl and b <= time and (a < ppl or b < time) for a, b in points)
    ]
    assert sorted(zip(front.ppl, front.tpot_ms, strict=True)) == sorted(expected)
    assert front.ppl.is_monotonic_increasing


TABLE = pd.DataFrame(
    [
        (100, "baseline", 10.0, 50.0, 8.0, False),
        (100, "best", 9.5, 40.0, 4.0, False),
        (100, "fast", 10.4, 90.0, 3.0, True),
        (100, "small", 10.45, 60.0, 1.0, False),
        (100, "fastest", 10.6, 95.0, 0.5, True),
        (900, "baseline", 40.0, 20.0, 80.0, False),
        (900, "best", 12.0, 40.0, 4.0, False),
        (900, "fast", 14.0, 90.0, 3.0, True),
        (900, "untimed", 11.5, nan, nan, True),
    ],
    columns=["length", "method", "ppl", "throughput", "cache_mib", "streams"],
)


def test_recommended():
    """Within 10% of 9.5 is 10.45, of 11.5 12.65; only the longest texts tell of streams."""
    table = recommended(TABLE, 0.1)
    chosen = {(row.length, row.goal): row.method for row in table.itertuples()}
    assert chosen == {
        (100, "quality first"): "best",
        (100, "speed first"): "fast",
        (100, "least memory"): "small",
        (900, "quality first"): "untimed",
        (900, "speed first"): "best",
        (900, "least memory"): "best",
        (900, "endless streams"): "untimed",
    }
    assert table.rule[1] == "most tokens/s within 10% of the lowest perplexity"
    loose = recommended(TABLE, 0.12).set_index(["length", "goal"])
    assert loose.method[100, "speed first"] == loose.method[100, "least memory"] == "fastest"
    with pytest.raises(ValueError, match="share=2: allowed is a number from 0 to 1"):
        recommended(TABLE, 2)
