"""What the reference model is trained on: its tokenizer, its batches, and the copying task."""

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

EOS = 0  # `<|endoftext|>`, the first token of every training sequence
IGNORE = -100  # label of a token that can't be predicted
COPIED = (8, 64)  # rows of random tokens that are copied in an evaluation, and tokens of a row


def train_tokenizer(text: str, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE on `text` with `<|endoftext|>` as token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split("\n\n"), trainer)
    # every text begins with it, as every training sequence does
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", EOS)]
    )
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_batch(
    tokens: np.ndarray,
    batch_size: int,
    context: int,
    rng: np.random.Generator,
    vocab_size: int,
    copy_share: float,
    repeat_share: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and next-token labels, (batch_size, context) each.

    A row is a stretch of `tokens` (T,); for the share `copy_share` of rows one with a span copied
    to a later place; for `repeat_share` random tokens repeated, the first time without labels.
    """
    T = context
    ids = np.empty((batch_size, T + 1), dtype=np.int64)
    ids[:, 0] = EOS
    labels = ids.copy()
    for row in range(batch_size):
        start = rng.integers(len(tokens) - T)
        body = tokens[start : start + T].astype(np.int64)
        known_from = 0  # labels before this place can't be predicted
        kind = rng.random()
        if kind < copy_share:
            length = int(rng.integers(8, T // 3))
            source = int(rng.integers(0, T - 2 * length + 1))
            target = int(rng.integers(source + length, T - length + 1))
            body[target : target + length] = body[source : source + length].copy()
        elif kind < copy_share + repeat_share:
            known_from = int(rng.integers(8, T // 2))
            block = rng.integers(1, vocab_size, known_from)
            body = np.resize(block, T)
        ids[row, 1:] = body
        labels[row, 1:] = body
        labels[row, 1 : 1 + known_from] = IGNORE
    return torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(labels[:, 1:].copy())


@torch.no_grad()
def copying_loss(model, batch_size: int = COPIED[0], length: int = COPIED[1]) -> float:
    """Loss (nats per token) on the second of two identical rows of random tokens.

    That is `length - 1` tokens a row: nothing says that the second row begins.
    """
    rng = np.random.default_rng(1)
    block = rng.integers(1, model.config.vocab_size, (batch_size, length))
    rows = np.concatenate([np.full((batch_size, 1), EOS), block, block], 1)
    ids = torch.from_numpy(rows).to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits.float()
    # the second copy is predictable from its second token on
    second = slice(length + 1, -1)
    return F.cross_entropy(logits[:, second].flatten(0, 1), ids[:, length + 2 :].flatten()).item()
