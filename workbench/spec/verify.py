"""Whether a bundle is what it says: bytes, documents, tensors, chain, known answers, verdicts, page. No torch.

Checks run in a fixed order and stop at the first that fails, which is named; anything that cannot be checked is
refused. That every check passes says nothing about who made the bundle: unsigned, it detects damage and contradiction,
not a consistent forgery.

Example:
    >>> found = verify("lies.wbspec")
    >>> found.ok, [check.message for check in found.checks if not check.ok]
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from workbench.core.canonical import sha256_hex
from workbench.core.errors import BundleError, WorkbenchError
from workbench.spec.archive import read_files
from workbench.spec.bundle import (
    DOSSIER,
    MANIFEST,
    Bundle,
    assembled,
    check_manifest,
    read_all_outcomes,
    read_declared_tensors,
    read_documents,
)
from workbench.spec.chain import check_chain, check_known_answers
from workbench.spec.dossier import render
from workbench.spec.verdicts import arrange, difference, judge, paired

CHECKS = ("archive", "json", "tensors", "manifest", "chain", "known_answers", "outcomes", "verdicts", "dossier")
"""Every check, in order."""

_UNFORESEEN = (WorkbenchError, ValueError, ArithmeticError, LookupError, OSError, MemoryError, RecursionError)


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        id: Which one; `schema` is the second half of `json`.
        ok: Whether it passed.
        message: What was found; where it failed, which file and why.
    """

    id: str
    ok: bool
    message: str


@dataclass(frozen=True)
class Verification:
    """What verifying a bundle found.

    Attributes:
        state: `measured`, or `refused` where a check failed.
        checks: Checks that ran, in order; at most the last one failed.
        bundle: The bundle, where every check passed.
    """

    state: str
    checks: tuple[Check, ...]
    bundle: Bundle | None = None

    @property
    def ok(self) -> bool:
        """Whether every check passed. It does not say that every axis holds; see `holds`."""
        return self.bundle is not None

    @property
    def holds(self) -> bool | None:
        """Whether every axis holds by the plan's rules; `None` where the bundle was refused."""
        return None if self.bundle is None else all(axis.estimate.holds for axis in self.bundle.measurement.axes)

    def to_json(self) -> dict:
        """Give `{"state", "ok", "checks": [{"id", "ok", "message"}]}`."""
        checks = [{"id": check.id, "ok": check.ok, "message": check.message} for check in self.checks]
        return {"state": self.state, "ok": self.ok, "checks": checks}


def verify(path: str | os.PathLike[str]) -> Verification:
    """Run every check on a bundle, a folder or a `.wbspec` file.

    Never raises on what a file holds: a bundle that cannot be read is refused.
    """
    return _run(lambda: read_files(path), path)


def verify_files(files: Mapping[str, bytes]) -> Verification:
    """Run every check on a bundle that is not on disk."""
    return _run(lambda: dict(files), "")


def _run(read: Callable[[], dict[str, bytes]], path: str | os.PathLike[str]) -> Verification:
    run = _Run(path, read)
    checks: list[Check] = []
    for name in CHECKS:
        try:
            checks.append(Check(name, True, getattr(run, name)()))
        except BundleError as error:
            checks.append(Check(error.check, False, f"{error.path}: {error.message}" if error.path else error.message))
        except _UNFORESEEN as error:
            checks.append(
                Check(name, False, f"could not be checked, so it is refused: {type(error).__name__}: {error}")
            )
        if not checks[-1].ok:
            return Verification("refused", tuple(checks))
    return Verification("measured", tuple(checks), run.bundle)


class _Run:
    """The checks, each standing on what the ones before it read."""

    def __init__(self, path: str | os.PathLike[str], read: Callable[[], dict[str, bytes]]):
        self.path, self._read = path, read

    def archive(self) -> str:
        self.files = self._read()
        return f"{len(self.files)} files, {sum(map(len, self.files.values())):,} bytes, nothing else"

    def json(self) -> str:
        self.documents = read_documents(self.files)
        return f"{len(self.documents)} documents, strict and canonical"

    def tensors(self) -> str:
        self.arrays = read_declared_tensors(self.files, self.documents)
        return f"{len(self.arrays)} tensors as declared, float32, finite"

    def manifest(self) -> str:
        check_manifest(self.files, self.documents.manifest)
        return f"every file is the one that {MANIFEST} lists"

    def chain(self) -> str:
        check_chain(self.files, self.documents.spec, self.documents.plan, self.documents.measurement, self.arrays)
        return "measurement, plan, edits, tensors, subject and dictionaries name each other"

    def known_answers(self) -> str:
        spec = self.documents.spec
        check_known_answers(spec)
        return f"{len(spec.known_answers.answers)} known answers, every edit acts in at least one"

    def outcomes(self) -> str:
        measurement, plan = self.documents.measurement, self.documents.plan
        columns = read_all_outcomes(self.files, measurement)
        self.bundle = assembled(self.path, self.files, self.documents, self.arrays, columns)
        self.grids = {
            axis.id: arrange(plan, axis, len(measured.prompts), columns[axis.id])
            for axis, measured in paired(plan, measurement)
        }
        return f"{sum(map(len, columns.values())):,} outcomes, every promised arm, control and prompt is there"

    def verdicts(self) -> str:
        plan, measurement = self.bundle.plan, self.bundle.measurement
        for axis, measured in paired(plan, measurement):
            found = judge(plan, axis, measurement.nonce, self.grids[axis.id])
            differs = difference(axis, measured.estimate, found)
            if differs:
                raise BundleError(f"axis {axis.id}: {differs}", check="verdicts", path="measurement.json")
        short = [f"{one.axis} {one.estimate.verdict.replace('_', ' ')}" for one in measurement.axes]
        short = [text for text, one in zip(short, measurement.axes, strict=True) if not one.estimate.holds]
        n = len(measurement.axes)
        return f"recomputed; {n - len(short)} of {n} axes hold" + (f"; not: {', '.join(short)}" if short else "")

    def dossier(self) -> str:
        bundle = self.bundle
        digests = {name: sha256_hex(self.files[name]) for name in ("spec.json", "plan.json", "measurement.json")}
        page = render(bundle.spec, bundle.plan, bundle.measurement, dict(bundle.outcomes), digests=digests).encode()
        if page != self.files[DOSSIER]:
            at = next((k for k, (a, b) in enumerate(zip(page, self.files[DOSSIER], strict=False)) if a != b), len(page))
            message = f"is not what the documents render to, from byte {at} on"
            raise BundleError(message, check="dossier", path=DOSSIER)
        return "the page is what the documents render to"
