"""Candidates: edits somebody thought worth keeping, with the reason, found again tomorrow.

A candidate is the edit documents in the journal and its tensors in one safetensors file named by the edit's digest.
Nothing is overwritten: committing the same edit twice gives two records of one digest.

Example:
    >>> c = b.commit(wb.edits.scale(f, 0.0), why="lies under incentive")
    >>> b.history()
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save

from workbench.core.errors import InputError, JournalError
from workbench.core.files import write_atomic
from workbench.interventions.edits import Edits
from workbench.journal import Journal, Record


@dataclass(frozen=True)
class Candidate:
    """An edit that was committed.

    Attributes:
        id: `c1`, `c2`, … in the order of committing.
        edits: What it does.
        why: The reason somebody gave.
        time: UTC time, ISO 8601.
        digest: SHA-256 of the edits, documents and tensors.
    """

    id: str
    edits: Edits
    why: str
    time: str
    digest: str

    def __repr__(self) -> str:
        sentence = self.edits.describe()["sentence"]
        return f"Candidate({self.id!r}, {sentence!r}, why={self.why!r}, digest={self.digest[:12]})"


def commit(journal: Journal, folder: Path, edits: Edits, *, why: str) -> Candidate:
    """Keep an edit: its tensors first, then the record that names them.

    Raises:
        InputError: No reason was given, or there is no edit.
    """
    if not why.strip():
        raise InputError("a candidate needs a reason", hint="b.commit(edit, why='what it is meant to change')")
    if not edits.items:
        raise InputError("there is nothing to commit: the edit is empty")
    documents, tensors = edits.to_doc()
    digest = edits.digest()
    path = _tensor_path(folder, digest)
    if not path.exists():
        write_atomic(path, save({name: tensor.clone().contiguous() for name, tensor in tensors.items()}))
    number = len(journal.records("committed")) + 1
    record = journal.append("committed", {"candidate": f"c{number}", "why": why, "digest": digest, "edits": documents})
    return Candidate(f"c{number}", edits, why, record.time, digest)


def candidates(journal: Journal, folder: Path) -> list[Candidate]:
    """Give every candidate of the project, oldest first."""
    return [_load(folder, record) for record in journal.records("committed")]


def _load(folder: Path, record: Record) -> Candidate:
    payload = record.payload
    path = _tensor_path(folder, payload["digest"])
    if not path.is_file():
        raise JournalError(f"the tensors of candidate {payload['candidate']} are gone", where=str(path))
    edits = Edits.from_doc(payload["edits"], load_file(path))
    if edits.digest() != payload["digest"]:
        raise JournalError(
            f"candidate {payload['candidate']} is not what was committed: digest {edits.digest()[:12]}, "
            f"recorded {payload['digest'][:12]}",
            where=str(path),
        )
    return Candidate(payload["candidate"], edits, payload["why"], record.time, payload["digest"])


def _tensor_path(folder: Path, digest: str) -> Path:
    return folder / "candidates" / f"{digest}.safetensors"
