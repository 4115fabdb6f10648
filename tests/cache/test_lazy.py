"""Lazy eviction (`buffer`): token by token, and the same however the stream is cut in steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    FAMILIES,
    MORE_FAMILIES,
    assert_greedy,
    cached_model,
    distinct_ids,
    literal_scattered,
    literal_window,
    nll_of,
    own_generate,
    tiny_ids,
    tiny_model,
    windows,
)

from lib import (
    CompressedCache,
    FixSizeL2,
    L2Compress,
    RecentOnly,
    StreamingLLM,
    disable_streaming_llm,
    enable_streaming_llm,
    evaluate,
    generate,
)

some_tests = settings(max_examples=40, deadline=None)
sizes = {
    "family": st.sampled_from(FAMILIES),
    "start_size": st.integers(0, 4),
    "recent_size": st.integers(1, 10),
    "buffer": st.integers(0, 12),
    "positions": st.sampled_from(["in_cache", "original"]),
}


def held_at(t: int, budget: int, buffer: int) -> int:
    """Tokens held when the query at t comes."""
    return t if t <= budget + buffer else budget + (t - budget) % (buffer + 1)


@pytest.mark.parametrize(("start_size", "recent_size"), [(0, 1), (0, 6), (1, 1), (3, 5)])
@pytest.mark.parametrize("buffer", [0, 1, 4, 30])
def test_the_reference_is_the_definition(start_size, recent_size, buffer):
    budget = start_size + recent_size
    for t, seen in enumerate(windows(100, start_size, recent_size, buffer=buffer)):
        held = held_at(t, budget, buffer)
        window = range(t - held if held == t else t - held + start_size, t + 1)
        sinks = range(start_size if held < t else 0)
        assert seen == [(j, held - j) for j in sinks] + [(j, t - j) for j in window]


@some_tests
@given(**sizes, length=st.integers(2, 50), chunk_size=st.integers(1, 55))
def test_evaluate(family, start_size, recent_size, buffer, positions, length, chunk_size):
    model, ids = cached_model(family), tiny_ids(length)
    method = StreamingLLM(start_size, recent_size)
    result = evaluate(model, ids, method, chunk_size, positions=positions, buffer=buffer)
    expected = literal_window(model, ids, start_size, recent_size, positions, buffer)
    assert (result.nll - nll_of(expected, ids)).abs().max() < 5e-5
    assert result.cache_lengths == [held_at(length - 1, start_size + recent_size, buffer)] * 2


@some_tests
@given(**sizes, prompt=st.integers(1, 40), prefill_chunk=st.integers(1, 45))
def test_both_loops(family, start_size, recent_size, buffer, positions, prompt, prefill_chunk):
    model, ids = cached_model(family), tiny_ids(prompt)
    method = StreamingLLM(start_size, recent_size)
    cache = CompressedCache(model, method, buffer=buffer, positions=positions)
    new, logits = own_generate(model, ids, 20, cache)
    fed = torch.cat((ids, new[0, :-1]))
    expected = literal_window(model, fed, start_size, recent_size, positions, buffer)
    assert_greedy(expected, new[0], logits[0])
    options = {"positions": positions, "buffer": buffer, "prefill_chunk": prefill_chunk}
    assert torch.equal(generate(model, ids, method, 20, **options).tokens, new[0])
    held = held_at(prompt + 19, start_size + recent_size, buffer)
    assert cache.cached_lengths == [held, held]
    assert cache.evicted == prompt + 19 - held


@some_tests
@given(**sizes, pieces=st.lists(st.integers(1, 3) | st.integers(1, 25), min_size=1, max_size=12))
def test_plain_calls_in_pieces(family, start_size, recent_size, buffer, positions, pieces):
    model, ids = cached_model(family), tiny_ids(sum(pieces))
    method = StreamingLLM(start_size, recent_size)
    cache = CompressedCache(model, method, buffer=buffer, positions=positions)
    with torch.no_grad():
        parts = [model(x[None], past_key_values=cache).logits[0] for x in ids.split(pieces)]
    expected = literal_window(model, ids, start_size, recent_size, positions, buffer)
    assert (torch.cat(parts) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", MORE_FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_buffer_of_64(family, attention):
    own = {"sliding_window": 77} if family == "mistral_sliding" else {}
    model = cached_model(family, attn_implementation=attention, **own)
    ids = tiny_ids(90)  # the second cut comes late in the new tokens
    new, logits = own_generate(
        model, ids, 64, CompressedCache(model, StreamingLLM(3, 9), buffer=64)
    )
    expected = literal_window(model, torch.cat((ids, new[0, :-1])), 3, 9, buffer=64)
    assert_greedy(expected, new[0], logits[0])


@pytest.mark.parametrize("family", ["neox_25", "qwen3", "linear"])
@pytest.mark.parametrize("prompt", [2, 25])
def test_a_buffer_of_3_over_many_cuts(family, prompt):
    model, ids = cached_model(family, torch.float32), tiny_ids(prompt)
    new, logits = own_generate(
        model, ids, 120, CompressedCache(model, StreamingLLM(2, 5), buffer=3)
    )
    expected = literal_window(model, torch.cat((ids, new[0, :-1])), 2, 5, buffer=3)
    assert_greedy(expected, new[0], logits[0], 3e-4)


def test_recent_only():
    model, ids = cached_model("llama_gqa"), tiny_ids(60)
    nll = evaluate(model, ids, RecentOnly(7), 16, buffer=4).nll
    assert (nll - nll_of(literal_window(model, ids, 0, 7, buffer=4), ids)).abs().max() < 5e-5


@pytest.mark.parametrize("prompt", [5, 11, 30])  # below the budget, within the buffer, beyond
def test_dense_prefill(prompt):
    model, ids = cached_model("qwen2"), tiny_ids(prompt)
    cache = CompressedCache(model, StreamingLLM(3, 5), buffer=4, prefill="dense")
    new, logits = own_generate(model, ids, 40, cache)
    fed = torch.cat((ids, new[0, :-1]))
    expected = literal_window(model, fed, 3, 5, buffer=4, cut_from=prompt)
    assert_greedy(expected, new[0], logits[0])
    ours = generate(model, ids, StreamingLLM(3, 5), 40, buffer=4, prefill="dense")
    assert torch.equal(ours.tokens, new[0])


@pytest.mark.parametrize("buffer", [4, 9])
def test_every_order_of_small_steps(buffer):
    """A step of several tokens may cut or not, and the sinks must stand right for the next."""
    model, ids = cached_model("llama_gqa"), tiny_ids(1, 91)
    cache = CompressedCache(model, StreamingLLM(2, 5), buffer=buffer)
    with torch.no_grad():
        pieces = ids.split([20, 1, 2, 1, 3, 1, 1, 4, 1, 2, 2, 1, 7, *[1, 1, 1, 2, 1, 3] * 5], dim=1)
        parts = [model(piece, past_key_values=cache).logits[0] for piece in pieces]
    expected = literal_window(model, ids[0], 2, 5, buffer=buffer)
    assert (torch.cat(parts) - expected).abs().max() < 1e-4


def test_what_a_cache_tells():
    model, ids, cuts = cached_model("neox_25"), tiny_ids(1, 150), 0
    cache = CompressedCache(model, StreamingLLM(2, 5), buffer=3)
    with torch.no_grad():
        for t in range(150):
            held = held_at(t, 7, 3)
            cuts += held < held_at(t - 1, 7, 3)
            assert cache.cached_lengths == [held, held]
            assert (cache.evicted, cache.evictions) == (t - held, cuts)
            model(ids[:, t : t + 1], past_key_values=cache)
    assert cuts == 35


def test_a_config_is_enough_for_single_tokens():
    model, ids = tiny_model("llama"), tiny_ids(1, 100)
    cache = CompressedCache(model.config, StreamingLLM(2, 5), buffer=3)
    with torch.no_grad():
        rows = [model(token, past_key_values=cache).logits for token in ids.split(1, dim=1)]
    expected = literal_window(model, ids[0], 2, 5, buffer=3)
    assert (torch.cat(rows, dim=1)[0] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
def test_padded_rows_are_cut_each_at_its_time(family):
    model, lengths = cached_model(family), (20, 13, 8, 1)
    ids = tiny_ids(4, 20, seed=5)
    mask = (torch.arange(20) >= 20 - torch.tensor(lengths)[:, None]).long()
    cache = CompressedCache(model, StreamingLLM(2, 5), buffer=4)
    new, logits = own_generate(model, ids * mask, 100, cache, attention_mask=mask)
    for row, length in enumerate(lengths):
        fed = torch.cat((ids[row, -length:], new[row, :-1]))
        assert_greedy(literal_window(model, fed, 2, 5, buffer=4), new[row], logits[row])


@pytest.mark.parametrize("buffer", [0, 4])
@pytest.mark.parametrize("static", [False, True])
def test_positions_start_again_for_padded_rows_too(monkeypatch, buffer, static):
    monkeypatch.setattr("lib.cache.compressed.REBASE_EVERY", 8)
    model, lengths, ids = cached_model("neox_25"), (20, 9, 3), tiny_ids(3, 20, seed=5)
    mask = (torch.arange(20) >= 20 - torch.tensor(lengths)[:, None]).long()
    cache = CompressedCache(model, StreamingLLM(2, 5), buffer=buffer, static=static)
    new, logits = own_generate(model, ids * mask, 60, cache, attention_mask=mask)
    for row, length in enumerate(lengths):
        fed = torch.cat((ids[row, -length:], new[row, :-1]))
        expected = literal_window(model, fed, 2, 5, buffer=buffer)
        assert_greedy(expected, new[row], logits[row])


def test_a_chat_is_one_stream():
    model, stream = cached_model("qwen3"), tiny_ids(0)
    cache = CompressedCache(model, StreamingLLM(2, 5), buffer=4)
    for turn, length in enumerate((4, 20, 3)):
        stream = torch.cat((stream, tiny_ids(length, seed=turn)))
        new, logits = own_generate(model, stream, 11, cache)
        expected = literal_window(model, torch.cat((stream, new[0, :-1])), 2, 5, buffer=4)
        assert_greedy(expected, new[0], logits[0])
        stream = torch.cat((stream, new[0]))


def test_enabled_with_a_buffer():
    model, ids = tiny_model("llama_gqa"), tiny_ids(25)
    enable_streaming_llm(model, start_size=2, recent_size=5, buffer=4)
    new, logits = own_generate(model, ids, 30)
    disable_streaming_llm(model)
    expected = literal_window(model, torch.cat((ids, new[0, :-1])), 2, 5, buffer=4)
    assert_greedy(expected, new[0], logits[0])


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
@pytest.mark.parametrize("positions", ["in_cache", "original"])
@pytest.mark.parametrize("prompt", [4, 8, 15])
def test_norm_methods(family, positions, prompt):
    """`keep` is called once more than budget and buffer are held."""

    def keep(norms, layer):
        if layer == 0 or len(norms) <= 6 + 4:
            return range(len(norms))
        older = range(len(norms) - 3)
        return [*sorted(older, key=norms.__getitem__)[:3], *range(len(norms))[-3:]]

    model, ids = cached_model(family, vocab_size=200), distinct_ids(prompt, 200)
    method = FixSizeL2(6, 0.5, skip_layers=(0,))
    cache = CompressedCache(model, method, buffer=4, positions=positions)
    new, logits = own_generate(model, ids, 25, cache)
    fed = torch.cat((ids, new[0, :-1]))
    expected = literal_scattered(model, fed, keep, positions, cut_from=prompt)
    assert_greedy(expected, new[0], logits[0])
    ours = generate(model, ids, method, 25, positions=positions, buffer=4)
    assert torch.equal(ours.tokens, new[0])


def test_no_buffer_without_a_fixed_budget():
    model, ids = cached_model("llama"), tiny_ids(5)
    with pytest.raises(ValueError, match="buffer"):
        CompressedCache(model, L2Compress(0.5, 8), buffer=1)
    for loop in (generate, evaluate):
        with pytest.raises(ValueError, match="buffer"):
            loop(model, ids, L2Compress(0.5, 8), buffer=1)
