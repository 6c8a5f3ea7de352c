"""What was tried, when, and with what result, across kernels and days.

A claim about the best of forty candidates is another claim than one about the only one. So every step of a project
(opened, ranked, generated, swept, committed, measured) is appended to one SQLite file in the project's folder, which
survives kernel death and is never rewritten. A spec's selection log is made from it.

Example:
    >>> journal = Journal("lies/journal.sqlite")
    >>> journal.append("committed", {"candidate": "c1", "why": "lies under incentive"})
    >>> [record.kind for record in journal.records()]
    ['committed']
"""

from __future__ import annotations

import datetime
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from workbench.core.canonical import canonical_bytes, sha256_hex
from workbench.core.errors import JournalError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS record (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    kernel TEXT NOT NULL,
    kind TEXT NOT NULL,
    payload BLOB NOT NULL,
    chain TEXT NOT NULL
)
"""


@dataclass(frozen=True)
class Record:
    """One step.

    Attributes:
        number: Position in the journal, from 1.
        time: UTC time, ISO 8601, to the millisecond.
        kernel: Process that wrote it.
        kind: What was done: `opened`, `ranked`, `generated`, `committed`, …
        payload: Its data.
        chain: SHA-256 over the previous record's chain and this one's bytes; a removed or altered record breaks it.
    """

    number: int
    time: str
    kernel: str
    kind: str
    payload: dict
    chain: str


class Journal:
    """An append-only record of a project's steps.

    Args:
        path: SQLite file; made with its folder where it does not exist.

    Raises:
        JournalError: The file is not a journal or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._lock = threading.Lock()
        with self._connection(create=True) as connection:
            connection.execute(_SCHEMA)

    def append(self, kind: str, payload: dict) -> Record:
        """Write one step; it is on disk when this returns.

        Raises:
            JournalError: The file cannot be written.
            InputError: The payload has no canonical JSON form.
        """
        data = canonical_bytes(payload)
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        kernel = str(os.getpid())
        with self._lock, self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            row = connection.execute("SELECT chain FROM record ORDER BY number DESC LIMIT 1").fetchone()
            chain = _link(row[0] if row else "", time, kernel, kind, data)
            cursor = connection.execute(
                "INSERT INTO record (time, kernel, kind, payload, chain) VALUES (?, ?, ?, ?, ?)",
                (time, kernel, kind, data, chain),
            )
            number = int(cursor.lastrowid or 0)
        return Record(number, time, kernel, kind, json.loads(data), chain)

    def records(self, kind: str | None = None) -> list[Record]:
        """Give all steps, oldest first, or those of one kind."""
        query = "SELECT number, time, kernel, kind, payload, chain FROM record"
        with self._connection() as connection:
            if kind is None:
                rows = connection.execute(f"{query} ORDER BY number").fetchall()
            else:
                rows = connection.execute(f"{query} WHERE kind = ? ORDER BY number", (kind,)).fetchall()
        return [Record(n, t, k, what, json.loads(data), chain) for n, t, k, what, data, chain in rows]

    def check(self) -> None:
        """Recompute the chain over all records.

        Raises:
            JournalError: A record was altered or removed; the first one that does not fit is named.
        """
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT number, time, kernel, kind, payload, chain FROM record ORDER BY number"
            ).fetchall()
        previous = ""
        for number, time, kernel, kind, data, chain in rows:
            if chain != _link(previous, time, kernel, kind, data):
                raise JournalError(
                    f"record {number} does not follow from the one before it: altered or removed",
                    where=str(self.path),
                )
            previous = chain

    @contextmanager
    def _connection(self, create: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            if create:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        except (sqlite3.Error, OSError) as error:
            raise JournalError(f"cannot open the journal: {error}", where=str(self.path)) from error
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            yield connection
            if connection.in_transaction:
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise JournalError(
                f"not a usable journal: {error}",
                where=str(self.path),
                hint="move the file away to begin a new one; nothing was changed",
            ) from error
        finally:
            connection.close()


def _link(previous: str, time: str, kernel: str, kind: str, data: bytes) -> str:
    head = canonical_bytes([previous, time, kernel, kind])
    return sha256_hex(head + b"\x1f" + data)
