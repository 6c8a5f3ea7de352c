"""spec.json: what the edit is, on which model, how any runtime proves that it applies the same one, what is unknown."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from workbench.spec.documents.base import (
    Count,
    DictionaryId,
    Digest,
    Document,
    LongText,
    Positive,
    Slug,
    TensorKey,
    Text,
    Time,
    Title,
)
from workbench.spec.documents.edit import EditDocument, read_site, target_keys, written_site
from workbench.spec.documents.subject import DictionaryRecord, FeatureRecord, SiteRecord, SubjectRecord, Unmeasured

Kind = Literal["edit", "diagnostic", "monitor"]
Dtype = Literal["float32", "bfloat16", "float16"]
MIN_KNOWN_ANSWERS = 8
"""Fewest known answers of a spec that changes the forward pass."""


class TensorRecord(Document):
    """One tensor of `tensors.safetensors`, as declared."""

    name: TensorKey
    """Key in the file."""
    shape: Annotated[tuple[Count, ...], Field(max_length=4)]
    """Its shape."""
    norm: Annotated[float, Field(ge=0)]
    """Euclidean norm over all entries, computed in float64."""


class TensorFile(Document):
    """The tensors the edits need, and no others."""

    sha256: Digest
    """Digest of `tensors.safetensors`."""
    tensors: tuple[TensorRecord, ...]
    """What the file must hold, by name."""


class TokenLogit(Document):
    """One entry of a top-k."""

    token: Count
    """Token id."""
    logit: float
    """Raw logit after the last token."""


class FiringRecord(Document):
    """How often one edit acted on one prompt."""

    edit: Count
    """Which edit, from 0 in the order of `spec.edits`."""
    positions: Count
    """Token positions it changed."""
    max_ratio: Annotated[float, Field(ge=0)] | None = None
    """Largest norm of the change as a share of the norm of what it was added to."""


class KnownAnswer(Document):
    """One prompt with what the model says unedited and edited; a runtime that differs applies another edit."""

    token_ids: Annotated[tuple[Count, ...], Field(min_length=1, max_length=8192)]
    """The prompt, special tokens included."""
    text: LongText
    """The prompt as text, for people."""
    base: Annotated[tuple[TokenLogit, ...], Field(min_length=1, max_length=50)]
    """Largest logits after the last token, unedited, descending."""
    edited: Annotated[tuple[TokenLogit, ...], Field(min_length=1, max_length=50)]
    """Largest logits under the edits, descending."""
    firings: tuple[FiringRecord, ...]
    """How often each edit acted, in the order of the edits."""


class KnownAnswers(Document):
    """Prompts with answers, and how close a runtime must come."""

    answers: tuple[KnownAnswer, ...]
    """At least eight where the spec changes the forward pass."""
    tolerance: Annotated[
        dict[Literal["float32", "bfloat16", "float16"], Annotated[float, Field(gt=0)]], Field(min_length=1)
    ]
    """Dtype of the subject → largest difference of a logit that is still the same edit."""


class Condition(Document):
    """Something that voids the justification."""

    text: Text
    """The condition in words."""
    check: Literal["subject_digest", "dictionary_digest", "dtype", "known_answers", "manual"]
    """What tests it; `manual` needs a person."""


class MonitorRecord(Document):
    """A watched quantity with its frozen baseline."""

    name: Slug
    """What it is called."""
    dictionary: DictionaryId
    """Dictionary of the watched feature."""
    index: Count
    """Its row."""
    edges: Annotated[tuple[float, ...], Field(min_length=1, max_length=64)]
    """Bin edges of the activation, ascending; below the first is `did not fire`."""
    counts: Annotated[tuple[Count, ...], Field(min_length=2, max_length=65)]
    """Baseline documents per bin, one more than edges."""
    alpha: Annotated[float, Field(gt=0, lt=1)]
    """False-alarm rate per window that the limit aims at."""
    owner: Title
    """Who is told."""
    rollback: Text
    """What is done."""


class CodeRecord(Document):
    """Which code made this."""

    version: Title
    """Version of the workbench."""
    revision: Title | None = None
    """Commit; null where it was not run from a checkout."""
    dirty: bool | None = None
    """Whether the checkout had changes; null with no checkout."""


class EnvironmentRecord(Document):
    """What it ran on."""

    python: Title
    """Python version."""
    packages: Annotated[dict[Title, Title], Field(max_length=64)]
    """Package → version, of what decides the numbers."""
    lock: Digest | None = None
    """Digest of the list of all installed versions."""
    hardware: Title
    """Processor or accelerator."""
    threads: Positive
    """Threads of a forward pass."""
    deterministic: bool
    """Whether deterministic algorithms were forced."""


class SearchRecord(Document):
    """How the candidate was found: a reader discounts an effect by how many were tried."""

    candidates_tried: Positive
    """Candidates whose effect was looked at, this one included."""
    space: Text
    """What was searched: sites, dictionaries, operations, strengths."""
    selection_rule: Text
    """How this candidate was picked."""
    split: Slug
    """Split that was looked at while searching."""


class Provenance(Document):
    """Who made it, with what, after trying what."""

    code: CodeRecord
    """Code."""
    environment: EnvironmentRecord
    """Environment."""
    notebook: Digest | None = None
    """Digest of the notebook; null where there was none."""
    journal: Digest | None = None
    """Digest of the log of interactive steps."""
    n_steps: Count | None = None
    """Steps in that log."""
    search: SearchRecord
    """Search and selection."""


class Spec(Document):
    """What leaves the workbench: the edit, everything it needs, and what speaks against it."""

    schema_version: Literal["workbench.spec/1"] = "workbench.spec/1"
    """Version of this document type."""
    kind: Kind
    """`edit` ships in the model; `diagnostic` is for measuring only and never deployed; `monitor` changes nothing."""
    name: Slug
    """Name of the spec."""
    title: Title
    """What it is for, in one line."""
    purpose: Text
    """Which harm, whose definition, for whom."""
    why_an_edit: Text
    """Why an activation edit rather than a fine-tune, a classifier or a prompt."""
    author: Title
    """Who made it; self-declared until documents are signed."""
    created: Time
    """When this document was written."""
    subject: SubjectRecord
    """The model."""
    dictionaries: tuple[DictionaryRecord, ...] = ()
    """Dictionaries that edits, gates or monitors refer to."""
    sites: tuple[SiteRecord, ...]
    """Where each site that is read or written lives."""
    features: tuple[FeatureRecord, ...] = ()
    """What is known of each edited or watched feature."""
    edits: Annotated[tuple[EditDocument, ...], Field(max_length=256)]
    """What changes in the forward pass; empty for a monitor."""
    order: Literal["simultaneous"] = "simultaneous"
    """Every edit at a site reads the unedited stream of that site; their changes are summed."""
    error_term: Literal["preserved"] = "preserved"
    """What becomes of what a dictionary does not explain."""
    compute_dtype: Literal["float32"] = "float32"
    """Precision that changes are computed in, whatever the subject's."""
    tensors: TensorFile
    """What `tensors.safetensors` holds."""
    known_answers: KnownAnswers
    """How a runtime proves that it applies this edit."""
    limitations: Annotated[tuple[Text, ...], Field(min_length=1)]
    """What is unknown, weak or failed; at least one."""
    invalid_when: tuple[Condition, ...] = ()
    """What voids the justification."""
    monitoring: tuple[MonitorRecord, ...] = ()
    """What would tell in production."""
    provenance: Provenance
    """How it came about."""
    unmeasured: Unmeasured = Field(default_factory=dict)
    """What a reader might expect here and was not done → why."""
    supersedes: Digest | None = None
    """Spec that this one replaces."""

    @model_validator(mode="after")
    def _consistent(self) -> "Spec":
        _check_kind(self)
        dictionaries = {one.id: one for one in self.dictionaries}
        sites = {site.name for site in self.sites}
        if len(dictionaries) != len(self.dictionaries) or len(sites) != len(self.sites):
            raise ValueError("a dictionary or site is listed twice")
        described = {(feature.dictionary, feature.index) for feature in self.features}
        if len(described) != len(self.features):
            raise ValueError("a feature is described twice")
        for target in (target for edit in self.edits for target in edit.targets):
            if missing := {read_site(target), written_site(target)} - sites:
                raise ValueError(f"site {min(missing)} is edited and not among the sites")
            if target.kind == "feature":
                home = dictionaries.get(target.dictionary)
                name = f"feature {target.dictionary}:{target.index}"
                if home is None or target.index >= home.d_dict:
                    raise ValueError(f"{name} is edited and no dictionary here has it")
                if (target.read, target.write, target.scaling) != (home.read_site, home.write_site, home.scaling):
                    raise ValueError(f"{name} says other sites or another scaling than its dictionary")
                if (target.dictionary, target.index) not in described:
                    raise ValueError(f"{name} is edited and not described")
        names = [tensor.name for tensor in self.tensors.tensors]
        if names != sorted(set(names)):
            raise ValueError("tensors are listed by name, each once")
        if set(names) != {key for edit in self.edits for target in edit.targets for key in target_keys(target)}:
            raise ValueError("the listed tensors are not those that the edits name")
        return self


def _check_kind(spec: Spec) -> None:
    if spec.kind == "monitor":
        if spec.edits or not spec.monitoring:
            raise ValueError("a monitor has no edits and watches at least one feature")
        return
    if not spec.edits:
        raise ValueError(f"a spec of kind {spec.kind} has at least one edit")
    if len(spec.known_answers.answers) < MIN_KNOWN_ANSWERS:
        raise ValueError(f"{len(spec.known_answers.answers)} known answers, at least {MIN_KNOWN_ANSWERS} are needed")
