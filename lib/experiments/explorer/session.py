"""One model and one text: losses, looks and costs of any setting, each computed once."""

from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping

import torch

from .reading import Look, Reading
from .setting import Setting, model_limit
from .store import Store
from .views import curve, pieces

# how many of the last ones are kept: readings with their caches
READINGS, LOOKS, CURVES = 4, 64, 64


class Session:
    """Losses and a look by setting are kept on disk, readings with their caches in memory."""

    def __init__(self, model, tokenizer, tokens: torch.Tensor):
        self.model, self.tokenizer, self.tokens = model, tokenizer, tokens
        self.store = Store(model, tokens)
        self._readings: OrderedDict[Setting, Reading] = OrderedDict()
        self._looks: OrderedDict[tuple[Setting, int], Look] = OrderedDict()
        self._curves: OrderedDict[Setting, dict] = OrderedDict()

    @property
    def limit(self) -> int:
        """The most tokens a cache may hold."""
        return model_limit(self.model)

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and query heads in each."""
        config = self.model.config.get_text_config()
        return config.num_hidden_layers, config.num_attention_heads

    def pieces(self) -> list[str]:
        """The text, token by token."""
        return pieces(self.tokenizer, self.tokens)

    @property
    def threads(self) -> int:
        """How many lines are best computed at once: an accelerator has enough to do with one."""
        return torch.get_num_threads() if self.model.device.type == "cpu" else 1

    def unknown(self, lines: Mapping[str, Setting]) -> dict[str, Setting]:
        """Those of `lines` to compute: without sinks, chosen and window are the same."""
        found: dict[Setting, str] = {}
        for name, line in lines.items():
            if self.store.get(line) is None:
                found.setdefault(line.key, name)
        return {name: lines[name] for name in found.values()}

    def compute(self, setting: Setting, step: int | None = None) -> Generator:
        """Tokens predicted so far and their NLL (T - 1,), until all are; kept when they are.

        A look at `step` is cheap from then on.
        """
        known = self.store.get(setting)
        if known is not None:
            return (x for x in [(len(known), known)])
        return self._run(self._reading(setting), step)

    def _run(self, reading: Reading, step: int | None) -> Generator:
        for done, nll in reading.run(step):
            if done == len(nll):
                self.store.put(reading.setting, nll)
            yield done, nll

    def nll(self, setting: Setting) -> torch.Tensor:
        """NLL of the whole text (T - 1,), computed now if it has to be."""
        *_, (_, nll) = self.compute(setting)
        return nll

    def curve(self, setting: Setting, nll: torch.Tensor, done: int) -> dict:
        """The `views.curve` of what `compute` yields, each span of it computed once."""
        before = self._curves.pop(setting.key, None)
        if before is None or before["done"] != done:
            grows = before is not None and before["done"] < done
            before = curve(nll, done, before if grows else None)
        self._curves[setting.key] = before
        while len(self._curves) > CURVES:
            self._curves.popitem(last=False)
        return before

    def known_look(self, setting: Setting, step: int) -> Look | None:
        """The look at a step, if it was taken before."""
        return self._looks.get((setting.key, step)) or self.store.get_look(setting, step)

    def keep_look(self, setting: Setting, step: int | None) -> None:
        """Keep the look at a step for the next session, if it was taken."""
        look = self._looks.get((setting.key, step))
        if look is not None and self.store.get_look(setting, step) is None:
            self.store.put_look(setting, look)

    def can_look(self, setting: Setting, step: int) -> bool:
        """Whether a look need not wait for the reading that is under way."""
        reading = self._readings.get(setting.key)
        known = self.known_look(setting, step) is not None
        return known or reading is None or reading.done is None or reading.done >= step

    def looking(self, setting: Setting, step: int) -> Iterator[Look | None]:
        """The look at a step, at the end; None after each chunk of text before it."""
        look = self.known_look(setting, step)
        if look is None:
            for look in self._reading(setting).look(step):
                if look is None:
                    yield None
            self._looks[setting.key, step] = look
            while len(self._looks) > LOOKS:
                self._looks.popitem(last=False)
        yield look

    def look(self, setting: Setting, step: int) -> Look:
        """The look at a step, taken now if it has to be."""
        *_, look = self.looking(setting, step)
        return look

    def _reading(self, setting: Setting) -> Reading:
        setting = setting.key
        reading = self._readings.pop(setting, None) or Reading(self.model, self.tokens, setting)
        self._readings[setting] = reading
        while len(self._readings) > READINGS:
            self._readings.popitem(last=False)
        return reading
