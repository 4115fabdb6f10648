"""The speed notebook's figures."""

import pandas as pd

from lib.experiments.speed_plots import PARTS, speed_panels, step_parts


def test_a_panel_for_each_cache_and_its_bars_stand_on_one_another():
    rows = [(name, n, *range(1, 4)) for name in ("baseline", "static_cache") for n in (8, 16)]
    fig = step_parts(pd.DataFrame(rows, columns=["method", "context", *PARTS]))
    assert [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes] == [
        "dense, DynamicCache",
        "dense, StaticCache",
    ]
    for ax in fig.axes:
        tops = [bar.get_y() + bar.get_height() for bar in ax.patches]
        assert tops == [1, 1, 3, 3, 6, 6]


def test_every_row_has_a_line_in_every_panel():
    names = ["baseline", "static_cache", "streaming_8"]
    table = pd.DataFrame([(n, name) for n in (8, 16) for name in names])
    table.columns = ["context", "method"]
    for column in ("ttft_s", "tpot_ms", "throughput", "cache_mib"):
        table[column] = 1.0
    fig = speed_panels(table)
    assert all(len(ax.lines) == 3 for ax in fig.axes)
    (legend,) = fig.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["dense", "dense, StaticCache", "sinks + window 8"]
