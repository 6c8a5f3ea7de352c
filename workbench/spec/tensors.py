"""Tensors that are read without trusting the file: safetensors, bounded, float32 only, one byte form.

A weight file is where code execution hides (pickle) and where a header can promise a terabyte. This reader looks at
the bytes only: magic, a bounded header, no gap, no overlap, nothing behind the end, no value that is not finite. And
since one set of tensors has exactly one byte form here, a file that reads the same but differs is refused too.

Source: the safetensors format (8-byte header length, JSON header, tensor data).
"""

from __future__ import annotations

import math
import struct

import numpy as np

from workbench.core.canonical import canonical_bytes
from workbench.core.errors import BundleError, InputError
from workbench.spec.strict import loads

MAX_BYTES = 256 * 2**20
"""Largest file, in bytes: rows of a few features, never a whole dictionary."""
MAX_HEADER = 2**20
"""Largest header, in bytes."""
MAX_TENSORS = 4096
"""Most tensors in a file."""

_PICKLES = tuple(bytes([0x80, version]) for version in range(1, 6))
_ZIP = b"PK"


def write_tensors(tensors: dict[str, np.ndarray]) -> bytes:
    """Give the one safetensors file that holds these tensors: float32, keys sorted, data in the same order.

    Raises:
        InputError: A tensor is not float32 or holds a value that is not finite.
    """
    header, chunks, end = {}, [], 0
    for name in sorted(tensors):
        array = tensors[name]
        if array.dtype != np.float32:
            raise InputError(f"tensor {name} is {array.dtype}, expected float32")
        if not np.isfinite(array).all():
            raise InputError(f"tensor {name} holds NaN or an infinity")
        raw = np.ascontiguousarray(array, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [end, end + len(raw)]}
        chunks.append(raw)
        end += len(raw)
    head = canonical_bytes(header)
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + b"".join(chunks)


def read_tensors(data: bytes, *, path: str = "tensors.safetensors") -> dict[str, np.ndarray]:
    """Read a safetensors file.

    Returns:
        Key → read-only float32 array.

    Raises:
        BundleError: Anything but what `write_tensors` writes; its check is `tensors`.
    """
    try:
        return _read(data)
    except _Refusal as refusal:
        raise BundleError(str(refusal), check="tensors", path=path) from None


class _Refusal(Exception):
    """Why the reader stopped; becomes a `BundleError` that names the file."""


def _read(data: bytes) -> dict[str, np.ndarray]:
    if data.startswith(_PICKLES):
        raise _Refusal("is a pickle, which runs code when it is read; expected safetensors")
    if data.startswith(_ZIP):
        raise _Refusal("is a zip or a PyTorch checkpoint; expected safetensors")
    if not 8 <= len(data) <= MAX_BYTES:
        raise _Refusal(f"{len(data)} bytes, expected 8 to {MAX_BYTES}")
    (size,) = struct.unpack_from("<Q", data)
    if size > MAX_HEADER:
        raise _Refusal(f"the header says it is {size} bytes long, at most {MAX_HEADER} are read")
    if 8 + size > len(data):
        raise _Refusal(f"truncated: the header should be {size} bytes long, {len(data) - 8} are there")
    try:
        header = loads(data[8 : 8 + size], max_bytes=MAX_HEADER)
    except BundleError as error:
        raise _Refusal(f"header: {error.message}") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise _Refusal("the header is not an object of at most 4096 tensors")
    body, end, found = memoryview(data)[8 + size :], 0, {}
    for name in sorted(header):
        shape, end = _entry(name, header[name], end, len(body))
        array = np.frombuffer(body[end - 4 * math.prod(shape) : end], "<f4").reshape(shape)
        if not np.isfinite(array).all():
            raise _Refusal(f"tensor {name} holds NaN or an infinity")
        found[name] = array
    if end != len(body):
        raise _Refusal(f"{len(body) - end} bytes follow the last tensor")
    if write_tensors(found) != data:
        raise _Refusal("not in canonical form: the header is spelt or padded differently")
    return found


def _entry(name: str, entry: object, start: int, available: int) -> tuple[tuple[int, ...], int]:
    """Check one header entry; gives its shape and where its data ends."""
    if name == "__metadata__":
        raise _Refusal("holds free metadata, which has no place here")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _Refusal(f"tensor {name}: expected dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if entry["dtype"] != "F32":
        raise _Refusal(f"tensor {name} is {entry['dtype']!r}, only F32 is read")
    if not isinstance(shape, list) or len(shape) > 4 or not all(type(side) is int and side >= 0 for side in shape):
        raise _Refusal(f"tensor {name}: the shape {str(shape)[:60]} is not at most four counts")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(one) is int for one in offsets):
        raise _Refusal(f"tensor {name}: data_offsets are not two integers")
    if offsets[0] != start:
        kind = "overlaps the tensor before it" if offsets[0] < start else "leaves a gap before it"
        raise _Refusal(f"tensor {name} {kind}: starts at {offsets[0]}, expected {start}")
    if offsets[1] - offsets[0] != 4 * math.prod(shape):
        raise _Refusal(f"tensor {name}: {offsets[1] - offsets[0]} bytes for the shape {shape}")
    if offsets[1] > available:
        raise _Refusal(f"truncated: tensor {name} ends at {offsets[1]}, the file has {available} bytes of data")
    return tuple(shape), offsets[1]


def norm(array: np.ndarray) -> float:
    """Give the Euclidean norm over all entries, computed in float64."""
    return float(np.sqrt(np.square(array.astype(np.float64)).sum()))


def check_declared(tensors: dict[str, np.ndarray], declared: tuple, *, path: str = "tensors.safetensors") -> None:
    """Refuse tensors that are not those a spec declares, by name, shape and norm.

    Args:
        tensors: What the file holds.
        declared: `TensorRecord`s of the spec.
        path: Name of the file.

    Raises:
        BundleError: They differ; its check is `tensors`.
    """
    names = {record.name for record in declared}
    if names != set(tensors):
        missing, extra = sorted(names - set(tensors)), sorted(set(tensors) - names)
        raise BundleError(f"tensors missing {missing}, not declared {extra}", check="tensors", path=path)
    for record in declared:
        array = tensors[record.name]
        if array.shape != tuple(record.shape):
            raise BundleError(
                f"tensor {record.name} has shape {list(array.shape)}, spec.json declares {list(record.shape)}",
                check="tensors",
                path=path,
            )
        if not math.isclose(norm(array), record.norm, rel_tol=1e-9, abs_tol=1e-12):
            raise BundleError(
                f"tensor {record.name} has norm {norm(array):.9g}, spec.json declares {record.norm:.9g}",
                check="tensors",
                path=path,
            )
