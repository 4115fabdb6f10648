"""What a token needs, against what torch counts and what a cache holds; exactly, no tolerance."""

import pytest
import torch
from reference import FAMILIES, cached_model, tiny_ids, tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from lib import CompressedCache, StreamingLLM, generate
from lib.cache.baseline import cache_bytes
from lib.measure.attention_maps import with_attention
from lib.measure.limits import (
    Work,
    decoding_work,
    evaluation_flops,
    flops_per_token,
    share_of_limit,
)
from lib.measure.machine import Machine

every_family = pytest.mark.parametrize("family", FAMILIES)


@torch.no_grad()
def counted(model, ids: torch.Tensor, cache: DynamicCache, **kwargs) -> int:
    """FLOPs of one forward by torch's counter; in eager attention, where all is a product."""
    eager = with_attention(model, "eager")
    with FlopCounterMode(display=False) as counter:
        eager(input_ids=ids, past_key_values=cache, **kwargs)
    return counter.get_total_flops()


def filled(model, cached: int, batch: int = 1) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    if cached:
        with torch.no_grad():
            model(input_ids=tiny_ids(batch, cached), past_key_values=cache)
    return cache


@every_family
@pytest.mark.parametrize("cached", [0, 1, 17, 40])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_decoding_step(family, cached, batch):
    model = cached_model(family, torch.float32)
    cache = filled(model, cached, batch)
    work = decoding_work(model, cached, batch)
    assert counted(model, tiny_ids(batch, 1), cache) == work.flops
    assert work.flops == batch * flops_per_token(model, cached)
    assert cache_bytes(cache) == work.cache_bytes
    assert work.bytes == work.weight_bytes + work.cache_bytes


@every_family
def test_a_prefill(family):
    """Eager attention multiplies the whole square: every token costs what the last one does."""
    model, length = cached_model(family, torch.float32), 20
    ids, cache = tiny_ids(1, length), DynamicCache(config=model.config)
    assert counted(model, ids, cache) == length * flops_per_token(model, length - 1)
    headless = counted(model, ids, DynamicCache(config=model.config), logits_to_keep=1)
    saved = 2 * model.get_output_embeddings().weight.numel()
    assert headless == length * flops_per_token(model, length - 1) - (length - 1) * saved


def test_projections_need_not_be_linear_modules():
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 61, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**shape)).eval()  # its layers are Conv1D
    cache = filled(model, 17)
    assert counted(model, tiny_ids(1, 1), cache) == flops_per_token(model, 17)
    assert cache_bytes(cache) == decoding_work(model, 17).cache_bytes


@every_family
def test_attention_is_what_grows_with_the_cache(family):
    model = cached_model(family)
    short, long = decoding_work(model, 9), decoding_work(model, 19)
    assert long.attention_flops == 2 * short.attention_flops
    assert long.flops - long.attention_flops == short.flops - short.attention_flops
    assert long.cache_bytes == 2 * short.cache_bytes
    assert long.weight_bytes == short.weight_bytes


@every_family
def test_dense_evaluation_is_its_tokens_one_by_one(family):
    model, length = cached_model(family, torch.float32), 12
    ids, cache = tiny_ids(1, length), DynamicCache(config=model.config)
    steps = [counted(model, ids[:, i : i + 1], cache) for i in range(length - 1)]
    assert sum(steps) == evaluation_flops(model, length)


@every_family
@pytest.mark.parametrize("length", [2, 9, 10, 11, 30])
def test_windowed_evaluation_is_its_tokens_one_by_one(family, length):
    model, budget = cached_model(family, torch.float32), 9
    # a model's layers are looked at with its first cache: before anything is counted
    CompressedCache(model, StreamingLLM(2, 7), positions="original")
    # unfused, scaled_dot_product_attention is two products, which the counter sees
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        generate(model, tiny_ids(length - 1), StreamingLLM(2, 7), 1, "original", prefill_chunk=1)
    assert counter.get_total_flops() == evaluation_flops(model, length, budget)
    assert evaluation_flops(model, length, budget) <= evaluation_flops(model, length)


def test_weights_are_read_once():
    model = tiny_model("llama", torch.float32)
    table = model.get_input_embeddings().weight
    rest = sum(p.nbytes for p in model.parameters()) - table.nbytes
    assert decoding_work(model, 0).weight_bytes == rest + table[0].nbytes
    assert decoding_work(model, 0, batch=5).weight_bytes == rest + 5 * table[0].nbytes
    tied = tiny_model("llama", torch.float32, tie_word_embeddings=True)
    assert decoding_work(tied, 0).weight_bytes == decoding_work(model, 0).weight_bytes


def test_bytes_follow_the_dtype():
    single, half = (tiny_model("qwen3", dtype) for dtype in (torch.float32, torch.bfloat16))
    assert decoding_work(single, 30).bytes == 2 * decoding_work(half, 30).bytes


def test_share_of_limit_takes_the_slower_of_reading_and_multiplying():
    work = Work(flops=600, attention_flops=100, weight_bytes=50, cache_bytes=150)
    assert work.bytes == 200
    assert share_of_limit(8, work, Machine(bandwidth=100, gemm=1e9)) == 0.25
    assert share_of_limit(8, work, Machine(bandwidth=100, gemm=100)) == 0.75


def test_wrong_arguments_are_named():
    model = cached_model("llama")
    with pytest.raises(ValueError, match="cached=-1"):
        flops_per_token(model, -1)
    with pytest.raises(ValueError, match="batch=0"):
        decoding_work(model, 1, batch=0)
    with pytest.raises(ValueError, match="length=1"):
        evaluation_flops(model, 1)
    with pytest.raises(ValueError, match="budget=0"):
        evaluation_flops(model, 5, budget=0)
