"""A conversation in one cache, through the model's own chat template.

    chat = Chat(*load_model("smollm2"), StreamingLLM(4, 252))
    print(chat.say("Why is the sky blue?"))
    chat.talk()

`talk` is typed, at a terminal or in JupyterLab; an empty line ends it.
"""

from contextlib import suppress

import torch
from transformers import TextStreamer

from lib.cache.baseline import make_cache
from lib.cache.checks import input_device
from lib.compressors import Compressor
from lib.require import require, require_int

from .generation import next_logits


class Chat:
    """A conversation with `model` under `compressor` (None keeps all): greedy answers, one cache.

    Each turn feeds only what is new: the end of the answer before it, the user's words, and the
    beginning of the next answer. ValueError for a tokenizer without a chat template.
    """

    def __init__(
        self, model, tokenizer, compressor: Compressor | None = None, max_new_tokens: int = 256
    ):
        template = getattr(tokenizer, "chat_template", None)
        what = "a tokenizer with one, such as that of 'smollm2'"
        require(template is not None, "chat_template", template, what)
        require_int("max_new_tokens", max_new_tokens, 1)
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.cache = make_cache(model, compressor)
        self.tokens: list[int] = []  # all that was fed, from the template and both sides
        self.logits: torch.Tensor | None = None  # of the next token, (1, V)
        self.messages: list[dict[str, str]] = []
        ends = model.generation_config.eos_token_id
        self.ends = {*ends} if isinstance(ends, list) else {ends, tokenizer.eos_token_id}

    def say(self, text: str, streamer: TextStreamer | None = None) -> str:
        """The answer to `text`, without its end token; `streamer` shows it word by word."""
        self.hear(text)
        return self.answer(streamer)

    def hear(self, text: str) -> None:
        """Feed the user's turn, up to where the answer begins."""
        turn = self._turn({"role": "user", "content": text})
        self._feed(self.tokenizer(turn, add_special_tokens=False).input_ids)
        self.messages.append({"role": "user", "content": text})

    def answer(self, streamer: TextStreamer | None = None) -> str:
        """The answer to what was heard; its end token is fed with the next turn."""
        begin = len(self.tokens)
        while len(self.tokens) - begin < self.max_new_tokens:
            token = self.logits.argmax(-1)  # (1,)
            if int(token) in self.ends:
                break
            if streamer is not None:
                streamer.put(token.cpu())
            self._feed(token.tolist())
        if streamer is not None:
            streamer.end()
        text = self.tokenizer.decode(self.tokens[begin:])
        self.messages.append({"role": "assistant", "content": text})
        return text

    def talk(self) -> None:
        """Take turns with the keyboard until an empty line; answers appear as they are written."""
        with suppress(EOFError):
            while text := input("> "):
                self.say(text, TextStreamer(self.tokenizer))

    @torch.no_grad()
    def _feed(self, ids: list[int]) -> None:
        batch = torch.tensor([ids], device=input_device(self.model))
        self.logits = next_logits(self.model, batch, self.cache)
        self.tokens += ids

    def _turn(self, user: dict[str, str]) -> str:
        """What the template puts between the answer before, if there is one, and the next."""
        if not self.messages:
            return self._render(user)
        before = self._render(user) + "."  # any exchange: what follows an answer is always the same
        whole = self._render(user, {"role": "assistant", "content": "."}, user)
        what = "one that only adds to what was said before"
        require(whole.startswith(before), "chat_template", self.tokenizer.chat_template, what)
        return whole.removeprefix(before)

    def _render(self, *messages: dict[str, str]) -> str:
        options = {"tokenize": False, "add_generation_prompt": True}
        return self.tokenizer.apply_chat_template(list(messages), **options)
