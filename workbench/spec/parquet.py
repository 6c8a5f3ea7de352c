"""A small, fixed dialect of Parquet: any tool opens it, a table has one byte form, hostile bytes are only refused.

General Parquet readers are large native code that a crafted file can abort. Outcomes need little of the format: one
row group, required columns, no compression (so nothing inflates), one data page per column, dictionaries for what
repeats. The reader walks the pages from the front, decodes them, writes the table again and compares, so that
whatever it did not look at (the footer, the padding) is checked all the same.

Source: the Apache Parquet format (parquet.thrift, Encodings) and Thrift's compact protocol.
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

import numpy as np

from workbench.core.errors import BundleError, InputError

ColumnKind = Literal["int32", "float64", "string"]
MAGIC = b"PAR1"

_INT32, _DOUBLE, _BYTES = 1, 5, 6
_PLAIN, _RLE, _RLE_DICTIONARY = 0, 3, 8
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_TYPES: dict[str, int] = {"int32": _INT32, "float64": _DOUBLE, "string": _BYTES}
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12
_CREATED_BY = "workbench outcomes 1"


class _Page(NamedTuple):
    """A page: number of values, its bytes without the header, and where the next one begins."""

    values: int
    body: memoryview
    end: int


class _Column(NamedTuple):
    """A column's dictionary with the index of each row in it, or no dictionary and the values themselves."""

    entries: np.ndarray | None
    values: np.ndarray


class _Refusal(Exception):
    """Why the reader stopped; becomes a `BundleError` that names the file."""


def write_table(columns: dict[str, np.ndarray], kinds: dict[str, ColumnKind]) -> bytes:
    """Give the one file that holds these columns.

    Args:
        columns: Name → `[rows]` values, in the order of `kinds`.
        kinds: Name → `int32` and `string`, written by dictionary, or `float64`, written plainly.

    Raises:
        InputError: Columns are missing, empty or of different length.
    """
    lengths = {len(columns[name]) for name in kinds if name in columns}
    if set(columns) != set(kinds) or len(lengths) != 1 or not (n := lengths.pop()):
        raise InputError("a table needs every column, all of one length and not empty")
    return _assemble({name: _encoded(columns[name], kind) for name, kind in kinds.items()}, kinds, n)


def read_table(data: bytes, kinds: dict[str, ColumnKind], *, path: str, max_rows: int) -> dict[str, np.ndarray]:
    """Read a file that `write_table` wrote.

    Raises:
        BundleError: Anything else; its check is `outcomes`.
    """
    try:
        return _read(data, kinds, max_rows)
    except _Refusal as refusal:
        raise BundleError(str(refusal), check="outcomes", path=path) from None


def _read(data: bytes, kinds: dict[str, ColumnKind], max_rows: int) -> dict[str, np.ndarray]:
    if not (data.startswith(MAGIC) and data.endswith(MAGIC)):
        raise _Refusal("is not a Parquet file")
    found, at, n = {}, len(MAGIC), None
    for name, kind in kinds.items():
        entries = None
        if kind != "float64":
            page = _page(data, at, _DICTIONARY_PAGE, name)
            entries, at = _plain_values(page, kind, name), page.end
        page = _page(data, at, _DATA_PAGE, name)
        at, n = page.end, page.values if n is None else n
        if page.values != n or not 0 < n <= max_rows:
            raise _Refusal(f"column {name} holds {page.values} values; expected {n}, at most {max_rows}")
        if entries is None:
            found[name] = _Column(None, _plain_values(page, kind, name))
        else:
            found[name] = _Column(entries, _unpacked(page, len(entries), name))
            _check_dictionary(entries, found[name].values, name)
    if _assemble(found, kinds, n or 0) != data:
        raise _Refusal("is not in the form that outcomes are written in: columns, order, encoding or footer differ")
    return {name: one.values if one.entries is None else one.entries[one.values] for name, one in found.items()}


def _assemble(columns: dict[str, _Column], kinds: dict[str, ColumnKind], n: int) -> bytes:
    body, chunks = bytearray(MAGIC), []
    for name, kind in kinds.items():
        entries, values = columns[name]
        start, dictionary = len(body), None
        if entries is None:
            encoding, data = _PLAIN, np.ascontiguousarray(values, "<f8").tobytes()
        else:
            dictionary, stored = start, _plain(entries, kind)
            body += _page_header(_DICTIONARY_PAGE, len(stored), len(entries), _PLAIN) + stored
            encoding, data = _RLE_DICTIONARY, _bit_packed(values, len(entries))
        page = len(body)
        body += _page_header(_DATA_PAGE, len(data), n, encoding) + data
        chunks.append(_chunk(name, kind, encoding, n, start, dictionary, page, len(body) - start))
    footer = _footer(kinds, chunks, n, len(body) - len(MAGIC))
    return bytes(body) + footer + len(footer).to_bytes(4, "little") + MAGIC


# ---- values


def _encoded(values: np.ndarray, kind: ColumnKind) -> _Column:
    """Give a column with its dictionary: every distinct value once, ascending."""
    if kind == "float64":
        return _Column(None, np.asarray(values, np.float64))
    if kind == "int32":
        return _Column(*np.unique(np.asarray(values, np.int32), return_inverse=True))
    entries = sorted({str(one) for one in values})
    number = {entry: k for k, entry in enumerate(entries)}
    index = np.fromiter((number[str(one)] for one in values), np.int64, len(values))
    return _Column(np.array(entries, object), index)


def _check_dictionary(entries: np.ndarray, index: np.ndarray, name: str) -> None:
    ascending = all(a < b for a, b in itertools.pairwise(entries.tolist()))
    if not ascending or not np.bincount(index, minlength=len(entries)).all():
        raise _Refusal(f"column {name}: its dictionary is not ascending, or holds what no row has")


def _plain(entries: np.ndarray, kind: ColumnKind) -> bytes:
    if kind == "int32":
        return np.ascontiguousarray(entries, "<i4").tobytes()
    encoded = [str(one).encode("utf-8") for one in entries]
    return b"".join(len(one).to_bytes(4, "little") + one for one in encoded)


def _plain_values(page: _Page, kind: ColumnKind, name: str) -> np.ndarray:
    if kind != "string":
        dtype = np.dtype("<i4" if kind == "int32" else "<f8")
        if len(page.body) != page.values * dtype.itemsize:
            raise _Refusal(f"column {name}: {len(page.body)} bytes for {page.values} values")
        return np.frombuffer(page.body, dtype)
    found, at = [], 0
    for _ in range(page.values):
        size = int.from_bytes(page.body[at : at + 4], "little")
        raw = bytes(page.body[at + 4 : at + 4 + size])
        at += 4 + size
        if at > len(page.body):
            raise _Refusal(f"column {name}: a label is truncated")
        try:
            found.append(raw.decode("utf-8"))
        except UnicodeDecodeError:
            raise _Refusal(f"column {name}: a label is not UTF-8") from None
    return np.array(found, object)


def _bit_packed(index: np.ndarray, n_entries: int) -> bytes:
    """Give indices as bit width and one bit-packed run, least significant bit first."""
    width = _width(n_entries)
    padded = np.zeros(-(-len(index) // 8) * 8, np.uint32)
    padded[: len(index)] = index
    bits = (padded[:, None] >> np.arange(width, dtype=np.uint32)) & 1
    packed = np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()
    return bytes([width]) + _varint(len(padded) // 8 << 1 | 1) + packed


def _unpacked(page: _Page, n_entries: int, name: str) -> np.ndarray:
    width, groups = _width(n_entries), -(-page.values // 8)
    head = bytes([width]) + _varint(groups << 1 | 1)
    if bytes(page.body[: len(head)]) != head or len(page.body) != len(head) + groups * width:
        raise _Refusal(f"column {name}: its indices are not one bit-packed run of {page.values}")
    bits = np.unpackbits(np.frombuffer(page.body[len(head) :], np.uint8), bitorder="little").reshape(-1, width)
    index = (bits.astype(np.int64) << np.arange(width)).sum(1)[: page.values]
    if not n_entries or index.max() >= n_entries:
        raise _Refusal(f"column {name}: an index beyond its dictionary of {n_entries}")
    return index


def _width(n_entries: int) -> int:
    return max(1, (n_entries - 1).bit_length())


# ---- pages and footer in Thrift's compact protocol


def _page(data: bytes, at: int, kind: int, name: str) -> _Page:
    """Read one page, whose header must be spelt as ours is: kind, size, size again, number of values."""
    numbers, here = [], at
    for skipped in (1, 1, 1, 2):
        value, here = _number(data, here + skipped)
        numbers.append(value)
    _, size, _, values = numbers
    heads = [_page_header(kind, size, values, encoding) for encoding in (_PLAIN, _RLE_DICTIONARY)]
    head = next((one for one in heads if data.startswith(one, at)), None)
    if head is None:
        raise _Refusal(f"column {name}: its page is missing or its header is not as outcomes are written")
    end = at + len(head) + size
    if end > len(data):
        raise _Refusal(f"column {name} is truncated")
    return _Page(values, memoryview(data)[at + len(head) : end], end)


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Read a zigzag varint of at most five bytes; gives it, 0 where there is none, and where it ends."""
    value = 0
    for k, byte in enumerate(data[at : at + 5]):
        value |= (byte & 0x7F) << 7 * k
        if byte < 0x80:
            return value >> 1, at + k + 1
    return 0, at + 5


def _page_header(kind: int, size: int, values: int, encoding: int) -> bytes:
    if kind == _DICTIONARY_PAGE:
        inner = (7, _STRUCT, _struct((1, _I32, values), (2, _I32, encoding)))
    else:
        levels = ((3, _I32, _RLE), (4, _I32, _RLE))
        inner = (5, _STRUCT, _struct((1, _I32, values), (2, _I32, encoding), *levels))
    return _struct((1, _I32, kind), (2, _I32, size), (3, _I32, size), inner)


def _chunk(
    name: str, kind: ColumnKind, encoding: int, n: int, start: int, dictionary: int | None, page: int, size: int
) -> bytes:
    encodings = [_PLAIN, _RLE] if dictionary is None else [_PLAIN, _RLE, encoding]
    meta = [
        (1, _I32, _TYPES[kind]),
        (2, _LIST, _list(_I32, [_varint(one << 1) for one in encodings])),
        (3, _LIST, _list(_BINARY, [_binary(name)])),
        (4, _I32, 0),
        (5, _I64, n),
        (6, _I64, size),
        (7, _I64, size),
        (9, _I64, page),
    ]
    if dictionary is not None:
        meta.append((11, _I64, dictionary))
    return _struct((2, _I64, start), (3, _STRUCT, _struct(*meta)))


def _footer(kinds: dict[str, ColumnKind], chunks: list[bytes], n: int, size: int) -> bytes:
    schema = [_struct((4, _BINARY, _binary("schema")), (5, _I32, len(kinds)))]
    for name, kind in kinds.items():
        text = [(6, _I32, 0)] if kind == "string" else []
        schema.append(_struct((1, _I32, _TYPES[kind]), (3, _I32, 0), (4, _BINARY, _binary(name)), *text))
    group = _struct((1, _LIST, _list(_STRUCT, chunks)), (2, _I64, size), (3, _I64, n))
    return _struct(
        (1, _I32, 1),
        (2, _LIST, _list(_STRUCT, schema)),
        (3, _I64, n),
        (4, _LIST, _list(_STRUCT, [group])),
        (6, _BINARY, _binary(_CREATED_BY)),
    )


def _struct(*fields: tuple[int, int, int | bytes]) -> bytes:
    """Give a struct of (field id, type, value); integers are zigzag varints, other values come encoded."""
    out, last = bytearray(), 0
    for number, kind, value in fields:
        out.append(number - last << 4 | kind)
        out += _varint(value << 1) if isinstance(value, int) else value
        last = number
    return bytes(out) + b"\0"


def _list(kind: int, items: list[bytes]) -> bytes:
    head = bytes([len(items) << 4 | kind]) if len(items) < 15 else bytes([0xF0 | kind]) + _varint(len(items))
    return head + b"".join(items)


def _binary(text: str) -> bytes:
    return _varint(len(text.encode())) + text.encode()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
