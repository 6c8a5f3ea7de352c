"""The documents of a bundle: strict, frozen types whose file is exactly their canonical bytes."""

from __future__ import annotations

from workbench.core import lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    {
        "AxisDeclaration": "plan",
        "ArmDeclaration": "plan",
        "EditDocument": "edit",
        "Estimate": "measurement",
        "Manifest": "manifest",
        "Measurement": "measurement",
        "Plan": "plan",
        "Spec": "spec",
        "edits_digest": "edit",
    },
)
