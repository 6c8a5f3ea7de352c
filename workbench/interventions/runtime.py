"""Forward passes under edits: logits at every position, logits after the last token, continuations.

These are the calls that everything above makes. Each runs on the plain Hugging Face modules with `Runtime` on, and
each refuses a run in which an edit touched nothing. `Runtime` and `generate` are to be had here too.

Example:
    >>> last_logits(subject, prompts, edits, batch_size=32).log_softmax(-1)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import PromptError
from workbench.interventions.edits import Edits
from workbench.interventions.firings import Firing
from workbench.interventions.generation import Generation, generate
from workbench.interventions.hooks import Runtime, check_fit
from workbench.models.subject import Subject, TokenBatch

__all__ = ["BATCH_SIZE", "Generation", "Runtime", "check_fit", "generate", "last_logits", "logits", "sorted_batches"]

BATCH_SIZE = 32
"""Prompts per forward pass where the caller names no other number."""


def logits(
    subject: Subject,
    batch: TokenBatch,
    edits: Edits | None = None,
    *,
    allow_idle: bool = False,
    firings: list[Firing] | None = None,
) -> Float[Tensor, "batch pos vocab"]:
    """Give the logits at every position, unsteered or under edits; at padding they mean nothing.

    Args:
        subject: The model.
        batch: Token ids; positions are relative to `batch.prompt_len`.
        edits: What to change.
        allow_idle: Accept that an edit touches no token.
        firings: A list that what each edit did is added to.

    Raises:
        EditError: An edit does not fit the subject.
        FiringError: An edit touched no token.
    """
    with Runtime(subject, edits or Edits(), prompt_len=batch.prompt_len, allow_idle=allow_idle) as run:
        found = subject.logits(batch)
    if firings is not None:
        firings.extend(run.firings)
    return found


@torch.no_grad()
def last_logits(
    subject: Subject,
    prompts: Sequence,
    edits: Edits | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    allow_idle: bool = False,
    firings: list[Firing] | None = None,
) -> Float[Tensor, "n vocab"]:
    """Give the logits after each prompt's last token, float32, in the order of the prompts.

    Args:
        subject: The model.
        prompts: Text, chats or token ids.
        edits: What to change.
        batch_size: Prompts per forward pass; prompts of similar length go together.
        allow_idle: Accept that an edit touches no token of any prompt.
        firings: A list that what each edit did, over all prompts, is added to.

    Raises:
        PromptError: No prompt, or one that is empty or too long.
        EditError: An edit does not fit the subject.
        FiringError: An edit touched no token of any prompt.
    """
    found: Tensor | None = None
    with Runtime(subject, edits or Edits(), allow_idle=allow_idle) as run:
        for rows, batch in sorted_batches(subject, prompts, batch_size):
            run.prompt_len = batch.prompt_len
            last = run_last(subject, batch)
            found = last.new_empty(len(prompts), last.shape[-1]) if found is None else found
            found[rows] = last
    if firings is not None:
        firings.extend(run.firings)
    return found  # type: ignore[return-value]


def run_last(subject: Subject, batch: TokenBatch) -> Float[Tensor, "batch vocab"]:
    """Run the model and give the logits after each row's last token, float32."""
    out = subject.model(
        input_ids=batch.ids,
        attention_mask=batch.mask.long(),
        position_ids=batch.positions.clamp(min=0),
        use_cache=False,
        logits_to_keep=1,
    )
    return out.logits[:, -1].float()


def sorted_batches(
    subject: Subject, prompts: Sequence, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[list[int], TokenBatch]]:
    """Give batches of prompts of similar length, each with the places of its rows among the prompts.

    Raises:
        PromptError: No prompt, a batch size below 1, or a prompt that is empty or too long.
    """
    if batch_size < 1:
        raise PromptError(f"a batch holds at least one prompt, got batch_size={batch_size}")
    encoded = [subject.encode(prompt) for prompt in prompts]
    if not encoded:
        raise PromptError("there is no prompt", where=f"subject {subject.name}")
    order = sorted(range(len(encoded)), key=lambda k: len(encoded[k]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, subject.batch([encoded[k] for k in rows])
