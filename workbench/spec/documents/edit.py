"""The edit as data: which feature or direction, what is done to it, where, when, how hard.

An edit document holds no tensor; it names keys of `tensors.safetensors`. These are exactly the documents that
`Edits.to_doc()` gives and `Edits.from_doc()` takes. What an edit does is said once, by `workbench.spec.describe`, from
these fields and from nothing an author writes.
"""

from __future__ import annotations

import copy
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from workbench.core.canonical import digest, sha256_hex
from workbench.spec.documents.base import Count, DictionaryId, Document, SiteName, Slug, TensorKey

Op = Literal[
    "add",
    "set",
    "set_if_active",
    "scale",
    "cap",
    "floor",
    "zero_ablate",
    "mean_ablate",
    "project_out",
    "projection_cap",
]
VALUELESS = frozenset({"zero_ablate", "project_out"})
"""Operations that are complete without a value."""
ON_PROJECTION = frozenset({"project_out", "projection_cap"})
"""Operations that act on the stream's projection on the unit row, for features too."""


class FeatureTargetDocument(Document):
    """A feature of a dictionary."""

    kind: Literal["feature"]
    """Tag of the union."""
    dictionary: DictionaryId
    """Id of the dictionary, as in `spec.dictionaries`."""
    index: Count
    """Row of the feature, from 0."""
    read: SiteName
    """Site where its activation is read."""
    write: SiteName
    """Site where its decoder row is written."""
    activation: Literal["relu", "jumprelu", "gated"]
    """Its activation function."""
    scaling: Literal["none", "layer_norm", "constant_norm"]
    """Normalisation of the dictionary's input, which the written row is scaled back by."""
    label: Annotated[str, Field(max_length=500)]
    """What the feature is believed to mean: a hypothesis, not part of what the edit does; may be empty."""
    rows: Annotated[dict[Slug, TensorKey], Field(min_length=1, max_length=16)]
    """Row name (`W_enc`, `b_enc`, `W_dec`, `threshold`, …) → key in `tensors.safetensors`."""


class DirectionTargetDocument(Document):
    """A direction that needs no dictionary: a probe, a difference of means, a persona vector."""

    kind: Literal["direction"]
    """Tag of the union."""
    name: Annotated[str, Field(min_length=1, max_length=200)]
    """What the direction is called."""
    site: SiteName
    """Site that is read and written."""
    read: TensorKey
    """Key of the vector whose unit vector is read."""
    write: TensorKey
    """Key of the vector that is written."""


TargetDocument = Annotated[FeatureTargetDocument | DirectionTargetDocument, Field(discriminator="kind")]


class PositionsDocument(Document):
    """Which token positions an edit touches."""

    where: Literal["all", "after_first", "prompt", "generated", "last", "explicit"]
    """`after_first` is all but position 0; `last` is the last prompt token."""
    explicit: Annotated[tuple[Count, ...], Field(max_length=4096)]
    """Absolute positions of real tokens, 0 the first; only where `where` is `explicit`."""
    exclude_special: bool
    """Whether BOS and every special token are left alone."""


class GateDocument(Document):
    """A condition, per token, on a score of the unedited stream."""

    target: TargetDocument
    """Feature (its activation) or direction (the projection on its unit vector) that is scored."""
    threshold: float
    """In the unit of the score."""
    above: bool
    """Whether the edit acts where the score is above the threshold, or below it."""


class EditDocument(Document):
    """One edit of the forward pass; firings and messages count edits from 0 in the order of `spec.edits`."""

    op: Op
    """What is done to the activation or projection."""
    site: SiteName
    """Site that is written."""
    target: TargetDocument
    """What is edited."""
    value: Annotated[float, Field(ge=-1e6, le=1e6)] | None
    """In the feature's own units of activation, or the stream's units for directions; `scale`: a factor; null where
    the operation takes none."""
    positions: PositionsDocument
    """Where in the text."""
    gate: GateDocument | None
    """When; null is always."""
    max_ratio: Annotated[float, Field(gt=0)] | None
    """Largest realised change per token, as a share of the norm of what it is added to; null is no limit."""

    @model_validator(mode="after")
    def _complete(self) -> "EditDocument":
        if (self.value is None) != (self.op in VALUELESS):
            raise ValueError(f"{self.op} {'takes no' if self.op in VALUELESS else 'needs a'} value")
        if (self.positions.where == "explicit") != bool(self.positions.explicit):
            raise ValueError("explicit positions go with where 'explicit', and only with it")
        if self.site != written_site(self.target):
            raise ValueError(f"says site {self.site}, its target writes {written_site(self.target)}")
        return self

    @property
    def targets(self) -> tuple[FeatureTargetDocument | DirectionTargetDocument, ...]:
        """What it edits and, where it has a gate, what it scores."""
        return (self.target, self.gate.target) if self.gate else (self.target,)


def written_site(target: FeatureTargetDocument | DirectionTargetDocument) -> str:
    """Give the site that a target is written to."""
    return target.write if target.kind == "feature" else target.site


def read_site(target: FeatureTargetDocument | DirectionTargetDocument) -> str:
    """Give the site that a target is read from."""
    return target.read if target.kind == "feature" else target.site


def target_keys(target: FeatureTargetDocument | DirectionTargetDocument) -> set[str]:
    """Give the keys of `tensors.safetensors` that a target names."""
    return set(target.rows.values()) if target.kind == "feature" else {target.read, target.write}


def edits_digest(documents: list[dict], tensors: dict[str, np.ndarray]) -> str:
    """Give the identity of an intervention: its documents and float32 tensors, without the labels people gave.

    Args:
        documents: Edit documents as JSON values.
        tensors: Every tensor they name, by key; taken as little-endian float32.
    """
    plain = copy.deepcopy(documents)
    for document in plain:
        for target in (document["target"], (document["gate"] or {}).get("target", {})):
            target.pop("label", None)
    hashes = {
        name: {"shape": list(array.shape), "sha256": sha256_hex(np.ascontiguousarray(array, "<f4").tobytes())}
        for name, array in tensors.items()
    }
    return digest({"edits": plain, "tensors": hashes})
