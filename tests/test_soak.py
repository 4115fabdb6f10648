"""benchmarks/soak.py on 20,000 tokens of a tiny model."""

import importlib.util

import pytest
import torch
from reference import tiny_model

from lib import StreamingLLM
from lib.paths import ROOT

spec = importlib.util.spec_from_file_location("soak", ROOT / "benchmarks" / "soak.py")
soak = importlib.util.module_from_spec(spec)
spec.loader.exec_module(soak)
PROMPT = torch.arange(1, 9)
STEADY = {"resident_mib": 100.0, "ms_per_token_p10": 2.0}


def test_twenty_thousand_tokens_in_constant_memory():
    model = tiny_model("neox_25", torch.float32)
    table = soak.soak(model, PROMPT, 20_000, 10, StreamingLLM(4, 28))
    assert table.position.tolist() == [8 + 2000 * part for part in range(1, 11)]
    assert set(table.cache_length) == {32}
    assert table.logits_error.iloc[-1] < 1e-3
    soak.check(table.assign(ms_per_token_p10=2.0))  # the machine may be at other work


def test_a_model_of_fewer_layers_is_the_same_up_to_there():
    model = tiny_model("neox_25", torch.float32)
    with torch.no_grad():
        states = model(PROMPT[None], output_hidden_states=True).hidden_states
        soak.keep_layers(model, 1)
        short = model(PROMPT[None], output_hidden_states=True).hidden_states
        assert torch.equal(model.gpt_neox.final_layer_norm(states[1]), short[-1])
    with pytest.raises(ValueError, match="layers=2: allowed is 1 to 1"):
        soak.keep_layers(model, 2)


def test_a_wrong_position_or_a_growing_cache_is_told():
    model = tiny_model("llama_gqa", torch.float32)
    table = soak.soak(model, PROMPT, 200, 4, StreamingLLM(4, 12))
    soak.check(table.assign(**STEADY))
    for column, values in {
        "logits_error": [0.01] * 4,
        "cache_mib": [1.0, 1.0, 1.0, 1.1],
        "resident_mib": [90.0, 100.0, 100.5, 101.5],
        "ms_per_token_p10": [2.0, 2.1, 2.0, 2.7],
    }.items():
        with pytest.raises(ValueError, match=column.removeprefix("resident_mib") or "resident"):
            soak.check(table.assign(**STEADY | {column: values}))
