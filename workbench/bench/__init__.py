"""The object that notebooks hold: named subjects, their dictionaries, what was tried, and one model worker."""

from __future__ import annotations

from workbench.core import lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    {
        "Bench": "bench",
        "Candidate": "candidates",
        "Feature": "feature",
        "open_bench": "bench",
        "register_view": "views",
    },
)
