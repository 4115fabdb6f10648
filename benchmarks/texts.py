"""The findings about sinks on other texts: WikiText, books, any file.

    export KVLAB_RESULTS=results/smollm2
    python benchmarks/texts.py "WikiText-2"=wikitext "a novel"=novel.txt

A text is what `load_tokens` takes, under a name of yours; "wikitext" and "pg19" need the hub.
Writes `tables/texts.csv`, `texts_sinks.csv`, `texts_first_token.csv` and `texts_literature.csv`,
each with its `.md`.
"""

import argparse

import pandas as pd
import torch

from lib import (
    RecentOnly,
    StreamingLLM,
    evaluate,
    evaluate_recompute,
    load_model,
    load_tokens,
    save_table,
)
from lib.experiments.method_comparison.literature import LITERATURE, LOSS, literature_table
from lib.load.texts import texts_of
from lib.measure.attention_maps import heads_with_sink, sink_strength
from lib.measure.quality import quality
from lib.measure.rows import BASELINE, at_budget, budget_of, group_of
from lib.measure.stats import mean_ci, ppl_ratio_ci, ratio_table, with_interval
from lib.progress import progress
from lib.results.provenance import run_by_script

TABLES = ("texts", "texts_sinks", "texts_first_token", "texts_literature")
# what a page shows of a table, where that is not all
SHOWN = {
    "texts_literature": [
        *("text", "source", "pattern", "measure", "theirs_%", "ours_%", "verdict", "size")
    ]
}
FIRST_TOKENS = ("<|endoftext|>", "<|im_start|>")  # tried in front of a text, where there are such


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="+", metavar="NAME=TEXT")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--cache", type=int, default=256, help="budget in tokens, 4 sinks included")
    parser.add_argument("--length", type=int, default=2048, help="tokens of each text")
    parser.add_argument("--num-texts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8, help="tokens a text read anew")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    return parser


def four_ways(model, texts: torch.Tensor, cache: int, samples: int) -> pd.DataFrame:
    """Perplexity behind twice the budget, and its ratio to sinks + window on the same tokens."""
    methods = {"baseline": None, "recent_only": RecentOnly(cache)}
    methods["streaming"] = StreamingLLM(4, cache - 4)
    nll = {name: evaluate(model, texts, method).nll for name, method in methods.items()}
    after = slice(2 * cache, None)
    pairs = {name: (own[:, after], nll["streaming"][:, after]) for name, own in nll.items()}
    targets = torch.linspace(2 * cache + 1, texts.shape[1] - 1, samples).long()
    anew = evaluate_recompute(model, texts, cache + 1, targets, start_size=4)
    pairs["recompute (sample)"] = anew, nll["streaming"][:, targets - 1]
    return ratio_table(pairs, sampled={"recompute (sample)"})


def sinks(model, texts: torch.Tensor) -> pd.DataFrame:
    """Share of heads with a sink at the first token of `texts` (N, T)."""
    share = 100 * heads_with_sink(sink_strength(model, texts, 1))
    return pd.DataFrame([with_interval("heads", mean_ci(share), "_%") | {"n_texts": len(texts)}])


def first_tokens(model, tokenizer, texts: torch.Tensor, cache: int) -> pd.DataFrame:
    """Perplexity of the same tokens behind a special first token, over that behind none.

    `texts` (N, T) begin with a token of their own, after which all are scored.
    """
    rows = []
    for way, method in (("baseline", None), (f"streaming_{cache}", StreamingLLM(4, cache - 4))):
        own = evaluate(model, texts, method).nll
        for token in FIRST_TOKENS:
            index = tokenizer.get_vocab().get(token)
            if index is None or (texts[:, 0] == index).all():
                continue
            begun = torch.cat((torch.full_like(texts[:, :1], index), texts), dim=1)
            other = evaluate(model, begun, method).nll[:, 1:]
            row = {"method": way, "first_token": token}
            for name, span in (("ratio", slice(None)), ("behind_200", slice(200, None))):
                row |= with_interval(name, ppl_ratio_ci(other[:, span], own[:, span]))
            rows.append(row | {"n_texts": len(texts)})
    return pd.DataFrame(rows)


def literature(model, texts: torch.Tensor) -> pd.DataFrame:
    """What is reported of methods at 2,024 tokens, beside `texts` (N, T), as `04` has it."""
    names = sorted({one.method for one in LITERATURE})
    rows = {name: at_budget(group_of(name), int(budget_of(name))) for name in names}
    return literature_table(quality(model, texts, {BASELINE: None} | rows))


def main() -> None:
    parser = arguments()
    options = parser.parse_args()
    named = dict(text.split("=", 1) for text in options.texts)
    # what the texts are called, and which tables are made, one can see
    run_by_script("benchmarks/texts.py", parser, options, "texts", "tables")
    model, tokenizer = load_model(options.model)
    makers = {
        "texts": lambda cut: four_ways(model, cut, options.cache, options.samples),
        "texts_sinks": lambda cut: sinks(model, cut[:, :256]),
        "texts_first_token": lambda cut: first_tokens(
            model, tokenizer, cut[:, :512], options.cache // 2
        ),
        "texts_literature": lambda cut: literature(model, cut[:, :2024]),
    }
    tables = {name: [] for name in options.tables}
    for name, text in progress(named.items(), desc="texts"):
        tokens = load_tokens(text, tokenizer)
        cut = texts_of(tokens, options.num_texts, options.length, tokenizer.bos_token_id)
        whole = {"text": name, "text_tokens": len(tokens)}
        for table, parts in tables.items():
            parts.append(makers[table](cut).assign(**whole))
    added = tokens[0] == tokenizer.bos_token_id  # some name one and add none
    begun = tokenizer.bos_token if added else "no special token"
    data = f"{options.model} and its tokenizer, texts begun with {begun}; 95% intervals over texts"
    captions = {
        "texts": f"Perplexity at a budget of {options.cache}, tokens {2 * options.cache:,} to "
        f"{options.length:,}, and its ratio to sinks + window on the same tokens",
        "texts_sinks": "Heads with a sink at the first token (attention above 0.3), 256 tokens",
        "texts_first_token": "Perplexity of 511 tokens behind a special first token over that "
        "behind none, of all of them and of those behind token 200",
        "texts_literature": "Reported changes beside those on other texts, 2,024 tokens, in "
        f"percent; a claim holds where the interval lies on its side of 0 (as good, below "
        f"{LOSS:.0f}% of perplexity: within {LOSS:.0f}% of 0)",
    }
    for name, parts in tables.items():
        table = pd.concat(parts)
        if table.empty:  # no first token to try
            continue
        table.insert(0, "text", table.pop("text"))
        save_table(table, name, f"{captions[name]}; {data}.", SHOWN.get(name))


if __name__ == "__main__":
    main()
