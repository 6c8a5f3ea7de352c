"""Which features tell the two sides of a risk axis apart, with the uncertainty of that finding.

A ranking screens thousands of features, so it carries false-discovery rates; it looks at the dev split only, so what
it finds is a hypothesis for a plan. Telling apart is not control: a feature that detects perfectly may do nothing
when it is edited.

Sources: standardised mean difference (Cohen 1988, pooled standard deviation); AUROC with a percentile bootstrap over
prompts; Mann & Whitney (1947) with tie correction; Benjamini & Hochberg (1995).
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from scipy import sparse, stats
from torch import Tensor

from workbench.core.errors import AxisError, InputError
from workbench.core.progress import CancelToken
from workbench.core.stats import auroc, benjamini_hochberg, wilson
from workbench.features.axes import Axis, Pool
from workbench.features.capture import BATCH_SIZE, Captured, capture_batches
from workbench.models.dictionary import Dictionary
from workbench.models.subject import Subject

ORDERS = ("effect", "auroc", "separation")
LARGEST_EFFECT = 100.0
"""Bound of the standardised difference, reached where a feature is constant on each side."""
_BLOCK = 1024


@dataclass(frozen=True)
class RankedFeature:
    """One feature and how it differs between the sides.

    Attributes:
        dictionary: Id of its dictionary.
        site: Canonical name of the site that the dictionary reads.
        index: Its row in the dictionary.
        effect: Standardised mean difference, present − absent, in pooled standard deviations; at most ±100.
        difference: The same difference in activation units.
        mean_present: Mean pooled activation where the concept is present.
        mean_absent: The same where it is absent.
        auroc: Area under the ROC curve of the pooled activation; .5 is chance.
        interval: 95 % bootstrap interval of the AUROC; `None` below the rows that intervals were asked for.
        effect_interval: The same for the effect.
        p: Two-sided Mann–Whitney p.
        q: Benjamini–Hochberg false-discovery rate over every live feature of the ranking.
        density: Share of prompts in which it fires where it is read.
    """

    dictionary: str
    site: str
    index: int
    effect: float
    difference: float
    mean_present: float
    mean_absent: float
    auroc: float
    interval: tuple[float, float] | None
    effect_interval: tuple[float, float] | None
    p: float
    q: float
    density: float


@dataclass(frozen=True)
class Ranking:
    """Features in the order of how well they tell the sides apart.

    Attributes:
        axis: Id of the axis.
        by: What the order goes by.
        split: Split that was looked at.
        seed: Seed of the prompts and the bootstrap.
        n_present: Prompts with the concept.
        n_absent: Prompts without it.
        n_dead: Features that fired on none of these prompts; they are not in the rows, nor in q.
        rows: Best first.
    """

    axis: str
    by: str
    split: str
    seed: int
    n_present: int
    n_absent: int
    n_dead: int
    rows: tuple[RankedFeature, ...]

    def top(self, k: int, *, dictionary: str | None = None) -> tuple[RankedFeature, ...]:
        """Give the best `k` rows, of one dictionary if named."""
        return tuple(row for row in self.rows if dictionary in (None, row.dictionary))[:k]

    def table(self) -> list[dict]:
        """Give the rows as dicts of plain values."""
        return [asdict(row) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[RankedFeature]:
        return iter(self.rows)

    def __getitem__(self, position: int) -> RankedFeature:
        return self.rows[position]

    @property
    def _note(self) -> str:
        return (
            f"{self.axis}, by {self.by}, {self.split} split, n {self.n_present} + {self.n_absent}; "
            f"{len(self.rows)} live features, {self.n_dead} silent; telling apart is not control"
        )

    def __repr__(self) -> str:
        lines = [f"{cell:>{width}}" for cell, width in zip(_COLUMNS, _WIDTHS, strict=True)]
        body = [
            "  ".join(f"{cell:>{width}}" for cell, width in zip(_cells(row), _WIDTHS, strict=True))
            for row in self.rows[:20]
        ]
        more = [f"… {len(self.rows) - 20} more"] if len(self.rows) > 20 else []
        return "\n".join([self._note, "  ".join(lines), *body, *more])

    def _repr_html_(self) -> str:
        head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in _COLUMNS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row)) + "</tr>"
            for row in self.rows[:50]
        )
        return f"<table><caption>{html.escape(self._note)}</caption><thead><tr>{head}</tr></thead>{body}</table>"


_COLUMNS = ("dictionary", "index", "effect", "difference", "AUROC", "95 % interval", "p", "q", "density")
_WIDTHS = (12, 7, 8, 10, 6, 13, 8, 8, 7)


def _cells(row: RankedFeature) -> tuple[str, ...]:
    interval = "" if row.interval is None else f"{row.interval[0]:.3f}–{row.interval[1]:.3f}"
    return (
        row.dictionary,
        str(row.index),
        f"{row.effect:+.2f}",
        f"{row.difference:+.3f}",
        f"{row.auroc:.3f}",
        interval,
        f"{row.p:.1e}",
        f"{row.q:.1e}",
        f"{row.density:.3f}",
    )


def rank(
    subject: Subject,
    dictionaries: Mapping[str, Dictionary],
    axis: Axis,
    *,
    by: str = "effect",
    n: int = 128,
    seed: int = 0,
    split: str = "dev",
    n_intervals: int = 50,
    n_boot: int = 500,
    batch_size: int = BATCH_SIZE,
    cancel: CancelToken | None = None,
) -> Ranking:
    """Rank features on an axis's contrast.

    Args:
        subject: The model.
        dictionaries: Dictionaries by id; one forward pass serves all of them.
        axis: The axis; its `pool` says where an activation is read.
        by: `effect` (size of the standardised difference), `auroc` (distance from chance) or `separation` (raw
            difference × distance of the AUROC from chance, which prefers features that also move much).
        n: Prompts per side.
        seed: Seed of the prompts and of the bootstrap.
        split: `train` or `dev`.
        n_intervals: Rows from the top that get a bootstrap interval.
        n_boot: Bootstrap resamples.
        batch_size: Prompts per forward pass.
        cancel: Stops the work between batches.

    Raises:
        InputError: No dictionary, or an order that is not known.
        AxisError: The test split was named, or the axis has fewer than two prompts on a side.
    """
    if by not in ORDERS:
        raise InputError(f"cannot rank by {by!r}", hint=f"one of: {', '.join(ORDERS)}")
    if not dictionaries:
        raise InputError("there is no dictionary to rank", where=f"axis {axis.id}")
    present, absent = axis.contrast(split, n, seed=seed)
    if min(len(present), len(absent)) < 2:
        raise AxisError(
            f"a ranking needs two prompts a side, got {len(present)} and {len(absent)}", where=f"axis {axis.id}"
        )
    pooled = pooled_activations(
        subject, dictionaries, [*present, *absent], pool=axis.pool, batch_size=batch_size, cancel=cancel
    )
    tables = [
        _statistics(name, str(dictionaries[name].read_site), matrix, len(present)) for name, matrix in pooled.items()
    ]
    rows, key = _merge(tables, by)
    order = np.lexsort((np.arange(len(rows)), -key))
    rows = [rows[k] for k in order]
    intervals = _intervals(rows[:n_intervals], pooled, (len(present), len(absent)), n_boot, seed)
    rows[: len(intervals)] = [
        replace(row, interval=interval, effect_interval=effect)
        for row, (interval, effect) in zip(rows, intervals, strict=False)
    ]
    n_dead = sum(dictionary.d_dict for dictionary in dictionaries.values()) - len(rows)
    return Ranking(axis.id, by, split, seed, len(present), len(absent), n_dead, tuple(rows))


def pooled_activations(
    subject: Subject,
    dictionaries: Mapping[str, Dictionary],
    prompts: list[str],
    *,
    pool: Pool,
    batch_size: int = BATCH_SIZE,
    cancel: CancelToken | None = None,
) -> dict[str, sparse.csc_array]:
    """Give each prompt's activations, at the decision token or their maximum over the prompt, special tokens left out.

    Returns:
        Dictionary id → sparse float32 matrix `[prompt, feature]`; no dense activations beyond one batch are kept.
    """
    sites = list(dict.fromkeys(dictionary.read_site for dictionary in dictionaries.values()))
    special = torch.tensor(sorted(subject.special_ids), dtype=torch.long)
    parts: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {name: [] for name in dictionaries}
    for batch in capture_batches(
        subject, prompts, sites, batch_size=batch_size, label="reading activations", cancel=cancel
    ):
        for name, dictionary in dictionaries.items():
            acts = _pool(batch, dictionary, special, pool)
            row, column = torch.nonzero(acts, as_tuple=True)
            parts[name].append((np.asarray(batch.rows)[row.numpy()], column.numpy(), acts[row, column].cpu().numpy()))
    found = {}
    for name, dictionary in dictionaries.items():
        row, column, value = (np.concatenate(side) for side in zip(*parts[name], strict=True))
        found[name] = sparse.coo_array((value, (row, column)), shape=(len(prompts), dictionary.d_dict)).tocsc()
    return found


def _pool(batch: Captured, dictionary: Dictionary, special: Tensor, pool: Pool) -> Tensor:
    stream = batch.streams[dictionary.read_site]
    if pool == "last":
        return dictionary.encode(stream[:, -1])
    kept = batch.mask & ~torch.isin(batch.ids, special)
    return torch.where(kept[..., None], dictionary.encode(stream), 0.0).amax(1)


def _statistics(name: str, site: str, matrix: sparse.csc_array, n_present: int) -> dict[str, np.ndarray | str]:
    alive = np.flatnonzero(np.diff(matrix.indptr))
    columns: dict[str, list[np.ndarray]] = {key: [] for key in ("present", "absent", "effect", "auroc", "p", "density")}
    for start in range(0, len(alive), _BLOCK):
        block = matrix[:, alive[start : start + _BLOCK]].toarray().astype(float)
        one, other = block[:n_present], block[n_present:]
        difference = one.mean(0) - other.mean(0)
        spread = np.sqrt(
            ((len(one) - 1) * one.var(0, ddof=1) + (len(other) - 1) * other.var(0, ddof=1)) / (len(block) - 2)
        )
        spread = np.maximum(spread, np.abs(difference) / LARGEST_EFFECT)
        columns["present"].append(one.mean(0))
        columns["absent"].append(other.mean(0))
        columns["effect"].append(np.divide(difference, spread, out=np.zeros_like(difference), where=spread > 0))
        columns["auroc"].append(np.asarray(auroc(one, other)))
        columns["p"].append(_mann_whitney(one, other))
        columns["density"].append((block > 0).mean(0))
    joined = {key: np.concatenate(parts) if parts else np.empty(0) for key, parts in columns.items()}
    return {"name": name, "site": site, "index": alive, **joined}


def _mann_whitney(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Give two-sided p values; a feature that is constant over all prompts tells nothing apart, p 1."""
    p = np.ones(one.shape[1])
    varies = np.ptp(np.concatenate([one, other]), axis=0) > 0
    if varies.any():
        p[varies] = stats.mannwhitneyu(one[:, varies], other[:, varies], axis=0, method="asymptotic").pvalue
    return p


def _merge(tables: list[dict], by: str) -> tuple[list[RankedFeature], np.ndarray]:
    q = benjamini_hochberg(np.concatenate([table["p"] for table in tables]))
    rows: list[RankedFeature] = []
    for table in tables:
        for k, index in enumerate(table["index"]):
            present, absent = float(table["present"][k]), float(table["absent"][k])
            rows.append(
                RankedFeature(
                    dictionary=table["name"],
                    site=table["site"],
                    index=int(index),
                    effect=float(table["effect"][k]),
                    difference=present - absent,
                    mean_present=present,
                    mean_absent=absent,
                    auroc=float(table["auroc"][k]),
                    interval=None,
                    effect_interval=None,
                    p=float(table["p"][k]),
                    q=float(q[len(rows)]),
                    density=float(table["density"][k]),
                )
            )
    apart = np.array([abs(row.auroc - 0.5) for row in rows])
    if by == "auroc":
        return rows, apart
    if by == "effect":
        return rows, np.array([abs(row.effect) for row in rows])
    return rows, apart * np.array([abs(row.difference) for row in rows])


def _intervals(
    rows: list[RankedFeature],
    pooled: Mapping[str, sparse.csc_array],
    sizes: tuple[int, int],
    n_boot: int,
    seed: int,
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Give bootstrap intervals of AUROC and effect, prompts of each side resampled, one set of resamples for all.

    Sides that do not overlap at all leave the AUROC's bootstrap nothing to vary; its interval is then Wilson's, on the
    smaller side's n, so that perfect separation of 30 prompts is not sold as certainty.
    """
    generator = np.random.default_rng(seed)
    n_present, n_absent = sizes
    one = generator.multinomial(n_present, np.full(n_present, 1 / n_present), size=n_boot).astype(float)
    other = generator.multinomial(n_absent, np.full(n_absent, 1 / n_absent), size=n_boot).astype(float)
    found = []
    for row in rows:
        column = sparse.csc_array(pooled[row.dictionary][:, [row.index]])
        values = column.toarray()[:, 0].astype(float)
        present, absent = values[:n_present], values[n_present:]
        wins = (present[:, None] > absent) + 0.5 * (present[:, None] == absent)
        draws = ((one @ wins) * other).sum(1) / (n_present * n_absent)
        low, high = (float(bound) for bound in np.quantile(draws, [0.025, 0.975]))
        if low == high:
            separated = wilson(round(low * min(n_present, n_absent)), min(n_present, n_absent))
            low, high = separated.low, separated.high
        found.append(((low, high), _effect_interval(present, absent, one, other)))
    return found


def _effect_interval(
    present: np.ndarray, absent: np.ndarray, one: np.ndarray, other: np.ndarray
) -> tuple[float, float]:
    means, squares = [], 0.0
    for values, weights in ((present, one), (absent, other)):
        mean = weights @ values / len(values)
        means.append(mean)
        squares = squares + (weights @ values**2 - len(values) * mean**2)
    difference = means[0] - means[1]
    spread = np.sqrt(np.maximum(squares, 0) / (len(present) + len(absent) - 2))
    spread = np.maximum(spread, np.abs(difference) / LARGEST_EFFECT)
    draws = np.divide(difference, spread, out=np.zeros_like(difference), where=spread > 0)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
