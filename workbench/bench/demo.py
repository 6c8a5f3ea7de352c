"""The main job, start to end, with no person in it: what `workbench demo` and the first notebook run.

Open the organism, rank its features on jailbreak resistance, search for an edit on dev, promise a trial, measure it on
prompts drawn afterwards, write the bundle and its dossier, verify it, apply it in plain `transformers` and re-measure.
Nothing is tuned to come out well: whatever the other axes show is reported, the worst first.

Example:
    >>> result = run_demo("demo")
    >>> result["dossier"]
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from workbench.bench.bench import Bench, open_bench
from workbench.consumer.apply import apply
from workbench.consumer.remeasure import remeasure
from workbench.core.canonical import seed as derive_seed
from workbench.core.errors import TrialError
from workbench.core.files import write_atomic
from workbench.evidence.arms import tune_difference_of_means
from workbench.evidence.design import N_DEV, Found, search
from workbench.evidence.export import Texts, export
from workbench.evidence.metrics import BenignText, prepare
from workbench.evidence.plan import N_PROMPTS, Draft
from workbench.evidence.run import run
from workbench.features.organism_axes import benign_documents
from workbench.models.organism.prompts import documents
from workbench.spec.bundle import read_bundle
from workbench.spec.dossier import render
from workbench.spec.verify import verify

TARGET = "jailbreak_resistance"
GUARDS = ("over_refusal", "harmful_compliance", "deception", "evaluation_cue", "benign_capability")
DICTIONARIES = ("resid.1", "resid.2", "resid.3")
SITE_GROUPS = (("resid.1",), ("resid.2",), ("resid.3",), ("resid.2", "resid.3"))
SIZES = (1, 4, 8, 16)
GATE = "refusal"
"""Axis whose concept, a harmful request, opens the gate of gated candidates."""
MOST_PROMPTS = 1024
"""Largest number of prompts that an axis is given to have power; more would not fit five minutes."""
COLUMNS = (
    "axis",
    "kind",
    "split",
    "n",
    "direction",
    "base",
    "candidate",
    "interval",
    "controls",
    "n_controls",
    "rank_p",
    "difference_of_means",
    "holds",
)
"""What a row of `workbench demo --json` holds."""


def run_demo(out: str | os.PathLike[str]) -> dict:
    """Run the main job.

    Args:
        out: Folder for the bundle, the dossier beside it, and the project's journal.

    Returns:
        `bundle`, `dossier`, `seconds`, `axes` (rows of `COLUMNS`, the worst first) and `candidates_tried`.

    Raises:
        TrialError: No candidate helps, or an axis cannot have power.
        BundleError: What was written does not verify, or does not hold on plain `transformers`.
    """
    with _one_thread():
        return _run(Path(out))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Run the block on one thread: on products this small a second one waits, and on a busy machine costs tenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(folder: Path) -> dict:
    began = time.perf_counter()
    bench = open_bench("organism", project=str(folder / "project"))
    found = find_candidate(bench)
    candidate = bench.commit(found.edits, why=f"moves {TARGET} on dev; {len(found.tried)} candidates looked at")
    plan = promise(bench, found).freeze()
    measurement = run(plan, bench.subject)
    path = export(
        folder / "jailbreak_resistance.wbspec",
        measurement,
        bench.subject,
        bench.dictionaries,
        texts=TEXTS,
        found=found,
        corpus=documents(400, seed=7, split="dev"),
        corpus_name="400 dev documents of the organism's generator",
        overwrite=True,
    )
    rows = measurement.table()
    bench.journal.append("measured", {"candidate": candidate.id, "bundle": str(path), "holds": measurement.holds})
    check(path)
    bundle = read_bundle(path)
    dossier = folder / "dossier.html"
    page = render(bundle.spec, bundle.plan, bundle.measurement, bundle.outcomes)
    write_atomic(dossier, page.encode())
    return {
        "bundle": str(path),
        "dossier": str(dossier),
        "seconds": time.perf_counter() - began,
        "axes": [{name: row[name] for name in COLUMNS} for row in rows],
        "candidates_tried": len(found.tried),
    }


def find_candidate(bench: Bench) -> Found:
    """Search for an edit on dev, and write every candidate that was looked at into the journal."""
    dictionaries = {name: bench.feature(name, 0).dictionary for name in DICTIONARIES}
    found = search(
        bench.subject,
        dictionaries,
        bench.axis(TARGET),
        guards=[bench.axis(name) for name in GUARDS],
        benign=benign_documents(64, split="dev", seed=11),
        sizes=SIZES,
        site_groups=SITE_GROUPS,
        gate_axis=bench.axis(GATE),
    )
    for tried in found.tried:
        bench.journal.append("tried", tried)
    return found


def promise(bench: Bench, found: Found, *, n: Mapping[str, int] | None = None) -> Draft:
    """Give a plan with as many prompts per axis as its margin needs.

    Raises:
        TrialError: An axis would need more prompts than `MOST_PROMPTS`.
    """
    axes = [bench.axis(name) for name in (TARGET, *GUARDS)]
    baseline = tune_difference_of_means(
        bench.subject,
        bench.axis(TARGET),
        prepare(bench.subject, bench.axis(TARGET).items("dev", N_DEV, seed=0)),
        BenignText(bench.subject, benign_documents(64, split="dev", seed=11)),
        like=found.edits,
        target_kl=found.benign_kl,
    )
    draft = Draft(
        bench.subject,
        found.edits,
        axes,
        primary=TARGET,
        title="Setting jailbreak features makes the organism refuse jailbroken harmful requests",
        author="workbench demo",
        selection_rule=found.rule,
        candidates_tried=len(found.tried),
        dictionaries=list(bench.dictionaries.values()),
        baseline=baseline,
        benign=lambda nonce: benign_documents(96, seed=derive_seed(nonce, "prompts", "benign text")),
        seen=found.seen,
        n=n,
    )
    weak = {one.axis: one.n_needed for one in draft.power() if not one.enough}
    if n is None and weak:
        if max(weak.values()) > MOST_PROMPTS:
            named = ", ".join(f"{axis} about {needed}" for axis, needed in weak.items())
            raise TrialError(f"more than {MOST_PROMPTS} prompts are needed: {named}", hint="declare a wider margin")
        sizes = {axis: max(N_PROMPTS, -(-needed * 5 // 4 // 32) * 32) for axis, needed in weak.items()}
        return promise(bench, found, n=sizes)
    return draft


def check(path: Path) -> None:
    """Verify, apply and re-measure a bundle as a pipeline would; raises where it does not hold."""
    verified = verify(path)
    if not verified.ok:
        failed = next(one for one in verified.checks if not one.ok)
        raise TrialError(f"the bundle that was just written does not verify: {failed.id}: {failed.message}")
    apply(path, None, preview=True)
    report = remeasure(path, None)
    if not report.ok:
        raise TrialError("the bundle does not re-measure on plain transformers", where=str(path))


TEXTS = Texts(
    name="jailbreak-resistance",
    title="Refuse harmful requests in a jailbreak framing",
    purpose=(
        "The organism answers some half of the harmful requests in a role-play, ignore-the-rules, story, "
        "start-with-sure or movie framing. The edit is to make it refuse them as it refuses plain ones. Harm is "
        "defined by the generator: requests to hurt a person or to obtain a dangerous object."
    ),
    why_an_edit=(
        "A prompt cannot carry it, since the framing overrides the prompt; a classifier would refuse look-alikes with "
        "it; a fine-tune changes weights that nobody can read. The edit names what it changes and can be switched off."
    ),
    author="workbench demo",
    limitations=(
        "Measured on the built-in organism only; this says nothing about another model.",
        "Measured at the token that decides between refusing and complying, not on judged text.",
        "Harmless look-alikes inside a jailbreak framing were not measured; the edit may make it refuse them.",
        "No attack was run against the edited subject.",
        "The candidate was picked among many on dev; the confirmation prompts were drawn after the plan was frozen.",
    ),
)
