"""The shipped model shows what the notebooks stand on; small samples, so with some slack."""

import json

import pytest
import torch
import yaml

from lib import RecentOnly, StreamingLLM, evaluate, evaluate_recompute, load_model, load_tokens
from lib.experiments.reference_model import audit
from lib.load.texts import texts_of
from lib.measure.attention_maps import attention_maps
from lib.paths import MODELS, PARAMS
from lib.training.batches import copying_loss

BUDGET = 256


@pytest.fixture(scope="module")
def model():
    return load_model("reference")[0]


@pytest.fixture(scope="module")
def tokens():
    return load_tokens("docs", load_model("reference")[1])


@pytest.fixture(scope="module")
def texts(tokens):
    return texts_of(tokens, 6, 5 * BUDGET, bos_token_id=0)


def ppl(nll: torch.Tensor) -> float:
    return nll.double().mean().exp().item()


def test_ships_small_and_safe():
    files = list((MODELS / "reference").iterdir())
    assert sum(file.stat().st_size for file in files) < 16 * 2**20
    assert {file.suffix for file in files} <= {".json", ".md", ".safetensors"}


def test_heldout_text_is_one_long_document(tokens):
    assert len(tokens) >= 500_000
    assert tokens[0] == 0
    assert (tokens[1:] != 0).all()  # the first token stands nowhere else


def test_copies_random_tokens(model):
    assert copying_loss(model, batch_size=16, length=128) < 0.5


def test_dense_attention_fails_beyond_the_trained_length(model, tokens):
    trained = model.config.max_position_embeddings
    nll = evaluate(model, texts_of(tokens, 2, 8 * trained + 1, 0)).nll
    near, far = (nll[:, end - 256 : end] for end in (trained, 8 * trained))
    assert ppl(far) > 3 * ppl(near)


def test_window_needs_sinks(model, texts):
    window = evaluate(model, texts, RecentOnly(BUDGET)).nll[:, 2 * BUDGET :]
    streaming = evaluate(model, texts, StreamingLLM(4, BUDGET - 4)).nll[:, 2 * BUDGET :]
    assert ppl(window) > 1.1 * ppl(streaming)


def test_streaming_is_as_good_as_encoding_the_window_anew(model, texts):
    targets = torch.arange(3 * BUDGET, 5 * BUDGET, 16)
    streaming = evaluate(model, texts, StreamingLLM(4, BUDGET - 4)).nll[:, targets - 1]
    recomputed = evaluate_recompute(model, texts, BUDGET + 1, targets, start_size=4)
    assert ppl(streaming) < 1.05 * ppl(recomputed)


def test_the_audit_counts_heads_with_a_sink_text_by_text(model, tokens):
    table = audit(model, tokens[:40_000], [16], 2, 2, 512).set_index("property")
    shares = []
    for ids in texts_of(tokens[:40_000], 16, 257, bos_token_id=0)[:, :256]:
        received = attention_maps(model, ids)[:, 0, :, :, 0]  # (L, H, T), by the first token
        shares += [float(alpha > 0.3) for layer in received.mean(-1) for alpha in layer]
    assert table.value["heads with a sink (%)"] == pytest.approx(100 * sum(shares) / len(shares))
    assert table.n["heads with a sink (%)"] == 16


def test_the_recipe_is_that_of_the_parameter_file():
    recipe = json.loads((MODELS / "reference" / "recipe.json").read_text(encoding="utf-8"))
    given = yaml.safe_load((PARAMS / "reference_model.yaml").read_text(encoding="utf-8"))
    given = given["00_reference_model"]
    for name in ("step", "context", "batch_size", "optimizer", "lr", "lr_end", "warmup"):
        plural = {"step": "steps", "batch_size": "batch_sizes"}.get(name, f"{name}s")
        own = {"step": "steps"}.get(name, name)
        assert [phase[own] for phase in recipe["phases"]] == given[plural]
    assert {phase["muon_lr"] for phase in recipe["phases"]} == {0.02}
    log = json.loads((MODELS / "reference" / "training_log.json").read_text(encoding="utf-8"))
    assert log[-1]["step"] == sum(given["steps"])
