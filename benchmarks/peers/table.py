"""Rows of measurements, and the table made of them."""

import argparse
import math
from dataclasses import dataclass, field
from statistics import median

import pandas as pd
from methods import Package

PEAK = (
    "peak_mib is how far the process' resident memory grew in one run, prompt included (n = 1, "
    "the run that warms up)"
)
PPL = "ppl is that of one text"


@dataclass
class Cell:
    """One row: what is measured, the answers so far, and how it failed, if it did."""

    model: str
    task: str
    length: int  # the prompt's tokens, or those evaluated
    package: Package
    method: str
    versions: dict[str, str]
    answers: list[dict] = field(default_factory=list)
    peak_mib: float | None = None
    failure: str | None = None

    def request(self, steps: int, warm_up: bool) -> dict:
        """What to ask the worker; an evaluation is warmed up with a few tokens."""
        request = {"task": self.task, "method": self.method, "length": self.length}
        if self.task == "decode":
            return request | {"new_tokens": steps + 1, "memory": warm_up}
        return request | ({"length": min(self.length, 16)} if warm_up else {})

    def note(self, answer: dict, warm_up: bool) -> None:
        """Take in an answer."""
        self.failure = answer.get("failure")
        if warm_up:
            self.peak_mib = answer.get("peak_mib")
        elif self.failure is None:
            self.answers.append(answer)

    def rates(self, new_tokens: int) -> list[float]:
        """Tokens per second, one number a repeat."""
        if self.task == "evaluate":
            return [(self.length - 1) / answer["seconds"] for answer in self.answers]
        return [new_tokens / sum(answer["step_times"][-new_tokens:]) for answer in self.answers]

    def row(self, new_tokens: int) -> dict:
        """The row of the table."""
        failed = self.failure is not None
        rates = pd.Series([] if failed else self.rates(new_tokens), dtype=float)
        answers = [] if failed else self.answers
        decode = self.task == "decode"
        return {
            "model": self.model,
            "task": self.task,
            "tokens": self.length,
            "package": self.package.name,
            "method": self.method,
            "n": len(rates),
            "tokens_per_s": rates.median(),
            "q25": rates.quantile(0.25),
            "q75": rates.quantile(0.75),
            "ttft_s": median(a["ttft"] for a in answers) if answers and decode else math.nan,
            "cache_mib": answers[-1]["cache_bytes"] / 2**20 if answers and decode else math.nan,
            "peak_mib": math.nan if failed or self.peak_mib is None else self.peak_mib,
            "ppl": math.nan if not answers or decode else math.exp(answers[-1]["nll"]),
            "failure": self.failure or "",
            **self.versions,
        }


def table(cells: list[Cell], new_tokens: int) -> pd.DataFrame:
    """All rows."""
    return pd.DataFrame([cell.row(new_tokens) for cell in cells])


def brief(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per model, package and method: decoding after its longest prompt, and evaluation."""
    keys = ["model", "package", "method"]
    longest = rows.groupby(["model", "task"]).tokens.transform("max")
    decode = rows[(rows.task == "decode") & (rows.tokens == longest)].set_index(keys)
    evaluate = rows[rows.task == "evaluate"].set_index(keys)
    columns = {
        "n_decode": decode.n,
        "decode_tokens_per_s": decode.tokens_per_s,
        "ttft_s": decode.ttft_s,
        "peak_mib": decode.peak_mib,
        "n_evaluate": evaluate.n,
        "evaluate_tokens_per_s": evaluate.tokens_per_s,
        "ppl": evaluate.ppl,
    }
    table = pd.DataFrame(columns).reindex(rows.set_index(keys).index.drop_duplicates())
    failure = rows.groupby(keys, sort=False).failure.max()
    return table.assign(failure=failure).reset_index()


def brief_caption(rows: pd.DataFrame) -> str:
    """What the columns of the brief table mean."""
    decode = rows[rows.task == "decode"]
    return (
        "Beside other projects, batch 1: medians over n_decode repeats of decoding after "
        f"{decode.tokens.max():,} tokens, and over n_evaluate of evaluation; {PEAK}; {PPL}. "
        "Spread, versions, and why a cell is empty: peers.md."
    )


def caption(args: argparse.Namespace) -> str:
    """What the columns mean and where the methods' definitions differ."""
    return (
        f"Decoding (tokens: the prompt's) and evaluation at batch 1 with {args.cache} tokens kept, "
        "4 sinks among them: median and quartiles of tokens/s and median ttft_s over n interleaved "
        f"repeats on {args.threads} threads. Decoding times {args.new_tokens} steps after "
        f"{args.settle} untimed ones; {PEAK}; {PPL}. kv-lab streams the prompt, the "
        "others read it dense and cut afterwards; kvpress cuts after every token, lazy after every "
        f"{args.settle}. Evaluation reads 512 tokens at a time or one. Original positions: kept "
        "keys stay rotated as they were in the text; otherwise distances are counted inside the "
        "cache. Sorted: with kvpress' kept tokens put back into the text's order, which it does "
        "not do itself. Failure: what the package said when it could not."
    )
