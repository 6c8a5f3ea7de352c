"""From a bundle and a live model to edits that may run: every check that a consumer makes, in order, each fails closed.

A bundle that verifies can still be applied to the wrong model, the wrong layer or a runtime that ignores it. So the
live subject's digests, template, precision and sites are compared with what was measured, and the known answers are
reproduced on this very runtime, before anything is handed out.

Plain `transformers` only: nothing here reaches transformer-lens, sae-lens or Jupyter.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from workbench.consumer.known_answers import AnswerCheck, check_known_answers
from workbench.core.errors import BundleError, SiteError
from workbench.core.files import datasets_dir
from workbench.evidence.records import subject_record
from workbench.interventions.edits import Edits
from workbench.models.sites import Site
from workbench.models.subject import Subject, load_subject
from workbench.spec.bundle import Bundle
from workbench.spec.documents.spec import Spec
from workbench.spec.documents.subject import SubjectRecord
from workbench.spec.verify import verify

_SAME = (
    "family",
    "n_layers",
    "d_model",
    "n_heads",
    "n_vocab",
    "n_ctx",
    "dtype",
    "bos",
    "attention",
    "weight_processing",
)
"""Fields of the subject besides its digests that have to be equal."""


@dataclass(frozen=True)
class Live:
    """A bundle on a live subject, every check passed.

    Attributes:
        bundle: The bundle.
        subject: The model.
        edits: What it changes.
        answers: The known answers as this runtime reproduced them.
    """

    bundle: Bundle
    subject: Subject
    edits: Edits
    answers: tuple[AnswerCheck, ...]


def open_live(path: str | os.PathLike[str], model: str | os.PathLike[str] | None = None) -> Live:
    """Verify a bundle, load the model and check that they belong together.

    Args:
        path: A folder or a `.wbspec` file.
        model: Directory or hub repository of the live subject; what the spec names where absent.

    Raises:
        BundleError: A check failed; `check` names it: one of `verify`'s, or `subject`, `sites`, `known_answers`.
        SubjectError: The model cannot be loaded.
    """
    bundle = verified(path)
    spec = bundle.spec
    subject = load_live(spec.subject, model)
    check_subject(spec.subject, subject)
    check_sites(spec, subject)
    edits = read_edits(bundle)
    return Live(bundle, subject, edits, check_known_answers(spec, subject, edits))


def verified(path: str | os.PathLike[str]) -> Bundle:
    """Give a bundle that passed every check of `verify`, read once.

    Raises:
        BundleError: The first check that failed.
    """
    found = verify(path)
    if found.bundle is None:
        failed = found.checks[-1]
        raise BundleError(
            failed.message, check=failed.id, hint="nothing was applied; ask whoever sent it for the bundle"
        )
    return found.bundle


def load_live(record: SubjectRecord, model: str | os.PathLike[str] | None) -> Subject:
    """Load the model that a bundle is to be applied to, in the precision it was measured in.

    Raises:
        BundleError: No model was named and the spec's own is neither built in nor on the hub. Check `subject`.
        SubjectError: The model cannot be loaded.
    """
    where, revision = model, None
    if where is None and record.source.kind == "hub":
        where, revision = record.source.repo, record.source.revision
    if where is None:
        built_in = datasets_dir() / record.name / "model"
        where = built_in if record.name.isidentifier() and built_in.is_dir() else None
    if where is None:
        raise BundleError(
            f"the spec names a {record.source.kind} model {record.name!r}, which cannot be found from here",
            check="subject",
            hint="name its directory or repository with --model",
        )
    folder = Path(where)
    if not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file():
        where = folder / "model"
    return load_subject(
        where if isinstance(where, Path) else str(where),
        name=record.name,
        revision=revision,
        dtype=record.dtype,
        uses_bos=None,
    )


def check_subject(record: SubjectRecord, subject: Subject) -> None:
    """Check that a live subject is the one that was measured: weights, configuration, tokenizer, template, precision.

    Raises:
        BundleError: The first thing that differs, got and expected. Check `subject`.
    """
    live = subject_record(subject)
    mine, theirs = live.digests, record.digests
    if mine.weights != theirs.weights:
        names = sorted(set(mine.weights) ^ set(theirs.weights)) or sorted(
            name for name in theirs.weights if mine.weights[name] != theirs.weights[name]
        )
        _differs(f"weight file {names[0]}", mine.weights.get(names[0]), theirs.weights.get(names[0]))
    for field, what in (
        ("config", "config.json"),
        ("tokenizer", "the tokenizer"),
        ("chat_template", "the chat template"),
    ):
        if getattr(mine, field) != getattr(theirs, field):
            _differs(what, getattr(mine, field), getattr(theirs, field))
    for field in _SAME:
        if getattr(live, field) != getattr(record, field):
            _differs(field, str(getattr(live, field)), str(getattr(record, field)))


def check_sites(spec: Spec, subject: Subject) -> None:
    """Check that every site of the spec is in the live model, at the module and width it was measured at.

    Raises:
        BundleError: A site is missing, elsewhere or of another width. Check `sites`.
    """
    for site in spec.sites:
        try:
            path = subject.path(Site.parse(site.name))
        except SiteError as error:
            raise BundleError(f"the live subject has no site {site.name}: {error.message}", check="sites") from error
        expected = (site.hf_module, site.hf_side, site.head, site.width)
        if (path.module, path.side, path.head, path.width) != expected:
            raise BundleError(
                f"site {site.name} is the {path.side} of {path.module} of width {path.width} in the live subject, "
                f"the spec says the {site.hf_side} of {site.hf_module} of width {site.width}",
                check="sites",
            )


def read_edits(bundle: Bundle) -> Edits:
    """Rebuild the edits of a verified bundle from its documents and tensors.

    Raises:
        BundleError: They are not the edits that the plan promised. Check `chain`.
    """
    tensors = {name: torch.tensor(array) for name, array in bundle.tensors.items()}
    edits = Edits.from_doc([document.to_json() for document in bundle.spec.edits], tensors)
    if edits.digest() != bundle.plan.edits:
        raise BundleError("the rebuilt edits are not those that the plan names", check="chain", path="spec.json")
    return edits


def _differs(what: str, got: str | None, expected: str | None) -> None:
    raise BundleError(
        f"{what} of the live subject is {_short(got)}, the bundle was measured on {_short(expected)}",
        check="subject",
        hint="the evidence holds for that model only; load it, or measure again on this one",
    )


def _short(text: str | None) -> str:
    return "absent" if text is None else f"{text[:12]}…" if len(text) == 64 else text
