"""All the ways in which a model is called: the right numbers, or refused before the first token."""

import copy
import gc
import re
import threading
import weakref
from importlib.util import find_spec

import pytest
import torch
from reference import (
    assert_greedy,
    cached_model,
    literal_window,
    nll_of,
    own_generate,
    tiny_ids,
    tiny_model,
)
from transformers import DynamicCache, StaticCache

from lib import (
    TOVA,
    CompressedCache,
    FixSizeL2,
    StreamingLLM,
    disable_streaming_llm,
    enable_streaming_llm,
    evaluate,
    generate,
)

START, RECENT = 3, 9
BUDGET = START + RECENT
METHOD = StreamingLLM(START, RECENT)
MASK = (torch.arange(20) >= torch.tensor([0, 13])[:, None]).long()  # rows of 20 and of 7 tokens


class Adapted(torch.nn.Module):
    """Built as PEFT's models are: an outer model, around a tuner, around the model."""

    class Tuner(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, *args, **kwargs):
            return self.model.forward(*args, **kwargs)  # not its call: hooks are passed by

    def __init__(self, model):
        super().__init__()
        self.base_model, self.config = self.Tuner(model), model.config

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return self.base_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def generate(self, *args, **kwargs):
        return self.base_model.model.generate(*args, **kwargs)


def by_peft(model):
    """PEFT's own, with random adapters, which are put into `model` itself."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config).eval()


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    yield
    torch._dynamo.reset()


NO_PEFT = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")
PEFT = pytest.param(by_peft, marks=NO_PEFT)
WRAPPERS = pytest.mark.parametrize("wrap", [Adapted, PEFT, compiled, lambda model: model])


def assert_rows(found: torch.Tensor, model, ids: torch.Tensor, mask=MASK) -> None:
    """Logits (B, T, V) of left-padded rows are those of each row alone."""
    for row, text, seen in zip(found, ids, mask.bool(), strict=True):
        expected = literal_window(model, text[seen], START, RECENT)
        assert (row[seen] - expected).abs().max() < 1e-4


@WRAPPERS
def test_a_wrapped_model_streams_once_enabled(wrap):
    model, ids = tiny_model("llama_gqa"), tiny_ids(20)
    wrapped = wrap(model)
    plain, _ = own_generate(wrapped, ids, 20)
    enable_streaming_llm(wrapped, START, RECENT, buffer=0)
    new, logits = own_generate(wrapped, ids, 20)
    expected = literal_window(model, torch.cat((ids, new[0, :-1])), START, RECENT)
    assert_greedy(expected, new[0], logits[0])
    cache = DynamicCache()
    with torch.no_grad():
        parts = [wrapped(x, past_key_values=cache).logits[0] for x in ids[None].split(7, dim=1)]
    assert (torch.cat(parts) - literal_window(model, ids, START, RECENT)).abs().max() < 1e-4
    disable_streaming_llm(model)  # by its own name as well
    del cache
    torch._dynamo.reset()  # it keeps what it has seen
    gc.collect()
    disable_streaming_llm(wrapped)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(own_generate(wrapped, ids, 20)[0], plain)


@WRAPPERS
@pytest.mark.parametrize("made_from_the_wrapped", [True, False])
def test_a_wrapped_models_padding_is_seen(wrap, made_from_the_wrapped):
    model, ids = tiny_model("neox_25"), tiny_ids(2, 20)
    wrapped = wrap(model)
    cache = CompressedCache(wrapped if made_from_the_wrapped else model, METHOD)
    with torch.no_grad():
        parts, at = [], 0
        for piece in ids.split([8, 1, 1, 10], dim=1):
            at += piece.shape[1]
            part = wrapped(piece, attention_mask=MASK[:, :at], past_key_values=cache)
            parts.append(part.logits)
    assert_rows(torch.cat(parts, dim=1), model, ids)


@pytest.mark.parametrize("call", ["model", "forward", "body"])
@pytest.mark.parametrize("how", ["named", "by position", "all by position"])
def test_arguments_by_name_and_by_position(call, how):
    model, ids = cached_model("llama_gqa"), tiny_ids(2, 20)
    cache = CompressedCache(model, METHOD)
    call = {"model": model, "forward": model.forward, "body": model.model}[call]
    arguments, named = [ids], {"attention_mask": MASK, "past_key_values": cache}
    if how != "named":
        arguments.append(named.pop("attention_mask"))
    if how == "all by position":
        arguments += [None, named.pop("past_key_values")]
    with torch.no_grad():
        output = call(*arguments, **named)
        logits = model.lm_head(output[0]) if call is model.model else output.logits
    assert_rows(logits, model, ids)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_models_settings_stay_as_they_are_during_a_step(attention):
    model, seen = tiny_model("neox_25", attn_implementation=attention), []
    layer = model.base_model.layers[0]
    layer.register_forward_hook(lambda *_: seen.append(model.config._attn_implementation))
    for method in (METHOD, TOVA(5)):
        cache = CompressedCache(model, method)
        with torch.no_grad():
            for piece in tiny_ids(1, 30).split([25, 1, 1, 3], dim=1):
                model(piece, past_key_values=cache)
    assert seen == [attention] * (2 + 8)  # two before all steps, to learn how it rotates


def test_a_model_is_probed_once_and_no_stream_takes_notice():
    model, ids, forwards, steps = tiny_model("llama_gqa"), tiny_ids(20), [], []
    model.model.layers[0].register_forward_hook(lambda *_: forwards.append(1))
    model.model.register_forward_pre_hook(lambda *_: steps.append(1))
    enable_streaming_llm(model, START, RECENT, buffer=0)
    for wrap in (Adapted, compiled, lambda model: model, lambda model: model.model):
        CompressedCache(wrap(model), METHOD)
        CompressedCache(model, FixSizeL2(8, skip_layers=()), positions="original")
    assert (len(forwards), steps) == (2, [])  # of some tokens, and of some at a far position
    own_generate(model, ids, 5)
    assert len(forwards) == 2 + 5
    gone = weakref.ref(model.model)
    del model
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("at", [0, 1])
def test_an_interrupt_leaves_nothing_behind(enabled, at):
    model, ids = tiny_model("llama_gqa"), tiny_ids(30)
    plain = own_generate(model, ids, 5)
    if enabled:
        enable_streaming_llm(model, START, RECENT, buffer=0)

    def interrupt(*_):
        raise KeyboardInterrupt

    def run():
        return own_generate(model, ids, 5, None if enabled else CompressedCache(model, METHOD))

    expected = run()
    handle = model.model.layers[at].self_attn.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run()
    handle.remove()
    assert all(torch.equal(*pair) for pair in zip(run(), expected, strict=True))
    disable_streaming_llm(model)
    assert all(torch.equal(*pair) for pair in zip(own_generate(model, ids, 5), plain, strict=True))


@pytest.mark.parametrize("where", ["lib.cache.window.WindowStore.plan", "lib.cache.rope.Rope.turn"])
def test_an_interrupt_between_model_and_cache_is_noticed(where, monkeypatch):
    model, ids = cached_model("llama_gqa"), tiny_ids(1, 30)
    monkeypatch.setattr("lib.cache.compressed.REBASE_EVERY", 1)
    cache = CompressedCache(model, METHOD)
    with torch.no_grad():
        model(ids[:, :20], past_key_values=cache)
        with monkeypatch.context() as patch:
            patch.setattr(where, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                model(ids[:, 20:21], past_key_values=cache)
        with pytest.raises(RuntimeError, match="failed midway"):
            model(ids[:, 20:21], past_key_values=cache)
        cache.reset()
        logits = model(ids, past_key_values=cache).logits[0]
    assert (logits - literal_window(model, ids[0], START, RECENT)).abs().max() < 1e-4


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("static", [True, False])
def test_an_interrupted_step_whose_tokens_are_counted_is_noticed(failure, last, static):
    """A step of fixed shape is counted before the model has read it, any by its last update."""
    model, ids = tiny_model("llama_gqa"), tiny_ids(1, 30)
    cache = CompressedCache(model, METHOD, static=static)

    def interrupt(*_):
        raise failure

    with torch.no_grad():
        model(ids[:, :20], past_key_values=cache)
        model(ids[:, 20:21], past_key_values=cache)
        part = model.model.norm if last else model.model.layers[0].self_attn
        handle = part.register_forward_hook(interrupt)
        with pytest.raises(failure):
            model(ids[:, 21:22], past_key_values=cache)
        handle.remove()
        with pytest.raises(RuntimeError, match="failed midway"):
            model(ids[:, 21:22], past_key_values=cache)
        cache.reset()
        logits = model(ids, past_key_values=cache).logits[0]
    assert (logits - literal_window(model, ids[0], START, RECENT)).abs().max() < 1e-4


def test_a_copy_of_a_cache_goes_on_when_the_first_is_gone():
    model, ids = tiny_model("llama_gqa"), tiny_ids(1, 30)
    cache = CompressedCache(model, METHOD)
    with torch.no_grad():
        model(ids[:, :20], past_key_values=cache)
        twin = copy.deepcopy(cache)
        assert twin.seen == 20
        del cache
        gc.collect()
        disable_streaming_llm(model)
        logits = model(ids[:, 20:], past_key_values=twin).logits[0]
    expected = literal_window(model, ids[0], START, RECENT)[20:]
    assert (logits - expected).abs().max() < 1e-4
    del twin
    gc.collect()
    disable_streaming_llm(model)
    assert not any(x._forward_pre_hooks or x._forward_hooks for x in model.modules())


def test_autocast_streams():
    """Sinks' logits stay in 32 bits: in 16 they would neither fit nor be told apart."""
    model, ids = tiny_model("llama_gqa", torch.float32), tiny_ids(60)
    exact = evaluate(model, ids, METHOD, 60).nll
    with torch.autocast("cpu", torch.bfloat16):
        whole, single = (evaluate(model, ids, METHOD, size).nll for size in (60, 1))
        dense = evaluate(model, ids, None, 60).nll
    rounding = (dense - evaluate(model, ids, None, 60).nll).abs().max()
    for nll in (whole, single):
        assert (nll - exact).abs().max() < 4 * rounding


@pytest.mark.parametrize("name", ["flash_attention_4", "paged|flash_attention_2", "a/flash-attn"])
def test_kernels_without_masks_are_refused_with_padding(name):
    cache = CompressedCache(cached_model("llama_gqa"), METHOD)
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    with pytest.raises(ValueError, match=rf"attn_implementation={re.escape(repr(name))}: allowed"):
        cache.step(3, attention_mask=mask, attention=name)


def test_a_window_that_no_layer_has_hides_nothing():
    model = tiny_model("qwen2", sliding_window=4, layer_types=["full_attention"] * 2)
    ids = tiny_ids(40)
    for method in (METHOD, FixSizeL2(8, skip_layers=())):
        plain = tiny_model("qwen2")
        expected, found = (evaluate(x, ids, method, 7).nll for x in (plain, model))
        assert torch.equal(found, expected)


def test_threads_that_make_a_models_first_cache_leave_it_training():
    for _ in range(5):
        model = tiny_model("llama_gqa", torch.float32).train()
        threads = [threading.Thread(target=CompressedCache, args=(model, METHOD)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(module.training for module in model.modules())


def test_threads_share_a_model():
    model = tiny_model("llama_gqa", torch.float32)
    texts = [tiny_ids(200, seed=seed) for seed in range(4)]
    methods = [METHOD, None, TOVA(8), StreamingLLM(1, 20)]
    alone = [evaluate(model, *each, 50).nll for each in zip(texts, methods, strict=True)]
    found = [[] for _ in texts]

    def run(number: int) -> None:
        for _ in range(6):
            found[number].append(evaluate(model, texts[number], methods[number], 50).nll)

    threads = [threading.Thread(target=run, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, runs in zip(alone, found, strict=True):
        assert len(runs) == 6
        assert all(torch.equal(nll, expected) for nll in runs)


def test_gradient_checkpointing_in_training_is_refused():
    model, ids = tiny_model("llama_gqa"), tiny_ids(1, 20)
    expected = evaluate(model, ids, METHOD, 7).nll
    model.activation_checkpointing_enable()
    assert torch.equal(evaluate(model, ids, METHOD, 7).nll, expected)
    model.train()
    cache = CompressedCache(model, METHOD)
    for run in (
        lambda: evaluate(model, ids, METHOD, 7),
        lambda: evaluate(model, ids, None, 7),
        lambda: generate(model, ids, None, 2),
        lambda: generate(model, ids, "static", 2),
        lambda: model(ids, past_key_values=cache),
    ):
        with pytest.raises(ValueError, match="model.training=True: allowed is False"):
            run()
    model.activation_checkpointing_disable()  # then training is as good
    assert torch.equal(evaluate(model, ids, METHOD, 7).nll, expected)


@pytest.mark.parametrize("made", ["before", "while", "by generate"])
def test_a_cache_works_on_when_streaming_is_disabled(made):
    model, ids = tiny_model("llama_gqa"), tiny_ids(2, 20)
    first = CompressedCache(model, METHOD)
    enable_streaming_llm(model, START, RECENT, buffer=0)
    caches = {"before": first, "while": CompressedCache(model, METHOD), "by generate": None}
    cache = caches[made]
    if made == "by generate":
        cache = DynamicCache()
        with torch.no_grad():
            before = model(ids[:, :2], attention_mask=MASK[:, :2], past_key_values=cache).logits
    del first, caches
    disable_streaming_llm(model)
    with torch.no_grad():
        start = int(cache.get_seq_length())
        logits = model(ids[:, start:], attention_mask=MASK, past_key_values=cache).logits
    logits = torch.cat((before, logits), dim=1) if start else logits
    assert_rows(logits, model, ids)
    del cache
    disable_streaming_llm(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_cache_of_the_callers_own_streams():
    model, ids = tiny_model("llama_gqa"), tiny_ids(1, 40)
    enable_streaming_llm(model, START, RECENT, buffer=0)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        parts = [model(x, past_key_values=cache).logits[0] for x in ids.split(8, dim=1)]
    assert (torch.cat(parts) - literal_window(model, ids[0], START, RECENT)).abs().max() < 1e-4
    assert cache.get_seq_length() == 40
    assert cache.cached_lengths == [BUDGET] * 2


def test_a_cache_that_was_asked_for_is_not_replaced():
    model, ids = tiny_model("llama_gqa"), tiny_ids(20)
    full = DynamicCache()
    with torch.no_grad():
        model(ids[None, :5], past_key_values=full)
    enable_streaming_llm(model, START, RECENT)
    for kind in ("offloaded", "static"):
        with pytest.raises(ValueError, match="past_key_values='.*without cache_implementation"):
            own_generate(model, ids, 3, cache_implementation=kind)
    with pytest.raises(ValueError, match="past_key_values='DynamicCache': allowed is an empty"):
        model(ids[None, 5:], past_key_values=full)
    static = StaticCache(config=model.config, max_cache_len=30)
    with pytest.raises(ValueError, match="past_key_values='StaticCache'"):
        model(ids[None], past_key_values=static)
    assert full.get_seq_length() == 5
    new, _ = own_generate(model, ids, 3, cache_implementation="dynamic")
    assert new.shape == (1, 3)


@pytest.mark.parametrize("method", [None, METHOD, FixSizeL2(8, skip_layers=())])
def test_the_librarys_own_caches_stay_where_streaming_is_enabled(method):
    model, ids = tiny_model("llama_gqa"), tiny_ids(30)
    expected = evaluate(model, ids, method, 7).nll, generate(model, ids, method, 5).tokens
    enable_streaming_llm(model, 1, 3, buffer=0)
    found = evaluate(model, ids, method, 7).nll, generate(model, ids, method, 5).tokens
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    if method is None:
        assert torch.equal(generate(model, ids, "static", 5).tokens, expected[1])


@pytest.mark.parametrize("seen", [0, 20])
@pytest.mark.parametrize("n", [1, 4])
def test_other_position_ids_are_refused(seen, n):
    model, ids = cached_model("llama_gqa"), tiny_ids(1, 30)
    cache = CompressedCache(model, METHOD)
    with torch.no_grad():
        if seen:
            model(ids[:, :seen], past_key_values=cache)
        own = torch.arange(seen, seen + n)[None]
        other = own.clone()
        other[0, -1] += 3
        for wrong in (other, torch.cat((own, other)), torch.arange(seen, seen + n + 1)[None]):
            with pytest.raises(ValueError, match=r"position_ids=\[.*allowed is None, or the tok"):
                model(ids[:, seen : seen + n], past_key_values=cache, position_ids=wrong)
        piece = ids[:, seen : seen + n]
        logits = model(piece, past_key_values=cache, position_ids=own).logits[0]
    expected = literal_window(model, ids[0, : seen + n], START, RECENT)[seen:]
    assert (logits - expected).abs().max() < 1e-4


def test_position_ids_of_padded_rows():
    model, ids = cached_model("llama_gqa"), tiny_ids(2, 20)
    own = (MASK.cumsum(-1) - 1).clamp(min=0)
    given = {"attention_mask": MASK, "past_key_values": CompressedCache(model, METHOD)}
    with torch.no_grad():
        with pytest.raises(ValueError, match="position_ids"):
            model(ids, position_ids=torch.arange(20)[None], **given)
        assert_rows(model(ids, position_ids=own, **given).logits, model, ids)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("hidden", [[7], [0, 1], [19]])
def test_a_mask_that_hides_past_tokens_is_refused(n, hidden):
    model, ids = cached_model("llama_gqa"), tiny_ids(1, 30)
    cache = CompressedCache(model, METHOD)
    mask = torch.ones(1, 20 + n, dtype=torch.long)
    mask[0, hidden] = 0
    with torch.no_grad():
        model(ids[:, :20], past_key_values=cache)
        with pytest.raises(ValueError, match="attention_mask"):
            model(ids[:, 20 : 20 + n], attention_mask=mask, past_key_values=cache)
        with pytest.raises(ValueError, match="attention_mask"):
            own_generate(model, ids[:, : 20 + n], 3, cache, attention_mask=mask)
        with pytest.raises(ValueError, match=r"attention_mask.shape=\(1, \d\): allowed is"):
            model(ids[:, 20 : 20 + n], attention_mask=mask[:, -n:], past_key_values=cache)


@pytest.mark.parametrize("chunk", [1, 3])
def test_padded_prompts_in_the_models_own_chunks(chunk):
    model, ids = cached_model("llama_gqa"), tiny_ids(2, 20)
    options = {"attention_mask": MASK, "prefill_chunk_size": chunk}
    new, logits = own_generate(model, ids, 9, CompressedCache(model, METHOD), **options)
    for row in range(2):
        text = torch.cat((ids[row, MASK[row].bool()], new[row, :-1]))
        assert_greedy(literal_window(model, text, START, RECENT), new[row], logits[row])


def test_only_the_new_tokens_without_a_mask_are_refused():
    """generate() takes a mask as long as its ids for the whole text, and cuts off what was seen."""
    model, ids = cached_model("llama_gqa"), tiny_ids(1, 30)
    for seen, new in ((20, 1), (20, 5), (20, 10), (5, 4)):
        cache = CompressedCache(model, METHOD)
        with torch.no_grad():
            model(ids[:, :seen], past_key_values=cache)
        with pytest.raises(ValueError, match="(new tokens|position_ids)=.*a mask over all"):
            own_generate(model, ids[:, seen : seen + new], 3, cache)
        assert cache.get_seq_length() == seen


def test_inference_mode_and_then_no_grad():
    for method in (METHOD, FixSizeL2(8, skip_layers=()), TOVA(8)):
        model, ids = cached_model("llama_gqa"), tiny_ids(2, 40)
        caches = [CompressedCache(model, method) for _ in range(2)]
        for number, piece in enumerate(ids.split([10, 8, 1, 1, 5, 5, 1, 1, 8], dim=1)):
            mode = torch.no_grad if number % 3 else torch.inference_mode
            with mode():
                found = model(piece, past_key_values=caches[0]).logits
                caches[0].reorder_cache(torch.tensor([1, 0]))
                caches[0].batch_select_indices([1, 0])
            with torch.no_grad():
                expected = model(piece, past_key_values=caches[1]).logits
            assert torch.equal(found, expected)


def test_int32_ids():
    model, ids = cached_model("llama_gqa"), tiny_ids(2, 30)
    for method in (None, METHOD):
        expected = evaluate(model, ids, method, 7).nll
        assert torch.equal(evaluate(model, ids.int(), method, 7).nll, expected)
        expected = generate(model, ids, method, 5).tokens
        assert torch.equal(generate(model, ids.int(), method, 5).tokens, expected)


@pytest.mark.parametrize("method", [METHOD, FixSizeL2(BUDGET, skip_layers=()), TOVA(BUDGET)])
@pytest.mark.parametrize("prompt", [5, 20])
def test_layers_show_what_is_held(method, prompt):
    """As a DynamicCache does where nothing has left; sinks stand where the next token sees them."""
    model, ids = cached_model("llama_gqa"), tiny_ids(1, 30)
    cache, dense = CompressedCache(model, method), DynamicCache()
    assert cache.layers[0].keys is None
    with torch.no_grad():
        for piece in ids.split([prompt, *[1] * (30 - prompt)], dim=1):
            model(piece, past_key_values=cache)
            model(piece, past_key_values=dense)
            for layer, other, held in zip(
                cache.layers, dense.layers, cache.cached_lengths, strict=True
            ):
                shape = (1, 2, held, 8)
                assert (layer.keys.shape, layer.values.shape) == (shape, shape)
                if cache.evicted == 0:
                    assert torch.allclose(layer.keys, other.keys, atol=1e-12)
                    assert torch.allclose(layer.values, other.values, atol=1e-12)
    if method is METHOD:
        # as a Llama layer keeps them: values are those of the tokens, keys stand next to each other
        layer, other = cache.layers[0], dense.layers[0]
        kept = [*range(START), *range(30 - RECENT, 30)]
        assert torch.allclose(layer.values, other.values[:, :, kept], atol=1e-12)
        distance = torch.tensor(kept[START:]).min() - START
        turned = cache.ropes[0].turn(other.keys[:, :, :START], distance)
        expected = torch.cat((turned, other.keys[:, :, kept[START:]]), dim=2)
        assert torch.allclose(layer.keys, expected, atol=1e-6)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("method", [StreamingLLM(3, 40), FixSizeL2(40, skip_layers=())])
def test_what_has_not_left_can_be_taken_back(method, padded):
    padded = padded and method.window is not None
    model, ids = cached_model("llama_gqa"), tiny_ids(2, 30)
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, : 4 * padded] = 0
    cache, wrong = CompressedCache(model, method), tiny_ids(2, 6, seed=9)
    with torch.no_grad():
        for taken, piece in enumerate(ids.split([2, 5, 10, 1, 12], dim=1), 1):
            seen = int(cache.get_seq_length())
            extra = torch.cat((mask[:, :seen], torch.ones(2, taken, dtype=torch.long)), dim=1)
            if seen > 4:
                model(wrong[:, :taken], attention_mask=extra, past_key_values=cache)
                cache.crop(-taken)
                assert cache.get_seq_length() == seen
                assert cache.layers[0].keys.shape[2] == seen
            at = mask[:, : seen + piece.shape[1]]
            logits = model(piece, attention_mask=at, past_key_values=cache).logits
        expected = model(ids, attention_mask=mask).logits[:, -12:]
    assert (logits - expected).abs().max() < 1e-4
    cache.crop(0)
    for count in (1, -31):
        with pytest.raises(ValueError, match=f"tokens_to_remove={count}: allowed is -30..0"):
            cache.crop(count)


@pytest.mark.parametrize("method", [METHOD, FixSizeL2(8, skip_layers=()), TOVA(40)])
def test_what_has_left_cannot_be_taken_back(method):
    model, ids = cached_model("llama_gqa"), tiny_ids(1, 20)
    cache = CompressedCache(model, method)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    with pytest.raises(ValueError, match="tokens=20: allowed is as few as stay"):
        cache.crop(-1)
    assert cache.get_seq_length() == 20


ASSISTED = {
    "lookup": lambda: {"prompt_lookup_num_tokens": 4},
    "assistant": lambda: {"assistant_model": tiny_model("llama_gqa", seed=1)},
    "itself": lambda: {"assistant_model": tiny_model("llama_gqa")},  # mostly right
}


@pytest.mark.parametrize("how", ASSISTED)
@pytest.mark.parametrize(("recent", "buffer"), [(9, 0), (9, 4), (60, 0)])
@pytest.mark.parametrize("prompt", [4, 30])
def test_assisted_decoding(how, recent, buffer, prompt):
    model, ids = cached_model("llama_gqa"), tiny_ids(20)
    ids = torch.cat((ids, ids[:10]))[:prompt]
    plain, assisted = (CompressedCache(model, StreamingLLM(3, recent), buffer) for _ in range(2))
    expected = own_generate(model, ids, 30, plain)
    found = own_generate(model, ids, 30, assisted, **ASSISTED[how]())
    assert torch.equal(found[0], expected[0])
    assert (found[1] - expected[1]).abs().max() < 1e-4
    # which has read no further than what it gave, and goes on
    kept = int(assisted.get_seq_length())
    assert kept in (prompt + 28, prompt + 29)
    stream = torch.cat((ids, found[0][0]))
    with torch.no_grad():
        logits = model(stream[None, kept:], past_key_values=assisted).logits[0]
    expected = literal_window(model, stream, 3, recent, buffer=buffer)
    assert (logits - expected[kept:]).abs().max() < 1e-4


@pytest.mark.parametrize("how", ASSISTED)
@pytest.mark.parametrize("buffer", [0, 4])
def test_assisted_decoding_once_enabled(how, buffer):
    model, ids = tiny_model("llama_gqa"), tiny_ids(20)
    ids = torch.cat((ids, ids[:10]))
    expected = own_generate(model, ids, 30, CompressedCache(model, StreamingLLM(3, 9), buffer))
    enable_streaming_llm(model, 3, 9, buffer)
    found = own_generate(model, ids, 30, **ASSISTED[how]())
    assert torch.equal(found[0], expected[0])
    assert (found[1] - expected[1]).abs().max() < 1e-4


@pytest.mark.parametrize(("n", "taken", "ok"), [(64, 64, True), (70, 64, True), (70, 65, False)])
def test_the_last_tokens_of_a_step_can_be_taken_back_once_enabled(n, taken, ok):
    model, ids = tiny_model("llama_gqa"), tiny_ids(1, 90)
    enable_streaming_llm(model, 3, 9, 0)
    cache = DynamicCache()
    with torch.no_grad():
        model(ids[:, :10], past_key_values=cache)
        model(ids[:, 10 : 10 + n], past_key_values=cache)
        if not ok:
            with pytest.raises(ValueError, match="tokens=80: allowed is as few as stay"):
                cache.crop(-taken)
            return
        cache.crop(-taken)
        held = 10 + n - taken
        logits = model(ids[:, held:], past_key_values=cache).logits[0]
    expected = literal_window(model, ids[0], 3, 9)[held:]
    assert (logits - expected).abs().max() < 1e-4


def test_assisted_decoding_that_is_refused():
    """Before any token is read."""
    model, ids, more = cached_model("llama_gqa"), tiny_ids(20), {"prompt_lookup_num_tokens": 3}
    for cache, told in (
        (CompressedCache(model, METHOD, prefill="dense"), "tokens=2.*can't come back"),
        (CompressedCache(model, TOVA(60)), "compressor='tova': allowed is one that looks at pos"),
    ):
        with pytest.raises(ValueError, match=told):
            own_generate(model, ids, 20, cache, **more)
        assert cache.get_seq_length() == 0


def test_rows_by_a_tuple_and_a_layer_that_is_not_there():
    model, ids = cached_model("llama_gqa"), tiny_ids(3, 30)
    for method in (METHOD, FixSizeL2(8, skip_layers=()), TOVA(8)):
        cache, expected = CompressedCache(model, method), CompressedCache(model, method)
        cache.batch_select_indices((0, 2))  # nothing to choose from
        assert cache.get_mask_sizes(4, 99) == DynamicCache().get_mask_sizes(4, 99) == (4, 0)
        with torch.no_grad():
            model(ids[:, :20], past_key_values=cache)
            model(ids[[0, 2], :20], past_key_values=expected)
            cache.batch_select_indices((0, 2))
            assert cache.get_mask_sizes(4, 99) == (4, 0)
            new = [model(ids[[0, 2], 20:], past_key_values=c).logits for c in (cache, expected)]
        assert torch.allclose(*new, atol=1e-10)


def test_an_evaluation_in_training_mode_is_the_same():
    model, ids = tiny_model("neox_25"), tiny_ids(30)
    expected = nll_of(literal_window(model, ids, START, RECENT), ids)
    assert (evaluate(model.train(), ids, METHOD, 7).nll - expected).abs().max() < 1e-4
