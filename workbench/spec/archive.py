"""A bundle's files in and out of a folder or one `.wbspec` file, without trusting either.

A `.wbspec` is a zip with nothing in it that could differ: entries sorted, stored, no times, no attributes. So one set
of files has exactly one archive, and reading is checking: whatever is encrypted, compressed, doubled, linked, nested,
overlapping or hidden between entries is refused, most of it by name, the rest because the archive does not equal its
re-packing. Nothing is ever extracted to disk.

Source: PKWARE APPNOTE 6.3 (zip structures).
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Never

from workbench.core.errors import BundleError, InputError
from workbench.core.files import write_atomic

SUFFIX = ".wbspec"
MAX_FILES = 128
"""Most files in a bundle."""
MAX_FILE = 256 * 2**20
"""Largest file, in bytes."""
MAX_TOTAL = 512 * 2**20
"""All files together, in bytes."""
NAMES = ("dossier.html", "manifest.json", "measurement.json", "plan.json", "spec.json", "tensors.safetensors")
"""Files that every bundle holds."""

_OUTCOMES = re.compile(r"outcomes/[A-Za-z0-9][A-Za-z0-9._-]{0,63}\.parquet")
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_TIME, _DATE = 0, 33
"""Midnight of 1 January 1980, the zip format's zero."""


def is_allowed(name: str) -> bool:
    """Whether a bundle may hold a file of this name."""
    return name in NAMES or _OUTCOMES.fullmatch(name) is not None


def pack(files: dict[str, bytes]) -> bytes:
    """Give the one archive that holds these files."""
    body, directory = bytearray(), bytearray()
    for name in sorted(files):
        data, encoded, offset = files[name], name.encode("ascii"), len(body)
        crc, size = zlib.crc32(data), len(data)
        body += _LOCAL.pack(b"PK\x03\x04", 20, 0, 0, _TIME, _DATE, crc, size, size, len(encoded), 0) + encoded + data
        directory += (
            _CENTRAL.pack(
                b"PK\x01\x02", 20, 20, 0, 0, _TIME, _DATE, crc, size, size, len(encoded), 0, 0, 0, 0, 0, offset
            )
            + encoded
        )
    end = _END.pack(b"PK\x05\x06", 0, 0, len(files), len(files), len(directory), len(body), 0)
    return bytes(body + directory + end)


def unpack(data: bytes, *, path: str) -> dict[str, bytes]:
    """Give the files of an archive.

    Raises:
        BundleError: It is not exactly what `pack` writes; its check is `archive`.
    """
    if len(data) < _END.size or not data.startswith(b"PK\x03\x04"):
        _refuse("is not a .wbspec archive", path)
    magic, *_, count, size, offset, comment = _END.unpack_from(data, len(data) - _END.size)
    if magic != b"PK\x05\x06" or comment:
        _refuse("does not end as an archive does: truncated, or something follows it", path)
    if count > MAX_FILES:
        _refuse(f"{count} entries, at most {MAX_FILES} are read", path)
    if offset + size != len(data) - _END.size:
        _refuse("the directory of entries is not where the archive says", path)
    files, at = {}, offset
    for _ in range(count):
        if at + _CENTRAL.size > offset + size:
            _refuse("the directory of entries is truncated", path)
        fields = _CENTRAL.unpack_from(data, at)
        name_size, start = fields[10], at + _CENTRAL.size
        name = data[start : start + name_size].decode("ascii", "backslashreplace")
        _check_entry(name, fields, files, path)
        files[name] = _content(data, name, fields, path)
        at = start + name_size + fields[11] + fields[12]
    if sum(map(len, files.values())) > MAX_TOTAL:
        _refuse(f"more than {MAX_TOTAL} bytes in all", path)
    if pack(files) != data:
        _refuse("differs from its deterministic re-packing: bytes are hidden in it or it was damaged", path)
    return files


def _check_entry(name: str, fields: tuple, seen: dict[str, bytes], path: str) -> None:
    magic, _, _, flags, method, _, _, _, packed, size, *_, external, _ = fields
    where = f"{path}: {name}"
    if magic != b"PK\x01\x02":
        _refuse("the directory of entries is damaged", path)
    if name.startswith(("/", "\\")) or "\\" in name or ":" in name or ".." in name.split("/"):
        _refuse("an entry's name leads out of the bundle", where)
    if flags & 1:
        _refuse("the entry is encrypted", where)
    if stat.S_ISLNK(external >> 16):
        _refuse("the entry is a symbolic link", where)
    if name in seen:
        _refuse("the entry stands twice in the archive", where)
    if not is_allowed(name):
        _refuse("the entry has no place in a bundle", where)
    if method or packed != size:
        _refuse(f"the entry is compressed ({packed} bytes that claim to be {size}); bundles are stored plainly", where)
    if size > MAX_FILE:
        _refuse(f"the entry is {size} bytes long, at most {MAX_FILE} are read", where)


def _content(data: bytes, name: str, fields: tuple, path: str) -> bytes:
    crc, size, name_size, offset = fields[7], fields[9], fields[10], fields[16]
    start = offset + _LOCAL.size + name_size
    if start + size > len(data):
        _refuse("the entry is truncated", f"{path}: {name}")
    content = data[start : start + size]
    if zlib.crc32(content) != crc:
        _refuse("the entry is damaged: its checksum differs", f"{path}: {name}")
    return content


def read_files(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """Give the files of a bundle, a folder or a `.wbspec` archive, name → bytes.

    Raises:
        BundleError: It is not there, too large, or holds anything but a bundle's files; its check is `archive`.
    """
    target = Path(path)
    try:
        status = target.lstat()
        if stat.S_ISDIR(status.st_mode):
            files = _read_folder(target)
        elif stat.S_ISREG(status.st_mode):
            if status.st_size > MAX_TOTAL:
                _refuse(f"{status.st_size} bytes, at most {MAX_TOTAL} are read", target.name)
            files = unpack(_read_regular(target, target.name), path=target.name)
        else:
            _refuse("is neither a folder nor a plain file", target.name)
    except OSError as error:
        raise BundleError(f"cannot read: {error.strerror or error}", check="archive", path=target.name) from error
    missing = [name for name in NAMES if name not in files]
    if missing:
        _refuse("is missing from the bundle", missing[0])
    return files


def _read_folder(folder: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    total = 0
    for parent, prefix in ((folder, ""), (folder / "outcomes", "outcomes/")):
        if prefix and not parent.exists():
            continue
        with os.scandir(parent) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                name = prefix + entry.name
                if entry.is_symlink():
                    _refuse("is a symbolic link", name)
                if not prefix and name == "outcomes" and entry.is_dir(follow_symlinks=False):
                    continue
                if not is_allowed(name):
                    _refuse("has no place in a bundle", name)
                if not entry.is_file(follow_symlinks=False):
                    _refuse("is not a plain file", name)
                size = entry.stat(follow_symlinks=False).st_size
                total += size
                if size > MAX_FILE or total > MAX_TOTAL or len(files) >= MAX_FILES:
                    _refuse(f"more than {MAX_FILES} files or {MAX_TOTAL} bytes", name)
                files[name] = _read_regular(Path(entry.path), name)
    return files


def _read_regular(path: Path, name: str) -> bytes:
    """Read a plain file, not following a link that was put there meanwhile."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            _refuse("is not a plain file", name)
        data = stream.read(MAX_TOTAL + 1)
    if len(data) > MAX_TOTAL:
        _refuse(f"more than {MAX_TOTAL} bytes", name)
    return data


def write_files(path: str | os.PathLike[str], files: dict[str, bytes], *, overwrite: bool = False) -> Path:
    """Write a bundle whole or not at all: one archive where the path ends in `.wbspec`, else a folder.

    Args:
        path: Where to.
        files: Name → bytes.
        overwrite: Replace a bundle that is already there; anything else there is never touched.

    Raises:
        InputError: Something is already there, or a file has no place in a bundle.
    """
    target = Path(path)
    if wrong := [name for name in files if not is_allowed(name)]:
        raise InputError(f"{wrong[0]!r} has no place in a bundle")
    if target.exists() or target.is_symlink():
        if not overwrite:
            raise InputError("a bundle is immutable and something is already there", where=str(target))
        try:
            read_files(target)
        except BundleError as error:
            raise InputError(f"what is there is no bundle ({error}); it is left alone", where=str(target)) from error
    if target.suffix == SUFFIX:
        write_atomic(target, pack(files))
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        fresh, old = Path(scratch) / "new", Path(scratch) / "old"
        for name, data in files.items():
            write_atomic(fresh / name, data)
        fresh.chmod(0o755)
        if target.exists():
            target.rename(old)
        try:
            fresh.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    return target


def _refuse(message: str, path: str) -> Never:
    raise BundleError(message, check="archive", path=path)
