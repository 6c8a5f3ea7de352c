"""Prompts with the model's own answers, unedited and edited, by which any runtime proves that it applies this edit.

Serving stacks fail silently unsteered: a hook that is never called, a vector that is ignored. So a bundle carries a few
prompts as token ids with the largest logits of both arms and how often each edit acted. Each prompt is run alone, so
that no batch shape stands between two machines.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workbench.core.errors import TrialError
from workbench.interventions.edits import Edits
from workbench.interventions.firings import Firing
from workbench.interventions.runtime import last_logits
from workbench.models.subject import Subject
from workbench.spec.documents.spec import MIN_KNOWN_ANSWERS, Dtype, FiringRecord, KnownAnswer, KnownAnswers, TokenLogit

TOP = 10
"""Logits recorded per arm."""
TOLERANCE: dict[Dtype, float] = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.03}
"""Largest difference of a raw logit that is still the same edit; another machine's float32 sums differ by far less."""
RATIO_TOLERANCE = 0.02
"""Largest difference of the largest ‖change‖ / ‖stream‖, as a share of it."""


def make_known_answers(
    subject: Subject, edits: Edits, prompts: Sequence[str], *, n: int = MIN_KNOWN_ANSWERS
) -> KnownAnswers:
    """Run prompts without and with the edits and keep enough of them that every edit acts in at least one.

    Args:
        subject: The model.
        edits: What is proved.
        prompts: Prompts to choose from, the preferred ones first.
        n: Fewest answers.

    Raises:
        TrialError: An edit acts on none of the prompts, or there are fewer than `n`.
    """
    kept: list[KnownAnswer] = []
    waiting = set(range(len(edits)))
    for number, text in enumerate(prompts):
        answer = answer_of(subject, edits, subject.encode(text))
        new = {one.edit for one in answer.firings if one.positions} & waiting
        if new or len(kept) < n:
            kept.append(answer)
            waiting -= new
        if not waiting and len(kept) >= n:
            break
        if number > 4 * n and not waiting:
            break
    if waiting:
        raise TrialError(
            f"edit {min(waiting)} acts on none of {len(prompts)} prompts, so no known answer can prove it",
            hint="give prompts on which it acts",
        )
    if len(kept) < n:
        raise TrialError(f"{len(kept)} prompts for known answers, at least {n} are needed")
    return KnownAnswers(answers=tuple(kept), tolerance=dict(TOLERANCE))


def answer_of(subject: Subject, edits: Edits, ids: Sequence[int]) -> KnownAnswer:
    """Give the largest logits after one prompt, unedited and edited, and how often each edit acted."""
    firings: list[Firing] = []
    base = last_logits(subject, [list(ids)], None)[0]
    edited = last_logits(subject, [list(ids)], edits, allow_idle=True, firings=firings)[0]
    return KnownAnswer(
        token_ids=tuple(ids),
        text=subject.decode(ids),
        base=top_logits(base),
        edited=top_logits(edited),
        firings=tuple(
            FiringRecord(edit=k, positions=one.touched, max_ratio=one.max_ratio) for k, one in enumerate(firings)
        ),
    )


def top_logits(logits: torch.Tensor, k: int = TOP) -> tuple[TokenLogit, ...]:
    """Give the largest logits, descending."""
    values, tokens = logits.float().topk(min(k, logits.shape[-1]))
    return tuple(TokenLogit(token=int(t), logit=float(v)) for t, v in zip(tokens, values, strict=True))
