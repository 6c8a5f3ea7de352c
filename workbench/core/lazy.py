"""Public names that cost nothing until they are used.

An eager `__init__` would pull torch into `import workbench` and sae-lens into the consumer. A package lists where
each public name lives; the module is imported on first access.

Example:
    >>> __getattr__, __dir__, __all__ = attach(__name__, {"Site": "sites", "sites": "sites:"})
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable


def attach(package: str, names: dict[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Give a package's `__getattr__`, `__dir__` and `__all__`.

    Args:
        package: The package's `__name__`.
        names: Public name → where it is, dotted below the package: `"sites"` for the name's definition in that
            module, `"sites:"` for the module itself.
    """

    def __getattr__(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        path, colon, _ = names[name].partition(":")
        module = importlib.import_module(f"{package}.{path}")
        value = module if colon else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__, lambda: sorted(names), sorted(names)
