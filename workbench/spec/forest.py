"""Where the marks of a dossier's forest plot stand: coordinates only, drawn by the template.

All axes share one scale, turned so that right is better, since a reader compares sizes between rows and should not
have to remember which way each axis points.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.core.text import visible
from workbench.spec.documents.measurement import Estimate
from workbench.spec.documents.plan import AxisDeclaration

WIDTH, LEFT, RIGHT = 960.0, 250.0, 770.0
"""Width of the drawing, and where the scale begins and ends, in its units."""
ROW, TOP = 62.0, 34.0
_LETTERS = 32
_SPREAD = 15.0
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Row:
    """Marks of one axis, x in drawing units.

    Attributes:
        title: Its title in one or two lines.
        y: Middle of the row.
        low: Left end of the interval.
        high: Right end.
        point: The estimate.
        limits: Where the margins stand.
        tolerated: Left and right end of the zone that the plan asks the interval to stay in.
        cloud: Path of the control dots; empty without controls.
        means: The difference-of-means baseline, or nothing.
    """

    title: tuple[str, ...]
    y: float
    low: float
    high: float
    point: float
    limits: tuple[float, ...]
    tolerated: tuple[float, float]
    cloud: str
    means: float | None


@dataclass(frozen=True)
class Forest:
    """A forest plot.

    Attributes:
        height: Height of the drawing.
        zero: Where no change stands.
        ticks: Position and label of every tick.
        rows: Marks, in the order given.
    """

    height: float
    zero: float
    ticks: tuple[tuple[float, str], ...]
    rows: tuple[Row, ...]


def forest(pairs: Sequence[tuple[AxisDeclaration, Estimate]]) -> Forest:
    """Lay out one row per axis; right of zero is better."""
    reach = [_reach(axis, estimate) for axis, estimate in pairs]
    step = _step(max(high for _, high in reach) - min(low for low, _ in reach))
    first = math.floor(min(low for low, _ in reach) / step)
    last = max(math.ceil(max(high for _, high in reach) / step), first + 1)

    def x(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (value / step - first) / (last - first), 2)

    ticks = tuple((x(k * step), _label(k * step, step)) for k in range(first, last + 1))
    rows = tuple(_row(k, axis, estimate, x) for k, (axis, estimate) in enumerate(pairs))
    return Forest(TOP + ROW * len(rows) + 30, x(0.0), ticks, rows)


def good(axis: AxisDeclaration) -> int:
    """1 where higher is better, −1 where lower is."""
    return 1 if axis.direction == "up" else -1


def _reach(axis: AxisDeclaration, estimate: Estimate) -> tuple[float, float]:
    changes = [estimate.low, estimate.high, *(level - estimate.base for level in estimate.controls)]
    if estimate.difference_of_means is not None:
        changes.append(estimate.difference_of_means - estimate.base)
    turned = [good(axis) * change for change in changes] + [0.0, *_limits(axis)]
    return min(turned), max(turned)


def _limits(axis: AxisDeclaration) -> tuple[float, ...]:
    return {"beyond_controls": (axis.margin,), "not_worse": (-axis.margin,), "unchanged": (-axis.margin, axis.margin)}[
        axis.rule
    ]


def _row(k: int, axis: AxisDeclaration, estimate: Estimate, x) -> Row:
    y, turn = TOP + ROW * (k + 0.5), good(axis)
    ends = sorted((turn * estimate.low, turn * estimate.high))
    zone = {"beyond_controls": (axis.margin, None), "not_worse": (-axis.margin, None)}.get(
        axis.rule, (-axis.margin, axis.margin)
    )
    dots = (
        f"M{x(turn * (level - estimate.base)):g} {y + _SPREAD * (2 * ((i + 1) * _GOLDEN % 1) - 1):.1f}h0"
        for i, level in enumerate(estimate.controls)
    )
    means = estimate.difference_of_means
    return Row(
        title=_lines(visible(axis.title)),
        y=y,
        low=x(ends[0]),
        high=x(ends[1]),
        point=x(turn * estimate.difference),
        limits=tuple(x(limit) for limit in _limits(axis)),
        tolerated=(x(zone[0]), RIGHT if zone[1] is None else x(zone[1])),
        cloud="".join(dots),
        means=None if means is None else x(turn * (means - estimate.base)),
    )


def _lines(title: str) -> tuple[str, ...]:
    """Break a title into at most two lines that fit beside the scale."""
    lines = textwrap.wrap(title, _LETTERS, break_long_words=True) or [""]
    return tuple(lines[:2]) if len(lines) <= 2 else (lines[0], lines[1][: _LETTERS - 1] + "…")


def _step(span: float) -> float:
    """Give a round step of which four to eight fit in a span."""
    raw = max(span, 1e-6) / 6
    scale = 10.0 ** math.floor(math.log10(raw))
    return next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= raw * 0.999)


def _label(value: float, step: float) -> str:
    digits = max(0, min(6, -math.floor(math.log10(step)) + (1 if f"{step:e}".startswith("2.5") else 0)))
    text = f"{value:+.{digits}f}" if abs(value) > step / 2 else "0"
    return text.replace("-", "−")
