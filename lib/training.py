"""Training of the reference model: a small GPT-NeoX on the docstrings of the environment.

`notebooks/00_reference_model.ipynb` runs it; `params/reference_model.yaml` is the real recipe.
A run is a list of phases; it checkpoints, and called again it goes on where it stopped.
"""

import copy
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from .attention import sink_strength
from .batches import EOS, IGNORE, copying_loss, make_batch
from .paths import atomic_path
from .progress import progress


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
    compile: bool = False  # torch.compile: 1.5x faster on CPU, needs a C++ compiler
    device: str = "cpu"


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


class Trainer:
    """One run: model, optimizers and where it stands; `folder` keeps `checkpoint.pt`.

    Raises ValueError if the folder holds a run whose recipe differs in what is already done.
    """

    def __init__(self, recipe: Recipe, train_tokens, heldout_tokens, folder: Path):
        self.recipe = recipe
        self.tokens = np.asarray(train_tokens)
        self.heldout = _heldout_batch(heldout_tokens)
        self.checkpoint = Path(folder) / "checkpoint.pt"
        self.model = build_model(recipe).to(recipe.device)
        self.state = {"phase": 0, "step": 0, "total": 0, "seen": 0, "seconds": 0.0, "log": []}
        self.optimizers: list[torch.optim.Optimizer] = []
        self.step_fn = torch.compile(self._loss) if recipe.compile else self._loss
        if self.checkpoint.exists():
            self._load()

    def run(self) -> None:
        """Train through all phases that are left."""
        self.model.train()
        if not self.state["log"]:
            self._evaluate(None)
        while self.state["phase"] < len(self.recipe.phases):
            phase = self.recipe.phases[self.state["phase"]]
            if not self.optimizers:
                self.optimizers = _optimizers(self.model, self.recipe, phase)
            self._run_phase(phase)
            self.state["phase"] += 1
            self.state["step"] = 0
            self.optimizers = []
            self._save()
        self.model.eval()

    def _run_phase(self, phase: Phase) -> None:
        losses = []
        desc = f"training, phase {self.state['phase']}"
        for step in progress(range(self.state["step"], phase.steps), desc=desc):
            began = time.perf_counter()
            losses.append(self._step(phase, step))
            self.state["seconds"] += time.perf_counter() - began
            self.state["total"] += 1
            self.state["step"] = step + 1
            self.state["seen"] += phase.batch_size * phase.context
            if self.state["total"] % self.recipe.eval_every == 0 or step + 1 == phase.steps:
                self._evaluate(torch.stack(losses).mean().item())
                losses = []
                self._save()

    def _step(self, phase: Phase, step: int) -> torch.Tensor:
        """One update; the loss before it."""
        recipe = self.recipe
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * _lr_factor(phase, step)
        # seeded by the step, so that a resumed run sees what an uninterrupted one would
        rng = np.random.default_rng([recipe.seed, self.state["total"]])
        mix = (recipe.vocab_size, recipe.copy_share, recipe.repeat_share)
        ids, labels = make_batch(self.tokens, phase.batch_size, phase.context, rng, *mix)
        loss = self.step_fn(ids.to(recipe.device), labels.to(recipe.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    def _loss(self, ids, labels):
        with torch.autocast(self.recipe.device, torch.bfloat16):
            logits = self.model(input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE)

    def _evaluate(self, train_loss: float | None) -> None:
        self.model.eval()
        row = {"step": self.state["total"], "tokens": self.state["seen"]}
        row |= {"seconds": round(self.state["seconds"], 1), "phase": self.state["phase"]}
        self.state["log"].append(
            row | {"train_loss": train_loss, **probe(self.model, self.heldout)}
        )
        self.model.train()

    def _save(self) -> None:
        content = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "state": self.state,
            "recipe": asdict(self.recipe),
        }
        with atomic_path(self.checkpoint) as temporary:
            torch.save(content, temporary)

    def _load(self) -> None:
        saved = torch.load(self.checkpoint, map_location=self.recipe.device, weights_only=True)
        self.state = saved["state"]
        _check_same(saved["recipe"], asdict(self.recipe), self.state)
        self.model.load_state_dict(saved["model"])
        if saved["optimizers"]:
            phase = self.recipe.phases[self.state["phase"]]
            self.optimizers = _optimizers(self.model, self.recipe, phase)
            for optimizer, old in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(old)


def _check_same(old: dict, new: dict, state: dict) -> None:
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


def _heldout_batch(tokens, rows: int = 32, span: int = 256) -> torch.Tensor:
    """The first held-out tokens as texts of `span`, each with its first token: (rows, span)."""
    body = torch.as_tensor(np.asarray(tokens[: rows * (span - 1)], dtype=np.int64))
    return torch.cat([torch.full((rows, 1), EOS), body.view(rows, span - 1)], 1)


def train(recipe: Recipe, train_tokens, heldout_tokens, folder: Path):
    """Train, or go on with the run in `folder`, and return (model, log).

    `train_tokens` and `heldout_tokens` are (T,); `log` has one dict per evaluation.
    """
    trainer = Trainer(recipe, train_tokens, heldout_tokens, folder)
    trainer.run()
    return trainer.model, trainer.state["log"]


def ship(model, tokenizer, recipe: Recipe, log: list[dict], folder: Path) -> None:
    """Write weights (float16), tokenizer, `recipe.json` and `training_log.json` to `folder`."""
    folder = Path(folder)
    copy.deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, content in (("recipe", asdict(recipe)), ("training_log", log)):
        with atomic_path(folder / f"{name}.json") as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
