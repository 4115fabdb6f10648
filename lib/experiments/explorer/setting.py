"""What the controls of the explorer hold, what they allow, and the same as a line to type."""

import shlex
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace

import torch

from lib.cache.baseline import LARGE_CHUNK, any_chunk
from lib.cache.checks import POSITIONS
from lib.cache.slots import Slots
from lib.compressors import ROWS, Compressor, RecentOnly
from lib.measure.rows import BASELINE, at_budget
from lib.measure.stats import stretches
from lib.names import display_name

# `buffer` makes any method lazy, and presses of another project are not among the packages
OFFERED = (BASELINE, *(x for x in ROWS if x != "streaming_lazy" and not x.startswith("kvpress")))
# those that are told how many first tokens to keep: the window comes on top of them
WITH_SINKS = tuple(
    name
    for name in OFFERED
    if name != BASELINE and "start_size" in {field.name for field in fields(ROWS[name][0])}
)
MOST_SINKS, LEAST_WINDOW, MOST_BUFFER, LONGEST = 16, 16, 512, 65_536
CUT_CHUNK = 64  # of methods that look at keys or attention


@dataclass(frozen=True)
class Setting:
    """A method, its sizes in tokens, and how positions are counted: what a loss depends on."""

    method: str = "streaming"
    start_size: int = 4
    recent_size: int = 124
    buffer: int = 0
    positions: str = "in_cache"

    @property
    def budget(self) -> int:
        """Tokens kept between steps."""
        return self.recent_size + (self.start_size if self.method in WITH_SINKS else 0)

    @property
    def label(self) -> str:
        """A short name for a legend."""
        if self.method == BASELINE:
            return display_name(BASELINE)
        kept = f"{self.start_size} + {self.recent_size}" if self.has_sinks else self.budget
        more = [f"buffer {self.buffer}"] if self.buffer else []
        more += ["original positions"] if self.positions == "original" else []
        return ", ".join([f"{display_name(self.method)} {kept}", *more])

    @property
    def has_sinks(self) -> bool:
        """Whether the method keeps the first tokens because of their place."""
        return self.method == "streaming"

    def compressor(self) -> Compressor | None:
        """The method at this budget; ValueError where it can't be had so small."""
        if self.method == BASELINE:
            return None
        return at_budget(self.method, self.budget, self.start_size)

    def window(self) -> "Setting":
        """The window without sinks that keeps as many tokens, strict."""
        return Setting("recent_only", 0, self.budget)

    @property
    def key(self) -> "Setting":
        """The same for settings whose losses are the same."""
        if self.method == BASELINE:
            return DENSE
        if self.has_sinks and not self.start_size:
            return replace(self, method="recent_only")
        return self if self.method in WITH_SINKS else replace(self, start_size=0)

    @property
    def chunk_size(self) -> int:
        """Tokens a forward pass: part of the definition of methods that look at keys."""
        method = self.compressor()
        return LARGE_CHUNK if any_chunk(method) else max(1, min(CUT_CHUNK, method.longest_step))

    def errors(self, limit: int) -> dict[str, str]:
        """What is not allowed, a sentence by control; `limit` is the model's, in tokens."""
        found = {}

        def check(name: str, shown: str, low: int, high: int) -> None:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                found[name] = f"{shown} = {value}: allowed is {low:,} to {high:,} tokens"

        check("start_size", "sinks", 0, MOST_SINKS)
        check("recent_size", "window", min(LEAST_WINDOW, limit), limit)
        check("buffer", "buffer", 0, MOST_BUFFER)
        for name, allowed in (("method", OFFERED), ("positions", POSITIONS)):
            if getattr(self, name) not in allowed:
                found[name] = _one_of(name, getattr(self, name), allowed)
        if not found and self.budget + self.buffer > limit and self.method != BASELINE:
            sinks = self.budget - self.recent_size
            parts = f"{self.recent_size:,} + {sinks} sinks + {self.buffer} of buffer"
            found["recent_size"] = f"window: {parts} are more than the model's {limit:,} tokens"
        return found or self._refused()

    def _refused(self) -> dict[str, str]:
        """What the method itself does not allow."""
        try:
            method = self.compressor()
        except ValueError as error:
            return {"method": f"{display_name(self.method)}: {error}"}
        if self.buffer and (method is None or method.budget is None):
            return {"buffer": f"buffer = {self.buffer}: allowed is 0 for {self.method}"}
        return {}

    def code(self, length: int) -> str:
        """One expression for the perplexity that is shown of the text `tokens`, of that length."""
        method, more = self.compressor(), ""
        read = 1 + stretches(torch.empty(length - 1)).numel()  # without the rest of 16 stretches
        tokens = "tokens" if read == length else f"tokens[:{read}]"
        if method is not None:
            rows = "" if isinstance(method, RecentOnly) or self.has_sinks else self.method
            more = f', at_budget("{rows}", {self.budget}, {self.start_size})' if rows else ""
            more = more or f", {method!r}"
            more += "" if method.window else f", chunk_size={self.chunk_size}"
        more += f", buffer={self.buffer}" if self.buffer else ""
        more += f', positions="{self.positions}"' if self.positions != "in_cache" else ""
        return f"evaluate(model, {tokens}{more}).ppl"

    def papermill(self, notebook: str, more: dict) -> str:
        """The line that runs `notebook` with this setting and with `more` of its parameters."""
        values = asdict(self) | more
        given = (f"-p {name} {shlex.quote(str(value))}" for name, value in values.items())
        return " ".join(["papermill", notebook, *given])


DENSE = Setting(BASELINE, 0, 0)


def lines_of(setting: Setting) -> dict[str, Setting]:
    """What a setting is shown beside, in the order in which it is computed."""
    return {"chosen": setting, "window": setting.window(), "dense": DENSE}


def _one_of(name: str, value, allowed: Collection[str]) -> str:
    return f"{name} = {value!r}: allowed is one of {', '.join(allowed)}"


def model_limit(model) -> int:
    """The most tokens a cache may hold for this model: those it was made for."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or LONGEST


def place_errors(model, length: int, step: int, layer: int, head: int) -> dict[str, str]:
    """Which of step, layer and head lie outside a text of `length` tokens or the model."""
    config = model.config.get_text_config()
    most = {"step": length, "layer": config.num_hidden_layers, "head": config.num_attention_heads}
    given = {"step": step, "layer": layer, "head": head}
    return {
        name: f"{name} = {given[name]}: allowed is 0 to {most[name] - 1:,}"
        for name in most
        if not isinstance(given[name], int) or not 0 <= given[name] < most[name]
    }


def fit(setting: Setting, controls: Mapping, model, length: int) -> tuple[dict[str, int], str]:
    """Controls that this model and a text of `length` tokens move, and that in words."""
    config = model.config.get_text_config()
    room = model_limit(model) - (setting.budget - setting.recent_size)
    most = {"buffer": max(0, room - LEAST_WINDOW), "step": length - 1}
    most["recent_size"] = room - min(controls["buffer"], most["buffer"])
    most |= {"layer": config.num_hidden_layers - 1, "head": config.num_attention_heads - 1}
    moved = {name: high for name, high in most.items() if controls[name] > high}
    shown = {"recent_size": "window"}
    return moved, ", ".join(f"{shown.get(x, x)} moved to {to:,}" for x, to in moved.items())


def refuse(setting: Setting, model, length: int, step: int, layer: int, head: int) -> None:
    """Raise a ValueError, one sentence, unless all of this is allowed."""
    found = setting.errors(model_limit(model)) | place_errors(model, length, step, layer, head)
    if found:
        raise ValueError("; ".join(found.values()))


def held_by_rule(setting: Setting, step: int) -> torch.Tensor | None:
    """Tokens held when the query at `step` comes, itself included, where the rule says it: (n,).

    None for methods that look at more than positions.
    """
    method = setting.compressor()
    if method is None:
        return torch.arange(step + 1)
    if method.window is None:
        return None
    slots = Slots(method.window, setting.buffer)
    held, front = slots.used(step), slots.front(step)
    return torch.cat((torch.arange(front), torch.arange(step - (held - front), step + 1)))
