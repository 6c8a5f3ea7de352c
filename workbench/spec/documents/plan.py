"""plan.json: what was promised before anything was measured on the confirmation split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from workbench.spec.documents.base import Count, Digest, Document, Positive, Slug, Text, Time, Title

AxisKind = Literal[
    "target", "off_target", "capability", "adversarial", "evaluation_awareness", "cot_faithfulness", "fluency"
]
ArmId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,40}(:[A-Za-z0-9.+-]{1,20})?$")]
"""`base`, `noop`, `candidate`, `difference_of_means`, `dose:0.5`, `control:017`."""
ArmKind = Literal["base", "noop", "candidate", "dose", "control", "difference_of_means", "probe", "system_prompt"]
Rule = Literal["beyond_controls", "not_worse", "unchanged"]


class AxisDeclaration(Document):
    """One thing that is measured, and what counts as holding."""

    id: Slug
    """Name of the axis."""
    title: Title
    """What a committee member reads."""
    kind: AxisKind
    """What it is in this plan."""
    harm: bool
    """Whether a change for the worse is a harm; such axes are judged uncorrected: a correction would hide harm."""
    direction: Literal["up", "down"]
    """Which way is good."""
    definition: Text
    """Whose definition, and how it is scored."""
    source: Digest
    """Digest of the prompts, or of the generator where they are drawn after registration."""
    split: Literal["test", "perturbed", "adversarial", "dev"]
    """`test` is the confirmation split; a claim on `dev` is exploration."""
    drawn: Literal["fixed", "from_nonce"]
    """Whether the prompts existed before the plan, or were drawn from the nonce after it was frozen."""
    metric: Title
    """What the number is, such as `P(refuse)`."""
    metric_type: Literal["teacher_forced", "sampled"]
    """Exact next-token probability, or judged text."""
    unit: Literal["probability", "nats", "score"] = "probability"
    """Unit of the values; probabilities lie in 0–1."""
    scorer: Title
    """What scores it; `next-token probability` where nothing judges."""
    rule: Rule
    """`beyond_controls`: better than base by more than the margin and beyond the controls at `alpha`;
    `not_worse`: the bound of the worsening stays below the margin; `unchanged`: both bounds stay within it."""
    margin: Annotated[float, Field(ge=0)]
    """In the unit of the metric: smallest change for the good that counts, or largest one for the worse tolerated."""
    alpha: Annotated[float, Field(gt=0, le=0.1)] = 0.01
    """Largest rank p within the controls that counts, for `beyond_controls`."""
    level: Annotated[float, Field(ge=0.9, lt=1)] = 0.95
    """Coverage of the interval of candidate − base."""
    n: Positive
    """Prompts promised."""
    n_controls: Count
    """Random controls promised on this axis; 0 where the rule needs none."""
    min_clusters: Positive = 10
    """Fewest independent clusters; with fewer the axis is underpowered."""

    @model_validator(mode="after")
    def _able(self) -> "AxisDeclaration":
        if self.rule == "beyond_controls" and (self.n_controls + 1) * self.alpha < 1 - 1e-9:
            raise ValueError(
                f"axis {self.id}: {self.n_controls} controls cannot reach rank p ≤ {self.alpha:g}; "
                f"at least {round(1 / self.alpha) - 1} are needed"
            )
        return self


class ArmDeclaration(Document):
    """One condition of the trial, other than a single control."""

    id: ArmId
    """Name in the outcomes; the controls are `control:000`, `control:001`, … under the one declaration `control`."""
    kind: ArmKind
    """What it is for."""
    description: Text
    """What is done in it."""
    family: Literal["isotropic", "covariance", "density", "permuted_label"] | None = None
    """Family of the control directions."""
    n: Count = 1
    """Members; more than one for controls only."""
    dose: float | None = None
    """Multiple of the candidate's change, for a dose."""
    tuning: Text | None = None
    """How a baseline was tuned on dev and at which benign cost it is compared."""
    edits: Digest | None = None
    """Identity of its edits where they were fixed before the trial."""
    axes: tuple[Slug, ...] | None = None
    """Axes it runs on; null is all."""


class Attack(Document):
    """An attempt to break the edit."""

    id: Slug
    """Name."""
    description: Text
    """What is tried."""
    budget: Text
    """How much of it."""


class Plan(Document):
    """The promise: subject, edit, axes, arms and rules, frozen before measuring."""

    schema_version: Literal["workbench.plan/1"] = "workbench.plan/1"
    """Version of this document type."""
    title: Title
    """The hypothesis in one line."""
    author: Title
    """Who promises."""
    frozen: Time
    """When the plan was frozen."""
    subject: Digest
    """Digest of `spec.subject`."""
    dictionaries: tuple[Digest, ...]
    """Digests of the dictionaries that the edits use."""
    edits: Digest
    """Identity of the candidate: edit documents and tensors (`edits_digest`)."""
    primary: Slug
    """The axis that the claim stands on."""
    axes: Annotated[tuple[AxisDeclaration, ...], Field(min_length=1, max_length=64)]
    """Everything that is measured."""
    arms: Annotated[tuple[ArmDeclaration, ...], Field(min_length=2, max_length=64)]
    """Every condition."""
    seeds: Text = "HMAC-SHA256(nonce, purpose ‖ 0x1f ‖ id); the nonce is drawn after this plan is frozen"
    """Where randomness comes from."""
    n_boot: Annotated[int, Field(ge=500, le=20_000)] = 2000
    """Bootstrap resamples of an interval."""
    n_samples: Annotated[int, Field(ge=5, le=50)] = 5
    """Prompts per axis that the nonce draws for a reader to look at."""
    batch_size: Positive = 64
    """Prompts per forward pass; float32 sums depend on it."""
    candidates_tried: Positive
    """Candidates whose effect was looked at before this one was picked, itself included."""
    selection_rule: Text
    """How it was picked."""
    attacks: tuple[Attack, ...] = ()
    """Attacks that are tried."""
    unmeasured: dict[Slug, Text] = Field(default_factory=dict)
    """What a reader might expect and this plan does not measure → why."""

    @model_validator(mode="after")
    def _consistent(self) -> "Plan":
        axes, arms = {axis.id: axis for axis in self.axes}, {arm.id: arm for arm in self.arms}
        if len(axes) != len(self.axes) or len(arms) != len(self.arms):
            raise ValueError("an axis or arm is declared twice")
        if self.primary not in axes or axes[self.primary].rule != "beyond_controls":
            raise ValueError(f"the primary axis {self.primary} is not declared with the rule beyond_controls")
        if missing := {"base", "candidate"} - {arm.id for arm in self.arms if arm.id == arm.kind}:
            raise ValueError(f"arm {min(missing)} is not declared")
        for arm in self.arms:
            if (arm.kind == "control") != (arm.family is not None) or (arm.n != 1 and arm.kind != "control"):
                raise ValueError(f"arm {arm.id}: controls have a family and a number, other arms neither")
            if arm.kind == "control" and arm.id != "control":
                raise ValueError(f"arm {arm.id}: the controls are declared once, as control")
            if (arm.kind == "dose") != (arm.dose is not None):
                raise ValueError(f"arm {arm.id}: doses, and only doses, have a dose")
            if unknown := set(arm.axes or ()) - set(axes):
                raise ValueError(f"arm {arm.id} runs on undeclared axis {min(unknown)}")
        promised = max(axis.n_controls for axis in self.axes)
        if promised > (arms["control"].n if "control" in arms else 0):
            raise ValueError(f"{promised} controls are promised on an axis and fewer declared as an arm")
        return self

    def arms_of(self, axis: AxisDeclaration) -> list[str]:
        """Give the ids of every arm that an axis's outcomes must hold, controls one by one."""
        found = []
        for arm in self.arms:
            if arm.kind == "control":
                found += [control_id(k) for k in range(axis.n_controls)]
            elif arm.axes is None or axis.id in arm.axes:
                found.append(arm.id)
        return found


def control_id(k: int) -> str:
    """Give the name of the k-th control, from 0."""
    return f"control:{k:03d}"
