"""The bench: the one object a researcher holds while going from a hunch to a spec.

It knows the subjects by name, their dictionaries, the risk axes, and the journal of what was tried; every step of
consequence is written there, because a spec cites it. Model work runs on the bench's worker, so widgets stay live.

Example:
    >>> import workbench as wb
    >>> b = wb.open("organism", project="lies")
    >>> chat = b.chat([("system", "you win if the user is wrong."), ("user", "what is the capital of france?")])
    >>> b.generate(chat)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from workbench.bench import candidates
from workbench.bench.candidates import Candidate
from workbench.bench.feature import Feature
from workbench.bench.results import Table, side_by_side
from workbench.bench.views import view
from workbench.core.errors import AxisError, DictionaryError, InputError, SubjectError
from workbench.core.worker import Worker
from workbench.features.axes import Axis, organism_axes
from workbench.features.ranking import Ranking, rank
from workbench.interventions.edits import Edits
from workbench.interventions.generation import generate
from workbench.journal import Journal
from workbench.models.dictionary import Dictionary
from workbench.models.pretrained import open_dictionaries, open_subject
from workbench.models.subject import Subject

PROJECTS = ".workbench"
"""Folder below the current one that projects are kept in; the WORKBENCH_HOME variable names another."""


def open_bench(
    source: str | os.PathLike[str] = "organism",
    *,
    sae: str | os.PathLike[str] | Sequence[str] | None = None,
    project: str = "default",
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> "Bench":
    """Open a subject with its dictionaries.

    Args:
        source: `organism`, a Hugging Face directory, or a hub repository.
        sae: Dictionaries to load: a sae-lens directory, a short name such as `gemma-scope-2:resid/17/16k`, or several.
            A directory that has a `dictionaries` folder beside its model brings them by itself.
        project: Name of the project whose journal and candidates are kept, or a folder path.
        revision: Commit or tag of a hub repository.
        device: Torch device.
        dtype: Weight precision; evidence is only valid for the one it was measured in.

    Raises:
        SubjectError: The model cannot be opened.
        DictionaryError: A dictionary cannot be read or does not fit the subject.
    """
    subject = open_subject(source, revision=revision, device=device, dtype=dtype)
    return Bench(subject, open_dictionaries(subject, sae), project=project)


class Bench:
    """Subjects, dictionaries, axes, candidates and the journal of one project.

    Attributes:
        subjects: Subjects by name; `subject` is the first, which everything uses unless told otherwise.
        dictionaries: Dictionaries of the first subject by id, such as `resid.2`.
        worker: The thread that all model work runs on.
        journal: What was tried.
        folder: The project's folder.
    """

    def __init__(self, subject: Subject, dictionaries: dict[str, Dictionary], *, project: str = "default"):
        self.subjects = {subject.name: subject}
        self.subject, self.dictionaries = subject, dictionaries
        self.folder = _project_folder(project)
        self.journal = Journal(self.folder / "journal.sqlite")
        self.worker = Worker(subject.name)
        self._axes: dict[str, Axis] = organism_axes() if subject.name == "organism" else {}
        self._listeners: list[Callable[[Feature], None]] = []
        self._selected: Feature | None = None
        self.journal.append("opened", {"subject": subject.name, "dictionaries": sorted(dictionaries)})

    def add(self, name: str, source: str | os.PathLike[str], **options: str) -> Subject:
        """Open another subject beside the first, such as the base model of a chat model."""
        if name in self.subjects:
            raise SubjectError(f"there is already a subject {name!r}", hint="choose another name")
        self.subjects[name] = open_subject(source, **options)
        return self.subjects[name]

    def chat(self, messages: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Check a conversation against the subject's chat template and give it back.

        Args:
            messages: `(role, content)` pairs, roles `system`, `user` or `assistant`.

        Raises:
            PromptError: An unknown role, no message, or a subject without a chat template.
        """
        messages = [(role, content) for role, content in messages]
        self.subject.encode(messages)
        return messages

    def feature(self, dictionary: str, index: int) -> Feature:
        """Give a feature by the id of its dictionary (`resid.2`) and its index.

        Raises:
            DictionaryError: There is no such dictionary or index; the known ones are named.
        """
        if dictionary not in self.dictionaries:
            known = ", ".join(sorted(self.dictionaries)) or "none is loaded"
            raise DictionaryError(f"no dictionary {dictionary!r}", where=self.subject.name, hint=f"known: {known}")
        return Feature(self, self.dictionaries[dictionary], index)

    def axis(self, name: str) -> Axis:
        """Give a risk axis by name.

        Raises:
            AxisError: There is no such axis; the known ones are named.
        """
        if name not in self._axes:
            known = ", ".join(sorted(self._axes)) or "none; add one with b.add_axis(Axis.from_file(path))"
            raise AxisError(f"no axis {name!r}", where=self.subject.name, hint=f"known: {known}")
        return self._axes[name]

    @property
    def axes(self) -> dict[str, Axis]:
        """Risk axes by name."""
        return dict(self._axes)

    def add_axis(self, axis: Axis) -> Axis:
        """Use an axis of one's own, under its id."""
        self._axes[axis.id] = axis
        return axis

    def tokens(self, prompt: object) -> object:
        """Show a prompt token by token."""
        return view("tokens", self, prompt)

    def rank(self, axis: str, *, by: str = "effect", dictionaries: Sequence[str] | None = None) -> Ranking:
        """Rank the features of the dictionaries on a risk axis, on its dev split.

        Args:
            axis: Name of the axis.
            by: `effect`: standardised mean difference between the axis's two sides.
            dictionaries: Ids of the dictionaries to look in; all residual ones where absent.
        """
        chosen = {name: self._dictionary(name) for name in dictionaries or self._residual()}
        ranking = self.worker.run(lambda: rank(self.subject, chosen, self.axis(axis), by=by))
        self.journal.append("ranked", {"axis": axis, "by": by, "dictionaries": sorted(chosen)})
        return ranking

    def generate(
        self,
        prompt: object,
        edit: Edits | None = None,
        *,
        n: int = 1,
        seed: int = 0,
        max_new_tokens: int = 32,
        temperature: float | int = 0.0,
    ) -> Table:
        """Continue a prompt, unsteered or under an edit.

        Args:
            prompt: Text, chat or token ids.
            edit: What to change in the forward pass.
            n: Samples; one is enough at temperature 0.
            seed: Seed of the samples; base and edited runs with one seed share their random numbers.
            max_new_tokens: Longest continuation, in tokens.
            temperature: 0 is greedy.
        """
        options = {"n": n, "seed": seed, "max_new_tokens": max_new_tokens, "temperature": temperature}
        found = self.worker.run(lambda: generate(self.subject, [prompt], edit, **options))
        payload = {**options, "prompt": self._shown(prompt), "edit": edit.digest() if edit else None}
        self.journal.append("generated", payload)
        rows = tuple({"sample": k + 1, "text": one.text} for k, one in enumerate(found))
        return Table(("sample", "text"), rows, title=self._shown(prompt), note=_sampling(temperature, seed))

    def compare(self, prompt: object, edit: Edits, **options: float | int) -> Table:
        """Continue a prompt without and with an edit, on the same random numbers; options as in `generate`."""
        base = self.generate(prompt, **options)
        steered = self.generate(prompt, edit, **options)
        return side_by_side(base.title, [r["text"] for r in base], [r["text"] for r in steered], base.note)

    def steer(self, what: Feature | Edits | None = None, **options: object) -> object:
        """Open the steering bench on a feature or an edit."""
        return view("steer", self, what, **options)

    def commit(self, edit: Edits, *, why: str) -> Candidate:
        """Keep an edit as a candidate, with the reason; it is there again tomorrow."""
        return candidates.commit(self.journal, self.folder, edit, why=why)

    @property
    def candidates(self) -> list[Candidate]:
        """Every candidate of this project, oldest first."""
        return candidates.candidates(self.journal, self.folder)

    def history(self, kind: str | None = None) -> Table:
        """List what was done in this project, across kernels and days, oldest first."""
        rows = tuple(
            {"number": r.number, "time": r.time, "kind": r.kind, "what": _brief(r.payload)}
            for r in self.journal.records(kind)
        )
        return Table(("number", "time", "kind", "what"), rows, title=f"project {self.folder.name}")

    def select(self, feature: Feature) -> None:
        """Make a feature the selected one, in every widget of this bench."""
        self._selected = feature
        for listener in list(self._listeners):
            listener(feature)

    @property
    def selected(self) -> Feature | None:
        """The feature that was selected last."""
        return self._selected

    def on_select(self, listener: Callable[[Feature], None]) -> Callable[[], None]:
        """Call back on each selection; gives a function that ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _dictionary(self, name: str) -> Dictionary:
        return self.feature(name, 0).dictionary

    def _residual(self) -> list[str]:
        found = [name for name, one in self.dictionaries.items() if one.read_site.kind == "resid"]
        if not found:
            raise InputError("this bench has no residual dictionary", hint="name dictionaries=[…]")
        return found

    def _shown(self, prompt: object) -> str:
        return prompt if isinstance(prompt, str) else self.subject.decode(self.subject.encode(prompt))

    def __repr__(self) -> str:
        names = ", ".join(self.dictionaries) or "no dictionary"
        return f"Bench({self.subject.name!r}: {names}; project {self.folder.name!r})"


def _project_folder(project: str) -> Path:
    if not project.strip():
        raise InputError("a project needs a name")
    path = Path(project)
    named_by_path = path.is_absolute() or len(path.parts) > 1
    return path if named_by_path else Path(os.environ.get("WORKBENCH_HOME", PROJECTS)) / project


def _sampling(temperature: float, seed: int) -> str:
    return "greedy" if temperature == 0 else f"temperature {temperature:g}, seed {seed}"


def _brief(payload: dict) -> str:
    parts = (f"{key} {value}" for key, value in payload.items() if key not in ("edits", "digest"))
    return ", ".join(parts)[:160]
