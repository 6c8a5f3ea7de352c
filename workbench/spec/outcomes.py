"""Every single outcome of a trial as columns, in one Parquet file per axis.

An outcome is the value of one prompt in one arm. The file opens in pandas, DuckDB or R, so a reviewer recomputes
without this software; here it is read against a fixed schema with bounded sizes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.core.errors import BundleError, TrialError

MAX_ROWS = 5_000_000
"""Most outcomes of one axis."""
_METADATA_LIMITS = {"thrift_string_size_limit": 2**20, "thrift_container_size_limit": 2**16}

SCHEMA = pa.schema(
    [
        pa.field("prompt", pa.int32(), nullable=False),
        pa.field("cue", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("arm", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("mass", pa.float64(), nullable=False),
    ]
)
"""`prompt`: number in the measurement's list; `cue` and `item`: cluster labels, equal where they repeat; `arm`;
`sample`: number of the sampled text, 0 where the metric is teacher-forced; `value`; `mass`: probability of the event
and its alternative together."""


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of one axis, rows in the file's order.

    Attributes:
        prompt: `[rows]` int32, number of the prompt.
        cue: `[rows]` cluster labels.
        item: `[rows]` cluster labels.
        arm: `[rows]` arm ids.
        sample: `[rows]` int32.
        value: `[rows]` float64, in the metric's unit.
        mass: `[rows]` float64, 0–1.
    """

    prompt: np.ndarray
    cue: np.ndarray
    item: np.ndarray
    arm: np.ndarray
    sample: np.ndarray
    value: np.ndarray
    mass: np.ndarray

    def __len__(self) -> int:
        return len(self.prompt)

    @classmethod
    def of_arms(cls, clusters: list[dict[str, str]], arms: dict[str, tuple[np.ndarray, np.ndarray]]) -> "Outcomes":
        """Make the columns of a teacher-forced axis.

        Args:
            clusters: Per prompt its factors, such as `{"cue": …, "item": …}`; an absent one is the prompt's number.
            arms: Arm id → values `[n]` and masses `[n]`, in the order of the prompts.

        Raises:
            TrialError: An arm has not one value per prompt.
        """
        n = len(clusters)
        for arm, (value, mass) in arms.items():
            if np.shape(value) != (n,) or np.shape(mass) != (n,):
                raise TrialError(f"arm {arm} has {np.shape(value)} values for {n} prompts")
        factors = {
            name: np.array([one.get(name, str(k)) for k, one in enumerate(clusters)], object)
            for name in ("cue", "item")
        }
        return cls(
            np.tile(np.arange(n, dtype=np.int32), len(arms)),
            np.tile(factors["cue"], len(arms)),
            np.tile(factors["item"], len(arms)),
            np.repeat(np.array(list(arms), object), n),
            np.zeros(n * len(arms), np.int32),
            np.concatenate([np.asarray(value, float) for value, _ in arms.values()]),
            np.concatenate([np.asarray(mass, float) for _, mass in arms.values()]),
        )

    def to_bytes(self) -> bytes:
        """Give the Parquet file."""
        table = pa.table({name: pa.array(getattr(self, name)) for name in SCHEMA.names}, schema=SCHEMA)
        sink = io.BytesIO()
        dictionary = ["cue", "item", "arm", "prompt", "sample"]
        pq.write_table(table, sink, compression="zstd", use_dictionary=dictionary, store_schema=False, version="2.6")
        return sink.getvalue()

    @cached_property
    def _index(self) -> dict[str, np.ndarray]:
        arms, member = np.unique(self.arm.astype(str), return_inverse=True)
        order = np.argsort(member, kind="stable")
        bounds = np.searchsorted(member[order], np.arange(len(arms) + 1))
        return {str(arm): order[bounds[k] : bounds[k + 1]] for k, arm in enumerate(arms)}

    @property
    def arms(self) -> list[str]:
        """Ids of the arms, sorted."""
        return sorted(self._index)

    def rows(self, arm: str) -> np.ndarray:
        """Give the row numbers of one arm, in the file's order."""
        return self._index[arm]


def read_outcomes(data: bytes, *, path: str) -> Outcomes:
    """Read an axis's outcomes.

    Raises:
        BundleError: Not Parquet, another schema, too many rows, a missing value or one that is not finite; its check
            is `outcomes`.
    """

    def refuse(message: str) -> BundleError:
        return BundleError(message, check="outcomes", path=path)

    if data[:4] != b"PAR1" or data[-4:] != b"PAR1":
        raise refuse("is not a Parquet file")
    try:
        file = pq.ParquetFile(pa.BufferReader(data), **_METADATA_LIMITS)
        if not file.schema_arrow.equals(SCHEMA):
            raise refuse(f"columns are {str(file.schema_arrow.names)[:120]}, expected {SCHEMA.names} with their types")
        groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
        size = sum(group.column(k).total_uncompressed_size for group in groups for k in range(group.num_columns))
        if not 0 < file.metadata.num_rows <= MAX_ROWS or not 0 < size <= 64 * MAX_ROWS:
            raise refuse(f"{file.metadata.num_rows} rows in {size} bytes, at most {MAX_ROWS} rows are read")
        table = file.read(use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise refuse(f"cannot be read as Parquet: {str(error)[:200]}") from error
    if any(table.column(name).null_count for name in SCHEMA.names):
        raise refuse("a value is missing")
    columns = {name: _plain(table.column(name).combine_chunks()) for name in SCHEMA.names}
    for name in ("value", "mass"):
        if not np.isfinite(columns[name]).all():
            raise refuse(f"{name} holds a number that is not finite")
    return Outcomes(**columns)


def _plain(column: pa.Array) -> np.ndarray:
    """Give a column without gaps as numpy; pyarrow's own way imports pandas, for half a second, where it is there."""
    if pa.types.is_string(column.type):
        encoded = column.dictionary_encode()
        return np.array(encoded.dictionary.to_pylist(), object)[_plain(encoded.indices)]
    dtype = np.dtype({"float": "f4", "double": "f8"}.get(str(column.type), str(column.type)))
    return np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * dtype.itemsize)
