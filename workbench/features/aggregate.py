"""What a corpus says about each feature, gathered in one pass from sparse firings and never from a dense table.

The accumulator takes one batch's firings at a time (feature, token, value) and keeps, per feature: exact counts over
tokens and documents, power sums, the maximum, a histogram over octaves, the exact top documents, and a uniform sample
of its firings. The sample is the firings with the smallest hashes of (document, position, feature), a bottom-k sketch:
uniform without replacement, independent of the order of the corpus, and mergeable, so that shards harvested apart and
merged equal one pass. Sums are float64 and merged in shard order, which makes a resumed harvest byte-identical.

Ties are defined: among equal values the earlier document, then the earlier position, comes first.

Sources: bottom-k sampling, Cohen & Kaplan (2007), "Summarizing data using bottom-k sketches"; the hash is SplitMix64,
Steele, Lea & Flood (2014).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from workbench.core.errors import InputError

OCTAVES = np.arange(-12, 13)
"""Lower edges of the histogram bins as powers of two; the first bin also takes smaller values, the last larger ones."""

_EMPTY = np.int64(-1)


@dataclass(frozen=True)
class Layout:
    """How much is kept per feature.

    Attributes:
        d_dict: Number of features.
        top: Documents kept by their largest activation.
        sample: Firings kept as a uniform random sample.
        seed: Seed of the sampling hash.
    """

    d_dict: int
    top: int = 20
    sample: int = 64
    seed: int = 0


@dataclass
class Ranked:
    """Per feature, the best entries by (`key` descending, document, position); unused slots have document −1.

    Attributes:
        key: float64 `[d_dict, k]`, what is ranked by; larger is kept.
        value: float32 `[d_dict, k]`, the activation.
        document: int64 `[d_dict, k]`.
        position: int32 `[d_dict, k]`.
    """

    key: np.ndarray
    value: np.ndarray
    document: np.ndarray
    position: np.ndarray

    @classmethod
    def empty(cls, d_dict: int, k: int) -> Ranked:
        """Give `d_dict` rows of `k` unused slots."""
        shape = (d_dict, k)
        return cls(
            np.full(shape, -np.inf),
            np.zeros(shape, np.float32),
            np.full(shape, _EMPTY),
            np.zeros(shape, np.int32),
        )

    def offer(
        self, feature: np.ndarray, key: np.ndarray, value: np.ndarray, document: np.ndarray, position: np.ndarray
    ) -> None:
        """Take in entries; what does not rank among the best `k` of its feature is dropped.

        Args:
            feature: int64 `[n]`.
            key: float64 `[n]`.
            value: float32 `[n]`.
            document: int64 `[n]`.
            position: int32 `[n]`.
        """
        k = self.key.shape[1]
        promising = key >= self.key[feature, -1]
        if not promising.any() or k == 0:
            return
        feature, key, value = feature[promising], key[promising], value[promising]
        document, position = document[promising], position[promising]
        rows = np.unique(feature)
        old_feature = np.repeat(rows, k)
        all_feature = np.concatenate([old_feature, feature])
        all_key = np.concatenate([self.key[rows].ravel(), key])
        all_value = np.concatenate([self.value[rows].ravel(), value])
        all_document = np.concatenate([self.document[rows].ravel(), document])
        all_position = np.concatenate([self.position[rows].ravel(), position])
        order = np.lexsort((all_position, all_document, -all_key, all_feature))
        starts = np.searchsorted(all_feature[order], rows)
        kept = order[starts[:, None] + np.arange(k)]
        self.key[rows], self.value[rows] = all_key[kept], all_value[kept]
        self.document[rows], self.position[rows] = all_document[kept], all_position[kept]

    def merge(self, other: Ranked) -> None:
        """Take in another's entries."""
        feature, slot = np.nonzero(other.document >= 0)
        self.offer(
            feature,
            other.key[feature, slot],
            other.value[feature, slot],
            other.document[feature, slot],
            other.position[feature, slot],
        )


@dataclass
class Aggregate:
    """Everything kept of a corpus or a shard of it; `merge` adds the next shard.

    Attributes:
        layout: How much is kept.
        n_tokens: Tokens seen, special tokens and masked ones excluded.
        n_documents: Documents seen.
        fires: int64 `[d_dict]`, tokens on which the feature fired.
        fires_documents: int64 `[d_dict]`, documents in which it fired.
        power: float64 `[4, d_dict]`, sums of the activation's first four powers.
        maximum: float32 `[d_dict]`.
        histogram: int64 `[d_dict, n_octaves]`, firings by octave; the tokens on which it did not fire are
            `n_tokens − fires`.
        top: Best documents by largest activation.
        sample: Uniform random firings.
    """

    layout: Layout
    n_tokens: int = 0
    n_documents: int = 0
    fires: np.ndarray = field(init=False)
    fires_documents: np.ndarray = field(init=False)
    power: np.ndarray = field(init=False)
    maximum: np.ndarray = field(init=False)
    histogram: np.ndarray = field(init=False)
    top: Ranked = field(init=False)
    sample: Ranked = field(init=False)

    def __post_init__(self) -> None:
        n = self.layout.d_dict
        self.fires = np.zeros(n, np.int64)
        self.fires_documents = np.zeros(n, np.int64)
        self.power = np.zeros((4, n))
        self.maximum = np.zeros(n, np.float32)
        self.histogram = np.zeros((n, len(OCTAVES)), np.int64)
        self.top = Ranked.empty(n, self.layout.top)
        self.sample = Ranked.empty(n, self.layout.sample)

    def add(
        self,
        feature: np.ndarray,
        token: np.ndarray,
        value: np.ndarray,
        *,
        document: np.ndarray,
        position: np.ndarray,
    ) -> None:
        """Take in a batch of whole documents.

        Args:
            feature: int64 `[n]`, which feature fired.
            token: int64 `[n]`, on which token of the batch.
            value: float32 `[n]`, its activation, above 0.
            document: int64 `[n_tokens]`, document number of each token of the batch; a document is never split
                between batches.
            position: int32 `[n_tokens]`, its position there.

        Raises:
            InputError: A value is not finite or not above 0, or a feature is out of range.
        """
        if len(value) and not (np.isfinite(value).all() and value.min() > 0):
            raise InputError("activations must be finite and above 0 where a feature fires")
        n = self.layout.d_dict
        if len(feature) and not 0 <= feature.min() <= feature.max() < n:
            raise InputError(f"a feature index lies outside 0 to {n - 1}")
        self.n_tokens += len(document)
        self.n_documents += len(np.unique(document))
        self.fires += np.bincount(feature, minlength=n)
        power = value.astype(np.float64)
        for exponent in range(4):
            self.power[exponent] += np.bincount(feature, weights=power, minlength=n)
            power = power * value
        octave = np.clip(np.frexp(value)[1] - 1 - OCTAVES[0], 0, len(OCTAVES) - 1)
        width = len(OCTAVES)
        self.histogram += np.bincount(feature * width + octave, minlength=n * width).reshape(n, width)
        self._rank(feature, value, document[token], position[token])

    def _rank(self, feature: np.ndarray, value: np.ndarray, document: np.ndarray, position: np.ndarray) -> None:
        priority = _priority(feature, document, position, self.layout.seed)
        self.sample.offer(feature, priority, value, document, position)
        order = np.lexsort((position, -value, document, feature))
        feature, value, document, position = feature[order], value[order], document[order], position[order]
        first = np.ones(len(feature), bool)
        first[1:] = (feature[1:] != feature[:-1]) | (document[1:] != document[:-1])
        best = feature[first]
        self.fires_documents += np.bincount(best, minlength=self.layout.d_dict)
        np.maximum.at(self.maximum, best, value[first])
        self.top.offer(best, value[first].astype(np.float64), value[first], document[first], position[first])

    def merge(self, other: Aggregate) -> None:
        """Add the next shard; shards must not share a document.

        Raises:
            InputError: The other keeps another layout.
        """
        if other.layout != self.layout:
            raise InputError(f"cannot merge shards of different layouts: {self.layout} and {other.layout}")
        self.n_tokens += other.n_tokens
        self.n_documents += other.n_documents
        self.fires += other.fires
        self.fires_documents += other.fires_documents
        self.power += other.power
        self.maximum = np.maximum(self.maximum, other.maximum)
        self.histogram += other.histogram
        self.top.merge(other.top)
        self.sample.merge(other.sample)


def _priority(feature: np.ndarray, document: np.ndarray, position: np.ndarray, seed: int) -> np.ndarray:
    """Give each firing a uniform number in 0–1 by hashing where it is; 53 bits."""
    with np.errstate(over="ignore"):
        state = document.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state = _splitmix(state + np.uint64(seed)) + position.astype(np.uint64)
        state = _splitmix(state) + feature.astype(np.uint64)
        return (_splitmix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix(state: np.ndarray) -> np.ndarray:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
