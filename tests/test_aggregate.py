"""Aggregates equal a brute-force reference, do not depend on the split into shards, and sample uniformly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workbench.core.errors import InputError
from workbench.features.aggregate import OCTAVES, Aggregate, Layout

N_FEATURES = 7


def corpus(seed, n_documents=12, ties=False):
    """Dense activations [tokens, features] with document and position of each token."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 9, n_documents)
    document = np.repeat(np.arange(n_documents), lengths)
    position = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
    dense = np.maximum(generator.normal(size=(len(document), N_FEATURES)) - 0.5, 0).astype(np.float32)
    if ties:
        dense = np.ceil(dense).astype(np.float32)
    dense[:, 3] = 0
    return dense, document.astype(np.int64), position


def gathered(dense, document, position, cuts, layout):
    total = Aggregate(layout)
    for low, high in zip([0, *cuts], [*cuts, document[-1] + 1], strict=True):
        rows = (document >= low) & (document < high)
        if not rows.any():
            continue
        shard = Aggregate(layout)
        token, feature = np.nonzero(dense[rows])
        values = dense[rows][token, feature]
        shard.add(feature, token, values, document=document[rows], position=position[rows])
        total.merge(shard)
    return total


def ranked(entry):
    return [
        [(float(v), int(d), int(p)) for v, d, p in zip(*rows, strict=True) if d >= 0]
        for rows in zip(entry.value, entry.document, entry.position, strict=True)
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.lists(st.integers(1, 11), max_size=3, unique=True).map(sorted))
def test_aggregates_equal_a_brute_force_reference_however_the_corpus_is_cut(seed, ties, cuts):
    dense, document, position = corpus(seed, ties=ties)
    total = gathered(dense, document, position, cuts, Layout(N_FEATURES, top=4, sample=5))
    fires = dense > 0
    assert (total.n_tokens, total.n_documents) == (len(document), 12)
    assert (total.fires == fires.sum(0)).all()
    per_document = np.array([dense[document == d].max(0) for d in range(12)])
    assert (total.fires_documents == (per_document > 0).sum(0)).all()
    assert (total.maximum == dense.max(0)).all()
    assert total.histogram.sum(1).tolist() == fires.sum(0).tolist()
    for exponent in range(4):
        assert total.power[exponent] == pytest.approx((dense.astype(float) ** (exponent + 1)).sum(0), rel=1e-6)
    for feature, got in enumerate(ranked(total.top)):
        best = []
        for d in range(12):
            rows = np.nonzero(document == d)[0]
            row = min(rows, key=lambda r: (-dense[r, feature], position[r]))
            if dense[row, feature] > 0:
                best.append((float(dense[row, feature]), d, int(position[row])))
        assert got == sorted(best, key=lambda e: (-e[0], e[1], e[2]))[:4]


def test_histogram_bins_are_octaves():
    layout = Layout(1)
    aggregate = Aggregate(layout)
    values = np.array([1.0, 1.5, 2.0, 3.9, 2.0**-20, 2.0**20], np.float32)
    zeros = np.zeros(6, np.int64)
    aggregate.add(zeros, np.arange(6), values, document=np.arange(6), position=np.zeros(6, np.int32))
    by_octave = dict(zip(OCTAVES.tolist(), aggregate.histogram[0].tolist(), strict=True))
    assert (by_octave[0], by_octave[1], by_octave[-12], by_octave[12]) == (2, 2, 1, 1)


def test_cutting_the_corpus_into_shards_changes_no_bit_of_samples_and_ranks():
    dense, document, position = corpus(5, n_documents=40)
    layout = Layout(N_FEATURES, top=3, sample=6, seed=9)
    whole, cut = gathered(dense, document, position, [], layout), gathered(dense, document, position, [7, 23], layout)
    for name in ("key", "value", "document", "position"):
        assert (getattr(whole.sample, name) == getattr(cut.sample, name)).all()
        assert (getattr(whole.top, name) == getattr(cut.top, name)).all()


def test_the_sample_of_firings_is_uniform_over_the_corpus():
    n = 2000
    picked = []
    for seed in range(60):
        aggregate = Aggregate(Layout(1, top=1, sample=50, seed=seed))
        ones = np.ones(n, np.float32)
        aggregate.add(np.zeros(n, np.int64), np.arange(n), ones, document=np.arange(n), position=np.zeros(n, np.int32))
        picked += aggregate.sample.document[0].tolist()
    assert stats.kstest(np.array(picked) / n, "uniform").pvalue > 1e-3
    assert len(set(picked)) > 1400


def test_a_feature_that_never_fires_has_an_honest_empty_row():
    dense, document, position = corpus(1)
    total = gathered(dense, document, position, [], Layout(N_FEATURES))
    assert (total.fires[3], total.maximum[3], ranked(total.top)[3], ranked(total.sample)[3]) == (0, 0.0, [], [])


@pytest.mark.parametrize(("feature", "value"), [(0, float("nan")), (0, 0.0), (N_FEATURES, 1.0)])
def test_impossible_firings_are_refused(feature, value):
    one = np.zeros(1, np.int64)
    with pytest.raises(InputError):
        Aggregate(Layout(N_FEATURES)).add(
            np.array([feature]), one, np.array([value], np.float32), document=one, position=np.zeros(1, np.int32)
        )


def test_shards_of_different_layouts_do_not_merge():
    with pytest.raises(InputError, match="different layouts"):
        Aggregate(Layout(3)).merge(Aggregate(Layout(4)))
