"""What a model's attention has of its own: large logits, a window, a soft cap, learned sinks."""

import itertools

import pytest
import torch
from decoders import tiny, tiny_config
from reference import (
    cached_model,
    distinct_ids,
    nll_of,
    own_generate,
    tiny_ids,
    tiny_model,
    windows,
)
from slow_loop import held_after, most_attended, slow_loop
from transformers import DynamicCache

from lib import H2O, TOVA, CompressedCache, FixSizeL2, SnapKV, StreamingLLM, evaluate

ATOL = 5e-5
SCORED = [TOVA(12), H2O(6, 6), SnapKV(12, 4)]


def test_large_logits_fit_into_float16():
    """Sinks' logits are made before they are scaled, and may be beyond 65,504 then."""
    more = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 64}
    model, ids = tiny_model("llama_gqa", torch.float32, **more), tiny_ids(60)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.normal_(0, 10)
            layer.self_attn.k_proj.weight.normal_(0, 10)
    model = model.half()
    nlls = [evaluate(model, ids, StreamingLLM(3, 9), chunk).nll for chunk in (1, 60)]
    assert nlls[1].isfinite().all()
    # attention is nearly one-hot: where two logits are close, rounding decides
    assert ((nlls[1] - nlls[0]).abs() < 0.05).float().mean() > 0.8


@pytest.mark.parametrize("method", SCORED, ids=repr)
def test_prompts_heed_the_models_own_window(method):
    """A long prompt is seen as the model sees it, whoever decides what of it stays."""
    model, ids = cached_model("mistral_sliding"), tiny_ids(1, 100)
    with torch.no_grad():
        expected = model(ids).logits
        logits = model(ids, past_key_values=CompressedCache(model, method)).logits
        whole = tiny_model("mistral")(ids).logits
    assert (logits - expected).abs().max() < ATOL
    assert (whole - expected).abs().max() > 0.1


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt_oss", "gemma3_text"])
@pytest.mark.parametrize("skipped", [(), (0,)])
def test_chunks_heed_the_models_own_terms(family, skipped):
    """A window of 16 among the tokens held, a soft cap, learned sinks; some layers keep it all."""
    more = {"sliding_window": 16} if family == "mistral" else {}
    model, ids = tiny(tiny_config(family, **more)), distinct_ids(40)

    def keep(held, keys, given, layer):
        return held if layer in skipped else most_attended(12)(held, keys, given, layer)

    for chunk in (1, 7, 39):
        see, after = held_after(keep, range(chunk - 1, 39, chunk))
        expected = nll_of(slow_loop(model, ids, see, after), ids)
        nll = evaluate(model, ids, TOVA(12, skip_layers=skipped), chunk).nll
        assert (nll - expected).abs().max() < ATOL


def test_layers_that_outgrow_the_models_window():
    """Layers never cut hold more than the window when single tokens come."""
    model, ids = tiny(tiny_config("mistral", sliding_window=16)), distinct_ids(40)
    nlls = [evaluate(model, ids, FixSizeL2(12, skip_layers=(0, 1)), chunk).nll for chunk in (1, 39)]
    assert (nlls[0] - nlls[1]).abs().max() < ATOL


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "vaultgemma", "flint"])
def test_soft_caps_and_learned_sinks_stream(family):
    model, ids = tiny(tiny_config(family)), distinct_ids(40)
    for positions in ("in_cache", "original"):
        seen = windows(40, 3, 9, positions)
        expected = nll_of(slow_loop(model, ids, lambda t, *_, seen=seen: seen[t]), ids)
        for chunk in (1, 7, 40):
            nll = evaluate(model, ids, StreamingLLM(3, 9), chunk, positions).nll
            assert (nll - expected).abs().max() < ATOL


ASKED = [
    *itertools.product([StreamingLLM(2, 10)], ["short", "long", "padded"]),
    *itertools.product([FixSizeL2(12, skip_layers=(0,)), *SCORED], ["short", "long"]),
]


@pytest.mark.parametrize(("method", "case"), ASKED, ids=str)
@pytest.mark.parametrize("in_config", [False, True])
def test_attention_weights_have_the_right_shapes_or_are_refused(method, case, in_config):
    model, ids = tiny_model("llama_gqa", attn_implementation="eager"), tiny_ids(2, 30)
    ids = ids if case == "long" else ids[:, :10]
    mask = torch.ones_like(ids)
    mask[0, : 3 * (case == "padded")] = 0
    model.config.output_attentions = in_config
    cache = CompressedCache(model, method)
    asked = {} if in_config else {"output_attentions": True}
    if method in SCORED or (case == "long" and method.window):
        with pytest.raises(ValueError, match="output_attentions=True: allowed is False where old"):
            own_generate(model, ids, 5, cache, attention_mask=mask, **asked)
        assert cache.seen == 0
        return
    with torch.no_grad():
        lengths, new = [0, 0], ids
        for _ in range(6):
            out = model(new, past_key_values=cache, attention_mask=mask, **asked)
            n, new = new.shape[1], out.logits[:, -1:].argmax(-1)
            mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
            for layer, weights in enumerate(out.attentions):
                assert weights.shape == (2, 4, n, lengths[layer] + n)
                assert torch.allclose(weights.sum(-1), torch.ones(2, 4, n).double())
            lengths = cache.cached_lengths


@pytest.mark.parametrize("positions", ["in_cache", "original"])
@pytest.mark.parametrize("family", ["neox_25", "llama_gqa", "mistral_sliding"])
@pytest.mark.parametrize("buffer", [0, 5])
@pytest.mark.parametrize("pieces", [[12], [1, 3, 7, 1], [4, 7]], ids=str)
def test_attention_weights_behind_left_pads_are_the_models_own(pieces, buffer, family, positions):
    """By the text's columns, as long as all is held; then by what is held, sinks in front."""
    # in float64, too, transformers' eager attention takes its softmax in float32: NaN for pads
    model = tiny_model(family, torch.float32, attn_implementation="eager")
    ids, pads = tiny_ids(3, 30), torch.tensor([0, 2, 6])[:, None]
    mask = (torch.arange(30) >= pads).long()
    places = (torch.arange(30) - pads).clamp(min=0)
    cache = CompressedCache(model, StreamingLLM(3, 9), buffer=buffer, positions=positions)
    stock, seen = DynamicCache(config=model.config), 0
    pieces = pieces + [1] * (30 - sum(pieces))
    with torch.no_grad():
        for held in itertools.accumulate(pieces):
            asked = {"attention_mask": mask[:, :held], "output_attentions": True}
            new, here = ids[:, seen:held], places[:, seen:held]
            found = model(new, past_key_values=cache, **asked)
            expected = model(new, past_key_values=stock, position_ids=here, **asked)
            for own, theirs in zip(found.attentions, expected.attentions, strict=True):
                if held <= 12 + buffer:
                    assert own.shape == theirs.shape
                    assert (own - theirs).abs().max() < ATOL
                else:
                    assert own.shape == (*theirs.shape[:2], 1, 12 + buffer + 1)
                    assert (own.sum(-1) - 1).abs().max() < ATOL
            seen = held


def test_attention_weights_of_a_dense_padded_prompt_and_of_one_that_evicts():
    model = tiny_model("llama_gqa", torch.float32, attn_implementation="eager")
    ids = tiny_ids(2, 30)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    asked = {"attention_mask": mask, "output_attentions": True}
    with torch.no_grad():
        cache = CompressedCache(model, StreamingLLM(3, 9), prefill="dense")
        found = model(ids, past_key_values=cache, **asked).attentions
        places = (torch.arange(30) - torch.tensor([[5], [0]])).clamp(min=0)
        expected = model(ids, position_ids=places, **asked).attentions
        for own, theirs in zip(found, expected, strict=True):
            assert (own - theirs).abs().max() < ATOL
        cache = CompressedCache(model, StreamingLLM(3, 9))
        with pytest.raises(ValueError, match="output_attentions=True: allowed is False where old"):
            model(ids, past_key_values=cache, **asked)
        assert cache.seen == 0


def test_attention_weights_of_a_static_cache_are_refused():
    """They would be those of all its slots; nothing is counted before the refusal."""
    model, ids = tiny_model("llama_gqa", attn_implementation="eager"), tiny_ids(1, 10)
    cache = CompressedCache(model, StreamingLLM(2, 10), static=True)
    with torch.no_grad():
        model(ids[:, :9], past_key_values=cache)
        with pytest.raises(ValueError, match="output_attentions=True: allowed is False where old"):
            model(ids[:, 9:], past_key_values=cache, output_attentions=True)
        assert cache.seen == 9
        logits = model(ids[:, 9:], past_key_values=cache).logits
        assert (logits - model(ids).logits[:, 9:]).abs().max() < ATOL
