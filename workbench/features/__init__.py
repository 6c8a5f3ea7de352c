"""What a subject's features do: risk axes, rankings, harvests, cards."""

from __future__ import annotations

from workbench.core import lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    {
        "Axis": "axes",
        "AxisItem": "axes",
        "Ranking": "ranking",
        "capture": "capture:",
        "organism_axes": "organism_axes",
        "rank": "ranking",
    },
)
