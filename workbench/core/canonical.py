"""One byte string for one JSON value, and the digests and seeds that stand on it.

A document's identity is the SHA-256 of its RFC 8785 bytes, so two people who hold equal digests hold equal documents.
Randomness of a trial (prompts, controls, sample draws) is derived from the nonce that was drawn after the plan was
frozen, so that nobody could have chosen it.

Source: RFC 8785 (JSON Canonicalization Scheme); RFC 2104 (HMAC).
"""

from __future__ import annotations

import hashlib
import hmac

import rfc8785

from workbench.core.errors import InputError

MAX_SAFE_INTEGER = 2**53 - 1
"""Largest integer that every JSON reader keeps; larger ones are written as strings."""


def canonical_bytes(value: object) -> bytes:
    """Give the RFC 8785 bytes of a JSON value.

    Raises:
        InputError: The value holds NaN, an infinity, an integer above 2^53 or something JSON has no form for.
    """
    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise InputError(f"cannot write as canonical JSON: {error}") from error


def sha256_hex(data: bytes) -> str:
    """Give the SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest(value: object) -> str:
    """Give the SHA-256 of a JSON value's canonical bytes."""
    return sha256_hex(canonical_bytes(value))


def derive(nonce: str, purpose: str, ident: str) -> bytes:
    """Give HMAC-SHA256(nonce, purpose ‖ 0x1f ‖ ident), 32 bytes.

    Args:
        nonce: Hexadecimal nonce of the receipt.
        purpose: What the bytes are for (`prompts`, `controls`, `samples`, …).
        ident: Axis or arm identifier.

    Raises:
        InputError: The nonce is not hexadecimal.
    """
    try:
        key = bytes.fromhex(nonce)
    except ValueError as error:
        raise InputError(f"nonce is not hexadecimal: {nonce!r}") from error
    return hmac.new(key, f"{purpose}\x1f{ident}".encode(), hashlib.sha256).digest()


def seed(nonce: str, purpose: str, ident: str) -> int:
    """Give a 63-bit seed derived from the nonce; see `derive`."""
    return int.from_bytes(derive(nonce, purpose, ident)[:8], "big") >> 1
