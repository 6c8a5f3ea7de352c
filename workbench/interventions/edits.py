"""Edits: what is changed in the forward pass, as values that can be checked, described, stored and signed.

An edit reads one target (a feature's activation, a direction's projection) at chosen tokens and writes a change along
one row. All edits of one site read the stream as it was before any of them, and their changes are summed:

    x ← x + Σ k·w        k = s(x)·(t(a) − a), w = W_dec[f]        for a feature with activation a
                         k = t(p) − p,        w = v/‖v‖           for a direction v with projection p = x·v/‖v‖
                         k = value,           w = v               for `add` on a direction v

t is the operation below, s(x) the factor of dictionaries that scale their input, and everything the dictionary does
not explain (its error term) stays as it was.

| operation | t(a) | counts as fired where |
|---|---|---|
| `add` | a + value (a direction: value × vector as given, in stream units) | always |
| `set` | value | always |
| `set_if_active` | value where a > 0, else a | a > 0 |
| `scale` | value · a | a ≠ 0 |
| `cap` / `floor` | min / max of a and value | a above / below value |
| `zero_ablate` | 0 | a ≠ 0 |
| `mean_ablate` | value, the mean of a on some corpus | always |
| `project_out` | the stream's projection on the unit row goes to 0, whatever the encoder says | always |
| `projection_cap` | the same projection, min of it and value | above value |

Example:
    >>> e = edits.scale(feature, 0.0) + edits.add(harm, -0.5, positions="generated", gate=harm > 0.9)
    >>> e.describe()["sentence"]
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

from torch import Tensor

from workbench.core.canonical import digest, sha256_hex
from workbench.core.errors import EditError
from workbench.interventions.documents import read_positions, read_target, take, write_positions, write_target
from workbench.interventions.operations import FORMULAS, ON_PROJECTION, SENTENCES, VALUELESS, Op
from workbench.interventions.positions import Positions
from workbench.interventions.targets import (
    DirectionTarget,
    FeatureTarget,
    Gate,
    Number,
    as_target,
    check_number,
    depth,
    read_site,
    write_site,
)
from workbench.models.sites import Site

ALL = Positions()
"""Every token but special ones."""


@dataclass(frozen=True, eq=False)
class Edit:
    """One change of one target.

    Attributes:
        op: The operation, one of `operations.Op`.
        target: A feature or a direction.
        value: In the units of the target's activation; `scale`: a factor; absent for `zero_ablate`, `project_out`.
        positions: Tokens it applies to.
        gate: Condition per token; its target must be read at or before the site that is written.
        max_ratio: Largest ‖change‖ / ‖stream‖ per token; the change is shortened to it.

    Raises:
        EditError: An unknown operation; a value that is missing, unwanted or not finite; a ratio that is not
            positive; a decoder row of norm 0 to project on; a gate that is read too late.
    """

    op: str
    target: FeatureTarget | DirectionTarget
    value: Number | None = None
    positions: Positions = ALL
    gate: Gate | None = None
    max_ratio: Number | None = None

    def __post_init__(self):
        if self.op not in get_args(Op):
            raise EditError(f"no operation {self.op!r}", hint=f"one of {', '.join(get_args(Op))}")
        where = f"{self.op} of {self.target.name}"
        if self.op in VALUELESS and self.value is not None:
            raise EditError(f"{self.op} takes no value, got {self.value!r}", where=where)
        if self.op not in VALUELESS:
            if self.value is None:
                raise EditError(f"{self.op} needs a value", where=where, hint=f"edits.{self.op}(target, value)")
            object.__setattr__(self, "value", check_number(self.value, f"value of {where}"))
        if self.max_ratio is not None:
            object.__setattr__(self, "max_ratio", check_number(self.max_ratio, f"max_ratio of {where}"))
            if self.max_ratio <= 0:
                raise EditError(f"max_ratio must be above 0, got {self.max_ratio:g}", where=where)
        if self.op in ON_PROJECTION and isinstance(self.target, FeatureTarget) and not self.target.write_row.any():
            raise EditError("the decoder row has norm 0: there is nothing to project on", where=where)
        if self.gate is not None and depth(read_site(self.gate.target)) > depth(self.site):
            gated = read_site(self.gate.target)
            raise EditError(f"writes {self.site} before its gate is read at {gated}", where=where)

    @property
    def site(self) -> Site:
        """Site that is written."""
        return write_site(self.target)

    @property
    def reads(self) -> frozenset[Site]:
        """Every site that has to be seen to apply it."""
        sites = {self.site, read_site(self.target)}
        return frozenset(sites | {read_site(self.gate.target)} if self.gate else sites)

    def describe(self) -> dict[str, str]:
        """Give one plain sentence and one formula."""
        what = f"the {'projection on' if self._projects else 'activation of'} {self.target.name}"
        value = "" if self.value is None else f"{self.value:g}"
        verb = SENTENCES[self.op].format(value=value, what=what)
        if self.op == "add" and isinstance(self.target, DirectionTarget):
            verb = f"{value} × {self.target.name} is added"
        sentence = f"at {self.site}, {verb}, on {self.positions.describe()}"
        if self.gate is not None:
            sentence += f", {self.gate.describe()}"
        if self.max_ratio is not None:
            sentence += f", changing it by at most {self.max_ratio:g} of its norm"
        return {"sentence": sentence, "formula": f"{self.site} ← x + {self._formula()}"}

    def _formula(self) -> str:
        name, value = self._symbol, "" if self.value is None else f"{self.value:g}"
        if self.op == "add" and isinstance(self.target, DirectionTarget):
            return f"({value})·{name}"
        a = f"⟨x, {name}̂⟩" if self._projects else f"a[{name}]"
        row = f"{name}̂" if self._projects else f"W_dec[{name}]"
        new = FORMULAS[self.op].format(value=value, a=a)
        scaled = "s(x)·" if isinstance(self.target, FeatureTarget) and self._scaled and not self._projects else ""
        return f"{scaled}{new}·{row}"

    @property
    def _projects(self) -> bool:
        return isinstance(self.target, DirectionTarget) or self.op in ON_PROJECTION

    @property
    def _scaled(self) -> bool:
        return isinstance(self.target, FeatureTarget) and self.target.rows.scaling != "none"

    @property
    def _symbol(self) -> str:
        one = self.target
        return one.name if isinstance(one, DirectionTarget) else f"{one.dictionary_id}:{one.index}"

    def __repr__(self) -> str:
        return f"Edit({self.describe()['sentence']})"


@dataclass(frozen=True, eq=False)
class Edits:
    """Edits that are applied together; `+` puts two collections into one.

    Attributes:
        items: The edits; none is a change of nothing, bit for bit.

    Raises:
        EditError: Two edits that contradict each other or are the same.
    """

    items: tuple[Edit, ...] = ()

    def __post_init__(self):
        for one, other in itertools.combinations(self.items, 2):
            _check_pair(one, other)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Sites that are written, in the order a forward pass computes them."""
        return tuple(sorted({one.site for one in self.items}, key=depth))

    @property
    def reads(self) -> tuple[Site, ...]:
        """Sites that are seen or written, in the order a forward pass computes them."""
        return tuple(sorted({site for one in self.items for site in one.reads}, key=depth))

    def describe(self) -> dict[str, str]:
        """Give one plain sentence (`sentence`) and one formula (`formula`), both made from the data."""
        if not self.items:
            return {"sentence": "Nothing is changed.", "formula": "x ← x"}
        parts = [one.describe() for one in self.items]
        sentence = "; ".join(part["sentence"] for part in parts)
        by_site: dict[str, list[str]] = {}
        for part in parts:
            site, _, change = part["formula"].partition(" ← x + ")
            by_site.setdefault(site, []).append(change)
        formula = "; ".join(f"{site} ← x + {' + '.join(changes)}" for site, changes in by_site.items())
        return {"sentence": f"{sentence[0].upper()}{sentence[1:]}.", "formula": formula}

    def to_doc(self) -> tuple[list[dict], dict[str, Tensor]]:
        """Give JSON-able documents and the float32 tensors that they name; `from_doc` is the exact inverse."""
        documents: list[dict] = []
        tensors: dict[str, Tensor] = {}
        for number, one in enumerate(self.items):
            target = write_target(one.target, f"edit{number}", tensors)
            gate = None
            if one.gate is not None:
                scored = write_target(one.gate.target, f"edit{number}.gate", tensors)
                gate = {"target": scored, "threshold": one.gate.threshold, "above": one.gate.above}
            documents.append(
                {
                    "op": one.op,
                    "site": str(one.site),
                    "target": target,
                    "value": one.value,
                    "positions": write_positions(one.positions),
                    "gate": gate,
                    "max_ratio": one.max_ratio,
                }
            )
        return documents, tensors

    @classmethod
    def from_doc(cls, documents: Iterable[dict], tensors: dict[str, Tensor]) -> "Edits":
        """Rebuild edits from their documents and tensors.

        Raises:
            EditError: A field that is missing or unknown, a tensor that is not there, a site that is not the
                target's, or a value that an edit refuses.
            SiteError: A site of no known name.
        """
        items = []
        for number, document in enumerate(documents):
            where = f"edit {number}"
            fields = ("op", "site", "target", "value", "positions", "gate", "max_ratio")
            op, site, target, value, positions, gate, max_ratio = take(document, fields, where)
            opened = None
            if gate is not None:
                scored, threshold, above = take(gate, ("target", "threshold", "above"), f"gate of {where}")
                opened = Gate(read_target(scored, tensors, f"gate of {where}"), threshold, above)
            chosen = read_positions(positions, where)
            one = Edit(op, read_target(target, tensors, where), value, chosen, opened, max_ratio)
            if str(one.site) != site:
                raise EditError(f"says site {site!r}, its target writes {str(one.site)!r}", where=where)
            items.append(one)
        return cls(tuple(items))

    @cached_property
    def _digest(self) -> str:
        documents, tensors = self.to_doc()
        for document in documents:
            for target in (document["target"], (document["gate"] or {}).get("target", {})):
                target.pop("label", None)
        hashes = {
            name: {"shape": list(one.shape), "sha256": sha256_hex(one.numpy().tobytes())}
            for name, one in tensors.items()
        }
        return digest({"edits": documents, "tensors": hashes})

    def digest(self) -> str:
        """Give the SHA-256 of what is changed: documents and tensors, without the labels people gave."""
        return self._digest

    def __add__(self, other: "Edits") -> "Edits":
        if not isinstance(other, Edits):
            return NotImplemented
        return Edits(self.items + other.items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Edits) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.items)

    def __repr__(self) -> str:
        return f"Edits({self.describe()['sentence']})"


def _check_pair(one: Edit, other: Edit) -> None:
    """Refuse two edits of one target whose outcome would depend on which is meant to win."""
    same = one.site == other.site and one.target.identity == other.target.identity
    apart = one.gate is not None and other.gate is not None and one.gate.disjoint(other.gate)
    if not same or apart or not one.positions.overlaps(other.positions):
        return
    both = f"{one.describe()['sentence']}, and {other.describe()['sentence']}"
    values = {one.op: one.value, other.op: other.value}
    if values.keys() == {"cap", "floor"}:
        if values["cap"] < values["floor"]:
            raise EditError(f"cap {values['cap']:g} is below floor {values['floor']:g}: {both}")
        return
    if one.op == other.op and one.value == other.value:
        raise EditError(f"the same edit twice: {both}", hint="keep one; to double it, double its value")
    raise EditError(
        f"two edits of one target at the same tokens: {both}",
        hint="keep one, or give them positions or gates that cannot meet; cap and floor may go together",
    )


def _edit(op: str, target: object, value: Number | None, positions: object, gate: Gate | None, ratio: object):
    chosen = Positions.of(positions)  # type: ignore[arg-type]
    return Edits((Edit(op, as_target(target), value, chosen, gate, ratio),))  # type: ignore[arg-type]


def add(target: object, value: Number, *, positions="all", gate: Gate | None = None, max_ratio=None) -> Edits:
    """Add to a feature's activation, or value × its vector to a direction's site; arguments as in `Edit`."""
    return _edit("add", target, value, positions, gate, max_ratio)


def set(target: object, value: Number, *, positions="all", gate: Gate | None = None, max_ratio=None) -> Edits:
    """Set the activation to a value, whether it was active or not."""
    return _edit("set", target, value, positions, gate, max_ratio)


def set_if_active(target: object, value: Number, *, positions="all", gate=None, max_ratio=None) -> Edits:
    """Set the activation to a value where it is above 0."""
    return _edit("set_if_active", target, value, positions, gate, max_ratio)


def scale(target: object, value: Number, *, positions="all", gate: Gate | None = None, max_ratio=None) -> Edits:
    """Multiply the activation by a factor."""
    return _edit("scale", target, value, positions, gate, max_ratio)


def cap(target: object, value: Number, *, positions="all", gate: Gate | None = None, max_ratio=None) -> Edits:
    """Keep the activation at or below a value."""
    return _edit("cap", target, value, positions, gate, max_ratio)


def floor(target: object, value: Number, *, positions="all", gate: Gate | None = None, max_ratio=None) -> Edits:
    """Keep the activation at or above a value."""
    return _edit("floor", target, value, positions, gate, max_ratio)


def zero_ablate(target: object, *, positions="all", gate: Gate | None = None, max_ratio=None) -> Edits:
    """Set the activation to 0."""
    return _edit("zero_ablate", target, None, positions, gate, max_ratio)


def mean_ablate(target: object, value: Number, *, positions="all", gate=None, max_ratio=None) -> Edits:
    """Set the activation to its mean on a corpus that the caller measured."""
    return _edit("mean_ablate", target, value, positions, gate, max_ratio)


def project_out(target: object, *, positions="all", gate: Gate | None = None, max_ratio=None) -> Edits:
    """Remove the stream's projection on a direction, or on a feature's decoder row."""
    return _edit("project_out", target, None, positions, gate, max_ratio)


def projection_cap(target: object, value: Number, *, positions="all", gate=None, max_ratio=None) -> Edits:
    """Keep the stream's projection on a direction, or on a feature's decoder row, at or below a value."""
    return _edit("projection_cap", target, value, positions, gate, max_ratio)
