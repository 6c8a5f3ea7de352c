"""How objects of the bench become widgets, without the bench knowing any.

Widgets stand above the bench and import it, never the other way round. They register a factory for each view here;
an object asks for its view by name. In a process without widgets the request is an error that says what to import.
"""

from __future__ import annotations

from collections.abc import Callable

from workbench.core.errors import WorkbenchError

_factories: dict[str, Callable[..., object]] = {}


def register_view(name: str, factory: Callable[..., object]) -> None:
    """Make a factory the one that builds the view of this name.

    Args:
        name: `tokens`, `card`, `steer`, …
        factory: Takes the bench or its object first, then what the caller passed.
    """
    _factories[name] = factory


def view(name: str, *args: object, **options: object) -> object:
    """Build a view.

    Raises:
        WorkbenchError: No widget registered this name in this process.
    """
    if name not in _factories:
        raise WorkbenchError(
            f"no widget draws {name!r} in this process",
            hint="open the bench with workbench.open, or import workbench.widgets.views first",
        )
    return _factories[name](*args, **options)


def has_view(name: str) -> bool:
    """Whether a widget registered this name."""
    return name in _factories
