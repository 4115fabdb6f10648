"""The parts of a decoding step: that they add up, and that timing changes nothing."""

from statistics import median

import pytest
import torch
from reference import FAMILIES, cached_model, tiny_ids

from lib import TOVA, CompressedCache, FixSizeL2, L2Compress, RecentOnly, StreamingLLM, generate
from lib.cache.baseline import STATIC, cache_bytes, held_lengths
from lib.measure import breakdown as breakdown_module
from lib.measure.breakdown import beside_dense, breakdown, cut_cost, filled_cache, timed_step
from lib.measure.limits import decoding_work

METHODS = {
    "baseline": None,
    "streaming_8": StreamingLLM(2, 6),
    "recent_only_8": RecentOnly(8),
    "fix_size_l2_8": FixSizeL2(8, skip_layers=(0,)),
    "l2_compress": L2Compress(0.5, 8, (0,)),
}
all_methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
PARTS = ["attention_ms", "bookkeeping_ms", "rest_ms"]


def test_parts_add_up():
    model = cached_model("llama_gqa", torch.float32)
    runs = breakdown(model, METHODS, [5, 20], steps=4, repeats=2, warmup=1)
    assert list(runs.columns) == ["method", "context", "repeat", "total_ms", *PARTS]
    assert len(runs) == len(runs.groupby(["method", "context", "repeat"])) == len(METHODS) * 2 * 2
    assert (runs[PARTS].sum(axis=1) - runs.total_ms).abs().max() < 1e-9
    assert (runs[["total_ms", "attention_ms", "bookkeeping_ms"]] > 0).all(axis=None)


@pytest.mark.parametrize("buffer", [2, 5])
def test_a_cut_is_told_from_the_steps_between(buffer, monkeypatch):
    """On a clock that ticks once for each token a cache holds: a step takes what it leaves held."""
    model, caches = cached_model("llama_gqa", torch.float32), []
    made = breakdown_module.make_cache
    monkeypatch.setattr(
        breakdown_module, "make_cache", lambda *args: caches.append(made(*args)) or caches[-1]
    )
    clock = [0.0]

    def tick(device):
        clock[0] += max(caches[-1].cached_lengths) / 1000
        return clock[0]

    monkeypatch.setattr(breakdown_module, "now", tick)
    methods = {"l2": FixSizeL2(8, skip_layers=()), "tova": TOVA(8)}
    costs = cut_cost(model, methods, buffer, repeats=2)
    assert costs[["repeat", "method"]].values.tolist() == [[r, m] for r in (0, 1) for m in methods]
    held = range(9, 9 + buffer)  # after the steps between: the cut comes back to the budget of 8
    assert costs.step_ms.tolist() == pytest.approx([median(held)] * 4)
    assert costs.cut_ms.tolist() == pytest.approx([8 - median(held)] * 4)
    assert costs["cut_%"].tolist() == pytest.approx([100 * (8 - median(held)) / sum(held)] * 4)
    with pytest.raises(ValueError, match="one that cuts once in"):
        cut_cost(model, {"never": FixSizeL2(8, skip_layers=(0, 1))}, buffer)


@pytest.mark.parametrize("buffer", [0, 3])
def test_a_step_beside_a_dynamic_cache_that_holds_as_many(buffer):
    model, calls = cached_model("llama_gqa", torch.float32), []

    def note(module, args, kwargs):
        cache = kwargs["past_key_values"]
        calls.append((isinstance(cache, CompressedCache), max(held_lengths(cache))))

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    contexts, sizes = [5, 8, 40], {"steps": 5, "repeats": 2}
    table = beside_dense(model, {"a": StreamingLLM(2, 6)}, contexts, {"a": buffer}, **sizes)
    hook.remove()
    rows = [(length, "a", repeat) for length in contexts for repeat in (0, 1)]
    assert list(table[["context", "method", "repeat"]].itertuples(index=False)) == rows
    assert (table[["step_ms", "dense_ms"]] > 0).all(axis=None)
    assert len(calls) == len(contexts) * (2 + 1) * 5 * 2  # a repeat warms up
    for (ours, held), (other, as_many) in zip(calls[::2], calls[1::2], strict=True):
        assert ours != other
        assert held == as_many <= 8 + buffer
    assert max(held for _, held in calls) == 8 + buffer


@pytest.mark.parametrize("family", FAMILIES)
@all_methods
def test_a_timed_step_is_a_step(family, method):
    model, ids = cached_model(family, torch.float32), tiny_ids(1, 1)
    plain, timed = (filled_cache(model, method, 20) for _ in range(2))
    for _ in range(3):
        with torch.no_grad():
            expected = model(input_ids=ids, past_key_values=plain).logits
            logits, watch = timed_step(model, ids, timed)
        assert torch.equal(logits, expected)
        assert set(watch.seconds) == {"attention", "bookkeeping"}
    assert not {"step", "update"} & set(vars(timed))
    assert held_lengths(timed) == held_lengths(plain)
    for one, other in zip(plain.layers, timed.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)
    assert model.config._attn_implementation == "sdpa"


def test_nothing_stays_behind():
    model, prompt = cached_model("neox_25"), tiny_ids(12)
    before = {name: generate(model, prompt, method, 20) for name, method in METHODS.items()}
    breakdown(model, METHODS, [12], steps=1, repeats=1, warmup=0)
    assert model.config._attn_implementation == "sdpa"
    for name, method in METHODS.items():
        assert torch.equal(generate(model, prompt, method, 20).tokens, before[name].tokens)


def test_the_attention_comes_back_after_an_error():
    model = cached_model("llama")
    cache = filled_cache(model, None, 4)
    with pytest.raises(IndexError):
        timed_step(model, torch.tensor([[10**6]]), cache)
    assert model.config._attn_implementation == "sdpa"
    assert "update" not in vars(cache)


def test_a_static_cache_has_the_steps_of_a_dynamic_one():
    model, ids = cached_model("llama_gqa", torch.float32), tiny_ids(1, 1)
    static, dynamic = (filled_cache(model, method, 20, room=3) for method in (STATIC, None))
    with torch.no_grad():
        for _ in range(3):
            logits, watch = timed_step(model, ids, static)
            torch.testing.assert_close(logits, timed_step(model, ids, dynamic)[0])
            assert set(watch.seconds) == {"attention", "bookkeeping"}
    assert held_lengths(static) == held_lengths(dynamic) == [23, 23]
    assert cache_bytes(static) == cache_bytes(dynamic)
    (row,) = breakdown(model, {"static": STATIC}, [20], steps=2, repeats=1).to_dict("records")
    assert min(row[name] for name in ("total_ms", "attention_ms", "bookkeeping_ms")) > 0


@all_methods
@pytest.mark.parametrize("length", [1, 8, 20])
def test_a_filled_cache_has_the_shape_of_a_prompt(method, length):
    model = cached_model("qwen3", torch.float32)
    filled = filled_cache(model, method, length)
    prompt = generate(model, tiny_ids(length), method, max_new_tokens=1)
    assert cache_bytes(filled) == prompt.cache_bytes
    assert max(held_lengths(filled)) == prompt.cache_lengths[-1]
    if method is None:
        assert cache_bytes(filled) == decoding_work(model, length - 1).cache_bytes
        first, second = filled.layers  # filled with the same keys, but each has its own
        assert first.keys.data_ptr() != second.keys.data_ptr()


def test_wrong_arguments_are_named():
    model = cached_model("llama")
    with pytest.raises(ValueError, match="steps=0"):
        breakdown(model, METHODS, [4], steps=0)
    with pytest.raises(ValueError, match="context=0"):
        breakdown(model, METHODS, [0])
    model.set_attn_implementation("eager")
    try:
        with pytest.raises(ValueError, match="attn_implementation='eager'"):
            breakdown(model, METHODS, [4])
    finally:
        model.set_attn_implementation("sdpa")
