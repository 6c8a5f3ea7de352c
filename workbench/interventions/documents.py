"""How targets and positions become JSON documents with named tensors, and come back exactly.

A spec bundle holds an edit as a document, which people read, and its rows as float32 tensors, which they don't. The
document names every tensor it needs; a field that is missing or unknown is an error, never a default.

Example of a target:
    {"kind": "direction", "name": "harm", "site": "resid.2", "read": "edit0.read", "write": "edit0.write"}
"""

from __future__ import annotations

from torch import Tensor

from workbench.core.errors import EditError
from workbench.interventions.positions import Positions
from workbench.interventions.targets import DirectionTarget, FeatureTarget
from workbench.models.rows import FeatureRows
from workbench.models.sites import Site

_FEATURE = ("kind", "dictionary", "index", "read", "write", "activation", "scaling", "label", "rows")
_DIRECTION = ("kind", "name", "site", "read", "write")
_ROWS = ("W_enc", "b_enc", "W_dec", "threshold", "r_mag", "b_gate", "b_mag", "b_in")


def take(document: object, fields: tuple[str, ...], where: str) -> list:
    """Give a document's fields in order.

    Raises:
        EditError: It is no object, or fields are missing or unknown.
    """
    if not isinstance(document, dict):
        raise EditError(f"expected an object, got {type(document).__name__}", where=where)
    missing, unknown = [f for f in fields if f not in document], sorted(set(document) - set(fields))
    if missing or unknown:
        raise EditError(f"missing fields {missing}, unknown fields {unknown}", where=where)
    return [document[name] for name in fields]


def write_positions(positions: Positions) -> dict:
    """Give the document of positions."""
    return {
        "where": positions.where,
        "explicit": list(positions.explicit),
        "exclude_special": positions.exclude_special,
    }


def read_positions(document: object, where: str) -> Positions:
    """Rebuild positions.

    Raises:
        EditError: A field is missing, unknown or impossible.
    """
    kind, explicit, exclude = take(document, ("where", "explicit", "exclude_special"), f"positions of {where}")
    return Positions(kind, tuple(explicit), exclude)


def write_target(target: FeatureTarget | DirectionTarget, prefix: str, tensors: dict[str, Tensor]) -> dict:
    """Give a target's document and add its tensors, under names that begin with the prefix."""
    if isinstance(target, DirectionTarget):
        names = {side: f"{prefix}.{side}" for side in ("read", "write")}
        tensors.update({name: getattr(target, side) for side, name in names.items()})
        return {"kind": "direction", "name": target.name, "site": str(target.site), **names}
    names = {field: f"{prefix}.{field}" for field in _ROWS if getattr(target.rows, field) is not None}
    tensors.update({name: getattr(target.rows, field) for field, name in names.items()})
    return {
        "kind": "feature",
        "dictionary": target.dictionary_id,
        "index": target.index,
        "read": str(target.read),
        "write": str(target.write),
        "activation": target.rows.activation,
        "scaling": target.rows.scaling,
        "label": target.label,
        "rows": names,
    }


def read_target(document: object, tensors: dict[str, Tensor], where: str) -> FeatureTarget | DirectionTarget:
    """Rebuild a target.

    Raises:
        EditError: A field is missing or unknown, or a named tensor is not there.
    """
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind == "direction":
        _, name, site, read, write = take(document, _DIRECTION, where)
        return DirectionTarget(name, Site.parse(site), _tensor(tensors, read, where), _tensor(tensors, write, where))
    if kind != "feature":
        raise EditError(f"a target is a feature or a direction, got kind {kind!r}", where=where)
    _, dictionary, index, read, write, activation, scaling, label, names = take(document, _FEATURE, where)
    if not isinstance(names, dict) or not set(names) <= set(_ROWS):
        raise EditError(f"rows must name some of {list(_ROWS)}, got {names!r}", where=where)
    if not {"W_enc", "b_enc", "W_dec"} <= set(names):
        raise EditError(f"rows need W_enc, b_enc and W_dec, got {sorted(names)}", where=where)
    rows = FeatureRows(
        index=(index,),
        activation=activation,
        scaling=scaling,
        rescale=read == write,
        **{field: _tensor(tensors, names[field], where) if field in names else None for field in _ROWS},
    )
    return FeatureTarget(dictionary, index, Site.parse(read), Site.parse(write), rows, label)


def _tensor(tensors: dict[str, Tensor], name: str, where: str) -> Tensor:
    if name not in tensors:
        raise EditError(
            f"no tensor {name!r}", where=where, hint=f"the file holds {', '.join(sorted(tensors)) or 'none'}"
        )
    return tensors[name]
