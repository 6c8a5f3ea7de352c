"""The ten operations: what each makes of an activation, where it counts as having acted, and how it is said.

One table, so that what runs, what is counted and what a reader is told cannot drift apart. `a` is a feature's
activation or a direction's projection, `v` the edit's value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

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
VALUELESS = ("zero_ablate", "project_out")
"""Operations that are complete without a value."""
ON_PROJECTION = ("project_out", "projection_cap")
"""Operations that act on the stream's projection on the unit row, for features too."""

CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, v: v.expand_as(a),
    "set": lambda a, v: v - a,
    "set_if_active": lambda a, v: torch.where(a > 0, v - a, 0.0),
    "scale": lambda a, v: v * a - a,
    "cap": lambda a, v: torch.minimum(a, v) - a,
    "floor": lambda a, v: torch.maximum(a, v) - a,
    "zero_ablate": lambda a, v: -a,
    "mean_ablate": lambda a, v: v - a,
    "project_out": lambda a, v: -a,
    "projection_cap": lambda a, v: torch.minimum(a, v) - a,
}
"""t(a) − a of each operation."""

FIRES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "set_if_active": lambda a, v: a > 0,
    "scale": lambda a, v: a != 0,
    "zero_ablate": lambda a, v: a != 0,
    "cap": lambda a, v: a > v,
    "projection_cap": lambda a, v: a > v,
    "floor": lambda a, v: a < v,
}
"""Where an operation has something to do; one that is not listed has, everywhere."""

SENTENCES = {
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
FORMULAS = {
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
"""CHANGES as a reader sees them."""
IDLE = {"cap": "above its cap", "projection_cap": "above its cap", "floor": "below its floor"}
"""What a target never was where FIRES is false everywhere; `active` for the others."""
