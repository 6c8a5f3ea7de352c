"""What every document of a bundle shares: strict types, one byte form, one digest.

A document is immutable and its file is exactly its RFC 8785 bytes, so its identity is their SHA-256. Every field is
present in the file; a number that was not measured is null, with the reason beside it.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.core.canonical import MAX_SAFE_INTEGER, canonical_bytes, sha256_hex
from workbench.core.errors import BundleError
from workbench.spec.strict import check_canonical, loads

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 as 64 lower-case hexadecimal digits."""
Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""Identifier: ASCII letters, digits, `.`, `_`, `-`; at most 64, so that no two ids look alike."""
DictionaryId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]
"""Id of a dictionary: `resid.2`, `gemma-scope-2:resid/17/16k`."""
Title = Annotated[str, Field(min_length=1, max_length=200)]
"""One line a person reads."""
Text = Annotated[str, Field(min_length=1, max_length=4000)]
"""A paragraph a person reads."""
LongText = Annotated[str, Field(max_length=200_000)]
"""Model text: a prompt or a continuation; may be empty, may be hostile."""
Time = Annotated[str, Field(pattern=r"^\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-6]\d(\.\d{1,6})?Z$")]
"""UTC time, ISO 8601, ending in Z."""
Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""256 random bits as hexadecimal digits."""
SiteName = Annotated[str, Field(pattern=r"^(resid|attn|mlp|mlp_in)\.\d{1,4}$|^head\.\d{1,4}\.\d{1,4}$")]
"""Canonical site: `resid.2`, `attn.2`, `mlp.2`, `mlp_in.2`, `head.2.3`; layers count from 0."""
ModulePath = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+){0,15}$", max_length=200)]
"""Dotted path of a module below the Hugging Face model."""
Count = Annotated[int, Field(ge=0, le=MAX_SAFE_INTEGER)]
"""How many, from 0."""
Positive = Annotated[int, Field(ge=1, le=MAX_SAFE_INTEGER)]
"""How many, from 1."""
TensorKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,127}$")]
"""Name of a tensor in `tensors.safetensors`."""

AnyDocument = TypeVar("AnyDocument", bound="Document")


class Document(BaseModel):
    """A part of a bundle: strict, frozen, closed to unknown fields, finite numbers only."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
        defer_build=True,
    )

    def to_json(self) -> dict:
        """Give the document as JSON values."""
        return self.model_dump(mode="json")

    def to_bytes(self) -> bytes:
        """Give the document's RFC 8785 bytes: exactly its file."""
        return canonical_bytes(self.to_json())

    def identity(self) -> str:
        """Give the SHA-256 of the document's bytes."""
        return sha256_hex(self.to_bytes())

    @classmethod
    def from_json(cls: type[AnyDocument], value: dict) -> AnyDocument:
        """Make a document from JSON values (lists and dicts), absent fields taking their defaults.

        Raises:
            BundleError: A field is missing, unknown, of the wrong type or out of range; it is named.
        """
        return _validated(cls, canonical_bytes(value), None)

    @classmethod
    def from_bytes(cls: type[AnyDocument], data: bytes, *, path: str | None = None) -> AnyDocument:
        """Read a document strictly from its file's bytes.

        Raises:
            BundleError: Not strict JSON, not canonical, or not this document. Its check is `json` or `schema`.
        """
        value = loads(data, path=path)
        try:
            document = _validated(cls, data, path)
        except BundleError:
            check_canonical(value, data, path=path)
            raise
        if document.to_bytes() != data:
            check_canonical(value, data, path=path)
            missing = ", ".join(sorted(_missing(document.to_json(), value))[:5])
            message = f"fields are absent that must be written out: {missing or 'unknown'}"
            raise BundleError(message, check="schema", path=path)
        return document


def _validated(cls: type[AnyDocument], data: bytes, path: str | None) -> AnyDocument:
    try:
        return cls.model_validate_json(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        first = found[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        value = repr(first["input"])
        value = value if len(value) <= 60 else value[:57] + "..."
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        if first["type"] == "extra_forbidden":
            message = f"unknown field {field}{more}"
        elif first["type"] == "missing":
            message = f"the field {field} is missing{more}"
        else:
            message = f"{field}: {first['msg']}, got {value}{more}"
        raise BundleError(message, check="schema", path=path) from error


def _missing(full: object, written: object, prefix: str = "") -> set[str]:
    if isinstance(full, dict) and isinstance(written, dict):
        gone = {prefix + key for key in full if key not in written}
        return gone.union(*(_missing(full[key], written[key], f"{prefix}{key}.") for key in written if key in full))
    if isinstance(full, list) and isinstance(written, list):
        return set().union(
            *(_missing(a, b, f"{prefix}{k}.") for k, (a, b) in enumerate(zip(full, written, strict=False)))
        )
    return set()
