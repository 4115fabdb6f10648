"""One model and one text: losses, looks and costs of any setting, each computed once."""

from collections import OrderedDict
from collections.abc import Iterator

import torch

from .reading import Look, Reading
from .setting import Setting, model_limit
from .store import Store
from .views import curve, pieces

# how many of the last ones are kept: readings with their caches
READINGS, LOOKS, CURVES = 4, 64, 64


class Session:
    """Losses by setting are kept on disk, readings with their caches and looks in memory."""

    def __init__(self, model, tokenizer, tokens: torch.Tensor):
        self.model, self.tokenizer, self.tokens = model, tokenizer, tokens
        self.store = Store(model, tokens)
        self.running: Reading | None = None  # the one whose losses are being computed
        self.done = 0  # and how many of its tokens have been read
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

    def compute(self, setting: Setting) -> Iterator[tuple[int, torch.Tensor]]:
        """Tokens predicted so far and their NLL (T - 1,), until all are; kept when they are."""
        known = self.store.get(setting)
        if known is not None:
            yield len(known), known
            return
        self.running, self.done = self._reading(setting), 0
        try:
            for done, nll in self.running.run():
                self.done = done
                yield done, nll
            self.store.put(setting, nll)
        finally:
            self.running = None

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
        return self._looks.get((setting.key, step))

    def can_look(self, setting: Setting, step: int) -> bool:
        """Whether a look need not wait for the reading that is under way."""
        same = self.running is not None and self.running.setting == setting.key
        return not same or self.done >= step

    def looking(self, setting: Setting, step: int) -> Iterator[Look | None]:
        """The look at a step, at the end; None after each chunk of text before it."""
        look = self.known_look(setting, step)
        if look is None:
            for look in self._reading(setting).look(step):
                if look is not None:  # kept first: at a yield this may end
                    self._looks[setting.key, step] = look
                    while len(self._looks) > LOOKS:
                        self._looks.popitem(last=False)
                yield None
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
