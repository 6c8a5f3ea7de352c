"""What an edit acts on: one feature of a dictionary, or any direction, with no dictionary at all.

Both carry all that an edit needs and no more: a feature its encoder and decoder rows, a direction the vector that is
read and the vector that is written. The two are equal but for controls, which read the candidate's and write another.
Comparing a target with a number gives a gate.

Example:
    >>> harm = DirectionTarget.of("harm", "resid.2", vector)
    >>> edits.add(harm, -0.5, gate=harm > 0.9)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import EditError
from workbench.models.dictionary import Dictionary
from workbench.models.rows import FeatureRows
from workbench.models.sites import Site

ROWS_SUFFICE = ("relu", "jumprelu", "gated")
"""Activation functions of which one feature can be computed from its own rows. TopK is none: who is among the k
largest depends on every encoder row, and rows alone were wrong on 86 to 89 % of tokens."""

Number = float | int | Real
"""What a person may type for a number; numpy's scalars are `Real`."""

_ORDER = {"z": 0, "head": 1, "attn": 2, "mlp_in": 3, "mlp": 4, "resid": 5}


def depth(site: Site) -> tuple[int, int]:
    """Give a key that sorts sites in the order a forward pass computes them."""
    return site.layer, _ORDER[site.kind]


@dataclass(frozen=True)
class Gate:
    """A condition on one token: the edit acts only where a score is above (or below) a threshold.

    Attributes:
        target: What is scored: a feature's activation, or the projection on a direction's unit vector.
        threshold: In the units of that score.
        above: Open where score > threshold; else where score < threshold.

    Raises:
        EditError: The target is neither feature nor direction, or the threshold is not a finite number.
    """

    target: "FeatureTarget | DirectionTarget"
    threshold: Number
    above: bool = True

    def __post_init__(self):
        object.__setattr__(self, "threshold", check_number(self.threshold, "gate threshold"))

    def disjoint(self, other: "Gate") -> bool:
        """Whether no token can open both."""
        if self.target.identity != other.target.identity or self.above == other.above:
            return False
        low, high = (self, other) if other.above else (other, self)
        return float(low.threshold) <= float(high.threshold)

    def describe(self) -> str:
        """Say when it is open."""
        side = "above" if self.above else "below"
        return f"where {self.target.score_words} is {side} {self.threshold:g}"


class _Comparable:
    """Turns `target > 0.9` into a gate."""

    def __gt__(self, threshold: Number) -> Gate:
        return Gate(self, threshold)  # type: ignore[arg-type]

    def __lt__(self, threshold: Number) -> Gate:
        return Gate(self, threshold, above=False)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class FeatureTarget(_Comparable):
    """One feature: where it is read, where it is written, and its rows.

    Attributes:
        dictionary_id: Which dictionary it is of.
        index: Its row there.
        read: Site whose stream the encoder reads.
        write: Site that the decoder row is written to; another one for transcoders.
        rows: Encoder and decoder rows of this one feature, float32.
        label: What somebody believes it means.

    Raises:
        EditError: More than one feature, an activation function that needs the whole encoder (TopK), a value that
            is not finite, a write site before the read site, or a transcoder that scales back what it writes.
    """

    dictionary_id: str
    index: int
    read: Site
    write: Site
    rows: FeatureRows
    label: str = ""

    def __post_init__(self):
        where = f"feature {self.index} of {self.dictionary_id}"
        if self.rows.activation not in ROWS_SUFFICE:
            raise EditError(
                f"cannot edit a {self.rows.activation} feature from its rows alone",
                where=where,
                hint="save the dictionary for inference as JumpReLU, or edit its decoder direction",
            )
        if tuple(self.rows.index) != (self.index,):
            raise EditError(f"rows are of features {list(self.rows.index)}, expected [{self.index}]", where=where)
        for name, tensor in self.rows.tensors("").items():
            if not bool(torch.isfinite(tensor).all()):
                raise EditError(f"{name.strip('.')} holds NaN or an infinity", where=where)
        if self.rows.scaling != "none" and self.rows.rescale != (self.read == self.write):
            said = "scales" if self.rows.rescale else "does not scale"
            raise EditError(f"reads {self.read}, writes {self.write}, and {said} back what it writes", where=where)
        if depth(self.write) < depth(self.read):
            raise EditError(f"writes {self.write}, which is computed before {self.read} is read", where=where)

    @classmethod
    def of(cls, dictionary: Dictionary, index: int, *, label: str = "") -> "FeatureTarget":
        """Take one feature out of a dictionary.

        Raises:
            DictionaryError: There is no such feature, or rows do not suffice (TopK).
        """
        rows = dictionary.rows([index])
        return cls(dictionary.id, index, dictionary.read_site, dictionary.write_site, rows, label)

    @cached_property
    def write_row(self) -> Float[Tensor, " d_out"]:
        """The decoder row."""
        return self.rows.W_dec[0]

    @cached_property
    def identity(self) -> tuple:
        """Equal for two targets that read the same thing."""
        return "feature", self.dictionary_id, self.index, self.read, self.write

    @property
    def name(self) -> str:
        """Name for messages and descriptions."""
        label = f" “{self.label}”" if self.label else ""
        return f"feature {self.index} of {self.dictionary_id}{label}"

    @property
    def score_words(self) -> str:
        """What a gate on it compares."""
        return f"the activation of {self.name}"


@dataclass(frozen=True, eq=False)
class DirectionTarget(_Comparable):
    """Any direction of the stream at one site: a probe, a difference of means, a decoder row.

    Its activation is the projection of the stream on the unit vector of `read`, in units of the stream. A change of
    it is written along `write` / ‖`read`‖, which is that unit vector where the two are equal; `add` adds
    value × `write` as it is given.

    Attributes:
        name: What people call it.
        site: Site that is read and written.
        read: Vector whose unit vector is read, float32.
        write: Vector along which is written, float32.

    Raises:
        EditError: A vector that is empty or not finite, two of different width, or nothing to read (norm 0).
    """

    name: str
    site: Site
    read: Float[Tensor, " d_model"]
    write: Float[Tensor, " d_write"]

    def __post_init__(self):
        where = f"direction {self.name!r} at {self.site}"
        for side in ("read", "write"):
            vector = getattr(self, side).detach().to("cpu", torch.float32).clone().contiguous()
            if vector.ndim != 1 or not len(vector):
                raise EditError(f"the {side} vector has shape {list(vector.shape)}, expected [d_model]", where=where)
            if not bool(torch.isfinite(vector).all()):
                raise EditError(f"the {side} vector holds NaN or an infinity", where=where)
            object.__setattr__(self, side, vector)
        if float(self.read.norm()) == 0:
            raise EditError("the read vector has norm 0: it points nowhere", where=where)
        if self.read.shape != self.write.shape:
            raise EditError(f"reads width {len(self.read)} and writes width {len(self.write)}", where=where)

    @classmethod
    def of(cls, name: str, site: Site | str, vector: Float[Tensor, " d_model"]) -> "DirectionTarget":
        """Make a direction that reads and writes the same vector.

        Raises:
            SiteError: There is no such site.
        """
        return cls(name, Site.parse(site) if isinstance(site, str) else site, vector, vector)

    @cached_property
    def read_unit(self) -> Float[Tensor, " d_model"]:
        """Unit vector that is read."""
        return self.read / self.read.norm()

    @cached_property
    def write_row(self) -> Float[Tensor, " d_model"]:
        """What one unit of change of the projection writes."""
        return self.write / self.read.norm()

    @cached_property
    def identity(self) -> tuple:
        """Equal for two targets that read the same thing."""
        return "direction", self.site, self.read.numpy().tobytes()

    @property
    def score_words(self) -> str:
        """What a gate on it compares."""
        return f"the projection on {self.name!r} at {self.site}"


Target = FeatureTarget | DirectionTarget


def read_site(target: Target) -> Site:
    """Give the site that a target is read at."""
    return target.site if isinstance(target, DirectionTarget) else target.read


def write_site(target: Target) -> Site:
    """Give the site that a target is written at."""
    return target.site if isinstance(target, DirectionTarget) else target.write


def as_target(what: object) -> Target:
    """Take a target, or the `target` of an object that has one (a feature on the bench, a probe).

    Raises:
        EditError: It is neither.
    """
    found = what if isinstance(what, (FeatureTarget, DirectionTarget)) else getattr(what, "target", None)
    if not isinstance(found, (FeatureTarget, DirectionTarget)):
        raise EditError(
            f"cannot edit a {type(what).__name__}",
            hint="give a feature (b.feature('resid.2', 843)) or DirectionTarget.of(name, site, vector)",
        )
    return found


def check_number(value: object, what: str) -> float:
    """Give a finite float.

    Raises:
        EditError: The value is no number, NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise EditError(f"{what} must be a number, got {value!r}")
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        raise EditError(f"{what} must be finite, got {number}")
    return number + 0.0
