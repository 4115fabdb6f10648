"""What others report of these methods, beside what is found here."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from lib.measure.perplexity import Evaluation
from lib.measure.rows import BASELINE
from lib.measure.stats import mean_ci, ppl_ratio_ci, size_beside, verdict, with_interval
from lib.names import display_name


@dataclass(frozen=True)
class Reported:
    """A change of perplexity or accuracy that others report, a row against another, in percent."""

    source: str
    method: str
    against: str
    change: float
    measure: str = "perplexity"


# Sinks + window and key norms on Pythia-70m, 2,024 tokens; equal budgets on Pythia-2.8b, whose
# perplexities are 32.75 (window), 15.92 (sinks + window), 15.78 (H2O with norms) and 15.48 (dense).
_SMALL, _LARGE = "report on Pythia-70m", "report on Pythia-2.8b"
_NORMS = "Devoto et al. 2024, arXiv:2406.11430"
_AGAINST_DENSE = {
    "streaming_1024": (2.0, -0.5),
    "fix_l2_low_512": (4.3, -1.6),
    "fix_l2_random_512": (7.9, -3.1),
    "recent_only_512": (9.5, -3.6),
}
LITERATURE = (
    *(Reported(_SMALL, row, BASELINE, ppl) for row, (ppl, _) in _AGAINST_DENSE.items()),
    *(Reported(_SMALL, row, BASELINE, x, "accuracy") for row, (_, x) in _AGAINST_DENSE.items()),
    Reported(_SMALL, "fix_l2_random_512", "fix_l2_low_512", 100 * (1.079 / 1.043 - 1)),
    Reported(_SMALL, "recent_only_512", "fix_l2_random_512", 100 * (1.095 / 1.079 - 1)),
    Reported(_LARGE, "recent_only_512", BASELINE, 100 * (32.75 / 15.48 - 1)),
    Reported(_LARGE, "streaming_512", BASELINE, 100 * (15.92 / 15.48 - 1)),
    Reported(_LARGE, "h2o_l2_512", BASELINE, 100 * (15.78 / 15.48 - 1)),
    Reported(_LARGE, "h2o_l2_512", "streaming_512", 100 * (15.78 / 15.92 - 1)),
    Reported(_NORMS, "l2_ratio_0.5_1024", BASELINE, 0.0),  # half the cache without loss
)
LOSS = 5.0  # percent of perplexity within which "without loss" holds


def literature_table(results: Mapping[str, Evaluation]) -> pd.DataFrame:
    """`LITERATURE` beside `results` of one length: theirs, ours with a 95% interval, a verdict.

    "holds" where the interval, paired by text, lies on their side of 0, "does not hold" where it
    lies on the other one, else "not told apart". "Without loss" (0) holds within `LOSS` percent and
    does not hold where the interval lies outside. Rows that are not in `results` are "not run".
    `size` is that of our change beside theirs: "as theirs" where the interval holds their number.
    """
    rows = []
    for one in LITERATURE:
        pattern = f"{display_name(one.method)} against {display_name(one.against)}"
        row = {"source": one.source, "pattern": pattern, "measure": one.measure}
        row["theirs_%"] = one.change
        pair = [results.get(name) for name in (one.method, one.against)]
        change = (float("nan"),) * 3 if None in pair else _change(*pair, one.measure)
        row |= with_interval("ours", change, "_%")
        row["verdict"] = (
            "not run"
            if None in pair
            else verdict(*change[1:], (one.change > 0) - (one.change < 0), 0, LOSS)
        )
        row["size"] = "not run" if None in pair else size_beside(change[1:], (one.change,) * 2, 0)
        rows.append(row | {"n_texts": len(pair[0].nll) if None not in pair else float("nan")})
    return pd.DataFrame(rows)


def _change(own: Evaluation, base: Evaluation, measure: str) -> tuple[float, ...]:
    """Change of perplexity or of accuracy in percent of the base's, and its interval over texts."""
    if measure == "perplexity":
        return tuple(100 * (ratio - 1) for ratio in ppl_ratio_ci(own.nll, base.nll))
    gain = mean_ci((own.correct.float() - base.correct.float()).mean(-1).numpy())
    return tuple(100 * x / (base.accuracy or float("nan")) for x in gain)
