"""Models whose layers rotate otherwise than Llama's: the right numbers are the slow loop's."""

import copy

import pytest
import torch
from decoders import tiny, tiny_config
from reference import distinct_ids, nll_of, windows
from slow_loop import held_after, lowest_norms, most_attended, slow_loop
from transformers import DynamicCache

from lib import TOVA, CompressedCache, FixSizeL2, StreamingLLM, evaluate
from lib.cache.rope import Rope, find_rope, find_rotations
from lib.cache.turning import fit

ATOL = 5e-5  # models compute angles and norms in float32


def streamed(model, ids, positions: str = "in_cache") -> torch.Tensor:
    """NLL by the slow loop with 3 sinks and 9 recent tokens."""
    seen = windows(len(ids), 3, 9, positions)
    return nll_of(slow_loop(model, ids, lambda t, *_: seen[t]), ids)


def assert_streams(model, positions: str = "in_cache"):
    ids = distinct_ids(40)
    expected = streamed(model, ids, positions)
    for chunk in (1, 7, 40):
        nll = evaluate(model, ids, StreamingLLM(3, 9), chunk, positions).nll
        assert (nll - expected).abs().max() < ATOL


@pytest.mark.parametrize("change", ["slower", "half", "other weights"])
def test_a_model_that_has_changed_is_looked_at_again(change):
    """What was found in a model holds as long as its frequencies do, whatever its weights are."""
    model, ids = tiny(tiny_config("llama")), distinct_ids(40)
    before = evaluate(model, ids, StreamingLLM(3, 9)).nll
    if change == "slower":
        model.model.rotary_emb.inv_freq /= 4
    elif change == "half":
        model.bfloat16().double()  # rounds them
    else:
        model.load_state_dict(tiny(tiny_config("llama"), seed=1).state_dict())
    fresh = copy.deepcopy(model)
    found = evaluate(model, ids, StreamingLLM(3, 9), 7).nll
    assert torch.equal(found, evaluate(fresh, ids, StreamingLLM(3, 9), 7).nll)
    assert not torch.allclose(found, before, atol=1e-3)
    assert_streams(model)


def test_a_model_without_weights_is_refused():
    model = tiny(tiny_config("llama"))
    for weight in model.parameters():
        weight.data.zero_()
    with pytest.raises(ValueError, match="layer 0 gives zeros .are its weights loaded"):
        CompressedCache(model, StreamingLLM(3, 9))


def test_sight_both_ways_and_pictures_are_refused():
    model = tiny(tiny_config("gemma3_text", use_bidirectional_attention=True))
    with pytest.raises(ValueError, match="use_bidirectional_attention=True: allowed is False"):
        CompressedCache(model, StreamingLLM(3, 9))
    model = tiny(tiny_config("llama"))
    for name, told in (("image_grid_thw", "given"), ("token_type_ids", "not zeros")):
        more = {name: torch.ones(1, 5, dtype=torch.long)}
        cache = CompressedCache(model, StreamingLLM(3, 9))
        with pytest.raises(ValueError, match=f"{name}='{told}'"):
            model(torch.arange(5)[None], past_key_values=cache, **more)
        assert cache.seen == 0
    model(torch.arange(5)[None], past_key_values=cache, token_type_ids=torch.zeros(1, 5))


@pytest.mark.parametrize("family", ["gpt2", "gpt_bigcode", "bert"])
def test_kinds_of_tokens_that_are_only_embedded_are_kept(family):
    model, ids = tiny(tiny_config(family)), distinct_ids(20)[None]
    kinds = (torch.arange(20)[None] // 3) % 2
    cache = CompressedCache(model, StreamingLLM(3, 20), positions="original")
    with torch.no_grad():
        expected = model(ids, token_type_ids=kinds).logits
        assert (model(ids).logits - expected).abs().max() > 100 * ATOL
        for i, j in ((0, 11), (11, 12), (12, 20)):
            given = {"past_key_values": cache, "token_type_ids": kinds[:, i:j]}
            assert (model(ids[:, i:j], **given).logits - expected[:, i:j]).abs().max() < ATOL


@pytest.mark.parametrize("rotated", [[0, 0], [1, 0], [0, 1]])
def test_layers_without_rotation_are_not_turned(rotated):
    model, ids = tiny(tiny_config("smollm3", no_rope_layers=rotated)), distinct_ids(40)
    assert_streams(model)
    assert_streams(model, "original")
    if not any(rotated):  # distances are nothing to such a model
        nlls = [
            evaluate(model, ids, method, 7, positions).nll
            for method in (StreamingLLM(3, 9), FixSizeL2(12, skip_layers=()))
            for positions in ("in_cache", "original")
        ]
        assert torch.equal(nlls[0], nlls[1])
        assert torch.equal(nlls[2], nlls[3])
    with pytest.raises(ValueError, match="allowed is one whose layers rotate alike"):
        find_rope(model)
    with pytest.raises(ValueError, match="make the cache from the model"):
        CompressedCache(model.config, StreamingLLM(3, 9))


@pytest.mark.parametrize("model_type", ["exaone4", "smollm3"])
def test_methods_that_look_at_keys_turn_what_is_rotated(model_type):
    more = {"no_rope_layers": [1, 0]} if model_type == "smollm3" else {}
    model, ids = tiny(tiny_config(model_type, **more)), distinct_ids(40)
    ends = range(6, 39, 7)
    see, after = held_after(lowest_norms(12, 3), ends)
    expected = nll_of(slow_loop(model, ids, see, after), ids)
    assert (
        evaluate(model, ids, FixSizeL2(12, 0.25, skip_layers=()), 7).nll - expected
    ).abs().max() < ATOL
    see, after = held_after(most_attended(12), ends)
    expected = nll_of(slow_loop(model, ids, see, after), ids)
    assert (evaluate(model, ids, TOVA(12), 7).nll - expected).abs().max() < ATOL


@pytest.mark.parametrize("method", [StreamingLLM(3, 40), StreamingLLM(3, 9)])
def test_layers_of_latents_hold_what_the_model_caches(method):
    """Where nothing has left as a DynamicCache does; later latents are those of the tokens kept."""
    model, ids = tiny(tiny_config("deepseek_v3")), distinct_ids(30)[None]
    cache, dense = CompressedCache(model, method), DynamicCache(config=model.config)
    with torch.no_grad():
        for piece in ids.split([20, *[1] * 10], dim=1):
            for each in (cache, dense):
                model(piece, past_key_values=each)
    layer, other = cache.layers[0], dense.layers[0]
    if cache.evicted == 0:
        kept = [*range(30)]
        assert torch.allclose(layer.values, other.values, atol=1e-6)
    else:
        kept = [*range(3), *range(21, 30)]
        assert torch.allclose(layer.values[:, :, 3:], other.values[:, :, kept[3:]], atol=1e-6)
        rotated = layer.rope.turn(other.values[:, :, :3], 18)  # next to the window
        assert torch.allclose(layer.values[:, :, :3], rotated, atol=1e-5)
    assert torch.allclose(layer.keys, other.keys[:, :, kept], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "family", ["gpt_neox", "phi", "glm", "gemma3_text", "deepseek_v3", "helium"]
)
def test_sixteen_bits_rotate_as_thirty_two(family, dtype):
    model = tiny(tiny_config(family)).float()
    exact, rounded = (find_rotations(m) for m in (model, copy.deepcopy(model).to(dtype)))
    for one, other in zip(exact, rounded, strict=True):
        assert (one.width, one.in_values) == (other.width, other.in_values)
        for rope, same in ((one.cached, other.cached), (one.queries, other.queries)):
            assert (rope.start, rope.neighbours) == (same.start, same.neighbours)
            assert torch.allclose(rope.inv_freq, same.inv_freq, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("other", ["frequencies", "lengths"])
def test_a_rotation_that_is_a_little_different_is_refused(other, dtype):
    """By frequencies, or as norms after RoPE change lengths: by 3%, more than 16 bits round off."""
    inv_freq = 1 / 100 ** (torch.arange(8) / 8)
    keys = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    rope = Rope(inv_freq * (1.03 if other == "frequencies" else 1))
    true = {p: Rope(inv_freq).turn(keys, p).to(dtype) for p in (0, 3, 31)}
    wrong = {p: rope.turn(keys, p) * (1.03 if p and other == "lengths" else 1) for p in (0, 3, 31)}
    assert fit(true, [inv_freq]).rotary_dim == 16
    with pytest.raises(ValueError, match="rotates its keys in an unknown way"):
        fit({p: x.to(dtype) for p, x in wrong.items()}, [inv_freq])
