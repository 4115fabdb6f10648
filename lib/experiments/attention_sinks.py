"""What a sink needs: the same texts begun in other ways, and its share of heads by layer."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from lib.measure.attention_maps import heads_with_sink
from lib.measure.stats import mean_ci, share_ci, with_interval
from lib.require import require


def other_starts(texts: torch.Tensor, tokenizer, seed: int = 0) -> dict[str, torch.Tensor]:
    """`texts` (N, T + 1) begun in six ways, each (N, T) and named.

    As they are; with a random first token, a newline in its place, or without it; and with random
    tokens behind it, or everywhere. Random tokens are evenly drawn, none of them special.
    """
    require(texts.shape[1] > 1, "texts.shape[1]", texts.shape[1], "2 or more")
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([i for i in range(len(tokenizer)) if i not in special])
    whole, generator = texts[:, :-1], torch.Generator().manual_seed(seed)
    random = ordinary[torch.randint(len(ordinary), whole.shape, generator=generator)]
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    first, rest = whole[:, :1], whole[:, 1:]
    return {
        "text as it is": whole,
        "first token random": torch.cat((random[:, :1], rest), dim=1),
        "first token a newline": torch.cat((torch.full_like(first, newline), rest), dim=1),
        "first token cut off": texts[:, 1:],
        "rest random": torch.cat((first, random[:, 1:]), dim=1),
        "all random": random,
    }


def sink_table(strengths: Mapping[str, np.ndarray], threshold: float = 0.3) -> pd.DataFrame:
    """Sinks of each kind of text: `strengths` by name, (N, L, H, K) as of `sink_strength`.

    Columns `heads_%` (`heads_with_sink`), `mean` and `strongest` (the attention on the first token
    in the mean over heads, in the strongest head of each text), each with `_low` and `_high` (95%
    over texts, from 0 to all); `change_%` (of `heads_%` to the first kind, in points, paired);
    `texts_with_sink_%` (texts in which any head has one), with Wilson's interval; `elsewhere_%`
    (heads with a sink at another key of K).
    """
    rows, base = [], heads_with_sink(next(iter(strengths.values())), threshold)
    for name, strength in strengths.items():
        first = strength[..., 0].reshape(len(strength), -1)  # (N, L * H)
        others = strength[..., 1:].max(-1, initial=0)  # (N, L, H)
        share = heads_with_sink(strength, threshold)
        row = {"text": name}
        for column, by_text, whole in (
            ("heads", 100 * share, 100),
            ("mean", first.mean(1), 1),
            ("strongest", first.max(1), 1),
        ):
            unit = "_%" if whole == 100 else ""
            row |= with_interval(column, np.clip(mean_ci(by_text), 0, whole).tolist(), unit)
        row |= with_interval("change", mean_ci(100 * (share - base)), "_%")
        row |= texts_with_sink((first > threshold).any(1).sum(), len(first))
        row["elsewhere_%"] = 100 * float((others > threshold).mean())
        rows.append(row | {"n_texts": len(first), "n_heads": first.shape[1]})
    return pd.DataFrame(rows)


def texts_with_sink(hits: int, n: int) -> dict[str, float]:
    """The share of `n` texts, `hits` of them, in percent with Wilson's interval, as columns."""
    return with_interval("texts", (100 * x for x in share_ci(hits, n)), "_with_sink_%")


def sinks_by_layer(first: np.ndarray, threshold: float = 0.3) -> pd.DataFrame:
    """Share of a layer's heads with a sink, for strengths at the first token `first` (N, L, H).

    Columns `layer`, `heads_%`, `heads_low`, `heads_high` (95% over texts), `n_texts`, `n_heads`.
    """
    share = 100 * (first > threshold).mean(-1)  # (N, L)
    rows = []
    for layer, by_text in enumerate(share.T):
        interval = np.clip(mean_ci(by_text), 0, 100).tolist()
        row = {"layer": layer} | with_interval("heads", interval, "_%")
        rows.append(row | {"n_texts": len(first), "n_heads": first.shape[2]})
    return pd.DataFrame(rows)


def place_or_token(starts: pd.DataFrame) -> str:
    """What the sinks of a `sink_table` go with, in words, from the texts begun with another token.

    The place where more than half of the heads keep theirs in all three of these, the first token
    where they do in none.
    """
    share = starts.set_index("text")["heads_%"]
    begun = ("first token random", "first token a newline", "first token cut off")
    if share["text as it is"] == 0:
        return "there is no sink"
    kept = [share[name] > share["text as it is"] / 2 for name in begun]
    if all(kept):
        return "the sink is at the first place, whatever token stands there"
    return "some first tokens make a sink" if any(kept) else "the sink is this first token"
