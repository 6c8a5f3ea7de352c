"""manifest.json: every other file of a bundle with its size and digest. Unsigned it detects damage, not re-hashing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from workbench.core.canonical import sha256_hex
from workbench.spec.documents.base import Count, Digest, Document

NAME = "manifest.json"


class FileRecord(Document):
    """One file."""

    path: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,119}$")]
    """Name inside the bundle."""
    size: Count
    """Bytes."""
    sha256: Digest
    """Digest of the bytes."""


class Manifest(Document):
    """All files but this one, by path."""

    schema_version: Literal["workbench.manifest/1"] = "workbench.manifest/1"
    """Version of this document type."""
    files: Annotated[tuple[FileRecord, ...], Field(min_length=1, max_length=256)]
    """Files, sorted by path."""

    @model_validator(mode="after")
    def _sorted(self) -> "Manifest":
        paths = [file.path for file in self.files]
        if paths != sorted(set(paths)) or NAME in paths:
            raise ValueError("files are listed by path, each once, the manifest itself not at all")
        return self

    @classmethod
    def of(cls, files: dict[str, bytes]) -> "Manifest":
        """Make the manifest of a bundle's files."""
        names = sorted(name for name in files if name != NAME)
        return cls(files=tuple(FileRecord(path=n, size=len(files[n]), sha256=sha256_hex(files[n])) for n in names))
