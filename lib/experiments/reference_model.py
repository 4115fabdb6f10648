"""What the reference model must show: its training log and its properties on held-out text."""

import pandas as pd
import torch

from lib.compressors import RecentOnly, StreamingLLM
from lib.load.texts import texts_of
from lib.measure.attention_maps import heads_with_sink, sink_strength
from lib.measure.perplexity import evaluate, evaluate_recompute
from lib.measure.stats import mean_ci, ppl_ci, ppl_ratio_ci
from lib.training.batches import copying_loss

SINKS = (16, 256)  # texts, and tokens of a text, for the share of heads: as in 01_attention_sinks


def audit(
    model,
    tokens: torch.Tensor,
    budgets: list[int],
    num_texts: int,
    samples: int,
    flat_tokens: int,
) -> pd.DataFrame:
    """Measure the properties the notebooks stand on, on the held-out `tokens` (T,).

    `samples` tokens per text are predicted with the window encoded anew; `flat_tokens` is the
    length of the stream that must stay flat.

    Columns `property`, `value`, `low`, `high` (95% interval over texts, nan where there is one
    number only) and `n` (texts, or stretches of the stream).
    """
    trained = model.config.max_position_embeddings
    rows = [_copying(model), _sinks(model, tokens)]
    rows += _dense(model, tokens, trained, num_texts)
    for budget in budgets:
        rows += _streaming(model, tokens, budget, num_texts, samples)
    rows.append(_flatness(model, tokens[:flat_tokens], budgets[0]))
    return pd.DataFrame(rows, columns=["property", "value", "low", "high", "n"])


def _copying(model) -> tuple:
    loss = copying_loss(model, batch_size=32, length=128)
    return ("copying loss (nats)", loss, float("nan"), float("nan"), 32)


def _sinks(model, tokens) -> tuple:
    """Share of heads with a sink at the first token, above 0.3."""
    count, length = SINKS
    texts = texts_of(tokens, count, length + 1, model.config.bos_token_id)[:, :length]
    share = heads_with_sink(sink_strength(model, texts, 1))
    return ("heads with a sink (%)", *mean_ci(100 * share), count)


def _dense(model, tokens, trained: int, num_texts: int) -> list[tuple]:
    """Perplexity of the last quarter before the trained length, and before 8 times that."""
    texts = texts_of(tokens, num_texts, 8 * trained + 1, model.config.bos_token_id)
    nll = torch.cat([evaluate(model, row[None]).nll for row in texts])
    quarter = trained // 4
    near, far = (nll[:, end - quarter : end] for end in (trained, 8 * trained))
    return [
        ("perplexity, dense, at the training length", *ppl_ci(near), num_texts),
        ("dense, 8x the length over 1x", *ppl_ratio_ci(far, near), num_texts),
    ]


def _streaming(model, tokens, budget: int, num_texts: int, samples: int) -> list[tuple]:
    texts = texts_of(tokens, num_texts, 4 * budget, model.config.bos_token_id)
    after = slice(2 * budget, None)  # the first tokens have left every window
    streaming = evaluate(model, texts, StreamingLLM(4, budget - 4)).nll
    window = evaluate(model, texts, RecentOnly(budget)).nll
    targets = torch.linspace(2 * budget, 4 * budget - 1, samples).long()
    at_targets = streaming[:, targets - 1]
    rows = [("window over sinks + window", window[:, after], streaming[:, after])]
    for label, start_size in (("recomputed window", 0), ("recomputed sinks + window", 4)):
        recomputed = evaluate_recompute(model, texts, budget + 1, targets, start_size)
        rows.append((f"sinks + window over {label}", at_targets, recomputed))
    return [(f"{name}, {budget}", *ppl_ratio_ci(a, b), num_texts) for name, a, b in rows]


def _flatness(model, stream, budget: int) -> tuple:
    """Perplexity of the second half of a long stream over the first.

    The text itself changes, so both are taken relative to the model's own perplexity on the same
    tokens in fresh texts of one budget, for every fourth such text.
    """
    nll = evaluate(model, stream, StreamingLLM(4, budget - 4), desc="stream").nll
    count = (len(stream) - 1) // (8 * budget) * 8
    rows = stream[1 : 1 + count * budget].view(count, budget)[::4]
    texts = torch.cat((stream[:1].expand(len(rows), 1), rows), dim=1)
    fresh = torch.cat([evaluate(model, part).nll for part in texts.split(64)])
    gap = (nll[: count * budget].view(count, budget)[::4] - fresh).double().mean(-1)
    first, second = gap.view(2, -1)  # the interval is over their pairs, which nothing else joins
    name = "second half of the stream over first, sinks + window"
    return (name, *ppl_ratio_ci(second[:, None], first[:, None]), len(first))
