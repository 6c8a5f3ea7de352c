"""Panels that draw the bench's objects in a notebook; Python owns their state, the page draws it."""

from __future__ import annotations

from workbench.core import lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    {
        "FeatureCard": "feature_card",
        "SteeringBench": "steering_bench",
        "TokenStrip": "token_strip",
        "View": "base",
    },
)
