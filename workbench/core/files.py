"""Files that are written whole or not at all, digests that are not computed twice, and where our own data lies.

Weights run to gigabytes, so a file's digest is remembered by path, size and modification time for the life of the
process. `datasets/`, `widgets/` and `notebooks/` stand beside `workbench/` in a checkout and inside it in a wheel.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from pathlib import Path

from workbench.core.errors import InputError

_PACKAGE = Path(__file__).resolve().parents[1]


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes so that a reader sees the old file or the new one, never a part; survives a crash after return."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Give a file's SHA-256 as 64 hexadecimal digits, cached by path, size and modification time.

    Raises:
        InputError: There is no such file.
    """
    target = Path(path).resolve()
    try:
        stat = target.stat()
    except OSError as error:
        raise InputError(f"cannot read {target.name}: {error.strerror}", where=str(path)) from error
    return _sha256_file(str(target), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _sha256_file(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def datasets_dir() -> Path:
    """Give the folder of the built-in subjects and risk-axis sets."""
    return _data("datasets", "_datasets")


def static_dir() -> Path:
    """Give the folder of the widgets' front-end halves."""
    return _data("widgets", "widgets/static")


def notebooks_dir() -> Path:
    """Give the folder of the shipped notebooks."""
    return _data("notebooks", "_notebooks")


def _data(checkout: str, wheel: str) -> Path:
    beside = _PACKAGE.parent / checkout
    if (_PACKAGE.parent / "pyproject.toml").is_file() and beside.is_dir():
        return beside
    inside = _PACKAGE / wheel
    if inside.is_dir():
        return inside
    raise InputError(f"this installation lacks its {checkout!r} files", where=str(inside), hint="reinstall the package")
