"""A spec bundle: its documents, tensors and outcomes as values, written whole, read with every byte accounted for.

Reading a bundle checks its bytes (archive, JSON, schema, tensors, manifest, outcomes). Whether its documents belong
together and its verdicts hold is for `workbench.spec.verify`, which a reader runs first.

Example:
    >>> bundle = read_bundle("lies.wbspec")
    >>> bundle.spec.title, bundle.measurement.axes[0].estimate.verdict
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workbench.core.canonical import sha256_hex
from workbench.core.errors import BundleError
from workbench.spec.archive import read_files, write_files
from workbench.spec.documents.base import Document
from workbench.spec.documents.manifest import NAME as MANIFEST
from workbench.spec.documents.manifest import Manifest
from workbench.spec.documents.measurement import Measurement
from workbench.spec.documents.plan import Plan
from workbench.spec.documents.spec import Spec
from workbench.spec.outcomes import Outcomes, read_outcomes
from workbench.spec.tensors import check_declared, read_tensors, write_tensors

DOCUMENTS: dict[str, type[Document]] = {
    "spec.json": Spec,
    "plan.json": Plan,
    "measurement.json": Measurement,
    MANIFEST: Manifest,
}
TENSORS = "tensors.safetensors"
DOSSIER = "dossier.html"


class Documents(NamedTuple):
    """The four JSON documents of a bundle."""

    spec: Spec
    plan: Plan
    measurement: Measurement
    manifest: Manifest


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read.

    Attributes:
        path: Where it was read from.
        files: Every file's bytes, by name.
        spec: What the edit is.
        plan: What was promised.
        measurement: What was found.
        tensors: Key → read-only float32 array.
        outcomes: Axis id → every outcome.
    """

    path: Path
    files: Mapping[str, bytes]
    spec: Spec
    plan: Plan
    measurement: Measurement
    tensors: Mapping[str, np.ndarray]
    outcomes: Mapping[str, Outcomes]

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest: the identity of all its bytes."""
        return sha256_hex(self.files[MANIFEST])

    @property
    def dossier(self) -> str:
        """The committee's page."""
        return self.files[DOSSIER].decode("utf-8")

    def __repr__(self) -> str:
        return f"Bundle({self.spec.name!r}, kind={self.spec.kind!r}, digest={self.digest[:12]})"


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle, a folder or a `.wbspec` file; nothing is extracted and nothing in it is executed.

    Raises:
        BundleError: Its bytes are refused; check and file are named.
    """
    files = read_files(path)
    documents = read_documents(files)
    tensors = read_declared_tensors(files, documents)
    check_manifest(files, documents.manifest)
    return assembled(path, files, documents, tensors, read_all_outcomes(files, documents.measurement))


def read_documents(files: Mapping[str, bytes]) -> Documents:
    """Read every JSON document of a bundle strictly.

    Raises:
        BundleError: Check `json` or `schema`.
    """
    return Documents(
        Spec.from_bytes(files["spec.json"], path="spec.json"),
        Plan.from_bytes(files["plan.json"], path="plan.json"),
        Measurement.from_bytes(files["measurement.json"], path="measurement.json"),
        Manifest.from_bytes(files[MANIFEST], path=MANIFEST),
    )


def read_declared_tensors(files: Mapping[str, bytes], documents: Documents) -> dict[str, np.ndarray]:
    """Read the tensors and check them against what the spec declares.

    Raises:
        BundleError: Check `tensors`.
    """
    tensors = read_tensors(files[TENSORS], path=TENSORS)
    check_declared(tensors, documents.spec.tensors.tensors, path=TENSORS)
    return tensors


def check_manifest(files: Mapping[str, bytes], manifest: Manifest) -> None:
    """Check that the files are exactly those of the manifest.

    Raises:
        BundleError: A file is missing, not listed, or differs; it is named. Check `manifest`.
    """
    listed = {record.path: record for record in manifest.files}
    present = set(files) - {MANIFEST}
    if extra := sorted(present - set(listed)):
        raise BundleError(f"is in the bundle and not listed in {MANIFEST}", check="manifest", path=extra[0])
    if missing := sorted(set(listed) - present):
        raise BundleError(f"lists {missing[0]}, which is not in the bundle", check="manifest", path=MANIFEST)
    for name, record in sorted(listed.items()):
        data = files[name]
        if len(data) != record.size:
            message = f"is {len(data)} bytes long, {MANIFEST} lists {record.size}"
            raise BundleError(message, check="manifest", path=name)
        if sha256_hex(data) != record.sha256:
            message = f"was changed: its SHA-256 begins {sha256_hex(data)[:12]}, {MANIFEST} lists {record.sha256[:12]}"
            raise BundleError(message, check="manifest", path=name)


def read_all_outcomes(files: Mapping[str, bytes], measurement: Measurement) -> dict[str, Outcomes]:
    """Read the outcomes of every measured axis, after their digests were checked against the measurement.

    Raises:
        BundleError: A file is missing, nobody's, or not what was measured. Check `outcomes`.
    """
    found = {}
    for axis in measurement.axes:
        record = axis.outcomes
        if record.path not in files:
            raise BundleError("is missing from the bundle", check="outcomes", path=record.path)
        if sha256_hex(files[record.path]) != record.sha256:
            raise BundleError("is not the file that measurement.json names", check="outcomes", path=record.path)
        found[axis.axis] = read_outcomes(files[record.path], path=record.path)
        if len(found[axis.axis]) != record.rows:
            message = f"holds {len(found[axis.axis])} outcomes, measurement.json says {record.rows}"
            raise BundleError(message, check="outcomes", path=record.path)
    spare = sorted(name for name in files if name.startswith("outcomes/"))
    if spare := [name for name in spare if name not in {axis.outcomes.path for axis in measurement.axes}]:
        raise BundleError("belongs to no axis of measurement.json", check="outcomes", path=spare[0])
    return found


def assembled(
    path: str | os.PathLike[str],
    files: Mapping[str, bytes],
    documents: Documents,
    tensors: Mapping[str, np.ndarray],
    outcomes: Mapping[str, Outcomes],
) -> Bundle:
    """Give a bundle of parts that were read and checked."""
    return Bundle(Path(path), files, documents.spec, documents.plan, documents.measurement, tensors, outcomes)


def make_files(
    spec: Spec,
    plan: Plan,
    measurement: Measurement,
    tensors: Mapping[str, np.ndarray],
    outcomes: Mapping[str, Outcomes],
) -> dict[str, bytes]:
    """Give every file of a bundle: documents, tensors, outcomes, the dossier rendered from them, and the manifest."""
    from workbench.spec.dossier import render

    files = {
        "spec.json": spec.to_bytes(),
        "plan.json": plan.to_bytes(),
        "measurement.json": measurement.to_bytes(),
        TENSORS: write_tensors(dict(tensors)),
        **{axis.outcomes.path: outcomes[axis.axis].to_bytes() for axis in measurement.axes},
    }
    # from what a reader will read: in a file, keys are sorted and −0 is 0
    read = (Spec.from_bytes(files["spec.json"]), Plan.from_bytes(files["plan.json"]))
    page = render(*read, Measurement.from_bytes(files["measurement.json"]), dict(outcomes))
    files[DOSSIER] = page.encode("utf-8")
    files[MANIFEST] = Manifest.of(files).to_bytes()
    return files


def write_bundle(
    path: str | os.PathLike[str],
    spec: Spec,
    plan: Plan,
    measurement: Measurement,
    tensors: Mapping[str, np.ndarray],
    outcomes: Mapping[str, Outcomes],
    *,
    overwrite: bool = False,
) -> Path:
    """Write a bundle whole or not at all, after it passed every check that a reader will run.

    Args:
        path: A folder, or a file that ends in `.wbspec`.
        spec: What the edit is.
        plan: What was promised.
        measurement: What was found.
        tensors: Key → float32 array, exactly what the edits name.
        outcomes: Axis id → its outcomes.
        overwrite: Replace a bundle that is already there.

    Raises:
        BundleError: The parts do not belong together; check and file are named, nothing is written.
        InputError: Something else is already there.
    """
    from workbench.spec.verify import verify_files

    files = make_files(spec, plan, measurement, tensors, outcomes)
    found = verify_files(files)
    if not found.ok:
        failed = found.checks[-1]
        raise BundleError(f"this bundle would be refused: {failed.message}", check=failed.id)
    return write_files(path, files, overwrite=overwrite)
