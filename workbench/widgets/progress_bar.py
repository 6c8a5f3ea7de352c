"""Long work in a notebook shows how far it is and how long it still takes, in the cell that asked for it.

Work that ends within half a second shows nothing. The bar is plain HTML, so a saved notebook keeps its last state.
"""

from __future__ import annotations

import time
import uuid

from IPython.core.display import HTML
from IPython.core.getipython import get_ipython
from IPython.display import display, update_display

from workbench.widgets.markup import element, visible

_QUIET = 0.5
_EVERY = 0.2


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel."""
    shell = get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None


class NotebookBar:
    """One bar; `workbench.core.progress` starts, advances and finishes it."""

    def __init__(self) -> None:
        self._id, self._shown = uuid.uuid4().hex, False
        self._total: int | None = None
        self._done, self._begun, self._drawn = 0, 0.0, 0.0

    def start(self, label: str, total: int | None) -> None:
        """Begin, showing nothing yet."""
        self._total, self._done, self._begun = total, 0, time.monotonic()

    def advance(self, label: str, steps: int) -> None:
        """Count steps; draw where the work takes long enough to wonder about."""
        self._done += steps
        now = time.monotonic()
        if now - self._begun >= _QUIET and now - self._drawn >= _EVERY:
            self._drawn = now
            self._draw(label, self._told(now - self._begun))

    def finish(self, label: str) -> None:
        """Leave one quiet line that says what was done and how long it took."""
        if self._shown:
            self._draw(label, f"{self._done} steps in {time.monotonic() - self._begun:.1f} s", ended=True)

    def _told(self, seconds: float) -> str:
        if not self._total or not self._done:
            return f"{self._done} steps, {seconds:.0f} s"
        rest = seconds / self._done * (self._total - self._done)
        return f"{self._done} of {self._total}, about {rest:.0f} s left"

    def _draw(self, label: str, text: str, *, ended: bool = False) -> None:
        share = 1.0 if ended or not self._total else min(1.0, self._done / self._total)
        blocks = "█" * round(share * 24)
        line = element(
            "div",
            {"aria-label": f"{label}: {text}"},
            element(
                "span" if ended else "code", {"aria-hidden": "true"}, "✓ " if ended else blocks.ljust(24, "░") + " "
            ),
            element("span", {}, f"{visible(label)} "),
            element("small", {}, text),
        )
        if self._shown:
            update_display(HTML(str(line)), display_id=self._id)
        else:
            display(HTML(str(line)), display_id=self._id)
            self._shown = True
