"""Estimates that travel with n and an interval, and the tests a trial's verdict stands on.

Everything here is numpy on outcome vectors, so that whoever reads a bundle recomputes its verdict without torch.
Directions are `"up"` or `"down"`: the way the claim points.

Sources: percentile cluster bootstrap (Efron & Tibshirani 1993; two-way: Owen & Eckles 2012, "Bootstrapping data
arrays of arbitrary order"); Wilson (1927) and Newcombe (1998, method 10 for paired and method 10 of the independent
paper for unpaired proportions); Phipson & Smyth (2010) for rank p; Benjamini & Hochberg (1995); Holm (1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from workbench.core.errors import InputError

Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval.

    Attributes:
        estimate: Point estimate, in the unit of the values.
        low: Lower bound.
        high: Upper bound.
        n: Number of values.
        n_clusters: Number of independent clusters; the smaller count where two factors cross.
        level: Coverage that the bounds aim at.
    """

    estimate: float
    low: float
    high: float
    n: int
    n_clusters: int
    level: float = 0.95


def auroc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray | np.floating:
    """Give the area under the ROC curve, ties counted half.

    Args:
        positive: Scores where the concept is present, `[n_pos]` or `[n_pos, k]`.
        negative: Scores where it is absent, `[n_neg]` or `[n_neg, k]`.

    Returns:
        A scalar array or `[k]`, in 0–1; .5 is chance.

    Raises:
        InputError: One side is empty.
    """
    positive, negative = np.asarray(positive, float), np.asarray(negative, float)
    if not len(positive) or not len(negative):
        raise InputError(f"AUROC needs both sides: got {len(positive)} positive, {len(negative)} negative")
    from scipy.stats import rankdata  # 0.6 s to import, and reading a bundle never needs it

    ranks = rankdata(np.concatenate([positive, negative]), axis=0)
    n_pos, n_neg = len(positive), len(negative)
    return (ranks[:n_pos].sum(0) - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)


def bootstrap_mean(
    values: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    n_boot: int = 2000,
    seed: int,
    level: float = 0.95,
) -> Interval:
    """Give the mean with a cluster-bootstrap interval.

    Args:
        values: `[n]`; for a paired effect, the differences.
        clusters: `[n]` labels; values that share one are resampled together. `None`: each value its own cluster.
        n_boot: Resamples.
        seed: Seed of the resampling.
        level: Coverage.

    Raises:
        InputError: No values, or a value that is not finite.
    """
    values = _checked(values)
    labels = np.arange(len(values)) if clusters is None else np.asarray(clusters)
    totals, counts = _cluster_sums(values, labels)
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(len(totals), np.full(len(totals), 1 / len(totals)), size=n_boot)
    return _percentile(values, (weights @ totals) / (weights @ counts), len(totals), level)


def two_way_bootstrap(
    values: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    *,
    n_boot: int = 2000,
    seed: int,
    level: float = 0.95,
) -> Interval:
    """Give the mean with an interval for values crossed by two factors, such as cue × item.

    Rows and columns are resampled independently and a value's weight is the product of both counts; the interval is
    slightly conservative, and honest where one cue or one item carries the effect.

    Args:
        values: `[n]`.
        rows: `[n]` labels of the first factor.
        columns: `[n]` labels of the second factor.
        n_boot: Resamples.
        seed: Seed of the resampling.
        level: Coverage.
    """
    values = _checked(values)
    row_of, column_of = (np.unique(np.asarray(labels), return_inverse=True)[1] for labels in (rows, columns))
    n_rows, n_columns = row_of.max() + 1, column_of.max() + 1
    generator = np.random.default_rng(seed)
    row_weights = generator.multinomial(n_rows, np.full(n_rows, 1 / n_rows), size=n_boot)
    column_weights = generator.multinomial(n_columns, np.full(n_columns, 1 / n_columns), size=n_boot)
    weights = row_weights[:, row_of] * column_weights[:, column_of]
    mass = weights.sum(1)
    kept = mass > 0
    draws = (weights[kept] @ values) / mass[kept]
    return _percentile(values, draws, int(min(n_rows, n_columns)), level)


def paired_intervals(
    differences: np.ndarray,
    rows: np.ndarray | None = None,
    columns: np.ndarray | None = None,
    *,
    n_boot: int = 2000,
    seed: int,
    level: float = 0.95,
) -> list[Interval]:
    """Give the mean of each column of differences with its interval, all on the same resamples.

    Args:
        differences: `[n, k]`, one column per arm compared with base on the same prompts.
        rows: `[n]` labels of the first repeated factor, such as the cue; absent where it does not repeat.
        columns: `[n]` labels of the second, such as the item. With both, they are resampled independently
            (see `two_way_bootstrap`); with one, its clusters are; with none, each prompt is its own cluster.
        n_boot: Resamples.
        seed: Seed of the resampling.
        level: Coverage.

    Raises:
        InputError: No values, or a value that is not finite.
    """
    differences = np.atleast_2d(_checked(differences, "differences").T).T
    n = len(differences)
    factors = [labels for labels in (rows, columns) if labels is not None] or [np.arange(n)]
    generator = np.random.default_rng(seed)
    weights, sizes = np.ones((n_boot, n)), []
    for labels in factors:
        member = np.unique(np.asarray(labels), return_inverse=True)[1]
        sizes.append(int(member.max()) + 1)
        weights *= generator.multinomial(sizes[-1], np.full(sizes[-1], 1 / sizes[-1]), size=n_boot)[:, member]
    mass = weights.sum(1)
    kept = mass > 0
    draws = (weights[kept] @ differences) / mass[kept, None]
    return [_percentile(differences[:, k], draws[:, k], min(sizes), level) for k in range(differences.shape[1])]


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Give a proportion with Wilson's score interval; 0 of 100 has an upper bound of 3.7 %."""
    if n <= 0 or not 0 <= successes <= n:
        raise InputError(f"a proportion needs 0 ≤ successes ≤ n and n > 0, got {successes} of {n}")
    z = _z(level)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), n, n, level)


def newcombe(successes_a: int, n_a: int, successes_b: int, n_b: int, *, level: float = 0.95) -> Interval:
    """Give the difference of two independent proportions, a − b, with Newcombe's hybrid score interval."""
    a, b = wilson(successes_a, n_a, level=level), wilson(successes_b, n_b, level=level)
    difference = a.estimate - b.estimate
    low = difference - math.hypot(a.estimate - a.low, b.high - b.estimate)
    high = difference + math.hypot(a.high - a.estimate, b.estimate - b.low)
    return Interval(difference, max(-1.0, low), min(1.0, high), n_a + n_b, min(n_a, n_b), level)


def mcnemar(only_a: int, only_b: int) -> float:
    """Give the exact two-sided p of McNemar's test from the two counts of discordant pairs."""
    if only_a + only_b == 0:
        return 1.0
    n = only_a + only_b
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n)


def rank_p(candidate: float, controls: np.ndarray, direction: Direction) -> float:
    """Give the one-sided p of the candidate among its controls, (1 + as extreme) / (1 + R); never 0.

    Args:
        candidate: The candidate's level of the metric.
        controls: `[R]` levels of the controls.
        direction: The way the claim points.

    Raises:
        InputError: No controls.
    """
    controls = _checked(controls, "controls")
    extreme = controls >= candidate if direction == "up" else controls <= candidate
    return float((1 + extreme.sum()) / (1 + len(controls)))


def rank_p_interval(candidate: float, controls: np.ndarray, direction: Direction, *, level: float = 0.95) -> Interval:
    """Give rank p with the sampling noise of a finite control family (Clopper–Pearson on the exceedances)."""
    controls = _checked(controls, "controls")
    extreme = int((controls >= candidate).sum() if direction == "up" else (controls <= candidate).sum())
    n, tail = len(controls), (1 - level) / 2
    low = 0.0 if extreme == 0 else _solve(lambda p: _upper_tail(extreme, n, p), tail)
    high = 1.0 if extreme == n else _solve(lambda p: _upper_tail(extreme + 1, n, p), 1 - tail)
    return Interval(rank_p(candidate, controls, direction), low, high, n, n, level)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Give the false-discovery-rate q of each p, `[n]`; for screening, not for claims."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty_like(p)
    q[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1.0)
    return q


def holm(p: np.ndarray) -> np.ndarray:
    """Give Holm's adjusted p of each claim of benefit, `[n]`; never used on harm axes, where it would hide harm."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    scaled = p[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(scaled).clip(max=1.0)
    return adjusted


def _checked(values: np.ndarray, what: str = "values") -> np.ndarray:
    values = np.asarray(values, float)
    if not len(values):
        raise InputError(f"no {what} to estimate from")
    if not np.isfinite(values).all():
        raise InputError(f"{int((~np.isfinite(values)).sum())} of {len(values)} {what} are not finite")
    return values


def _cluster_sums(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(labels) != len(values):
        raise InputError(f"{len(labels)} cluster labels for {len(values)} values")
    member = np.unique(labels, return_inverse=True)[1]
    return np.bincount(member, weights=values), np.bincount(member)


def _percentile(values: np.ndarray, draws: np.ndarray, n_clusters: int, level: float) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), len(values), int(n_clusters), level)


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _upper_tail(k: int, n: int, p: float) -> float:
    """P(X ≥ k) of a binomial with 0 < p < 1."""
    terms = np.arange(k, n + 1)
    choose = math.lgamma(n + 1) - np.array([math.lgamma(i + 1) + math.lgamma(n - i + 1) for i in terms])
    return float(np.exp(choose + terms * math.log(p) + (n - terms) * math.log1p(-p)).sum())


def _solve(rising: Callable[[float], float], level: float) -> float:
    """Give the p in 0–1 at which a rising function reaches a level, by bisection to the last bit but a few."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < level else (low, middle)
    return (low + high) / 2
