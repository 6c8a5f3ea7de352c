"""Statistics against independent references, and intervals that cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from workbench.core import stats
from workbench.core.errors import InputError


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_auroc_equals_the_share_of_ordered_pairs(positive, negative):
    pairs = [(a > b) + (a == b) / 2 for a in positive for b in negative]
    assert stats.auroc(np.array(positive), np.array(negative)) == pytest.approx(np.mean(pairs))


def test_auroc_of_many_features_equals_one_at_a_time():
    generator = np.random.default_rng(0)
    positive, negative = generator.normal(size=(20, 7)), generator.normal(size=(31, 7))
    together = stats.auroc(positive, negative)
    assert together == pytest.approx([stats.auroc(positive[:, k], negative[:, k]) for k in range(7)])


def test_cluster_intervals_cover_the_truth_at_forty_clusters():
    generator, covered, trials = np.random.default_rng(1), 0, 400
    for trial in range(trials):
        centre = generator.normal(size=40)
        values = (centre[:, None] + generator.normal(size=(40, 5))).ravel()
        interval = stats.bootstrap_mean(values, np.repeat(np.arange(40), 5), n_boot=500, seed=trial)
        covered += interval.low <= 0 <= interval.high
    assert covered / trials >= 0.91


def test_ignoring_clusters_would_be_overconfident():
    generator = np.random.default_rng(2)
    values = (generator.normal(size=40)[:, None] + 0.1 * generator.normal(size=(40, 10))).ravel()
    clustered = stats.bootstrap_mean(values, np.repeat(np.arange(40), 10), seed=0)
    naive = stats.bootstrap_mean(values, seed=0)
    assert clustered.high - clustered.low > 2 * (naive.high - naive.low)
    assert (clustered.n, clustered.n_clusters) == (400, 40)


def test_two_way_interval_covers_when_both_factors_vary():
    generator, covered, trials = np.random.default_rng(3), 0, 300
    rows, columns = np.repeat(np.arange(40), 40), np.tile(np.arange(40), 40)
    for trial in range(trials):
        values = generator.normal(size=40)[rows] + generator.normal(size=40)[columns] + generator.normal(size=1600)
        interval = stats.two_way_bootstrap(values, rows, columns, n_boot=300, seed=trial)
        covered += interval.low <= 0 <= interval.high
    assert covered / trials >= 0.91


def test_wilson_upper_bound_of_nothing_in_a_hundred_is_three_point_seven_percent():
    assert stats.wilson(0, 100).high == pytest.approx(0.037, abs=5e-4)
    expected = reference.binomtest(13, 40).proportion_ci(method="wilson")
    assert (stats.wilson(13, 40).low, stats.wilson(13, 40).high) == pytest.approx((expected.low, expected.high))


def test_newcombe_reproduces_his_published_example():
    interval = stats.newcombe(56, 70, 48, 80)
    assert (interval.low, interval.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_rank_p_is_never_zero_and_follows_the_declared_direction():
    controls = np.linspace(0, 1, 199)
    assert stats.rank_p(2.0, controls, "up") == pytest.approx(1 / 200)
    assert stats.rank_p(2.0, controls, "down") == 1.0
    assert stats.rank_p_interval(2.0, controls, "up").high == pytest.approx(1 - 0.025 ** (1 / 199))


def test_rank_p_is_uniform_under_the_null():
    generator = np.random.default_rng(4)
    p = [stats.rank_p(*(lambda x: (x[0], x[1:], "up"))(generator.normal(size=100))) for _ in range(2000)]
    assert abs(np.mean(np.array(p) <= 0.05) - 0.05) < 0.02


def test_multiplicity_corrections_equal_scipy():
    p = np.random.default_rng(5).uniform(size=50) ** 3
    assert stats.benjamini_hochberg(p) == pytest.approx(reference.false_discovery_control(p))
    adjusted = stats.holm(np.array([0.01, 0.04, 0.03]))
    assert adjusted == pytest.approx([0.03, 0.06, 0.06])


def test_mcnemar_is_the_exact_binomial_test():
    assert stats.mcnemar(9, 1) == pytest.approx(reference.binomtest(9, 10).pvalue)
    assert stats.mcnemar(0, 0) == 1.0


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_estimates_refuse_what_is_empty_or_not_finite(values):
    with pytest.raises(InputError):
        stats.bootstrap_mean(np.array(values), seed=0)


def test_paired_intervals_equal_the_one_factor_and_two_factor_bootstraps():
    generator = np.random.default_rng(11)
    cue, item = np.repeat(np.arange(12), 10), np.tile(np.arange(10), 12)
    differences = generator.normal(size=(120, 2)) + generator.normal(size=12)[cue][:, None]
    two, one = (stats.paired_intervals(differences, *f, seed=3) for f in ((cue, item), (cue,)))
    for k in range(2):
        for found, expected in (
            (two[k], stats.two_way_bootstrap(differences[:, k], cue, item, seed=3)),
            (one[k], stats.bootstrap_mean(differences[:, k], cue, seed=3)),
        ):
            assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
            assert (found.n, found.n_clusters) == (expected.n, expected.n_clusters)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (3, 9), (9, 3), (7, 7), (0, 40)])
def test_mcnemar_equals_the_exact_binomial_test(only_a, only_b):
    expected = reference.binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    assert stats.mcnemar(only_a, only_b) == pytest.approx(expected)


@pytest.mark.parametrize("extreme", [0, 1, 5, 150, 199])
def test_noise_of_rank_p_is_the_clopper_pearson_interval(extreme):
    controls = np.r_[np.ones(extreme), np.zeros(199 - extreme)]
    found = stats.rank_p_interval(0.5, controls, "up")
    expected = reference.binomtest(extreme, 199).proportion_ci()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
