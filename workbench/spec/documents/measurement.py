"""measurement.json: what was found, with every outcome beside it in `outcomes/`.

The estimates stored here are for people. Whoever reads a bundle recomputes them from the outcomes, and a stored one
that differs is refused.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from workbench.spec.documents.base import Count, Digest, Document, LongText, Nonce, Positive, Slug, Text, Time, Title
from workbench.spec.documents.plan import ArmId
from workbench.spec.documents.spec import CodeRecord, EnvironmentRecord

Verdict = Literal["holds", "falls_short", "underpowered"]
Clustering = Literal["cue × item", "cue", "item", "prompt"]


class OutcomeFile(Document):
    """The Parquet file that holds an axis's outcomes."""

    path: Annotated[str, Field(pattern=r"^outcomes/[A-Za-z0-9][A-Za-z0-9._-]{0,63}\.parquet$")]
    """Name inside the bundle: `outcomes/<axis>.parquet`."""
    sha256: Digest
    """Its digest."""
    rows: Positive
    """Outcomes in it."""


class PromptRecord(Document):
    """One prompt of an axis, in the order of the outcomes' `prompt` column."""

    text: LongText
    """The prompt as the model reads it, chat markers included."""
    event: Annotated[tuple[LongText, ...], Field(max_length=256)]
    """Tokens whose probability is the value."""
    against: Annotated[tuple[LongText, ...], Field(max_length=256)] | None
    """Tokens it is weighed against; null is the whole vocabulary."""
    truth: Annotated[float, Field(ge=0, le=1)] | None = None
    """Probability that a generator drew the event with, where it is known."""


class Continuation(Document):
    """What the model wrote on one prompt, greedily."""

    prompt: Count
    """Number of the prompt."""
    base: LongText
    """Unedited."""
    candidate: LongText
    """Under the edit."""
    picked: Literal["nonce", "hand"] = "nonce"
    """Drawn by the nonce, or picked by a person."""


class ArmLevel(Document):
    """Level of the metric in one further arm."""

    arm: ArmId
    """Which arm."""
    level: float
    """Mean over the prompts."""
    low: float
    """Lower bound of arm − base."""
    high: float
    """Upper bound of arm − base."""


class Estimate(Document):
    """What the outcomes of one axis say. Levels are means of the metric; the interval is of candidate − base."""

    n: Positive
    """Prompts."""
    n_clusters: Positive
    """Independent clusters; the smaller count where cue and item cross."""
    clustering: Clustering
    """What was resampled together."""
    seed: Annotated[str, Field(pattern=r"^\d{1,19}$")]
    """Seed of the resampling, derived from the nonce."""
    base: float
    """Level of the unedited subject."""
    candidate: float
    """Level under the edit."""
    difference: float
    """Candidate − base."""
    low: float
    """Lower bound of candidate − base."""
    high: float
    """Upper bound."""
    n_controls: Count
    """Controls measured."""
    controls: tuple[float, ...]
    """Level of every control, in their order."""
    rank_p: Annotated[float, Field(gt=0, le=1)] | None
    """(1 + controls at least as good) / (1 + controls); null without controls."""
    rank_p_low: Annotated[float, Field(ge=0, le=1)] | None
    """Lower bound of the share of such controls in their family."""
    rank_p_high: Annotated[float, Field(ge=0, le=1)] | None
    """Upper bound."""
    difference_of_means: float | None
    """Level of the difference-of-means baseline; null where it was not run."""
    arms: tuple[ArmLevel, ...]
    """Every further arm: doses, baselines."""
    mass_base: float
    """Mean probability of event and alternative together, unedited."""
    mass_candidate: float
    """The same under the edit; a fall says that the edit breaks the answer's form."""
    wrong_way: Annotated[float, Field(ge=0, le=1)]
    """Share of prompts that moved against the good direction by more than .01 of a probability."""
    verdict: Verdict
    """By the plan's rule; `underpowered` fails."""
    holds: bool
    """Whether the verdict is `holds`."""
    reason: Text
    """The verdict in words, with its numbers."""


class AxisMeasurement(Document):
    """One axis as measured."""

    axis: Slug
    """Id of the axis in the plan."""
    outcomes: OutcomeFile
    """Where every single outcome is."""
    prompts: Annotated[tuple[PromptRecord, ...], Field(min_length=1)]
    """The prompts."""
    estimate: Estimate
    """For people; recomputed by every reader."""
    continuations: tuple[Continuation, ...] = ()
    """Text on some prompts."""


class Deviation(Document):
    """Something that was done differently than promised."""

    what: Text
    """What."""
    why: Text
    """Why."""
    axes: tuple[Slug, ...] = ()
    """Axes it concerns."""


class BenignCostRecord(Document):
    """What the edit does to the next-token distribution on benign text."""

    n_documents: Positive
    """Documents."""
    n_tokens: Positive
    """Tokens."""
    kl_mean: float
    """Mean KL(base ‖ edited), nats per token."""
    kl_p99: float
    """99th percentile."""
    kl_max: float
    """Largest."""
    delta_nll_mean: float
    """Mean change of the true token's surprise, nats; above 0 is worse."""
    delta_nll_p99: float
    """99th percentile."""


class Measurement(Document):
    """The evidence."""

    schema_version: Literal["workbench.measurement/1"] = "workbench.measurement/1"
    """Version of this document type."""
    plan: Digest
    """Digest of `plan.json`."""
    edits: Digest
    """Identity of the edits that ran (`edits_digest`)."""
    subject: Digest
    """Digest of `spec.subject` of the model that ran."""
    nonce: Nonce
    """Drawn after the plan was frozen; prompts, controls, samples and bootstraps follow from it."""
    nonce_from: Literal["local"] = "local"
    """Who drew it; a local nonce makes everything derived from it self-attested."""
    started: Time
    """When measuring began."""
    finished: Time
    """When it ended."""
    runtime: Title
    """What ran the forward passes."""
    code: CodeRecord
    """Code."""
    environment: EnvironmentRecord
    """Environment."""
    axes: Annotated[tuple[AxisMeasurement, ...], Field(min_length=1, max_length=64)]
    """Axes in the order of the plan."""
    benign: BenignCostRecord | None = None
    """Cost on benign text; null where it was not measured."""
    deviations: tuple[Deviation, ...] = ()
    """What differs from the plan."""
    n_forwards: Count | None = None
    """Forward passes."""
    seconds: Annotated[float, Field(ge=0)] | None = None
    """Wall time."""

    @model_validator(mode="after")
    def _ordered(self) -> "Measurement":
        names = [axis.axis for axis in self.axes]
        if len(set(names)) != len(names):
            raise ValueError("an axis is measured twice")
        for axis in self.axes:
            if axis.outcomes.path != outcome_path(axis.axis):
                raise ValueError(f"axis {axis.axis}: its outcomes are in {outcome_path(axis.axis)}")
            if any(one.prompt >= len(axis.prompts) for one in axis.continuations):
                raise ValueError(f"axis {axis.axis}: a continuation of a prompt that is not there")
        return self


def outcome_path(axis: str) -> str:
    """Give the name of an axis's outcome file inside a bundle."""
    return f"outcomes/{axis}.parquet"
