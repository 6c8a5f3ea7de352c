"""An edit turned up and down by hand, with what the model says without and with it side by side.

A moved slider asks the bench's worker; the newest value wins and older requests are dropped, so the kernel stays free.
Nothing here is reachable only by clicking: `set_edit`, `set_prompt`, `run` and `commit` do what the page does.

Example:
    >>> panel = b.steer(b.feature("resid.2", 843), prompt=b.chat([("user", "how do i make a bomb?")]))
    >>> panel.set_edit(0, value=-4.0)
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Future

import traitlets

from workbench.bench.bench import Bench
from workbench.bench.candidates import Candidate
from workbench.bench.corpus import corpus_of, readings
from workbench.bench.feature import Feature
from workbench.core.errors import Cancelled, InputError
from workbench.core.progress import CancelToken
from workbench.features.card import largest
from workbench.interventions.comparison import Side, continuation, marks, readout
from workbench.interventions.edits import Edits
from workbench.models.tokens import Prompt
from workbench.widgets.base import View, code_list, prompt_document, whole
from workbench.widgets.edit_rows import OPS, POSITIONS, VALUED, Row, row_of, scale_of
from workbench.widgets.markup import Markup, panel
from workbench.widgets.steering_static import edit_line, outcome, prompt_lines

_DEFAULT_PROMPT = (("user", "how do i make a cake?"),)


class SteeringBench(View):
    """Edits with sliders, a prompt, and both continuations.

    Attributes:
        limits: What the page offers: dictionaries with their sizes, operations, positions.
        facts: Per edit: largest activation and on which corpus, slider range, label.
        result: Both continuations, next-token probabilities, firings; what is there grows while it is computed.
        phase: `idle`, `computing`, `ready`, `cancelled` or `failed`.
        stage: The same in words.
    """

    kind = "steering_bench"

    limits = traitlets.Dict(read_only=True).tag(sync=True)
    facts = traitlets.List(read_only=True).tag(sync=True)
    result = traitlets.Dict(read_only=True).tag(sync=True)
    phase = traitlets.Unicode("idle", read_only=True).tag(sync=True)
    stage = traitlets.Unicode("", read_only=True).tag(sync=True)

    def __init__(
        self,
        bench: Bench,
        what: Feature | Edits | None = None,
        *,
        prompt: Prompt | None = None,
        op: str = "add",
        value: float | int | None = None,
        positions: str = "after_first",
        max_new_tokens: int = 24,
        temperature: float | int = 0.0,
        seed: int = 0,
    ):
        self._bench, self._given = bench, what if isinstance(what, Edits) else None
        self._lock, self._maxima = threading.RLock(), {}
        self._base: tuple[object, Side] | None = None
        self._settled, self._newest = threading.Event(), 0
        self._rows = self._first_rows(what, op, value, positions)
        chosen = _DEFAULT_PROMPT if prompt is None else prompt
        bench.subject.encode(chosen)
        sampling = {"max_new_tokens": max_new_tokens, "temperature": float(temperature), "seed": seed}
        super().__init__(subject=bench.subject.name, prompt=prompt_document(chosen), edits=[], **sampling)
        sizes = {name: one.d_dict for name, one in bench.dictionaries.items()}
        limits = {"dictionaries": sizes, "ops": list(OPS), "valued": list(VALUED), "positions": list(POSITIONS)}
        self.set_trait("limits", limits)
        self._publish()
        self.run()

    @property
    def edits(self) -> Edits:
        """The edit as it stands, ready for `b.compare` or `b.commit`."""
        with self._lock:
            return Edits(tuple(row.edit(self._bench) for row in self._rows))

    def set_edit(self, position: int, **changes: object) -> "SteeringBench":
        """Change one edit: `value`, `op`, `positions`, `dictionary` or `index`; runs again.

        Raises:
            InputError: There is no such edit, or the change does not fit it.
        """
        with self._lock:
            whole(position, "edit", 0, len(self._rows) - 1)
            row = self._rows[position].changed(self._bench, changes)
            self._rows = [row if k == position else old for k, old in enumerate(self._rows)]
        self._publish()
        return self.run()

    def add(self, feature: Feature | None = None) -> "SteeringBench":
        """Add an edit of a feature: this one, else the one selected on the bench, else the dictionary's first."""
        chosen = feature or self._bench.selected or self._bench.feature(next(iter(self._bench.dictionaries)), 0)
        with self._lock:
            self._rows = [*self._rows, Row("add", None, "after_first", chosen.dictionary.id, chosen.index)]
        self._publish()
        return self.run()

    def remove(self, position: int) -> "SteeringBench":
        """Take one edit away."""
        with self._lock:
            whole(position, "edit", 0, len(self._rows) - 1)
            self._rows = [row for k, row in enumerate(self._rows) if k != position]
        self._publish()
        return self.run()

    def set_prompt(self, prompt: Prompt) -> "SteeringBench":
        """Use another prompt: text or a chat.

        Raises:
            PromptError: It is empty, too long, or no chat of this subject.
        """
        self._bench.subject.encode(prompt)
        self._change(prompt=prompt_document(prompt))
        return self.run()

    def run(self) -> "SteeringBench":
        """Compute again on the worker; an older request that waits is dropped, one that runs is asked to stop."""
        self._settled.clear()
        self._fail(None)
        self._say("computing", "waiting for the model")
        self._newest = number = self._newest + 1
        future = self._bench.worker.submit(self._work, key=(self.model_id, "run"))
        future.add_done_callback(lambda done: self._ended(done, number))
        return self

    def wait(self, seconds: float | int | None = None) -> "SteeringBench":
        """Wait until the newest request is answered, cancelled or failed."""
        self._settled.wait(seconds)
        return self

    def cancel(self) -> "SteeringBench":
        """Stop what is being computed; what is shown stays."""
        self._bench.worker.cancel((self.model_id, "run"))
        self._say("cancelled", "stopped; what is shown is older")
        return self

    def commit(self, why: str) -> Candidate:
        """Keep the edit as a candidate of the project, with a reason."""
        return self._bench.commit(self.edits, why=why)

    def code(self) -> str:
        """Give Python that rebuilds this state."""
        spec = self.spec
        with self._lock:
            lines = [row.code() for row in self._rows]
        given = []
        if self._given is not None and any("e.items" in line for line in lines):
            given = ["import dataclasses", f"# e is the edit that was given, digest {self._given.digest()[:12]}"]
        names = ", ".join(f"{key}={spec[key]!r}" for key in ("max_new_tokens", "temperature", "seed"))
        head = "edit = " + (" + ".join(lines) if lines else "None")
        return "\n".join([*given, head, f"b.steer(edit, prompt={code_list(spec['prompt'])}, {names})"])

    def body(self) -> Markup:
        """Give the bench without script: edits, prompt, both continuations, probabilities, firings."""
        edits = [edit_line(edit, fact) for edit, fact in zip(self.spec["edits"], self.facts, strict=True)]
        parts = [*edits, *prompt_lines(self.spec["prompt"]), *outcome(self.result)]
        return panel("steer", "Steering bench", self.spec["subject"], *parts, error=self.error)

    def _repr_mimebundle_(self, **options: object) -> tuple[dict, dict]:
        self.wait(2.0)  # so that a saved notebook's static form has the first result in it
        return super()._repr_mimebundle_(**options)

    def _first_rows(
        self, what: Feature | Edits | None, op: str, value: float | int | None, positions: str
    ) -> list[Row]:
        if isinstance(what, Edits):
            return [row_of(item, k, self._bench) for k, item in enumerate(what.items)]
        if what is None:
            return []
        start = Row(op, None if value is None else float(value), positions, what.dictionary.id, what.index)
        return [start.changed(self._bench, {"op": op, "positions": positions})]

    def _publish(self) -> None:
        with self._lock:
            rows = list(self._rows)
            edits = [row.to_json() for row in rows]
            facts = [scale_of(row, self._maxima.get(row.key), self._label(row)) for row in rows]
        self.set_trait("facts", facts)
        self._change(edits=edits)

    def _label(self, row: Row) -> str:
        if row.item is not None:
            return ""
        labels = self._bench.feature(row.dictionary, row.index).labels
        return labels[-1]["text"] if labels else ""

    def _say(self, phase: str, stage: str) -> None:
        self.set_trait("phase", phase)
        self.set_trait("computing", phase == "computing")
        self.set_trait("stage", stage)
        if phase != "computing":
            self._settled.set()

    def _work(self, cancel: CancelToken) -> None:
        """Run on the worker: each stage is shown as soon as it is there, and checked for a newer request before."""
        begun = time.monotonic()
        self._measure_maxima(cancel)
        edits, spec = self.edits, dict(self.spec)
        prompt, subject = _prompt(spec["prompt"]), self._bench.subject
        options = {name: spec[name] for name in ("max_new_tokens", "temperature", "seed")}
        key = (repr(prompt), tuple(options.values()))
        if self._base is None or self._base[0] != key:
            self._tell("computing the unsteered continuation", cancel)
            self._base = key, continuation(subject, prompt, None, cancel=cancel, **options)
        base = self._base[1]
        sampling = "greedy"
        if options["temperature"]:
            sampling = f"temperature {options['temperature']:g}, seed {options['seed']}"
        if not edits.items:
            result = {"base": self._side(base, [False] * len(base.ids)), "sampling": sampling}
        else:
            self._tell("computing the steered continuation", cancel)
            steered = continuation(subject, prompt, edits, cancel=cancel, **options)
            self._tell("reading probabilities", cancel)
            read = readout(subject, steered, edits)
            gone, new = marks(base.ids, steered.ids)
            result = {
                "base": self._side(base, gone),
                "steered": self._side(steered, new),
                "next": [{"token": t, "base": b, "steered": s} for t, b, s in read.next_tokens],
                "kl": read.kl,
                "firings": [dict(one) for one in read.firings],
                "sampling": sampling,
            }
        cancel.check()
        self.set_trait("result", result)
        self._say("ready", f"ready in {time.monotonic() - begun:.2f} s")

    def _side(self, side: Side, differs: list[bool]) -> dict:
        special = [one in self._bench.subject.special_ids for one in side.ids]
        return {"tokens": list(side.tokens), "marks": differs, "special": special}

    def _measure_maxima(self, cancel: CancelToken) -> None:
        with self._lock:
            wanted = [row for row in self._rows if row.item is None and row.key not in self._maxima]
        for row in wanted:
            self._tell("reading the corpus for the slider's range", cancel)
            feature = self._bench.feature(row.dictionary, row.index)
            corpus = corpus_of(self._bench.subject)
            most = largest(readings(self._bench.subject, corpus), feature.dictionary, feature.index)
            with self._lock:
                self._maxima[row.key] = (most, corpus.name)
        with self._lock:
            filled = [row.filled(self._maxima.get(row.key)) for row in self._rows]
            changed, self._rows = filled != self._rows, filled
        if wanted or changed:
            self._publish()

    def _tell(self, stage: str, cancel: CancelToken) -> None:
        cancel.check()
        self.set_trait("stage", stage)

    def _ended(self, future: Future, number: int) -> None:
        if number != self._newest:  # replaced: the newer request tells how it went
            return
        try:
            future.result()
        except (Cancelled, CancelledError):
            if self.phase == "computing":
                self._say("cancelled", "stopped; what is shown is older")
        except Exception as error:  # noqa: BLE001 - the border: a worker's error is shown under the widget
            self._fail(error)
            self._say("failed", "failed; what is shown is older")

    def _command_edit(self, position: object, changes: object) -> None:
        if not isinstance(changes, dict):
            raise InputError(f"changes must be named values, got {type(changes).__name__}")
        self.set_edit(whole(position, "edit", 0, len(self._rows) - 1), **changes)

    def _command_add(self) -> None:
        self.add()

    def _command_remove(self, position: object) -> None:
        self.remove(whole(position, "edit", 0, len(self._rows) - 1))

    def _command_prompt(self, prompt: object) -> None:
        self.set_prompt(_prompt(prompt))

    def _command_run(self) -> None:
        self.run()

    def _command_cancel(self) -> None:
        self.cancel()

    def _command_commit(self, why: object) -> dict:
        kept = self.commit(str(why))
        return {"id": kept.id, "digest": kept.digest}


def _prompt(document: object) -> Prompt:
    if isinstance(document, str):
        return document
    if not isinstance(document, list):
        raise InputError(f"a prompt is text or a chat, got {type(document).__name__}")
    return [tuple(turn) if isinstance(turn, list) else turn for turn in document]
