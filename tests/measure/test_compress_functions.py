"""Texts evaluated under compress functions, ours and others'."""

import pytest
import torch
from reference import FAMILIES, cached_model, literal_scattered, nll_of, tiny_ids, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizer,
    PreTrainedTokenizerFast,
)

from lib import (
    RecentOnly,
    StreamingLLM,
    enable_streaming_llm,
    evaluate,
    evaluate_with_compression,
    load_tokens,
    recent_only_compress,
    streaming_llm_compress,
)

WORDS = " ".join(f"w{number}" for number in tiny_ids(40, seed=5).tolist())


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(61)}, "w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")


def test_compress_functions_of_ours_are_evaluated_as_their_method(tokenizer):
    model, ids = cached_model("neox_25"), tiny_ids(40, seed=5)
    own = evaluate_with_compression(
        model, tokenizer, WORDS, streaming_llm_compress, {"start_size": 2, "recent_size": 6}, 8
    )
    assert torch.equal(own.nll, evaluate(model, ids, StreamingLLM(2, 6), 8).nll)
    dense = evaluate_with_compression(model, tokenizer, WORDS, max_tokens=21, chunk_size=8)
    assert torch.equal(dense.nll, evaluate(model, ids[:21], None, 8).nll)


@pytest.mark.parametrize("family", FAMILIES)
def test_foreign_compress_functions_see_original_positions(tokenizer, family):
    def keep_last(pairs, count):
        assert isinstance(pairs, list)
        return [(key[:, :, -count:], value[:, :, -count:]) for key, value in pairs]

    model, ids = cached_model(family), tiny_ids(40, seed=5)
    result = evaluate_with_compression(model, tokenizer, WORDS, keep_last, {"count": 7}, 1)
    expected = evaluate(model, ids, RecentOnly(7), 1, "original")
    assert (result.nll - expected.nll).abs().max() < 5e-5
    assert result.cache_lengths == [7, 7]


class PythonTokenizer(PreTrainedTokenizer):
    """The same words, without the tokenizers library."""

    @property
    def vocab_size(self) -> int:
        return 61

    def get_vocab(self) -> dict[str, int]:
        return {f"w{number}": number for number in range(61)}

    def _tokenize(self, text, **kwargs):
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return int(token[1:])

    def _convert_id_to_token(self, index: int) -> str:
        return f"w{index}"


def test_a_tokenizer_in_plain_python(tokenizer, tmp_path):
    model, plain, ids = cached_model("neox_25"), PythonTokenizer(), tiny_ids(40, seed=5)
    own = evaluate_with_compression(model, plain, WORDS, recent_only_compress, {"window_size": 7})
    assert torch.equal(own.nll, evaluate(model, ids, RecentOnly(7)).nll)
    (tmp_path / "words.txt").write_text(WORDS)
    for length in (None, 9):
        found = load_tokens(str(tmp_path / "words.txt"), plain, length)
        assert found.dtype == torch.int64
        assert torch.equal(found, ids[:length])


@pytest.mark.parametrize("positions", ["in_cache", "original"])
def test_streaming_that_is_enabled_changes_no_evaluation(tokenizer, positions):
    model = tiny_model("llama_gqa")
    runs = [
        (None, {}),
        (recent_only_compress, {"window_size": 9}),
        (lambda pairs: [(key[:, :, -9:], value[:, :, -9:]) for key, value in pairs], {}),
    ]

    def perplexities():
        return [
            evaluate_with_compression(model, tokenizer, WORDS, *run, 5, positions=positions).ppl
            for run in runs
        ]

    expected = perplexities()
    enable_streaming_llm(model, 1, 3, buffer=0)
    assert perplexities() == expected


def test_foreign_compress_functions_that_cut_layers_unlike(tokenizer):
    def cut_last_layer(pairs):
        return [pairs[0], *recent_only_compress(pairs[1:], 3)]

    model, ids = cached_model("neox_25"), tiny_ids(40, seed=5)
    result = evaluate_with_compression(model, tokenizer, WORDS, cut_last_layer, chunk_size=1)
    expected = literal_scattered(
        model, ids, lambda norms, layer: range(len(norms))[-3 if layer else 0 :], "original"
    )
    assert (result.nll - nll_of(expected, ids)).abs().max() < 5e-5
    with pytest.raises(ValueError, match="chunk_size=4: allowed is 1 for layers cut unlike"):
        evaluate_with_compression(model, tokenizer, WORDS, cut_last_layer, chunk_size=4)
