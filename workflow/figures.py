"""The figure of `04`, quality against budget, of a sweep's merged table.

    python workflow/figures.py results/sweep/sweep.parquet

One for each setting apart from methods, budgets and lengths (a model and a seed, say), saved in
`figures/` beside the table; its caption names the runs that failed.
"""

import argparse
import hashlib
import os
import sys
from pathlib import Path

import pandas as pd

from lib import save_figure
from lib.experiments.method_comparison.plots import by_quality, quality_vs_budget
from lib.experiments.method_comparison.tables import by_group
from lib.plots import figure_title, use_style
from lib.require import require
from lib.results.provenance import run_by_script

SPREAD = ("methods", "budgets", "lengths", "speed_lengths")  # shown within a figure
NEEDED = {"length", "method", "n_texts", "ppl_change_%", "ppl_change_low", "ppl_change_high"}


def settings(table: pd.DataFrame) -> list[str]:
    """The parameters of a table's runs that have more than one value and are not in a figure."""
    given = list(
        table.columns[table.columns.get_loc("memory_gb") + 1 : table.columns.get_loc("status")]
    )
    return [name for name in given if name not in SPREAD and table[name].nunique(dropna=False) > 1]


def draw(table: pd.DataFrame) -> list[str]:
    """Save a figure for every setting; their names."""
    require(NEEDED <= set(table.columns), "columns", list(table.columns), f"with {sorted(NEEDED)}")
    names, by = [], settings(table)
    for number, (values, part) in enumerate(
        table.groupby(by, dropna=False) if by else [((), table)], start=1
    ):
        named = [
            (name, x if pd.notna(x) else "by default") for name, x in zip(by, values, strict=True)
        ]
        said = ", ".join(f"{name} {value}" for name, value in named)
        failed = part[part.status != "ok"].status.value_counts()
        missing = [f"Runs that ended with {status}: {count}." for status, count in failed.items()]
        good = part[part.status == "ok"]
        good = good.drop_duplicates(["length", "method"])  # one dense is enough
        if not len(good):
            print(f"{said or 'all of it'}: no figure.", *missing, file=sys.stderr)
            continue
        family = by_group(good)
        budgets = sorted(budget for budget in family.budget.unique() if budget != float("inf"))
        n = int(good.n_texts.min())
        label = f"perplexity relative to dense (n = {n} texts, 95% intervals)"
        fig = quality_vs_budget(family, by_quality(family, budgets), label)
        figure_title(fig, said or f"{good.run.nunique()} runs of one setting")
        caption = (
            f"Perplexity by method and budget relative to dense, 95% intervals over {n} texts."
        )
        names.append(f"quality_vs_budget_{number}")
        save_figure(fig, names[-1], " ".join([caption, f"{said}." if said else "", *missing]))
    return names


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="a sweep's .parquet")
    options = parser.parse_args()
    os.environ["KVLAB_RESULTS"] = str(options.table.resolve().parent)
    content = hashlib.sha256(options.table.read_bytes()).hexdigest()
    made_of = argparse.Namespace(table=options.table.name, sha256=content)
    run_by_script("workflow/figures.py", parser, made_of)
    use_style()
    print(*draw(pd.read_parquet(options.table)), sep="\n")


if __name__ == "__main__":
    main()
