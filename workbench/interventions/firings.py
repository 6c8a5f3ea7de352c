"""How often an edit really acted, so that a silently unsteered run cannot pass for a measurement.

Serving stacks fail quietly: a hook that is never called, positions that hold no token, a gate that never opens. Every
edit counts each of these stages, and an edit that touched no token is an error that says which stage it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.core.errors import FiringError
from workbench.interventions.edits import Edit
from workbench.interventions.operations import IDLE


@dataclass
class Firing:
    """What one edit did, over all forward passes of a run.

    Attributes:
        edit: The edit, in words.
        calls: Times its module was called.
        selected: Tokens in its positions.
        open: Those of them where its gate was open; all of them without a gate.
        touched: Those of them where the operation acted (see the table in `edits`).
        mean_ratio: Mean of ‖change‖ / ‖stream‖ over touched tokens; absent where none was touched.
        max_ratio: The largest of them.
        highest: Largest activation at open tokens; absent where none was open or the operation needs no condition.
        gate_best: The gate score that came closest to opening it, or opened it widest; absent without a gate.
    """

    edit: str
    calls: int = 0
    selected: int = 0
    open: int = 0
    touched: int = 0
    mean_ratio: float | None = None
    max_ratio: float | None = None
    highest: float | None = None
    gate_best: float | None = None

    @property
    def open_share(self) -> float | None:
        """Share of selected tokens where the gate was open; absent where no token was selected."""
        return self.open / self.selected if self.selected else None


class Counters:
    """Sums over forward passes, kept on the device until somebody reads them.

    Args:
        n: Number of edits.
        device: Where their streams live.
    """

    def __init__(self, n: int, device: torch.device):
        self.calls, self.selected = 0, [0] * n
        self._open = torch.zeros(n, dtype=torch.long, device=device)
        self._touched, self._sum = self._open.clone(), torch.zeros(n, dtype=torch.float64, device=device)
        self._max = torch.zeros(n, device=device)
        self._highest = torch.full((n,), -torch.inf, device=device)
        self._gate_best = self._highest.clone()

    def select(self, counts: Sequence[int]) -> None:
        """Count one call and the tokens in each edit's positions."""
        self.calls += 1
        self.selected = [old + new for old, new in zip(self.selected, counts, strict=True)]

    def add(
        self,
        allowed: Bool[Tensor, "tokens n"],
        touched: Bool[Tensor, "tokens n"],
        ratio: Float[Tensor, "tokens n"],
        highest: Float[Tensor, " n"] | None,
    ) -> None:
        """Count what was done to some tokens; the ratio is 0 wherever nothing was."""
        self._open += allowed.sum(0)
        self._touched += touched.sum(0)
        self._sum += ratio.sum(0, dtype=torch.float64)
        self._max = self._max.maximum(ratio.amax(0))
        if highest is not None:
            self._highest = self._highest.maximum(highest)

    def see_gates(self, gated: list[int], best: Float[Tensor, " n_gates"]) -> None:
        """Keep the score of each gate that opens it widest, negated where it opens below."""
        self._gate_best[gated] = self._gate_best[gated].maximum(best)

    def read(self, edits: Sequence[Edit]) -> list[Firing]:
        """Give what each edit did so far."""
        tensors = (self._open, self._touched, self._sum, self._max, self._highest, self._gate_best)
        columns = zip(*(one.tolist() for one in tensors), strict=True)
        found = []
        for edit, selected, (opened, touched, total, most, highest, gate) in zip(
            edits, self.selected, columns, strict=True
        ):
            firing = Firing(edit.describe()["sentence"], self.calls, selected, opened, touched)
            if touched:
                firing.mean_ratio, firing.max_ratio = total / touched, most
            if highest > -float("inf"):
                firing.highest = highest
            if edit.gate is not None and gate > -float("inf"):
                firing.gate_best = gate if edit.gate.above else -gate
            found.append(firing)
        return found


def check_fired(edits: tuple[Edit, ...], firings: tuple[Firing, ...]) -> None:
    """Refuse a run in which an edit touched nothing.

    Raises:
        FiringError: Says for each such edit where it stopped.
    """
    idle = [(one, firing) for one, firing in zip(edits, firings, strict=True) if not firing.touched]
    if not idle:
        return
    reasons = "; ".join(f"“{firing.edit}”: {_reason(one, firing)}" for one, firing in idle)
    raise FiringError(
        f"{len(idle)} of {len(edits)} edits touched no token: {reasons}",
        where=", ".join(sorted({str(one.site) for one, _ in idle})),
        hint="allow_idle=True accepts a run in which an edit does nothing",
    )


def _reason(edit: Edit, firing: Firing) -> str:
    if not firing.calls:
        return "its module was never called in this thread, no forward pass ran while the edit was on"
    if not firing.selected:
        skipped = ", which leave out special tokens" if edit.positions.exclude_special else ""
        return f"no token is in its positions ({edit.positions.describe()}{skipped}) in {firing.calls} passes"
    if not firing.open:
        seen = f"; the nearest score was {firing.gate_best:g}" if firing.gate_best is not None else ""
        return f"its gate never opened on {firing.selected} tokens ({edit.gate.describe()}){seen}"
    seen = f", highest activation {firing.highest:g}" if firing.highest is not None else ""
    need = IDLE.get(edit.op, "active")
    return f"{edit.target.name} was never {need} on {firing.open} tokens{seen}"
