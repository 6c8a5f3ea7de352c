"""Ranking: a planted feature is found first, with honest uncertainty; silent features are said to be silent."""

import numpy as np
import pytest
import torch
from scipy import stats
from trial_kit import make_dictionary, tiny_axis

from workbench.core.errors import AxisError, InputError, PromptError
from workbench.core.stats import auroc
from workbench.features import ranking
from workbench.features.capture import capture, decision_tokens
from workbench.features.ranking import pooled_activations, rank
from workbench.models.reading import reading
from workbench.models.sites import Site

SITE = Site.parse("resid.1")


@pytest.fixture(scope="module")
def subject(tiny_subject):
    return tiny_subject("llama")


@pytest.fixture(scope="module")
def axis(tmp_path_factory):
    return tiny_axis(tmp_path_factory.mktemp("axes"))


@pytest.fixture(scope="module")
def planted(subject, axis):
    """A dictionary whose feature 7 reads the difference between the sides, and whose feature 3 never fires."""
    dictionary = make_dictionary(subject.d_model)
    present, absent = axis.contrast("dev", 30)
    stream = decision_tokens(subject, [*present, *absent], [SITE])[SITE]
    one, other = stream[:30], stream[30:]
    direction = torch.linalg.lstsq(
        torch.cat([one - other.mean(0), other - other.mean(0)]), torch.cat([torch.ones(30), torch.zeros(30)])
    ).solution
    dictionary.weights["W_enc"][:, 7] = direction
    dictionary.weights["b_enc"][7] = 1 - float(one.mean(0) @ direction)
    dictionary.weights["b_enc"][3] = -1e6
    return dictionary


def _hooks(subject) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in subject.model.modules())


def test_planted_feature_is_ranked_first_by_every_order(subject, axis, planted):
    for by in ("effect", "auroc"):
        found = rank(subject, {"resid.1": planted}, axis, by=by, n=30)
        assert found[0].index == 7
        assert found[0].effect > 0
        assert found[0].auroc > 0.9
        assert found[0].q < 0.01
        assert found[0].interval[0] < found[0].auroc <= found[0].interval[1]


def test_silent_feature_is_counted_and_not_ranked(subject, axis, planted):
    found = rank(subject, {"resid.1": planted}, axis, n=30)
    assert 3 not in {row.index for row in found}
    assert found.n_dead + len(found) == planted.d_dict
    assert found.n_dead >= 1


def test_statistics_equal_brute_force(subject, axis, planted):
    found = {row.index: row for row in rank(subject, {"resid.1": planted}, axis, n=30)}
    present, absent = axis.contrast("dev", 30)
    stream = decision_tokens(subject, [*present, *absent], [SITE])[SITE]
    acts = planted.encode(stream).double().numpy()
    for index in (7, *list(found)[:4]):
        one, other = acts[:30, index], acts[30:, index]
        pooled = np.sqrt((one.var(ddof=1) + other.var(ddof=1)) / 2)
        assert found[index].effect == pytest.approx((one.mean() - other.mean()) / pooled, rel=1e-4)
        assert found[index].difference == pytest.approx(one.mean() - other.mean(), rel=1e-4)
        assert found[index].auroc == pytest.approx(float(auroc(one, other)))
        assert found[index].p == pytest.approx(stats.mannwhitneyu(one, other, method="asymptotic").pvalue)
        assert found[index].density == pytest.approx((acts[:, index] > 0).mean())


def test_q_is_benjamini_hochberg_over_all_dictionaries_together(subject, axis, planted):
    other = make_dictionary(subject.d_model, site="resid.0", seed=5)
    found = rank(subject, {"resid.1": planted, "resid.0": other}, axis, n=30)
    p, q = (np.array([getattr(row, name) for row in found]) for name in ("p", "q"))
    assert {row.dictionary for row in found} == {"resid.0", "resid.1"}
    np.testing.assert_allclose(q, stats.false_discovery_control(p, method="bh"))


def test_shuffled_sides_give_no_discovery(subject, axis, planted, tmp_path):
    present, absent = axis.contrast("dev", 30)
    mixed = [*present[::2], *absent[::2], *present[1::2], *absent[1::2]]

    class Shuffled:
        digest = "0" * 64

        def contrast(self, split, n, seed):
            return mixed[:30], mixed[30:]

    null = tiny_axis(tmp_path)
    object.__setattr__(null, "source", Shuffled())
    found = rank(subject, {"resid.1": planted}, null, n=30)
    assert min(row.q for row in found) > 0.05


def test_maximum_pooling_leaves_special_tokens_out_and_equals_brute_force(subject, axis, planted):
    present, _ = axis.contrast("dev", 12)
    pooled = pooled_activations(subject, {"d": planted}, present, pool="max", batch_size=5)["d"].toarray()
    streams = capture(subject, present, [SITE])[SITE]
    for k, text in enumerate(present):
        ids = subject.encode(text)
        plain = [position for position, token in enumerate(ids) if token not in subject.special_ids]
        assert 0 < len(plain) < len(ids)
        expected = planted.encode(streams[k][plain]).amax(0).numpy()
        np.testing.assert_allclose(pooled[k], expected, atol=1e-5)


def test_decision_token_pooling_does_not_depend_on_the_batch(subject, axis, planted):
    present, absent = axis.contrast("dev", 10)
    one, many = (
        pooled_activations(subject, {"d": planted}, [*present, *absent], pool="last", batch_size=size)["d"].toarray()
        for size in (1, 7)
    )
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_blocks_of_features_do_not_change_a_ranking(subject, axis, planted, monkeypatch):
    whole = rank(subject, {"resid.1": planted}, axis, n=20)
    monkeypatch.setattr(ranking, "_BLOCK", 5)
    assert rank(subject, {"resid.1": planted}, axis, n=20) == whole


def test_capture_leaves_no_hook_and_equals_hidden_states(subject, axis):
    text = axis.contrast("dev", 1)[0][0]
    stream = capture(subject, [text], [SITE])[SITE][0]
    ids = torch.tensor([subject.encode(text)])
    before = _hooks(subject)
    torch.testing.assert_close(stream, capture(subject, [text], [SITE])[SITE][0], atol=0, rtol=0)
    assert _hooks(subject) == before
    reference = subject.model(input_ids=ids, output_hidden_states=True).hidden_states[2][0]
    torch.testing.assert_close(stream, reference, atol=1e-5, rtol=1e-5)


def test_head_readings_sum_to_the_attention_output(subject, axis):
    text = axis.contrast("dev", 1)[0][0]
    sites = [Site("head", 1, head) for head in range(subject.n_heads)]
    found = capture(subject, [text], [*sites, Site("attn", 1)])
    total = sum(found[site][0] for site in sites)
    torch.testing.assert_close(total, found[Site("attn", 1)][0], atol=1e-5, rtol=1e-5)


def test_reading_removes_its_hooks_after_an_error(subject):
    before = _hooks(subject)
    with pytest.raises(PromptError, match="no prompt"), reading(subject, [SITE]):
        subject.batch([])
    assert _hooks(subject) == before


def test_ranking_refuses_what_it_cannot_do(subject, axis, planted):
    with pytest.raises(InputError, match="cannot rank by 'luck'"):
        rank(subject, {"resid.1": planted}, axis, by="luck")
    with pytest.raises(InputError, match="no dictionary"):
        rank(subject, {}, axis)
    with pytest.raises(AxisError, match="never ranked on the test split"):
        rank(subject, {"resid.1": planted}, axis, split="test")


def test_table_and_pages_say_what_they_stand_on(subject, axis, planted):
    found = rank(subject, {"<b>&": planted}, axis, n=20)
    assert found.table()[0]["index"] == found[0].index
    assert "n 20 + 20" in repr(found)
    page = found._repr_html_()
    assert "&lt;b&gt;&amp;" in page
    assert "<b>&" not in page
