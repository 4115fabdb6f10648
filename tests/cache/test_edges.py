"""What could go wrong silently at the engine's edges: refused, or the same numbers."""

import copy
import gc
import weakref
from functools import partial

import pytest
import torch
from reference import cached_model, tiny_ids, tiny_model

from lib import (
    TOVA,
    CompressedCache,
    FixSizeL2,
    SnapKV,
    StreamingLLM,
    disable_streaming_llm,
    enable_streaming_llm,
    evaluate,
    generate,
)

METHOD = StreamingLLM(2, 10)


def test_a_step_that_failed_midway_is_noticed():
    model = tiny_model("llama")
    cache = CompressedCache(model, METHOD)
    model(input_ids=tiny_ids(1, 20), past_key_values=cache)
    last = model.model.layers[-1]
    handle = last.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        model(input_ids=tiny_ids(1, 4), past_key_values=cache)
    handle.remove()
    with pytest.raises(RuntimeError, match="failed midway"):
        model(input_ids=tiny_ids(1, 4), past_key_values=cache)
    cache.reset()
    again = model(input_ids=tiny_ids(1, 20), past_key_values=cache).logits
    fresh = CompressedCache(model, METHOD)
    assert torch.equal(again, model(input_ids=tiny_ids(1, 20), past_key_values=fresh).logits)


@pytest.mark.parametrize("method", [METHOD, TOVA(12), FixSizeL2(12), SnapKV(12, 4)], ids=str)
@pytest.mark.parametrize("n", [1, 2])
def test_other_rows_midway_are_refused_before_any_work(method, n):
    model, ids = cached_model("llama"), tiny_ids(2, 22)
    with torch.no_grad():
        caches = [CompressedCache(model, method) for _ in range(2)]
        for cache in caches:
            model(input_ids=ids[:, :20], past_key_values=cache)
        with pytest.raises(ValueError, match="a cache of 2 rows was given 3 rows of tokens"):
            model(input_ids=tiny_ids(3, n), past_key_values=caches[1])
        new = ids[:, 20 : 20 + n]
        logits = [model(input_ids=new, past_key_values=cache).logits for cache in caches]
    assert torch.equal(*logits)


def test_other_rows_of_a_cache_without_a_hook_are_refused():
    model = cached_model("llama")
    for method in (METHOD, FixSizeL2(12)):
        cache = CompressedCache(model.config, method, positions="original")
        model(input_ids=tiny_ids(2, 9), past_key_values=cache)
        with pytest.raises(ValueError, match="a cache of 2 rows was given 3 rows of tokens"):
            model(input_ids=tiny_ids(3, 1), past_key_values=cache)


def test_masks_by_kinds_of_layers_are_refused():
    model, cache = cached_model("llama"), CompressedCache(cached_model("llama"), METHOD)
    for mask in ({"full_attention": None}, [[1] * 5]):
        with pytest.raises(ValueError, match=f"attention_mask='{type(mask).__name__}': allowed is"):
            model(input_ids=tiny_ids(1, 5), past_key_values=cache, attention_mask=mask)
    assert cache.seen == 0


@pytest.mark.parametrize("where", ["model.layers.1", "lm_head"])
def test_an_interrupted_generate_says_that_the_cache_must_begin_again(where):
    """Behind the body nothing broke off: the prompt is in the cache, and can't be given again."""
    model, ids = tiny_model("llama"), tiny_ids(1, 20).clamp(min=1)
    asked = {"past_key_values": CompressedCache(model, METHOD), "max_new_tokens": 5}
    asked["attention_mask"] = torch.ones_like(ids)

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = model.get_submodule(where).register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.generate(ids, **asked)
    handle.remove()
    with pytest.raises((RuntimeError, ValueError), match=r"reset\(\) the cache"):
        model.generate(ids, **asked)
    asked["past_key_values"].reset()
    fresh = asked | {"past_key_values": CompressedCache(model, METHOD)}
    assert torch.equal(model.generate(ids, **asked), model.generate(ids, **fresh))


def test_a_masked_token_midway_is_refused():
    model, cache = cached_model("llama"), CompressedCache(cached_model("llama"), METHOD)
    model(input_ids=tiny_ids(1, 20), past_key_values=cache)
    mask = torch.ones(1, 21, dtype=torch.long)
    mask[0, -1] = 0
    with pytest.raises(ValueError, match="attention_mask"):
        model(input_ids=tiny_ids(1, 1), past_key_values=cache, attention_mask=mask)


@pytest.mark.parametrize("padded", [False, True])
def test_rows_can_be_chosen_and_repeated(padded):
    model, ids = cached_model("neox_25"), tiny_ids(2, 30)
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, : 7 * padded] = 0
    rows = torch.tensor([1, 1, 0])
    expected = CompressedCache(model, METHOD, prefill="dense")
    model(input_ids=ids[rows], past_key_values=expected, attention_mask=mask[rows])
    cache = CompressedCache(model, METHOD, prefill="dense")
    model(input_ids=ids, past_key_values=cache, attention_mask=mask)
    cache.batch_select_indices(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 1, 2]))
    for _ in range(3):
        new = tiny_ids(3, 1)
        logits = [model(input_ids=new, past_key_values=c).logits for c in (expected, cache)]
        assert torch.allclose(*logits, atol=1e-10)


def test_enabling_holds_no_model_and_survives_a_copy():
    model = tiny_model("llama")
    enable_streaming_llm(model, 2, 10)
    twin = copy.deepcopy(model)
    disable_streaming_llm(twin)
    assert not twin._forward_pre_hooks
    assert not twin._forward_hooks
    enable_streaming_llm(twin, 2, 10, buffer=0)
    out = twin.generate(tiny_ids(1, 30).clamp(min=1), max_new_tokens=3, pad_token_id=0)
    assert out.shape == (1, 33)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("buffer", [0, 3])
def test_compiled_generation_is_the_same(monkeypatch, buffer):
    compiled = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr("lib.measure.generation.torch.compile", compiled)
    model, prompt = tiny_model("llama_gqa"), tiny_ids(20)
    expected = generate(model, prompt, METHOD, 40, buffer=buffer)
    result = generate(model, prompt, METHOD, 40, buffer=buffer, compile=True)
    assert torch.equal(result.tokens, expected.tokens)
    assert result.evictions == expected.evictions


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
def test_bfloat16_errs_no_more_in_chunks_than_one_by_one(family):
    ids = tiny_ids(200)
    exact = evaluate(cached_model(family, torch.float32), ids, METHOD, 1).nll
    model = copy.deepcopy(cached_model(family, torch.float32)).bfloat16()
    errors = [(evaluate(model, ids, METHOD, n).nll - exact).abs().mean() for n in (1, 64)]
    assert errors[1] < 1.3 * errors[0]
