"""Plans declared before measuring, trials against controls, and the bundle that carries both."""

from __future__ import annotations

from workbench.core import lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    {
        "Draft": "plan",
        "Outcomes": "metrics",
        "TrialMeasurement": "measurement",
        "TrialPlan": "plan",
        "export": "export",
        "measure": "metrics",
        "run": "run:",
        "search": "design",
    },
)
