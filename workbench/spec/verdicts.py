"""What the outcomes say, recomputed by whoever reads them; a verdict that somebody wrote down is never believed.

An effect counts against two yardsticks. Against base: the paired difference, with prompts resampled in the clusters
they come in. Against chance: the candidate's rank among random directions of equal size, in the direction declared
beforehand. Harm axes need the whole interval on the safe side of the margin, uncorrected, and an axis too small to
tell is *underpowered*, which fails.

Sources: intersection–union test (Berger 1982); Phipson & Smyth (2010) for rank p; see `workbench.core.stats`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Never

import numpy as np

from workbench.core.canonical import seed
from workbench.core.errors import BundleError
from workbench.core.stats import Interval, paired_intervals, rank_p_interval
from workbench.spec.documents.measurement import (
    ArmLevel,
    AxisMeasurement,
    Clustering,
    Estimate,
    Measurement,
    Verdict,
    outcome_path,
)
from workbench.spec.documents.plan import AxisDeclaration, Plan, control_id
from workbench.spec.outcomes import Outcomes

TOLERANCE = 1e-9
"""Largest difference between a stored and a recomputed number: what summation order may cost."""
WRONG_WAY = 0.01
"""Change of a prompt's value against the good direction that counts as moved the wrong way."""


@dataclass(frozen=True)
class Grid:
    """Outcomes of one axis as one row per arm and one column per prompt.

    Attributes:
        value: Arm id → `[n]` values, sampled texts averaged per prompt.
        mass: Arm id → `[n]`.
        cue: `[n]` cluster labels.
        item: `[n]` cluster labels.
    """

    value: dict[str, np.ndarray]
    mass: dict[str, np.ndarray]
    cue: np.ndarray
    item: np.ndarray


def arrange(plan: Plan, axis: AxisDeclaration, n_prompts: int, outcomes: Outcomes) -> Grid:
    """Check that an axis's outcomes are complete and as promised, and arrange them.

    Args:
        plan: The promise.
        axis: Its declaration of this axis.
        n_prompts: Prompts that the measurement lists.
        outcomes: Its outcomes.

    Raises:
        BundleError: A promised arm, control or prompt is missing or doubled, something undeclared is there, a value is
            out of its unit's range, or the no-op differs from base. Its check is `outcomes`.
    """
    path = outcome_path(axis.id)

    def refuse(message: str) -> Never:
        raise BundleError(f"axis {axis.id}: {message}", check="outcomes", path=path)

    promised = plan.arms_of(axis)
    if missing := sorted(set(promised) - set(outcomes.arms)):
        refuse(f"{_named(missing)} was promised and is missing")
    if extra := sorted(set(outcomes.arms) - set(promised)):
        refuse(f"{_named(extra)} was measured and never declared")
    if n_prompts < axis.n:
        refuse(f"{n_prompts} prompts, {axis.n} were promised")
    per_prompt = len(outcomes) / len(promised) / n_prompts
    if per_prompt != int(per_prompt) or (axis.metric_type == "teacher_forced" and per_prompt != 1):
        refuse(f"{len(outcomes)} outcomes do not cover {len(promised)} arms × {n_prompts} prompts evenly")
    n_samples = int(per_prompt)
    expected = np.repeat(np.arange(n_prompts), n_samples), np.tile(np.arange(n_samples), n_prompts)
    values, masses, labels = {}, {}, None
    for arm in promised:
        rows = outcomes.rows(arm)
        rows = rows[np.lexsort((outcomes.sample[rows], outcomes.prompt[rows]))]
        covered = np.array_equal(outcomes.prompt[rows], expected[0])
        if not covered or not np.array_equal(outcomes.sample[rows], expected[1]):
            refuse(f"arm {arm} does not hold every prompt once")
        found = outcomes.cue[rows][::n_samples], outcomes.item[rows][::n_samples]
        labels = labels or found
        if not all(np.array_equal(a, b) for a, b in zip(labels, found, strict=True)):
            refuse(f"arm {arm} names other cues or items for the same prompts")
        values[arm], masses[arm] = (
            column[rows].reshape(n_prompts, n_samples).mean(1) for column in (outcomes.value, outcomes.mass)
        )
        low, high = (0, 1 + 1e-6) if axis.unit == "probability" else (-np.inf, np.inf)
        if values[arm].min() < low or values[arm].max() > high:
            refuse(f"arm {arm} holds a {axis.unit} outside 0–1")
        if masses[arm].min() < 0 or masses[arm].max() > 1 + 1e-6:
            refuse(f"arm {arm} holds a probability mass outside 0–1")
    for arm in plan.arms:
        if arm.kind == "noop" and arm.id in values and not np.array_equal(values[arm.id], values["base"]):
            refuse("the no-op changed the outcome: the hooks themselves disturb the model")
    return Grid(values, masses, *labels)  # type: ignore[misc]


def judge(plan: Plan, axis: AxisDeclaration, nonce: str, grid: Grid) -> Estimate:
    """Estimate one axis and give its verdict by the plan's rule.

    Args:
        plan: The promise.
        axis: Its declaration of this axis.
        nonce: Nonce of the measurement; the bootstrap's seed follows from it.
        grid: The axis's outcomes.
    """
    base, candidate = grid.value["base"], grid.value["candidate"]
    singles = [arm.id for arm in plan.arms if arm.kind not in ("base", "candidate", "noop", "control")]
    others = [name for name in singles if name in grid.value]
    differences = np.stack([grid.value[name] - base for name in ("candidate", *others)], 1)
    clustering, factors = _factors(grid)
    boot = seed(nonce, "bootstrap", axis.id)
    intervals = paired_intervals(differences, *factors, n_boot=plan.n_boot, seed=boot, level=axis.level)
    change = intervals[0]
    controls = np.array([grid.value[control_id(k)].mean() for k in range(axis.n_controls)])
    rank = rank_p_interval(float(candidate.mean()), controls, axis.direction) if axis.n_controls else None
    verdict, reason = _verdict(axis, change, rank)
    means = next((arm.id for arm in plan.arms if arm.kind == "difference_of_means" and arm.id in grid.value), None)
    return Estimate(
        n=len(base),
        n_clusters=change.n_clusters,
        clustering=clustering,
        seed=str(boot),
        base=float(base.mean()),
        candidate=float(candidate.mean()),
        difference=change.estimate,
        low=change.low,
        high=change.high,
        n_controls=axis.n_controls,
        controls=tuple(float(level) for level in controls),
        rank_p=rank.estimate if rank else None,
        rank_p_low=rank.low if rank else None,
        rank_p_high=rank.high if rank else None,
        difference_of_means=None if means is None else float(grid.value[means].mean()),
        arms=tuple(
            ArmLevel(arm=name, level=float(grid.value[name].mean()), low=found.low, high=found.high)
            for name, found in zip(others, intervals[1:], strict=True)
        ),
        mass_base=float(grid.mass["base"].mean()),
        mass_candidate=float(grid.mass["candidate"].mean()),
        wrong_way=float(np.mean(_good(axis) * (candidate - base) < -WRONG_WAY)),
        verdict=verdict,
        holds=verdict == "holds",
        reason=reason,
    )


def _factors(grid: Grid) -> tuple[Clustering, tuple[np.ndarray | None, np.ndarray | None]]:
    """Resample by whatever repeats: a factor with one level everywhere or a new level each time is none."""
    n = len(grid.cue)
    cue, item = (labels if 1 < len(set(labels)) < n else None for labels in (grid.cue, grid.item))
    if cue is not None:
        return ("cue × item" if item is not None else "cue"), (cue, item)
    return ("item" if item is not None else "prompt"), (cue, item)


def _good(axis: AxisDeclaration) -> int:
    return 1 if axis.direction == "up" else -1


def _verdict(axis: AxisDeclaration, change: Interval, rank: Interval | None) -> tuple[Verdict, str]:
    ends = sorted((_good(axis) * change.low, _good(axis) * change.high))
    worst, best = ends
    span = f"change {change.low:+.3f} to {change.high:+.3f} (n {change.n}, {change.n_clusters} clusters)"
    few = change.n_clusters < axis.min_clusters
    short = f"; {change.n_clusters} clusters, at least {axis.min_clusters} are needed" if few else ""
    if axis.rule == "beyond_controls":
        if rank is None or rank_floor(rank.n) > axis.alpha + 1e-12:
            return "underpowered", f"{span}; too few controls for rank p ≤ {axis.alpha:g}"
        text = (
            f"{span}; must be beyond {_good(axis) * axis.margin:+.3f}; rank p {rank.estimate:.3f} among {rank.n} "
            f"controls (their share {rank.low:.3f} to {rank.high:.3f}), must be ≤ {axis.alpha:g}"
        )
        if worst > axis.margin and rank.estimate <= axis.alpha + 1e-12:
            return ("underpowered" if few else "holds"), text + short
        return "falls_short", text + short
    if axis.rule == "not_worse":
        text = f"{span}; the plan tolerates a worsening below {axis.margin:g}"
        if -worst < axis.margin:
            return ("underpowered" if few else "holds"), text + short
        shown_worse, half = best < 0, _good(axis) * change.estimate - worst
        if half >= axis.margin and not shown_worse:
            return "underpowered", f"{text}; its worst end is {half:.3f} from the estimate: too few prompts to tell"
        return "falls_short", text + short
    text = f"{span}; the plan tolerates a change within ±{axis.margin:g}"
    if max(-worst, best) < axis.margin:
        return ("underpowered" if few else "holds"), text + short
    if (best - worst) / 2 >= axis.margin and worst < 0 < best:
        return "underpowered", f"{text}; the interval is {best - worst:.3f} wide: too few prompts to tell"
    return "falls_short", text + short


def rank_floor(n_controls: int) -> float:
    """Give the smallest rank p that a number of controls can reach."""
    return 1 / (1 + n_controls)


def explain(axis: AxisDeclaration, estimate: Estimate) -> tuple[Verdict, str]:
    """Give the verdict that an estimate's own numbers lead to by the plan's rule, and the reason in words."""
    change = Interval(estimate.difference, estimate.low, estimate.high, estimate.n, estimate.n_clusters)
    p, low, high, n = estimate.rank_p, estimate.rank_p_low, estimate.rank_p_high, estimate.n_controls
    if p is None or low is None or high is None:
        return _verdict(axis, change, None)
    return _verdict(axis, change, Interval(p, low, high, n, n))


def difference(axis: AxisDeclaration, stored: Estimate, recomputed: Estimate) -> str | None:
    """Name the first field in which a stored estimate differs from the recomputed one; `None` where none does.

    The reason is compared with what the stored numbers lead to, since a last bit may round another way.
    """
    for name in Estimate.model_fields:
        a, b = getattr(stored, name), getattr(recomputed, name)
        if name == "reason":
            b = explain(axis, stored)[1]
        if not _same(a, b):
            return f"{name} is stored as {_short(a)}, the outcomes give {_short(b)}"
    return None


def _same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= TOLERANCE
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, ArmLevel) and isinstance(b, ArmLevel):
        return a.arm == b.arm and _same((a.level, a.low, a.high), (b.level, b.low, b.high))
    return a == b


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _named(arms: list[str]) -> str:
    return arms[0] if len(arms) == 1 else f"{arms[0]} (and {len(arms) - 1} more)"


def paired(plan: Plan, measurement: Measurement) -> list[tuple[AxisDeclaration, AxisMeasurement]]:
    """Give every promised axis with what was measured of it, in the plan's order.

    Raises:
        BundleError: An axis was promised and not measured, or the other way round. Check `chain`.
    """
    promised, measured = [axis.id for axis in plan.axes], [axis.axis for axis in measurement.axes]
    if missing := [name for name in promised if name not in measured]:
        raise BundleError(f"axis {missing[0]} was promised and is missing", check="chain", path="measurement.json")
    if promised != measured:
        message = f"measures the axes {measured}, promised were {promised}"
        raise BundleError(message, check="chain", path="measurement.json")
    return list(zip(plan.axes, measurement.axes, strict=True))


def samples(nonce: str, axis: str, n: int, k: int) -> list[int]:
    """Give the prompts of an axis that the nonce draws for a reader to look at, ascending."""
    generator = np.random.default_rng(seed(nonce, "samples", axis))
    return sorted(int(one) for one in generator.permutation(n)[:k])


def worst_first(pairs: Iterable[tuple[AxisDeclaration, Estimate]]) -> list[tuple[AxisDeclaration, Estimate]]:
    """Sort axes for a reader: what fails first, harm before the rest, then by how little room its margin leaves."""

    def key(pair: tuple[AxisDeclaration, Estimate]) -> tuple:
        axis, estimate = pair
        return estimate.holds, not (axis.harm or estimate.holds), room(axis, estimate), axis.id

    return sorted(pairs, key=key)


def room(axis: AxisDeclaration, estimate: Estimate) -> float:
    """Give the distance of the interval's worst end from the rule's limit, in the metric's unit; below 0 it fails."""
    worst, best = sorted((_good(axis) * estimate.low, _good(axis) * estimate.high))
    return {
        "beyond_controls": worst - axis.margin,
        "not_worse": worst + axis.margin,
        "unchanged": axis.margin - max(-worst, best),
    }[axis.rule]
