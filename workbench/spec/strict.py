"""JSON that is read the same way by everybody, or not at all.

Python's reader takes the last of two equal keys, lets NaN and `1e999` in and recurses until it falls over; a reviewer
and a pipeline could then hold one file and see two values. This reader refuses all of that by name, and a document
must moreover *be* its RFC 8785 bytes.

Source: RFC 8259, RFC 7493 (I-JSON), RFC 8785.
"""

from __future__ import annotations

import json
import math
import re
from typing import Never

from workbench.core.canonical import MAX_SAFE_INTEGER, canonical_bytes
from workbench.core.errors import BundleError, InputError

MAX_BYTES = 16 * 2**20
"""Largest document, in bytes."""
MAX_DEPTH = 32
"""Deepest nesting of arrays and objects."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class _Refusal(Exception):
    """Why the reader stopped; becomes a `BundleError` that names the file."""


def loads(data: bytes, *, path: str | None = None, max_bytes: int = MAX_BYTES) -> object:
    """Read JSON strictly.

    Args:
        data: The file's bytes.
        path: Name of the file, for the error.
        max_bytes: Largest size accepted.

    Raises:
        BundleError: Too large, too deep, not UTF-8, a byte-order mark, a duplicate key, a number that is not finite or
            an integer that not every reader keeps, a lone surrogate, or no JSON at all. Its check is `json`.
    """
    try:
        return _loads(data, max_bytes)
    except _Refusal as refusal:
        raise BundleError(str(refusal), check="json", path=path) from None


def _loads(data: bytes, max_bytes: int) -> object:
    if len(data) > max_bytes:
        raise _Refusal(f"{len(data)} bytes of JSON, at most {max_bytes} are read")
    if data.startswith(b"\xef\xbb\xbf"):
        raise _Refusal("starts with a byte-order mark")
    try:
        value = json.loads(data.decode("utf-8"), **_HOOKS)
    except UnicodeDecodeError as error:
        raise _Refusal(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        at = len(error.doc[: error.pos].encode("utf-8", "replace"))
        raise _Refusal(f"not JSON: {error.msg} at byte {at}") from None
    except RecursionError:
        raise _Refusal(f"nested deeper than {MAX_DEPTH} levels") from None
    if _too_deep(value, MAX_DEPTH):
        raise _Refusal(f"nested deeper than {MAX_DEPTH} levels")
    if b"\\u" in data and _holds_surrogate(value):
        raise _Refusal("a string holds half of a surrogate pair")
    return value


def _pairs(found: list[tuple[str, object]]) -> dict[str, object]:
    keys = dict(found)
    if len(keys) != len(found):
        seen: set[str] = set()
        twice = next(key for key, _ in found if key in seen or seen.add(key))
        raise _Refusal(f"the key {twice!r} stands twice in one object")
    return keys


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refusal(f"the number {text[:24]} is too large to be finite")
    return value


def _integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > MAX_SAFE_INTEGER:
        raise _Refusal(f"the integer {text[:24]} is beyond 2^53; write it as a string")
    return int(text)


def _constant(text: str) -> Never:
    raise _Refusal(f"{text} is not a number in JSON")


_HOOKS = {"object_pairs_hook": _pairs, "parse_float": _number, "parse_int": _integer, "parse_constant": _constant}


def check_canonical(value: object, data: bytes, *, path: str | None = None) -> None:
    """Refuse bytes that are not the RFC 8785 form of the value read from them.

    Raises:
        BundleError: They differ; the message says at which byte. Its check is `json`.
    """
    try:
        canonical = canonical_bytes(value)
    except InputError as error:
        raise BundleError(error.message, check="json", path=path) from error
    if canonical == data:
        return
    at = next(
        (k for k, (a, b) in enumerate(zip(canonical, data, strict=False)) if a != b), min(len(canonical), len(data))
    )
    raise BundleError(
        f"not in canonical form from byte {at} on: got {data[at : at + 20]!r}, expected {canonical[at : at + 20]!r}",
        check="json",
        path=path,
    )


def _too_deep(value: object, left: int) -> bool:
    if isinstance(value, dict):
        return left == 0 or any(_too_deep(item, left - 1) for item in value.values())
    return isinstance(value, list) and (left == 0 or any(_too_deep(item, left - 1) for item in value))


def _holds_surrogate(value: object) -> bool:
    if isinstance(value, str):
        return _SURROGATE.search(value) is not None
    if isinstance(value, dict):
        return any(_holds_surrogate(key) or _holds_surrogate(item) for key, item in value.items())
    return isinstance(value, list) and any(_holds_surrogate(item) for item in value)
