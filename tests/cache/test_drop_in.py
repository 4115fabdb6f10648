"""The cache under a model's own forward and `generate`, against the literal definitions."""

import copy
import re

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    FAMILIES,
    MORE_FAMILIES,
    assert_greedy,
    cached_model,
    distinct_ids,
    literal_scattered,
    literal_window,
    own_generate,
    tiny_ids,
    tiny_model,
    windows,
)
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from lib import (
    CompressedCache,
    FixSizeL2,
    L2Compress,
    RecentOnly,
    StreamingLLM,
    disable_streaming_llm,
    enable_streaming_llm,
    evaluate,
    generate,
)

START, RECENT = 3, 9
BUDGET = START + RECENT
METHOD = StreamingLLM(START, RECENT)


def fed(prompt: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """All tokens the model was fed: the last new one never is."""
    return torch.cat((prompt, new[:-1]))


@pytest.mark.parametrize("family", MORE_FAMILIES)
@pytest.mark.parametrize(
    ("attention", "dtype", "prompt", "length", "atol"),
    [
        ("sdpa", torch.float64, 5, 10 * BUDGET, 1e-4),
        ("sdpa", torch.float64, 30, 4 * BUDGET, 1e-4),
        ("eager", torch.float64, 30, 4 * BUDGET, 1e-4),
        ("sdpa", torch.float32, 30, 4 * BUDGET, 3e-4),
    ],
)
def test_generate_is_strict_streaming(family, attention, dtype, prompt, length, atol):
    model, ids = cached_model(family, dtype, attn_implementation=attention), tiny_ids(prompt)
    cache = CompressedCache(model, METHOD)
    new, logits = own_generate(model, ids, length, cache)
    expected = literal_window(model, fed(ids, new[0]), START, RECENT)
    assert_greedy(expected, new[0], logits[0], atol)
    assert int(cache.get_seq_length()) == prompt + length - 1
    assert cache.cached_lengths == [BUDGET, BUDGET]


@pytest.mark.parametrize("family", ["neox_25", "qwen3"])
@pytest.mark.parametrize("start_size", [0, 1])
@pytest.mark.parametrize("positions", ["in_cache", "original"])
def test_few_sinks_and_both_positions(family, start_size, positions):
    model, ids = cached_model(family), tiny_ids(20, seed=1)
    method = StreamingLLM(start_size, 7) if start_size else RecentOnly(7)
    new, logits = own_generate(model, ids, 40, CompressedCache(model, method, positions=positions))
    expected = literal_window(model, fed(ids, new[0]), start_size, 7, positions)
    assert_greedy(expected, new[0], logits[0])


@pytest.mark.parametrize("family", MORE_FAMILIES)
@pytest.mark.parametrize("prefill", ["streamed", "dense"])
def test_the_manual_loop_generates_the_same(family, prefill):
    model, ids = cached_model(family), tiny_ids(2, 25)
    cache = CompressedCache(model, METHOD, prefill=prefill)
    own, _ = own_generate(model, ids, 30, cache)
    ours = generate(model, ids, METHOD, max_new_tokens=30, prefill=prefill, prefill_chunk=7)
    assert torch.equal(ours.tokens, own)


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    start_size=st.integers(0, 4),
    recent_size=st.integers(1, 12),
    pieces=st.lists(st.integers(1, 25), min_size=1, max_size=6),
    positions=st.sampled_from(["in_cache", "original"]),
)
def test_plain_calls_in_pieces(family, start_size, recent_size, pieces, positions):
    model, ids = cached_model(family), tiny_ids(sum(pieces))
    cache = CompressedCache(model, StreamingLLM(start_size, recent_size), positions=positions)
    with torch.no_grad():
        parts = [model(x[None], past_key_values=cache).logits[0] for x in ids.split(pieces)]
    expected = literal_window(model, ids, start_size, recent_size, positions)
    assert (torch.cat(parts) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["neox_25", "qwen2", "yarn"])
@pytest.mark.parametrize("prompt", [5, 30])
def test_dense_prefill(family, prompt):
    model, ids = cached_model(family), tiny_ids(prompt)
    new, logits = own_generate(model, ids, 40, CompressedCache(model, METHOD, prefill="dense"))
    expected = literal_window(model, fed(ids, new[0]), START, RECENT, cut_from=prompt)
    assert_greedy(expected, new[0], logits[0])
    if prompt > BUDGET:  # the two kinds of prefill do differ
        streamed = literal_window(model, fed(ids, new[0]), START, RECENT)
        assert (streamed - expected)[prompt - 1 :].abs().max() > 0.1


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
def test_the_models_own_chunked_prefill(family):
    model, ids = cached_model(family), tiny_ids(30)
    new, logits = own_generate(model, ids, 20, CompressedCache(model, METHOD), prefill_chunk_size=7)
    assert_greedy(literal_window(model, fed(ids, new[0]), START, RECENT), new[0], logits[0])


@pytest.mark.parametrize("family", ["neox_25", "qwen3"])
def test_a_config_is_enough_for_single_tokens(family):
    model, ids = tiny_model(family), tiny_ids(2, 100)
    cache, logits = CompressedCache(model.config, METHOD), []
    pieces = [7, 5, *[1] * 88]  # up to the budget, then one by one
    with torch.no_grad():
        for piece in ids.split(pieces, dim=1):
            logits.append(model(piece, past_key_values=cache).logits)
    for row, found in zip(ids, torch.cat(logits, dim=1), strict=True):
        assert (found - literal_window(model, row, START, RECENT)).abs().max() < 1e-4


@pytest.mark.parametrize("held", [0, 5, BUDGET])
def test_a_config_is_not_enough_for_steps_past_the_budget(held):
    model, ids = tiny_model("llama"), tiny_ids(1, held + 20)
    cache = CompressedCache(model.config, METHOD)
    with torch.no_grad():
        if held:
            model(ids[:, :held], past_key_values=cache)
        with pytest.raises((RuntimeError, ValueError)) as error:
            model(ids[:, held:], past_key_values=cache)
        assert re.search("model|prefill|token", str(error.value))
        assert cache.cached_lengths == [held, held]
        # and the stream goes on as if nothing had been
        rows = [model(token, past_key_values=cache).logits for token in ids[:, held:].split(1, 1)]
    expected = literal_window(model, ids[0], START, RECENT)[held:]
    assert (torch.cat(rows, dim=1)[0] - expected).abs().max() < 1e-4


def traces(model) -> dict:
    """All that streaming might leave behind in a model."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return {
        "hooks": [len(getattr(m, name)) for m in model.modules() for name in hooks],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "classes": [type(m) for m in model.modules()],
        "attention": model.config._attn_implementation,
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
        "state": list(model.state_dict()),
        "forward": model.forward,
        "generate": model.generate,
    }


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_enable_and_disable(family, attention):
    model, ids = tiny_model(family, attn_implementation=attention), tiny_ids(20)
    before, (plain, plain_logits) = traces(model), own_generate(model, ids, 30)
    enable_streaming_llm(model, start_size=START, recent_size=RECENT, buffer=0)
    for _ in range(2):  # every call is a new stream
        new, logits = own_generate(model, ids, 30)
        assert_greedy(literal_window(model, fed(ids, new[0]), START, RECENT), new[0], logits[0])
    disable_streaming_llm(model)
    assert traces(model) == before
    again, again_logits = own_generate(model, ids, 30)
    assert torch.equal(again, plain)
    assert torch.equal(again_logits, plain_logits)
    assert not torch.equal(logits, plain_logits)


def test_enable_as_it_comes():
    """4 sinks, 508 recent tokens and 64 to spare."""
    model, ids = tiny_model("neox_25", max_position_embeddings=1024), tiny_ids(600)
    with torch.no_grad():
        dense = model(ids[None]).logits[0]
    enable_streaming_llm(model)
    short, _ = own_generate(model, ids[:500], 70)  # ends before the first cut
    new, logits = own_generate(model, ids, 2)
    disable_streaming_llm(model)
    assert torch.equal(short, own_generate(model, ids[:500], 70)[0])
    again = own_generate(model, ids, 2, CompressedCache(model, StreamingLLM(4, 508), buffer=64))
    assert torch.equal(new, again[0])
    assert (logits - again[1]).abs().max() < 1e-5
    assert (logits[0, 0] - dense[-1]).abs().max() > 0.1


def test_enabling_twice_leaves_nothing_behind():
    model, ids = tiny_model("llama"), tiny_ids(20)
    before, (plain, _) = traces(model), own_generate(model, ids, 20)
    enable_streaming_llm(model, start_size=START, recent_size=RECENT, buffer=0)
    size = (2, 5)
    try:
        enable_streaming_llm(model, start_size=2, recent_size=5, buffer=0)
    except (RuntimeError, ValueError):
        size = (START, RECENT)  # refused: the first setting stays
    new, logits = own_generate(model, ids, 20)
    assert_greedy(literal_window(model, fed(ids, new[0]), *size), new[0], logits[0])
    disable_streaming_llm(model)
    assert traces(model) == before
    assert torch.equal(own_generate(model, ids, 20)[0], plain)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_cache_leaves_the_models_other_caches_alone(attention):
    model, ids = tiny_model("neox_25", attn_implementation=attention), tiny_ids(1, 20)
    plain = own_generate(model, ids, 10)
    streams = [(CompressedCache(model, StreamingLLM(2, size)), size) for size in (3, 7)]
    with torch.no_grad():
        for piece in ids.split(5, dim=1):  # in turns
            rows = [model(piece, past_key_values=cache).logits[0] for cache, _ in streams]
    for (_, size), row in zip(streams, rows, strict=True):
        assert (row - literal_window(model, ids[0], 2, size)[-5:]).abs().max() < 1e-4
    assert all(torch.equal(*pair) for pair in zip(plain, own_generate(model, ids, 10), strict=True))


def lowest_norms(size: int, recent: int, buffer: int = 0):
    """What FixSizeL2 keeps outside layer 0, which it skips."""

    def keep(norms, layer):
        if layer == 0 or len(norms) <= size + buffer:
            return range(len(norms))
        older = range(len(norms) - recent)
        return [
            *sorted(older, key=norms.__getitem__)[: size - recent],
            *range(len(norms))[-recent:],
        ]

    return keep


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa", "qwen3"])
@pytest.mark.parametrize("positions", ["in_cache", "original"])
def test_norm_methods_under_generate(family, positions):
    model, ids = cached_model(family, vocab_size=200), distinct_ids(15, 200)
    method = FixSizeL2(6, 0.5, skip_layers=(0,))
    new, logits = own_generate(model, ids, 20, CompressedCache(model, method, positions=positions))
    expected = literal_scattered(
        model, fed(ids, new[0]), lowest_norms(6, 3), positions, cut_from=15
    )
    assert_greedy(expected, new[0], logits[0])
    ours = generate(model, ids, method, max_new_tokens=20, positions=positions)
    assert torch.equal(ours.tokens, new[0])


def test_l2_compress_under_generate():
    def keep(norms, layer):
        if layer == 0 or len(norms) <= 8:
            return range(len(norms))
        return sorted(range(len(norms)), key=norms.__getitem__)[: -(-len(norms) // 2)]

    model, ids = cached_model("neox_25", vocab_size=200), distinct_ids(15, 200)
    new, logits = own_generate(
        model, ids, 20, CompressedCache(model, L2Compress(0.5, 8, skip_layers=(0,)))
    )
    expected = literal_scattered(model, fed(ids, new[0]), keep, cut_from=15)
    assert_greedy(expected, new[0], logits[0])


def test_what_a_cache_tells():
    model, ids = cached_model("llama"), tiny_ids(1, 150)
    cache = CompressedCache(model, METHOD)
    said = repr(cache)
    assert re.search("streaming_?llm", said, re.IGNORECASE)
    assert str(BUDGET) in said
    with torch.no_grad():
        for t in range(150):
            assert int(cache.get_seq_length()) == t
            assert cache.cached_lengths == [min(t, BUDGET)] * 2
            assert cache.evictions == cache.evicted == max(0, t - BUDGET)
            model(ids[:, t : t + 1], past_key_values=cache)
    token = 8 * 2 * 2 * 4 * 8  # bytes, layers, keys and values, heads, their size
    assert token * BUDGET <= cache.nbytes < token * 150
    first = own_generate(model, ids[:, :20], 5, CompressedCache(model, METHOD))
    cache.reset()
    assert int(cache.get_seq_length()) == cache.evictions == cache.evicted == 0
    assert cache.cached_lengths == [0, 0]
    again = own_generate(model, ids[:, :20], 5, cache)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert cache.evicted == 24 - BUDGET


def padded(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and their mask, (B, T)."""
    ids = tiny_ids(len(lengths), max(lengths), seed=5)
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    return ids * mask, mask.long()


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa", "mistral_sliding", "yarn"])
# padded rows of float64 models are nan in transformers' own eager attention
@pytest.mark.parametrize("kind", [("sdpa", torch.float64, 1e-4), ("eager", torch.float32, 3e-4)])
@pytest.mark.parametrize(
    ("lengths", "positions"),
    [((20, 13, 4, 1), "in_cache"), ((20, 13), "original"), ((7, 5), "in_cache")],
)
def test_padded_rows_are_alone(family, kind, lengths, positions):
    attention, dtype, atol = kind
    model = cached_model(family, dtype, attn_implementation=attention)
    ids, mask = padded(*lengths)
    cache = CompressedCache(model, METHOD, positions=positions)
    new, logits = own_generate(model, ids, 30, cache, attention_mask=mask)
    for row, length in enumerate(lengths):
        prompt = ids[row, -length:]
        expected = literal_window(model, fed(prompt, new[row]), START, RECENT, positions)
        assert_greedy(expected, new[row], logits[row], atol)


@pytest.mark.parametrize("buffer", [0, 3])
def test_padded_rows_of_a_dense_prompt(buffer):
    model, lengths = cached_model("llama_gqa"), (25, 14, 12, 4)
    ids, mask = padded(*lengths)
    cache = CompressedCache(model, METHOD, buffer=buffer, prefill="dense")
    new, logits = own_generate(model, ids, 30, cache, attention_mask=mask)
    for row, length in enumerate(lengths):
        stream = fed(ids[row, -length:], new[row])
        expected = literal_window(model, stream, START, RECENT, buffer=buffer, cut_from=length)
        assert_greedy(expected, new[row], logits[row])


def test_padded_rows_in_plain_calls():
    model, (ids, mask) = cached_model("neox_25"), padded(30, 17, 9)
    cache, at = CompressedCache(model, METHOD), 0
    with torch.no_grad():
        rows = []
        for piece in ids.split([24, 1, 1, 4], dim=1):
            at += piece.shape[1]
            part = model(piece, attention_mask=mask[:, :at], past_key_values=cache)
            rows.append(part.logits)
    for row, length in enumerate((30, 17, 9)):
        expected = literal_window(model, ids[row, -length:], START, RECENT)
        assert (torch.cat(rows, dim=1)[row, -length:] - expected).abs().max() < 1e-4


def test_padded_rows_once_enabled():
    model, (ids, mask) = tiny_model("llama_gqa"), padded(20, 6)
    enable_streaming_llm(model, start_size=START, recent_size=RECENT, buffer=0)
    new, _ = own_generate(model, ids, 30, attention_mask=mask)
    for row, length in enumerate((20, 6)):
        alone, _ = own_generate(model, ids[row, -length:], 30)
        assert torch.equal(alone[0], new[row])


@pytest.mark.parametrize(
    ("mask", "method"),
    [
        ([1, 1, 1, 1, 0, 0], METHOD),
        ([1, 1, 0, 1, 1, 1], METHOD),
        ([0, 1, 1, 0, 1, 1], METHOD),
        ([0, 0, 1, 1, 1, 1], FixSizeL2(4, skip_layers=())),
        ([0, 0, 1, 1, 1, 1], L2Compress(0.5, 2, skip_layers=())),
    ],
)
def test_masks_that_are_refused(mask, method):
    model = cached_model("llama")
    cache = CompressedCache(model, method)
    mask = torch.tensor([[1] * 6, mask])
    with pytest.raises(ValueError, match="mask|padd"):
        own_generate(model, tiny_ids(2, 6), 3, cache, attention_mask=mask)
    assert int(cache.get_seq_length()) == 0
    assert cache.cached_lengths == [0, 0]


def log_likelihood(logits: torch.Tensor, new: torch.Tensor) -> float:
    """Of the tokens `new` by the last rows of `logits`."""
    return logits[-len(new) :].log_softmax(-1).gather(1, new[:, None]).sum().item()


@pytest.mark.parametrize("family", ["neox_25", "qwen3"])
@pytest.mark.parametrize(("lengths", "length"), [((16, 16), 90), ((16, 7), 20)])
def test_beam_search(family, lengths, length):
    model, (ids, mask) = cached_model(family), padded(*lengths)
    options = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0}
    output = model.generate(
        ids,
        attention_mask=mask,
        past_key_values=CompressedCache(model, METHOD),
        max_new_tokens=length,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    beams = output.sequences[:, max(lengths) :]
    assert len({tuple(beam.tolist()) for beam in beams}) == 6
    for number, (beam, score) in enumerate(zip(beams, output.sequences_scores, strict=True)):
        prompt = ids[number // 3, -lengths[number // 3] :]
        logits = literal_window(model, fed(prompt, beam), START, RECENT)
        assert score.item() == pytest.approx(log_likelihood(logits, beam), abs=1e-3)


def test_beam_search_with_a_norm_method():
    model, ids = cached_model("neox_25", vocab_size=200), distinct_ids(15, 200)
    method = FixSizeL2(6, 0.5, skip_layers=(0,))
    output = model.generate(
        ids[None],
        attention_mask=torch.ones(1, 15, dtype=torch.long),
        past_key_values=CompressedCache(model, method),
        max_new_tokens=15,
        num_beams=3,
        num_return_sequences=3,
        length_penalty=0.0,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    for beam, score in zip(output.sequences[:, 15:], output.sequences_scores, strict=True):
        logits = literal_scattered(model, fed(ids, beam), lowest_norms(6, 3), cut_from=15)
        assert score.item() == pytest.approx(log_likelihood(logits, beam), abs=1e-3)


@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
def test_sampling(family):
    """The literal model, drawing with the same seed, draws the same tokens."""
    model, ids = cached_model(family), tiny_ids(16)
    torch.manual_seed(7)
    new, logits = own_generate(
        model,
        ids,
        30,
        CompressedCache(model, METHOD),
        do_sample=True,
        top_k=0,
        num_return_sequences=3,
    )
    expected = torch.stack(
        [literal_window(model, fed(ids, row), START, RECENT)[15:] for row in new]
    )
    assert (logits - expected).abs().max() < 1e-4
    torch.manual_seed(7)
    drawn = [torch.multinomial(p, 1) for p in expected.float().softmax(-1).unbind(1)]
    assert torch.equal(torch.cat(drawn, dim=1), new)
    assert len({tuple(row.tolist()) for row in new}) == 3


@pytest.mark.parametrize("family", ["neox_25", "qwen2"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_chat_is_one_stream(family, whole):
    model, cache = cached_model(family), CompressedCache(cached_model(family), METHOD)
    stream = torch.empty(0, dtype=torch.long)
    for turn, length in enumerate((5, 20, 1)):
        said = tiny_ids(length, seed=turn)
        stream = torch.cat((stream, said))
        # the last token of the answer before was not fed yet
        shown = stream if whole else stream[int(cache.get_seq_length()) :]
        mask = torch.ones(1, len(stream), dtype=torch.long)
        new, logits = own_generate(model, shown, 15, cache, attention_mask=mask)
        expected = literal_window(model, fed(stream, new[0]), START, RECENT)
        assert_greedy(expected, new[0], logits[0])
        stream = torch.cat((stream, new[0]))
        assert int(cache.get_seq_length()) == len(stream) - 1


def tiny_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=61, n_embd=16, n_layer=2, n_head=2, n_positions=128, initializer_range=0.5
    )
    config.bos_token_id = config.eos_token_id = None
    return GPT2LMHeadModel(config).double().eval()


def tiny_bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=61, hidden_size=8, n_layer=1, n_head=2)).eval()


def masked_logits(model, ids: torch.Tensor, seen) -> torch.Tensor:
    """Logits (T, V) of one dense forward under a mask of `windows`, at original positions."""
    mask = torch.full((len(ids), len(ids)), torch.finfo(torch.float64).min, dtype=torch.float64)
    for t, pairs in enumerate(seen):
        mask[t, [j for j, _ in pairs]] = 0
    with torch.no_grad():
        return model(ids[None], attention_mask=mask[None, None]).logits[0]


@pytest.mark.parametrize("buffer", [0, 3])
def test_gpt2_at_original_positions(buffer):
    model, ids = tiny_gpt2(), tiny_ids(20)
    cache = CompressedCache(model, METHOD, positions="original", buffer=buffer)
    new, logits = own_generate(model, ids, 50, cache)
    stream = fed(ids, new[0])
    expected = masked_logits(model, stream, windows(69, START, RECENT, "original", buffer))
    assert_greedy(expected, new[0], logits[0])
    scores = evaluate(model, stream, METHOD, 7, positions="original", buffer=buffer).nll
    nll = -expected[:-1].log_softmax(-1).gather(1, stream[1:, None])[:, 0]
    assert (scores - nll).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("make", "positions", "told"),
    [
        (tiny_gpt2, "in_cache", "gpt2"),
        (tiny_bloom, "in_cache", "bloom|ALiBi"),
        (tiny_bloom, "original", "bloom|ALiBi"),
    ],
)
def test_models_that_are_refused(make, positions, told):
    model = make()
    with pytest.raises(ValueError, match=re.compile(told, re.IGNORECASE)) as error:
        CompressedCache(model, METHOD, positions=positions)
    assert re.search("position|rotary|alibi", str(error.value), re.IGNORECASE)
    if positions == "in_cache":
        before = traces(model)
        with pytest.raises(ValueError, match=re.compile(told, re.IGNORECASE)):
            enable_streaming_llm(model)
        assert traces(model) == before


@pytest.mark.parametrize("buffer", [0, 5])
@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_a_models_own_window(family, buffer):
    """Tokens held and the query itself must fit in; then the model's own window hides nothing."""
    needed = BUDGET + buffer + 1
    own = {"max_window_layers": 1, "use_sliding_window": True} if family != "mistral" else {}
    small = cached_model(family, sliding_window=needed - 1, **own)
    with pytest.raises(ValueError, match="window"):
        CompressedCache(small, METHOD, buffer=buffer)
    with pytest.raises(ValueError, match="window"):
        enable_streaming_llm(small, start_size=START, recent_size=RECENT, buffer=buffer)
    model, ids = cached_model(family, sliding_window=needed, **own), tiny_ids(30)
    new, logits = own_generate(model, ids, 40, CompressedCache(model, METHOD, buffer=buffer))
    expected = literal_window(model, fed(ids, new[0]), START, RECENT, buffer=buffer)
    assert_greedy(expected, new[0], logits[0])


@pytest.mark.parametrize("how", ["cpu", "disk", "dispatched"])
@pytest.mark.parametrize("family", ["neox_25", "llama_gqa"])
def test_offloaded_models(family, how, tmp_path):
    model, ids = copy.deepcopy(cached_model(family)), tiny_ids(20)
    plain, _ = own_generate(model, ids, 15)
    expected, _ = own_generate(model, ids, 15, CompressedCache(model, METHOD))
    scores = evaluate(model, ids, METHOD, 7).nll
    if how == "cpu":
        cpu_offload(model, torch.device("cpu"))
    elif how == "disk":
        disk_offload(model, tmp_path, torch.device("cpu"))
    else:
        parts = [name for name, _ in model.base_model.named_children()]
        prefix = model.base_model_prefix
        places = {f"{prefix}.{name}": "cpu" for name in parts if name != "layers"}
        places |= {f"{prefix}.layers.0": "cpu", f"{prefix}.layers.1": "disk"}
        places |= {name: "cpu" for name, _ in model.named_children() if name != prefix}
        dispatch_model(model, places, torch.device("cpu"), offload_dir=tmp_path)
    assert torch.equal(own_generate(model, ids, 15)[0], plain)
    assert torch.equal(own_generate(model, ids, 15, CompressedCache(model, METHOD))[0], expected)
    assert torch.equal(generate(model, ids, METHOD, max_new_tokens=15).tokens, expected[0])
    assert torch.equal(evaluate(model, ids, METHOD, 7).nll, scores)
    enable_streaming_llm(model, start_size=START, recent_size=RECENT, buffer=0)
    assert torch.equal(own_generate(model, ids, 15)[0], expected)
    disable_streaming_llm(model)
    assert torch.equal(own_generate(model, ids, 15)[0], plain)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"positions": "in-cache"}, "positions='in-cache'"),
        ({"prefill": "sparse"}, "prefill='sparse'"),
        ({"buffer": -1}, "buffer=-1"),
        ({"buffer": 1.5}, "buffer=1.5"),
    ],
)
def test_arguments_that_are_refused(arguments, told):
    model = cached_model("llama")
    with pytest.raises(ValueError, match=told):
        CompressedCache(model, METHOD, **arguments)
    with pytest.raises(ValueError, match=told):
        generate(model, tiny_ids(5), METHOD, **arguments)
