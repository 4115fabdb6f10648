"""Those of transformers' decoders that differ most; `benchmarks/architectures.py` runs them all."""

import sys

import pytest
import torch
import transformers.masking_utils as masking
from decoders import sweep, tiny, tiny_config
from torch.nn.functional import pad

from lib import TOVA, CompressedCache, StreamingLLM, evaluate
from lib.cache import compressed

EXACT = [
    "gpt_neox",  # a part of a head's dims, parallel layers
    "phi",  # the same by another name
    "glm",  # neighbouring dims
    "exaone4",  # layers without rotation
    "gemma3_text",  # one rotation for local layers, one for global ones
    "gemma2",  # a soft cap
    "gpt_oss",  # learned sinks, experts
    "stablelm",  # keyword arguments don't reach its attention
    "gptj",  # attends in a method of its own, positions in a table
    "falcon",  # attends by PyTorch's function
]
# latents; learned positions; queries that are scaled by their position; layers that share a cache
PARTLY = ["deepseek_v3", "gpt2", "beam", "gemma4_text", "diffllama"]
REFUSED = {
    "lfm2": "layer 0 caches a state",
    "falcon_h1": "layer 0 caches a state",
    "deepseek_v32": "layer 0 caches more than keys and values (sparse attention)",
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
    elif model_type == "gemma4_text":  # a layer's tokens are attended to by other layers, too
        by_keys = {name for name in outcomes if name.startswith("by attention")}
    elif model_type == "diffllama":  # values of one head meet keys of another
        by_keys = {name for name in outcomes if name.startswith("by ")}
    assert refused == by_keys


OWN = ["gptj", "codegen", "gpt_neox_japanese", "falcon", "gemma3n_text"]


@pytest.mark.parametrize("model_type", OWN)
def test_padded_rows_are_as_alone(model_type):
    """Attention of their own, and shared caches: pads in front, static caches, and 16 bits."""
    model = tiny(tiny_config(model_type, sliding_window=128))
    rows = [torch.arange(1, 25), torch.arange(40, 45)]
    ids = torch.stack([pad(row, (24 - len(row), 0)) for row in rows])
    mask = (ids > 0).long()
    wanted = {"max_new_tokens": 20, "output_logits": True, "return_dict_in_generate": True}
    given = {"input_ids": ids, "attention_mask": mask, "do_sample": False} | wanted
    for static in (False, True):
        cache = CompressedCache(model, StreamingLLM(3, 9), static=static)
        together = model.generate(**given, past_key_values=cache)
        for i, row in enumerate(rows):
            cache = CompressedCache(model, StreamingLLM(3, 9))
            alone = model.generate(
                row[None], past_key_values=cache, do_sample=False, **wanted, attention_mask=None
            )
            assert torch.equal(together.sequences[i, 24:], alone.sequences[0, len(row) :])
            for one, other in zip(together.logits, alone.logits, strict=True):
                assert torch.allclose(one[i], other[0], atol=1e-5)
    dense = model.generate(**given)
    room = model.generate(**given, past_key_values=CompressedCache(model, StreamingLLM(3, 97)))
    assert torch.allclose(torch.stack(room.logits), torch.stack(dense.logits), atol=1e-5)


@pytest.mark.parametrize("model_type", OWN)
def test_16_bits(model_type):
    """As near to float32 as one chunk of the text is to single tokens."""
    model, ids = tiny(tiny_config(model_type)), torch.arange(1, 61)
    exact = evaluate(model, ids, StreamingLLM(3, 9)).nll
    model = model.to(torch.bfloat16)
    for chunk in (1, 60):
        nll = evaluate(model, ids, StreamingLLM(3, 9), chunk).nll
        assert (nll - exact).abs().mean() < 0.2 * exact.std()


def test_a_table_of_positions_ends():
    """GPT-J looks its angles up: a stream goes on for longer, as with a table that is longer."""
    ids = torch.arange(1, 91).repeat(4)
    weights = tiny(tiny_config("gptj", n_positions=512)).state_dict()
    nll = []
    for positions in (64, 512):
        model = tiny(tiny_config("gptj", n_positions=positions))
        model.load_state_dict(weights)
        nll += [evaluate(model, ids, StreamingLLM(3, 9), chunk).nll for chunk in (1, 7, 50)]
    assert all(torch.allclose(x, nll[-1], atol=1e-6) for x in nll)
    model = tiny(tiny_config("gptj", n_positions=64))
    with pytest.raises(ValueError, match="tokens=.*allowed is at most 64 in the cache and a step"):
        evaluate(model, ids, StreamingLLM(3, 60), 7)


@pytest.mark.parametrize("model_type", ["llama", *OWN])
@pytest.mark.parametrize("pads", [5, 13, 30, 57])
@pytest.mark.parametrize("every", [16, 1024])
def test_rows_that_begin_late(model_type, pads, every, monkeypatch):
    """A padded row is as alone, though positions began again before it had its sinks."""
    monkeypatch.setattr(compressed, "REBASE_EVERY", every)
    model = tiny(tiny_config(model_type, sliding_window=128))
    ids = torch.arange(1, 81).expand(2, -1).clone()
    mask = torch.ones_like(ids)
    ids[1, :pads] = mask[1, :pads] = 0
    logits = []
    for rows, skipped in ((slice(0, 2), 0), (slice(0, 1), 0), (slice(1, 2), pads)):
        cache, parts = CompressedCache(model, StreamingLLM(3, 9)), []
        for start in range(skipped, 80, 7):
            piece, seen = slice(start, start + 7), slice(skipped, min(start + 7, 80))
            more = {"attention_mask": mask[rows, seen], "past_key_values": cache}
            with torch.no_grad():
                parts.append(model(input_ids=ids[rows, piece], **more).logits)
        logits.append(torch.cat(parts, dim=1))
    together, first, second = logits
    torch.testing.assert_close(together[:1], first, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1:, pads:], second, atol=1e-5, rtol=1e-5)


def test_methods_that_look_at_attention_refuse_shared_layers_that_they_would_skip():
    model = tiny(tiny_config("gemma4_text"))
    with pytest.raises(ValueError, match="doesn't look at attention"):
        CompressedCache(model, TOVA(12, skip_layers=(1,)))


@pytest.mark.parametrize("model_type", ["gptj", "falcon"])
def test_a_mask_that_has_lost_its_step_shows(model_type, monkeypatch):
    """As one that was copied to another device: NaN, not a text in which all see all."""
    model = tiny(tiny_config(model_type))
    own = masking.create_causal_mask
    module = sys.modules[type(model).__module__]
    lost = lambda **given: own(**given | {"attention_mask": given["attention_mask"].clone()})  # noqa: E731
    cache = CompressedCache(model, StreamingLLM(3, 9))
    monkeypatch.setattr(module, "create_causal_mask", lost)
    assert model(input_ids=torch.arange(1, 41)[None], past_key_values=cache).logits.isnan().any()


def test_falcon_needs_the_fused_function():
    model = tiny(tiny_config("falcon", attn_implementation="eager"))
    with pytest.raises(ValueError, match="attn_implementation='eager': allowed is 'sdpa'"):
        CompressedCache(model, StreamingLLM(3, 9))


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
