"""From a measured candidate to a review-ready bundle: what it is, why it is believed, what is not known.

Everything a reader or a consumer needs is read off the live objects here, once. Fields that nobody measured are
null with the reason. The bundle is written whole, after it passed every check that a reader will run.

Example:
    >>> path = export("lies.wbspec", measurement, subject, dictionaries, texts=Texts(name="lies", …), found=found)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from workbench.core.canonical import digest, sha256_hex
from workbench.core.errors import TrialError
from workbench.evidence.design import Found
from workbench.evidence.known_answers import make_known_answers
from workbench.evidence.measurement import TrialMeasurement
from workbench.evidence.metrics import Prepared, measure, prepare
from workbench.evidence.records import dictionary_record, now, site_records, subject_record, used_dictionaries
from workbench.features.axes import Axis
from workbench.features.card import Corpus, Example, Readings, profile
from workbench.features.ranking import RankedFeature, Ranking
from workbench.interventions.edits import Edit, Edits
from workbench.interventions.targets import FeatureTarget
from workbench.models.dictionary import Dictionary
from workbench.models.subject import Subject
from workbench.spec.bundle import write_bundle
from workbench.spec.documents.edit import EditDocument
from workbench.spec.documents.spec import Condition, Provenance, SearchRecord, Spec, TensorFile, TensorRecord
from workbench.spec.documents.subject import ExampleRecord, FeatureRecord, SelectionRecord, SiblingRecord
from workbench.spec.tensors import norm, write_tensors

MOST_ABLATED = 64
"""Features whose single ablation is measured; beyond that it is left out, with the reason."""
SIBLING_COSINE = 0.7
"""Cosine of decoder rows from which another feature is called a sibling."""


@dataclass(frozen=True)
class Texts:
    """What only a person can say about a spec.

    Attributes:
        name: Identifier.
        title: What it is for, in one line.
        purpose: Which harm, whose definition, for whom.
        why_an_edit: Why an activation edit rather than a fine-tune, a classifier or a prompt.
        author: Who made it.
        limitations: What is unknown, weak or failed; at least one.
        labels: `(dictionary id, index)` → label and who wrote it.
    """

    name: str
    title: str
    purpose: str
    why_an_edit: str
    author: str
    limitations: tuple[str, ...]
    labels: Mapping[tuple[str, int], tuple[str, str]] = field(default_factory=dict)


def export(
    path: str | os.PathLike[str],
    measurement: TrialMeasurement,
    subject: Subject,
    dictionaries: Mapping[str, Dictionary],
    *,
    texts: Texts,
    kind: str = "edit",
    found: Found | None = None,
    ranking: Ranking | None = None,
    corpus: Sequence[str] = (),
    corpus_name: str = "dev documents",
    overwrite: bool = False,
) -> Path:
    """Write the bundle of a measured candidate.

    Args:
        path: A folder, or a file that ends in `.wbspec`.
        measurement: The evidence.
        subject: The model.
        dictionaries: Dictionaries by id.
        texts: What a person says about it.
        kind: `edit` or `diagnostic`.
        found: The search that picked it; its rankings are the features' selection evidence.
        ranking: Selection evidence from elsewhere, looked at first.
        corpus: Documents that density, largest activation and examples of the features are measured on.
        corpus_name: What they are.
        overwrite: Replace a bundle that is already there.

    Raises:
        TrialError: The subject is not the one that was measured, or no known answer can prove an edit.
        BundleError: The parts do not belong together; nothing is written.
    """
    plan, edits = measurement.plan.document, measurement.plan.edits
    record = subject_record(subject)
    if record.identity() != measurement.subject:
        raise TrialError("the subject is not the one that was measured", where=f"subject {subject.name}")
    documents, tensors = edits.to_doc()
    arrays = {name: np.ascontiguousarray(tensor.numpy(), np.float32) for name, tensor in tensors.items()}
    axis = measurement.plan.axes[plan.primary]
    used = {one.id: one for one in used_dictionaries(edits, dictionaries.values())}
    rankings = [one for one in (ranking, *((found.ranking, found.gate_ranking) if found else ())) if one is not None]
    notes = _FeatureNotes(subject, used, axis, rankings, texts)
    spec = Spec(
        kind=kind,  # type: ignore[arg-type]
        name=texts.name,
        title=texts.title,
        purpose=texts.purpose,
        why_an_edit=texts.why_an_edit,
        author=texts.author,
        created=now(),
        subject=record,
        dictionaries=tuple(dictionary_record(one) for one in used.values()),
        sites=site_records(subject, edits),
        features=notes.records(edits, corpus, corpus_name),
        edits=tuple(EditDocument.from_json(document) for document in documents),
        tensors=_tensor_file(arrays),
        known_answers=make_known_answers(subject, edits, _prompts(measurement)),
        limitations=texts.limitations,
        invalid_when=_INVALID_WHEN,
        provenance=_provenance(measurement, found),
        unmeasured=_UNMEASURED,
    )
    outcomes = {name: one.columns for name, one in measurement.axes.items()}
    return write_bundle(path, spec, plan, measurement.document, arrays, outcomes, overwrite=overwrite)


def _prompts(measurement: TrialMeasurement) -> list[str]:
    """Give dev prompts of every axis in turn, the primary one's most, so that known answers see varied text."""
    plan = measurement.plan
    primary = plan.axes[plan.document.primary].items("dev", 48, seed=2)
    others = [axis.items("dev", 1, seed=2)[0] for name, axis in plan.axes.items() if name != plan.document.primary]
    return [item.text for item in (*primary[:5], *others[:3], *primary[5:], *others[3:])]


def _tensor_file(arrays: Mapping[str, np.ndarray]) -> TensorFile:
    records = tuple(
        TensorRecord(name=name, shape=arrays[name].shape, norm=norm(arrays[name])) for name in sorted(arrays)
    )
    return TensorFile(sha256=sha256_hex(write_tensors(dict(arrays))), tensors=records)


def _provenance(measurement: TrialMeasurement, found: Found | None) -> Provenance:
    plan = measurement.plan.document
    space = found.space if found else "not recorded: the candidate was built by hand"
    search = SearchRecord(
        candidates_tried=plan.candidates_tried, space=space, selection_rule=plan.selection_rule, split="dev"
    )
    log = digest([dict(one) for one in found.tried]) if found else None
    return Provenance(
        code=measurement.code,
        environment=measurement.environment,
        journal=log,
        n_steps=len(found.tried) if found else None,
        search=search,
    )


class _FeatureNotes:
    """What is known of each edited feature: firing on a corpus, selection, ablation alone, near duplicates."""

    def __init__(
        self,
        subject: Subject,
        dictionaries: Mapping[str, Dictionary],
        axis: Axis,
        rankings: Sequence[Ranking],
        texts: Texts,
    ):
        self.subject, self.dictionaries, self.axis, self.texts = subject, dictionaries, axis, texts
        self._selected: dict[tuple[str, int], SelectionRecord] = {}
        for ranking in rankings:
            for place, row in enumerate(ranking.rows, start=1):
                if row.effect_interval is not None:
                    record = _selection_record(ranking, place, row, row.effect_interval)
                    self._selected.setdefault((row.dictionary, row.index), record)

    def records(self, edits: Edits, corpus: Sequence[str], corpus_name: str) -> tuple[FeatureRecord, ...]:
        targets = [edit.target for edit in edits] + [edit.gate.target for edit in edits if edit.gate]
        wanted = dict.fromkeys((t.dictionary_id, t.index) for t in targets if isinstance(t, FeatureTarget))
        readings = Readings(self.subject, Corpus(corpus_name, tuple(corpus))) if corpus else None
        dev = prepare(self.subject, self.axis.items("dev", 64, seed=2)) if len(wanted) <= MOST_ABLATED else None
        level = float(measure(self.subject, dev).value.mean()) if dev else 0.0
        return tuple(self._record(*one, readings, dev, level) for one in wanted)

    def _record(
        self, name: str, index: int, readings: Readings | None, dev: Prepared | None, level: float
    ) -> FeatureRecord:
        missing: dict[str, str] = {}
        firing = self._firing(name, index, readings, missing)
        label, author = self.texts.labels.get((name, index), ("", "nobody has labelled it"))
        return FeatureRecord(
            dictionary=name,
            index=index,
            label=label,
            labelled_by=author,
            **firing,
            selection=self._selection(name, index, missing),
            ablation_effect=self._ablation(name, index, dev, level, missing),
            siblings=self._siblings(name, index),
            unmeasured=missing,
        )

    def _firing(self, name: str, index: int, readings: Readings | None, missing: dict[str, str]) -> dict:
        if readings is None:
            for one in ("density", "max_activation", "n_tokens", "corpus"):
                missing[one] = "no corpus was given"
            return dict.fromkeys(("density", "max_activation", "n_tokens", "corpus"))
        seen = profile(readings, self.dictionaries[name], index, n_top=2, n_random=2)
        examples = [_example(one, "top") for one in seen.top] + [_example(one, "random") for one in seen.random]
        return {
            "density": seen.density,
            "max_activation": seen.max,
            "n_tokens": seen.n_tokens,
            "corpus": digest([str(one) for one in readings.corpus.documents]),
            "examples": tuple(examples),
        }

    def _selection(self, name: str, index: int, missing: dict[str, str]) -> SelectionRecord | None:
        found = self._selected.get((name, index))
        if found is None:
            missing["selection"] = "it was not among the ranked features that intervals were computed for"
        return found

    def _ablation(
        self, name: str, index: int, dev: Prepared | None, level: float, missing: dict[str, str]
    ) -> float | None:
        if dev is None:
            missing["ablation_effect"] = f"more than {MOST_ABLATED} features are edited; not measured one by one"
            return None
        alone = Edits((Edit("zero_ablate", FeatureTarget.of(self.dictionaries[name], index)),))
        return float(measure(self.subject, dev, alone, allow_idle=True).value.mean()) - level

    def _siblings(self, name: str, index: int) -> tuple[SiblingRecord, ...]:
        rows = self.dictionaries[name].weights["W_dec"].float()
        units = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        cosines = units @ units[index]
        cosines[index] = 0
        values, places = cosines.abs().topk(min(3, len(cosines)))
        return tuple(
            SiblingRecord(index=int(place), cosine=float(cosines[place]))
            for value, place in zip(values.tolist(), places.tolist(), strict=True)
            if value >= SIBLING_COSINE
        )


def _example(seen: Example, drawn: Literal["top", "random"]) -> ExampleRecord:
    plain = [k for k, special in enumerate(seen.special) if not special]
    at = max(plain, key=seen.values.__getitem__)
    text = "".join(seen.tokens)
    return ExampleRecord(text=text, token=seen.tokens[at], activation=seen.values[at], drawn=drawn)


def _selection_record(ranking: Ranking, place: int, row: RankedFeature, bounds: tuple[float, float]) -> SelectionRecord:
    return SelectionRecord(
        axis=ranking.axis,
        split=ranking.split,
        effect=row.effect,
        low=bounds[0],
        high=bounds[1],
        auroc=row.auroc,
        n=ranking.n_present + ranking.n_absent,
        rank=place,
        n_ranked=len(ranking.rows),
    )


_INVALID_WHEN = (
    Condition(text="The subject's weights, configuration, tokenizer or chat template differ.", check="subject_digest"),
    Condition(text="The subject runs in another precision than it was measured in.", check="dtype"),
    Condition(text="A runtime does not reproduce the known answers.", check="known_answers"),
    Condition(text="Prompts are of another kind or language than those of the plan's axes.", check="manual"),
)
_UNMEASURED = {
    "monitoring": "no monitor was calibrated; nothing would tell in production",
    "served_stack": "quantised, batched and cached serving stacks were not measured",
    "dtypes": "no other precision was measured",
    "training_seeds": "no other training seed of the subject was measured",
}
