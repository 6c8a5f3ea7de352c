"""Whether this runtime applies the edit that was measured: the spec's prompts, run here, answer for answer.

Digests say that the bytes are right; only running them says that the hooks fire, at the right module, with the right
strength. A runtime that ignores the edit, applies it twice or at another layer gives other logits or other firings.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Never

import torch

from workbench.core.errors import BundleError, FiringError
from workbench.evidence.known_answers import RATIO_TOLERANCE
from workbench.interventions.edits import Edits
from workbench.interventions.firings import Firing
from workbench.interventions.runtime import last_logits
from workbench.models.subject import Subject
from workbench.spec.documents.spec import KnownAnswer, Spec, TokenLogit


@dataclass(frozen=True)
class AnswerCheck:
    """One known answer as it came out here.

    Attributes:
        number: Which one, from 0.
        base: Largest difference of a recorded logit, unedited.
        edited: The same under the edits.
        tolerance: Largest difference allowed.
        positions: Tokens that the edits acted on, all edits together.
    """

    number: int
    base: float
    edited: float
    tolerance: float
    positions: int

    def to_json(self) -> dict:
        """Give the check as JSON values."""
        return asdict(self)


def check_known_answers(spec: Spec, subject: Subject, edits: Edits) -> tuple[AnswerCheck, ...]:
    """Reproduce every known answer of a spec on a live subject.

    Raises:
        BundleError: A logit is off by more than the tolerance, another token is on top, or an edit acted more or less
            often than recorded. Check `known_answers`.
    """
    dtype = str(subject.dtype).removeprefix("torch.")
    tolerances: dict[str, float] = {**spec.known_answers.tolerance}
    if dtype not in tolerances:
        _refuse(f"there is no tolerance for {dtype}, the precision of the live subject")
    return tuple(
        _check(number, answer, subject, edits, tolerances[dtype])
        for number, answer in enumerate(spec.known_answers.answers)
    )


def _check(number: int, answer: KnownAnswer, subject: Subject, edits: Edits, tolerance: float) -> AnswerCheck:
    firings: list[Firing] = []
    ids = [list(answer.token_ids)]
    try:
        base = last_logits(subject, ids, None)[0]
        edited = last_logits(subject, ids, edits, allow_idle=True, firings=firings)[0]
    except FiringError as error:
        raise BundleError(f"known answer {number}: {error}", check="known_answers") from error
    off = []
    for arm, live, recorded in (("unedited", base, answer.base), ("edited", edited, answer.edited)):
        difference = _difference(live, recorded)
        if not difference <= tolerance:
            _refuse(
                f"known answer {number}: an {arm} logit differs by {difference:.3g}, at most {tolerance:g} is the same "
                "edit on the same model"
            )
        off.append(difference)
    for recorded, live in zip(answer.firings, firings, strict=True):
        _check_firing(number, recorded.positions, recorded.max_ratio, live)
    return AnswerCheck(number, off[0], off[1], tolerance, sum(one.touched for one in firings))


def _difference(live: torch.Tensor, recorded: tuple[TokenLogit, ...]) -> float:
    """Give the largest difference of a recorded logit, or of the largest live one where another token is on top."""
    tokens = torch.tensor([one.token for one in recorded], device=live.device)
    logits = torch.tensor([one.logit for one in recorded], device=live.device, dtype=torch.float64)
    listed = float((live[tokens].double() - logits).abs().max())
    # a token that is not listed must not rise above the smallest listed one
    rest = live.double().clone()
    rest[tokens] = -torch.inf
    return max(listed, float(rest.max() - logits.min()))


def _check_firing(number: int, positions: int, ratio: float | None, live: Firing) -> None:
    if live.touched != positions:
        _refuse(
            f"known answer {number}: an edit acted on {live.touched} tokens, recorded were {positions}: {live.edit}"
        )
    if ratio and abs((live.max_ratio or 0.0) - ratio) > RATIO_TOLERANCE * ratio + 1e-6:
        _refuse(
            f"known answer {number}: an edit changed the stream by up to {live.max_ratio or 0.0:.4g} of its norm, "
            f"recorded was {ratio:.4g}: {live.edit}"
        )


def _refuse(message: str) -> Never:
    raise BundleError(
        message,
        check="known_answers",
        hint="this runtime does not apply the edit that was measured; nothing was applied",
    )
