"""Chunked evaluation against the token-by-token definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    FAMILIES,
    cached_model,
    distinct_ids,
    literal_scattered,
    literal_window,
    nll_of,
    tiny_ids,
)
from torch.nn.functional import cross_entropy

from lib import FixSizeL2, L2Compress, RecentOnly, StreamingLLM, evaluate, evaluate_recompute
from lib.cache.compressed import CompressedCache

# transformers computes angles and RMS norms in float32 in float64 models too
ATOL = {torch.float64: 5e-5, torch.float32: 1e-4}
some_tests = settings(max_examples=60, deadline=None)


def assert_nll(nll: torch.Tensor, expected: torch.Tensor, atol: float):
    assert nll.shape == expected.shape
    assert (nll.double() - expected).abs().max().item() < atol


@some_tests
@given(
    family=st.sampled_from(FAMILIES),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    start_size=st.integers(0, 5),
    recent_size=st.integers(1, 20),
    length=st.integers(2, 45),
    chunk_size=st.integers(1, 50),
    batch_size=st.integers(1, 2),
    positions=st.sampled_from(["in_cache", "original"]),
)
def test_streaming(
    family, dtype, start_size, recent_size, length, chunk_size, batch_size, positions
):
    model = cached_model(family, dtype)
    ids = tiny_ids(batch_size, length)
    compressor = StreamingLLM(start_size, recent_size)
    result = evaluate(model, ids, compressor, chunk_size, positions)
    for row in range(batch_size):
        logits = literal_window(model, ids[row], start_size, recent_size, positions)
        assert_nll(result.nll[row], nll_of(logits, ids[row]), ATOL[dtype])
        best = logits[:-1].topk(2, dim=-1)
        clear = best.values[:, 0] - best.values[:, 1] > 1e-3  # else rounding decides
        correct = best.indices[:, 0] == ids[row, 1:]
        assert torch.equal(result.correct[row][clear], correct[clear])
    held = min(length - 1, start_size + recent_size)
    assert result.cache_lengths == [held, held]


@some_tests
@given(
    family=st.sampled_from(FAMILIES),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    window_size=st.none() | st.integers(1, 24),
    length=st.integers(2, 45),
    chunk_size=st.integers(1, 50),
    positions=st.sampled_from(["in_cache", "original"]),
)
def test_window_and_dense(family, dtype, window_size, length, chunk_size, positions):
    model = cached_model(family, dtype)
    ids = tiny_ids(length, seed=1)
    compressor = None if window_size is None else RecentOnly(window_size)
    result = evaluate(model, ids, compressor, chunk_size, positions)
    logits = literal_window(model, ids, 0, window_size, positions)
    assert_nll(result.nll, nll_of(logits, ids), ATOL[dtype])
    held = length - 1 if window_size is None else min(length - 1, window_size)
    assert result.cache_lengths == [held, held]


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_matter(family):
    """The two ways to count differ by far more than the tolerance, with sinks and only there."""
    model, ids = cached_model(family), tiny_ids(60)
    two = [nll_of(literal_window(model, ids, 3, 9, p), ids) for p in ("in_cache", "original")]
    assert (two[0] - two[1])[:12].abs().max() == 0
    assert (two[0] - two[1])[12:].abs().mean() > 0.1
    two = [nll_of(literal_window(model, ids, 0, 12, p), ids) for p in ("in_cache", "original")]
    assert torch.equal(*two)


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
@pytest.mark.parametrize("positions", ["in_cache", "original"])
def test_the_chunk_does_not_matter(family, positions):
    model, ids = cached_model(family, torch.float32), tiny_ids(2, 200)
    method = StreamingLLM(4, 28)
    one_by_one = evaluate(model, ids, method, 1, positions).nll.double()
    for chunk_size in (7, 32, 33, 128, 512):
        assert_nll(evaluate(model, ids, method, chunk_size, positions).nll, one_by_one, 1e-4)


def lowest(norms: list[float], count: int) -> list[int]:
    return sorted(range(len(norms)), key=norms.__getitem__)[:count]


@some_tests
@given(
    family=st.sampled_from(FAMILIES),
    size=st.integers(1, 15),
    # eighths are exact, so that the shares have no rounding of their own
    eighths=st.integers(0, 8),
    high=st.booleans(),
    skip_layers=st.sampled_from([(), (0,), (1,)]),
    positions=st.sampled_from(["in_cache", "original"]),
)
def test_fix_size_l2_token_by_token(family, size, eighths, high, skip_layers, positions):
    def keep(norms, layer):
        if layer in skip_layers or len(norms) <= size:
            return range(len(norms))
        recent = size * eighths // 8
        older = norms[: len(norms) - recent]
        chosen = lowest([-x for x in older] if high else older, size - recent)
        return [*chosen, *range(len(older), len(norms))]

    model, ids = cached_model(family), distinct_ids(30, seed=2)
    strategy = "keep_high" if high else "keep_low"
    method = FixSizeL2(size, eighths / 8, strategy, skip_layers)
    result = evaluate(model, ids, method, 1, positions)
    expected = literal_scattered(model, ids, keep, positions)
    assert_nll(result.nll, nll_of(expected, ids), 5e-5)
    assert result.cache_lengths == [29 if layer in skip_layers else size for layer in (0, 1)]


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    prune_after=st.integers(0, 20),
    eighths=st.integers(1, 8),
    skip_layers=st.sampled_from([(), (0,)]),
    positions=st.sampled_from(["in_cache", "original"]),
)
def test_l2_compress_token_by_token(family, prune_after, eighths, skip_layers, positions):
    def keep(norms, layer):
        if layer in skip_layers or len(norms) <= prune_after:
            return range(len(norms))
        return lowest(norms, -(-len(norms) * eighths // 8))  # rounded up

    model, ids = cached_model(family), distinct_ids(30, seed=3)
    result = evaluate(model, ids, L2Compress(eighths / 8, prune_after, skip_layers), 1, positions)
    expected = literal_scattered(model, ids, keep, positions)
    assert_nll(result.nll, nll_of(expected, ids), 5e-5)


METHODS = [StreamingLLM(3, 20), RecentOnly(17), FixSizeL2(20, skip_layers=())]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("chunk_size", [1, 5])
def test_starting_positions_again_changes_nothing(monkeypatch, method, chunk_size):
    model = cached_model("neox_50", torch.float32, vocab_size=400)
    ids = distinct_ids(300, 400)
    before = evaluate(model, ids, method, chunk_size).nll.double()
    largest = []
    step = CompressedCache.step

    def noted(self, *args):
        kwargs = step(self, *args)
        largest.append(kwargs["position_ids"].max().item())
        return kwargs

    monkeypatch.setattr(CompressedCache, "step", noted)
    monkeypatch.setattr("lib.cache.compressed.REBASE_EVERY", 8)
    after = evaluate(model, ids, method, chunk_size).nll
    assert max(largest) < method.budget + 8 + chunk_size
    assert_nll(after, before, 1e-4)


def test_a_text_longer_than_the_bound_on_positions(monkeypatch):
    """Beyond `REBASE_EVERY` as it ships, against positions that were never started again."""
    model, ids = cached_model("neox_25"), tiny_ids(5000)
    result = evaluate(model, ids, StreamingLLM(4, 28), 512).nll
    monkeypatch.setattr("lib.cache.compressed.REBASE_EVERY", 10**9)
    assert_nll(result, evaluate(model, ids, StreamingLLM(4, 28), 512).nll.double(), 2e-4)


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
@pytest.mark.parametrize("buffer", [0, 4])
@pytest.mark.parametrize("sizes", [[1] * 30, [7, 1, 16, 1, 5]], ids=["single", "several"])
def test_token_five_million(family, buffer, sizes):
    """As far along as the counters say, the same window has the same logits."""
    model, ids = cached_model(family, torch.float32), tiny_ids(1, 70)
    logits = []
    for jump in (0, 5_000_000):  # a multiple of buffer + 1
        cache = CompressedCache(model, StreamingLLM(3, 13), buffer)
        model(input_ids=ids[:, :40], past_key_values=cache)
        cache.seen += jump
        if jump:  # positions too: the window's keys are turned there, as if they had come so late
            shift = 1000
            used = slice(cache.store.first + 3, cache.store.first + cache.cached_lengths[0])
            for layer in cache.layers:
                layer.rebase(-shift, used)
            cache.position += shift
            cache.store.stale = True
        at, rows = 40, []
        for n in sizes:
            part = ids[:, at : at + n]
            rows.append(model(input_ids=part, past_key_values=cache).logits)
            at += n
        assert cache.get_seq_length() == at + jump
        assert cache.evicted == at + jump - cache.cached_lengths[0]
        assert cache.position < 1024 + 16 + buffer + 16  # positions began again
        logits.append(torch.cat(rows, dim=1))
    assert (logits[0] - logits[1]).abs().max().item() < 5e-4  # of float32 angles


@pytest.mark.parametrize("start_size", [0, 3])
@pytest.mark.parametrize("family", ["neox_25", "qwen3"])
def test_recompute(family, start_size):
    model, ids, context = cached_model(family), tiny_ids(50), 10
    targets = torch.tensor([10, 11, 30, 49, 17])
    result = evaluate_recompute(model, ids, context, targets, start_size, batch_size=2)
    expected = []
    for target in targets.tolist():
        recent = ids[target - (context - start_size) : target]
        window = torch.cat((ids[:start_size], recent))
        with torch.no_grad():
            logits = model(input_ids=window[None], use_cache=False).logits[0, -1]
        expected.append(cross_entropy(logits, ids[target]))
    assert_nll(result, torch.stack(expected), 5e-5)


def test_recompute_is_dense_attention_while_the_text_fits():
    model, ids = cached_model("llama"), tiny_ids(20)
    dense = nll_of(literal_window(model, ids), ids)
    assert_nll(evaluate_recompute(model, ids, 19, torch.tensor([19])), dense[-1:], 5e-5)


@pytest.mark.parametrize(
    ("ids", "arguments", "told"),
    [
        (tiny_ids(1), {}, r"input_ids.shape=\(1,\)"),
        (tiny_ids(1, 1, 5), {}, r"input_ids.shape=\(1, 1, 5\)"),
        (tiny_ids(5), {"chunk_size": 0}, "chunk_size=0: allowed is an int >= 1"),
        (tiny_ids(5), {"chunk_size": 2.0}, "chunk_size=2.0"),
        (tiny_ids(5), {"positions": "in-cache"}, "positions='in-cache': allowed is one of"),
    ],
)
def test_evaluate_refuses(ids, arguments, told):
    with pytest.raises(ValueError, match=told):
        evaluate(cached_model("neox_25"), ids, StreamingLLM(1, 2), **arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((0, torch.tensor([3])), "context=0"),
        ((4, torch.tensor([3])), r"targets=\[3\]: allowed is indices in 4..9"),
        ((4, torch.tensor([10])), r"targets=\[10\]"),
        ((4, torch.tensor([], dtype=torch.long)), r"targets=\[\]"),
        ((4, torch.tensor([5]), 4), "start_size=4: allowed is less than context=4"),
    ],
)
def test_recompute_refuses(arguments, told):
    with pytest.raises(ValueError, match=told):
        evaluate_recompute(cached_model("neox_25"), tiny_ids(10), *arguments)
