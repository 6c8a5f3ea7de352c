"""The edit as data: which feature or direction, what is done to it, where, when, how hard.

An edit document holds no tensor; it names keys of `tensors.safetensors`. What the edit does is said once, by
`workbench.spec.describe`, from these fields and from nothing an author writes.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from workbench.core.canonical import digest, sha256_hex
from workbench.spec.documents.base import Count, Document, SiteName, Slug, TensorKey

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
NEEDS_NO_VALUE = frozenset({"zero_ablate", "project_out"})
"""Operations that are complete without a strength."""


class FeatureTargetDocument(Document):
    """A feature of a dictionary."""

    type: Literal["feature"] = "feature"
    """Tag of the union."""
    dictionary_id: Slug
    """Id of the dictionary, as in `spec.dictionaries`."""
    index: Count
    """Row of the feature, from 0."""
    label: Annotated[str, Field(max_length=500)] = ""
    """What the feature is believed to mean: a hypothesis, not part of what the edit does."""
    read_site: SiteName
    """Where its activation is read."""
    write_site: SiteName
    """Where its decoder row is written."""
    activation: Literal["relu", "jumprelu", "gated"]
    """Its activation function."""
    scaling: Literal["none", "layer_norm", "constant_norm"]
    """Normalisation of the dictionary's input, which the written row is scaled back by."""
    tensors: dict[Slug, TensorKey]
    """Row name (`W_enc`, `b_enc`, `W_dec`, `threshold`, …) → key in `tensors.safetensors`."""


class DirectionTargetDocument(Document):
    """A direction that needs no dictionary: a probe, a difference of means, a persona vector."""

    type: Literal["direction"] = "direction"
    """Tag of the union."""
    name: Annotated[str, Field(min_length=1, max_length=200)]
    """What the direction is called."""
    read_site: SiteName
    """Where the projection is read."""
    write_site: SiteName
    """Where it is written."""
    tensors: dict[Slug, TensorKey]
    """`read` and `write` → key in `tensors.safetensors`."""


TargetDocument = Annotated[FeatureTargetDocument | DirectionTargetDocument, Field(discriminator="type")]


class PositionsDocument(Document):
    """Which token positions an edit touches."""

    where: Literal["all", "prompt", "generated", "last", "explicit"] = "all"
    """`last` is the last prompt token."""
    explicit: Annotated[tuple[Count, ...], Field(max_length=4096)] = ()
    """Absolute positions of real tokens, 0 the first, where `where` is `explicit`."""
    exclude_special: bool = True
    """Whether BOS and every special token are left alone."""


class GateDocument(Document):
    """A condition, per token, on a score that is read from the unedited stream."""

    target: TargetDocument
    """Feature (its activation) or direction (the projection on its unit vector) that is scored."""
    threshold: float
    """In the unit of the score."""
    above: bool = True
    """Whether the edit acts where the score is above the threshold, or below it."""


class EditDocument(Document):
    """One edit of the forward pass."""

    id: Slug
    """Name within the spec, `e1`, `e2`, …"""
    op: Op
    """What is done to the activation or projection."""
    value: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    """Strength, in `unit`; null where the operation needs none."""
    unit: Literal["activation", "factor", "projection", "none"]
    """`activation`: the feature's own units; `factor`: multiplies it; `projection`: units of the residual stream."""
    target: TargetDocument
    """What is edited."""
    positions: PositionsDocument = PositionsDocument()
    """Where in the text."""
    gate: GateDocument | None = None
    """When; null is always."""
    max_ratio: Annotated[float, Field(gt=0, le=10)] | None = None
    """Largest realised change per token, as a share of the norm of what it is added to."""
    error_term: Literal["preserved"] = "preserved"
    """What becomes of what the dictionary does not explain."""
    order: Literal["simultaneous"] = "simultaneous"
    """Every edit at a site reads the unedited stream of that site."""
    compute_dtype: Literal["float32"] = "float32"
    """Precision the change is computed in, whatever the subject's."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.value is None and self.op not in NEEDS_NO_VALUE:
            raise ValueError(f"edit {self.id}: {self.op} needs a value")
        if (self.positions.where == "explicit") != bool(self.positions.explicit):
            raise ValueError(f"edit {self.id}: explicit positions go with where 'explicit', and only with it")
        return self


def tensor_keys(edits: tuple[EditDocument, ...]) -> set[str]:
    """Give every key of `tensors.safetensors` that the edits and their gates name."""
    targets = [edit.target for edit in edits] + [edit.gate.target for edit in edits if edit.gate]
    return {key for target in targets for key in target.tensors.values()}


def edits_digest(documents: list[dict], tensors: dict[str, np.ndarray]) -> str:
    """Give the identity of an intervention: its edit documents and the float32 tensors they name.

    Args:
        documents: Edit documents as JSON values.
        tensors: Key → array; converted to little-endian float32.
    """
    rows = {}
    for name, array in tensors.items():
        plain = np.ascontiguousarray(array, "<f4")
        rows[name] = {"shape": list(np.shape(array)), "sha256": sha256_hex(plain.tobytes())}
    return digest({"edits": documents, "tensors": rows})
