"""The arms of a trial: what the candidate is compared with, each built from the candidate itself.

A dose multiplies what the edit adds to the stream and leaves what it reads alone; dose 0 is the no-op, which has to
leave every logit bit-identical. A control keeps reads, signs, coefficients and norms and turns only the direction
that is written. The difference of means is the cheap alternative a reviewer asks for first.

Sources: equal-norm random controls with rank p (Phipson & Smyth 2010); difference of means (Marks & Tegmark 2023,
arXiv 2310.06824; Panickssery et al. 2023, arXiv 2312.06681).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from workbench.core.canonical import seed as derive_seed
from workbench.evidence.metrics import BenignText, Prepared, measure
from workbench.features.axes import Axis
from workbench.features.capture import decision_tokens
from workbench.interventions.controls import control, dosed
from workbench.interventions.edits import Edit, Edits
from workbench.interventions.positions import Positions
from workbench.interventions.targets import DirectionTarget
from workbench.models.sites import Site
from workbench.models.subject import Subject

POSITIONS = Positions.of("after_first")
"""Where a searched candidate acts: everywhere but at the first token; a chat model decides at a mark
of its template, so special tokens are kept."""
COEFFICIENTS = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Multiples of the difference of means that its tuning tries."""
KL_SLACK = 1e-3
"""Nats per token by which the baseline may cost more than the candidate; below this neither is seen on benign text."""
DOSES = (-1.0, -0.5, 0.5, 0.8, 1.0, 1.2, 2.0)
"""Multiples of the candidate's change of the stream; ±20 % around the candidate are among them."""


@dataclass(frozen=True)
class Arm:
    """One condition of a trial.

    Attributes:
        id: `base`, `noop`, `candidate`, `difference_of_means`, `dose:0.5`, `control:017`.
        kind: What it is for.
        edits: What it changes; `None` for the unsteered model.
        dose: Multiple of the candidate's change, where it is a dose.
    """

    id: str
    kind: Literal["base", "noop", "candidate", "dose", "control", "difference_of_means"]
    edits: Edits | None
    dose: float | None = None


def noop(edits: Edits) -> Edits:
    """Give the candidate at dose 0: every hook runs, nothing may change."""
    return dosed(edits, 0.0)


def controls(edits: Edits, n: int, *, nonce: str, family: str = "isotropic") -> list[Arm]:
    """Give `n` equal-norm controls; each one's direction follows from the nonce and its own number."""
    found = []
    for k in range(n):
        name = control_id(k)
        generator = torch.Generator().manual_seed(derive_seed(nonce, "controls", name))
        found.append(Arm(name, "control", control(edits, family=family, generator=generator)))
    return found


def control_id(k: int) -> str:
    """Give the name of the k-th control, from 0."""
    return f"control:{k:03d}"


def doses(edits: Edits, grid: Sequence[float] = DOSES) -> list[Arm]:
    """Give the dose arms, the candidate's own dose 1 among them."""
    return [Arm(f"dose:{dose:g}", "dose", dosed(edits, dose), dose) for dose in grid]


def mean_difference(
    subject: Subject, axis: Axis, site: Site, *, n: int = 128, seed: int = 0, split: str = "dev"
) -> DirectionTarget:
    """Give the direction from where the axis's concept is absent to where it is present, at the decision token."""
    present, absent = axis.contrast(split, n, seed=seed)
    stream = decision_tokens(subject, [*present, *absent], [site])[site]
    direction = stream[: len(present)].mean(0) - stream[len(present) :].mean(0)
    return DirectionTarget(f"difference of means: {axis.id}", site, direction, direction)


@dataclass(frozen=True)
class Baseline:
    """A difference-of-means arm that was tuned on dev within the candidate's benign cost.

    Attributes:
        edits: What it changes.
        record: Site, coefficient, effect and benign KL on dev, of the pick and of everything that was tried.
    """

    edits: Edits
    record: dict


def tune_difference_of_means(
    subject: Subject,
    axis: Axis,
    dev: Prepared,
    benign: BenignText,
    *,
    like: Edits,
    target_kl: float,
    coefficients: Sequence[float] = COEFFICIENTS,
    seed: int = 0,
    n: int = 128,
) -> Baseline:
    """Give the best difference-of-means edit on dev that costs benign text no more than the candidate does.

    It acts at one of the candidate's sites, at its positions and under its gate there. Per site the sign is the one
    that helps at half the difference; then every coefficient is tried, and of those within the candidate's benign KL
    the one with the best dev effect is kept, of the best site. Where none is that cheap, it is the cheapest one.

    Args:
        subject: The model.
        axis: The target axis.
        dev: Its dev prompts, prepared.
        benign: Benign text of dev.
        like: The candidate.
        target_kl: The candidate's mean benign KL, nats per token.
        coefficients: Multiples of the difference to try.
        seed: Seed of the contrast prompts.
        n: Contrast prompts per side.
    """
    good = 1.0 if axis.direction == "up" else -1.0
    base = measure(subject, dev).value.mean()
    tried: list[tuple[dict, Edits]] = []

    def look(site: Site, direction: DirectionTarget, coefficient: float) -> dict:
        edit = next(one for one in like if one.site == site)
        edits = Edits((Edit("add", direction, coefficient, edit.positions, edit.gate),))
        gain = float(good * (measure(subject, dev, edits, allow_idle=True).value.mean() - base))
        kl = float(benign.cost(edits).kl.mean())
        record = {"site": str(site), "coefficient": coefficient, "dev_effect": gain, "dev_kl": kl}
        tried.append((record, edits))
        return record

    for site in like.sites:
        direction = mean_difference(subject, axis, site, n=n, seed=seed)
        sign = max((-1.0, 1.0), key=lambda one: look(site, direction, 0.5 * one)["dev_effect"])
        for coefficient in coefficients:
            if coefficient != 0.5:
                look(site, direction, sign * coefficient)
    cheap = [one for one in tried if one[0]["dev_kl"] <= target_kl + KL_SLACK]
    best = max(cheap, key=lambda one: one[0]["dev_effect"]) if cheap else min(tried, key=lambda one: one[0]["dev_kl"])
    return Baseline(
        best[1],
        {
            "matched_on": "largest dev effect within the candidate's mean benign KL",
            "target_kl": float(target_kl),
            "n_tried": len(tried),
            "tried": [record for record, _ in tried],
            **best[0],
        },
    )
