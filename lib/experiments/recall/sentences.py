"""What titles and readings may say of recall: who recalls most, what perplexity hides."""

import numpy as np
import pandas as pd

from lib.measure.rows import BASELINE
from lib.measure.words import estimate
from lib.names import display_name

NEAR = 1.25  # perplexity over dense attention's that passes for as good
LITTLE = 1 / 5  # of dense attention's recall


def leaders(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `table` that recall most, several if they are level; none if none recalls any."""
    most = table["accuracy_%"].max()
    return table[np.isclose(table["accuracy_%"], most) & (most > 0)]


def tie(table: pd.DataFrame) -> str:
    """What to add behind the one row that recalls most: whether its interval meets another's."""
    best = leaders(table)
    if len(best) != 1:
        return ""
    others = table.drop(best.index)["accuracy_%_high"]
    met = others.max() >= best["accuracy_%_low"].iloc[0]
    return ", not told apart from the next" if met else ""


def best_told(table: pd.DataFrame) -> str:
    """Who recalls most of the methods in `table`, a row each, how much, and if that is a tie."""
    best = leaders(table)
    if best.empty:
        return "all methods none"
    if len(best) > 1:
        share = best["accuracy_%"].iloc[0]
        return f"{len(best)} of {len(table)} methods, level at the top, {share:.3g}%"
    first = f"{display_name(best.group.iloc[0])}, {estimate(best.iloc[0])}"
    return f"the best method, {first}{tie(table)}"


def copying_title(methods: pd.DataFrame, dense: pd.Series) -> str:
    """Of the rows of `price_table` at one budget: `methods`, and dense attention's."""
    title = f"Of copies from beyond {dense.budget:,} tokens dense attention makes "
    title += f"{dense['accuracy_%']:.0f}%, "
    if dense["accuracy_%"] > 0:
        little = (methods["accuracy_%"] < LITTLE * dense["accuracy_%"]).sum()
        title += f"{little} of {len(methods)} methods less than a fifth of that, "
    return title + best_told(methods)


def hidden(methods: pd.DataFrame, dense: pd.Series) -> pd.DataFrame:
    """Of these rows those with a perplexity near dense attention's and little of its recall."""
    little = methods["accuracy_%"] < LITTLE * dense["accuracy_%"]
    return methods[(methods.ratio < NEAR) & little]


def price_title(methods: pd.DataFrame, dense: pd.Series) -> str:
    """What perplexity hides, of the same rows as in `copying_title`."""
    near = ", ".join(map(display_name, methods.group[methods.ratio < NEAR])) or "no method"
    title = f"{dense.budget:,} tokens kept, within 25% of dense attention's perplexity: {near}"
    if dense["accuracy_%"] == 0:
        return f"{title}; dense attention itself copies nothing from beyond them"
    few = ", ".join(map(display_name, hidden(methods, dense).group))
    return f"{title}; of these copy less than a fifth as much: {few}" if few else title


def agreement(methods: pd.DataFrame) -> str:
    """A sentence: does perplexity rank the methods as recall does?"""
    columns = ["ratio", "accuracy_%"]
    if methods[columns].nunique().min() < 2:
        return (
            "All methods are level in perplexity or in copying: the two have no rank correlation."
        )
    correlation = methods[columns].corr(method="spearman").iloc[0, 1]
    return (
        f"Over the {len(methods)} methods the rank correlation of perplexity and copying is "
        f"{correlation:+.2f} (-1: perplexity would tell it all)."
    )


def cut_told(when: pd.DataFrame, name: str) -> str:
    """What a method retrieves by when it is cut: `when` has a row per method and `cut`."""
    rows = when[when.method == name].set_index("cut")
    words = {"chunk": "cut in chunks", "prompt": "once after the prompt"}
    words["question"] = "once after the question"
    told = [f"{estimate(rows.loc[cut])} {word}" for cut, word in words.items()]
    return f"{display_name(name)} retrieves {', '.join(told)}"


def tasks_told(found: pd.DataFrame) -> str:
    """Sentences: which tasks dense attention can't do, and who does best in the others."""
    said = []
    for (task, length), part in found.groupby(["task", "length"], sort=False):
        name = f"{task.capitalize()} in {length:,} tokens"
        whole, others = part[part.method == BASELINE].iloc[0], part[part.method != BASELINE]
        finds = f"{name}: dense attention finds {estimate(whole)} of {whole.n_values} values"
        if others.empty:
            said.append(f"{finds}, so that the others are not asked.")
        else:
            said.append(f"{finds}, {best_told(others.assign(group=others.method))}.")
    return " ".join(said)


def stream_title(far: pd.DataFrame, budget: int) -> str:
    """Recall of the facts from beyond the budget: `far` has a row per method."""
    whole, others = far[far.method == BASELINE].iloc[0], far[far.method != BASELINE]
    return (
        f"Of facts said more than {budget:,} tokens ago dense attention recalls {estimate(whole)}, "
        f"{best_told(others)}"
    )


def context_told(context: int, length: int) -> str:
    """A sentence: is a stream of `length` tokens longer than what the model was trained with?"""
    if length <= context:
        return f"The stream is within the {context:,} tokens that the model was trained with."
    return (
        f"The stream is longer than the {context:,} tokens that the model was trained with, behind "
        "which dense attention can't be relied on."
    )
