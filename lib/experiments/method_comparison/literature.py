"""What others report of these methods, beside what is found here."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from lib.measure.perplexity import Evaluation
from lib.measure.quality import accuracy_change, ppl_change
from lib.measure.rows import BASELINE
from lib.measure.stats import size_beside, verdict, with_interval
from lib.names import display_name


@dataclass(frozen=True)
class Reported:
    """A change of perplexity or accuracy against dense attention that others report, in percent."""

    source: str
    method: str
    change: float
    claim: str  # of the method, by its perplexity: "as good" as dense attention, or "worse"
    measure: str = "perplexity"


# Sinks + window and key norms on Pythia-70m, 2,024 tokens; equal budgets on Pythia-2.8b
_SMALL, _LARGE = "report on Pythia-70m", "report on Pythia-2.8b"
_NORMS = "Devoto et al. 2024, arXiv:2406.11430"
_AGAINST_DENSE = {
    "streaming_1024": (2.0, -0.5),
    "fix_l2_low_512": (4.3, -1.6),
    "fix_l2_random_512": (7.9, -3.1),
    "recent_only_512": (9.5, -3.6),
}
_PPL, _DENSE_PPL = {"recent_only_512": 32.75, "streaming_512": 15.92, "h2o_l2_512": 15.78}, 15.48
LOSS = 5.0  # percent of perplexity or accuracy within which a row is as good as dense attention


def claim(ppl_change: float) -> str:
    """What a change of perplexity in percent says of a method."""
    return "worse" if ppl_change >= LOSS else "as good"


LITERATURE = (
    *(Reported(_SMALL, row, ppl, claim(ppl)) for row, (ppl, _) in _AGAINST_DENSE.items()),
    *(
        Reported(_SMALL, row, change, claim(ppl), "accuracy")
        for row, (ppl, change) in _AGAINST_DENSE.items()
    ),
    *(
        Reported(f"{_LARGE}: {ppl} against {_DENSE_PPL}", row, change, claim(change))
        for row, ppl in _PPL.items()
        for change in [100 * (ppl / _DENSE_PPL - 1)]
    ),
    Reported(_NORMS, "l2_ratio_0.5_1024", 0.0, claim(0.0)),  # half the cache without loss
)
CHANGES = {"perplexity": (ppl_change, 1), "accuracy": (accuracy_change, -1)}  # and what is worse


def literature_table(results: Mapping[str, Evaluation]) -> pd.DataFrame:
    """`LITERATURE` beside `results` of one length: theirs, ours with a 95% interval, a verdict.

    The `claim` "as good" holds where the interval, paired by text, lies within `LOSS` percent of 0,
    and does not where all of it is outside; "worse" holds where the interval lies on that side of
    0, and does not on the other. Else "not told apart"; rows that are not in `results` are "not
    run". `size` is that of our change beside theirs: "as theirs" where the interval holds their
    number.
    """
    rows = []
    for one in LITERATURE:
        pattern = f"{display_name(one.method)} against {display_name(BASELINE)}"
        row = {"source": one.source, "pattern": pattern, "claim": one.claim}
        row |= {"measure": one.measure, "theirs_%": one.change}
        changed, worse = CHANGES[one.measure]
        pair = [results.get(name) for name in (one.method, BASELINE)]
        missing = None in pair
        change = (float("nan"),) * 3 if missing else changed(*pair)
        row |= with_interval("ours", change, "_%")
        side = worse if one.claim == "worse" else 0
        row["verdict"] = "not run" if missing else verdict(*change[1:], side, 0, LOSS)
        row["size"] = "not run" if missing else size_beside(change[1:], (one.change,) * 2, 0)
        rows.append(row | {"n_texts": float("nan") if missing else len(pair[0].nll)})
    return pd.DataFrame(rows)
