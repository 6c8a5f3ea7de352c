"""Every single outcome of a trial as columns, in one Parquet file per axis.

An outcome is the value of one prompt in one arm. The file opens in pandas, DuckDB or R, so a reviewer recomputes
without this software; here it is read and written by `workbench.spec.parquet`, in one form.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from workbench.core.errors import BundleError, TrialError
from workbench.spec.parquet import ColumnKind, read_table, write_table

MAX_ROWS = 5_000_000
"""Most outcomes of one axis."""

COLUMNS: dict[str, ColumnKind] = {
    "prompt": "int32",
    "cue": "string",
    "item": "string",
    "arm": "string",
    "sample": "int32",
    "value": "float64",
    "mass": "float64",
}
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
        """Give the Parquet file: the same outcomes give the same bytes everywhere."""
        return write_table({name: getattr(self, name) for name in COLUMNS}, COLUMNS)

    @cached_property
    def _index(self) -> dict[str, np.ndarray]:
        number: dict[str, int] = {}
        member = np.fromiter((number.setdefault(arm, len(number)) for arm in self.arm), np.int64, len(self.arm))
        order = np.argsort(member, kind="stable")
        bounds = np.searchsorted(member[order], np.arange(len(number) + 1))
        return {arm: order[bounds[k] : bounds[k + 1]] for arm, k in number.items()}

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
        BundleError: Not Parquet, other columns, too many rows, or a number that is not finite; its check is
            `outcomes`.
    """
    columns = read_table(data, COLUMNS, path=path, max_rows=MAX_ROWS)
    for name in ("value", "mass"):
        if not np.isfinite(columns[name]).all():
            raise BundleError(f"{name} holds a number that is not finite", check="outcomes", path=path)
    return Outcomes(**columns)
