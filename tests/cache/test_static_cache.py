"""Fixed shapes for decoding: the same tokens, nothing moved and nothing compiled anew."""

import pytest
import torch
from reference import (
    assert_greedy,
    cached_model,
    literal_window,
    own_generate,
    tiny_ids,
    tiny_model,
)
from torch._dynamo.testing import CompileCounter

from lib import CompressedCache, StreamingLLM

START, RECENT = 2, 6
BUDGET = START + RECENT
METHOD = StreamingLLM(START, RECENT)


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa", "qwen3", "mistral_sliding", "yarn"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("buffer", [0, 3])
@pytest.mark.parametrize(("prompt", "length"), [(1, 4 * BUDGET), (25, 100)])
def test_the_same_tokens(family, attention, buffer, prompt, length):
    model = cached_model(family, attn_implementation=attention)
    ids = tiny_ids(prompt)
    cache = CompressedCache(model, METHOD, buffer=buffer, static=True)
    new, logits = own_generate(model, ids, length, cache)
    other, _ = own_generate(model, ids, length, CompressedCache(model, METHOD, buffer=buffer))
    assert torch.equal(new, other)
    expected = literal_window(model, torch.cat((ids, new[0, :-1])), START, RECENT, buffer=buffer)
    assert_greedy(expected, new[0], logits[0])


@pytest.mark.parametrize("positions", ["in_cache", "original"])
@pytest.mark.parametrize("prefill", ["streamed", "dense"])
def test_other_settings(positions, prefill):
    model, ids = cached_model("neox_25"), tiny_ids(2, 25)
    options = {"buffer": 3, "positions": positions, "prefill": prefill}
    new, other = (
        own_generate(model, ids, 30, CompressedCache(model, METHOD, static=static, **options))[0]
        for static in (True, False)
    )
    assert torch.equal(new, other)


@pytest.mark.parametrize("buffer", [0, 3])
def test_padded_rows(buffer):
    model, ids = cached_model("llama_gqa"), tiny_ids(3, 20)
    mask = (torch.arange(20) >= torch.tensor([0, 9, 17])[:, None]).long()
    cache = CompressedCache(model, METHOD, buffer=buffer, static=True)
    new, logits = own_generate(model, ids * mask, 90, cache, attention_mask=mask)
    for row, skipped in enumerate((0, 9, 17)):
        fed = torch.cat((ids[row, skipped:], new[row, :-1]))
        expected = literal_window(model, fed, START, RECENT, buffer=buffer)
        assert_greedy(expected, new[row], logits[row])


@pytest.mark.parametrize("buffer", [0, 3])
def test_nothing_moves(buffer):
    model, ids = cached_model("llama_gqa"), tiny_ids(1, 150)
    cache, seen = CompressedCache(model, METHOD, buffer=buffer, static=True), set()
    with torch.no_grad():
        model(ids[:, :20], past_key_values=cache)
        for token in ids[:, 20:].split(1, dim=1):
            model(token, past_key_values=cache)
            tensors = [x for layer in cache.layers for x in (layer.key_slots, layer.value_slots)]
            seen.add(tuple((x.data_ptr(), x.shape) for x in tensors))
    assert len(seen) == 1
    assert BUDGET <= cache.layers[0].key_slots.shape[2] < 150


@pytest.mark.parametrize("buffer", [0, 3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_nothing_is_compiled_anew(buffer, attention):
    """Once the cache has been full and was cut, decoding runs what is compiled."""
    torch._dynamo.reset()
    model, ids = cached_model("llama_gqa", attn_implementation=attention), tiny_ids(1, 120)
    counter = CompileCounter()
    compiled = torch.compile(model.forward, backend=counter, fullgraph=True)
    cache, logits, compilations = CompressedCache(model, METHOD, buffer=buffer, static=True), [], []
    with torch.no_grad():
        logits.append(model(ids[:, :5], past_key_values=cache).logits)
        for token in ids[:, 5:].split(1, dim=1):
            logits.append(compiled(input_ids=token, **cache.step(1, attention=attention)).logits)
            compilations.append(counter.frame_count)
    torch._dynamo.reset()
    warm = 2 * (BUDGET + buffer)
    assert len(compilations) - warm >= 3 * BUDGET
    assert compilations[0] > 0
    assert compilations[-1] == compilations[warm]
    expected = literal_window(model, ids[0], START, RECENT, buffer=buffer)
    assert (torch.cat(logits, dim=1)[0] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("compiled", [True, False])
def test_a_step_that_the_models_own_call_does_not_announce(compiled):
    """`model.forward` runs none of the model's hooks, but its body's."""
    model, ids = cached_model("llama_gqa"), tiny_ids(1, 30)
    cache = CompressedCache(model, METHOD, static=True)
    forward = torch.compile(model.forward, backend="eager") if compiled else model.forward
    with torch.no_grad():
        pieces = ids.split([5, *[1] * 25], dim=1)
        parts = [forward(input_ids=piece, past_key_values=cache).logits[0] for piece in pieces]
    torch._dynamo.reset()
    expected = literal_window(model, ids[0], START, RECENT)
    assert (torch.cat(parts) - expected).abs().max() < 1e-4


def test_a_step_without_any_announcement_is_refused():
    model, ids = tiny_model("llama_gqa"), tiny_ids(1, 6)
    cache = CompressedCache(model.config, METHOD, static=True)
    with torch.no_grad():
        model(ids[:, :5], past_key_values=cache)
        with pytest.raises(RuntimeError, match="step"):
            model(ids[:, 5:], past_key_values=cache)
