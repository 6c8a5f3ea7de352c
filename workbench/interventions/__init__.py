"""What is changed in the forward pass: edits as values, the runtime that applies them, controls that push as hard."""

from __future__ import annotations

from workbench.core import lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    {
        "DirectionTarget": "targets",
        "Edit": "edits",
        "Edits": "edits",
        "FeatureTarget": "targets",
        "Firing": "firings",
        "Gate": "targets",
        "Generation": "generation",
        "Positions": "positions",
        "Runtime": "hooks",
        "SharedPrefix": "prefix",
        "control": "controls",
        "dosed": "controls",
        "edits": "edits:",
        "generate": "generation",
        "last_logits": "runtime",
        "logits": "runtime",
    },
)
