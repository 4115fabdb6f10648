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
]
PARTLY = ["deepseek_v3", "gpt2"]  # latents; learned positions
REFUSED = {
    "lfm2_moe": "layer 0 caches a state",
    "falcon_h1": "layer 0 caches a state",
    "deepseek_v32": "layer 0 caches more than keys and values",
    "bloom": "allowed is models without ALiBi",
    "roberta": "doesn't count its positions from 0",
    "bart": "heeds no position ids",
    "stablelm": "keeps keyword arguments from its attention",
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
    if model_type != "gpt2":  # their methods that look at keys have none to look at
        by_keys = {name for name in outcomes if name.startswith("by key norms")}
    assert refused == by_keys


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused(model_type):
    outcomes = sweep(tiny(tiny_config(model_type)))
    assert "dense" not in outcomes
    told = [x for name, x in outcomes.items() if "original" in name or model_type == "roberta"]
    assert all(x.startswith("refused: ") for x in outcomes.values())
    assert all(REFUSED[model_type] in x for x in told)
