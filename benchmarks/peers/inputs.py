"""The models and tokens that all workers read: one folder a model, weights in float32."""

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from lib import load_model, load_tokens


def random_llama(folder: Path, tokens: int, layers: int, hidden: int, heads: int, vocabulary: int):
    """A Llama shape with seeded random weights, and random tokens."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=max(2048, tokens),
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    _save(folder, LlamaForCausalLM(config), torch.randint(vocabulary, (tokens,)))


def reference(folder: Path, tokens: int):
    """The reference model, and held-out text."""
    model, tokenizer = load_model("reference", device="cpu")
    _save(folder, model, load_tokens("docs", tokenizer, max_tokens=tokens))


def _save(folder: Path, model, ids: torch.Tensor) -> None:
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    (folder / "ids.json").write_text(json.dumps(ids.tolist()))
    # older transformers read these under other names, and take their own defaults without a word
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config["rope_parameters"]
    config["rope_theta"] = config["rotary_emb_base"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        config["rotary_pct"] = rope["partial_rotary_factor"]
    path.write_text(json.dumps(config, indent=1))
