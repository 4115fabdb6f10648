"""Generate a million tokens with sinks + window and watch: memory, time a token, positions.

    python benchmarks/soak.py --tokens 1000000

One token at a time, sampled, in one cache; on a slow core the whole reference model takes three
hours, two of its layers (`--layers 2`) an hour and a half. Writes `tables/soak.csv`
and `.md` under results/ and prints a line for each stretch. Ends with an error if memory grew by
more than 1%, a stretch was slower than the others, or the last logits are not those of a short
text.
"""

import argparse
import statistics
import time
from collections import deque

import pandas as pd
import psutil
import torch

from lib import CompressedCache, StreamingLLM, cache_bytes, load_model, save_table
from lib.cache.hooks import body_of
from lib.require import require
from lib.results.provenance import machine_line, run_by_script

MEMORY = 0.01  # by which resident memory may differ from that of the second stretch
TIME = 0.25  # by which a stretch's undisturbed time a token may exceed that of all stretches
LOGITS = 1e-3  # by which logits may differ: sums in another order, in float32


@torch.no_grad()
def soak(
    model,
    prompt: torch.Tensor,
    tokens: int,
    parts: int,
    method: StreamingLLM,
    say=lambda table: None,
) -> pd.DataFrame:
    """Generate `tokens` tokens after `prompt` (T,), T at least the sinks; a row per stretch.

    Columns: `position`, the median, first and last decile of `ms_per_token`, `resident_mib` of the
    process and `cache_mib` at the stretch's end, `cache_length`, and in the last row
    `logits_error`: the largest difference to the logits of a short text (`_short_text`).
    """
    require(2 <= parts <= tokens // 2, "parts", parts, f"2 to half the tokens, {tokens // 2}")
    sampler, process = torch.Generator().manual_seed(0), psutil.Process()
    cache = CompressedCache(model, method)
    sinks = prompt[: method.start_size].tolist()
    # tokens that the last one hears of
    reach = model.config.num_hidden_layers * (method.budget + 1)
    tail = deque(prompt[method.start_size :].tolist(), maxlen=reach + method.budget)
    logits = model(input_ids=prompt[None], past_key_values=cache).logits[0, -1]
    ends = {tokens * part // parts for part in range(1, parts + 1)}
    rows, seconds = [], []
    for count in range(1, tokens + 1):
        began = time.perf_counter()
        token = torch.multinomial(logits.float().softmax(-1), 1, generator=sampler)
        logits = model(input_ids=token[None], past_key_values=cache).logits[0, -1]
        tail.append(int(token))
        seconds.append(time.perf_counter() - began)
        if count in ends:
            deciles = statistics.quantiles(seconds, n=10)
            rows.append(
                {
                    "position": len(prompt) + count,
                    "ms_per_token": 1000 * statistics.median(seconds),
                    "ms_per_token_p10": 1000 * deciles[0],
                    "ms_per_token_p90": 1000 * deciles[-1],
                    "resident_mib": process.memory_info().rss / 2**20,
                    "cache_mib": cache_bytes(cache) / 2**20,
                    "cache_length": max(cache.cached_lengths),
                }
            )
            say(pd.DataFrame(rows))
            seconds.clear()
    require(cache.seen == len(prompt) + tokens, "seen", cache.seen, "all tokens of the stream")
    short = _short_text(model, sinks + list(tail), method)
    rows[-1]["logits_error"] = float((logits - short).abs().max())
    return pd.DataFrame(rows)


def _short_text(model, ids: list[int], method: StreamingLLM) -> torch.Tensor:
    """Logits (V,) after the sinks and so many of the last tokens that no earlier one is heard.

    A token of the last layer attends to `budget` tokens of the layer below, and so on down.
    """
    cache = CompressedCache(model, method)
    return model(input_ids=torch.tensor([ids]), past_key_values=cache).logits[0, -1]


def keep_layers(model, count: int) -> None:
    """Leave `model` its first `count` layers: a step takes less, and what it does to each stays."""
    body, whole = body_of(model), model.config.num_hidden_layers
    require(1 <= count <= whole, "layers", count, f"1 to {whole}")
    body.layers, model.config.num_hidden_layers = body.layers[:count], count


def check(table: pd.DataFrame) -> None:
    """ValueError if memory was not constant, time not flat or the last position not exact."""
    # the first stretch is where buffers find their size
    resident = table.resident_mib[1:]
    growth = float((resident / resident.iloc[0] - 1).abs().max())
    require(growth <= MEMORY, "growth of resident memory", growth, f"at most {MEMORY}")
    sizes = sorted({*table.cache_mib})
    require(len(sizes) == 1, "cache_mib", sizes, "the same all along")
    # the first decile: whatever else runs on the machine can only slow a step down
    fast = table.ms_per_token_p10
    slowest = float((fast / fast.median() - 1).max())
    require(slowest <= TIME, "ms_per_token_p10", slowest, f"at most {TIME} above its median")
    error = table.logits_error.iloc[-1]
    require(error <= LOGITS, "logits_error", error, f"at most {LOGITS}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--parts", type=int, default=20)
    parser.add_argument("--model", default="reference")
    parser.add_argument("--layers", type=int, help="the model's first only; default: all")
    parser.add_argument("--cache", type=int, default=256, help="budget in tokens, 4 of them sinks")
    options = parser.parse_args()
    run_by_script("benchmarks/soak.py", parser, options)
    model, tokenizer = load_model(options.model, device="cpu")
    if options.layers is not None:
        keep_layers(model, options.layers)
    layers = model.config.num_hidden_layers
    prompt = torch.tensor(tokenizer("A text begins here, and goes on.").input_ids)
    method = StreamingLLM(4, options.cache - 4)

    def save(table: pd.DataFrame) -> None:  # after every stretch: what was seen is not lost
        at = table.position.iloc[-1]
        caption = (
            f"{at:,} of {len(prompt) + options.tokens:,} tokens generated by {options.model} "
            f"({layers} layers) in one stream, with sinks + window {options.cache}: memory at the "
            f"end of each stretch, time a token as median and deciles. {machine_line()}."
        )
        save_table(table, "soak", caption)
        print(table.tail(1).to_string(index=False, header=len(table) == 1), flush=True)

    table = soak(model, prompt, options.tokens, options.parts, method, save)
    save(table)
    check(table)
    print(
        f"logits at the end differ from those of a short text by {table.logits_error.iloc[-1]:.2g}"
    )


if __name__ == "__main__":
    main()
