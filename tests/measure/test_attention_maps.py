"""Attention maps and the strength of sinks, by hand."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from reference import FAMILIES, VOCAB, cached_model, project, rotate, tiny_ids

from lib import attention_maps, evaluate, heads_with_sink, sink_strength
from lib.measure.attention_maps import with_attention


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_maps(family):
    model, ids = cached_model(family), tiny_ids(2, 20)
    maps = attention_maps(model, ids)
    heads = model.config.num_attention_heads
    assert maps.shape == (2, 2, heads, 20, 20)
    assert (maps.sum(-1) - 1).abs().max() < 1e-6
    assert maps.triu(1).abs().max() == 0
    # a token of the past is seen as it was: a shorter text has the same maps
    assert (attention_maps(model, ids[:, :9]) - maps[..., :9, :9]).abs().max() < 1e-5
    assert attention_maps(model, ids[0]).shape == (2, 1, heads, 20, 20)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_maps_of_the_first_layer_by_hand(family):
    model, ids = cached_model(family), tiny_ids(12)
    config, layer = model.config, model.base_model.layers[0]
    projected = [project(layer, x, config)[:2] for x in model.get_input_embeddings()(ids)]
    maps = attention_maps(model, ids)[0, 0]
    for t, (query, _) in enumerate(projected):
        for head in range(len(query)):
            scores = []
            for j, (_, key) in enumerate(projected[: t + 1]):
                turned = rotate(query[head : head + 1], [t - j], config).flatten()
                scores.append(turned @ key[head * len(key) // len(query)] / len(turned) ** 0.5)
            expected = torch.stack(scores).softmax(0)
            assert (maps[head, t, : t + 1] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
@pytest.mark.parametrize(("length", "num_keys"), [(1, 1), (9, 4), (16, 16)])
def test_sink_strength(family, length, num_keys):
    model, texts = cached_model(family), tiny_ids(3, length)
    strength = sink_strength(model, texts, num_keys)
    maps = attention_maps(model, texts)  # (L, B, H, T, T)
    layers, _, heads = maps.shape[:3]
    assert strength.shape == (3, layers, heads, num_keys)
    for text, layer, head, key in product(range(3), *map(range, strength.shape[1:])):
        received = [maps[layer, text, head, query, key].item() for query in range(key, length)]
        expected = sum(received) / len(received)
        assert strength[text, layer, head, key].item() == pytest.approx(expected, abs=1e-6)
    assert sink_strength(model, texts[1], num_keys).equal(strength[1])


def test_a_head_with_a_sink_in_some_texts_counts_there():
    """Averaged over the texts first, neither head would have one."""
    strength = torch.tensor([[[[0.5], [0.1]]], [[[0.0], [0.4]]], [[[0.0], [0.1]]]])
    assert heads_with_sink(strength).tolist() == [0.5, 0.5, 0.0]
    assert (strength.mean(0) < 0.3).all()


def test_nothing_is_switched_that_another_thread_could_see():
    """Dense losses by a second thread are the same to the last bit, whoever looks at attention."""
    model, ids = cached_model("llama_gqa"), tiny_ids(1, 60)
    model.set_attn_implementation("sdpa")
    expected = evaluate(model, ids).nll
    with ThreadPoolExecutor(1) as other:
        looking = other.submit(lambda: [attention_maps(model, ids) for _ in range(10)])
        while not looking.done():
            assert model.config._attn_implementation == "sdpa"
            assert torch.equal(evaluate(model, ids).nll, expected)
        assert len(looking.result()) == 10
    twin = with_attention(model, "eager")
    assert (twin.config._attn_implementation, model.config._attn_implementation) == (
        "eager",
        "sdpa",
    )
    mine, its = ([x.data_ptr() for x in m.parameters()] for m in (model, twin))
    assert mine == its
    with pytest.raises(IndexError):
        attention_maps(model, torch.tensor([VOCAB]))
    assert torch.equal(evaluate(model, ids).nll, expected)
