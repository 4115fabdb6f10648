"""Training of the reference model: a small GPT-NeoX on the docstrings of the environment.

`notebooks/00_reference_model.ipynb` runs it; `params/reference_model.yaml` is the real recipe.
A run is a list of phases; it checkpoints, and called again it goes on where it stopped.
"""

import copy
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from .attention import sink_strength
from .docs import docs_text
from .paths import atomic_path

EOS = 0  # `<|endoftext|>`, the first token of every training sequence
IGNORE = -100


@dataclass
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
    compile: bool = False  # torch.compile: 1.5x faster on CPU, needs a C++ compiler
    device: str = "cpu"


def train_tokenizer(text: str, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE on `text` with `<|endoftext|>` as token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split("\n\n"), trainer)
    # every text begins with it, as every training sequence does
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", EOS)]
    )
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def load_or_train_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """The tokenizer of the run in `folder`, trained on the training text the first time."""
    folder = Path(folder)
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(docs_text("train"), vocab_size).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def build_model(recipe: Recipe) -> GPTNeoXForCausalLM:
    """The untrained model of `recipe`, on CPU in float32."""
    torch.manual_seed(recipe.seed)
    config = GPTNeoXConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        intermediate_size=4 * recipe.hidden_size,
        max_position_embeddings=recipe.max_context,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": recipe.rotary,
        },
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    return GPTNeoXForCausalLM(config)


def make_batch(
    tokens: np.ndarray, recipe: Recipe, phase: Phase, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and next-token labels, (B, T) each: text, text with a copied span, or repeats."""
    T = phase.context
    ids = np.empty((phase.batch_size, T + 1), dtype=np.int64)
    ids[:, 0] = EOS
    labels = ids.copy()
    for row in range(phase.batch_size):
        start = rng.integers(len(tokens) - T)
        body = tokens[start : start + T].astype(np.int64)
        known_from = 0  # labels before this place can't be predicted
        kind = rng.random()
        if kind < recipe.copy_share:
            length = int(rng.integers(8, T // 3))
            source = int(rng.integers(0, T - 2 * length + 1))
            target = int(rng.integers(source + length, T - length + 1))
            body[target : target + length] = body[source : source + length].copy()
        elif kind < recipe.copy_share + recipe.repeat_share:
            known_from = int(rng.integers(8, T // 2))
            block = rng.integers(1, recipe.vocab_size, known_from)
            body = np.resize(block, T)
        ids[row, 1:] = body
        labels[row, 1:] = body
        labels[row, 1 : 1 + known_from] = IGNORE
    return torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(labels[:, 1:].copy())


@torch.no_grad()
def copying_loss(model, batch_size: int = 8, length: int = 64, seed: int = 1) -> float:
    """Loss (nats per token) on the second of two identical rows of random tokens."""
    rng = np.random.default_rng(seed)
    block = rng.integers(1, model.config.vocab_size, (batch_size, length))
    rows = np.concatenate([np.full((batch_size, 1), EOS), block, block], 1)
    ids = torch.from_numpy(rows).to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits.float()
    # the second copy is predictable from its second token on
    second = slice(length + 1, -1)
    return F.cross_entropy(logits[:, second].flatten(0, 1), ids[:, length + 2 :].flatten()).item()


@torch.no_grad()
def probe(model, heldout: torch.Tensor) -> dict:
    """Held-out loss, copying loss (nats per token) and the first token's sink strength per head."""
    ids = heldout.to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits.float()
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    sinks = sink_strength(model, ids[:8])[:, :, 0]  # (L, H)
    return {
        "heldout_loss": loss.item(),
        "copying_loss": copying_loss(model),
        "sink_strength": [[round(a, 4) for a in layer] for layer in sinks.tolist()],
    }


def _optimizers(model, recipe: Recipe, phase: Phase) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    inside = {id(p) for p in matrices} if phase.optimizer == "muon" else set()
    rest = [p for p in model.parameters() if id(p) not in inside]
    adamw = {"lr": phase.lr, "betas": (0.9, 0.95), "weight_decay": recipe.weight_decay}
    optimizers = [torch.optim.AdamW(rest, **adamw, fused=True)]
    if inside:
        decay = recipe.weight_decay
        optimizers.append(torch.optim.Muon(matrices, lr=phase.muon_lr, weight_decay=decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _lr_factor(phase: Phase, step: int) -> float:
    """Share of the phase's starting rate: linear warm-up, then linear to `lr_end`."""
    warm = min(1.0, (step + 1) / max(1, phase.warmup))
    return warm * (1 + (phase.lr_end / phase.lr - 1) * step / max(1, phase.steps))


def train(recipe: Recipe, train_tokens, heldout_tokens, folder: Path):
    """Train, or go on training, and return (model, log); `log` has one dict per evaluation.

    `train_tokens` and `heldout_tokens` are 1-D; `folder` keeps `checkpoint.pt` and `log.json`.
    """
    tokens = np.asarray(train_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    model = build_model(recipe).to(recipe.device)
    checkpoint = folder / "checkpoint.pt"
    state = {"phase": 0, "step": 0, "total": 0, "seen": 0, "seconds": 0.0, "log": []}
    saved = None
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=recipe.device, weights_only=True)
        model.load_state_dict(saved.pop("model"))
        state = saved["state"]

    span = 256
    rows = torch.as_tensor(np.asarray(heldout_tokens[: 32 * (span - 1)])).view(32, span - 1)
    heldout = torch.cat([torch.full((32, 1), EOS), rows], 1)

    def loss_fn(ids, labels):
        with torch.autocast(recipe.device, torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE)

    step_fn = torch.compile(loss_fn) if recipe.compile else loss_fn

    def save(optimizers):
        with atomic_path(checkpoint) as temporary:
            opt = [o.state_dict() for o in optimizers]
            torch.save({"model": model.state_dict(), "optimizers": opt, "state": state}, temporary)
        with atomic_path(folder / "log.json") as temporary:
            temporary.write_text(json.dumps(state["log"], indent=0))

    def evaluate_now(loss):
        model.eval()
        row = {"step": state["total"], "tokens": state["seen"], "seconds": state["seconds"]}
        row |= {"train_loss": loss, "phase": state["phase"], **probe(model, heldout)}
        state["log"].append(row)
        model.train()

    model.train()
    if not state["log"]:
        evaluate_now(math.log(recipe.vocab_size))
    for index in range(state["phase"], len(recipe.phases)):
        phase = recipe.phases[index]
        optimizers = _optimizers(model, recipe, phase)
        if saved is not None and state["phase"] == index and state["step"] > 0:
            for optimizer, old in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(old)
        saved, first = None, state["step"] if state["phase"] == index else 0
        state["phase"] = index
        losses = []
        bar = tqdm(range(first, phase.steps), desc=f"training, phase {index}", disable=None)
        for step in bar:
            began = time.perf_counter()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * _lr_factor(phase, step)
            rng = np.random.default_rng([recipe.seed, state["total"]])
            ids, labels = make_batch(tokens, recipe, phase, rng)
            loss = step_fn(ids.to(recipe.device), labels.to(recipe.device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
            state["total"] += 1
            state["step"] = step + 1
            state["seen"] += ids.numel()
            state["seconds"] += time.perf_counter() - began
            if state["total"] % recipe.eval_every == 0 or step + 1 == phase.steps:
                evaluate_now(torch.stack(losses).mean().item())
                losses = []
                save(optimizers)
        state["phase"], state["step"] = index + 1, 0
        save(optimizers)
    return model.eval(), state["log"]


def ship(model, tokenizer, recipe: Recipe, log: list[dict], folder: Path) -> None:
    """Write weights (float16), tokenizer, `recipe.json` and `training_log.json` to `folder`."""
    folder = Path(folder)
    copy.deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, content in (("recipe", asdict(recipe)), ("training_log", log)):
        with atomic_path(folder / f"{name}.json") as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
