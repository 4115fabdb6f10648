"""All methods on the same texts: perplexity and accuracy, with intervals over texts."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import torch

from lib.compressors import Compressor
from lib.progress import progress
from lib.require import require

from .perplexity import Evaluation, evaluate
from .rows import BASELINE, budget_of, feeding_of
from .stats import mean_ci, ppl_ci, ppl_ratio_ci, with_interval


def quality(
    model, texts: torch.Tensor, methods: Mapping[str, Compressor | None], chunk_size: int = 64
) -> dict[str, Evaluation]:
    """`evaluate` for every method on `texts` (B, T), cut once per `chunk_size` tokens.

    That goes for methods that look at keys or attention, and for `streaming_lazy`; strict
    position-only methods are cut after every token (`lib.measure.rows.feeding_of`).
    """
    for name, method in methods.items():
        if method is not None:
            most = method.longest_step
            require(chunk_size <= most, "chunk_size", chunk_size, f"at most {most} for {name}")
    feeding, results = feeding_of(methods, chunk_size), {}
    for name, method in progress(methods.items(), desc="quality"):
        results[name] = evaluate(model, texts, method, **feeding[name])
    return results


def first_tokens(results: Mapping[str, Evaluation], length: int) -> dict[str, Evaluation]:
    """What `quality` gave, for the first `length` tokens of the texts: those before count alone.

    Methods whose budget such texts don't exceed are left out.
    """
    return {
        name: replace(
            result, nll=result.nll[:, : length - 1], correct=result.correct[:, : length - 1]
        )
        for name, result in results.items()
        if name == BASELINE or budget_of(name) < length
    }


def ppl_change(own: Evaluation, base: Evaluation) -> tuple[float, ...]:
    """Change of perplexity in percent of the base's, paired by text: change, low, high."""
    return tuple(100 * (ratio - 1) for ratio in ppl_ratio_ci(own.nll, base.nll))


def accuracy_change(own: Evaluation, base: Evaluation) -> tuple[float, ...]:
    """Change of accuracy likewise; nan where the base has nothing right."""
    gain = mean_ci((own.correct.float() - base.correct.float()).mean(-1).numpy())
    return tuple(100 * x / (base.accuracy or float("nan")) for x in gain)


def quality_table(results: Mapping[str, Evaluation]) -> pd.DataFrame:
    """PPL and accuracy with their changes against the first row, 95% intervals over texts.

    The changes are paired by text: the first row is dense, where there is one.
    """
    base = next(iter(results.values()))
    rows = []
    for name, result in results.items():
        row = {"method": name, "n_texts": len(result.nll)}
        row |= with_interval("ppl", ppl_ci(result.nll))
        row |= with_interval("ppl_change", ppl_change(result, base), "_%")
        row["accuracy_%"] = 100 * result.accuracy
        row |= with_interval("accuracy_change", accuracy_change(result, base), "_%")
        rows.append(row)
    return pd.DataFrame(rows)
