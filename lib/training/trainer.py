"""Training of the reference model: a small GPT-NeoX on the docstrings of the environment.

`notebooks/00_reference_model.ipynb` runs it; `params/reference_model.yaml` is the real recipe.
A run is a list of phases; it checkpoints, and called again it goes on where it stopped.
"""

import copy
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import GPTNeoXForCausalLM

from lib.measure.attention_maps import sink_strength
from lib.paths import atomic_path
from lib.progress import progress

from .batches import EOS, IGNORE, copying_loss, make_batch
from .recipe import Phase, Recipe, build_model, check_same

HELDOUT = (32, 256)  # texts of an evaluation, and tokens of a text
SINK_TEXTS = 8  # of these for the strength of sinks

Tokens = torch.Tensor | np.ndarray


@torch.no_grad()
def held_out(model, heldout: torch.Tensor) -> dict:
    """Held-out loss, copying loss (nats per token) and the first token's sink strength per head."""
    ids = heldout.to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits.float()
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    sinks = sink_strength(model, ids[:SINK_TEXTS]).mean(0)[:, :, 0]  # (L, H)
    return {
        "heldout_loss": loss.item(),
        "copying_loss": copying_loss(model),
        "sink_strength": [[round(a, 4) for a in layer] for layer in sinks.tolist()],
    }


def _optimizers(model, recipe: Recipe, phase: Phase) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    inside = {id(p) for p in matrices} if phase.optimizer == "muon" else set()
    rest = [p for p in model.parameters() if id(p) not in inside]
    decay = {"weight_decay": recipe.weight_decay}
    optimizers = [torch.optim.AdamW(rest, lr=phase.lr, betas=(0.9, 0.95), fused=True, **decay)]
    if inside:
        optimizers.append(torch.optim.Muon(matrices, lr=phase.muon_lr, **decay))
    return optimizers


def _lr_factor(phase: Phase, step: int) -> float:
    """Share of the phase's starting rate: linear warm-up, then linear to `lr_end`."""
    warm = min(1.0, (step + 1) / max(1, phase.warmup))
    return warm * (1 + (phase.lr_end / phase.lr - 1) * step / max(1, phase.steps))


class Trainer:
    """One run: model, optimizers and where it stands; `folder` keeps `checkpoint.pt`.

    Raises ValueError if the folder holds a run whose recipe differs in what is already done.
    """

    def __init__(self, recipe: Recipe, train_tokens: Tokens, heldout_tokens: Tokens, folder: Path):
        self.recipe = recipe
        self.tokens = np.asarray(train_tokens)
        self.heldout = heldout_batch(heldout_tokens)
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
            (group,) = optimizer.param_groups
            group["lr"] = optimizer.defaults["lr"] * _lr_factor(phase, step)
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
        with torch.autocast(self.recipe.device, torch.bfloat16, enabled=self.recipe.bf16):
            logits = self.model(input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE)

    def _evaluate(self, train_loss: float | None) -> None:
        self.model.eval()
        row = {"step": self.state["total"], "tokens": self.state["seen"]}
        row |= {"seconds": round(self.state["seconds"], 1), "phase": self.state["phase"]}
        row |= {"train_loss": train_loss, **held_out(self.model, self.heldout)}
        self.state["log"].append(row)
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
        check_same(saved["recipe"], asdict(self.recipe), self.state)
        self.model.load_state_dict(saved["model"])
        if saved["optimizers"]:
            phase = self.recipe.phases[self.state["phase"]]
            self.optimizers = _optimizers(self.model, self.recipe, phase)
            for optimizer, old in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(old)


def heldout_batch(tokens: Tokens) -> torch.Tensor:
    """The first held-out tokens as texts, each with its first token: `HELDOUT`."""
    rows, span = HELDOUT
    body = torch.as_tensor(np.asarray(tokens[: rows * (span - 1)], dtype=np.int64))
    return torch.cat([torch.full((rows, 1), EOS), body.view(rows, span - 1)], 1)


def train(
    recipe: Recipe, train_tokens: Tokens, heldout_tokens: Tokens, folder: Path
) -> tuple[GPTNeoXForCausalLM, list[dict]]:
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
