"""Recall in percent, of the runs that all tasks give: a row per method, place and text."""

import numpy as np
import pandas as pd

from lib.measure.stats import mean_ci, share_ci, with_interval


def recall_table(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean of `right` in percent by the columns `by`, with its 95% interval over texts.

    A text counts with the mean of its rows. Where `right` is yes or no, for each of `n_questions`,
    the interval is Wilson's, otherwise the bootstrap's, kept within 0 to 100.
    """
    rows = []
    for key, part in runs.groupby(by, sort=False):
        values = part.groupby("text").right.mean()
        yes_or_no = part.right.dtype == bool
        estimate = share_ci(values.sum(), len(values)) if yes_or_no else mean_ci(values)
        percent = (100 * np.array(estimate)).clip(0, 100).tolist()  # nan stays nan
        row = dict(zip(by, key, strict=True)) | with_interval("accuracy_%", percent)
        row["n_texts"] = part.text.nunique()
        rows.append(row | ({"n_questions": len(part)} if yes_or_no else {}))
    return pd.DataFrame(rows)
