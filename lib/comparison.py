"""All methods at one budget, on the same texts: quality against cost."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pandas as pd
import torch

from .compressors import Compressor, L2Compress
from .compressors.base import require
from .experiments import BASELINE, budget_of, buffers_of, group_of
from .perplexity import Evaluation, evaluate
from .progress import progress
from .speed import change_against
from .stats import mean_ci, ppl_ci, ppl_ratio_ci, summarise

# the main columns of a comparison's table, for a page
BRIEF = ["length", "method", "n_texts", "n_repeats", "ppl", "ppl_change_%", "ppl_change_low"]
BRIEF += ["ppl_change_high", "accuracy_%", "accuracy_change_%", "prefill", "ttft_s", "tpot_ms"]
BRIEF += ["tpot_ms_change_%", "throughput", "attention_ms", "cache_length", "cache_mib", "peak_mib"]

# the columns of a recommendation
ADVICE = ["length", "goal", "rule", "method", "ppl", "ppl_low", "ppl_high", "tpot_ms", "tpot_ms_q1"]
ADVICE += ["tpot_ms_q3", "throughput", "throughput_q1", "throughput_q3", "cache_mib"]
ADVICE += ["n_texts", "n_repeats"]


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
    model, texts: torch.Tensor, methods: Mapping[str, Compressor | None], chunk_size: int = 64
) -> dict[str, Evaluation]:
    """`evaluate` for every method on `texts` (B, T), cut once per `chunk_size` tokens.

    That goes for methods that look at keys or attention, and for `streaming_lazy`. Strict
    position-only methods run in chunks of 512: their result does not depend on it.
    """
    for name, method in methods.items():
        if isinstance(method, L2Compress) and method.keep_ratio < 1:
            most = int(method.prune_after * (1 / method.keep_ratio - 1))
            require(chunk_size <= most, "chunk_size", chunk_size, f"at most {most} for {name}")
    buffers, results = buffers_of(methods, chunk_size), {}
    for name, method in progress(methods.items(), desc="quality"):
        exact = method is None or method.window is not None
        buffer = buffers[name] if exact else 0  # others are cut at a chunk's end
        results[name] = evaluate(model, texts, method, 512 if exact else chunk_size, buffer=buffer)
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


def quality_table(results: Mapping[str, Evaluation]) -> pd.DataFrame:
    """PPL and accuracy with their changes against the first row, 95% intervals over texts.

    The changes are paired by text: the first row is the baseline, where there is one.
    """
    base = next(iter(results.values()))
    accuracy = base.accuracy or float("nan")  # none right: no share of it
    rows = []
    for name, result in results.items():
        gain = mean_ci((result.correct.float() - base.correct.float()).mean(-1).numpy())
        row = {"method": name, "n_texts": len(result.nll)}
        row |= _with_interval("ppl", ppl_ci(result.nll))
        changes = (100 * (ratio - 1) for ratio in ppl_ratio_ci(result.nll, base.nll))
        row |= _with_interval("ppl_change", changes, "_%")
        row["accuracy_%"] = 100 * result.accuracy
        row |= _with_interval("accuracy_change", (100 * x / accuracy for x in gain), "_%")
        rows.append(row)
    return pd.DataFrame(rows)


def _with_interval(name: str, estimate: Iterable[float], unit: str = "") -> dict[str, float]:
    """A number and its interval as columns `name`, `name_low`, `name_high`."""
    return dict(zip((f"{name}{unit}", f"{name}_low", f"{name}_high"), estimate, strict=True))


def lead_table(
    results: Mapping[int, Mapping[str, Evaluation]], names: Iterable[str]
) -> pd.DataFrame:
    """The best row of each length and budget against all others there, paired by text.

    Columns `best`, `next` (the runner-up), `ratio` of its perplexity to the best one's with
    `ratio_low` and `ratio_high`, and `as_good`, the rows whose interval includes the best one's
    perplexity; none where a row has no other. The best is found on the same texts, which flatters
    it.
    """
    rows = []
    for length, budget in itertools.product(results, sorted({budget_of(name) for name in names})):
        own = {x: results[length][x].nll for x in names if x in results[length]}
        own = {x: nll for x, nll in own.items() if budget_of(x) == budget}
        if not own:
            continue
        best, *others = sorted(own, key=lambda x: float(own[x].double().mean()))
        ratios = {x: ppl_ratio_ci(own[x], own[best]) for x in others}
        second = others[0] if others else None
        lead = {"length": length, "budget": budget, "best": best, "next": second}
        ahead = ratios.get(second, (float("nan"),) * 3)
        lead |= dict(zip(("ratio", "ratio_low", "ratio_high"), ahead, strict=True))
        as_good = [x for x, (_, low, _) in ratios.items() if not low > 1]
        lead |= {"as_good": ", ".join(as_good), "n_texts": len(own[best])}
        rows.append(lead)
    return pd.DataFrame(rows)


def lead_of(
    results: Mapping[int, Mapping[str, Evaluation]], first: str, second: str, budgets: Iterable[int]
) -> tuple[float, float, float]:
    """Perplexity of one group over another's, mean over the lengths and budgets that both have.

    The ratio's geometric mean, and its 95% interval over texts, paired: ratio, low, high.
    """
    gaps = []
    for length, budget in itertools.product(results, budgets):
        one, other = (results[length].get(f"{group}_{budget}") for group in (first, second))
        if one is not None and other is not None:
            gaps.append((one.nll - other.nll).double().mean(-1, keepdim=True))  # (B, 1)
    return ppl_ci(torch.cat(gaps, dim=1))


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

    Median and quartiles of times, of their change against the first method (the baseline, where
    there is one), and of the share of the machine's limit; tokens held, MiB allocated and at peak,
    with their changes.
    """
    runs, first = runs.copy(), runs.method.iloc[0]
    changing = ["ttft_s", "tpot_ms", "throughput", "attention_ms"]
    for column in changing:
        runs[f"{column}_change_%"] = change_against(runs, column, first)
    columns = [*changing, *(f"{x}_change_%" for x in changing), "limit_%"]
    by = ["context", "method", "prefill"]
    cost = summarise(runs, by, columns).rename(columns={"n": "n_repeats"})
    held = ["cache_length", "cache_mib", "peak_mib"]
    cost = cost.merge(runs.groupby(by, sort=False)[held].first().reset_index(), on=by)
    for column in held:
        base = cost.groupby("context", sort=False)[column].transform("first")
        cost[f"{column}_change_%"] = 100 * (cost[column] / base.where(base > 0) - 1)
    return cost


def joined(tables: Mapping[int, pd.DataFrame], cost: pd.DataFrame) -> pd.DataFrame:
    """The quality tables of several lengths, one below the other, with the cost where measured."""
    table = pd.concat(part.assign(length=length) for length, part in tables.items())
    table = table.merge(
        cost.rename(columns={"context": "length"}), on=["length", "method"], how="left"
    )
    table.insert(0, "length", table.pop("length"))
    return table


def split_names(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with the parts of its row names, `group` and `budget` (infinite for the baseline)."""
    return table.assign(group=table.method.map(group_of), budget=table.method.map(budget_of))


def by_group(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with `group` and `budget`, and its perplexity as a ratio to that of the first row."""
    change, low, high = (table[f"ppl_change_{x}"] for x in ("%", "low", "high"))
    return split_names(table).assign(
        ratio=1 + change / 100,
        ratio_low=1 + low / 100,
        ratio_high=1 + high / 100,
    )
