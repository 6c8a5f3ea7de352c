"""The review-ready spec: its documents, their strict reading and writing, their verdicts and their page. No torch."""

from __future__ import annotations

from workbench.core import lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    {
        "Bundle": "bundle",
        "Outcomes": "outcomes",
        "Verification": "verify",
        "documents": "documents:",
        "read_bundle": "bundle",
        "summary_text": "summary",
        "write_bundle": "bundle",
    },
)
