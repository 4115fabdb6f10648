"""All methods at one budget, on the same texts: quality against cost."""

from collections.abc import Mapping

import pandas as pd
import torch

from .compressors import ROWS, Compressor, L2Compress
from .compressors.base import require
from .perplexity import Evaluation, evaluate
from .progress import progress
from .speed import change_against
from .stats import mean_ci, ppl_ci, ppl_ratio_ci, summarise

BASELINE = "baseline"
GROUPS = tuple(ROWS)


def at_budget(
    group: str, budget: int, start_size: int = 4, skip_layers: tuple[int, ...] = (), seed: int = 0
) -> Compressor:
    """The method of a group, such that a compressed layer keeps at most `budget` tokens.

    Layers in `skip_layers` keep everything, where the method knows of layers.
    """
    require(group in ROWS, "method", group, f"one of {GROUPS}")
    method, more = ROWS[group]
    return method.at_budget(budget, start_size, skip_layers, seed, **more)


def experiment(
    groups: list[str], budgets: list[int], start_size: int = 4, skip_layers=(), seed: int = 0
) -> dict[str, Compressor | None]:
    """The rows of the comparison: `baseline` and `<group>_<budget>` for every group and budget."""
    rows: dict[str, Compressor | None] = {BASELINE: None}
    for group in groups:
        for budget in budgets:
            rows[f"{group}_{budget}"] = at_budget(group, budget, start_size, skip_layers, seed)
    return rows


def texts_of(
    tokens: torch.Tensor, num_texts: int, length: int, bos_token_id: int | None = None
) -> torch.Tensor:
    """`num_texts` non-overlapping stretches spread evenly over `tokens` (T,): (num_texts, length).

    Where `tokens` begins with `bos_token_id`, so does each text, in place of its first token.
    """
    needed = num_texts * length
    require(len(tokens) >= needed, "tokens", len(tokens), f"num_texts * length = {needed} or more")
    stride = len(tokens) // num_texts
    texts = torch.stack([tokens[i * stride : i * stride + length] for i in range(num_texts)])
    if tokens[0] == bos_token_id:
        texts[:, 0] = bos_token_id
    return texts


def quality(
    model, texts: torch.Tensor, methods: Mapping[str, Compressor | None], chunk_size: int = 16
) -> dict[str, Evaluation]:
    """`evaluate` for every method. `chunk_size` is that of the methods that look at the keys.

    Position-only methods run in chunks of 512: their result does not depend on it.
    """
    for name, method in methods.items():
        if isinstance(method, L2Compress):
            most = method.prune_after // 4
            require(chunk_size <= most, "chunk_size", chunk_size, f"at most {most} for {name}")
    results = {}
    for name, method in progress(methods.items(), desc="quality"):
        exact = method is None or method.window is not None
        results[name] = evaluate(model, texts, method, 512 if exact else chunk_size)
    return results


def quality_table(results: Mapping[str, Evaluation]) -> pd.DataFrame:
    """PPL and accuracy, 95% intervals over texts, change against baseline, tokens held."""
    base = results[BASELINE]
    rows = []
    for name, result in results.items():
        ppl, ppl_low, ppl_high = ppl_ci(result.nll)
        ratio, ratio_low, ratio_high = ppl_ratio_ci(result.nll, base.nll)
        gain, gain_low, gain_high = mean_ci(
            (result.correct.float() - base.correct.float()).mean(-1).numpy()
        )
        rows.append(
            {
                "method": name,
                "n_texts": len(result.nll),
                "ppl": ppl,
                "ppl_low": ppl_low,
                "ppl_high": ppl_high,
                "ppl_change_%": 100 * (ratio - 1),
                "ppl_change_low": 100 * (ratio_low - 1),
                "ppl_change_high": 100 * (ratio_high - 1),
                "accuracy_%": 100 * result.accuracy,
                "accuracy_change_%": 100 * gain / base.accuracy,
                "accuracy_change_low": 100 * gain_low / base.accuracy,
                "accuracy_change_high": 100 * gain_high / base.accuracy,
                "tokens_held": sum(result.cache_lengths) / len(result.cache_lengths),
            }
        )
    return pd.DataFrame(rows)


def ratio_table(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> pd.DataFrame:
    """Perplexity of each NLL and its ratio to another on the same tokens, 95% intervals over texts.

    `pairs` gives (nll, other nll), each (texts, tokens), by the name of the row.
    """
    rows = []
    for name, (nll, other) in pairs.items():
        ppl, ppl_low, ppl_high = ppl_ci(nll)
        ratio, low, high = ppl_ratio_ci(nll, other)
        row = {"method": name, "ppl": ppl, "ppl_low": ppl_low, "ppl_high": ppl_high}
        row |= {"ratio": ratio, "ratio_low": low, "ratio_high": high}
        rows.append(row | {"n_texts": len(nll), "n_tokens": nll.numel()})
    return pd.DataFrame(rows)


def cost_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Cost of each method and context length over the repeats of `lib.speed.measure`.

    Median and quartiles of TPOT and throughput, of their change against baseline and of the share
    of the machine's limit; MiB allocated.
    """
    runs = runs.copy()
    for column in ("tpot_ms", "throughput"):
        runs[f"{column}_change_%"] = change_against(runs, column, BASELINE)
    columns = ["tpot_ms", "throughput", "tpot_ms_change_%", "throughput_change_%", "limit_%"]
    cost = summarise(runs, ["context", "method"], columns).rename(columns={"n": "n_repeats"})
    allocated = runs.groupby(["context", "method"]).cache_mib.first().reset_index()
    return cost.merge(allocated, on=["context", "method"])


def by_group(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with the parts of its row names, `group` and `budget`, and the ratio to baseline."""
    change, low, high = (table[f"ppl_change_{x}"] for x in ("%", "low", "high"))
    return table.assign(
        group=table.method.str.replace(r"_\d+$", "", regex=True),
        budget=pd.to_numeric(table.method.str.extract(r"_(\d+)$")[0]),
        ratio=1 + change / 100,
        ratio_low=1 + low / 100,
        ratio_high=1 + high / 100,
    )
