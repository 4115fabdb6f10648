"""What the explorer reads: losses against `evaluate`, looks against whole attention maps."""

import pytest
import torch
from decoders import tiny, tiny_config
from reference import VOCAB, cached_model, tiny_ids, windows

from lib import evaluate
from lib.cache.baseline import make_cache
from lib.experiments.explorer.reading import Reading
from lib.experiments.explorer.setting import OFFERED, Setting, held_by_rule
from lib.measure.attention_maps import attention_maps, with_attention

IDS = tiny_ids(300)


def last(looks):
    return [x for x in looks if x is not None][-1]


def read(family, setting):
    return Reading(cached_model(family), IDS, setting)


@pytest.mark.parametrize("method", OFFERED)
def test_losses_are_those_of_evaluate(method):
    setting = Setting(method, 2, 30)
    reading = read("llama_gqa", setting)
    *_, (done, nll) = reading.run(100)
    expected = evaluate(reading.model, IDS, setting.compressor(), setting.chunk_size).nll
    assert done == len(nll) == 299
    torch.testing.assert_close(nll, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["baseline", "streaming", "tova"])
def test_a_look_is_the_same_from_wherever_it_is_taken(method):
    setting = Setting(method, 2, 30)
    reading, fresh = read("llama_gqa", setting), read("llama_gqa", setting)
    list(reading.run(100))
    for step in (100, 101, 250, 99, 299):
        look, expected = last(reading.look(step)), last(fresh.look(step))
        for own, other in zip(look.tokens, expected.tokens, strict=True):
            assert torch.equal(own, other)
        for own, other in zip(look.weights, expected.weights, strict=True):
            torch.testing.assert_close(own, other, atol=1e-5, rtol=0)
        fresh = read("llama_gqa", setting)


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
def test_a_dense_step_attends_as_the_whole_map_says(family):
    reading = read(family, Setting("baseline"))
    maps = attention_maps(reading.model, IDS)[:, 0]  # (L, H, T, T)
    for step in (0, 1, 100, 255, 299):
        look = last(reading.look(step))
        for layer, weights in enumerate(look.weights):
            assert look.tokens[layer].tolist() == [list(range(step + 1))]
            torch.testing.assert_close(weights, maps[layer, :, step, : step + 1], atol=1e-5, rtol=0)


def test_a_window_of_the_model_s_own_is_what_is_seen():
    reading = read("mistral_sliding", Setting("baseline"))
    maps = attention_maps(reading.model, IDS)[:, 0]
    list(reading.run())
    for step in (10, 39, 40, 255, 299):
        look = last(reading.look(step))
        for layer, weights in enumerate(look.weights):
            tokens = list(range(max(0, step - 39), step + 1))
            assert look.tokens[layer].tolist() == [tokens]
            torch.testing.assert_close(weights, maps[layer, :, step, tokens], atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["baseline", "streaming", "fix_l2_low"])
def test_layers_that_share_keys_and_values(method):
    """Each of the four layers is seen to attend to what the two that cache hold."""
    model = tiny(tiny_config("gemma4_text", sliding_window=400, vocab_size=VOCAB))
    reading = Reading(model, IDS, Setting(method, 2, 30))
    list(reading.run())
    look = last(reading.look(250))
    kinds = model.config.layer_types
    assert len(look.weights) == len(kinds) == 4
    for layer, weights in enumerate(look.weights):
        assert torch.equal(look.tokens[layer], look.tokens[kinds.index(kinds[layer])])
        torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)), atol=1e-5, rtol=0)


def test_attention_that_can_t_be_looked_at():
    reading = Reading(
        tiny(tiny_config("falcon", vocab_size=VOCAB)), IDS, Setting("streaming", 2, 30)
    )
    list(reading.run())
    with pytest.raises(ValueError, match="to look at it"):
        list(reading.look(250))


@pytest.mark.parametrize("positions", ["in_cache", "original"])
@pytest.mark.parametrize("buffer", [0, 7])
@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
def test_a_streaming_step_attends_as_the_loop_does(family, buffer, positions):
    """The token-by-token loop, whose own eager attention tells its weights."""
    setting = Setting("streaming", 3, 20, buffer, positions)
    reading = read(family, setting)
    list(reading.run())
    seen = windows(280, 3, 20, positions, buffer)
    eager = with_attention(reading.model, "eager")
    cache = make_cache(eager, setting.compressor(), buffer, positions)
    with torch.no_grad():
        for step in range(280):
            out = eager(
                input_ids=IDS[None, step : step + 1],
                past_key_values=cache,
                output_attentions=True,
            )
            if step not in (0, 2, 21, 23, 24, 31, 63, 64, 150, 256, 270):
                continue
            look = last(reading.look(step))
            tokens = [token for token, _ in seen[step]]
            assert held_by_rule(setting, step).tolist() == tokens
            for layer, weights in enumerate(look.weights):
                assert look.tokens[layer][0].tolist() == tokens
                expected = out.attentions[layer][0, :, 0].float()
                torch.testing.assert_close(weights, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["fix_l2_high", "keydiff", "h2o", "tova", "snapkv", "lagkv"])
def test_other_methods_attend_to_what_they_hold(method):
    """Keys found again by their tokens: each held key is that token's own, turned or not."""
    assert method in OFFERED
    setting = Setting(method, 2, 30, positions="original")
    reading = read("llama_gqa", setting)
    cache = reading._new_cache()
    plain = make_cache(reading.model, None)
    with torch.no_grad():
        for start in range(0, 256, 64):
            reading._feed(cache, start, start + 64)
        reading._feed(plain, 0, 256)
    given = reading._given(cache, 256, 260)
    keys = plain.layers[0].keys[0]  # layer 0 has seen nothing of what was cut: (Hkv, T, D)
    for head, tokens in enumerate(given[0]):
        assert tokens[-4:].tolist() == [256, 257, 258, 259]
        torch.testing.assert_close(cache.layers[0].keys[0, head], keys[head, tokens[:-4]])
    look = last(reading.look(259))
    assert [len(x) for x in look.tokens] == [2, 2]
    for weights in look.weights:
        torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    assert 0 <= min(look.share(2)) <= max(look.share(2)) <= 1
    # a later look at the same step, from a copy that the first one left
    again = last(reading.look(259))
    assert all(torch.equal(a, b) for a, b in zip(look.weights, again.weights, strict=True))
