"""Running a bundle's trial again on the live model: do base and candidate give what was recorded?

The prompts are the recorded ones; where the axis's generator is at hand and has the digest that the plan names, they
are also drawn again from the nonce and have to be the same, so that nobody picked them. Verdicts are recomputed with
the new outcomes in the place of the recorded ones, against the recorded controls.

Example:
    >>> report = remeasure("lies.wbspec")
    >>> report.ok, report.axes[0]["max_difference"]
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from workbench.consumer.live import Live, open_live
from workbench.core.errors import BundleError
from workbench.core.progress import CancelToken, track
from workbench.evidence.metrics import Outcomes, measure, prepare
from workbench.evidence.run import runtime_name
from workbench.features.axes import Axis, AxisItem, organism_axes
from workbench.spec.documents.measurement import AxisMeasurement
from workbench.spec.documents.plan import AxisDeclaration
from workbench.spec.verdicts import Grid, arrange, judge

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.01}
"""Largest difference of one prompt's outcome that still reproduces it, by precision; on the machine that measured, the
outcomes are equal to the last bit."""


@dataclass(frozen=True)
class Report:
    """What re-measuring found.

    Attributes:
        name: Name of the spec.
        subject: The model that ran.
        runtime: What ran the forward passes.
        axes: Per axis: levels, recorded levels, largest difference of one outcome, verdict, and whether it holds.
    """

    name: str
    subject: str
    runtime: str
    axes: tuple[dict, ...]

    @property
    def ok(self) -> bool:
        """Whether every axis reproduces what was recorded."""
        return all(axis["holds"] for axis in self.axes)

    def to_json(self) -> dict:
        """Give the report as JSON values."""
        return {
            "ok": self.ok,
            "name": self.name,
            "subject": self.subject,
            "runtime": self.runtime,
            "axes": [dict(axis) for axis in self.axes],
        }

    def __repr__(self) -> str:
        lines = [f"{self.name} on {self.subject}: {'reproduced' if self.ok else 'not reproduced'}"]
        for axis in self.axes:
            mark = "same" if axis["holds"] else "differs"
            lines.append(
                f"  {mark:<8}{axis['axis']:<24}{axis['base']:.3f} → {axis['candidate']:.3f}, recorded "
                f"{axis['recorded_base']:.3f} → {axis['recorded_candidate']:.3f}, n {axis['n']}, largest difference "
                f"{axis['max_difference']:.2g}"
            )
        return "\n".join(lines)


def remeasure(
    path: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    *,
    axes: Mapping[str, Axis] | None = None,
    cancel: CancelToken | None = None,
) -> Report:
    """Verify a bundle, check the live model, and run base and candidate again on every axis.

    Args:
        path: A folder or a `.wbspec` file.
        model: Directory or hub repository of the live model; what the spec names where absent.
        axes: Axes whose sources are at hand, by id; the built-in organism's where absent.
        cancel: Stops between two axes.

    Raises:
        BundleError: A check failed, or a prompt is not the one that the nonce draws. Nothing was measured.
        SubjectError: The model cannot be loaded.
    """
    live = open_live(path, model)
    known = organism_axes() if axes is None else axes
    plan, measurement = live.bundle.plan, live.bundle.measurement
    found = []
    pairs = list(zip(plan.axes, measurement.axes, strict=True))
    for declared, measured in track(pairs, "measuring again", cancel=cancel):
        items = _items(measured)
        redrawn = _check_drawn(declared, items, known, measurement.nonce)
        found.append(_axis(live, declared, measured, items, redrawn))
    return Report(live.bundle.spec.name, live.subject.name, runtime_name(live.subject), tuple(found))


def _items(measured: AxisMeasurement) -> list[AxisItem]:
    return [AxisItem(one.text, tuple(one.event), one.against and tuple(one.against), {}) for one in measured.prompts]


def _check_drawn(declared: AxisDeclaration, items: Sequence[AxisItem], known: Mapping[str, Axis], nonce: str) -> bool:
    """Draw the prompts from the nonce again where that can be done; gives whether it could."""
    axis = known.get(declared.id)
    if axis is None or declared.drawn != "from_nonce" or axis.digest != declared.source:
        return False
    drawn = axis.items("test", len(items), nonce=nonce)
    for number, (one, other) in enumerate(zip(items, drawn, strict=True)):
        if (one.text, one.event, one.against) != (other.text, other.event, other.against):
            raise BundleError(
                f"axis {declared.id}: prompt {number} is not the one that the nonce draws",
                check="prompts",
                path="measurement.json",
                hint="the recorded prompts were picked, not drawn",
            )
    return True


def _axis(
    live: Live, declared: AxisDeclaration, measured: AxisMeasurement, items: Sequence[AxisItem], redrawn: bool
) -> dict:
    plan, nonce = live.bundle.plan, live.bundle.measurement.nonce
    ready = prepare(live.subject, items)
    options = {"batch_size": plan.batch_size, "allow_idle": True}
    arms = {
        "base": measure(live.subject, ready, None, **options),
        "candidate": measure(live.subject, ready, live.edits, **options),
    }
    grid = arrange(plan, declared, len(items), live.bundle.outcomes[declared.id])
    difference = max(float(np.abs(arms[name].value - grid.value[name]).max()) for name in arms)
    tolerance = TOLERANCE[live.bundle.spec.subject.dtype]
    judged = judge(plan, declared, nonce, _with(grid, arms))
    return {
        "axis": declared.id,
        "n": len(items),
        "prompts_redrawn": redrawn,
        "base": judged.base,
        "candidate": judged.candidate,
        "interval": [judged.low, judged.high],
        "recorded_base": measured.estimate.base,
        "recorded_candidate": measured.estimate.candidate,
        "max_difference": difference,
        "tolerance": tolerance,
        "verdict": judged.verdict,
        "recorded_verdict": measured.estimate.verdict,
        "holds": difference <= tolerance and judged.verdict == measured.estimate.verdict,
    }


def _with(grid: Grid, arms: Mapping[str, Outcomes]) -> Grid:
    """Put new outcomes in the place of the recorded ones of base and candidate."""
    value = {**grid.value, **{name: one.value for name, one in arms.items()}}
    mass = {**grid.mass, **{name: one.mass for name, one in arms.items()}}
    return replace(grid, value=value, mass=mass)
