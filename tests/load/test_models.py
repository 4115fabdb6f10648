"""Models by name: a local folder, a real shape with random weights, and what is refused."""

import json
import re
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch
from reference import literal_window, nll_of, tiny_ids, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPTNeoXForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from lib import H2O, LagKV, StreamingLLM, evaluate, generate, load_model, load_tokenizer
from lib.load.shapes import LLAMA_SHAPES, PYTHIA_SHAPES
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
    monkeypatch.setattr("lib.load.hub.model_info", refused)


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


TEXT = "Sinks stay in front, and the window of recent tokens moves on: they're parts of one cache. "
# tokenizer_class and first token in the files of Pythia, of Llama 3 and of Qwen3
TOKENIZERS = {
    "neox": ("GPTNeoXTokenizer", ""),
    "llama": ("PreTrainedTokenizerFast", "<|start|>"),
    "qwen3": ("Qwen2Tokenizer", ""),
}


def hub_config(model) -> dict:
    """config.json as on the hub, where rotary parameters still have their older names."""
    config = json.loads(model.config.to_json_string())
    rope = config.pop("rope_parameters")
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "gpt_neox":
        old = {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}
    else:
        old = {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
        if rope["rope_type"] == "default":
            old["rope_scaling"] = None
    return config | old


def write_tokenizer(folder: Path, kind: str) -> Tokenizer:
    """The tokenizer files of a byte-level BPE, and the plain tokenizer."""
    name, first = TOKENIZERS[kind]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", first] if first else ["<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    if first:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, 1)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": name, "eos_token": "<|endoftext|>", "add_prefix_space": False}
    config |= {"bos_token": first or "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if kind == "qwen3":
        tokenizer.model.save(str(folder))  # vocab.json, merges.txt
    return tokenizer


def as_on_the_hub(folder: Path, family: str, dtype=torch.float32, **config):
    """A tiny model in shards beside its tokenizer; the model and the plain tokenizer."""
    model = tiny_model(family, dtype, vocab_size=320, **config)
    model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "config.json").write_text(json.dumps(hub_config(model)))
    return model, write_tokenizer(folder, re.match("neox|llama|qwen3", family)[0])


@pytest.mark.parametrize(
    ("family", "tied"),
    [("neox_25", False), ("llama_gqa", False), ("llama3", True), ("qwen3", False), ("qwen3", True)],
)
def test_the_layout_of_the_hub(tmp_path, no_network, family, tied):
    before, plain = as_on_the_hub(tmp_path, family, tie_word_embeddings=tied)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    assert any("lm_head" in key or "embed_out" in key for key in index) != tied
    model, tokenizer = load_model(str(tmp_path), device="cpu")
    assert type(model) is type(before)
    expected = plain.encode(TEXT).ids
    assert tokenizer(TEXT).input_ids == expected
    assert tokenizer.decode(expected, skip_special_tokens=True) == TEXT
    assert (expected[0] == tokenizer.bos_token_id) == (family in ("llama_gqa", "llama3"))
    ids = torch.tensor(expected)
    with torch.no_grad():
        assert torch.equal(model(ids[None]).logits, before(ids[None]).logits)
    nll = evaluate(model, ids, StreamingLLM(2, 9), chunk_size=7).nll
    logits = literal_window(before, ids, 2, 9)
    assert (nll.double() - nll_of(logits, ids)).abs().max() < 1e-4
    assert len(ids) > 30


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A good folder, to be copied and broken."""
    folder = tmp_path_factory.mktemp("whole")
    as_on_the_hub(folder, "neox_25")
    return folder


SHARD = "model-00002-of-"
NEITHER = "neither model.safetensors nor model.safetensors.index.json"


@pytest.mark.parametrize(
    ("broken", "change", "told"),
    [
        (SHARD, None, f"model.safetensors.index.json names {SHARD}.*: no such file"),
        (SHARD, b"cut", rf"model file '.*{SHARD}.*\.safetensors': cut short"),
        (SHARD, b"version https://git-lfs.github.com/spec/v1\n", f"{SHARD}.*: cut short.*LFS"),
        ("model", None, NEITHER),
        ("model", "pytorch_model.bin", f"{NEITHER} in it, and pytorch_model.bin can't be read"),
        ("model.safetensors.index", b"{", "model.safetensors.index.json': no JSON of"),
        ("model.safetensors.index", b"[]", "model.safetensors.index.json': no JSON of"),
        ("model.safetensors.index", b'{"weight_map": 1}', "index.json': no JSON of"),
        ("tokenizer.json", None, "none of tokenizer.json, tokenizer.model, vocab.json in it"),
        ("tokenizer.json", b"{", "tokenizer of model '.*' can't be read"),
        ("config.json", None, "no config.json in it. Allowed: 'reference'"),
        ("config.json", b"{", "config.json' is not a valid JSON file"),
        ("config.json", b"{}", "can't be read: Unrecognized model"),
    ],
)
def test_a_broken_folder_names_its_file(
    tmp_path, no_network, whole, monkeypatch, broken, change, told
):
    folder = tmp_path / "broken"
    shutil.copytree(whole, folder)
    for file in folder.glob(f"{broken}*"):
        if change == b"cut":
            file.write_bytes(file.read_bytes()[:-1])
        elif isinstance(change, bytes):
            file.write_bytes(change)
        else:
            file.unlink()
    if isinstance(change, str):
        (folder / change).write_bytes(b"")
    monkeypatch.setattr(torch.nn.Linear, "__init__", lambda *a, **k: pytest.fail("work was begun"))
    with pytest.raises(OSError, match=told) as refusal:
        load_model(str(folder), device="cpu")
    assert str(folder) in str(refusal.value)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"num_hidden_layers": 3}, "lack 12 tensors that .* asks for, gpt_neox.layers.2.attention"),
        ({"intermediate_size": 40}, "or have them in other shapes"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(tmp_path, no_network, whole, config, told):
    """transformers would fill them in at random."""
    folder = shutil.copytree(whole, tmp_path / "other")
    before = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(before | config))
    with pytest.raises(OSError, match=f"model '.*': its safetensors .*{told}"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_what_computes_in_the_dtype_of_the_checkpoint(tmp_path, no_network, stored):
    """On anything but a CPU the checkpoint's dtype stays, and all runs in it as in float32."""
    as_on_the_hub(tmp_path, "neox_25", stored)
    assert load_model(str(tmp_path), device="meta")[0].dtype == stored
    exact, tokenizer = load_model(str(tmp_path), device="cpu")
    model, _ = load_model(str(tmp_path), device="cpu", dtype=stored)
    ids = torch.tensor(tokenizer(TEXT).input_ids)
    expected = evaluate(exact, ids, StreamingLLM(2, 9)).nll
    dense = evaluate(exact, ids).nll
    error = (evaluate(model, ids).nll - dense).abs().mean()
    assert 0 < error < 0.1
    assert (evaluate(model, ids, StreamingLLM(2, 9)).nll - expected).abs().mean() < 2 * error + 0.02
    out = generate(model, ids, StreamingLLM(2, 9), max_new_tokens=4)
    assert out.cache_bytes > 0


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_dtypes(tmp_path, no_network, tokenizer, stored):
    tiny_model("neox_25", stored).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_model(str(tmp_path), device="cpu")[0].dtype == torch.float32
    assert load_model(str(tmp_path), device="cpu", dtype=torch.float64)[0].dtype == torch.float64
    assert load_model(str(tmp_path), device="cpu", dtype=stored)[0].dtype == stored


@pytest.mark.parametrize("room", ["180KB", "1KB"])
def test_a_model_larger_than_memory_gives_the_same(tmp_path, no_network, monkeypatch, room):
    """Layers on CPU and disk, read when they are needed: cut and turned as those in memory."""
    monkeypatch.setenv("KVLAB_CACHE", str(tmp_path / "cache"))
    whole, _ = as_on_the_hub(tmp_path, "llama_gqa", num_hidden_layers=4)
    monkeypatch.setenv("KVLAB_DEVICE", "auto")  # as a notebook is told
    model, tokenizer = load_model(str(tmp_path), max_memory={"cpu": room})
    places = set(map(str, model.hf_device_map.values()))
    assert places == ({"cpu", "disk"} if room == "180KB" else {"disk"})
    ids = torch.tensor(tokenizer(TEXT * 2).input_ids)
    for method in (None, StreamingLLM(2, 9), LagKV.at_budget(11), H2O.at_budget(11)):
        expected = evaluate(whole, ids, method, chunk_size=4)
        assert torch.equal(evaluate(model, ids, method, chunk_size=4).nll, expected.nll)
    tokens = [generate(x, ids, StreamingLLM(2, 9), max_new_tokens=8).tokens for x in (model, whole)]
    assert torch.equal(*tokens)


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

    monkeypatch.setattr("lib.load.hub.model_info", offline)
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
        ({"device": "auto"}, "device='auto': allowed is one device for a shape with random"),
        ({"max_memory": {"cpu": 9}}, "max_memory={'cpu': 9}: allowed is None unless device='auto'"),
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


# layers, hidden, heads, key-value heads, head dim, MLP, vocabulary, context, base, parameters:
# config.json and the size of the safetensors on the hub
ON_THE_HUB = {
    "HuggingFaceTB/SmolLM2-135M": (30, 576, 9, 3, 64, 1536, 49152, 8192, 100000, 134_515_008),
    "HuggingFaceTB/SmolLM2-360M": (32, 960, 15, 5, 64, 2560, 49152, 8192, 100000, 361_821_120),
    "HuggingFaceTB/SmolLM2-1.7B": (24, 2048, 32, 32, 64, 8192, 49152, 8192, 130000, 1_711_376_384),
    "meta-llama/Llama-3.2-1B": (16, 2048, 32, 8, 64, 8192, 128256, 131072, 500000, 1_235_814_400),
    "Qwen/Qwen3-0.6B": (28, 1024, 16, 8, 128, 3072, 151936, 40960, 1000000, 596_049_920),
}


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_random_shapes_are_those_on_the_hub(name, no_network):
    model, _ = load_model(f"random:{name}", device="meta", dtype=torch.float32)
    config = model.config
    assert (
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.intermediate_size,
        config.vocab_size,
        config.max_position_embeddings,
        config.rope_parameters["rope_theta"],
        sum(p.numel() for p in model.parameters()),
    ) == ON_THE_HUB[name]
    assert config.model_type == ("qwen3" if name.startswith("Qwen") else "llama")
    assert config.rms_norm_eps == (1e-6 if name.startswith("Qwen") else 1e-5)
    scaled = "llama3" if name.startswith("meta") else "default"
    assert config.rope_parameters["rope_type"] == scaled
    if scaled == "llama3":
        assert config.rope_parameters["factor"] == 32
        assert config.rope_parameters["original_max_position_embeddings"] == 8192
    assert len(LLAMA_SHAPES) == len(ON_THE_HUB)


def test_random_weights_are_the_same_every_time(no_network, monkeypatch):
    monkeypatch.setitem(PYTHIA_SHAPES, "EleutherAI/pythia-70m", (32, 2, 2, 61))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, second = (load_model("random:EleutherAI/pythia-70m", "cpu")[0] for _ in range(2))
    assert torch.equal(torch.rand(4), expected)  # the caller's random numbers go on
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
