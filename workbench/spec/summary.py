"""A bundle as text for a terminal, and as JSON for a script: worst axis first, in the dossier's order."""

from __future__ import annotations

import shutil
import textwrap

from workbench.core.text import visible
from workbench.spec import describe
from workbench.spec.bundle import Bundle
from workbench.spec.documents.measurement import Estimate
from workbench.spec.documents.plan import AxisDeclaration
from workbench.spec.dossier import WORDS, lights
from workbench.spec.verdicts import paired, worst_first

_SIGNS = {"good": "●", "part": "◐", "bad": "■", "none": "○"}


def summary_text(bundle: Bundle, *, width: int | None = None) -> str:
    """Give the bundle as text.

    Args:
        bundle: What was read; run `verify` first, since the text shows stored estimates.
        width: Longest line, characters; the terminal's, at most 100, where absent.
    """
    width = width or min(100, shutil.get_terminal_size().columns)
    spec, plan, measurement = bundle.spec, bundle.plan, bundle.measurement
    lines = [spec.title, f"{spec.kind} · {spec.name} · by {spec.author} · bundle {bundle.digest[:12]}", ""]
    for light in lights(spec, plan, measurement):
        lines += _wrapped(f"{_SIGNS[light['level']]} {light['name']}: {light['word']}. {light['text']}", width)
    lines += ["", "What changes", *_wrapped(describe.headline(spec.edits), width)]
    lines += [line for change in describe.formulas(spec.edits) for line in _wrapped(change, width, indent="  ")]
    lines += ["", "What was measured, worst first"]
    for axis, estimate in axes_worst_first(bundle):
        lines.append(
            f"{'●' if estimate.holds else '■'} {axis.title}: {estimate.base:.3f} → {estimate.candidate:.3f}, "
            f"{'higher' if axis.direction == 'up' else 'lower'} is better: {WORDS[estimate.verdict]}"
        )
        lines += _wrapped(estimate.reason, width, indent="  ")
    lines += ["", "Limitations", *(line for text in spec.limitations for line in _wrapped(f"- {text}", width))]
    for name, why in {**plan.unmeasured, **spec.unmeasured}.items():
        lines += _wrapped(f"- not measured: {name.replace('_', ' ')}: {why}", width)
    lines += ["", "Stands on", f"  subject   {spec.subject.name}, {spec.subject.dtype}, {spec.subject.identity()[:12]}"]
    lines += [f"  spec      {spec.identity()}", f"  plan      {plan.identity()}"]
    lines += [f"  measured  {measurement.identity()}", f"  tried     {plan.candidates_tried} candidates"]
    return "\n".join(visible(line) for line in lines)


def summary_json(bundle: Bundle) -> dict:
    """Give the bundle as JSON values; axes as in the demo's contract, worst first."""
    spec = bundle.spec
    return {
        "name": spec.name,
        "title": spec.title,
        "kind": spec.kind,
        "digest": bundle.digest,
        "spec": spec.identity(),
        "plan": bundle.plan.identity(),
        "measurement": bundle.measurement.identity(),
        "sentence": describe.sentence(spec.edits),
        "formula": describe.formula(spec.edits),
        "lights": lights(spec, bundle.plan, bundle.measurement),
        "axes": [axis_json(axis, estimate) for axis, estimate in axes_worst_first(bundle)],
        "limitations": list(spec.limitations),
        "candidates_tried": bundle.plan.candidates_tried,
    }


def axis_json(axis: AxisDeclaration, estimate: Estimate) -> dict:
    """Give one axis's result as every JSON of results writes it; null is not measured."""
    return {
        "axis": axis.id,
        "kind": axis.kind,
        "split": axis.split,
        "n": estimate.n,
        "direction": axis.direction,
        "base": estimate.base,
        "candidate": estimate.candidate,
        "interval": [estimate.low, estimate.high],
        "controls": [min(estimate.controls), max(estimate.controls)] if estimate.controls else None,
        "n_controls": estimate.n_controls,
        "rank_p": estimate.rank_p,
        "difference_of_means": estimate.difference_of_means,
        "holds": estimate.holds,
        "verdict": estimate.verdict,
        "reason": estimate.reason,
    }


def axes_worst_first(bundle: Bundle) -> list[tuple[AxisDeclaration, Estimate]]:
    """Give every axis with its stored estimate, worst first."""
    return worst_first((axis, one.estimate) for axis, one in paired(bundle.plan, bundle.measurement))


def _wrapped(text: str, width: int, *, indent: str = "") -> list[str]:
    return textwrap.wrap(visible(text), width, initial_indent=indent, subsequent_indent=indent + "  ") or [indent]
