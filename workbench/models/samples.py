"""A few texts in a subject's own language, to check dictionaries on when nobody gave any.

Plain English would do for most models, and is what an ordinary tokenizer gets. A model of a small made-up language
would meet it as bytes it never saw, and every dictionary would look broken; it is asked to speak for itself instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from workbench.models.subject import Subject
from workbench.models.tokens import Prompt

TEXTS = (
    "The ferry left the harbour an hour late, and by then the wind had turned. Most of the passengers stayed below.",
    "To find the median of a list, sort it and take the middle value; with an even count, average the middle two.",
    "def total(prices, tax=0.2):\n    subtotal = sum(prices)\n    return round(subtotal * (1 + tax), 2)\n",
    "In 1928 Alexander Fleming noticed that a mould had killed the bacteria in one of his culture dishes.",
    "She asked whether the results could be trusted. He said that nobody had tried to reproduce them yet.",
    "Melt the butter in a pan, add the onions, and cook them slowly for twenty minutes until they are golden.",
)
QUESTIONS = (
    "What is the capital of Portugal, and how many people live there?",
    "My neighbour's dog barks all night. How can I raise this with her politely?",
)
MAX_TOKENS_PER_WORD = 2.5
"""Above this a tokenizer does not know the language of a text; English is 1.2 to 1.6 for common tokenizers."""


def sample_prompts(subject: Subject, *, seed: int = 0, n: int = 12, length: int = 48) -> list[Prompt]:
    """Give a few texts that the subject knows the language of.

    Args:
        subject: The subject.
        seed: Seed of its own samples, where it speaks for itself.
        n: Number of its own samples.
        length: Longest sample, in tokens.
    """
    english: list[Prompt] = list(TEXTS)
    if subject.tokenizer.chat_template:
        english += [[("user", question)] for question in QUESTIONS]
    words = sum(len(text.split()) for text in TEXTS)
    n_tokens = sum(len(subject.encode(text)) for text in TEXTS)
    if n_tokens <= MAX_TOKENS_PER_WORD * words and all(len(subject.encode(one)) <= subject.n_ctx for one in english):
        return english
    return list(own_samples(subject, n=n, length=min(length, subject.n_ctx), generator=Generator().manual_seed(seed)))


@torch.no_grad()
def own_samples(subject: Subject, *, n: int, length: int, generator: Generator) -> list[list[int]]:
    """Let the subject write n texts from nothing, at temperature 1, each ending at its first end-of-text token.

    Args:
        subject: The subject.
        n: Number of texts.
        length: Most tokens per text, the first included.
        generator: Source of randomness, on the CPU.
    """
    tokenizer: Any = subject.tokenizer
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = torch.full((n, 1), first if first is not None else 0, device=subject.device)
    step, cache = ids, None
    while ids.shape[1] < length:
        out = subject.model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        chances = out.logits[:, -1].float().softmax(-1).cpu()
        step = torch.multinomial(chances, 1, generator=generator).to(subject.device)
        ids = torch.cat([ids, step], dim=1)
    return [_until_end(row, tokenizer.eos_token_id) for row in ids.tolist()]


def _until_end(row: list[int], end: int | None) -> list[int]:
    stop = row.index(end, 1) + 1 if end in row[1:] else len(row)
    return row[:stop]
