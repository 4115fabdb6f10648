"""Those of transformers' decoders that differ most; `benchmarks/architectures.py` runs them all."""

import pytest
from decoders import sweep, tiny, tiny_config

EXACT = [
    "gpt_neox",  # a part of a head's dims, parallel layers
    "phi",  # the same by another name
    "glm",  # neighbouring dims
    "exaone4",  # layers without rotation
    "gemma3_text",  # one rotation for local layers, one for global ones
    "gemma2",  # a soft cap
    "gpt_oss",  # learned sinks, experts
    "stablelm",  # keyword arguments don't reach its attention
]
# latents; learned positions; queries that are scaled by their position
PARTLY = ["deepseek_v3", "gpt2", "beam"]
REFUSED = {
    "lfm2": "layer 0 caches a state",
    "gemma3n_text": "layer 2 caches no keys and values of its own",
    "falcon_h1": "layer 0 caches a state",
    "deepseek_v32": "layer 0 caches no keys and values of its own, or more than these",
    "bloom": "allowed is models without ALiBi",
    "roberta": "doesn't count its positions from 0",
    "bart": "heeds no position ids",
    "doge": "lays its own ['attention_mask'] over its attention",
    "llama4_text": "attention_chunk_size=8192: allowed is None",
}


@pytest.mark.parametrize("model_type", EXACT)
def test_exact(model_type):
    assert set(sweep(tiny(tiny_config(model_type))).values()) == {"exact"}


@pytest.mark.parametrize("model_type", PARTLY)
def test_exact_or_refused(model_type):
    outcomes = sweep(tiny(tiny_config(model_type)))
    refused = {name for name, x in outcomes.items() if x.startswith("refused: ")}
    assert {x for name, x in outcomes.items() if name not in refused} == {"exact"}
    by_keys = {name for name in outcomes if "original" not in name and name != "dense"}
    if model_type == "deepseek_v3":  # keys are not what is cached
        by_keys = {name for name in outcomes if name.startswith("by key norms")}
    assert refused == by_keys


def test_a_window_that_attention_is_not_told_of():
    outcomes = sweep(tiny(tiny_config("phimoe", sliding_window=16)))
    for name, x in outcomes.items():
        if name.startswith("by "):
            assert "sliding_window=16: allowed is None: the model doesn't tell its attention" in x
        elif name != "dense":  # which is the loop's own, that isn't told either
            assert x == "exact"


def test_queries_scaled_beyond_a_length():
    """Ministral's are as they were up to there: only a position far away shows it."""
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 16384,
        "llama_4_scaling_beta": 0.1,
    }
    outcomes = sweep(tiny(tiny_config("ministral3", rope_parameters=rope)))
    assert "layer 0 scales its queries by their position" in outcomes["generate()"]
    assert outcomes["streaming, original, chunks of 7"] == "exact"


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused(model_type):
    outcomes = sweep(tiny(tiny_config(model_type)))
    assert "dense" not in outcomes
    told = [x for name, x in outcomes.items() if "original" in name]
    assert all(x.startswith("refused: ") for x in outcomes.values())
    assert all(REFUSED[model_type] in x for x in told)
