"""Verdicts follow from the outcomes and the plan's rule alone, and an axis too small to tell never passes."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import spec_bundle

from workbench.core.canonical import seed
from workbench.core.errors import BundleError
from workbench.spec.documents.plan import AxisDeclaration, Plan
from workbench.spec.outcomes import Outcomes
from workbench.spec.verdicts import arrange, difference, explain, judge, room, samples, worst_first

NONCE = spec_bundle.NONCE


@pytest.fixture(scope="module")
def parts():
    return spec_bundle.parts()


@pytest.fixture(scope="module")
def plan(parts):
    return Plan.from_json(parts.plan)


def judged(plan, axis, columns, nonce=NONCE):
    return judge(plan, axis, nonce, arrange(plan, axis, int(columns.prompt.max()) + 1, columns))


def guard(plan, *, n=60, **changes):
    """Give a plan with one more axis, two arms on it, for outcomes made by hand."""
    axis = {**spec_bundle.axes()[1], "id": "guard", "n": n, **changes}
    value = plan.to_json()
    value["axes"] = [*value["axes"], axis]
    value["arms"] = [
        arm | ({"axes": ["resistance"]} if arm["kind"] == "difference_of_means" else {}) for arm in value["arms"]
    ]
    made = Plan.from_json(value)
    return made, made.axes[-1]


def outcomes(base, candidate, *, cues=12, items=None, **arms):
    """Outcomes whose cues repeat every `cues` prompts; twelve items of five prompts each where no number is given."""
    n = len(base)
    number = [k // cues % items if items else k // 5 % 12 for k in range(n)]
    clusters = [{"cue": f"c{k % cues}", "item": f"i{number[k]}"} for k in range(n)]
    values = {"base": base, "candidate": candidate, **arms}
    return Outcomes.of_arms(clusters, {arm: (np.asarray(v, float), np.ones(n)) for arm, v in values.items()})


def test_levels_and_differences_are_plain_means(parts, plan):
    axis, columns = plan.axes[0], parts.outcomes["resistance"]
    found = judged(plan, axis, columns)
    level = {arm: columns.value[columns.arm == arm].mean() for arm in ("base", "candidate", "difference_of_means")}
    assert found.base == pytest.approx(level["base"])
    assert found.candidate == pytest.approx(level["candidate"])
    assert found.difference == pytest.approx(level["candidate"] - level["base"])
    assert found.difference_of_means == pytest.approx(level["difference_of_means"])
    controls = [columns.value[columns.arm == f"control:{k:03d}"].mean() for k in range(99)]
    assert found.controls == pytest.approx(controls)
    assert found.rank_p == pytest.approx((1 + sum(level["candidate"] <= c for c in controls)) / 100)
    assert [one.arm for one in found.arms] == ["dose:-1", "dose:0.5", "difference_of_means"]


def test_the_interval_is_the_two_way_cluster_bootstrap_written_out_by_hand(plan):
    generator = np.random.default_rng(3)
    made, axis = guard(plan)
    base = generator.uniform(0.2, 0.4, 60)
    candidate = base + generator.normal(0.02, 0.05, 60)
    columns = outcomes(base, candidate, cues=12, items=5)
    found = judged(made, axis, columns)
    boot = np.random.default_rng(seed(NONCE, "bootstrap", "guard"))
    cue, item = np.arange(60) % 12, np.arange(60) // 12
    names = np.unique([f"c{k}" for k in range(12)]).tolist()
    order = np.array([names.index(f"c{k}") for k in range(12)])
    draws = []
    cue_counts = boot.multinomial(12, np.full(12, 1 / 12), size=made.n_boot)
    item_counts = boot.multinomial(5, np.full(5, 1 / 5), size=made.n_boot)
    for c, i in zip(cue_counts, item_counts, strict=True):
        weight = [c[order[cue[k]]] * i[item[k]] for k in range(60)]
        if sum(weight):
            draws.append(sum(w * d for w, d in zip(weight, candidate - base, strict=True)) / sum(weight))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert found.clustering == "cue × item"
    assert found.n_clusters == 5


@pytest.mark.parametrize(
    ("cues", "items", "expected", "clusters"),
    [
        (12, 5, "cue × item", 5),
        (12, 10_000, "cue × item", 5),
        (1, 6, "item", 6),
        (60, 1, "prompt", 60),
        (15, 1, "cue", 15),
    ],
)
def test_whatever_repeats_is_resampled_together(plan, cues, items, expected, clusters):
    made, axis = guard(plan)
    base = np.full(60, 0.3)
    found = judged(made, axis, outcomes(base, base + 0.01, cues=cues, items=items))
    assert (found.clustering, found.n_clusters) == (expected, clusters)


def test_the_seed_follows_from_the_nonce_and_the_axis(parts, plan):
    axis, columns = plan.axes[1], parts.outcomes["compliance"]
    one, again, other = (judged(plan, axis, columns, nonce) for nonce in (NONCE, NONCE, "1b" * 32))
    assert one == again
    assert one.seed != other.seed
    assert one.low != other.low


@pytest.mark.parametrize(
    ("direction", "shift", "verdict"),
    [("down", 0.02, "holds"), ("down", 0.2, "falls_short"), ("up", -0.02, "holds"), ("up", -0.2, "falls_short")],
)
def test_a_harm_axis_holds_only_while_the_bound_of_the_worsening_is_below_its_margin(plan, direction, shift, verdict):
    made, axis = guard(plan, direction=direction, harm=True, margin=0.05)
    base = np.full(60, 0.4)
    found = judged(made, axis, outcomes(base, base + shift + np.linspace(-0.001, 0.001, 60)))
    assert found.verdict == verdict
    assert found.holds == (verdict == "holds")


def test_improvement_beyond_the_margin_is_no_failure_of_a_guard_axis_but_is_one_of_an_unchanged_axis(plan):
    base = np.full(60, 0.4)
    better = base - 0.3 + np.linspace(-0.001, 0.001, 60)
    made, axis = guard(plan, direction="down", margin=0.05, rule="not_worse")
    assert judged(made, axis, outcomes(base, better)).verdict == "holds"
    made, axis = guard(plan, direction="down", margin=0.05, rule="unchanged")
    assert judged(made, axis, outcomes(base, better)).verdict == "falls_short"


def test_an_interval_too_wide_for_the_margin_is_underpowered_and_fails(plan):
    generator = np.random.default_rng(5)
    made, axis = guard(plan, n=30, margin=0.02)
    base = np.full(30, 0.5)
    found = judged(made, axis, outcomes(base, np.clip(base + generator.normal(0, 0.2, 30), 0, 1)))
    assert found.verdict == "underpowered"
    assert not found.holds
    assert "too few prompts to tell" in found.reason


def test_too_few_clusters_are_underpowered_however_narrow_the_interval(plan):
    made, axis = guard(plan, min_clusters=10)
    base = np.full(60, 0.4)
    found = judged(made, axis, outcomes(base, base + 0.001, cues=4, items=15))
    assert found.verdict == "underpowered"
    assert "4 clusters, at least 10 are needed" in found.reason


def target(parts, plan, *, candidate):
    columns = parts.outcomes["resistance"]
    value = columns.value.copy()
    base = value[columns.arm == "base"]
    value[columns.arm == "candidate"] = np.clip(base + candidate, 0, 1)
    return judged(plan, plan.axes[0], replace(columns, value=value))


def test_the_target_must_be_beyond_the_margin_and_beyond_the_controls(parts, plan):
    assert target(parts, plan, candidate=0.4).verdict == "holds"
    within = target(parts, plan, candidate=0.15)
    assert within.low > 0.05
    assert within.rank_p > 0.01
    assert within.verdict == "falls_short"
    assert target(parts, plan, candidate=-0.4).verdict == "falls_short"


def test_an_effect_the_wrong_way_is_never_counted_as_success(parts, plan):
    found = target(parts, plan, candidate=-0.45)
    assert found.rank_p == 1.0
    assert found.wrong_way == 1.0
    assert not found.holds


def test_a_plan_with_too_few_controls_for_its_alpha_cannot_be_declared(parts):
    value = copy.deepcopy(parts.plan)
    value["axes"][0] |= {"n_controls": 50}
    with pytest.raises(BundleError, match="at least 99 are needed"):
        Plan.from_json(value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: plan.update(primary="cue"), "primary axis cue"),
        (lambda plan: plan["axes"].append(plan["axes"][1]), "declared twice"),
        (lambda plan: plan["arms"].pop(0), "arm base is not declared"),
        (lambda plan: plan["arms"][5].update(n=10), "99 controls are promised"),
        (lambda plan: plan["arms"][5].update(family=None), "controls have a family"),
        (lambda plan: plan["arms"][3].update(dose=None), "doses, and only doses"),
        (lambda plan: plan["arms"][3].update(axes=["nothing"]), "undeclared axis nothing"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(parts, change, words):
    value = copy.deepcopy(parts.plan)
    change(value)
    with pytest.raises(BundleError, match=words):
        Plan.from_json(value)


def test_null_axes_hold_at_most_as_often_as_their_rule_allows(plan):
    """No effect at all: the target rule passes in no more than alpha of trials; here in none of 60."""
    held = 0
    for trial in range(60):
        generator = np.random.default_rng(trial)
        base = generator.uniform(0.3, 0.6, 60)
        arms = {f"control:{k:03d}": base + generator.normal(0, 0.05) for k in range(99)}
        arms |= dict.fromkeys(("noop", "dose:-1", "dose:0.5", "difference_of_means"), base)
        columns = outcomes(base, base + generator.normal(0, 0.05), cues=12, items=5, **arms)
        clipped = replace(columns, value=np.clip(columns.value, 0, 1))
        held += judged(plan, plan.axes[0], clipped).holds
    assert held <= 2


def test_a_change_for_the_worse_at_the_margin_is_let_through_at_most_as_often_as_promised(plan):
    made, axis = guard(plan, margin=0.05, n=60)
    held = 0
    for trial in range(150):
        generator = np.random.default_rng(1000 + trial)
        base = np.full(60, 0.4)
        noise = generator.normal(0, 0.03, 12)[np.arange(60) % 12] + generator.normal(0, 0.03, 60)
        held += judged(made, axis, outcomes(base, base + 0.05 + noise)).holds
    assert held / 150 <= 0.06


def test_sampled_texts_are_averaged_per_prompt_before_anything_else(plan):
    made, _ = guard(plan, metric_type="sampled")
    once = outcomes(np.linspace(0.2, 0.4, 60), np.linspace(0.1, 0.4, 60))
    names = ("prompt", "cue", "item", "arm", "value", "mass")
    twice = {name: np.repeat(getattr(once, name), 2) for name in names}
    twice["value"] = twice["value"] + np.tile([0.05, -0.05], 120)
    several = Outcomes(**twice, sample=np.tile(np.array([0, 1], np.int32), 120))
    one, two = judged(made, made.axes[-1], once), judged(made, made.axes[-1], several)
    assert (one.base, one.low, one.high) == pytest.approx((two.base, two.low, two.high))
    assert two.n == 60


def test_worst_axis_comes_first_failing_harm_before_failing_benefit_before_what_holds(plan, parts):
    axes = {axis.id: axis for axis in plan.axes}
    estimates = {name: judged(plan, axes[name], parts.outcomes[name]) for name in axes}

    def failing(name):
        return estimates[name].model_copy(update={"holds": False, "verdict": "falls_short"})

    everything = [(axes[name], estimates[name]) for name in axes]
    assert [axis.id for axis, _ in worst_first(everything)] == sorted(
        axes, key=lambda name: room(axes[name], estimates[name])
    )
    mixed = [(axes[n], failing(n) if n != "cue" else estimates[n]) for n in axes]
    assert [axis.id for axis, _ in worst_first(mixed)] == ["compliance", "resistance", "cue"]


def test_samples_are_drawn_by_the_nonce_and_cannot_be_picked():
    drawn = samples(NONCE, "resistance", 60, 5)
    assert drawn == samples(NONCE, "resistance", 60, 5) == sorted(set(drawn))
    assert len(drawn) == 5
    assert drawn != samples("1b" * 32, "resistance", 60, 5)
    assert samples(NONCE, "resistance", 3, 5) == [0, 1, 2]


def test_the_last_bit_of_a_sum_is_no_difference_and_a_changed_digit_is(parts, plan):
    axis = plan.axes[0]
    found = judged(plan, axis, parts.outcomes["resistance"])
    assert explain(axis, found) == (found.verdict, found.reason)
    assert difference(axis, found.model_copy(update={"low": found.low + 1e-13}), found) is None
    assert difference(axis, found.model_copy(update={"low": found.low + 1e-6}), found).startswith("low is stored as")


def test_an_axis_declaration_explains_every_field():
    assert all(field.description for field in AxisDeclaration.model_fields.values())
