"""Turned keys are keys rotated at the new position."""

import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import cached_model, nll_of, rotate, tiny_ids, tiny_model
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from lib import (
    CompressedCache,
    FixSizeL2,
    StreamingLLM,
    evaluate,
    evaluate_with_compression,
    generate,
)
from lib.cache.baseline import STATIC
from lib.cache.rope import Rope, find_rope

LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "factor": 2.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 32,
}
MODELS = {
    "25%": ("neox_25", {}, 4),
    "50%": ("neox_50", {}, 8),
    "full": ("llama", {}, 8),
    "own head_dim": ("qwen3", {}, 16),
    "linear": ("llama_gqa", {"rope_parameters": LINEAR}, 8),
    "llama3": ("llama_gqa", {"rope_parameters": LLAMA3}, 8),
    "yarn": ("llama_gqa", {"rope_parameters": YARN}, 8),
    "linear 25%": ("neox_25", {"rope_parameters": LINEAR | {"partial_rotary_factor": 0.25}}, 4),
}


def model_of(name: str):
    family, config, _ = MODELS[name]
    return tiny_model(family, torch.float32, **config)


def rotated_by(model, keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Keys (B, H, T, D) as the model itself rotates them at positions (T,)."""
    rotary = model.base_model.rotary_emb
    cos, sin = rotary(keys, positions[None])
    apply = sys.modules[type(model).__module__].apply_rotary_pos_emb
    return apply(keys, keys, cos, sin)[1]


@pytest.mark.parametrize("name", MODELS)
def test_turned_keys_are_the_models_own(name):
    model = model_of(name)
    rope = find_rope(model)
    assert rope.rotary_dim == MODELS[name][2]
    size = {"own head_dim": 16, "25%": 16, "50%": 16, "linear 25%": 16}.get(name, 8)
    keys = torch.randn(2, 3, 6, size, generator=torch.Generator().manual_seed(0))
    before, after = torch.tensor([0, 1, 5, 90, 7, 300]), torch.tensor([0, 9, 2, 3, 400, 299])
    turned = rope.turn(rotated_by(model, keys, before), after - before)
    assert torch.allclose(turned, rotated_by(model, keys, after), atol=1e-4)
    # by one number for all, and by one for each batch, head and token
    turned = rope.turn(rotated_by(model, keys, before), 11)
    assert torch.allclose(turned, rotated_by(model, keys, before + 11), atol=1e-4)
    each = (torch.arange(36) * 7 % 50).view(2, 3, 6)
    turned = rope.turn(rotated_by(model, keys, before), each)
    for batch in range(2):
        for head in range(3):
            alone = keys[batch : batch + 1, head : head + 1]
            expected = rotated_by(model, alone, before + each[batch, head])[0, 0]
            assert torch.allclose(turned[batch, head], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["linear", "llama3", "yarn", "linear 25%"])
def test_scaled_rope_streams_independently_of_the_chunk(name):
    """Single tokens have their sinks turned, chunks their queries; both must mean the same."""
    model, ids = model_of(name), tiny_ids(120)
    one_by_one, whole = (evaluate(model, ids, StreamingLLM(3, 13), n).nll for n in (1, 120))
    assert (one_by_one - whole).abs().max() < 1e-4
    gap = evaluate(model, ids, StreamingLLM(3, 13), 120, "original").nll
    assert (one_by_one - gap).abs().max() > 0.1


@settings(deadline=None)
@given(there=st.integers(-5000, 5000), back=st.integers(-5000, 5000))
def test_turns_add_up(there, back):
    rope = find_rope(cached_model("neox_50"))
    keys = torch.randn(1, 2, 3, 16, generator=torch.Generator().manual_seed(0)).double()
    twice = rope.turn(rope.turn(keys, there), back)
    assert torch.allclose(twice, rope.turn(keys, there + back), atol=1e-9)
    assert torch.allclose(twice.norm(dim=-1), keys.norm(dim=-1), atol=1e-9)


@pytest.mark.parametrize("family", ["neox_25", "llama"])
def test_turning_is_the_rotation_by_definition(family):
    model = cached_model(family)
    key = torch.randn(3, {"neox_25": 16, "llama": 8}[family]).double()
    distances = [0, 1, -4, 17]
    turned = find_rope(model).turn(key[None, :, None].expand(1, -1, 4, -1), torch.tensor(distances))
    assert torch.allclose(turned[0], rotate(key, distances, model.config), atol=1e-5)


def test_half_precision_is_computed_in_float32():
    # float32 positions up to 2000 are exact, bf16 would round 1999 to 2000
    rope = Rope(torch.tensor([1.0, 0.1]))
    keys = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    delta = torch.tensor([1, 257, 515, 1029, 1999])
    turned = rope.turn(keys, delta)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rope.turn(keys.float(), delta).bfloat16())
    assert torch.equal(turned[..., 4:], keys[..., 4:])  # what is not rotated stays
    assert rope.turn(keys.double(), 3).dtype == torch.float64


def test_float64_is_computed_in_float64():
    rope = Rope(torch.tensor([1.0]))
    key = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 1, 2)
    angle = torch.tensor(1000.0, dtype=torch.float64)
    expected = torch.stack((angle.cos(), angle.sin()))
    assert torch.allclose(rope.turn(key, 1000).flatten(), expected, atol=1e-12, rtol=0)


def words(text, **kwargs):
    """A tokenizer that knows one text."""
    return SimpleNamespace(input_ids=tiny_ids(1, 20))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=2))


def bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=10, hidden_size=8, n_layer=1, n_head=2))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (gpt2, "model_type='gpt2' has 0 rotary embeddings"),
        (bloom, "model_type='bloom': allowed is models without ALiBi"),
        (lambda: tiny_model("llama", rope_parameters=DYNAMIC), "rope_type='dynamic' depends on"),
        (lambda: tiny_model("llama", rope_parameters=LONGROPE), "rope_type='longrope' depends on"),
    ],
    ids=["gpt2", "bloom", "dynamic", "longrope"],
)
def test_refused(make, told):
    model = make()
    for method in (StreamingLLM(1, 2), FixSizeL2(3)):
        with pytest.raises(ValueError, match=told):
            CompressedCache(model, method)


@pytest.mark.parametrize(("rope", "limit"), [(DYNAMIC, 63), (LONGROPE, 32)])
def test_rotations_that_depend_on_the_length_end_there(rope, limit):
    """Up to there dense chunks are right; beyond, cached keys would have to change."""
    model, ids = tiny_model("llama", rope_parameters=rope), tiny_ids(80)
    told = f"rope_type='{rope['rope_type']}' "
    with pytest.raises(ValueError, match=told + "depends on"):
        CompressedCache(model, StreamingLLM(1, 2), positions="original")
    with pytest.raises(ValueError, match=told + "depends on"):
        evaluate_with_compression(model, words, "", lambda pairs: pairs)
    with torch.no_grad():
        logits = model(ids[None, :limit]).logits[0]
        model(ids[None])  # a longer text by itself, after which frequencies begin anew
    expected = nll_of(logits.double(), ids[:limit])
    for chunk in (1, 7, 50):
        assert (evaluate(model, ids[:limit], None, chunk).nll - expected).abs().max() < 1e-5
        with pytest.raises(ValueError, match=rf"tokens=\d+: allowed is at most {limit}: beyond, "):
            evaluate(model, ids, None, chunk)
    with pytest.raises(ValueError, match=rf"tokens={limit + 1}: allowed is at most {limit}"):
        generate(model, ids[:20], max_new_tokens=60)
    with pytest.raises(ValueError, match=rf"tokens=79: allowed is at most {limit}"):
        generate(model, ids[:20], STATIC, max_new_tokens=60)


def test_an_unknown_rotation_is_refused(monkeypatch):
    def interleaved(q, k, cos, sin, unsqueeze_dim=1):
        def turn(x):
            pairs = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
            return x * cos[:, None] + pairs * sin[:, None]

        return turn(q), turn(k)

    model = tiny_model("llama")
    module = sys.modules[type(model).__module__]
    monkeypatch.setattr(module, "apply_rotary_pos_emb", interleaved)
    with pytest.raises(ValueError, match="model_type='llama' rotates its keys in an unknown way"):
        find_rope(model)
    what = "one whose layers all rotate alike: make the cache from the model"
    with pytest.raises(ValueError, match=what):
        find_rope(model.config)


def test_models_without_rope_stream_at_original_positions():
    """GPT-2 learns its positions: what is left of the text keeps those it had."""
    model, ids = gpt2().eval(), tiny_ids(30) % 10
    result = evaluate(model, ids, StreamingLLM(2, 5), 7, "original")
    for t in range(29):
        mask = torch.ones(t + 1, t + 1).tril()
        mask[t, 2 : max(2, t - 5)] = 0  # in a model of one layer only the last query matters
        mask = mask.log().clamp(min=torch.finfo(torch.float32).min)
        with torch.no_grad():
            logits = model(input_ids=ids[None, : t + 1], attention_mask=mask[None, None]).logits
        assert (result.nll[t] + logits[0, t].log_softmax(-1)[ids[t + 1]]).abs() < 1e-5
