"""What a trial found: every outcome of every arm, and the estimates that anybody recomputes from them.

The objects here hold the live outcomes; `document` gives what a bundle stores. Estimates come from the same code that
a reviewer's `verify` runs, so a table in a notebook and a verdict in a dossier cannot disagree.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from workbench.core.canonical import sha256_hex
from workbench.evidence.metrics import BenignCost, Outcomes
from workbench.evidence.plan import TrialPlan
from workbench.features.axes import AxisItem
from workbench.spec import outcomes as columns
from workbench.spec.documents.measurement import (
    AxisMeasurement,
    BenignCostRecord,
    Continuation,
    Estimate,
    Measurement,
    OutcomeFile,
    PromptRecord,
    outcome_path,
)
from workbench.spec.documents.plan import AxisDeclaration
from workbench.spec.documents.spec import CodeRecord, EnvironmentRecord
from workbench.spec.verdicts import arrange, judge, worst_first


@dataclass(frozen=True)
class AxisRun:
    """One axis as it was run.

    Attributes:
        items: The confirmation prompts.
        arms: Arm id → outcomes, in the order they ran.
        continuations: Greedy text on some prompts, unedited and edited.
    """

    items: tuple[AxisItem, ...]
    arms: Mapping[str, Outcomes]
    continuations: tuple[Continuation, ...] = ()

    @cached_property
    def columns(self) -> columns.Outcomes:
        """The outcomes as a bundle stores them."""
        arms = {name: (one.value, one.mass) for name, one in self.arms.items()}
        return columns.Outcomes.of_arms([dict(item.clusters) for item in self.items], arms)


@dataclass(frozen=True, eq=False)
class TrialMeasurement:
    """The evidence of one trial.

    Attributes:
        plan: What was promised.
        nonce: Drawn after the plan was frozen.
        subject: Identity of the model that ran.
        started: UTC time.
        finished: UTC time.
        axes: Axis id → what was found.
        benign: What the candidate does to benign text.
        firings: Per edit of the candidate, over all axes: tokens touched and largest ‖change‖ / ‖stream‖.
        runtime: What ran the forward passes.
        code: Code that ran.
        environment: Machine that ran it.
        n_forwards: Prompts sent through the model.
        seconds: Wall time.
    """

    plan: TrialPlan
    nonce: str
    subject: str
    started: str
    finished: str
    axes: Mapping[str, AxisRun]
    benign: BenignCost | None
    firings: tuple[dict, ...]
    runtime: str
    code: CodeRecord
    environment: EnvironmentRecord
    n_forwards: int
    seconds: float

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Axis id → estimate and verdict by the plan's rule."""
        document = self.plan.document
        found = {}
        for axis in document.axes:
            run = self.axes[axis.id]
            grid = arrange(document, axis, len(run.items), run.columns)
            found[axis.id] = judge(document, axis, self.nonce, grid)
        return found

    @property
    def holds(self) -> bool:
        """Whether every axis holds."""
        return all(one.holds for one in self.estimates.values())

    @cached_property
    def outcome_files(self) -> dict[str, bytes]:
        """Axis id → its Parquet file."""
        return {axis: run.columns.to_bytes() for axis, run in self.axes.items()}

    @cached_property
    def document(self) -> Measurement:
        """What a bundle stores beside the outcomes."""
        return Measurement(
            plan=self.plan.digest,
            edits=self.plan.document.edits,
            subject=self.subject,
            nonce=self.nonce,
            started=self.started,
            finished=self.finished,
            runtime=self.runtime,
            code=self.code,
            environment=self.environment,
            axes=tuple(self._axis_document(axis.id) for axis in self.plan.document.axes),
            benign=_benign(self.benign),
            n_forwards=self.n_forwards,
            seconds=self.seconds,
        )

    def _axis_document(self, axis: str) -> AxisMeasurement:
        run, data = self.axes[axis], self.outcome_files[axis]
        prompts = tuple(
            PromptRecord(text=one.text, event=one.event, against=one.against, truth=one.truth) for one in run.items
        )
        file = OutcomeFile(path=outcome_path(axis), sha256=sha256_hex(data), rows=len(run.columns))
        return AxisMeasurement(
            axis=axis,
            outcomes=file,
            prompts=prompts,
            estimate=self.estimates[axis],
            continuations=run.continuations,
        )

    def worst_first(self) -> list[tuple[AxisDeclaration, Estimate]]:
        """Give declarations and estimates, what fails first, harm before the rest."""
        return worst_first((axis, self.estimates[axis.id]) for axis in self.plan.document.axes)

    def table(self) -> list[dict]:
        """Give one row per axis, the worst first, as every JSON of results names things."""
        rows = []
        for axis, found in self.worst_first():
            rows.append(
                {
                    "axis": axis.id,
                    "kind": axis.kind,
                    "split": axis.split,
                    "n": found.n,
                    "direction": axis.direction,
                    "base": found.base,
                    "candidate": found.candidate,
                    "interval": [found.low, found.high],
                    "controls": [min(found.controls), max(found.controls)] if found.controls else None,
                    "n_controls": found.n_controls,
                    "rank_p": found.rank_p,
                    "difference_of_means": found.difference_of_means,
                    "verdict": found.verdict,
                    "reason": found.reason,
                    "holds": found.holds,
                }
            )
        return rows

    def __repr__(self) -> str:
        lines = [self.plan.document.title]
        lines += [
            f"  {'holds' if row['holds'] else row['verdict'].replace('_', ' '):>12}  {_line(row)}"
            for row in self.table()
        ]
        if self.benign is not None:
            cost = self.benign.summary()
            lines.append(
                f"  benign text: KL {cost['kl_mean']:.4f} nats per token (p99 {cost['kl_p99']:.3f}), "
                f"ΔNLL {cost['delta_nll_mean']:+.4f}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape('holds' if row['holds'] else row['verdict'].replace('_', ' '))}</td>"
            f"<td>{html.escape(row['axis'])}</td><td>{row['base']:.3f} → {row['candidate']:.3f}</td>"
            f"<td>{html.escape(row['reason'])}</td></tr>"
            for row in self.table()
        )
        head = "<tr><th>verdict</th><th>axis</th><th>base → candidate</th><th>why</th></tr>"
        return f"<table><caption>{html.escape(self.plan.document.title)}</caption>{head}{rows}</table>"


def _line(row: dict) -> str:
    low, high = row["interval"]
    text = (
        f"{row['axis']:<22} {row['base']:.3f} → {row['candidate']:.3f}  change {low:+.3f} to {high:+.3f}  n {row['n']}"
    )
    return text if row["rank_p"] is None else f"{text}  rank p {row['rank_p']:.3f} of {row['n_controls']} controls"


def _benign(cost: BenignCost | None) -> BenignCostRecord | None:
    if cost is None:
        return None
    numbers = cost.summary()
    return BenignCostRecord(
        n_documents=len(set(cost.document.tolist())),
        n_tokens=len(cost.kl),
        **{name: numbers[name] for name in ("kl_mean", "kl_p99", "kl_max", "delta_nll_mean", "delta_nll_p99")},
    )
