"""Applying and re-measuring a bundle on plain `transformers`, as a pipeline does."""

from __future__ import annotations

from workbench.core import lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    {
        "Applied": "apply",
        "Report": "remeasure",
        "open_live": "live",
    },
)
