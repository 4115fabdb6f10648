"""Real shapes with random weights: for what depends on the shape alone, such as speed."""

import torch
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

# hidden size, layers, heads, vocabulary; all rotate 25% of a head and were trained on 2,048 tokens
PYTHIA_SHAPES = {
    "EleutherAI/pythia-70m": (512, 6, 8, 50304),
    "EleutherAI/pythia-160m": (768, 12, 12, 50304),
    "EleutherAI/pythia-410m": (1024, 24, 16, 50304),
    "EleutherAI/pythia-1b": (2048, 16, 8, 50304),
    "EleutherAI/pythia-1.4b": (2048, 24, 16, 50304),
    "EleutherAI/pythia-2.8b": (2560, 32, 32, 50304),
    "EleutherAI/pythia-6.9b": (4096, 32, 32, 50432),
    "EleutherAI/pythia-12b": (5120, 36, 40, 50688),
}
# hidden size, layers, heads, key-value heads, head dim, MLP, vocabulary, context, RoPE's base; all
# rotate the whole head, and the embedding is the last layer too
LLAMA_SHAPES = {
    "HuggingFaceTB/SmolLM2-135M": (576, 30, 9, 3, 64, 1536, 49152, 8192, 1e5),
    "HuggingFaceTB/SmolLM2-360M": (960, 32, 15, 5, 64, 2560, 49152, 8192, 1e5),
    "HuggingFaceTB/SmolLM2-1.7B": (2048, 24, 32, 32, 64, 8192, 49152, 8192, 1.3e5),
    "meta-llama/Llama-3.2-1B": (2048, 16, 32, 8, 64, 8192, 128256, 131072, 5e5),
    "Qwen/Qwen3-0.6B": (1024, 28, 16, 8, 128, 3072, 151936, 40960, 1e6),
}
KINDS = {"Qwen/Qwen3-0.6B": (Qwen3Config, 1e-6)}  # where not Llama: config, RMSNorm's epsilon
ROPE_SCALING = {
    "meta-llama/Llama-3.2-1B": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
}


def neox_config(
    hidden: int, layers: int, heads: int, vocabulary: int, context: int, rotary: float, **more
) -> GPTNeoXConfig:
    """GPT-NeoX as Pythia uses it; `rotary` is the share of each head that is rotated."""
    return GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=context,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": rotary,
        },
        **more,
    )


def _llama_config(name: str) -> PreTrainedConfig:
    hidden, layers, heads, kv_heads, head_dim, mlp, vocabulary, context, base = LLAMA_SHAPES[name]
    kind, epsilon = KINDS.get(name, (LlamaConfig, 1e-5))
    return kind(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=mlp,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": base} | ROPE_SCALING.get(name, {}),
        rms_norm_eps=epsilon,
        tie_word_embeddings=True,
    )


def random_model(shape: str, device: torch.device, dtype: torch.dtype | None) -> PreTrainedModel:
    """`shape` with weights that are the same every time; torch's random state stays as it was.

    ValueError unless the shape is in PYTHIA_SHAPES or LLAMA_SHAPES.
    """
    if shape in PYTHIA_SHAPES:
        config = neox_config(*PYTHIA_SHAPES[shape], context=2048, rotary=0.25)
    elif shape in LLAMA_SHAPES:
        config = _llama_config(shape)
    else:
        allowed = [f"random:{name}" for name in (*PYTHIA_SHAPES, *LLAMA_SHAPES)]
        raise ValueError(f"random:{shape}: allowed are {allowed}")
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.device(device):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
