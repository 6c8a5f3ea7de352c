"""Trials: what was promised is what was run, chance looks like chance, and nothing is seen before its time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from trial_kit import BENIGN, NONCE, hooks, make_dictionary, make_kit, tiny_axis

from workbench.core.errors import AxisError, Cancelled, EditError, TrialError
from workbench.core.progress import CancelToken
from workbench.core.stats import rank_p
from workbench.evidence import run as runner
from workbench.evidence.arms import DOSES, controls, doses, noop, tune_difference_of_means
from workbench.evidence.design import Group, build, search
from workbench.evidence.metrics import BenignText, measure, prepare
from workbench.evidence.run import check_identical, run
from workbench.features.axes import AxisItem
from workbench.interventions.edits import Edits
from workbench.interventions.prefix import SharedPrefix
from workbench.interventions.runtime import last_logits, logits
from workbench.interventions.targets import Gate


@pytest.fixture(scope="module")
def kit(tiny_subject, tmp_path_factory):
    return make_kit(tiny_subject("llama"), tmp_path_factory.mktemp("kit"))


@pytest.fixture(scope="module")
def plan(kit):
    return kit.draft().freeze()


@pytest.fixture(scope="module")
def measurement(kit, plan):
    return run(plan, kit.subject, draw=lambda: NONCE)


# reading


def test_value_is_the_probability_of_the_event_and_mass_that_of_the_pair(kit):
    items = kit.axes[0].items("dev", 6)
    found = measure(kit.subject, items)
    p = last_logits(kit.subject, [one.text for one in items]).softmax(-1)
    yes, no = (kit.subject.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (" yes", " no"))
    np.testing.assert_allclose(found.mass, (p[:, yes] + p[:, no]).numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.value, (p[:, yes] / (p[:, yes] + p[:, no])).numpy(), rtol=1e-5)
    alone = measure(kit.subject, [dataclasses.replace(one, against=None) for one in items])
    np.testing.assert_allclose(alone.value, p[:, yes].numpy(), rtol=1e-5)


def test_event_of_two_tokens_is_refused(kit):
    item = AxisItem("<|bos|> the cat", (" yes please",), None, {"item": "a"})
    with pytest.raises(AxisError, match="' yes please' is 2 tokens"):
        prepare(kit.subject, [item])
    with pytest.raises(AxisError, match="no prompt to measure"):
        prepare(kit.subject, [])


def test_benign_cost_equals_brute_force_and_is_zero_for_a_no_op(kit):
    text = BenignText(kit.subject, BENIGN, batch_size=5)
    cost = text.cost(kit.edits)
    kl, nll = [], []
    for document in BENIGN:
        batch = kit.subject.batch([document])
        base, edited = (logits(kit.subject, batch, one)[0].log_softmax(-1) for one in (None, kit.edits))
        kl += (base.exp() * (base - edited)).sum(-1)[:-1].tolist()
        nll += (base - edited)[:-1].gather(-1, batch.ids[0, 1:, None])[:, 0].tolist()
    assert len(cost.kl) == len(kl)
    np.testing.assert_allclose(sorted(cost.kl), sorted(kl), atol=1e-5)
    np.testing.assert_allclose(sorted(cost.delta_nll), sorted(nll), atol=1e-5)
    summary = cost.summary()
    assert summary["kl_max"] == cost.kl.max() >= summary["kl_p99"] >= summary["kl_p95"]
    nothing = text.cost(noop(kit.edits))
    assert nothing.kl.max() < 1e-6
    assert np.abs(nothing.delta_nll).max() == 0


# arms


def test_no_op_runs_every_hook_and_changes_no_bit(kit):
    prompts = [one.text for one in kit.axes[0].items("dev", 20)]
    firings: list = []
    base = last_logits(kit.subject, prompts)
    found = last_logits(kit.subject, prompts, noop(kit.edits), firings=firings)
    check_identical(base, found, "answer")
    assert all(one.calls and one.touched for one in firings)


def test_a_no_op_that_changes_a_bit_stops_the_trial(kit, plan, monkeypatch):
    with pytest.raises(TrialError, match="no-op changed 1 of 4 logits"):
        check_identical(torch.zeros(4), torch.tensor([0.0, 0, 0, 1e-30]), "answer")
    monkeypatch.setattr(runner, "noop", lambda edits: runner.doses(edits, [1e-2])[0].edits)
    before = hooks(kit.subject)
    with pytest.raises(TrialError, match="no-op changed"):
        run(plan, kit.subject)
    assert hooks(kit.subject) == before


def test_dose_one_is_the_candidate_and_dose_zero_is_base(kit):
    items = kit.axes[0].items("dev", 20)
    arms = {arm.dose: measure(kit.subject, items, arm.edits).value for arm in doses(kit.edits, (0.0, 1.0))}
    assert np.array_equal(arms[1.0], measure(kit.subject, items, kit.edits).value)
    assert np.array_equal(arms[0.0], measure(kit.subject, items).value)


def test_controls_follow_from_the_nonce_and_their_number(kit):
    one, again, other = (controls(kit.edits, 3, nonce=nonce) for nonce in (NONCE, NONCE, "cd" * 32))
    assert [arm.id for arm in one] == ["control:000", "control:001", "control:002"]
    assert [arm.edits.digest() for arm in one] == [arm.edits.digest() for arm in again]
    assert len({arm.edits.digest() for arm in (*one, *other)}) == 6
    assert controls(kit.edits, 5, nonce=NONCE)[2].edits == one[2].edits


def test_controls_push_as_hard_as_the_candidate_at_every_token(kit):
    prompts = [one.text for one in kit.axes[0].items("dev", 12)]
    # at one site: above it, the streams of two arms differ and so do the shares of them
    candidate, ratios = Edits(kit.edits.items[1:]), []
    for edits in (candidate, *(arm.edits for arm in controls(candidate, 2, nonce=NONCE))):
        firings: list = []
        last_logits(kit.subject, prompts, edits, firings=firings)
        ratios.append([(one.touched, one.mean_ratio, one.max_ratio) for one in firings])
    np.testing.assert_allclose(ratios[1], ratios[0], rtol=1e-5)
    np.testing.assert_allclose(ratios[2], ratios[0], rtol=1e-5)


def test_rank_p_of_a_control_posing_as_the_candidate_is_uniform(kit):
    items = prepare(kit.subject, kit.axes[0].items("dev", 16))
    shared = SharedPrefix(kit.subject, [list(one) for one in items.ids], kit.edits.reads)
    p = []
    for trial in range(16):
        arms = controls(kit.edits, 20, nonce=f"{trial:064x}")
        levels = np.array([items.read(shared.last_logits(arm.edits)).value.mean() for arm in arms])
        p.append(rank_p(levels[0], levels[1:], "up"))
    # discrete on 1/20 … 20/20; jitter makes it continuous for the test
    jitter = np.random.default_rng(0).uniform(0, 0.05, len(p))
    assert stats.kstest(np.array(p) - jitter, "uniform").pvalue > 0.01


def test_difference_of_means_is_the_best_within_the_candidates_benign_cost(kit):
    axis, text = kit.axes[0], BenignText(kit.subject, BENIGN)
    dev = prepare(kit.subject, axis.items("dev", 32))
    found = tune_difference_of_means(kit.subject, axis, dev, text, like=kit.edits, target_kl=0.02, n=30)
    record = found.record
    assert {one["site"] for one in record["tried"]} == {"resid.1", "resid.2"}
    assert record["n_tried"] == len(record["tried"]) == 2 * 8
    affordable = [one["dev_effect"] for one in record["tried"] if one["dev_kl"] <= 0.021]
    assert record["dev_effect"] == max(affordable) > 0
    assert record["dev_kl"] == pytest.approx(float(text.cost(found.edits).kl.mean()))
    assert [edit.positions for edit in found.edits] == [kit.edits.items[0].positions]
    nothing = tune_difference_of_means(kit.subject, axis, dev, text, like=kit.edits, target_kl=-1.0, n=30)
    assert nothing.record["dev_kl"] == min(one["dev_kl"] for one in nothing.record["tried"])


# plans


def test_frozen_plan_cannot_be_changed(kit):
    draft = kit.draft()
    draft.title = "another title"
    frozen = draft.freeze()
    assert frozen.document.title == "another title"
    with pytest.raises(TrialError, match="cannot change 'n_controls': the plan is frozen"):
        draft.n_controls = 5
    with pytest.raises(ValueError, match="frozen"):
        frozen.document.title = "yet another"
    with pytest.raises(dataclasses.FrozenInstanceError):
        frozen.digest = "0" * 64


def test_plan_changed_behind_its_back_is_refused_before_a_nonce_is_drawn(kit, plan):
    drawn = []

    def draw():
        drawn.append(1)
        return NONCE

    changed = plan.document.model_copy(update={"title": "what we found"})
    with pytest.raises(TrialError, match="changed after it was frozen"):
        run(dataclasses.replace(plan, document=changed), kit.subject, draw=draw)
    with pytest.raises(TrialError, match="edits are not those"):
        run(dataclasses.replace(plan, edits=Edits(plan.edits.items[:1])), kit.subject, draw=draw)
    swapped = {**plan.axes, "bystander": plan.axes["answer"]}
    with pytest.raises(TrialError, match="axis bystander is not the one that the plan froze"):
        run(dataclasses.replace(plan, axes=swapped), kit.subject, draw=draw)
    assert not drawn


def test_nonce_is_drawn_after_freezing_and_prompts_after_the_nonce(kit, tmp_path):
    events = []
    axis = tiny_axis(tmp_path)

    class Watched:
        digest = axis.source.digest

        def items(self, split, n, seed):
            return axis.source.items(split, n, seed)

        def fresh(self, n, nonce):
            events.append("prompts")
            return axis.source.fresh(n, nonce)

        def contrast(self, split, n, seed):
            return axis.source.contrast(split, n, seed)

    watched = dataclasses.replace(axis, source=Watched())
    frozen = kit.draft(axes=[watched], n={"answer": 64}, benign=None).freeze()
    assert events == []
    found = run(frozen, kit.subject, draw=lambda: events.append("nonce") or NONCE)
    assert events == ["nonce", "prompts"]
    assert frozen.document.frozen <= found.started <= found.finished
    assert NONCE not in frozen.document.to_bytes().decode()


def test_test_prompts_are_never_ones_that_selection_saw(kit):
    seen = kit.axes[0].items("test", 64, nonce=NONCE)[:3]
    frozen = kit.draft(seen=seen).freeze()
    with pytest.raises(TrialError, match="3 of 64 test prompts were seen on dev"):
        run(frozen, kit.subject, draw=lambda: NONCE)


def test_another_subject_than_promised_is_refused(kit, plan, tiny_subject):
    with pytest.raises(TrialError, match="subject is not the one that the plan froze"):
        run(plan, tiny_subject("qwen2"))


def test_underpowered_and_one_cluster_axes_are_refused_by_name(kit, tmp_path):
    with pytest.raises(TrialError, match="underpowered: bystander: expected interval"):
        kit.draft(margins={"answer": 0.0, "bystander": 1e-4}, rules={"bystander": "unchanged"}).freeze()
    lonely = tiny_axis(tmp_path, "lonely", n_cues=1, n_items=12, per_split=6, margin=0.9)
    with pytest.raises(TrialError, match="axis lonely is underpowered: 1 cue cluster in 6 prompts"):
        kit.draft(axes=[kit.axes[0], lonely], n={"answer": 64, "lonely": 6}).freeze()
    few = tiny_axis(tmp_path, "few", n_cues=4, n_items=12, per_split=20, margin=0.9)
    frozen = kit.draft(axes=[kit.axes[0], few], n={"answer": 64, "few": 20}).freeze()
    with pytest.raises(TrialError, match="axis few is underpowered: 4 cue clusters in 20 prompts, at least 10"):
        run(frozen, kit.subject, draw=lambda: NONCE)


def test_empty_axis_and_too_few_controls_are_refused(kit):
    with pytest.raises(TrialError, match="primary axis 'refusal' is not among the axes"):
        kit.draft(primary="refusal")
    with pytest.raises(TrialError, match=r"9 controls cannot reach rank p"):
        kit.draft(n_controls=9, alpha=0.05).freeze()
    with pytest.raises(TrialError, match="axis answer is empty"):
        runner.check_clusters("answer", [], 2)


def test_cost_counts_every_arm_before_anything_runs(kit):
    cost = kit.draft().cost()
    assert cost.forwards == 64 * (3 + 19 + len(DOSES)) + 64 * 2
    assert cost.tokens > 5 * cost.forwards
    assert f"{cost.forwards:,} prompts" in repr(cost)


# a whole trial


def test_trial_measures_every_promised_arm_on_every_prompt(plan, measurement):
    for axis in plan.document.axes:
        found = measurement.axes[axis.id]
        assert list(found.arms) == plan.document.arms_of(axis)
        assert len(found.items) == axis.n
        assert all(len(one.value) == axis.n for one in found.arms.values())
        assert len(found.continuations) == plan.document.n_samples
    assert len([one for one in measurement.axes["answer"].arms if one.startswith("control:")]) == 19
    assert measurement.n_forwards == 64 * (3 + 19 + len(DOSES)) + 64 * 2


def test_effective_candidate_beats_its_controls(measurement):
    row = next(row for row in measurement.table() if row["axis"] == "answer")
    assert row["holds"]
    assert row["rank_p"] == pytest.approx(1 / 20)
    assert row["candidate"] > row["base"]
    assert row["interval"][0] > 0
    assert row["controls"][1] < row["candidate"]
    assert "answer" in repr(measurement)
    assert "<table>" in measurement._repr_html_()


def test_shared_prefix_changes_no_control(kit, measurement):
    items = measurement.axes["answer"].items
    for arm in controls(kit.edits, 3, nonce=NONCE):
        whole = measure(kit.subject, items, arm.edits)
        np.testing.assert_allclose(measurement.axes["answer"].arms[arm.id].value, whole.value, atol=1e-12)


def test_same_nonce_gives_the_same_bytes_and_another_one_other_prompts(kit, plan, measurement):
    again = run(plan, kit.subject, draw=lambda: NONCE)
    assert again.outcome_files == measurement.outcome_files
    other = run(plan, kit.subject)
    assert len(other.nonce) == 64
    texts = [{item.text for item in one.axes["answer"].items} for one in (measurement, other)]
    assert texts[0] != texts[1]


def test_run_leaves_the_model_as_it_was(kit, plan):
    prompts = [one.text for one in kit.axes[0].items("dev", 8)]
    before, count = last_logits(kit.subject, prompts), hooks(kit.subject)
    token = CancelToken()

    def stop():
        token.cancel()
        return NONCE

    with pytest.raises(Cancelled):
        run(plan, kit.subject, draw=stop, cancel=token)
    assert hooks(kit.subject) == count
    assert torch.equal(before, last_logits(kit.subject, prompts))


# design


def test_search_counts_every_candidate_and_marks_its_pick(kit, tmp_path):
    axis = tiny_axis(tmp_path, margin=0.9)
    dictionaries = {"resid.1": make_dictionary(kit.subject.d_model)}
    options = {"benign": BENIGN, "sizes": (1, 2), "gates": (False, True), "kl_limit": 5.0, "n_dev": 32, "n_rank": 30}
    found = search(kit.subject, dictionaries, axis, guards=[kit.axes[1]], **options)
    assert len(found.tried) == len({one["digest"] for one in found.tried}) >= 10
    chosen = [one for one in found.tried if one["chosen"]]
    assert [one["digest"] for one in chosen] == [found.edits.digest()]
    assert chosen[0]["worse"].keys() == {"bystander"}
    assert chosen[0]["benign_kl"] == found.benign_kl <= 5.0
    assert {item.text for item in found.seen} >= {item.text for item in axis.items("dev", 32)}
    assert len(found.features) == found.group.k
    again = search(kit.subject, dictionaries, axis, guards=[kit.axes[1]], **options)
    assert again.tried == found.tried


def test_search_that_finds_nothing_says_so(kit):
    dictionaries = {"resid.1": make_dictionary(kit.subject.d_model)}
    with pytest.raises(TrialError, match=r"none of \d+ candidates moves answer the good way within a benign KL of 0"):
        search(
            kit.subject,
            dictionaries,
            kit.axes[0],
            guards=[],
            benign=BENIGN,
            sizes=(1,),
            kl_limit=0.0,
            n_dev=16,
            n_rank=20,
        )


def test_group_sets_features_towards_the_absent_side(kit):
    from workbench.features.ranking import rank

    dictionaries = {"resid.1": make_dictionary(kit.subject.d_model)}
    ranking = rank(kit.subject, dictionaries, kit.axes[0], by="separation", n=30)
    edits = build(ranking, dictionaries, Group(("resid.1",), 3, -1.0))
    for edit, row in zip(edits, ranking.top(3), strict=True):
        wanted = max(0.0, row.mean_absent - (row.mean_present - row.mean_absent))
        assert (edit.op, edit.target.index) == ("set", row.index)
        assert edit.value == pytest.approx(wanted, abs=1e-6)
    gated = build(ranking, dictionaries, Group(("resid.1",), 2, 0.0, gated=True))
    assert all(isinstance(edit.gate, Gate) for edit in gated)
    with pytest.raises(TrialError, match="a group of 500 features"):
        build(ranking, dictionaries, Group(("resid.1",), 500, 0.0))
    with pytest.raises(EditError, match="nothing to control for"):
        controls(Edits(), 1, nonce=NONCE)
