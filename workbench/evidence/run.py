"""Running a frozen plan: draw the nonce, draw the prompts from it, measure every arm, keep every outcome.

The order is the point. The plan is checked against its digest, then the nonce is drawn, and only then do the prompts
and the control directions exist. The no-op has to leave every logit bit-identical, or nothing measured through the
hooks means anything. The model is as it was when the run ends, however it ends.

Example:
    >>> measurement = run(plan, subject)
    >>> measurement.table()
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence

import torch
import transformers

from workbench.core.errors import AxisError, InputError, TrialError
from workbench.core.progress import CancelToken, Progress
from workbench.evidence.arms import Arm, controls, doses, noop
from workbench.evidence.measurement import AxisRun, TrialMeasurement
from workbench.evidence.metrics import BenignCost, BenignText, Outcomes, Prepared, prepare
from workbench.evidence.plan import TrialPlan, check_clusters
from workbench.evidence.records import code_record, environment_record, now, subject_record
from workbench.features.axes import AxisItem, check_disjoint
from workbench.interventions.edits import Edits
from workbench.interventions.generation import generate
from workbench.interventions.prefix import SharedPrefix
from workbench.interventions.runtime import last_logits
from workbench.models.subject import Subject
from workbench.spec.documents.measurement import Continuation
from workbench.spec.documents.plan import AxisDeclaration
from workbench.spec.verdicts import samples

MAX_NEW_TOKENS = 24
"""Longest continuation that a reader is shown, in tokens."""


def draw_nonce() -> str:
    """Give 256 random bits of the operating system, as hexadecimal digits."""
    return secrets.token_hex(32)


def run(
    plan: TrialPlan,
    subject: Subject,
    *,
    draw: Callable[[], str] = draw_nonce,
    cancel: CancelToken | None = None,
) -> TrialMeasurement:
    """Measure a frozen plan.

    Args:
        plan: What was promised.
        subject: The model it was promised for.
        draw: Gives the nonce; called once, after the plan was checked.
        cancel: Stops the run between two arms; the model is left as it was and nothing is written.

    Raises:
        TrialError: The plan, its edits or the subject changed since it was frozen, a test prompt was seen while
            selecting, an axis has too few prompts or clusters, or the no-op changed a bit.
        FiringError: An edit touched no token.
        Cancelled: The token says so.
    """
    plan.check_unchanged()
    identity = subject_record(subject).identity()
    if identity != plan.document.subject:
        raise TrialError("the subject is not the one that the plan froze", where=f"subject {subject.name}")
    nonce, started, began = draw(), now(), time.perf_counter()
    trial = _Trial(plan, subject, nonce, cancel)
    axes = trial.measure()
    return TrialMeasurement(
        plan=plan,
        nonce=nonce,
        subject=identity,
        started=started,
        finished=now(),
        axes=axes,
        benign=trial.benign(),
        firings=trial.firings,
        runtime=runtime_name(subject),
        code=code_record(),
        environment=environment_record(),
        n_forwards=trial.n_forwards,
        seconds=time.perf_counter() - began,
    )


def runtime_name(subject: Subject) -> str:
    """Say what runs the forward passes."""
    return f"workbench hooks on transformers {transformers.__version__}, torch {torch.__version__}, {subject.device}"


def draw_prompts(plan: TrialPlan, nonce: str) -> dict[str, list[AxisItem]]:
    """Give each axis's confirmation prompts, checked: as many as promised, in enough clusters, none seen before.

    Raises:
        TrialError: Says which axis falls short of its promise.
    """
    found = {}
    for declared in plan.document.axes:
        try:
            items = plan.axes[declared.id].items("test", declared.n, nonce=nonce)
            check_disjoint(declared.id, items, [item for item in items if item.text in plan.seen])
        except (AxisError, InputError) as error:
            raise TrialError(error.message, where=f"axis {declared.id}", hint=error.hint) from error
        if len(items) < declared.n:
            raise TrialError(f"axis {declared.id} is underpowered: {len(items)} prompts of {declared.n} promised")
        check_clusters(declared.id, items, declared.min_clusters)
        found[declared.id] = items
    return found


class _Trial:
    """One run in progress: the prompts, the arms and what they cost so far."""

    def __init__(self, plan: TrialPlan, subject: Subject, nonce: str, cancel: CancelToken | None):
        self.plan, self.subject, self.nonce, self.cancel = plan, subject, nonce, cancel
        self.batch_size = plan.document.batch_size
        self.prompts = draw_prompts(plan, nonce)
        self.n_forwards = 0
        self.firings: tuple[dict, ...] = ()

    def measure(self) -> dict[str, AxisRun]:
        declared = self.plan.document.axes
        total = sum(len(self.plan.document.arms_of(axis)) for axis in declared)
        with Progress("measuring", total, cancel=self.cancel) as bar:
            found = {axis.id: self._axis(axis, bar) for axis in declared}
        self.check_untouched()
        return found

    def benign(self) -> BenignCost | None:
        """Measure the cost on benign documents that the nonce draws."""
        if self.plan.benign is None:
            return None
        text = BenignText(self.subject, self.plan.benign(self.nonce), batch_size=self.batch_size)
        return text.cost(self.plan.edits, cancel=self.cancel)

    def check_untouched(self) -> None:
        """Check that no hook is left, so that what runs next is the plain model."""
        left = [name for name, module in self.subject.model.named_modules() if _workbench_hooks(module)]
        if left:
            raise TrialError(f"a hook was left on {left[0]}", where=f"subject {self.subject.name}")

    def _axis(self, axis: AxisDeclaration, bar: Progress) -> AxisRun:
        items = self.prompts[axis.id]
        ready = prepare(self.subject, items)
        arms: dict[str, Outcomes] = {}
        idle = axis.id != self.plan.document.primary
        base = self._logits(ready, None)
        arms["base"] = ready.read(base)
        bar.advance()
        declared = {arm.id for arm in self.plan.document.arms if arm.axes is None or axis.id in arm.axes}
        if "noop" in declared:
            found = self._logits(ready, noop(self.plan.edits), idle=idle)
            check_identical(base, found, axis.id)
            arms["noop"] = ready.read(found)
            bar.advance()
        for arm in self._others(axis, declared):
            arms[arm.id] = ready.read(self._logits(ready, arm.edits, idle=idle, count=arm.id == "candidate"))
            bar.advance()
        for arm, outcomes in self._controls(axis, ready):
            arms[arm.id] = outcomes
            bar.advance()
        order = self.plan.document.arms_of(axis)
        return AxisRun(tuple(items), {name: arms[name] for name in order}, self._continue(axis, items))

    def _others(self, axis: AxisDeclaration, declared: set[str]) -> list[Arm]:
        found = [Arm("candidate", "candidate", self.plan.edits)]
        grid = [arm.dose for arm in self.plan.document.arms if arm.id in declared and arm.dose is not None]
        found += doses(self.plan.edits, grid)
        if "difference_of_means" in declared and self.plan.baseline:
            found.append(Arm("difference_of_means", "difference_of_means", self.plan.baseline.edits))
        return found

    def _controls(self, axis: AxisDeclaration, ready: Prepared) -> Iterator[tuple[Arm, Outcomes]]:
        """Measure the controls; what lies below the lowest edit is computed once and shared by all of them."""
        if not axis.n_controls:
            return
        ids = [list(one) for one in ready.ids]
        shared = SharedPrefix(self.subject, ids, self.plan.edits.reads, batch_size=self.batch_size)
        for arm in controls(self.plan.edits, axis.n_controls, nonce=self.nonce):
            self.n_forwards += len(ids)
            yield arm, ready.read(shared.last_logits(arm.edits, allow_idle=axis.id != self.plan.document.primary))

    def _logits(self, ready: Prepared, edits: Edits | None, *, idle: bool = False, count: bool = False) -> torch.Tensor:
        self.n_forwards += len(ready.ids)
        firings: list = []
        ids = [list(one) for one in ready.ids]
        found = last_logits(self.subject, ids, edits, batch_size=self.batch_size, allow_idle=idle, firings=firings)
        if count:
            self.firings = _add_firings(self.firings, firings)
        return found

    def _continue(self, axis: AxisDeclaration, items: Sequence[AxisItem]) -> tuple[Continuation, ...]:
        """Let the model write on the prompts that the nonce draws, so that a reader sees text and not only numbers."""
        chosen = samples(self.nonce, axis.id, len(items), self.plan.document.n_samples)
        prompts = [items[k].text for k in chosen]
        base, edited = (
            generate(
                self.subject,
                prompts,
                edits,
                max_new_tokens=MAX_NEW_TOKENS,
                batch_size=self.batch_size,
                allow_idle=True,
                cancel=self.cancel,
            )
            for edits in (None, self.plan.edits)
        )
        return tuple(
            Continuation(prompt=k, base=one.text, candidate=other.text)
            for k, one, other in zip(chosen, base, edited, strict=True)
        )


def check_identical(base: torch.Tensor, found: torch.Tensor, axis: str) -> None:
    """Check that the no-op left every logit bit-identical.

    Raises:
        TrialError: A bit differs; says how many logits and by how much.
    """
    if torch.equal(base, found):
        return
    differs = base != found
    largest = float((base.double() - found.double()).abs().max())
    raise TrialError(
        f"the no-op changed {int(differs.sum())} of {base.numel()} logits, by up to {largest:.3g}",
        where=f"axis {axis}",
        hint="hooks that do nothing must leave every bit alone; nothing measured through them is valid",
    )


def _workbench_hooks(module: torch.nn.Module) -> bool:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(getattr(hook, "__module__", "").startswith("workbench.") for hook in hooks)


def _add_firings(so_far: tuple[dict, ...], firings: Sequence) -> tuple[dict, ...]:
    found = [
        {
            "edit": one.edit,
            "touched": one.touched,
            "max_ratio": one.max_ratio or 0.0,
            "mean_ratio": one.mean_ratio or 0.0,
        }
        for one in firings
    ]
    if not so_far:
        return tuple(found)
    return tuple(
        {
            "edit": a["edit"],
            "touched": a["touched"] + b["touched"],
            "max_ratio": max(a["max_ratio"], b["max_ratio"]),
            "mean_ratio": (a["mean_ratio"] * a["touched"] + b["mean_ratio"] * b["touched"])
            / max(1, a["touched"] + b["touched"]),
        }
        for a, b in zip(so_far, found, strict=True)
    )
