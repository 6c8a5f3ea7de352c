"""What an edit does, in one sentence and one formula, made from its document and from nothing an author wrote.

A label is a hypothesis and could lie, so it never appears here: features go by dictionary and index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.spec.documents.edit import (
    ON_PROJECTION,
    DirectionTargetDocument,
    EditDocument,
    FeatureTargetDocument,
    GateDocument,
    PositionsDocument,
)

Target = FeatureTargetDocument | DirectionTargetDocument

_VERBS = {
    "add": "{value} is added to {what}",
    "set": "{what} is set to {value}",
    "set_if_active": "{what} is set to {value} where it is active",
    "scale": "{what} is multiplied by {value}",
    "cap": "{what} is kept at or below {value}",
    "floor": "{what} is kept at or above {value}",
    "zero_ablate": "{what} is set to 0",
    "mean_ablate": "{what} is set to its mean {value}",
    "project_out": "{what} is removed",
    "projection_cap": "{what} is kept at or below {value}",
}
_CHANGES = {
    "add": "({value})",
    "set": "({value} − {a})",
    "set_if_active": "({value} − {a})·[{a} > 0]",
    "scale": "({value} − 1)·{a}",
    "cap": "(min({a}, {value}) − {a})",
    "floor": "(max({a}, {value}) − {a})",
    "zero_ablate": "(0 − {a})",
    "mean_ablate": "({value} − {a})",
    "project_out": "(0 − {a})",
    "projection_cap": "(min({a}, {value}) − {a})",
}
_PLURAL = {
    "add": "{value} is added to {what}",
    "set": "{what} are set to {value}",
    "set_if_active": "{what} are set to {value} where they are active",
    "scale": "{what} are multiplied by {value}",
    "cap": "{what} are kept at or below {value}",
    "floor": "{what} are kept at or above {value}",
    "zero_ablate": "{what} are set to 0",
    "mean_ablate": "{what} are set to their means, {value}",
    "project_out": "{what} are removed",
    "projection_cap": "{what} are kept at or below {value}",
}
_NAMED = 6
"""Most features of a group that a headline names."""
_WHERE = {
    "all": "every token",
    "after_first": "every token after the first",
    "prompt": "every prompt token",
    "generated": "every generated token",
    "last": "the last prompt token",
}


def sentence(edits: Sequence[EditDocument]) -> str:
    """Give one plain sentence of what changes in the forward pass."""
    if not edits:
        return "Nothing is changed."
    text = "; ".join(_sentence(edit) for edit in edits)
    return f"{text[0].upper()}{text[1:]}."


def formula(edits: Sequence[EditDocument]) -> str:
    """Give the change as a formula per site: x is the stream there before any edit, a[…] an activation."""
    if not edits:
        return "x ← x"
    by_site: dict[str, list[str]] = {}
    for edit in edits:
        by_site.setdefault(edit.site, []).append(_change(edit))
    return "; ".join(f"{site} ← x + {' + '.join(changes)}" for site, changes in by_site.items())


def headline(edits: Sequence[EditDocument]) -> str:
    """Give one sentence that stays short: features that are treated alike are told together."""
    if not edits:
        return "Nothing is changed."
    text = "; ".join(_sentence(group[0]) if len(group) == 1 else _together(group) for group in _groups(edits))
    return f"{text[0].upper()}{text[1:]}."


def formulas(edits: Sequence[EditDocument]) -> list[str]:
    """Give one formula per site that stays short: features that are treated alike stand under one sum."""
    if not edits:
        return ["x ← x"]
    by_site: dict[str, list[str]] = {}
    for group in _groups(edits):
        by_site.setdefault(group[0].site, []).append(_change(group[0]) if len(group) == 1 else _sum(group))
    return [f"{site} ← x + {' + '.join(changes)}" for site, changes in by_site.items()]


@dataclass(frozen=True)
class Alike:
    """Edits that differ in their feature and value only.

    Attributes:
        first: The first of them.
        what: What they are of, without a label: `16 features of resid.2`.
        entries: Per edit its feature or direction, its label, and its value.
        tokens: Where they act.
        condition: When.
    """

    first: EditDocument
    what: str
    entries: tuple[tuple[str, str, str], ...]
    tokens: str
    condition: str


def alike(edits: Sequence[EditDocument]) -> list[Alike]:
    """Give the edits for a table with one row per group that is treated alike."""
    return [_alike(group) for group in _groups(edits)]


def target_name(target: Target) -> str:
    """Name a target without its label."""
    return f"feature {target.index} of {target.dictionary}" if target.kind == "feature" else target.name


def _sentence(edit: EditDocument) -> str:
    value = "" if edit.value is None else f"{edit.value:g}"
    score = "projection on" if _projects(edit) else "activation of"
    verb = _VERBS[edit.op].format(value=value, what=f"the {score} {target_name(edit.target)}")
    if edit.op == "add" and edit.target.kind == "direction":
        verb = f"{value} × {edit.target.name} is added"
    text = f"at {edit.site}, {verb}, on {_positions(edit.positions)}"
    if edit.gate is not None:
        text += f", {_gate(edit.gate)}"
    if edit.max_ratio is not None:
        text += f", changing it by at most {edit.max_ratio:g} of its norm"
    return text


def _groups(edits: Sequence[EditDocument]) -> list[list[EditDocument]]:
    """Put together features of one dictionary under one operation, place and condition; directions stand alone."""
    found: dict[tuple, list[EditDocument]] = {}
    for number, edit in enumerate(edits):
        alike = (edit.target.dictionary,) if edit.target.kind == "feature" else (None, number)
        gate = None if edit.gate is None else (_gate(edit.gate), edit.gate.target.kind)
        found.setdefault((edit.site, edit.op, alike, edit.positions, gate, edit.max_ratio), []).append(edit)
    return list(found.values())


def _alike(group: list[EditDocument]) -> Alike:
    first, entries = group[0], []
    for edit in group:
        target, value = edit.target, "" if edit.value is None else f"{edit.value:.4g}"
        feature = target.kind == "feature"
        entries.append((str(target.index), target.label, value) if feature else (target.name, "", value))
    what = target_name(first.target) if len(group) == 1 else f"{len(group)} features of {_home(group).dictionary}"
    condition = "always" if first.gate is None else _gate(first.gate)
    return Alike(first, what, tuple(entries), _positions(first.positions), condition)


def _together(group: list[EditDocument]) -> str:
    first, indices, home = group[0], _indices(group), _home(group)
    named = ", ".join(map(str, indices[:_NAMED])) + (f" and {len(indices) - _NAMED} more" if indices[_NAMED:] else "")
    score = "projections on" if _projects(first) else "activations of"
    what = f"the {score} {len(group)} features of {home.dictionary} ({named})"
    text = f"at {first.site}, {_PLURAL[first.op].format(value=_values(group), what=what)}"
    return text + _sentence(first)[_sentence(first).index(", on ") :]


def _indices(group: list[EditDocument]) -> list[int]:
    return [edit.target.index for edit in group if edit.target.kind == "feature"]


def _home(group: list[EditDocument]) -> FeatureTargetDocument:
    """Give the first target of a group of features, for the dictionary that they share."""
    return next(edit.target for edit in group if edit.target.kind == "feature")


def _values(group: list[EditDocument]) -> str:
    values = [edit.value for edit in group if edit.value is not None]
    if not values or min(values) == max(values):
        return "" if not values else f"{values[0]:g}"
    return f"a value each, {min(values):.3g} to {max(values):.3g}"


def _sum(group: list[EditDocument]) -> str:
    first, indices, home = group[0], ", ".join(map(str, _indices(group))), _home(group)
    values = {edit.value for edit in group}
    value = "" if values == {None} else f"{first.value:g}" if len(values) == 1 else "v_f"
    a, row = ("⟨x, f̂⟩", "f̂") if _projects(first) else ("a[f]", "W_dec[f]")
    scaled = "s(x)·" if home.scaling != "none" and not _projects(first) else ""
    change = f"{scaled}{_CHANGES[first.op].format(value=value, a=a)}·{row}"
    return f"Σ {change}  over f in {home.dictionary}: {indices}"


def _change(edit: EditDocument) -> str:
    target, value = edit.target, "" if edit.value is None else f"{edit.value:g}"
    symbol = f"{target.dictionary}:{target.index}" if target.kind == "feature" else target.name
    if edit.op == "add" and target.kind == "direction":
        return f"({value})·{symbol}"
    a, row = f"a[{symbol}]", f"W_dec[{symbol}]"
    if _projects(edit):
        a, row = f"⟨x, {symbol}̂⟩", f"{symbol}̂"
    scaled = "s(x)·" if target.kind == "feature" and target.scaling != "none" and not _projects(edit) else ""
    return f"{scaled}{_CHANGES[edit.op].format(value=value, a=a)}·{row}"


def _projects(edit: EditDocument) -> bool:
    return edit.target.kind == "direction" or edit.op in ON_PROJECTION


def _positions(positions: PositionsDocument) -> str:
    several = len(positions.explicit) > 1
    listed = f"token{'s' if several else ''} {', '.join(map(str, positions.explicit))}"
    words = _WHERE.get(positions.where, listed)
    if not positions.exclude_special:
        return words
    single = positions.where == "last" or len(positions.explicit) == 1
    return words + (" unless it is special" if single else " except special ones")


def _gate(gate: GateDocument) -> str:
    target = gate.target
    if target.kind == "feature":
        score = f"the activation of {target_name(target)}"
    else:
        score = f"the projection on {target.name!r} at {target.site}"
    return f"where {score} is {'above' if gate.above else 'below'} {gate.threshold:g}"
