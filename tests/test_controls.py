"""Controls push exactly as hard as the candidate, at the same tokens, in a direction that chance chose."""

import pytest
import torch
from edit_kit import PROMPTS, busiest, direction, feature, make_dictionary, watched

from workbench.core.errors import EditError
from workbench.interventions import edits
from workbench.interventions.controls import control, dosed, turn
from workbench.interventions.edits import Edits
from workbench.interventions.runtime import Runtime, last_logits
from workbench.interventions.targets import DirectionTarget


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def candidate(*indices) -> Edits:
    """Edits of several kinds at one site, with gates, and one at another site."""
    sae = make_dictionary("jumprelu", scaling="layer_norm")
    a, b, c = indices or (3, 4, 5)
    probe = direction("probe", "resid.0", seed=8)
    return (
        edits.set(feature(sae, a), 3.0)
        + edits.scale(feature(sae, b), 0.0, gate=probe > -0.5)
        + edits.projection_cap(feature(sae, c), 0.1)
        + edits.add(direction("harm"), -0.8, max_ratio=0.4)
        + edits.project_out(direction("other", seed=4))
        + edits.add(direction("late", "mlp.2", seed=5), 1.0)
    )


def written(one: Edits, site: str) -> torch.Tensor:
    rows = [
        e.target.write if isinstance(e.target, DirectionTarget) else e.target.write_row
        for e in one
        if str(e.site) == site
    ]
    return torch.stack(rows)


def test_norms_and_angles_of_the_written_rows_stay_and_their_directions_do_not():
    before = candidate()
    after = control(before, generator=rng())
    for site in ("resid.1", "mlp.2"):
        old, new = written(before, site), written(after, site)
        scale = old.norm(dim=-1)
        assert ((new.norm(dim=-1) - scale) / scale).abs().max() <= 1e-5
        assert ((new @ new.T - old @ old.T) / (scale[:, None] * scale)).abs().max() <= 1e-5
        assert torch.cosine_similarity(old, new).abs().max() <= 0.7


def test_everything_that_is_read_stays_bit_for_bit():
    before = candidate()
    after = control(before, generator=rng())
    for old, new in zip(before, after, strict=True):
        assert (new.op, new.value, new.positions, new.max_ratio, new.site) == (
            old.op,
            old.value,
            old.positions,
            old.max_ratio,
            old.site,
        )
        assert (new.gate is None) == (old.gate is None)
        if old.gate is not None:
            assert new.gate is old.gate
        if isinstance(old.target, DirectionTarget):
            assert torch.equal(new.target.read, old.target.read)
        elif isinstance(new.target, DirectionTarget):
            assert torch.equal(new.target.read, old.target.write_row)
        else:
            tensors, kept = new.target.rows.tensors(), old.target.rows.tensors()
            assert tensors.keys() == kept.keys()
            assert all(torch.equal(tensors[name], kept[name]) for name in kept if name != "W_dec")


def test_every_token_is_pushed_exactly_as_hard_by_candidate_and_control(any_subject):
    batch = any_subject.batch(PROMPTS)
    module = any_subject.module("resid.1")
    with watched(module) as seen:
        any_subject.logits(batch)
    x = seen[0]
    one = candidate(*busiest(make_dictionary("jumprelu", scaling="layer_norm"), x[batch.mask]))
    one = Edits(tuple(edit for edit in one if str(edit.site) == "resid.1"))
    lengths, counts = [], []
    for arm in (one, control(one, generator=rng(1)), control(one, generator=rng(2))):
        with Runtime(any_subject, arm, allow_idle=True) as run, watched(module) as after:
            any_subject.logits(batch)
        lengths.append((after[0] - x).norm(dim=-1)[batch.mask])
        counts.append([(f.calls, f.selected, f.open, f.touched) for f in run.firings])
    touched = lengths[0] > 0
    assert touched.sum() > 10
    for other in lengths[1:]:
        assert ((other - lengths[0])[touched] / lengths[0][touched]).abs().max() <= 1e-5
        assert not other[~touched].any()
    assert counts[0] == counts[1] == counts[2]


def test_a_control_follows_its_generator_alone():
    first, again, other = (control(candidate(), generator=rng(seed)) for seed in (3, 3, 4))
    assert first.digest() == again.digest()
    assert first.digest() != other.digest()
    assert first != candidate()


def test_turned_rows_point_everywhere_alike():
    rows = torch.randn(2, 8, generator=rng())
    generator = rng(1)
    drawn = torch.stack([turn(rows, generator) for _ in range(4000)])
    units = drawn / rows.norm(dim=-1)[:, None]
    assert units.mean(0).abs().max() <= 4 * (1 / 8 / 4000) ** 0.5
    # second moments of a uniform unit vector: 1/d on the diagonal, 0 off it
    moments = torch.einsum("nki,nkj->kij", units, units) / 4000
    assert (moments - torch.eye(8) / 8).abs().max() <= 0.015
    # the first row's direction says nothing about the second's beyond their angle
    cosine = torch.cosine_similarity(rows[0], rows[1], dim=0)
    rest = units[:, 1] - cosine * units[:, 0]
    assert rest.mean(0).abs().max() <= 4 * (1 / 8 / 4000) ** 0.5


def test_more_rows_than_dimensions_turn_together():
    rows = torch.randn(12, 5, generator=rng())
    turned = turn(rows, rng(1))
    assert (turned @ turned.T - rows @ rows.T).abs().max() <= 1e-5
    assert not torch.allclose(turned, rows, atol=0.1)


def test_heads_of_one_layer_turn_together_and_layers_apart():
    same = torch.ones(32)
    heads = Edits()
    for name in ("head.1.0", "head.1.3", "head.2.0"):
        heads = heads + edits.add(DirectionTarget.of(name, name, same), 1.0)
    one, two, three = (edit.target.write for edit in control(heads, generator=rng()))
    assert torch.allclose(one, two, atol=1e-6)
    assert torch.cosine_similarity(one, three, dim=0).abs() < 0.7


def test_a_dose_multiplies_the_change_and_dose_zero_is_a_bit_identical_no_op(tiny_subject):
    subject = tiny_subject("llama")
    batch, module = subject.batch(PROMPTS), subject.module("resid.1")
    with watched(module) as seen:
        base = subject.logits(batch)
    one = candidate(*busiest(make_dictionary("jumprelu", scaling="layer_norm"), seen[0][batch.mask]))
    one = Edits(tuple(edit for edit in one if edit.max_ratio is None))
    changes = {}
    for dose in (1.0, -0.5, 2, 0):
        with Runtime(subject, dosed(one, dose)), watched(module) as after:
            found = subject.logits(batch)
        changes[dose] = after[0] - seen[0]
        assert torch.equal(found, base) == (dose == 0)
    for dose, change in changes.items():
        assert (change - dose * changes[1.0]).abs().max() <= 1e-5


def test_a_candidate_on_its_own_direction_moves_more_than_random_pushes(tiny_subject):
    subject = tiny_subject("llama")
    wanted = subject.encode(PROMPTS[1])[-1]
    push = subject.model.lm_head.weight[wanted] * subject.model.model.norm.weight
    one = edits.add(DirectionTarget.of("wanted", "resid.2", push / push.norm()), 4.0)

    def score(arm):
        return float(last_logits(subject, PROMPTS, arm).log_softmax(-1)[:, wanted].mean())

    generator = rng(5)
    assert score(one) > max(score(control(one, generator=generator)) for _ in range(19))


def test_unknown_families_and_empty_candidates_are_refused():
    with pytest.raises(EditError, match="no control family 'matched'"):
        control(candidate(), family="matched", generator=rng())
    with pytest.raises(EditError, match="nothing to control for"):
        control(Edits(), generator=rng())
    with pytest.raises(EditError, match="finite"):
        dosed(candidate(), float("nan"))
