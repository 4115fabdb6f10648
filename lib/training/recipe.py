"""What a training is: the model's shape, its data mix, and phases of updates.

`params/reference_model.yaml` is the recipe of the model that ships.
"""

import copy
from dataclasses import dataclass

import torch
from transformers import GPTNeoXForCausalLM

from lib.load.shapes import neox_config

from .batches import EOS


@dataclass(kw_only=True)
class Phase:
    """`steps` updates with one optimizer and one context; the learning rate falls linearly."""

    steps: int
    context: int = 256  # tokens per sequence
    batch_size: int = 16  # sequences per update
    optimizer: str = "adamw"  # "muon": Muon for the matrices inside layers, AdamW for the rest
    lr: float = 1.5e-3  # AdamW, at the start of the phase
    lr_end: float = 1.5e-3  # AdamW, at its end; Muon's rate falls by the same factor
    muon_lr: float = 0.02
    warmup: int = 100  # steps


@dataclass
class Recipe:
    """Shape, data mix and phases of one training run."""

    phases: list[Phase]
    vocab_size: int = 4096
    hidden_size: int = 192
    num_layers: int = 6
    num_heads: int = 6
    rotary: float = 0.5  # share of each head that is rotated
    max_context: int = 1024  # tokens
    copy_share: float = 0.20  # share of sequences with a span copied to a later place
    repeat_share: float = 0.12  # share of sequences that are random tokens repeated
    weight_decay: float = 0.05
    seed: int = 0
    eval_every: int = 200  # steps
    bf16: bool = False  # multiply in bfloat16: faster where the processor can, else far slower
    compile: bool = False  # torch.compile: 1.5x faster on CPU, needs a C++ compiler
    device: str = "cpu"


def build_model(recipe: Recipe) -> GPTNeoXForCausalLM:
    """The untrained model of `recipe`, on CPU in float32."""
    torch.manual_seed(recipe.seed)
    config = neox_config(
        recipe.hidden_size,
        recipe.num_layers,
        recipe.num_heads,
        recipe.vocab_size,
        recipe.max_context,
        recipe.rotary,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    return GPTNeoXForCausalLM(config)


def check_same(old: dict, new: dict, state: dict) -> None:
    """Refuse to go on with another shape, data mix, seed, or other phases where they are begun.

    Only the number of steps of the phase under way may change, and not below those done.
    """
    for name in sorted(set(old) - {"phases", "eval_every", "compile", "device"}):
        if old[name] != new[name]:
            raise ValueError(
                f"{name}={new[name]!r}: this run was begun with {old[name]!r}; use another run_name"
            )
    begun, under_way = (copy.deepcopy(x["phases"][: state["phase"] + 1]) for x in (old, new))
    if not state["step"]:
        begun, under_way = (phases[: state["phase"]] for phases in (begun, under_way))
    elif len(under_way) == len(begun) and under_way[-1]["steps"] >= state["step"]:
        under_way[-1]["steps"] = begun[-1]["steps"]
    if begun != under_way:
        raise ValueError(
            f"phases={under_way!r}: this run was begun with {begun!r} and has done "
            f"{state['step']} steps of phase {state['phase']}; use another run_name"
        )
