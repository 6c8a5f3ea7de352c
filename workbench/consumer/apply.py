"""Applying an edit on plain `transformers`: verified, on the right model, proved by known answers, or not at all.

No approval can exist yet, so an edit is applied only as a preview, for looking; a pipeline that forgets `preview` is
refused. What is handed out is either the checked edit on the checked model, or an error.

Example:
    >>> applied = apply("lies.wbspec", "path/to/model", preview=True)
    >>> applied.generate("what is the capital of france?")
    >>> with applied as run:
    ...     applied.subject.model(**inputs)
"""

from __future__ import annotations

import os
from types import TracebackType

from workbench.consumer.live import Live, open_live
from workbench.core.errors import BundleError
from workbench.interventions.edits import Edits
from workbench.interventions.generation import Generation, generate
from workbench.interventions.runtime import Runtime


class Applied:
    """An edit on a live subject that passed every check.

    As a context manager it edits every forward pass of `subject.model` inside the block, and leaves the model as it
    was.

    Attributes:
        subject: The model.
        edits: What is changed.
        live: The bundle and the known answers as they came out here.
    """

    def __init__(self, live: Live):
        self.live, self.subject, self.edits = live, live.subject, live.edits
        self._runtime: Runtime | None = None

    def __enter__(self) -> Runtime:
        self._runtime = Runtime(self.subject, self.edits, allow_idle=self._may_idle)
        return self._runtime.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.__exit__(kind, error, trace)

    @property
    def _may_idle(self) -> bool:
        return any(edit.gate is not None or edit.op not in _ALWAYS_ACTS for edit in self.edits)

    def generate(self, prompt: object, *, n: int = 1, max_new_tokens: int = 32, **options: object) -> list[Generation]:
        """Continue a prompt under the edit.

        Args:
            prompt: Text, chat or token ids.
            n: Continuations.
            max_new_tokens: Longest one, in tokens.
            **options: `temperature` and `seed`, as in `workbench.interventions.runtime.generate`.
        """
        return self._generate(prompt, self.edits, n=n, max_new_tokens=max_new_tokens, **options)

    def compare(self, prompt: object, *, max_new_tokens: int = 32, **options: object) -> dict[str, str]:
        """Give one continuation `base`, unedited, and one `candidate`, edited, on the same random numbers."""
        base = self._generate(prompt, None, n=1, max_new_tokens=max_new_tokens, **options)
        edited = self._generate(prompt, self.edits, n=1, max_new_tokens=max_new_tokens, **options)
        return {"base": base[0].text, "candidate": edited[0].text}

    def _generate(self, prompt: object, edits: Edits | None, **options: object) -> list[Generation]:
        return generate(self.subject, [prompt], edits, allow_idle=self._may_idle, **options)  # type: ignore[arg-type]

    def to_json(self) -> dict:
        """Give what was applied to what, and how the known answers came out."""
        spec = self.live.bundle.spec
        return {
            "name": spec.name,
            "bundle": self.live.bundle.digest,
            "edits": self.edits.digest(),
            "subject": self.subject.name,
            "preview": True,
            "sentence": self.edits.describe()["sentence"],
            "known_answers": [one.to_json() for one in self.live.answers],
        }

    def __repr__(self) -> str:
        name, n = self.live.bundle.spec.name, len(self.live.answers)
        return f"Applied({name!r} to {self.subject.name!r}, preview, {n} known answers reproduced)"


_ALWAYS_ACTS = ("add", "set", "mean_ablate", "project_out")


def apply(
    path: str | os.PathLike[str], model: str | os.PathLike[str] | None = None, *, preview: bool = False
) -> Applied:
    """Apply a bundle's edit to a live model, after every check passed.

    Args:
        path: A folder or a `.wbspec` file.
        model: Directory or hub repository of the live model; what the spec names where absent.
        preview: Apply without an approval, for looking only.

    Raises:
        BundleError: A check failed; `check` names it. Without `preview`: `approval`.
        SubjectError: The model cannot be loaded.
    """
    if not preview:
        raise BundleError(
            "nobody has approved this bundle: approvals are not part of it yet",
            check="approval",
            hint="preview=True (--preview) applies it for looking only",
        )
    return Applied(open_live(path, model))
