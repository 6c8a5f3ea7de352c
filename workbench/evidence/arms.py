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
"""Where a searched candidate and its baseline act: everywhere but at the first token; a chat model decides at a mark
of its template, so special tokens are kept."""
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
    """A difference-of-means arm that was brought to the candidate's benign cost on dev.

    Attributes:
        edits: What it changes.
        record: Site, coefficient, and effect and benign KL on dev, per site that was tried.
    """

    edits: Edits
    record: dict


def tune_difference_of_means(
    subject: Subject,
    axis: Axis,
    dev: Prepared,
    benign: BenignText,
    *,
    sites: Sequence[Site],
    target_kl: float,
    seed: int = 0,
    n: int = 128,
    steps: int = 7,
) -> Baseline:
    """Give the best difference-of-means edit whose mean benign KL on dev is that of the candidate.

    At each site both signs are tried at a quarter of the difference, the better one is scaled by bisection until its
    benign KL meets the candidate's (at most twice the difference), and the site with the best dev effect is kept.

    Args:
        subject: The model.
        axis: The target axis.
        dev: Its dev prompts, prepared.
        benign: Benign text of dev.
        sites: Sites to try: those the candidate writes to.
        target_kl: The candidate's mean benign KL, nats per token.
        seed: Seed of the contrast prompts.
        n: Contrast prompts per side.
        steps: Bisection steps.
    """
    sign_of_good = 1.0 if axis.direction == "up" else -1.0
    base = measure(subject, dev).value.mean()
    tried = []
    for site in dict.fromkeys(sites):
        direction = mean_difference(subject, axis, site, n=n, seed=seed)

        def effect(coefficient: float, target: DirectionTarget = direction) -> float:
            found = measure(subject, dev, Edits((Edit("add", target, coefficient, POSITIONS),))).value.mean()
            return float(sign_of_good * (found - base))

        sign = max((-1.0, 1.0), key=lambda one: effect(0.25 * one))
        low, high = 0.0, 2.0
        for _ in range(steps):
            middle = (low + high) / 2
            kl = benign.cost(Edits((Edit("add", direction, sign * middle, POSITIONS),))).kl.mean()
            low, high = (middle, high) if kl < target_kl else (low, middle)
        coefficient = sign * (low + high) / 2
        edits = Edits((Edit("add", direction, coefficient, POSITIONS),))
        kl = float(benign.cost(edits).kl.mean())
        tried.append((effect(coefficient), site, coefficient, kl, edits))
    best = max(tried, key=lambda one: one[0])
    record = {
        "matched_on": "mean benign KL on dev",
        "target_kl": float(target_kl),
        "tried": [
            {"site": str(site), "coefficient": coefficient, "dev_effect": gain, "dev_kl": kl}
            for gain, site, coefficient, kl, _ in tried
        ],
        "site": str(best[1]),
        "coefficient": best[2],
        "dev_effect": best[0],
        "dev_kl": best[3],
    }
    return Baseline(best[4], record)
