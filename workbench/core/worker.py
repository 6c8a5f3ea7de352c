"""One thread owns the model, so that a slider never freezes the kernel and two requests never run at once.

Widgets and notebook cells hand their work to the subject's worker. A request may carry a key; a newer request with
the same key replaces an older one that has not begun, and asks the one that has begun to stop.

Example:
    >>> future = worker.submit(generate, prompt, key="steered text")
    >>> future.result()
"""

from __future__ import annotations

import atexit
import inspect
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from workbench.core.errors import Cancelled
from workbench.core.progress import CancelToken

T = TypeVar("T")


@dataclass(eq=False)
class _Job:
    call: Callable[[CancelToken], object]
    key: Hashable | None
    future: Future = field(default_factory=Future)
    token: CancelToken = field(default_factory=CancelToken)


_workers: "weakref.WeakSet[Worker]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Let running work stop before the interpreter goes: a thread killed inside native code aborts the process."""
    for worker in list(_workers):
        worker.close()


class Worker:
    """A queue of model work with one thread, started when it is first needed."""

    def __init__(self, name: str = "model"):
        self.name = name
        self._jobs: deque[_Job] = deque()
        self._running: _Job | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        _workers.add(self)

    def submit(self, call: Callable[..., T], *args: object, key: Hashable | None = None) -> Future:
        """Queue a call and give its future at once.

        Args:
            call: What to run; where it takes a `cancel` keyword, it gets the token of this request.
            *args: Positional arguments of the call.
            key: Requests with one key replace each other, the newest wins; a replaced one's future is cancelled, or
                raises `Cancelled` where it had begun.
        """
        wants_token = _takes_cancel(call)
        job = _Job(lambda token: call(*args, cancel=token) if wants_token else call(*args), key)
        with self._changed:
            if key is not None:
                self._drop(key)
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name=f"workbench-{self.name}", daemon=True)
                self._thread.start()
            self._changed.notify()
        return job.future

    def run(self, call: Callable[..., T], *args: object) -> T:
        """Run a call on the worker and wait for it; on the worker's own thread, run it directly.

        An interrupt while waiting (the stop button, Ctrl-C) asks the call to stop, then rises.
        """
        if threading.current_thread() is self._thread:
            return call(*args)
        future = self.submit(call, *args)
        try:
            return future.result()
        except KeyboardInterrupt:
            self.cancel_all()
            raise

    def cancel(self, key: Hashable) -> None:
        """Drop the waiting requests of a key and ask the running one to stop."""
        with self._changed:
            self._drop(key)

    def cancel_all(self) -> None:
        """Drop every waiting request and ask the running one to stop."""
        with self._changed:
            for job in self._jobs:
                job.future.cancel()
            self._jobs.clear()
            if self._running:
                self._running.token.cancel()

    def close(self, seconds: float | int = 30) -> None:
        """Drop all requests, ask the running one to stop, and wait for it."""
        self.cancel_all()
        with self._changed:
            self._changed.wait_for(lambda: self._running is None, timeout=seconds)

    @property
    def busy(self) -> bool:
        """Whether a request runs or waits."""
        with self._changed:
            return self._running is not None or bool(self._jobs)

    def _drop(self, key: Hashable) -> None:
        for job in [job for job in self._jobs if job.key == key]:
            self._jobs.remove(job)
            job.future.cancel()
        if self._running and self._running.key == key:
            self._running.token.cancel()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._jobs:
                    self._changed.wait()
                job = self._jobs.popleft()
                self._running = job
            if job.future.set_running_or_notify_cancel():
                try:
                    result = job.call(job.token)
                    if job.token.cancelled:
                        raise Cancelled("a newer request replaced this one")
                    job.future.set_result(result)
                except BaseException as error:  # noqa: BLE001 - the future carries it to whoever waits
                    job.future.set_exception(error)
            with self._changed:
                self._running = None
                self._changed.notify_all()


def _takes_cancel(call: Callable[..., object]) -> bool:
    try:
        return "cancel" in inspect.signature(call).parameters
    except (TypeError, ValueError):  # some built-in callables have no signature
        return False
