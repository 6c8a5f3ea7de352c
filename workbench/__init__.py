"""Explore SAE features and circuits of a language model, steer it, and export what holds as a review-ready spec.

Example:
    >>> import workbench as wb
    >>> b = wb.open("organism", project="first_look")
    >>> b.rank("jailbreak_resistance")

Importing this costs no torch; `open` does.
"""

from __future__ import annotations

from workbench.core import lazy as _lazy

__version__ = "0.1.0"

_names, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        "open": "session",
        "verify": "session",
        "apply": "session",
        "edits": "session",
        "subjects": "session",
    },
)
