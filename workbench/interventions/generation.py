"""Continuing prompts under edits, so that steered and unsteered text differ because of the edit and nothing else.

Both arms of a comparison share their random numbers: each row and step has its own Gumbel noise, drawn from the seed
alone, and the token is argmax(logits / temperature + noise). Where an edit leaves the logits alone, the token is the
same. A key-value cache is used or not; positions are absolute, so the text is the same.

Source: Gumbel-max sampling (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030).

Example:
    >>> generate(subject, [chat], edits, n=8, max_new_tokens=32, temperature=1.0, seed=0)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import InputError, PromptError
from workbench.core.progress import CancelToken
from workbench.interventions.edits import Edits
from workbench.interventions.firings import Firing
from workbench.interventions.hooks import Runtime
from workbench.models.subject import Subject, TokenBatch


@dataclass(frozen=True)
class Generation:
    """One continuation of one prompt.

    Attributes:
        text: The continuation without the end-of-text token.
        ids: Token ids of the continuation, the end-of-text token included where it was reached.
        prompt_ids: Token ids of the prompt.
        stopped: Why it ended: `eos`, `length` (max_new_tokens) or `context` (the subject's context is full).
    """

    text: str
    ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    stopped: Literal["eos", "length", "context"]


def generate(
    subject: Subject,
    prompts: Sequence,
    edits: Edits | None = None,
    *,
    n: int = 1,
    max_new_tokens: int,
    temperature: float | int = 0.0,
    seed: int = 0,
    batch_size: int = 32,
    use_cache: bool = True,
    allow_idle: bool = False,
    firings: list[Firing] | None = None,
    cancel: CancelToken | None = None,
) -> list[Generation]:
    """Continue prompts, unsteered or under edits.

    Args:
        subject: The model.
        prompts: Text, chats or token ids.
        edits: What to change.
        n: Continuations per prompt; greedy ones are all the same and computed once.
        max_new_tokens: Longest continuation, in tokens.
        temperature: 0 is greedy.
        seed: Seed of the noise; row k of the same call in another arm gets the same noise.
        batch_size: Continuations per forward pass.
        use_cache: Keep keys and values of earlier tokens; without, every step recomputes all of them.
        allow_idle: Accept that an edit touches no token.
        firings: A list that what each edit did, over all continuations, is added to.
        cancel: Checked before each step.

    Returns:
        The n continuations of the first prompt, then those of the second, …

    Raises:
        PromptError: No prompt, or one that is empty or leaves no room in the context.
        InputError: A count below 1, or a temperature that is negative or not finite.
        EditError: An edit does not fit the subject.
        FiringError: An edit touched no token.
        Cancelled: The token says so.
    """
    if n < 1 or max_new_tokens < 1 or batch_size < 1:
        raise InputError(f"n, max_new_tokens and batch_size are at least 1, got {n}, {max_new_tokens}, {batch_size}")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature must be at least 0 and finite, got {temperature}")
    encoded = [tuple(subject.encode(prompt)) for prompt in prompts]
    if not encoded:
        raise PromptError("there is no prompt", where=f"subject {subject.name}")
    copies = n if temperature else 1
    rows = [(number, copy) for number in range(len(encoded)) for copy in range(copies)]
    # similar lengths go together; the noise of a row depends on its number, not on its company
    order = sorted(rows, key=lambda row: len(encoded[row[0]]))
    found: dict[tuple[int, int], Generation] = {}
    with Runtime(subject, edits or Edits(), allow_idle=allow_idle) as run:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            noise = [_generator(seed, *row) for row in chosen] if temperature else None
            decoder = _Decoder(subject, [encoded[number] for number, _ in chosen], max_new_tokens, use_cache=use_cache)
            run.prompt_len = decoder.prompt_len
            for row, one in zip(chosen, decoder.run(temperature, noise, cancel), strict=True):
                found[row] = one
    if firings is not None:
        firings.extend(run.firings)
    return [found[number, copy % copies] for number in range(len(encoded)) for copy in range(n)]


def eos_ids(subject: Subject) -> frozenset[int]:
    """Give the ids that end a continuation, as the model's generation settings and the tokenizer name them."""
    config = getattr(subject.model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    several = named if isinstance(named, (list, tuple)) else [named]
    return frozenset(int(one) for one in (*several, subject.tokenizer.eos_token_id) if one is not None)


class _Decoder:
    """One batch of continuations in the making: left padding, one column per step, finished rows masked."""

    def __init__(self, subject: Subject, prompts: list[tuple[int, ...]], max_new_tokens: int, *, use_cache: bool):
        batch: TokenBatch = subject.batch([list(one) for one in prompts])
        self.subject, self.prompts, self.use_cache = subject, prompts, use_cache
        self.ids, self.mask, self.prompt_len = batch.ids, batch.mask, batch.prompt_len
        self.room = [min(max_new_tokens, subject.n_ctx - len(one)) for one in prompts]
        if min(self.room) < 1:
            longest = max(map(len, prompts))
            raise PromptError(
                f"a prompt of {longest} tokens leaves no room to continue in a context of {subject.n_ctx}",
                where=f"subject {subject.name}",
            )
        self.max_new_tokens, self.eos = max_new_tokens, eos_ids(subject)
        self.new: list[list[int]] = [[] for _ in prompts]
        self.stopped: list[Literal["eos", "length", "context"] | None] = [None] * len(prompts)
        self.cache = None

    @torch.no_grad()
    def run(
        self, temperature: float | int, noise: list[torch.Generator] | None, cancel: CancelToken | None
    ) -> list[Generation]:
        while not all(self.stopped):
            if cancel is not None:
                cancel.check()
            tokens = _pick(self._step(), temperature, noise)
            for row, token in enumerate(tokens):
                self._take(row, token)
            going = torch.tensor([one is None for one in self.stopped], device=self.mask.device)
            column = torch.tensor(tokens, device=self.ids.device)[:, None]
            self.ids = torch.cat([self.ids, column], dim=1)
            # a finished row stays in the batch as padding: nothing attends to it, no edit counts it
            self.mask = torch.cat([self.mask, going[:, None]], dim=1)
        return [self._finish(row) for row in range(len(self.prompts))]

    def _step(self) -> Float[Tensor, "batch vocab"]:
        """Give the logits after the last column."""
        columns = slice(-1, None) if self.cache is not None else slice(None)
        position = (self.mask.long().cumsum(-1) - 1).clamp(min=0)
        out = self.subject.model(
            input_ids=self.ids[:, columns],
            attention_mask=self.mask.long(),
            position_ids=position[:, columns],
            past_key_values=self.cache,
            use_cache=self.use_cache,
            logits_to_keep=1,
        )
        self.cache = out.past_key_values if self.use_cache else None
        return out.logits[:, -1].float()

    def _take(self, row: int, token: int) -> None:
        if self.stopped[row] is not None:
            return
        self.new[row].append(token)
        if token in self.eos:
            self.stopped[row] = "eos"
        elif len(self.new[row]) == self.room[row]:
            self.stopped[row] = "length" if self.room[row] == self.max_new_tokens else "context"

    def _finish(self, row: int) -> Generation:
        ids, why = self.new[row], self.stopped[row] or "length"
        text = self.subject.decode(ids[:-1] if why == "eos" else ids)
        return Generation(text, tuple(ids), self.prompts[row], why)


def _pick(
    logits: Float[Tensor, "batch vocab"], temperature: float | int, noise: list[torch.Generator] | None
) -> list[int]:
    if noise is None:
        return logits.argmax(-1).tolist()
    # −log of an exponential variable is Gumbel noise; drawn on the CPU, so that every device draws the same
    drawn = torch.stack([torch.empty(logits.shape[-1]).exponential_(generator=one) for one in noise])
    return (logits / temperature - drawn.to(logits.device).log()).argmax(-1).tolist()


def _generator(seed: int, prompt: int, copy: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}\x1f{prompt}\x1f{copy}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
