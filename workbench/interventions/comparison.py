"""What an edit changes on one prompt: the continuation, the next token, and how hard it pushed.

The edit's force is read on the very text it produced: prompt and steered continuation go through the model once without
and once with the edit, which gives the next-token probabilities, the divergence along the text and the firings.

Example:
    >>> steered = continuation(subject, prompt, edits, max_new_tokens=24)
    >>> readout(subject, steered, edits).next_tokens[0]
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workbench.core.progress import CancelToken
from workbench.interventions.edits import Edits
from workbench.interventions.firings import Firing
from workbench.interventions.generation import generate
from workbench.interventions.runtime import logits
from workbench.interventions.targets import DirectionTarget, Target
from workbench.models.subject import Subject


@dataclass(frozen=True)
class Side:
    """One continuation.

    Attributes:
        prompt_ids: Token ids of the prompt.
        ids: Token ids of the continuation.
        tokens: The same as readable strings.
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Readout:
    """An edit's effect along one text.

    Attributes:
        next_tokens: Token, probability without and with the edit, right after the prompt: the most likely of both.
        kl: Mean divergence of the next token along the continuation, edited from unedited, in nats.
        firings: Per edit: `name`, `calls`, `positions` (tokens touched), `mean_ratio` and `max_ratio` of ‖change‖ to
            ‖stream‖.
    """

    next_tokens: tuple[tuple[str, float, float], ...]
    kl: float
    firings: tuple[dict, ...]


def continuation(
    subject: Subject,
    prompt: object,
    edits: Edits | None = None,
    *,
    max_new_tokens: int = 24,
    temperature: float | int = 0.0,
    seed: int = 0,
    cancel: CancelToken | None = None,
) -> Side:
    """Continue a prompt once.

    Args:
        subject: The model.
        prompt: Text, chat or token ids.
        edits: What to change; nothing where absent.
        max_new_tokens: Longest continuation, in tokens.
        temperature: 0 is greedy.
        seed: Seed of the sample.
        cancel: Checked before each step.

    Raises:
        Cancelled: The token says so.
        FiringError: An edit touched no token.
    """
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    found = generate(subject, [prompt], edits, cancel=cancel, **options)[0]
    return Side(tuple(found.prompt_ids), tuple(found.ids), tuple(subject.token_strings(list(found.ids))))


def readout(subject: Subject, steered: Side, edits: Edits, *, k: int = 6) -> Readout:
    """Read an edit's effect along a prompt and its steered continuation.

    Args:
        subject: The model.
        steered: The continuation under the edit.
        edits: The edit.
        k: Next tokens to show.
    """
    completions = [list(steered.ids)] if steered.ids else None
    batch = subject.batch([list(steered.prompt_ids)], completions=completions)
    fired: list[Firing] = []
    base = logits(subject, batch)[0].float().log_softmax(-1)
    edited = logits(subject, batch, edits, firings=fired)[0].float().log_softmax(-1)
    first = len(steered.prompt_ids) - 1
    p, q = base[first].exp(), edited[first].exp()
    best = torch.maximum(p, q).topk(k).indices.tolist()
    names = subject.token_strings(best)
    rows = tuple((name, float(p[i]), float(q[i])) for name, i in zip(names, best, strict=True))
    along = (edited[first:].exp() * (edited[first:] - base[first:])).sum(-1)
    firings = tuple(
        {
            "name": _short(edit.target),
            "calls": one.calls,
            "positions": one.touched,
            "mean_ratio": one.mean_ratio,
            "max_ratio": one.max_ratio,
        }
        for edit, one in zip(edits.items, fired, strict=True)
    )
    return Readout(rows, max(0.0, float(along.mean())), firings)


def _short(target: Target) -> str:
    return target.name if isinstance(target, DirectionTarget) else f"{target.dictionary_id} / {target.index}"


def marks(base: Sequence[int], steered: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """Mark the tokens of each continuation that the other does not have in that order."""
    gone, new = [True] * len(base), [True] * len(steered)
    matcher = difflib.SequenceMatcher(None, list(base), list(steered), autojunk=False)
    for start, other, size in matcher.get_matching_blocks():
        gone[start : start + size] = [False] * size
        new[other : other + size] = [False] * size
    return gone, new
