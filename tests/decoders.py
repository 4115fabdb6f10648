"""Every decoder of transformers with tiny random weights, and the library's numbers for it against
the slow loop: exact, or refused with a reason."""

import torch
from reference import nll_of, own_generate, windows
from slow_loop import held_after, lowest_norms, most_attended, slow_loop
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lib import TOVA, CompressedCache, FixSizeL2, RecentOnly, StreamingLLM, evaluate
from lib.cache.probe import probe
from lib.require import require

VOCAB, LENGTH, PROMPT, NEW = 97, 40, 20, 60
START, RECENT, BUDGET = 3, 9, 12
ATOL = 1e-5
LARGEST = 2_000_000
# what makes any model small, where its config has a parameter of that name
SMALL = {
    (
        "vocab_size",
        "decoder_vocab_size",
        "vocab_size_per_layer_input",
        "unpadded_vocab_size",
    ): VOCAB,
    ("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_dim", "word_embed_proj_dim"): 32,
    ("embedding_size", "input_embedding_size", "output_embedding_size", "lru_width"): 32,
    ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dim_ff"): 48,
    ("intermediate_size_mlp", "ffn_hidden_size", "expert_ffn_hidden_size", "dff", "n_inner"): 48,
    ("moe_intermediate_size", "dense_intermediate_size", "shared_intermediate_size"): 16,
    ("shared_expert_intermediate_size", "shared_experts_intermediate_size", "d_inner"): 16,
    ("moe_shared_expert_intermediate_size", "router_hidden_size"): 16,
    ("num_hidden_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers"): 2,
    ("num_layers", "num_decoder_layers", "num_encoder_layers", "num_layers_per_stack"): 2,
    ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads"): 4,
    ("encoder_attention_heads", "num_decoder_attention_heads", "attention_heads"): 4,
    ("num_encoder_attention_heads", "swa_num_attention_heads"): 4,
    ("num_key_value_heads", "num_kv_heads", "num_query_groups", "swa_num_key_value_heads"): 2,
    ("head_dim", "kv_channels", "dim_head", "d_head", "swa_head_dim", "global_head_dim"): 8,
    ("rotary_dim",): 4,
    ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim"): 8,
    ("qk_head_dim", "kv_lora_rank", "q_lora_rank", "o_lora_rank"): 16,
    ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "model_max_length"): 128,
    ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"): 4,
    ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts"): 2,
    ("n_group", "topk_group", "num_expert_group", "n_shared_experts", "zero_expert_num"): 1,
    ("sliding_window", "sliding_window_size", "window_size", "attention_window_size"): 16,
    ("hidden_size_per_layer_input", "laurel_rank", "index_n_heads", "o_groups"): 4,
    ("mamba_d_state", "state_size", "ssm_state_size", "mamba_d_head", "mamba_head_dim"): 8,
    ("mamba_n_heads", "mamba_num_heads", "time_step_rank", "mamba_dt_rank"): 8,
    ("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"): 2,
    ("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"): 8,
    ("query_pre_attn_scalar",): 8,
    ("num_kv_shared_layers",): 0,
    ("pad_token_id", "bos_token_id", "unk_token_id", "sep_token_id", "cls_token_id"): 0,
    ("eos_token_id",): None,
    ("is_decoder",): True,
}
# a list with an entry per layer gets one of each kind, in this order
PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types", "block_types")
# what else a type needs to be small, or to be what it is
MORE = {
    "phimoe": {"sliding_window": None},  # which its attention isn't told
    "xlm": {"causal": True},
    "reformer": {"is_decoder": True},
    # what all or most published models of these types have, and their default configs don't
    "lfm2": {"layer_types": ["conv", "full_attention"], "full_attn_idxs": None},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"]},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [48] * 4,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "zaya": {"num_experts_per_tok": 1},
    "gemma4_text": {"global_head_dim": 16, "num_hidden_layers": 4, "num_kv_shared_layers": 2}
    | {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_top_k": 2},
    },
}


def tiny_config(model_type: str, **more) -> PreTrainedConfig:
    """The config of a model of this type, small."""
    kind = CONFIG_MAPPING[model_type]
    default = kind().to_dict()
    small = {name: value for names, value in SMALL.items() for name in names if name in default}
    for name in PER_LAYER:
        if default.get(name):
            kinds = sorted(set(default[name]), key=default[name].index)
            small[name] = (kinds * 2)[: max(2, len(kinds))]
            small["num_hidden_layers"] = len(small[name])
    if small.get("kv_lora_rank"):  # its heads share nothing but the latents
        small["num_key_value_heads"] = small["num_attention_heads"]
    return kind(**small | MORE.get(model_type, {}) | more)


def tiny(config: PreTrainedConfig, seed: int = 0):
    """A random model, in float64, whose attention is peaked, so that positions matter."""
    torch.manual_seed(seed)
    with torch.device("meta"):  # some sizes can't be made small by a name of their own
        size = sum(x.numel() for x in AutoModelForCausalLM.from_config(config).parameters())
    require(size < LARGEST, "parameters", size, f"fewer than {LARGEST}")
    # not the grouped products of some experts, which know no float64
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
            else:
                parameter.normal_(0, 0.3)
    return model.double()


STREAM = StreamingLLM(START, RECENT)
# name of a check -> (method, positions, chunk)
CHECKS = {
    f"{name}, {positions}, chunks of {chunk}": (method, positions, chunk)
    for name, method, kinds in (
        ("streaming", STREAM, ("in_cache", "original")),
        ("recent_only", RecentOnly(BUDGET), ("in_cache",)),
        ("by key norms", FixSizeL2(BUDGET, 0.25, skip_layers=()), ("in_cache",)),
        ("by attention", TOVA(BUDGET), ("in_cache",)),
    )
    for positions in kinds
    for chunk in (1, 7)
}


def expected_logits(model, ids: torch.Tensor, method, positions: str, chunk: int) -> torch.Tensor:
    """Logits (T, V) by the slow loop."""
    T, window = len(ids), method.window
    if window is not None:
        seen = windows(T, window.start_size, window.recent_size, positions)
        turned = positions == "in_cache"
        return slow_loop(model, ids, lambda t, *_: seen[t], at_distances=turned)
    keep = most_attended(BUDGET) if method.queries else lowest_norms(BUDGET, 3)
    see, after = held_after(keep, range(chunk - 1, T - 1, chunk), positions)
    return slow_loop(model, ids, see, after)


def sweep(model) -> dict[str, str]:
    """For each check "exact", "refused: ..." with the reason, or what is wrong."""
    ids = 1 + torch.randperm(VOCAB - 1, generator=torch.Generator().manual_seed(0))[:LENGTH]
    outcomes = {}
    for name, (method, positions, chunk) in CHECKS.items():
        try:
            CompressedCache(model, method, positions=positions)
        except ValueError as refusal:
            outcomes[name] = "refused: " + " ".join(str(refusal).split())
            continue
        if "dense" not in outcomes:
            outcomes["dense"] = outcome(error_dense, model, ids)
        if isinstance(method, FixSizeL2) and alike(model):
            outcomes[name] = "refused: all keys have one norm, which tells nothing"
            continue
        outcomes[name] = outcome(error_of, model, ids, method, positions, chunk)
    in_cache = outcomes["streaming, in_cache, chunks of 1"]
    refused = in_cache.startswith("refused")
    outcomes["generate()"] = (
        in_cache if refused else outcome(error_of_generation, model, ids[:PROMPT])
    )
    return outcomes


def outcome(check, *args) -> str:
    """What a check came to."""
    try:
        error = check(*args)
    except ValueError as refusal:
        return "refused: " + " ".join(str(refusal).split())
    except Exception as crash:
        return f"CRASHED: {type(crash).__name__}: {' '.join(str(crash).split())}"
    return "exact" if error < ATOL else f"WRONG by {error:.1e}"


@torch.no_grad()
def error_dense(model, ids) -> float:
    """How far the slow loop is from the model's own attention, where nothing is cut."""
    everything = windows(len(ids), 0, None)
    expected = slow_loop(model, ids, lambda t, *_: everything[t], at_distances=False)
    return relative(model(ids[None], use_cache=False).logits[0], expected)


def alike(model) -> bool:
    """Whether all keys of the first layer have the same norm, which rounding makes unlike."""
    norms = probe(model)[0].keys[0].norm(dim=-1)
    return bool(norms.max() - norms.min() < 1e-3 * norms.max())


def error_of(model, ids, method, positions: str, chunk: int) -> float:
    """Largest error of the NLL of a token."""
    nll = evaluate(model, ids, method, chunk, positions).nll
    expected = nll_of(expected_logits(model, ids, method, positions, chunk), ids)
    return relative(nll, expected)


def error_of_generation(model, prompt) -> float:
    """Largest error of the logits from which `generate()` has taken its tokens."""
    cache = CompressedCache(model, STREAM)
    new, logits = own_generate(model, prompt, NEW, cache)
    text = torch.cat((prompt, new[0]))[:-1]
    expected = expected_logits(model, text, STREAM, "in_cache", 1)[-NEW:]
    return relative(logits[0], expected)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest error, as a share of the largest number."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
