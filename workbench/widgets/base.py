"""What every widget shares: Python owns the truth, the page draws it and asks for changes.

Script in JupyterLab's origin can run code in the kernel, and model text is written by whoever the model listens to.
So the page never writes state: it sends requests (`{id, method, args}`) that a widget's `_command_…` methods answer,
errors come back to be shown under the widget, and every static form is escaped here.

Example:
    >>> strip = b.tokens("the capital of france is")
    >>> strip.spec, strip.code(), strip.to_html()
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future, wait
from typing import Any, ClassVar

import anywidget
import traitlets

from workbench.core.errors import Cancelled, InputError, WorkbenchError
from workbench.core.files import static_dir
from workbench.models.tokens import Prompt
from workbench.widgets.markup import Markup, element, join, page


@functools.cache
def module_source(name: str) -> str:
    """Give a widget's front end as one self-contained ES module.

    anywidget loads a module from a string, which cannot import its neighbour: the shared half is written in front of
    it, its `export` marks and the widget's `import` of it are left out.
    """
    shared = (static_dir() / "base.js").read_text(encoding="utf-8")
    own = (static_dir() / f"{name}.js").read_text(encoding="utf-8")
    shared = re.sub(r"^export (?=(async )?(function|const|class) )", "", shared, flags=re.MULTILINE)
    own = re.sub(r"^import \{[^}]*\} from \"\./base\.js\";\n", "", own, flags=re.MULTILINE)
    return f"{shared}\n{own}"


@functools.cache
def stylesheet() -> str:
    """Give the one stylesheet of all widgets."""
    return (static_dir() / "workbench.css").read_text(encoding="utf-8")


class View(anywidget.AnyWidget):
    """A panel drawn by the page from state that Python owns.

    Attributes:
        spec: What this panel shows, as JSON: enough to rebuild it; changed by Python only.
        computing: Whether model work for it is under way.
        error: What went wrong last, shown under the panel; empty where nothing did.
    """

    kind: ClassVar[str] = "view"

    _esm = traitlets.Unicode().tag(sync=True)
    _css = traitlets.Unicode().tag(sync=True)
    spec = traitlets.Dict(read_only=True).tag(sync=True)
    computing = traitlets.Bool(False, read_only=True).tag(sync=True)
    error = traitlets.Unicode("", read_only=True).tag(sync=True)

    def __init__(self, **spec: object):
        super().__init__(_esm=module_source(self.kind), _css=stylesheet())
        self.set_trait("spec", {"view": self.kind, **spec})
        self._closers: list[Callable[[], object]] = []
        self.on_msg(self._answer)

    def code(self) -> str:
        """Give Python that rebuilds this state; it expects the bench in a variable `b`."""
        raise NotImplementedError

    def body(self) -> Markup:
        """Give the static form: what the panel shows now, without script."""
        raise NotImplementedError

    def to_html(self) -> str:
        """Give one HTML page that shows this state without a kernel, a network or script."""
        return page(f"{self.kind.replace('_', ' ')}", stylesheet(), self.body())

    def close(self) -> None:
        """End the panel: it no longer listens to its bench."""
        for end in self._closers:
            end()
        self._closers.clear()
        super().close()

    def set_state(self, sync_data: dict) -> None:
        """Refuse the page's writes and say so under the panel: state is changed by commands only."""
        names = ", ".join(sorted(map(str, sync_data)))
        self._fail(InputError(f"the page may not write {names}", where=f"widget {self.kind}"))

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.code()}"

    def _repr_mimebundle_(self, **options: object) -> tuple[dict, dict]:
        data, metadata = super()._repr_mimebundle_(**options) or ({}, {})  # type: ignore[arg-type]
        fallback = join([element("style", {}, Markup(stylesheet())), self.body()])
        return {**data, "text/html": str(fallback)}, metadata

    def _change(self, **parts: object) -> None:
        self.set_trait("spec", {**self.spec, **parts})

    def _fail(self, error: BaseException | None) -> None:
        self.set_trait("error", _told(error) if error else "")

    def _answer(self, _widget: object, content: object, _buffers: object) -> None:
        if not isinstance(content, dict) or not isinstance(content.get("id"), str):
            self._fail(InputError("the page sent a request without an id", where=f"widget {self.kind}"))
            return
        try:
            result = self._call(content.get("method"), content.get("args") or {})
        except Exception as error:  # noqa: BLE001 - the border: whatever it is, the person at the page must see it
            self.send({"id": content["id"], "ok": False, "error": _told(error)})
        else:
            self.send({"id": content["id"], "ok": True, "result": result})

    def _call(self, name: object, arguments: object) -> object:
        known = _commands(type(self))  # type: ignore[arg-type]
        if name not in known:
            raise InputError(f"no command {name!r}", where=f"widget {self.kind}", hint=f"known: {', '.join(known)}")
        if not isinstance(arguments, dict):
            raise InputError(f"{name} takes named arguments, got {type(arguments).__name__}")
        return getattr(self, known[str(name)])(**arguments)

    def _when_done(self, future: Future, then: Callable[[Any], None]) -> Future:
        """Hand a worker's result to `then`, or its error to the person; what was replaced or cancelled is ignored."""

        def done(finished: Future) -> None:
            try:
                then(finished.result())
            except (Cancelled, CancelledError):
                return
            except Exception as error:  # noqa: BLE001 - the border: a worker's error is shown under the widget
                self.set_trait("computing", False)
                self._fail(error)

        future.add_done_callback(done)
        return future

    def _settle(self, future: Future, seconds: float | int | None) -> None:
        """Wait for work, however it ends; its error is shown under the panel, not raised."""
        wait([future], timeout=seconds)

    def _command_hello(self) -> None:
        """Answer the page's first message."""

    def _command_code(self) -> str:
        return self.code()


@functools.cache
def _commands(kind: type) -> dict[str, str]:
    return {name.removeprefix("_command_"): name for name in dir(kind) if name.startswith("_command_")}


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"


def whole(value: object, name: str, least: int, most: int) -> int:
    """Check a whole number that the page sent.

    Raises:
        InputError: It is no whole number, or outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{name} must be a whole number from {least} to {most}, got {value!r}")
    return value


def prompt_document(prompt: Prompt) -> str | list:
    """Give a prompt as JSON: text, `[role, content]` pairs, or token ids."""
    if isinstance(prompt, str):
        return prompt
    turns = [(one["role"], one["content"]) if isinstance(one, Mapping) else one for one in prompt]
    return [list(one) if isinstance(one, tuple | list) else int(one) for one in turns]


def code_list(prompt: object) -> str:
    """Write a prompt as Python source: text as a string, a chat as `b.chat([...])`."""
    if isinstance(prompt, str):
        return repr(prompt)
    if isinstance(prompt, Iterable):
        turns = list(prompt)
        if turns and all(isinstance(turn, tuple | list) and len(turn) == 2 for turn in turns):
            return f"b.chat([{', '.join(f'({role!r}, {text!r})' for role, text in turns)}])"
        return repr([int(one) for one in turns])
    raise InputError(f"a prompt is text, a chat or token ids, got {type(prompt).__name__}")
