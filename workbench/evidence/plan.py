"""The promise: what will be measured, on how many prompts, against what, and what will count, before any of it is seen.

A draft is changed freely and says what it would cost. Freezing gives the plan document whose digest the measurement
names; the nonce that draws the confirmation prompts and the control directions does not exist yet at that moment, so
nobody, the author included, can have tuned to them.

Example:
    >>> draft = Draft(subject, edits, axes, primary="jailbreak_resistance", title="…", selection_rule="…")
    >>> print(draft.cost())
    >>> plan = draft.freeze()
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from workbench.core.errors import TrialError
from workbench.core.stats import Interval, paired_intervals
from workbench.evidence.arms import DOSES, Baseline
from workbench.evidence.metrics import BATCH_SIZE, measure, prepare
from workbench.evidence.records import now, subject_record, used_dictionaries
from workbench.features.axes import Axis, AxisItem
from workbench.interventions.edits import Edits
from workbench.models.dictionary import Dictionary
from workbench.models.subject import Subject
from workbench.spec.documents.plan import ArmDeclaration, AxisDeclaration, Plan

N_CONTROLS = 199
"""Random controls on the target axis: rank p can reach .005."""
N_PROMPTS = 256
"""Prompts per axis where the draft names no other number."""
N_PILOT = 96
"""Dev prompts per axis that the power of a plan is judged from."""
MIN_CLUSTERS = 10
"""Fewest independent cues or items an interval may stand on."""


@dataclass(frozen=True)
class Cost:
    """What a plan takes before anything is run.

    Attributes:
        forwards: Prompts sent through the model, all arms together.
        tokens: The same in tokens.
        seconds: Estimate, from timing one batch of the subject as it is.
    """

    forwards: int
    tokens: int
    seconds: float

    def __repr__(self) -> str:
        return f"{self.forwards:,} prompts, {self.tokens:,} tokens, about {self.seconds:.0f} s at most"


@dataclass(frozen=True)
class Power:
    """Whether an axis can answer its question at this size.

    Attributes:
        axis: Its id.
        n: Prompts planned.
        half_width: Expected half-width of the interval of candidate − base, from dev.
        margin: What it has to resolve: the margin, and the gain seen on dev where the rule is not to get worse.
        n_needed: Prompts at which it would; equal to `n` where it does.
    """

    axis: str
    n: int
    half_width: float
    margin: float
    n_needed: int

    @property
    def enough(self) -> bool:
        """Whether the expected interval is narrower than the margin."""
        return self.half_width < self.margin


@dataclass(frozen=True)
class TrialPlan:
    """A frozen plan with the live objects it is about.

    Attributes:
        document: The promise.
        digest: SHA-256 of the document when it was frozen.
        edits: The candidate.
        axes: Axes by id, in the order of the document.
        baseline: The tuned difference of means; `None` where none was declared.
        benign: Gives the benign documents that the cost is measured on, from the nonce.
        seen: Texts that selection looked at.
    """

    document: Plan
    digest: str
    edits: Edits
    axes: Mapping[str, Axis]
    baseline: Baseline | None
    benign: Callable[[str], Sequence[str]] | None
    seen: frozenset[str]

    def check_unchanged(self) -> None:
        """Check that this is still what was frozen.

        Raises:
            TrialError: The document or the edits differ from what was frozen.
        """
        if self.document.identity() != self.digest:
            raise TrialError(
                f"the plan was changed after it was frozen: digest {self.document.identity()[:12]}, "
                f"frozen {self.digest[:12]}",
                hint="freeze a new plan; it gets a new nonce",
            )
        if self.edits.digest() != self.document.edits:
            raise TrialError("the edits are not those that the plan froze", hint="freeze a new plan for these edits")
        for declared in self.document.axes:
            if self.axes[declared.id].digest != declared.source:
                raise TrialError(f"axis {declared.id} is not the one that the plan froze: its prompts changed")


class Draft:
    """A plan that may still be changed.

    Attributes:
        title: The hypothesis in one line.
        author: Who promises.
        primary: Id of the axis that the claim stands on.
        n: Prompts per axis id; `N_PROMPTS` where absent.
        margins: Margin per axis id; the axis's own where absent.
        rules: Rule per axis id other than the primary one: `not_worse` where absent, or `unchanged`.
        n_controls: Controls on the primary axis.
        n_off_target_controls: Controls on every other axis; none is usual, their rule needs none.
        doses: Dose arms of the primary axis.
        alpha: Largest rank p that counts.

    Args:
        subject: The model.
        edits: The candidate.
        axes: Every axis to measure, the primary one among them.
        dictionaries: Where the edited features come from.
        baseline: The tuned difference of means.
        benign: Benign documents for the cost, or what gives them from the nonce.
        candidates_tried: Candidates whose effect was looked at before this one was picked, itself included.
        selection_rule: How it was picked.
        seen: Every item that selection looked at, so that an overlap with the test split is found.
    """

    def __init__(
        self,
        subject: Subject,
        edits: Edits,
        axes: Sequence[Axis],
        *,
        primary: str,
        title: str,
        author: str,
        selection_rule: str,
        candidates_tried: int = 1,
        dictionaries: Sequence[Dictionary] = (),
        baseline: Baseline | None = None,
        benign: Callable[[str], Sequence[str]] | Sequence[str] | None = None,
        seen: Sequence[AxisItem] = (),
        n: Mapping[str, int] | None = None,
        margins: Mapping[str, float] | None = None,
        rules: Mapping[str, str] | None = None,
        n_controls: int = N_CONTROLS,
        n_off_target_controls: int = 0,
        doses: Sequence[float] = DOSES,
        alpha: float = 0.01,
        min_clusters: int = MIN_CLUSTERS,
        batch_size: int = BATCH_SIZE,
    ):
        self._frozen = False
        self.subject, self.edits, self.axes = subject, edits, {axis.id: axis for axis in axes}
        if primary not in self.axes:
            raise TrialError(f"the primary axis {primary!r} is not among the axes", hint=", ".join(self.axes))
        self.primary, self.title, self.author = primary, title, author
        self.selection_rule, self.candidates_tried = selection_rule, candidates_tried
        self.dictionaries, self.baseline, self.benign = tuple(dictionaries), baseline, _drawn(benign)
        self.seen = frozenset(item.text for item in seen)
        self.n, self.margins, self.rules = dict(n or {}), dict(margins or {}), dict(rules or {})
        self.n_controls, self.n_off_target_controls = n_controls, n_off_target_controls
        self.doses, self.alpha, self.min_clusters, self.batch_size = tuple(doses), alpha, min_clusters, batch_size

    def __setattr__(self, name: str, value: object) -> None:
        if getattr(self, "_frozen", False):
            raise TrialError(f"cannot change {name!r}: the plan is frozen", hint="make a new draft")
        super().__setattr__(name, value)

    def power(self) -> list[Power]:
        """Judge from dev whether each axis can resolve its margin at its size.

        Raises:
            TrialError: An axis is empty or has one cluster.
        """
        return [self._power(axis) for axis in self.axes.values()]

    def cost(self) -> Cost:
        """Say what the trial takes: prompts, tokens, and seconds from timing the subject; runs one batch."""
        forwards, tokens, seconds = 0, 0, 0.0
        for axis in self.axes.values():
            items = axis.items("dev", min(self.batch_size, self._n(axis)))
            ready = prepare(self.subject, items)
            began = time.perf_counter()
            measure(self.subject, ready, batch_size=self.batch_size)
            per_prompt = (time.perf_counter() - began) / len(items)
            count = self._n(axis) * self._n_arms(axis)
            forwards += count
            tokens += round(count * float(np.mean([len(ids) for ids in ready.ids])))
            seconds += count * per_prompt
        return Cost(forwards, tokens, seconds)

    def freeze(self) -> TrialPlan:
        """Give the frozen plan; this draft cannot be changed any more.

        Raises:
            TrialError: An axis is empty, has one cluster or is too small for its margin, or the declaration
                contradicts itself.
        """
        weak = [one for one in self.power() if not one.enough]
        if weak:
            named = "; ".join(
                f"{one.axis}: expected interval ±{one.half_width:.3f} at n {one.n}, margin {one.margin:g}, "
                f"about n {one.n_needed} needed"
                for one in weak
            )
            raise TrialError(f"underpowered: {named}", hint="raise n, or declare a margin that it can resolve")
        try:
            document = Plan(
                title=self.title,
                author=self.author,
                frozen=now(),
                subject=subject_record(self.subject).identity(),
                dictionaries=tuple(one.digest for one in used_dictionaries(self.edits, self.dictionaries)),
                edits=self.edits.digest(),
                primary=self.primary,
                axes=tuple(self._declare(axis) for axis in self.axes.values()),
                arms=self._arms(),
                batch_size=self.batch_size,
                candidates_tried=self.candidates_tried,
                selection_rule=self.selection_rule,
                unmeasured=_UNMEASURED,
            )
        except ValidationError as error:
            raise TrialError(f"the plan contradicts itself: {error.errors()[0]['msg']}") from error
        plan = TrialPlan(
            document, document.identity(), self.edits, dict(self.axes), self.baseline, self.benign, self.seen
        )
        self._frozen = True
        return plan

    def _n(self, axis: Axis) -> int:
        return self.n.get(axis.id, N_PROMPTS)

    def _margin(self, axis: Axis) -> float:
        return self.margins.get(axis.id, axis.margin)

    def _n_arms(self, axis: Axis) -> int:
        if axis.id == self.primary:
            return 3 + self.n_controls + len(self.doses) + bool(self.baseline)
        return 2 + self.n_off_target_controls + bool(self.baseline)

    def _power(self, axis: Axis) -> Power:
        items = axis.items("dev", min(N_PILOT, self._n(axis)), seed=1)
        check_clusters(axis.id, items, 2)
        ready = prepare(self.subject, items)
        idle = axis.id != self.primary
        base, edited = (
            measure(self.subject, ready, one, batch_size=self.batch_size, allow_idle=idle) for one in (None, self.edits)
        )
        found = effect_interval(edited.value - base.value, items, seed=0)
        half = (found.high - found.low) / 2 * math.sqrt(len(items) / self._n(axis))
        margin = self._room(axis, found.estimate)
        needed = self._n(axis) if half < margin else math.ceil(self._n(axis) * (half / margin) ** 2) + 1
        return Power(axis.id, self._n(axis), half, margin, needed)

    def _room(self, axis: Axis, effect: float) -> float:
        """Give how wide an interval may be on each side for the rule to be decided, at the effect seen on dev.

        A gain has to stand clear of its margin. What must not get worse has its whole margin, and what it gained too.
        """
        margin, gain = self._margin(axis), effect if axis.direction == "up" else -effect
        if axis.id == self.primary:
            return max(gain - margin, 1e-9)
        return margin if self.rules.get(axis.id) == "unchanged" else margin + max(0.0, gain)

    def _declare(self, axis: Axis) -> AxisDeclaration:
        primary = axis.id == self.primary
        return AxisDeclaration(
            id=axis.id,
            title=axis.title,
            kind="target" if primary else "off_target" if axis.kind == "target" else axis.kind,
            harm=axis.harm,
            direction=axis.direction,
            definition=axis.definition,
            source=axis.digest,
            split="test",
            drawn="from_nonce",
            metric=axis.metric,
            metric_type="teacher_forced",
            scorer="next-token probability",
            rule="beyond_controls" if primary else self.rules.get(axis.id, "not_worse"),  # type: ignore[arg-type]
            margin=self._margin(axis),
            alpha=self.alpha,
            n=self._n(axis),
            n_controls=self.n_controls if primary else self.n_off_target_controls,
            min_clusters=self.min_clusters,
        )

    def _arms(self) -> tuple[ArmDeclaration, ...]:
        primary = (self.primary,)
        most = max(self.n_controls, self.n_off_target_controls)
        arms = [
            ArmDeclaration(id="base", kind="base", description="The subject as it is."),
            ArmDeclaration(
                id="noop",
                kind="noop",
                description="The candidate's hooks with a change of zero; every logit must equal base bit for bit.",
                axes=primary,
            ),
            ArmDeclaration(id="candidate", kind="candidate", description="The edits as they would ship."),
        ]
        for dose in self.doses:
            text = f"The candidate's change of the stream times {dose:g}."
            arms.append(ArmDeclaration(id=f"dose:{dose:g}", kind="dose", description=text, dose=dose, axes=primary))
        if most:
            text = (
                "The edited write rows of a site turned together by one random isometry: norms, angles between rows "
                "and signed per-token coefficients are the candidate's, the direction is not."
            )
            arms.append(ArmDeclaration(id="control", kind="control", description=text, family="isotropic", n=most))
        if self.baseline:
            record = self.baseline.record
            arms.append(
                ArmDeclaration(
                    id="difference_of_means",
                    kind="difference_of_means",
                    description=f"{record['coefficient']:+.3f} × the difference of means, added at {record['site']}.",
                    tuning=f"Site, sign and coefficient on dev among {record['n_tried']} tried: {record['matched_on']} "
                    f"({record['dev_kl']:.4f} against {record['target_kl']:.4f} nats per token); same positions and "
                    "gate.",
                    edits=self.baseline.edits.digest(),
                )
            )
        return tuple(arms)


def _drawn(benign: Callable[[str], Sequence[str]] | Sequence[str] | None) -> Callable[[str], Sequence[str]] | None:
    """Give documents as something that is drawn from a nonce; fixed ones ignore it."""
    if benign is None or callable(benign):
        return benign
    fixed = tuple(benign)
    return (lambda nonce: fixed) if fixed else None


_UNMEASURED = {
    "system_prompt": "not run in this trial",
    "probe": "not run in this trial",
    "adversarial": "no attack was run in this trial",
    "cot_faithfulness": "chains of thought were not scored in this trial",
}


def check_clusters(axis: str, items: Sequence[AxisItem], least: int) -> None:
    """Check that prompts vary by enough cues and items for an interval.

    Raises:
        TrialError: No prompt, or fewer levels of what repeats than `least`.
    """
    if not items:
        raise TrialError(f"axis {axis} is empty", hint="an axis without a prompt cannot be promised")
    for name, labels in cluster_labels(items).items():
        levels = len(set(labels))
        if levels < least:
            raise TrialError(
                f"axis {axis} is underpowered: {levels} {name} cluster{'s' if levels > 1 else ''} in {len(items)} "
                f"prompts, at least {least} are needed",
                hint="vary the cue and the item of its prompts",
            )


def cluster_labels(items: Sequence[AxisItem]) -> dict[str, np.ndarray]:
    """Give the labels of each factor that prompts name; a prompt without one is a cluster of its own."""
    names = sorted({name for item in items for name in item.clusters})
    return {
        name: np.array([item.clusters.get(name, f"prompt {k}") for k, item in enumerate(items)], dtype=object)
        for name in names
    }


def effect_interval(differences: np.ndarray, items: Sequence[AxisItem], *, seed: int) -> Interval:
    """Give the mean difference with its interval, resampling cues and items wherever they repeat."""
    factors = [labels.astype(str) for labels in cluster_labels(items).values() if len(set(labels)) < len(items)]
    return paired_intervals(differences[:, None], *factors[:2], seed=seed)[0]
