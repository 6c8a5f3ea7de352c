"""Edits that push as hard as a candidate, at the same tokens, somewhere else: what chance alone would do.

A control keeps everything that is read (encoder rows, gates, positions, and so every signed coefficient per token) and
turns the written rows. All rows of one site are turned by one Haar-random isometry: their norms and angles to each
other stay, so the length of the change stays at every token, exactly. What is left of the effect is what any push of
this size does.

Source: Haar measure on frames by QR with signs fixed (Mezzadri 2007, arXiv math-ph/0609050).

Example:
    >>> control(edits, generator=torch.Generator().manual_seed(seed))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import EditError
from workbench.interventions.edits import Edit, Edits
from workbench.interventions.operations import ON_PROJECTION
from workbench.interventions.targets import DirectionTarget, FeatureTarget, Target
from workbench.models.sites import Site

FAMILIES = ("isotropic",)
"""Families of control directions."""


def control(edits: Edits, *, family: str = "isotropic", generator: torch.Generator) -> Edits:
    """Give the edits with all that they write turned at random, and all that they read as it was.

    Args:
        edits: The candidate.
        family: `isotropic`: every direction of the stream is equally likely.
        generator: Where the direction is drawn from; the same state gives the same control.

    Raises:
        EditError: An unknown family, or nothing to turn.
    """
    if family not in FAMILIES:
        raise EditError(f"no control family {family!r}", hint=f"one of {', '.join(FAMILIES)}")
    if not edits:
        raise EditError("there is nothing to control for: the edit is empty")
    items = [_separate(one) for one in edits]
    rows = [one.target.write if isinstance(one.target, DirectionTarget) else one.target.write_row for one in items]
    turned: list[Tensor] = list(rows)
    places: dict[tuple, list[int]] = {}
    for number, one in enumerate(items):
        # heads of one layer write to one tensor, so they are turned together
        places.setdefault((one.site.layer, one.site.kind), []).append(number)
    for key in sorted(places):
        members = places[key]
        for number, row in zip(members, turn(torch.stack([rows[n] for n in members]), generator), strict=True):
            turned[number] = row
    return Edits(tuple(_written(one, row) for one, row in zip(items, turned, strict=True)))


def dosed(edits: Edits, dose: float | int) -> Edits:
    """Give the edits that write `dose` times as much and read what the original reads; 0 is a no-op, hooks and all.

    Raises:
        EditError: The dose is not finite.
    """
    if not abs(dose) < float("inf"):
        raise EditError(f"a dose is a finite number, got {dose}")
    return rewritten(edits, lambda site, row: row * dose)


def rewritten(edits: Edits, change: Callable[[Site, Tensor], Tensor]) -> Edits:
    """Give the edits with each written row replaced, and all that they read as it was.

    Args:
        edits: The original.
        change: Takes the site and the row, gives the row to write.
    """
    items = [_separate(one) for one in edits]
    rows = [one.target.write if isinstance(one.target, DirectionTarget) else one.target.write_row for one in items]
    return Edits(tuple(_written(one, change(one.site, row)) for one, row in zip(items, rows, strict=True)))


def turn(rows: Float[Tensor, "k d"], generator: torch.Generator) -> Float[Tensor, "k d"]:
    """Apply one Haar-random isometry to rows: norms and inner products stay, the space they span is uniform.

    Only its action on the span is drawn, which costs d·k² instead of d³.
    """
    basis, weights = torch.linalg.qr(rows.T.double())
    gauss = torch.randn(basis.shape, generator=generator, dtype=torch.float64)
    frame, upper = torch.linalg.qr(gauss)
    frame = frame * torch.where(upper.diagonal() < 0, -1.0, 1.0)
    return (frame @ weights).T.float().contiguous()


def _separate(edit: Edit) -> Edit:
    """Split what a feature's projection reads from what it writes; both are its decoder row."""
    if edit.op not in ON_PROJECTION or isinstance(edit.target, DirectionTarget):
        return edit
    one = edit.target
    return dataclasses.replace(edit, target=DirectionTarget(one.name, one.write, one.write_row, one.write_row))


def _written(edit: Edit, row: Float[Tensor, " d_out"]) -> Edit:
    target: Target = edit.target
    if isinstance(target, FeatureTarget):
        rows = dataclasses.replace(target.rows, W_dec=row[None].contiguous())
        return dataclasses.replace(edit, target=dataclasses.replace(target, rows=rows))
    return dataclasses.replace(edit, target=dataclasses.replace(target, write=row))
