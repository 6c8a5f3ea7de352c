"""The edits of a steering bench as rows that a person changes: operation, strength, tokens, feature.

A row of a plain feature edit can be changed freely. One that holds what no field can show (a direction, a gate, chosen
positions) keeps its edit as it was given, and only its strength moves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from workbench.bench.bench import Bench
from workbench.core.errors import InputError
from workbench.interventions.edits import Edit
from workbench.interventions.positions import Positions
from workbench.interventions.targets import FeatureTarget

VALUED = ("add", "set", "set_if_active", "scale", "cap", "floor")
OPS = (*VALUED, "zero_ablate")
POSITIONS = ("after_first", "all", "prompt", "generated", "last")
_FACTOR_RANGE = (0.0, 4.0, 0.05)


@dataclass(frozen=True)
class Row:
    """One edit as shown.

    Attributes:
        op: Operation.
        value: Strength in the operation's unit; absent until the feature's largest activation is known.
        positions: Which tokens.
        dictionary: Id of the feature's dictionary.
        index: The feature.
        item: The edit as given, where it is no plain feature edit.
        number: Its position in the edit that was given.
    """

    op: str
    value: float | int | None
    positions: str = "after_first"
    dictionary: str = ""
    index: int = 0
    item: Edit | None = None
    number: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """Which feature's largest activation its slider stands on."""
        return self.dictionary, self.index

    def edit(self, bench: Bench) -> Edit:
        """Give the edit."""
        if self.item is not None:
            return replace(self.item, value=self.value)
        value = (0.0 if self.value is None else self.value) if self.op in VALUED else None
        target = bench.feature(self.dictionary, self.index).target
        return Edit(self.op, target, value, positions=Positions.of(self.positions))

    def changed(self, bench: Bench, changes: Mapping[str, object]) -> "Row":
        """Give the row with some fields changed, as a person or the page asked.

        Raises:
            InputError: A field, operation or value that does not fit.
            DictionaryError: There is no such feature.
        """
        allowed = {"value"} if self.item is not None else {"op", "value", "positions", "dictionary", "index"}
        if unknown := set(changes) - allowed:
            raise InputError(
                f"cannot change {', '.join(sorted(unknown))}", hint=f"this edit has {', '.join(sorted(allowed))}"
            )
        new = replace(self, **_checked(changes))
        if self.item is None:
            bench.feature(new.dictionary, new.index)
            if (new.op, new.key) != (self.op, self.key) and "value" not in changes:
                same_unit = "scale" not in (new.op, self.op) and new.key == self.key
                new = replace(new, value=self.value if same_unit else None)
        return new

    def filled(self, most: tuple[float, str] | None) -> "Row":
        """Give the row with a first strength where it has none: the feature's largest activation, or twice its own."""
        if self.value is not None or self.item is not None or self.op not in VALUED:
            return self
        if self.op == "scale":
            return replace(self, value=2.0)
        high = most[0] if most else 0.0
        return replace(self, value=float(f"{high:.3g}") if high > 0 else 1.0)

    def to_json(self) -> dict:
        """Give what the page shows."""
        name = f"feature {self.index} of {self.dictionary}" if self.item is None else self.item.target.name
        where = self.positions if self.item is None else self.item.positions.where
        shown = {"op": self.op, "value": self.value, "positions": where, "dictionary": self.dictionary}
        return {**shown, "index": self.index, "name": name, "fixed": self.item is not None}

    def code(self) -> str:
        """Give Python that makes this edit."""
        if self.item is not None:
            return f"wb.edits.Edits((dataclasses.replace(e.items[{self.number}], value={self.value!r}),))"
        value = f", {0.0 if self.value is None else self.value!r}" if self.op in VALUED else ""
        positions = f", positions={self.positions!r}" if self.positions != "all" else ""
        return f"wb.edits.{self.op}(b.feature({self.dictionary!r}, {self.index}){value}{positions})"


def row_of(item: Edit, number: int, bench: Bench) -> Row:
    """Give the row of an edit: free where fields can show all of it."""
    target, positions, value = item.target, item.positions, None if item.value is None else float(item.value)
    plain = item.op in OPS and item.gate is None and item.max_ratio is None
    plain = plain and positions.where in POSITIONS and positions == Positions.of(positions.where)
    if plain and isinstance(target, FeatureTarget) and target.dictionary_id in bench.dictionaries:
        return Row(item.op, value, positions.where, target.dictionary_id, target.index, number=number)
    return Row(item.op, value, item=item, number=number)


def scale_of(row: Row, most: tuple[float, str] | None, label: str) -> dict:
    """Give a row's slider: its range and step in raw units, and what they stand on."""
    if row.op == "scale":
        low, high, step = _FACTOR_RANGE
    else:
        peak = most[0] if most and most[0] > 0 else max(1.0, 2 * abs(row.value or 1.0))
        low, high = (-3 * peak if row.op == "add" else 0.0), 3 * peak
        step = nice((high - low) / 120)
        low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    if row.value is not None:
        low, high = min(low, row.value), max(high, row.value)
    facts = {"low": low, "high": high, "step": step, "label": label, "max": most[0] if most else 0.0}
    note = "never fires on the corpus" if most and most[0] == 0 else ""
    return {**facts, "corpus": most[1] if most else "", "note": note, "site": row.dictionary}


def nice(step: float | int) -> float:
    """Round a step to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= step * 0.999)


def _checked(changes: Mapping[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in changes.items():
        if name == "value":
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"a strength must be a finite number, got {value!r}")
            found[name] = float(value)
        elif name == "index":
            if isinstance(value, bool) or not isinstance(value, int):
                raise InputError(f"a feature's index must be a whole number, got {value!r}")
            found[name] = value
        else:
            known = {"op": OPS, "positions": POSITIONS}.get(name)
            if not isinstance(value, str) or (known and value not in known):
                raise InputError(f"no {name} {value!r}", hint=f"one of {', '.join(known)}" if known else None)
            found[name] = value
    return found
