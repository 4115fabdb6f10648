"""The generation loop against the definitions."""

import gc
import weakref

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
    tiny_ids,
)
from transformers import DynamicCache

from lib import (
    H2O,
    CompressedCache,
    FixSizeL2,
    L2Compress,
    RecentOnly,
    StreamingLLM,
    evaluate,
    generate,
)
from lib.cache.attention import NAME
from lib.cache.baseline import STATIC
from lib.measure.attention_maps import with_attention

some_tests = settings(max_examples=30, deadline=None)
all_methods = pytest.mark.parametrize(
    "method",
    [
        None,
        StreamingLLM(2, 6),
        RecentOnly(8),
        FixSizeL2(8, skip_layers=(0,)),
        L2Compress(0.5, 8, (0,)),
    ],
    ids=lambda method: "baseline" if method is None else method.name,
)


def assert_greedy(logits: torch.Tensor, prompt: int, new: torch.Tensor):
    """Every new token is the likeliest by the literal logits (T, V) of prompt and new tokens."""
    logits = logits[prompt - 1 : -1]
    chosen = logits.gather(1, new[:, None])[:, 0]
    assert (logits.max(-1).values - chosen).max() < 1e-4


@some_tests
@given(
    family=st.sampled_from(FAMILIES),
    start_size=st.integers(0, 4),
    recent_size=st.integers(1, 12),
    prompt=st.integers(1, 25),
    prefill_chunk=st.integers(1, 30),
    positions=st.sampled_from(["in_cache", "original"]),
)
def test_streaming_prompts_are_strict(
    family, start_size, recent_size, prompt, prefill_chunk, positions
):
    model, ids, budget = cached_model(family), tiny_ids(prompt), start_size + recent_size
    method = StreamingLLM(start_size, recent_size)
    result = generate(model, ids, method, 12, positions, prefill_chunk=prefill_chunk)
    fed = torch.cat((ids, result.tokens))
    logits = literal_window(model, fed, start_size, recent_size, positions)
    assert_greedy(logits, prompt, result.tokens)
    assert result.cache_lengths == [min(prompt + step, budget) for step in range(12)]
    assert result.evictions == max(0, prompt + 11 - budget)  # one by one, whatever the chunk


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", ["in_cache", "original"])
def test_a_prompt_in_chunks_is_the_prompt_token_by_token(family, positions):
    model, ids, method = cached_model(family), tiny_ids(40), StreamingLLM(3, 9)
    one_by_one = generate(model, ids, method, 30, positions, prefill_chunk=1)
    # every token after the first 12 pushes one out; 40 of the prompt and 29 new ones are fed
    assert one_by_one.evictions == 40 + 29 - 12
    for prefill_chunk in (7, 12, 40, 512):
        result = generate(model, ids, method, 30, positions, prefill_chunk=prefill_chunk)
        assert torch.equal(result.tokens, one_by_one.tokens)
        assert result.evictions == one_by_one.evictions


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("positions", ["in_cache", "original"])
def test_norm_methods_see_the_whole_prompt(family, positions):
    def keep(norms, layer):
        if layer == 0 or len(norms) <= 6:
            return range(len(norms))
        older = norms[:-3]
        return [
            *sorted(range(len(older)), key=older.__getitem__)[:3],
            *range(len(older), len(norms)),
        ]

    model, ids = cached_model(family, vocab_size=200), distinct_ids(15, 200)
    method = FixSizeL2(6, 0.5, skip_layers=(0,))
    result = generate(model, ids, method, 12, positions, prefill_chunk=8)
    fed = torch.cat((ids, result.tokens))
    logits = literal_scattered(model, fed, keep, positions, cut_from=15)
    assert_greedy(logits, 15, result.tokens)
    assert result.cache_lengths == [15 + step for step in range(12)]  # layer 0 is never cut
    assert result.evictions == 12


@pytest.mark.parametrize("family", FAMILIES)
def test_baseline_is_the_models_own_generate(family):
    model, ids = cached_model(family), tiny_ids(2, 11)
    result = generate(model, ids, None, 20)
    own = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0
    )
    assert torch.equal(result.tokens, own[:, 11:])
    assert result.cache_lengths == [11 + step for step in range(20)]
    assert result.evictions == 0


@all_methods
@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
def test_rows_of_a_batch_are_alone(family, method):
    model, ids = cached_model(family), tiny_ids(2, 20, seed=3)
    both = generate(model, ids, method, 15).tokens
    scores = evaluate(model, ids, method, 4).nll
    assert both.shape == (2, 15)
    assert not torch.equal(both[0], both[1])
    for row in range(2):
        assert torch.equal(generate(model, ids[row], method, 15).tokens, both[row])
        alone = evaluate(model, ids[row], method, 4).nll
        assert (alone - scores[row]).abs().max() < 5e-5


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa", "qwen3"])
def test_cache_bytes(family):
    model, ids = cached_model(family, torch.float32), tiny_ids(400)
    # 4 bytes, 2 layers, keys and values; key heads and their size
    heads, size = {"neox_25": (2, 16), "llama_gqa": (2, 8), "qwen3": (2, 16)}[family]
    token = 4 * 2 * 2 * heads * size
    assert generate(model, ids, None, 5).cache_bytes == token * 404
    original = generate(model, ids, FixSizeL2(8, skip_layers=()), 5, "original")
    assert original.cache_bytes == token * 8
    # a window's buffer may have room to spare, but not for the whole text
    streaming = generate(model, ids, StreamingLLM(2, 6), 5, prefill_chunk=16)
    assert token * 8 <= streaming.cache_bytes < token * 200


def test_sampling():
    model, ids = cached_model("neox_25"), tiny_ids(5)
    greedy = generate(model, ids, None, 30).tokens
    runs = [generate(model, ids, None, 30, temperature=1.0, seed=s).tokens for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], greedy)
    assert torch.equal(generate(model, ids, None, 30, temperature=1e-6).tokens, greedy)


def test_times_add_up():
    result = generate(cached_model("neox_25"), tiny_ids(5), StreamingLLM(1, 3), 6)
    result.ttft, result.step_times = 0.5, [0.1, 0.6, 0.1, 0.1, 0.1]
    assert result.tpot == pytest.approx(0.2)
    assert result.throughput == pytest.approx(5 / 1.0)
    assert len(generate(cached_model("neox_25"), tiny_ids(5), None, 6).step_times) == 5


@all_methods
def test_the_attention_is_restored(method):
    model = cached_model("llama")
    before = model.config._attn_implementation
    generate(model, tiny_ids(5), method, 2)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("ids", "arguments", "told"),
    [
        (tiny_ids(5), {"max_new_tokens": 0}, "max_new_tokens=0: allowed is an int >= 1"),
        (tiny_ids(5), {"max_new_tokens": True}, "max_new_tokens=True"),
        (tiny_ids(5), {"prefill_chunk": 0}, "prefill_chunk=0"),
        (tiny_ids(5), {"temperature": -1.0}, "temperature=-1.0"),
        (tiny_ids(5), {"positions": "text"}, "positions='text'"),
        (tiny_ids(0), {}, r"input_ids.shape=\(0,\)"),
        (tiny_ids(1, 1, 2), {}, r"input_ids.shape=\(1, 1, 2\)"),
    ],
)
def test_generate_refuses(ids, arguments, told):
    with pytest.raises(ValueError, match=told):
        generate(cached_model("neox_25"), ids, StreamingLLM(1, 2), **arguments)


@pytest.mark.parametrize("method", [StreamingLLM(2, 6), FixSizeL2(8, skip_layers=())])
def test_a_cache_counts_what_it_saw(method):
    model = cached_model("neox_25")
    cache = CompressedCache(model, method)
    for number, (seen, held) in enumerate(((5, 5), (10, 8), (15, 8))):
        model(input_ids=tiny_ids(1, 5, seed=number), past_key_values=cache)
        assert cache.get_seq_length() == seen
        assert cache.cached_lengths == [held, held]
        assert cache.evicted == max(0, seen - 8)
    assert cache.evictions == (7 if method.window else 2)
    with pytest.raises(ValueError, match="n=0: allowed is an int >= 1"):
        cache.step(0)


@pytest.mark.parametrize("method", [StreamingLLM(2, 6), FixSizeL2(8, skip_layers=()), H2O(8, 2)])
def test_a_dropped_cache_is_freed_at_once(method):
    """Without the garbage collector: no cycle keeps keys and values in memory."""
    model = cached_model("neox_25")
    gc.collect()
    gc.disable()
    try:
        cache = CompressedCache(model, method)
        with torch.no_grad():
            for number in (5, 1, 5):
                model(input_ids=tiny_ids(1, number), past_key_values=cache)
        buffers = [weakref.ref(x) for layer in cache.layers for x in layer.tensors().values()]
        assert all(buffer() is not None for buffer in buffers)
        del cache
        assert all(buffer() is None for buffer in buffers)
    finally:
        gc.enable()


def test_the_attention_is_only_for_our_steps():
    model = with_attention(cached_model("neox_25"), NAME)
    with pytest.raises(ValueError, match="only for steps with a CompressedCache"):
        model(input_ids=tiny_ids(1, 5), past_key_values=DynamicCache())


@pytest.mark.parametrize("method", [StreamingLLM(2, 6), FixSizeL2(8, skip_layers=())])
def test_a_cache_can_be_reset(method):
    model, ids = cached_model("neox_25"), tiny_ids(1, 30)
    cache = CompressedCache(model, method)
    logits = []
    for _ in range(2):
        rows = [model(input_ids=part, past_key_values=cache).logits for part in ids.split(3, dim=1)]
        logits.append(torch.cat(rows, dim=1))
        assert cache.cached_lengths == [8, 8]
        cache.reset()
        assert cache.cached_lengths == [0, 0]
    assert torch.equal(*logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_static_cache_writes_what_a_dynamic_one_does(family):
    model, prompt = cached_model(family), tiny_ids(2, 15)
    static, dynamic = (generate(model, prompt, method, 12) for method in (STATIC, None))
    assert torch.equal(static.tokens, dynamic.tokens)
    assert static.cache_lengths == dynamic.cache_lengths
    assert static.mean_length == dynamic.mean_length
    assert static.cache_bytes == dynamic.cache_bytes  # room for no more than what is fed
    for wrong in ("dynamic", ""):
        with pytest.raises(ValueError, match="compressor="):
            generate(model, prompt, wrong, 12)
    told = "compressor='static': allowed is None or a Compressor; a static cache needs its room"
    with pytest.raises(ValueError, match=told):
        evaluate(model, prompt, STATIC)
    with pytest.raises(ValueError, match="compile=True"):
        generate(model, prompt, STATIC, 12, compile=True)
