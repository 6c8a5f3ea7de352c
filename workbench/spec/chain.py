"""Whether the documents of a bundle belong together: one edit, one model, one promise, and known answers that prove it.

Each document names the digests of what it stands on. A measurement of another edit, a plan that was changed later or
tensors that were swapped break the chain, whatever the manifest says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Never

import numpy as np

from workbench.core.canonical import sha256_hex
from workbench.core.errors import BundleError
from workbench.spec.bundle import TENSORS
from workbench.spec.documents.edit import edits_digest
from workbench.spec.documents.measurement import Measurement
from workbench.spec.documents.plan import Plan
from workbench.spec.documents.spec import KnownAnswer, Spec
from workbench.spec.verdicts import paired


def check_chain(
    files: Mapping[str, bytes], spec: Spec, plan: Plan, measurement: Measurement, tensors: Mapping[str, np.ndarray]
) -> None:
    """Check that spec, tensors, plan and measurement name each other.

    Raises:
        BundleError: A link is broken; it is named. Check `chain`.
    """
    edits = edits_digest([edit.to_json() for edit in spec.edits], dict(tensors))
    subject = spec.subject.identity()
    _equal(spec.tensors.sha256, sha256_hex(files[TENSORS]), "spec.json", f"the digest of {TENSORS}")
    _equal(plan.edits, edits, "plan.json", "the digest of the edits and their tensors")
    _equal(measurement.edits, edits, "measurement.json", "the digest of the edits and their tensors")
    _equal(plan.subject, subject, "plan.json", "the digest of the subject")
    _equal(measurement.subject, subject, "measurement.json", "the digest of the subject")
    _equal(measurement.plan, sha256_hex(files["plan.json"]), "measurement.json", "the digest of plan.json")
    used = {target.dictionary for edit in spec.edits for target in edit.targets if target.kind == "feature"}
    digests = {one.digest for one in spec.dictionaries if one.id in used}
    if set(plan.dictionaries) != digests:
        _refuse("plan.json", "names other dictionaries than the edits of spec.json use")
    if not plan.frozen <= measurement.started <= measurement.finished:
        _refuse("measurement.json", "was begun before the plan was frozen, or ended before it began")
    paired(plan, measurement)
    _check_widths(spec, tensors)


def check_known_answers(spec: Spec) -> None:
    """Check that the known answers can prove that a runtime applies this edit.

    Raises:
        BundleError: They could not; the answer is named. Check `known_answers`.
    """
    known = spec.known_answers
    if not spec.edits:
        return
    if spec.subject.dtype not in known.tolerance:
        _refuse("spec.json", f"no tolerance for the subject's own {spec.subject.dtype}", "known_answers")
    fired: set[int] = set()
    moved = 0.0
    for number, answer in enumerate(known.answers):
        _check_answer(spec, answer, f"known answer {number}")
        fired |= {one.edit for one in answer.firings if one.positions}
        before = {one.token: one.logit for one in answer.base}
        moved = max([moved, *(abs(one.logit - before.get(one.token, np.inf)) for one in answer.edited)])
    if silent := sorted(set(range(len(spec.edits))) - fired):
        _refuse("spec.json", f"edit {silent[0]} acts in no known answer, so none proves it", "known_answers")
    if moved <= known.tolerance[spec.subject.dtype]:
        message = f"the edit moves no listed logit by more than the tolerance {known.tolerance[spec.subject.dtype]:g}"
        _refuse("spec.json", message, "known_answers")


def _check_answer(spec: Spec, answer: KnownAnswer, where: str) -> None:
    if len(answer.base) != len(answer.edited):
        _refuse(
            "spec.json", f"{where}: {len(answer.base)} logits unedited, {len(answer.edited)} edited", "known_answers"
        )
    for side in (answer.base, answer.edited):
        logits = [one.logit for one in side]
        if logits != sorted(logits, reverse=True) or len({one.token for one in side}) != len(side):
            _refuse(
                "spec.json", f"{where}: the top logits are not distinct tokens in descending order", "known_answers"
            )
    tokens = [*answer.token_ids, *(one.token for one in (*answer.base, *answer.edited))]
    if max(tokens) >= spec.subject.n_vocab or len(answer.token_ids) > spec.subject.n_ctx:
        _refuse("spec.json", f"{where}: a token or length that the subject does not have", "known_answers")
    if [one.edit for one in answer.firings] != list(range(len(spec.edits))):
        _refuse("spec.json", f"{where}: firings are not listed once per edit", "known_answers")
    if any(one.positions > len(answer.token_ids) for one in answer.firings):
        _refuse("spec.json", f"{where}: an edit acted on more positions than the prompt has", "known_answers")


def _check_widths(spec: Spec, tensors: Mapping[str, np.ndarray]) -> None:
    """Refuse rows that are not as wide as the dictionary and the site they belong to."""
    dictionaries = {one.id: one for one in spec.dictionaries}
    sites = {one.name: one.width for one in spec.sites}
    for target in (target for edit in spec.edits for target in edit.targets):
        if target.kind == "direction":
            expected = {target.read: (sites[target.site],), target.write: (sites[target.site],)}
        else:
            home = dictionaries[target.dictionary]
            shapes = {"W_enc": (home.d_in, 1), "W_dec": (1, home.d_out), "b_in": (home.d_in,)}
            expected = {key: shapes.get(row, (1,)) for row, key in target.rows.items()}
            if (home.d_in, home.d_out) != (sites[target.read], sites[target.write]):
                _refuse("spec.json", f"dictionary {home.id} is not as wide as the sites it reads and writes")
        for key, shape in expected.items():
            if tensors[key].shape != shape:
                _refuse("spec.json", f"tensor {key} has shape {list(tensors[key].shape)}, the site needs {list(shape)}")


def _equal(named: str, found: str, path: str, what: str) -> None:
    if named != found:
        _refuse(path, f"{what} is given as {named[:12]}…, it is {found[:12]}…")


def _refuse(path: str, message: str, check: str = "chain") -> Never:
    raise BundleError(message, check=check, path=path)
