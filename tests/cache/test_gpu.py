"""A GPU gives the CPU's numbers: left out where there is none."""

import pytest
import torch
from reference import distinct_ids, own_generate, tiny_ids, tiny_model

from lib import (
    CompressedCache,
    Random,
    RecentOnly,
    StreamingLLM,
    disable_streaming_llm,
    enable_streaming_llm,
    evaluate,
    evaluate_recompute,
    generate,
)
from lib.cache.baseline import STATIC
from lib.compressors import ROWS
from lib.measure.instruments import Stopwatch
from lib.measure.memory import PeakMemory
from lib.measure.rows import rows_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GPU = "cuda"
ATOL = 1e-5  # nats; they are summed in float32
BUDGET = 24
# layer 0 is left whole: there the same token has the same key norm, and ties are no one's
METHODS = rows_of(
    [name for name in ROWS if not name.startswith("kvpress")], [BUDGET], skip_layers=(0,)
)
all_methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def both(family: str, **options) -> list:
    """One model twice: on the CPU and on the GPU."""
    return [tiny_model(family, **options).to(device) for device in ("cpu", GPU)]


@all_methods
@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
@pytest.mark.parametrize("chunk_size", [1, 16])
def test_the_loss_of_every_method(method, family, chunk_size):
    ids = distinct_ids(60)
    here, there = (evaluate(model, ids, method, chunk_size) for model in both(family))
    assert there.cache_lengths == here.cache_lengths
    torch.testing.assert_close(there.nll, here.nll, rtol=0, atol=ATOL)


@pytest.mark.parametrize("method", [StreamingLLM(3, 21), RecentOnly(BUDGET)])
@pytest.mark.parametrize("positions", ["in_cache", "original"])
def test_one_chunk_of_a_text_is_its_tokens_one_by_one(method, positions):
    """In float32, as a user runs it: exact evaluation does not hang on the chunk there either."""
    model, ids = tiny_model("llama_gqa", torch.float32).to(GPU), tiny_ids(300)
    whole, single = (evaluate(model, ids, method, size, positions).nll for size in (300, 1))
    torch.testing.assert_close(whole, single, rtol=0, atol=1e-4)


@all_methods
def test_the_same_tokens(method):
    ids = tiny_ids(2, 40)
    here, there = (generate(model, ids, method, 40) for model in both("neox_25"))
    assert torch.equal(there.tokens, here.tokens)
    assert there.layer_lengths == here.layer_lengths
    assert there.cache_bytes == here.cache_bytes


@pytest.mark.parametrize("buffer", [0, 5])
def test_compiled_and_dense_static_steps(buffer):
    model, method = tiny_model("llama_gqa").to(GPU), StreamingLLM(4, 20)
    ids = tiny_ids(40)
    plain = generate(model, ids, method, 40, buffer=buffer).tokens
    compiled = generate(model, ids, method, 40, buffer=buffer, compile=True).tokens
    assert torch.equal(compiled, plain)
    dense, static = (generate(model, ids, kind, 40).tokens for kind in (None, STATIC))
    assert torch.equal(static, dense)


def test_generate_of_transformers_with_streaming_enabled_and_left_pads():
    ids, texts = tiny_ids(3, 20), []
    mask = (torch.arange(20) >= torch.tensor([0, 9, 17])[:, None]).long()
    for model in both("neox_50"):
        enable_streaming_llm(model, 2, 6)
        options = {"attention_mask": mask.to(model.device), "pad_token_id": 0}
        new = model.generate(ids.to(model.device), max_new_tokens=60, do_sample=False, **options)
        disable_streaming_llm(model)
        texts.append(new.cpu())
    assert torch.equal(*texts)


def test_static_cache_of_ours():
    ids, method = tiny_ids(25), StreamingLLM(2, 6)
    model = tiny_model("qwen3").to(GPU)
    tokens = [
        own_generate(model, ids.to(GPU), 60, CompressedCache(model, method, static=static))[0]
        for static in (False, True)
    ]
    assert torch.equal(*tokens)


def test_recomputed_windows_and_random_controls():
    ids, targets = tiny_ids(80), torch.arange(30, 80)
    models = both("llama_gqa")
    here, there = (evaluate_recompute(model, ids, 20, targets, 3) for model in models)
    torch.testing.assert_close(there, here, rtol=0, atol=ATOL)
    for seed in range(3):
        method = Random(BUDGET, seed=seed)
        here, there = (evaluate(model, ids, method, 8).nll for model in models)
        torch.testing.assert_close(there, here, rtol=0, atol=ATOL)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype):
    ids = tiny_ids(200)
    here, there = tiny_model("llama_gqa"), tiny_model("llama_gqa", dtype).to(GPU)
    for method in (None, StreamingLLM(3, 21)):
        exact, near = (evaluate(model, ids, method, 50).nll for model in (here, there))
        assert near.isfinite().all()
        assert abs(near.mean() - exact.mean()) < 0.05


def test_peaks_and_clocks_count_the_gpu():
    with PeakMemory(torch.device(GPU)) as peak:
        torch.empty(64 * 2**20, dtype=torch.uint8, device=GPU)
    assert 64 <= peak.mib < 66
    watch, x = Stopwatch(torch.device(GPU)), torch.randn(4096, 4096, device=GPU)
    for name, times in (("few", 2), ("many", 200)):
        watch.run(name, lambda times=times: [x @ x for _ in range(times)])
    assert watch.seconds["many"] > 10 * watch.seconds["few"] > 0
