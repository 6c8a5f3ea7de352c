"""The committee's page: one script-free HTML file that a reader trusts no code to open.

It is rendered from the documents alone, byte for byte the same every time, so that a swapped page is found. Every
label, prompt and name in it may be hostile: everything is escaped, invisible characters are shown as code points, and
a content security policy forbids whatever escaping could miss.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

import jinja2
from markupsafe import Markup

from workbench.core.canonical import sha256_hex
from workbench.core.text import visible
from workbench.spec import describe
from workbench.spec.documents.measurement import AxisMeasurement, Estimate, Measurement
from workbench.spec.documents.plan import AxisDeclaration, Plan
from workbench.spec.documents.spec import Spec
from workbench.spec.forest import forest
from workbench.spec.outcomes import Outcomes
from workbench.spec.verdicts import paired, samples, worst_first

_HERE = Path(__file__).resolve().parent
WORDS = {"holds": "holds", "falls_short": "falls short", "underpowered": "underpowered"}
RULES = {
    "beyond_controls": "better than base by more than the margin, and beyond the random controls",
    "not_worse": "the bound of any worsening stays below the margin",
    "unchanged": "both bounds stay within the margin",
}


def render(
    spec: Spec,
    plan: Plan,
    measurement: Measurement,
    outcomes: Mapping[str, Outcomes],
    *,
    digests: Mapping[str, str] | None = None,
) -> str:
    """Render the dossier from a bundle's documents and outcomes; the same input gives the same bytes.

    Args:
        spec: What the edit is.
        plan: What was promised.
        measurement: What was found.
        outcomes: Axis id → every outcome.
        digests: SHA-256 of `spec.json`, `plan.json` and `measurement.json` where they are known already.
    """
    named = {"spec.json": spec, "plan.json": plan, "measurement.json": measurement}
    digests = digests or {name: document.identity() for name, document in named.items()}
    declared = paired(plan, measurement)
    pairs = worst_first((axis, one.estimate) for axis, one in declared)
    measured = {axis.id: one for axis, one in declared}
    style = _style()
    return _template().render(
        spec=spec,
        plan=plan,
        measurement=measurement,
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        digests=digests,
        pairs=pairs,
        failing=[(axis, estimate) for axis, estimate in pairs if not estimate.holds],
        forest=forest(pairs),
        lights=lights(spec, plan, measurement),
        sentence=describe.headline(spec.edits),
        formula=describe.formulas(spec.edits),
        groups=describe.alike(spec.edits),
        gaps=_gaps(spec),
        questions=questions(spec, plan, measurement),
        samples={axis.id: _samples(plan, measurement, measured[axis.id], outcomes[axis.id]) for axis, _ in pairs},
        doses=_doses(plan, pairs),
        rules=RULES,
        words=WORDS,
    )


def lights(spec: Spec, plan: Plan, measurement: Measurement) -> list[dict[str, str]]:
    """Give the four lights, each with a level (`good`, `part`, `bad`, `none`), a word and what it stands on."""
    estimates = {axis.id: one.estimate for axis, one in paired(plan, measurement)}
    failing = [axis for axis in plan.axes if not estimates[axis.id].holds]
    n = len(plan.axes)
    if not failing:
        evidence = "good", "holds", f"All {n} axes hold, by rules that were fixed before anything was measured."
    else:
        names = ", ".join(axis.title for axis in failing[:3]) + (" and more" if len(failing) > 3 else "")
        grave = any(axis.harm or axis.id == plan.primary for axis in failing)
        grave = grave and any(estimates[axis.id].verdict == "falls_short" for axis in failing)
        text = f"{n - len(failing)} of {n} axes hold. Not: {names}."
        evidence = ("bad", "falls short", text) if grave else ("part", "holds in part", text)
    subject = f"Measured on {spec.subject.name} in {spec.subject.dtype}, one runtime, one machine."
    gaps = "Not measured: the served stack (quantised, batched, cached)"
    trained = any(one.trained_on == "unknown" for one in spec.dictionaries)
    scope = f"{subject} {gaps}{'; which model a dictionary was trained on is not known' if trained else ''}."
    return [
        {
            "name": "Integrity",
            "level": "part",
            "word": "digests only",
            "text": "Every file is bound by its SHA-256. Nothing is signed: damage is found, replacement of "
            "everything is not. Run workbench verify before you read on.",
        },
        dict(zip(("name", "level", "word", "text"), ("Evidence", *evidence), strict=True)),
        {"name": "Scope", "level": "part", "word": "one setting", "text": scope},
        {
            "name": "Independence",
            "level": "none",
            "word": "self-attested",
            "text": "The author froze the plan, drew the nonce, measured and made this page. Nobody else has "
            "registered or reviewed it.",
        },
    ]


def questions(spec: Spec, plan: Plan, measurement: Measurement) -> list[tuple[str, str, str]]:
    """Give the reviewer's sixteen questions, each with the section that answers it and how far it does."""
    kinds = {axis.kind for axis in plan.axes}
    arms = {arm.kind for arm in plan.arms}

    def if_any(kind: str) -> str:
        return "answered" if kind in kinds else "not measured"

    cheap = "answered" if {"system_prompt", "difference_of_means"} <= arms else "in part"
    robust = "in part" if "dose" in arms or plan.attacks else "not measured"
    return [
        ("What changes in the forward pass?", "change", "answered"),
        ("On exactly which model and dictionary?", "subject", "answered"),
        ("Why this feature, beyond its label?", "features", "answered" if spec.features else "no feature is used"),
        ("Which harm, whose definition, which data and split?", "promise", "answered"),
        ("What is the effect against doing nothing?", "axes", "answered"),
        ("And against random controls and cheap alternatives?", "axes", cheap if "control" in arms else "not measured"),
        ("What was promised, what changed, how many were tried?", "promise", "answered"),
        ("What got worse?", "axes", "answered"),
        ("Does it hold under attack, at other strengths, seeds and dtypes?", "doses", robust),
        ("Does it act differently when it thinks it is tested?", "axes", if_any("evaluation_awareness")),
        ("Does its written reasoning disclose what drove the answer?", "axes", if_any("cot_faithfulness")),
        ("What is unknown, unmeasured or failed?", "limits", "answered"),
        ("What would tell us in production?", "monitoring", "answered" if spec.monitoring else "not planned"),
        ("Who made and checked it, and how is it rerun?", "rerun", "in part"),
        ("What exactly is signed, and what differs from the last version?", "versions", "nothing is signed"),
        ("Why an activation edit and not something else?", "why", "answered"),
    ]


def _gaps(spec: Spec) -> list[str]:
    """Give every reason why something is not known of a feature, each once."""
    reasons: dict[str, list[str]] = {}
    for feature in spec.features:
        for name, why in feature.unmeasured.items():
            reasons.setdefault(f"{name.replace('_', ' ')}: {why}", []).append(f"{feature.dictionary} : {feature.index}")
    n = len(spec.features)
    return [f"{why} ({'every feature' if len(who) == n else ', '.join(who)})" for why, who in reasons.items()]


def _samples(plan: Plan, measurement: Measurement, axis: AxisMeasurement, outcomes: Outcomes) -> list[dict]:
    """Give the prompts that the nonce draws, then any that a person picked, with both values."""
    drawn = samples(measurement.nonce, axis.axis, len(axis.prompts), plan.n_samples)
    texts = {one.prompt: one for one in axis.continuations}
    by_hand = [one.prompt for one in axis.continuations if one.picked == "hand" and one.prompt not in drawn]
    levels = {arm: _per_prompt(outcomes, arm, len(axis.prompts)) for arm in ("base", "candidate")}
    return [
        {
            "number": k,
            "prompt": axis.prompts[k],
            "base": levels["base"][k],
            "candidate": levels["candidate"][k],
            "texts": texts.get(k),
            "picked": "drawn by the nonce" if k in drawn else "picked by hand",
        }
        for k in [*drawn, *by_hand]
    ]


def _per_prompt(outcomes: Outcomes, arm: str, n: int) -> list[float]:
    totals, counts = [0.0] * n, [0] * n
    for row in outcomes.rows(arm):
        totals[int(outcomes.prompt[row])] += float(outcomes.value[row])
        counts[int(outcomes.prompt[row])] += 1
    return [total / max(count, 1) for total, count in zip(totals, counts, strict=True)]


def _doses(plan: Plan, pairs: list[tuple[AxisDeclaration, Estimate]]) -> list[dict]:
    """Give one table per axis that doses ran on: dose, level, interval of its change."""
    doses = {arm.id: arm.dose for arm in plan.arms if arm.kind == "dose"}
    tables = []
    for axis, estimate in pairs:
        rows = sorted((doses[one.arm], one) for one in estimate.arms if one.arm in doses)
        if rows:
            tables.append({"axis": axis, "estimate": estimate, "rows": rows})
    return tables


@functools.cache
def _style() -> str:
    return (_HERE / "dossier.css").read_text(encoding="utf-8")


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"signed": _signed, "level": _level, "p": _p, "short": lambda text: text[:16], "sha": _sha}
    return environment.from_string((_HERE / "dossier.html.jinja").read_text(encoding="utf-8"))


def _finalize(value: object) -> object:
    return value if isinstance(value, Markup) else visible(str(value))


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _level(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}".replace("-", "−")


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _sha(text: str) -> str:
    return sha256_hex(text.encode("utf-8", "surrogatepass"))[:12]
