"""Models by name: a local folder, a real shape with random weights, and what is refused."""

import re
import socket
import time

import pytest
import torch
from reference import tiny_ids, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from lib import load_model, load_tokenizer
from lib.models import PYTHIA_SHAPES
from lib.paths import MODELS


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(61)}, "w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")


def saved(folder, tokenizer, family: str, **options):
    """A tiny model in `folder`, and the model."""
    model = tiny_model(family, torch.float32)
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture
def no_network(monkeypatch):
    """Any connection is an error that the test sees."""

    def refused(*args, **kwargs):
        pytest.fail("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr("lib.hub.model_info", refused)


@pytest.mark.parametrize(
    ("family", "model_class"), [("neox_25", GPTNeoXForCausalLM), ("llama_gqa", LlamaForCausalLM)]
)
@pytest.mark.parametrize("shard", [None, "20KB"])
def test_a_local_folder(tmp_path, no_network, tokenizer, family, model_class, shard):
    options = {} if shard is None else {"max_shard_size": shard}
    before = saved(tmp_path, tokenizer, family, **options)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 1 if shard else files == ["model.safetensors"]
    model, read_tokenizer = load_model(str(tmp_path), device="cpu")
    assert type(model) is model_class
    assert not model.training
    assert model.dtype == torch.float32
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.state_dict().items())
    assert read_tokenizer("w5 w0 w60").input_ids == [5, 0, 60]
    ids = tiny_ids(1, 9)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before(ids).logits)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_dtypes(tmp_path, no_network, tokenizer, stored):
    tiny_model("neox_25", stored).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_model(str(tmp_path), device="cpu")[0].dtype == torch.float32
    assert load_model(str(tmp_path), device="cpu", dtype=torch.float64)[0].dtype == torch.float64
    assert load_model(str(tmp_path), device="cpu", dtype=stored)[0].dtype == stored


def test_pickled_weights_are_not_read(tmp_path, no_network, tokenizer):
    model = saved(tmp_path, tokenizer, "neox_25")
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_model(str(tmp_path), device="cpu")


def test_remote_code_is_not_run(tmp_path, no_network, tokenizer):
    saved(tmp_path, tokenizer, "neox_25")
    config = tmp_path / "config.json"
    marker = tmp_path / "ran"
    (tmp_path / "modeling_x.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass X: pass\n")
    mapped = '{"auto_map": {"AutoModelForCausalLM": "modeling_x.X", "AutoConfig": "modeling_x.X"},'
    config.write_text(config.read_text().replace("{", mapped, 1).replace('"gpt_neox"', '"new"'))
    with pytest.raises((OSError, ValueError)):
        load_model(str(tmp_path), device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["no-such-model", "./no/such", "/no/such", "~/no", "a/b/c", "reference/x/y"]
)
def test_names_that_are_no_hub_id_never_reach_the_network(no_network, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="model .*: no such local folder") as refusal:
        load_model(name, device="cpu")
    assert repr(name) in str(refusal.value)


def test_an_unknown_hub_id_offline_is_one_clear_error(monkeypatch):
    asked = []

    def offline(name, **options):
        asked.append((name, options["timeout"]))
        raise ConnectionError("no route")

    monkeypatch.setattr("lib.hub.model_info", offline)
    began = time.monotonic()
    with pytest.raises(OSError, match="model 'nobody/nothing-x1': no such local folder") as refusal:
        load_model("nobody/nothing-x1", device="cpu")
    assert time.monotonic() - began < 10
    assert asked == [("nobody/nothing-x1", 10)]
    for choice in ("'reference'", "config.json", "random:EleutherAI/pythia-70m", "network"):
        assert choice in str(refusal.value)
    with pytest.raises(OSError, match="model 'nobody/nothing-x1'"):
        load_tokenizer("nobody/nothing-x1")


def test_a_relative_folder_is_found_from_the_repository_too(
    tmp_path, no_network, tokenizer, monkeypatch
):
    root, here = tmp_path / "root", tmp_path / "here"
    here.mkdir()
    saved(root / "tiny", tokenizer, "neox_25")
    monkeypatch.setattr("lib.paths.ROOT", root)
    monkeypatch.chdir(here)
    assert type(load_model("tiny", "cpu")[0]) is GPTNeoXForCausalLM
    saved(here / "tiny", tokenizer, "llama_gqa")
    assert type(load_model("tiny", "cpu")[0]) is LlamaForCausalLM


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"name": None}, "model name=None: allowed is a hub id, 'reference'"),
        ({"device": "gpu"}, "device='gpu': allowed here is one of ['cpu'"),
        ({"device": "cuda:99"}, "device='cuda:99': allowed here is one of ['cpu'"),
        ({"dtype": "float16"}, "dtype='float16': allowed is None or one of [torch.float32"),
        ({"dtype": torch.int8}, "dtype=torch.int8: allowed is"),
    ],
)
def test_wrong_arguments_are_refused(no_network, arguments, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        load_model(**{"name": "random:EleutherAI/pythia-70m"} | arguments)


# layers, hidden, heads, vocabulary, parameters: the table of the Pythia paper (arXiv:2304.01373)
PUBLISHED = {
    "pythia-70m": (6, 512, 8, 50304, 70_426_624),
    "pythia-160m": (12, 768, 12, 50304, 162_322_944),
    "pythia-410m": (24, 1024, 16, 50304, 405_334_016),
    "pythia-1b": (16, 2048, 8, 50304, 1_011_781_632),
    "pythia-1.4b": (24, 2048, 16, 50304, 1_414_647_808),
    "pythia-2.8b": (32, 2560, 32, 50304, 2_775_208_960),
    "pythia-6.9b": (32, 4096, 32, 50432, 6_857_302_016),
    "pythia-12b": (36, 5120, 40, 50688, 11_846_072_320),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_random_shapes_are_the_published_ones(name, no_network):
    layers, hidden, heads, vocabulary, parameters = PUBLISHED[name]
    # on "meta" nothing is allocated
    model, _ = load_model(f"random:EleutherAI/{name}", device="meta", dtype=torch.float32)
    config = model.config
    assert config.num_hidden_layers == layers
    assert config.hidden_size == hidden
    assert config.num_attention_heads == heads
    assert config.vocab_size == vocabulary
    assert config.intermediate_size == 4 * hidden
    assert config.max_position_embeddings == 2048
    assert config.rope_parameters["partial_rotary_factor"] == 0.25
    assert config.rope_parameters["rope_theta"] == 10000
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(PYTHIA_SHAPES) == len(PUBLISHED)


def test_random_weights_are_the_same_every_time(no_network, monkeypatch):
    monkeypatch.setitem(PYTHIA_SHAPES, "EleutherAI/pythia-70m", (32, 2, 2, 61))
    first, second = (load_model("random:EleutherAI/pythia-70m", "cpu")[0] for _ in range(2))
    assert first.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    half, _ = load_model("random:EleutherAI/pythia-70m", "cpu", torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_an_unknown_shape_lists_the_known(no_network):
    with pytest.raises(ValueError, match="random:EleutherAI/pythia-14m: allowed are .*pythia-70m"):
        load_model("random:EleutherAI/pythia-14m")


@pytest.mark.skipif(not (MODELS / "reference").is_dir(), reason="no reference model is there")
def test_the_reference_model_loads(no_network):
    model, tokenizer = load_model(device="cpu")
    assert model.dtype == torch.float32
    ids = tokenizer("A text begins with the special token.").input_ids
    assert ids[0] == 0
    assert 0 not in ids[1:]
    assert max(ids) < model.config.vocab_size == len(tokenizer)
