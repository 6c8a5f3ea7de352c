"""Long work shows how far it is, estimates the rest, and stops cleanly when a person asks.

Work reports to whatever reporter is installed: none by default, rich bars in a terminal (the command line installs
them), a notebook bar (`workbench.widgets` installs it). A `CancelToken` is checked between steps, so nothing is left
half done.

Example:
    >>> for batch in track(batches, "measuring"):
    ...     run(batch)
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Protocol, TypeVar

from workbench.core.errors import Cancelled

T = TypeVar("T")


class Reporter(Protocol):
    """Shows the progress of one piece of work."""

    def start(self, label: str, total: int | None) -> None:
        """Begin a bar of `total` steps, or of unknown length."""

    def advance(self, label: str, steps: int) -> None:
        """Move a bar on."""

    def finish(self, label: str) -> None:
        """End a bar, whether or not it reached its total."""


class CancelToken:
    """A flag that one thread sets and the working thread checks between steps."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask the work to stop at its next step."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked to stop."""
        return self._event.is_set()

    def check(self) -> None:
        """Stop here if somebody asked to.

        Raises:
            Cancelled: `cancel` was called.
        """
        if self.cancelled:
            raise Cancelled("stopped on request", hint="what was finished before is kept")


_reporters: list[Callable[[], Reporter]] = []


@contextlib.contextmanager
def reporting(factory: Callable[[], Reporter]) -> Iterator[None]:
    """Show progress with this kind of reporter while the block runs; the innermost one wins."""
    _reporters.append(factory)
    try:
        yield
    finally:
        _reporters.remove(factory)


def install(factory: Callable[[], Reporter]) -> None:
    """Show progress with this kind of reporter from now on, unless a `reporting` block overrides it."""
    if factory not in _reporters:
        _reporters.insert(0, factory)


class Progress:
    """One bar: `advance` moves it; leaving the block ends it."""

    def __init__(self, label: str, total: int | None = None, *, cancel: CancelToken | None = None):
        self.label, self.total, self.cancel = label, total, cancel
        self._reporter = _reporters[-1]() if _reporters else None

    def __enter__(self) -> Progress:
        if self._reporter:
            self._reporter.start(self.label, self.total)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._reporter:
            self._reporter.finish(self.label)

    def advance(self, steps: int = 1) -> None:
        """Move on by some steps; stops the work here if the token says so."""
        if self._reporter:
            self._reporter.advance(self.label, steps)
        if self.cancel:
            self.cancel.check()


def track(
    items: Iterable[T], label: str, *, total: int | None = None, cancel: CancelToken | None = None
) -> Iterator[T]:
    """Give the items one by one, showing progress; stops between two of them when cancelled."""
    length = total if total is not None else len(items) if isinstance(items, Sized) else None
    with Progress(label, length, cancel=cancel) as bar:
        for item in items:
            yield item
            bar.advance()
