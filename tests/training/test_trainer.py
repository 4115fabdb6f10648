"""Training, resumed training and shipping."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib import load_model
from lib.training.batches import EOS, make_batch, train_tokenizer
from lib.training.log import log_tables, read_log
from lib.training.recipe import Phase, Recipe, build_model
from lib.training.trainer import held_out, heldout_batch, ship, train

VOCAB = 200
PHASES = [
    Phase(steps=4, context=32, batch_size=4, warmup=2, lr=1e-2, lr_end=1e-3),
    Phase(steps=4, context=48, batch_size=2, warmup=0, optimizer="muon", muon_lr=0.02),
]
RECIPE = Recipe(
    PHASES, vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=2, eval_every=2, seed=3
)
# a text in which every token follows from the one before
TOKENS = np.arange(20_000) % 50 + 1


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(model, log) of the whole run in one go."""
    return train(RECIPE, TOKENS, TOKENS, tmp_path_factory.mktemp("run"))


def without_times(log: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in log]


def interrupt_after(monkeypatch, steps: int):
    """The batch after so many is a KeyboardInterrupt."""
    left = iter(range(steps))

    def counted(*args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return make_batch(*args)

    monkeypatch.setattr("lib.training.trainer.make_batch", counted)


def test_log(uninterrupted):
    model, log = uninterrupted
    assert not model.training
    assert [row["step"] for row in log] == [0, 2, 4, 6, 8]
    assert [row["tokens"] for row in log] == [0, 256, 512, 512 + 192, 512 + 384]
    assert [row["phase"] for row in log] == [0, 0, 0, 1, 1]
    assert log[0]["heldout_loss"] == pytest.approx(math.log(VOCAB), rel=0.05)
    assert all(np.shape(row["sink_strength"]) == (2, 2) for row in log)


def test_bfloat16_is_asked_for(tmp_path, uninterrupted):
    """Its products have 8 bits: the run differs from the one in float32, and by little."""
    _, log = train(replace(RECIPE, bf16=True), TOKENS, TOKENS, tmp_path)
    coarse, exact = ([row["train_loss"] for row in each[1:]] for each in (log, uninterrupted[1]))
    assert coarse != exact
    assert coarse == pytest.approx(exact, rel=0.01)


def test_the_tokens_behind_each_loss(monkeypatch, uninterrupted):
    """Counted where the losses are taken."""
    model, log = uninterrupted
    predicted, loss_of = [], F.cross_entropy

    def counted(logits, labels):
        predicted.append(len(labels))
        return loss_of(logits, labels)

    monkeypatch.setattr(F, "cross_entropy", counted)
    probed = held_out(model, heldout_batch(TOKENS))
    assert probed.items() <= log[-1].items()
    history, _ = log_tables(log)
    assert history.n_train.tolist() == [0, 256, 256, 192, 192]
    assert history[["n_heldout", "n_copying"]].drop_duplicates().to_numpy().tolist() == [predicted]


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 7])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch, uninterrupted, steps):
    interrupt_after(monkeypatch, steps)
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, TOKENS, TOKENS, tmp_path)
    steps_saved = steps // 2 * 2
    interrupt_after(monkeypatch, 8 - steps_saved)  # no step is done twice but those not saved
    model, log = train(RECIPE, TOKENS, TOKENS, tmp_path)
    expected = uninterrupted[0].state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    assert without_times(log) == without_times(uninterrupted[1])


def test_a_finished_run_is_read_and_can_be_prolonged(tmp_path, monkeypatch):
    short = replace(RECIPE, phases=PHASES[:1])
    first, log = train(short, TOKENS, TOKENS, tmp_path)
    interrupt_after(monkeypatch, 0)
    again, same_log = train(short, TOKENS, TOKENS, tmp_path)
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert same_log == log
    interrupt_after(monkeypatch, 4)
    longer, log = train(RECIPE, TOKENS, TOKENS, tmp_path)
    assert log[-1]["step"] == 8
    assert not all(map(torch.equal, first.parameters(), longer.parameters()))
    with pytest.raises(ValueError, match="hidden_size=64: this run was begun with 32"):
        train(replace(RECIPE, hidden_size=64), TOKENS, TOKENS, tmp_path)
    with pytest.raises(ValueError, match="this run was begun with"):
        train(replace(RECIPE, phases=[PHASES[1], PHASES[0]]), TOKENS, TOKENS, tmp_path)


@pytest.mark.parametrize("change", [{"lr": 0.5}, {"context": 40}, {"steps": 1}])
def test_a_phase_under_way_stays_as_it_was(tmp_path, monkeypatch, change):
    interrupt_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, TOKENS, TOKENS, tmp_path)
    other = replace(RECIPE, phases=[replace(PHASES[0], **change), PHASES[1]])
    with pytest.raises(ValueError, match="2 steps of phase 0; use another run_name"):
        train(other, TOKENS, TOKENS, tmp_path)


def test_learning_rates(tmp_path, monkeypatch):
    """Warm-up, then a straight line; Muon has the matrices inside the layers only."""
    seen = {"AdamW": [], "Muon": []}
    shapes = {}
    for name in seen:
        kind = getattr(torch.optim, name)

        def noted(self, *args, name=name, step=kind.step, **kwargs):
            (group,) = self.param_groups
            seen[name].append(group["lr"])
            shapes[name] = {parameter.shape for parameter in group["params"]}
            return step(self, *args, **kwargs)

        monkeypatch.setattr(kind, "step", noted)
    train(RECIPE, TOKENS, TOKENS, tmp_path)
    assert seen["AdamW"] == pytest.approx([0.005, 0.00775, 0.0055, 0.00325] + [0.0015] * 4)
    assert seen["Muon"] == pytest.approx([0.02] * 4)
    assert shapes["Muon"] == {(96, 32), (32, 32), (128, 32), (32, 128)}
    assert (VOCAB, 32) in shapes["AdamW"]
    assert not shapes["Muon"] & shapes["AdamW"]


def test_no_batch_is_seen_twice(tmp_path, monkeypatch):
    seen = []

    def noted(*args):
        ids, labels = make_batch(*args)
        seen.append(tuple(ids.flatten().tolist()))
        return ids, labels

    monkeypatch.setattr("lib.training.trainer.make_batch", noted)
    train(replace(RECIPE, phases=[PHASES[0], PHASES[0]]), TOKENS, TOKENS, tmp_path)
    assert len(seen) == len(set(seen)) == 8


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns(tmp_path, optimizer):
    phase = Phase(
        steps=80, context=32, batch_size=8, optimizer=optimizer, lr=1e-2, lr_end=1e-3, warmup=5
    )
    recipe = replace(RECIPE, phases=[phase], copy_share=0.0, repeat_share=0.0, eval_every=80)
    _, log = train(recipe, TOKENS, TOKENS, tmp_path)
    # the first token of a text is one of 50, and the others are certain
    assert log[-1]["heldout_loss"] < 0.2
    assert log[-1]["train_loss"] < log[0]["heldout_loss"]


def test_ship(tmp_path, uninterrupted):
    model, log = uninterrupted
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokenizer = train_tokenizer("Return the n-th number of x.\n\n" * 9, VOCAB + 100)
    ship(model, tokenizer, RECIPE, log, tmp_path / "shipped")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    shipped, read_tokenizer = load_model(str(tmp_path / "shipped"), device="cpu")
    for name, value in shipped.state_dict().items():
        assert torch.equal(value, before[name].half().float())
    half, _ = load_model(str(tmp_path / "shipped"), device="cpu", dtype=torch.float16)
    assert all(torch.equal(v, before[k].half()) for k, v in half.state_dict().items())
    sample = "Return the number."
    assert read_tokenizer(sample).input_ids == tokenizer(sample).input_ids
    assert json.loads((tmp_path / "shipped" / "recipe.json").read_text()) == asdict(RECIPE)
    history, heads = read_log(tmp_path / "shipped" / "training_log.json")
    assert history.step.tolist() == [0, 2, 4, 6, 8]
    assert heads["layer 1 head 0"].tolist() == [row["sink_strength"][1][0] for row in log]


def test_the_model_is_that_of_the_recipe():
    config = build_model(replace(RECIPE, rotary=0.25, max_context=64)).config
    assert config.rope_parameters["partial_rotary_factor"] == 0.25
    assert config.max_position_embeddings == 64
    assert (config.bos_token_id, config.eos_token_id) == (EOS, EOS)
    first, second = build_model(RECIPE), build_model(RECIPE)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    other = build_model(replace(RECIPE, seed=4))
    assert not all(map(torch.equal, first.parameters(), other.parameters()))
