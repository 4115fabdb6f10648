"""Sizes of named models: their counts are those that are published."""

import pytest

from lib.experiments.speed import KEPT, model_sizes
from lib.load.shapes import LLAMA_SHAPES, PYTHIA_SHAPES

# of the models on the hub
PUBLISHED = {
    "EleutherAI/pythia-70m": 70_426_624,
    "EleutherAI/pythia-2.8b": 2_775_208_960,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "Qwen/Qwen3-0.6B": 596_049_920,
}


def test_sizes_of_named_models():
    sizes = model_sizes().set_index("model")
    assert list(sizes.index) == [*PYTHIA_SHAPES, *LLAMA_SHAPES]
    for name, count in PUBLISHED.items():
        assert sizes.parameters[name] == count
    # 30 layers, 3 heads of 64, keys and values, 2 bytes
    small = sizes.loc["HuggingFaceTB/SmolLM2-135M"]
    assert small.kv_kib_per_token * 1024 == 30 * 3 * 64 * 2 * 2
    # all weights but norms multiply once, the tied embedding as the last layer
    products = 134_515_008 - 61 * 576
    attention = 4 * 30 * 9 * 64 * KEPT
    assert small.gflop_per_token * 1e9 == pytest.approx(2 * products + attention)
    assert small["attention_%"] == pytest.approx(100 * attention / (2 * products + attention))
    # untied: a token looks up one row of the embedding, and reads everything else
    pythia = sizes.loc["EleutherAI/pythia-70m"]
    assert pythia.weight_mib * 2**20 == 2 * (70_426_624 - 50303 * 512)
    kept = sizes.weight_mib * 1024 // sizes.kv_kib_per_token
    assert (sizes.tokens_as_large == kept).all()
