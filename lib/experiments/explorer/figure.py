"""The explorer's views drawn once, for pages without a kernel, and its table."""

import textwrap

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lib.measure.machine import Machine
from lib.measure.rows import BASELINE
from lib.measure.stats import ppl_ci, ppl_ratio_ci, stretches, with_interval
from lib.names import display_name
from lib.plots import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    VERMILLION,
    WIDTH,
    mark,
    method_style,
    subplots,
    thousands,
)

from . import views
from .session import Session
from .setting import DENSE, Setting, lines_of
from .writing import TEMPERATURE, write

COLUMNS, LINES = 118, 9  # characters a line; lines around the step
TITLE = 80  # characters a line of a small title


def compared(setting: Setting) -> dict[str, Setting]:
    """Dense, the window that keeps as many tokens, and the setting, by the names of their rows."""
    lines = {BASELINE: DENSE, f"recent_only_{setting.budget}": setting.window()}
    name = BASELINE if setting.key == DENSE else f"{setting.method}_{setting.budget}"
    return lines | {f"{name}_chosen" if name in lines else name: setting}


def table(session: Session, setting: Setting) -> pd.DataFrame:
    """Perplexity over the whole text and over its last quarter: a row for each of `compared`.

    95% intervals, `_low` and `_high`, over 16 stretches of each; `n_tokens` are in the first.
    """
    rows = []
    for name, line in compared(setting).items():
        nll = session.nll(line)
        whole, last = stretches(nll), stretches(nll[-(len(nll) // 4) :])
        row = {"method": name}
        for column, part in {"ppl": whole, "ppl_last_quarter": last}.items():
            row |= with_interval(column, ppl_ci(part))
        rows.append(row | {"n_tokens": whole.numel()})
    return pd.DataFrame(rows)


def reading(session: Session, setting: Setting) -> str:
    """In words: the perplexity under a setting, beside the window's and dense attention's."""
    dense, window, own = (stretches(session.nll(x)) for x in compared(setting).values())
    beside = [
        f"{name} {ppl_ci(nll)[0]:.1f} ({{:.2f}}x, {{:.2f}} to {{:.2f}})".format(
            *ppl_ratio_ci(own, nll)
        )
        for name, nll in {f"a window of {setting.budget}": window, "dense attention": dense}.items()
    ]
    return (
        f"On {len(session.tokens):,} tokens, {setting.label} gives a perplexity of "
        f"{ppl_ci(own)[0]:.1f}, {' and '.join(beside)}; 95% intervals, paired over 16 stretches."
    )


def draw(
    session: Session, setting: Setting, step: int, layer: int, head: int, machine: Machine
) -> Figure:
    """Text, loss by position, attention at the step, its share on the sinks, and the cost."""
    fig, _ = subplots(figsize=(WIDTH, 8.6), layout="constrained")
    fig.clear()
    rows = [["text", "text"], ["loss", "loss"], ["attention", "attention"], ["share", "cost"]]
    axes = fig.subplot_mosaic(rows, height_ratios=[1.25, 1.6, 1.2, 0.8])
    look = session.look(setting, step)
    shown = views.attention(setting, step, look, layer, head)
    _draw_text(axes["text"], session.pieces(), shown)
    _draw_loss(axes["loss"], session, setting, step)
    _draw_attention(axes["attention"], shown)
    _draw_share(axes["share"], shown)
    _draw_cost(axes["cost"], views.cost(session.model, setting, step, look, machine))
    return fig


def _draw_text(ax: Axes, texts: list[str], shown: dict) -> None:
    """The first tokens, and those around the step: what of them is held, and how much it gets."""
    step, weights = shown["step"], dict(zip(shown["tokens"], shown["weights"], strict=True))
    ax.set(xlim=(0, COLUMNS), ylim=(10.5, -0.7))
    ax.axis("off")
    lines = _lines(texts, range(min(16, len(texts))))[:1]
    around = _lines(texts, range(16, min(len(texts), step + 20)))
    here = next((at for at, line in enumerate(around) if step in line), 0)
    lines += around[max(0, here - LINES + 2) :][:LINES]  # the step in the last but one
    for number, line in enumerate(lines):
        x, y = 0, number + (0.35 if number else 0)
        for token in line:
            _draw_token(ax, x, y, texts[token], weights.get(token), token, shown)
            x += len(texts[token])
    told = "Text: held (underlined), evicted (struck out), current (boxed); darker: more attention"
    ax.set_title(told, fontsize=9)


def _lines(texts: list[str], tokens: range) -> list[list[int]]:
    """`tokens` in lines of at most so many characters as fit."""
    lines, width = [[]], 0
    for token in tokens:
        if width + len(texts[token]) > COLUMNS:
            lines.append([])
            width = 0
        lines[-1].append(token)
        width += len(texts[token])
    return lines


def _draw_token(
    ax: Axes, x: float, y: float, text: str, weight: float | None, token: int, shown: dict
) -> None:
    """A token's text, marked where it is held (`weight` is its attention then) or is the step."""
    style = {"fontsize": 6.6, "family": "monospace", "va": "center", "clip_on": True}
    width, step, held = len(text), shown["step"], weight is not None
    if held:
        strength = float(np.sqrt(weight / max(shown["weights"])))
        ax.add_patch(Rectangle((x, y - 0.45), width, 0.9, color=ORANGE, alpha=strength, lw=0))
        ax.plot([x, x + width], [y + 0.45] * 2, color=BLUE, lw=1)
    if token < shown["sinks"] and held:
        style["weight"] = "bold"
    if token == step:
        ax.add_patch(Rectangle((x, y - 0.5), width, 1, fill=False, ec=VERMILLION, lw=1.5))
    if not held and token < step:
        ax.plot([x, x + width], [y, y], color=GREY, lw=0.6)
    shown_text = text.replace("\n", "↵").replace("$", r"\$")
    ax.text(x, y, shown_text, color=BLACK if held else "#999999", **style)


def _draw_loss(ax: Axes, session: Session, setting: Setting, step: int) -> None:
    told = []
    for name, line in compared(setting).items():
        curve = views.curve(session.nll(line), len(session.tokens) - 1)
        style = method_style(name)
        color = BLUE if line is setting else style.color
        x = curve["x"]
        ax.plot(x, curve["y"], color=color, label=line.label, marker=style.marker, ms=4)
        low, high = (np.array(curve[end], dtype=float) for end in ("low", "high"))
        ax.fill_between(x, low, high, color=color, alpha=0.13, lw=0)
        told.append(f"{line.label}: {_interval(curve['ppl'])}")
    mark(ax, setting.budget, "cache full")
    mark(ax, step, "step")
    ax.set_xscale("log", base=2)
    thousands(ax.xaxis)
    ax.set_xlabel("position (tokens; bands: 95% over 16 stretches of each span)")
    ax.set_ylabel("NLL (nats)")
    nll = {name: session.nll(line) for name, line in lines_of(setting).items()}
    told += [f"chosen / {x}: {_interval(ratio, 2)}" for x, ratio in views.ratios(nll).items()]
    told = [x.replace(" ", "\N{NO-BREAK SPACE}") for x in told]  # a new line only between them
    title = textwrap.fill("Loss by position, mean PPL: " + "; ".join(told), TITLE)
    ax.set_title(title, fontsize=9)
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.3 * (high - low), high + 0.1 * (high - low))  # the legend's place, marks'
    ax.legend(loc="lower left", ncols=3, fontsize=8)


def _interval(spread: list[float | None], digits: int = 1) -> str:
    """21.3 (14.2 to 31.2), or the number alone where there is no interval."""
    number, *ends = (None if x is None else f"{x:.{digits}f}" for x in spread)
    return f"{number} ({ends[0]} to {ends[1]})" if None not in ends else number


def _draw_attention(ax: Axes, shown: dict) -> None:
    tokens, weights = shown["tokens"], shown["weights"]
    colors = [BLUE if token < shown["sinks"] else VERMILLION for token in tokens]
    wide = max(1.2, 400 / len(tokens))  # points: lines, since bars of many tokens can't be seen
    ax.vlines(range(len(tokens)), 0, weights, colors, linewidth=wide)
    ax.set_ylim(0)
    places = np.unique(np.linspace(0, len(tokens) - 1, 6).astype(int))
    ax.set_xticks(places, [f"{tokens[place]:,}" for place in places])
    ax.margins(x=0.015)
    ax.grid(False, axis="x")
    ax.set_xlabel("cached tokens, in order (labels: place in the text)")
    ax.set_ylabel("attention")
    sinks = "; sinks in blue" if shown["sinks"] else ""
    where = f"layer {shown['layer']}, head {shown['head']}"
    ax.set_title(f"Attention of token {shown['step']:,}, {where}{sinks}", fontsize=10)


def _draw_share(ax: Axes, shown: dict) -> None:
    ax.bar(range(len(shown["shares"])), np.array(shown["shares"]) * 100, color=BLUE)
    ax.set(xlabel="layer", ylabel="%", ylim=(0, 100))
    ax.grid(False, axis="x")
    what = "sinks" if shown["sinks"] else f"first {shown['first']} tokens"
    ax.set_title(f"Share on the {what}", fontsize=10)


def _draw_cost(ax: Axes, cost: dict) -> None:
    ax.axis("off")
    names = {"dense": display_name(BASELINE), "chosen": "chosen"}
    cells = [
        [
            names[name],
            f"{x['tokens']:,.0f}",
            f"{x['bytes'] / 2**20:.2f}",
            f"{x['tokens_per_s']:,.0f}",
        ]
        for name, x in cost.items()
    ]
    heads = ["", "tokens\nheld", "MiB", "tokens/s\nat most"]
    found = ax.table(cells, colLabels=heads, loc="center", edges="horizontal", cellLoc="right")
    found.auto_set_font_size(False)
    found.set_fontsize(9)
    found.scale(1, 1.7)
    ax.set_title("Cost of the cache at the step", fontsize=10)


def written(session: Session, setting: Setting, step: int, new_tokens: int) -> pd.DataFrame:
    """How the text goes on after the step in each of `compared`: drawn with the same numbers."""
    lines = compared(setting)
    ids = [[] for _ in lines]
    prompt = session.tokens[: step + 1]
    for place, token in write(session.model, prompt, list(lines.values()), new_tokens, TEMPERATURE):
        ids[place] += [] if token is None else [token]
    texts = [session.tokenizer.decode(torch.tensor(own)) for own in ids]
    return pd.DataFrame(
        {
            "kept": [x.label for x in lines.values()],
            "written": [" ".join(text.split()) for text in texts],
        }
    )
