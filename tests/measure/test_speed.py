"""Speed over repeats, and its cost against the baseline."""

import pytest
import torch
from reference import cached_model

from lib import TOVA, StreamingLLM
from lib.cache.baseline import STATIC
from lib.measure.speed import measure


def test_speed():
    model = cached_model("llama_gqa", torch.float32)
    methods = {"baseline": None, "static": STATIC, "streaming_8": StreamingLLM(2, 6)}
    methods["tova_8"] = TOVA(8)
    given = {"new_tokens": 5, "repeats": 2, "buffers": {"tova_8": 2}, "watch_memory": True}
    runs = measure(model, methods, [10, 20], **given)
    assert runs.groupby(["context", "method", "repeat"]).size().tolist() == [1] * 16
    # tova with a buffer of two held 10, 8, 9, 10, 8 and 8, 9, 10, 8, 9 tokens
    held = {(10, "baseline"): 12, (20, "baseline"): 22, (10, "tova_8"): 9, (20, "tova_8"): 8.8}
    held |= {(10, "static"): 12, (20, "static"): 22}
    most = 4 * 2 * 2 * 2 * 8 / 2**20  # 4 bytes, keys and values, 2 layers, 2 heads of 8
    for row in runs.itertuples():
        assert row.cache_length == pytest.approx(held.get((row.context, row.method), 8))
        if row.method in ("baseline", "static"):
            assert row.cache_mib == pytest.approx(most * (row.context + 4))
        if row.method == "tova_8":  # wherever a run ends between two cuts; un-turned keys, too
            assert row.cache_mib == runs.cache_mib[runs.method == "tova_8"].iloc[0]
            assert most * 10 <= row.cache_mib <= 2 * most * 10
        assert min(row.ttft_s, row.tpot_ms, row.throughput) > 0
        assert 0 < row.attention_ms < row.tpot_ms
        assert row.prefill == ("streamed" if row.method == "streaming_8" else "dense")
    with pytest.raises(ValueError, match="new_tokens=1: allowed is an int >= 2"):
        measure(model, methods, [10], new_tokens=1)
