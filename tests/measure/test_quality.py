"""All methods on the same texts: results, tables, and that they repeat."""

import math

import pandas as pd
import pytest
import torch
from reference import cached_model, tiny_ids

from lib import FixSizeL2, evaluate
from lib.compressors import ROWS
from lib.measure.quality import first_tokens, quality, quality_table
from lib.measure.rows import rows_of
from lib.measure.stats import mean_ci


def test_quality_table():
    model, texts = cached_model("neox_25"), tiny_ids(6, 40)
    methods = rows_of(["streaming", "streaming_lazy", "fix_l2_low"], [8, 12], start_size=2)
    groups = ["recent_only", "streaming", "streaming_lazy", "fix_l2_low"]
    assert list(methods) == ["baseline", *(f"{group}_{n}" for group in groups for n in (8, 12))]
    results = quality(model, texts, methods, chunk_size=4)
    table = quality_table(results).set_index("method")
    base = evaluate(model, texts)
    for name, method in methods.items():
        row = table.loc[name]
        buffer = 3 if name.startswith("streaming_lazy") else 0
        own = evaluate(model, texts, method, 4, buffer=buffer)
        assert row.ppl == pytest.approx(own.ppl, rel=1e-4)
        assert row["ppl_change_%"] == pytest.approx(100 * (own.ppl / base.ppl - 1), abs=0.02)
        assert row["accuracy_%"] == pytest.approx(100 * own.accuracy)
        gain = 100 * (own.accuracy / base.accuracy - 1)
        assert row["accuracy_change_%"] == pytest.approx(gain, abs=1e-3)
        assert row.n_texts == 6
        assert row.ppl_low <= row.ppl <= row.ppl_high
        if method is not None:
            assert row.ppl_change_low < row["ppl_change_%"] < row.ppl_change_high
    assert table.loc["baseline", "ppl_change_low"] == 0
    # paired by text: with intervals as `mean_ci` has them for the texts' own differences
    gap = (results["streaming_8"].nll - base.nll).double().mean(-1)
    expected = [100 * (math.exp(x) - 1) for x in mean_ci(gap.numpy())]
    columns = ["ppl_change_%", "ppl_change_low", "ppl_change_high"]
    assert table.loc["streaming_8", columns].tolist() == pytest.approx(expected)


def test_the_first_tokens_of_a_text_are_a_text():
    model, texts = cached_model("llama_gqa"), tiny_ids(2, 40)
    methods = rows_of(["streaming_lazy", "fix_l2_high", "tova", "l2_ratio_0.5"], [8, 20])
    long = quality(model, texts, methods, chunk_size=4)
    for length in (13, 20, 21, 40):
        fitting = {n: m for n, m in methods.items() if "20" not in n or length > 20}
        own = quality(model, texts[:, :length], fitting, chunk_size=4)
        cut = first_tokens(long, length)
        assert list(cut) == list(own)
        for name, result in own.items():
            torch.testing.assert_close(cut[name].nll, result.nll)
            assert torch.equal(cut[name].correct, result.correct)


def test_quality_twice_is_the_same():
    model, texts = cached_model("neox_25", torch.float32), tiny_ids(2, 60)
    names = [name for name in ROWS if not name.startswith("kvpress")]
    tables = [
        quality_table(quality(model, texts, rows_of(names, [16], 2, seed=7), chunk_size=4))
        for _ in range(2)
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    other = quality_table(quality(model, texts, rows_of(names, [16], 2, seed=8), chunk_size=4))
    differ = tables[0].ppl != other.ppl
    assert tables[0].method[differ].tolist() == ["fix_l2_random_16", "random_16"]


def test_each_text_of_a_random_row_has_a_seed_of_its_own():
    model, texts = cached_model("neox_25"), tiny_ids(3, 60)
    together = evaluate(model, texts, FixSizeL2(16, 0.2, "random", (), seed=5), chunk_size=4)
    for row, text in enumerate(texts):
        alone = evaluate(model, text, FixSizeL2(16, 0.2, "random", (), 5 + row), chunk_size=4)
        torch.testing.assert_close(together.nll[row], alone.nll)


def test_what_random_keeps_does_not_hang_on_the_keys():
    """With other weights the same tokens stay at each cut, and not the same places each time."""
    kept = []
    for family in ("neox_25", "qwen3"):
        cuts, rule = [], FixSizeL2(16, 0.2, "random", ())
        choose = rule.choose
        rule.choose = lambda held, choose=choose, cuts=cuts: cuts.append(choose(held)) or cuts[-1]
        evaluate(cached_model(family), tiny_ids(1, 60), rule, chunk_size=4)
        kept.append([cut[0, 0].tolist() for cut in cuts])
    assert kept[0] == kept[1]
    assert len({tuple(cut) for cut in kept[0]}) > len(kept[0]) // 2


def test_a_ratio_that_cannot_stay_within_its_budget_is_refused():
    model, texts = cached_model("neox_25"), tiny_ids(2, 30)
    rows = rows_of(["l2_ratio_0.8"], [16])
    with pytest.raises(ValueError, match="chunk_size=5: allowed is at most 4 for l2_ratio_0.8_16"):
        quality(model, texts, rows, chunk_size=5)
    quality(model, texts, rows_of(["l2_ratio_0.5"], [16]), chunk_size=16)
