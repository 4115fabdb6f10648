"""Attention maps and the strength of sinks, by hand."""

import pytest
import torch
from reference import FAMILIES, VOCAB, cached_model, project, rotate, tiny_ids, tiny_model

from lib import (
    StreamingLLM,
    attention_maps,
    evaluate,
    sink_strength,
)


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
def test_sink_strength(family):
    model, ids, num_keys = cached_model(family), tiny_ids(3, 16), 5
    maps = attention_maps(model, ids)
    strength = sink_strength(model, ids, num_keys)
    heads = model.config.num_attention_heads
    assert strength.shape == (2, heads, num_keys)
    for layer in range(2):
        for head in range(heads):
            for key in range(num_keys):
                received = [
                    maps[layer, row, head, query, key].item()
                    for row in range(3)
                    for query in range(key, 16)
                ]
                expected = sum(received) / len(received)
                assert strength[layer, head, key].item() == pytest.approx(expected, abs=1e-6)


def test_the_attention_is_restored_after_an_error_too(monkeypatch):
    model = tiny_model("neox_25")
    model.set_attn_implementation("sdpa")
    attention_maps(model, tiny_ids(5))
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(IndexError):
        attention_maps(model, torch.tensor([VOCAB]))
    assert model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(model, "forward", lambda **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(model, tiny_ids(5), StreamingLLM(1, 2))
    assert model.config._attn_implementation == "sdpa"
