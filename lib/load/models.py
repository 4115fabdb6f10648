"""Load a model by name: shipped, from pip, a local folder, a hub id, or a shape at random."""

import os
import tempfile
import weakref
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from lib.loaded import note_model
from lib.paths import MODELS, cache_dir, local_path
from lib.require import require

from .hub import ask_for_model
from .model_folder import check_tokenizer, check_weights
from .shapes import random_model
from .smollm2 import smollm2_folder
from .wheel import SMOLLM2

REFERENCE = "reference"
RANDOM = "random:"
SPREAD = "auto"  # over all devices, by accelerate
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OFFLINE_CHOICES = (
    "'reference' (the shipped model), 'smollm2' (SmolLM2-135M-Instruct, which pip brings), a local "
    "folder (config.json, *.safetensors, tokenizer), "
    "or a shape with random weights such as 'random:EleutherAI/pythia-70m'"
)


def load_model(
    name: str = REFERENCE,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    max_memory: dict[int | str, int | str] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load (model, tokenizer), in evaluation mode.

    `name`: "reference", "smollm2" (20 seconds the first time), a local folder, a hub id, or
    "random:" and the hub id of a shape (the tokenizer is then the reference model's). `device`
    defaults to `KVLAB_DEVICE`, else to the GPU if there is one, `dtype` to float32 on CPU and for
    the reference model, else to the checkpoint's own (float16 for Pythia and "smollm2").
    `device="auto"` is for models larger than a GPU: accelerate spreads the layers over all GPUs,
    then the CPU, then the disk; `max_memory`, such as `{0: "20GB", "cpu": "60GB"}`, bounds them.
    Only safetensors are read and remote code is never run. A relative folder is looked for in the
    working directory, then in the repository. ValueError on a wrong argument, OSError if nothing is
    found or a file is missing, broken, or lacks weights.
    """
    _require_name(name)
    device = device or os.environ.get("KVLAB_DEVICE")
    spread = device == SPREAD
    device = _device(None if spread else device)
    require(spread or max_memory is None, "max_memory", max_memory, "None unless device='auto'")
    require(dtype is None or dtype in DTYPES, "dtype", dtype, f"None or one of {list(DTYPES)}")
    if name.startswith(RANDOM):
        require(not spread, "device", SPREAD, "one device for a shape with random weights")
        model = random_model(name.removeprefix(RANDOM), device, dtype)
        note_model(name, model)
        return model, load_tokenizer(REFERENCE)
    if dtype is None:
        dtype = torch.float32 if name == REFERENCE or device.type == "cpu" else "auto"
    tokenizer = load_tokenizer(name)
    source = _source(name)
    if isinstance(source, Path):
        check_weights(source)
    where, folder = {}, None
    if spread:
        # a folder of its own for what is left on disk: another's weights have the same names
        cache_dir().mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="offload-", dir=cache_dir())
        where = {"device_map": SPREAD, "offload_folder": folder.name}
    where |= {"max_memory": max_memory} if max_memory else {}
    model = _read_weights(name, source, dtype, where)
    model = (model if spread else model.to(device)).eval()
    if folder:
        weakref.finalize(model, folder.cleanup)
    note_model(name, model, source if isinstance(source, Path) else None)
    return model, tokenizer


def _read_weights(
    name: str, source: Path | str, dtype: torch.dtype | str, where: dict
) -> PreTrainedModel:
    """The model of `source` with all of its weights; OSError if they can't be read or some lack."""
    try:
        with _no_progress_bar():
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **where,
            )
    except (OSError, ValueError) as error:
        raise _unreadable("model", name, source, error) from error
    # transformers would go on with random weights
    random = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if random:
        what = f"{len(random)} tensors that config.json asks for, {random[0]} among them"
        raise OSError(f"model {name!r}: its safetensors lack {what}, or have them in other shapes")
    return model


def _require_name(name: str) -> None:
    require(isinstance(name, str), "model name", name, f"a hub id, {OFFLINE_CHOICES}")


def _device(device: str | torch.device | None) -> torch.device:
    """The device, by default the GPU if there is one; ValueError if it can't be used."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        usable = ["cpu", "auto", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise ValueError(f"device={device!r}: allowed here is one of {usable}") from error


@contextmanager
def _no_progress_bar():
    """Without the bar for reading weights from disk; downloads keep theirs."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_tokenizer(name: str = REFERENCE) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to `name`; OSError if nothing is found."""
    _require_name(name)
    source = _source(name)
    if isinstance(source, Path):
        check_tokenizer(source)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unreadable("tokenizer of model", name, source, error) from error


def _source(name: str) -> Path | str:
    """A local folder, or a hub id that the hub has; OSError if `name` is neither."""
    if name == REFERENCE:
        return MODELS / "reference"
    if name == SMOLLM2:
        with _no_progress_bar():
            return smollm2_folder()
    folder = local_path(name)
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise OSError(f"model folder {name!r}: no config.json in it. Allowed: {OFFLINE_CHOICES}")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise _not_found(name)  # no hub id: don't ask the network
    if try_to_load_from_cache(name, "config.json") is None:
        try:
            ask_for_model(name)
        except OSError as error:
            raise _not_found(name) from error
    return name


def _unreadable(what: str, name: str, source: Path | str, error: Exception) -> OSError:
    """What to raise where transformers raised `error`."""
    if isinstance(source, Path) or isinstance(error, ValueError):
        return OSError(f"{what} {name!r} can't be read: {error}")
    return _not_found(name)


def _not_found(name: str) -> OSError:
    return OSError(
        f"model {name!r}: no such local folder, and no model of that name could be fetched from "
        f"the hub (network, name, or no safetensors). Without network, use {OFFLINE_CHOICES}."
    )
