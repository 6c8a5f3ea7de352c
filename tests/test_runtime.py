"""Edits on running models: equal to the whole splice, at the right tokens, counted, and gone without a trace."""

import itertools
import threading

import numpy as np
import pytest
import torch
from edit_kit import (
    PROMPTS,
    busiest,
    direction,
    every_op,
    feature,
    hooked,
    make_dictionary,
    splice,
    watched,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.core.errors import EditError, FiringError, InputError, PromptError, SiteError
from workbench.interventions import edits
from workbench.interventions.controls import control
from workbench.interventions.delta import SiteDelta
from workbench.interventions.edits import Edits
from workbench.interventions.positions import read_tokens
from workbench.interventions.prefix import SharedPrefix
from workbench.interventions.runtime import Runtime, generate, last_logits, logits
from workbench.interventions.targets import DirectionTarget
from workbench.models.bridge import bridge, hook_point
from workbench.models.sites import Site
from workbench.models.subject import load_subject

TOLERANCE = 5e-5
SCALINGS = ("none", "layer_norm", "constant_norm")
SAES = [(name, "resid.1", None, s) for name in ("standard", "jumprelu", "gated") for s in SCALINGS]
TRANSCODERS = [
    (name, "mlp_in.1", "mlp.1", "none")
    for name in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
]


def unspecial(subject, ids):
    return ~torch.isin(ids, torch.tensor(sorted(subject.special_ids)))


def stream(subject, batch, site):
    """Give what flows through a site of the unedited model."""
    path, kept = subject.path(site), []
    module = subject.module(site)
    if path.side == "input":
        handle = module.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    else:
        handle = module.register_forward_hook(
            lambda _, args, out: kept.append(out[0] if isinstance(out, tuple) else out)
        )
    subject.logits(batch)
    handle.remove()
    return kept[0]


def ops_on(features, value):
    """Give, for each operation on activations, the edits of several features and the same on a whole vector."""

    def one(name, change, *args):
        def whole(acts):
            for f in features:
                acts[..., f.index] = change(acts[..., f.index])
            return acts

        made = Edits()
        for f in features:
            made = made + getattr(edits, name)(f, *args)
        return made, whole

    return {
        "add": one("add", lambda a: a + value, value),
        "set": one("set", lambda a: torch.full_like(a, value), value),
        "set_if_active": one("set_if_active", lambda a: torch.where(a > 0, value, a), value),
        "scale": one("scale", lambda a: a * value, value),
        "cap": one("cap", lambda a: a.clamp(max=value), value),
        "floor": one("floor", lambda a: a.clamp(min=value), value),
        "zero_ablate": one("zero_ablate", torch.zeros_like),
        "mean_ablate": one("mean_ablate", lambda a: torch.full_like(a, value), value),
    }


@pytest.mark.parametrize(("architecture", "read", "write", "scaling"), SAES + TRANSCODERS)
def test_edit_from_rows_equals_the_splice_through_the_whole_dictionary(
    tiny_subject, architecture, read, write, scaling
):
    subject = tiny_subject("llama")
    dictionary = make_dictionary(architecture, read, write, scaling=scaling)
    batch = subject.batch(PROMPTS)
    x, y = stream(subject, batch, read), stream(subject, batch, write or read)
    features = [feature(dictionary, k) for k in busiest(dictionary, x[batch.mask])]
    chosen = (unspecial(subject, batch.ids) & batch.mask)[..., None]
    module = subject.module(write or read)
    for name, (edit, whole) in ops_on(features, 0.4).items():
        expected = torch.where(chosen, splice(dictionary, x, y, whole).float(), y)
        with hooked(module, lambda _, out, new=expected: new):
            reference = subject.logits(batch)
        with watched(module) as before, Runtime(subject, edit, prompt_len=batch.prompt_len), watched(module) as after:
            found = subject.logits(batch)
        real = batch.mask
        assert (after[0] - expected)[real].abs().max() <= TOLERANCE, name
        assert (found - reference)[real].abs().max() <= TOLERANCE * max(1, reference[real].abs().max()), name
        assert torch.equal(before[0], y), f"{name}: the tensor handed to the hook was changed in place"
        assert not torch.equal(after[0], y), name


def test_edit_of_a_sae_lens_batchtopk_saved_for_inference_equals_its_own_splice(tiny_subject, tmp_path):
    from sae_lens.saes import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    from workbench.models.dictionary import load_dictionary

    torch.manual_seed(0)
    trained = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=32, d_sae=96, k=8, apply_b_dec_to_input=True))
    trained.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        trained.topk_threshold.fill_(0.5)
    trained.save_inference_model(str(tmp_path))
    sae, dictionary = SAE.load_from_disk(str(tmp_path)), load_dictionary(tmp_path)
    subject = tiny_subject("llama")
    batch = subject.batch(PROMPTS)
    x = stream(subject, batch, "resid.1")
    acts = sae.encode(x)
    index = int(((acts > 0).float().mean((0, 1)) - 0.5).abs().argmin())
    spliced = acts.clone()
    spliced[..., index] = 2.5
    expected = sae.decode(spliced) + (x - sae.decode(acts))
    edit = edits.set(feature(dictionary, index), 2.5, positions=edits.Positions(exclude_special=False))
    with Runtime(subject, edit), watched(subject.module("resid.1")) as after:
        subject.logits(batch)
    assert (after[0] - expected)[batch.mask].abs().max() <= TOLERANCE


def test_every_operation_on_a_direction_acts_on_its_projection(any_subject):
    batch = any_subject.batch(PROMPTS)
    for site in ("resid.1", "attn.1", "mlp.0"):
        x = stream(any_subject, batch, site)
        target = direction(site=site)
        unit = target.read / target.read.norm()
        p = x @ unit
        v = float(p[batch.mask].median())
        wanted = {
            "set": torch.full_like(p, v),
            "set_if_active": torch.where(p > 0, v, p),
            "scale": p * v,
            "cap": p.clamp(max=v),
            "floor": p.clamp(min=v),
            "zero_ablate": torch.zeros_like(p),
            "mean_ablate": torch.full_like(p, v),
            "project_out": torch.zeros_like(p),
            "projection_cap": p.clamp(max=v),
        }
        chosen = unspecial(any_subject, batch.ids) & batch.mask
        for name, edit in every_op(target, v).items():
            with Runtime(any_subject, edit, allow_idle=True), watched(any_subject.module(site)) as after:
                any_subject.logits(batch)
            change = after[0] - x
            assert not change[~chosen].any(), f"{name} touched special tokens or padding"
            expected = v * target.read.expand_as(x) if name == "add" else (wanted[name] - p)[..., None] * unit
            assert (change - expected)[chosen].abs().max() <= 1e-5 * max(1.0, float(x.abs().max())), (site, name)
            if name != "add":
                assert ((after[0] @ unit) - wanted[name])[chosen].abs().max() <= 1e-4, (site, name)


def test_project_out_of_a_feature_leaves_nothing_of_its_decoder_row_and_cap_bounds_it(tiny_subject):
    subject = tiny_subject("llama")
    batch = subject.batch(PROMPTS)
    f = feature(make_dictionary("jumprelu", scaling="layer_norm"), 5)
    unit = f.write_row / f.write_row.norm()
    chosen = unspecial(subject, batch.ids) & batch.mask
    for edit, bound in ((edits.project_out(f), 0.0), (edits.projection_cap(f, 0.1), 0.1)):
        with Runtime(subject, edit), watched(subject.module("resid.1")) as after:
            subject.logits(batch)
        projection = (after[0] @ unit)[chosen]
        assert projection.max() <= bound + 1e-5
        if not bound:
            assert projection.abs().max() <= 1e-5


def test_head_edit_changes_that_head_and_no_other(any_subject):
    subject, batch, site = any_subject, any_subject.batch(PROMPTS), "head.1.2"
    target, width = direction(site=site), any_subject.d_head
    projection = subject.module(site)
    kept = []
    handle = projection.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with watched(projection) as before:
        base = subject.logits(batch)
    handle.remove()
    z = kept[0].clone()
    only = torch.zeros_like(z)
    only[..., 2 * width : 3 * width] = z[..., 2 * width : 3 * width]
    bias = getattr(projection, "bias", None)
    contribution = projection(only) - (0 if bias is None else bias)
    unit = target.read / target.read.norm()
    chosen = unspecial(subject, batch.ids) & batch.mask
    with Runtime(subject, edits.project_out(target)), watched(projection) as after:
        found = subject.logits(batch)
    change = after[0] - before[0]
    assert (change + (contribution @ unit)[..., None] * unit)[chosen].abs().max() <= 1e-5
    assert not change[~chosen].any()
    assert not torch.equal(found, base)


def test_z_and_mlp_in_sites_are_edited_at_the_module_input(any_subject):
    subject, batch = any_subject, any_subject.batch(PROMPTS)
    chosen = unspecial(subject, batch.ids) & batch.mask
    for site in ("z.1", "mlp_in.1"):
        x = stream(subject, batch, site)
        target = direction(site=site, d=x.shape[-1])
        with Runtime(subject, edits.add(target, 1.5)):
            after = stream(subject, batch, site)
        assert (after - x - 1.5 * target.read)[chosen].abs().max() <= 1e-5
        assert torch.equal(after[~chosen], x[~chosen])


def test_edits_of_one_site_read_the_unedited_stream_and_their_changes_add_up(tiny_subject):
    subject = tiny_subject("llama")
    batch = subject.batch(PROMPTS)
    module = subject.module("resid.1")
    sae = make_dictionary("jumprelu")
    x = stream(subject, batch, "resid.1")
    one, two = (edits.set(feature(sae, k), 3.0) for k in busiest(sae, x[batch.mask], 2))
    three = edits.project_out(direction(seed=5), positions="last")
    changes = []
    for edit in (one, two, three, one + two + three, three + two + one):
        with Runtime(subject, edit, allow_idle=True), watched(module) as after:
            subject.logits(batch)
        changes.append(after[0] - x)
    assert (changes[3] - sum(changes[:3])).abs().max() <= 1e-5
    assert (changes[4] - changes[3]).abs().max() <= 1e-5


def test_edits_at_several_sites_act_on_each_other_in_the_order_of_the_model(any_subject):
    subject, batch = any_subject, any_subject.batch(PROMPTS)
    low, high = direction(site="attn.0"), direction(site="resid.2", seed=2)
    both = edits.add(high, 1.0) + edits.zero_ablate(low)
    chosen = (unspecial(subject, batch.ids) & batch.mask)[..., None]
    unit = low.read / low.read.norm()
    with (
        hooked(subject.module("attn.0"), lambda _, y: torch.where(chosen, y - (y @ unit)[..., None] * unit, y)),
        hooked(subject.module("resid.2"), lambda _, y: torch.where(chosen, y + high.read, y)),
    ):
        reference = subject.logits(batch)
    found = logits(subject, batch, both)
    assert (found - reference)[batch.mask].abs().max() <= TOLERANCE * max(1, reference[batch.mask].abs().max())


def test_no_edit_is_a_bit_identical_no_op(any_subject):
    batch = any_subject.batch(PROMPTS)
    base = any_subject.logits(batch)
    with Runtime(any_subject, Edits()) as run:
        assert torch.equal(any_subject.logits(batch), base)
    assert run.firings == ()
    assert torch.equal(logits(any_subject, batch), base)


@pytest.mark.parametrize("where", ["all", "prompt", "generated", "last", [2, 8, 9]])
def test_cached_generation_equals_recomputing_everything(any_subject, where):
    edit = edits.add(direction(), 2.0, positions=edits.Positions.of(where, exclude_special=False))
    edit += edits.project_out(direction(site="head.2.1", seed=3), positions=where)
    # longer than Gemma's sliding window
    prompts = [*PROMPTS, " ".join(PROMPTS * 2)]
    counts = []
    texts = []
    for use_cache in (True, False):
        firings = []
        texts.append(
            generate(
                any_subject, prompts, edit, max_new_tokens=6, use_cache=use_cache, firings=firings, allow_idle=True
            )
        )
        counts.append(firings)
    assert texts[0] == texts[1]
    assert counts[0][0].calls == counts[1][0].calls
    assert counts[0][0].touched <= counts[1][0].touched


def test_cached_decode_gives_the_logits_of_one_full_pass(any_subject):
    subject = any_subject
    ids = subject.encode(PROMPTS[0])
    sae = make_dictionary("jumprelu")
    x = stream(subject, subject.batch([ids]), "resid.1")[0]
    edit = edits.scale(feature(sae, busiest(sae, x, 1)[0]), 3.0)
    edit += edits.add(direction("g", seed=4), 1.0, positions="generated", gate=direction("h", "resid.0") > 0)
    length = torch.tensor([4])
    with Runtime(subject, edit, prompt_len=length, allow_idle=True):
        full = subject.logits(subject.batch([ids]))
    with Runtime(subject, edit, prompt_len=length, allow_idle=True), torch.no_grad():
        out = subject.model(input_ids=torch.tensor([ids[:4]]), use_cache=True)
        steps = [out.logits]
        for k in ids[4:]:
            out = subject.model(input_ids=torch.tensor([[k]]), past_key_values=out.past_key_values, use_cache=True)
            steps.append(out.logits)
    assert (torch.cat(steps, 1) - full).abs().max() <= TOLERANCE * max(1, full.abs().max())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_pass_cut_into_cached_steps_chooses_the_same_tokens_as_one_pass(data):
    width = data.draw(st.integers(1, 12))
    lengths = data.draw(st.lists(st.integers(1, width), min_size=1, max_size=3))
    prompt_len = np.array([data.draw(st.integers(1, n)) for n in lengths])
    cuts = sorted(data.draw(st.sets(st.integers(1, width))) | {width})
    explicit = data.draw(st.lists(st.integers(0, 14), min_size=1, unique=True))
    excluded = data.draw(st.booleans())
    mask = torch.stack([torch.arange(width) >= width - n for n in lengths])
    ids = torch.arange(width).expand(len(lengths), width)
    special = np.arange(width) % 3 == 0
    for where in ("all", "prompt", "generated", "last", explicit):
        positions = edits.Positions.of(where, exclude_special=excluded)

        def chosen(start, end, positions=positions):
            shape = (len(lengths), end - start)
            new, seen = ids[:, start:end], mask[:, :end]
            tokens = read_tokens(new, seen, shape=shape, past=start, special=special, prompt_len=prompt_len)
            found, count = tokens.mask(positions)
            found = torch.ones(shape, dtype=torch.bool) if found is None else found
            assert count == found.sum()
            return found

        steps = torch.cat([chosen(start, end) for start, end in itertools.pairwise([0, *cuts])], dim=1)
        assert torch.equal(steps, chosen(0, width))
        rows = [torch.nonzero(row[width - n :]).flatten().tolist() for row, n in zip(steps, lengths, strict=True)]
        for row, n, prompt in zip(rows, lengths, prompt_len, strict=True):
            wanted = {
                "all": range(n),
                "prompt": range(prompt),
                "generated": range(prompt, n),
                "last": [prompt - 1],
            }.get(where if isinstance(where, str) else "", sorted(set(explicit) & set(range(n))))
            assert row == [p for p in wanted if not (excluded and special[width - n + p])]


def test_plain_transformers_generate_under_a_runtime_gives_the_same_tokens(any_subject):
    subject = any_subject
    edit = edits.add(direction(), 2.0, positions=edits.Positions("generated", exclude_special=False))
    batch = subject.batch(PROMPTS)
    ours = generate(subject, PROMPTS, edit, max_new_tokens=6)
    with Runtime(subject, edit, prompt_len=batch.prompt_len):
        theirs = subject.model.generate(
            input_ids=batch.ids, attention_mask=batch.mask.long(), do_sample=False, max_new_tokens=6
        )
    for one, row in zip(ours, theirs[:, batch.ids.shape[1] :].tolist(), strict=True):
        assert tuple(row[: len(one.ids)]) == one.ids


def test_left_padded_batch_equals_single_rows(any_subject):
    for where in ("all", "last", [1, 3]):
        edit = edits.add(direction(), 2.0, positions=edits.Positions.of(where, exclude_special=False))
        together = last_logits(any_subject, PROMPTS, edit, batch_size=3)
        alone = torch.cat([last_logits(any_subject, [one], edit, allow_idle=True) for one in PROMPTS])
        assert (together - alone).abs().max() <= TOLERANCE * max(1, alone.abs().max())


def test_last_logits_come_in_the_order_of_the_prompts_whatever_the_batches(tiny_subject):
    subject = tiny_subject("gpt2")
    edit = edits.add(direction(), 2.0)
    prompts = [*PROMPTS, PROMPTS[0] + " please", "yes"]
    whole = last_logits(subject, prompts, edit)
    assert whole.dtype == torch.float32
    assert (whole - last_logits(subject, prompts, edit, batch_size=2)).abs().max() <= TOLERANCE * whole.abs().max()
    assert (whole.flip(0) - last_logits(subject, prompts[::-1], edit)).abs().max() <= TOLERANCE * whole.abs().max()
    batch = subject.batch(prompts)
    assert (whole - logits(subject, batch, edit)[:, -1]).abs().max() <= TOLERANCE * whole.abs().max()


def test_bridge_with_the_same_edit_gives_bit_identical_logits(tiny_subject):
    subject = tiny_subject("llama")
    view = bridge(subject)
    ids = torch.tensor([subject.encode(PROMPTS[0])])
    sae = make_dictionary("jumprelu")
    x = stream(subject, subject.batch([ids[0].tolist()]), "resid.1")[0]
    edit = edits.scale(feature(sae, busiest(sae, x, 1)[0]), 3.0) + edits.project_out(direction(site="mlp.2"))
    special = np.isin(np.arange(subject.n_vocab), list(subject.special_ids))
    tokens = read_tokens(ids, None, shape=(1, ids.shape[1]), past=0, special=special, prompt_len=None)
    handles = []
    for site in edit.sites:
        delta = SiteDelta([one for one in edit if one.site == site], ids.device)

        def on_bridge(_, args, out, delta=delta, site=site):
            return out + delta(out, {site: out}, tokens)

        handles.append(hook_point(view, site).register_forward_hook(on_bridge))
    with torch.no_grad():
        bridged = view(ids)
    for handle in handles:
        handle.remove()
    with Runtime(subject, edit), torch.no_grad():
        plain = subject.model(input_ids=ids).logits
    assert torch.equal(bridged, plain)
    assert not torch.equal(plain, subject.model(input_ids=ids).logits)


def test_bfloat16_model_is_close_to_float32_and_the_change_is_rounded_once(tiny_dir):
    full, half = (load_subject(tiny_dir("llama"), dtype=dtype) for dtype in ("float32", "bfloat16"))
    batch = half.batch(PROMPTS)
    x = stream(half, batch, "resid.1")
    assert x.dtype == torch.bfloat16
    sae = make_dictionary("jumprelu")
    edit = edits.set(feature(sae, 7), 4.0)
    with Runtime(half, edit), watched(half.module("resid.1")) as after:
        half.logits(batch)
    chosen = unspecial(half, batch.ids) & batch.mask
    expected = splice(sae, x, x, lambda a: a.index_fill(-1, torch.tensor([7]), 4.0)).to(torch.bfloat16)
    assert after[0].dtype == torch.bfloat16
    # one unit in the last place of bfloat16, 2^-8, is the most that rounding once may leave
    assert (after[0].float() - expected.float())[chosen].abs().max() <= expected.abs().max() * 2**-8
    same = (last_logits(half, PROMPTS, edit).argmax(-1) == last_logits(full, PROMPTS, edit).argmax(-1)).float().mean()
    assert same >= 2 / 3


def test_gate_opens_per_token_on_the_unedited_score(tiny_subject):
    subject = tiny_subject("llama")
    batch = subject.batch(PROMPTS)
    probe, target, sae = direction("probe", "resid.0", seed=7), direction(), make_dictionary("gated", "resid.0")
    score = stream(subject, batch, "resid.0") @ (probe.read / probe.read.norm())
    x, chosen = stream(subject, batch, "resid.1"), unspecial(subject, batch.ids) & batch.mask
    middle = float(score[chosen].median())
    f = feature(sae, busiest(sae, stream(subject, batch, "resid.0")[batch.mask], 1)[0])
    acts = f.rows.encode(stream(subject, batch, "resid.0"))[..., 0]
    for gate, opened in ((probe > middle, score > middle), (probe < middle, score < middle), (f > 0.0, acts > 0)):
        # the probe's own site is edited too: gates read what was there before
        edit = edits.add(target, 2.0, gate=gate) + edits.add(direction("far", "resid.0", seed=9, norm=1e-9), 1.0)
        with Runtime(subject, edit) as run, watched(subject.module("resid.1")) as after:
            subject.logits(batch)
        changed = (after[0] - x).norm(dim=-1) > 1.0
        assert torch.equal(changed, opened & chosen)
        firing = run.firings[0]
        assert (firing.selected, firing.open, firing.touched) == (chosen.sum(), changed.sum(), changed.sum())
        assert firing.mean_ratio == pytest.approx(float((4.0 / x[changed].norm(dim=-1)).mean()), rel=1e-4)
        assert firing.open_share == pytest.approx(float(changed.sum() / chosen.sum()))


def test_max_ratio_bounds_the_change_at_each_token_and_keeps_its_direction(tiny_subject):
    subject = tiny_subject("llama")
    batch = subject.batch(PROMPTS)
    x, chosen = stream(subject, batch, "resid.1"), unspecial(subject, batch.ids) & batch.mask
    target = direction(norm=3.0)
    with Runtime(subject, edits.add(target, -2.0, max_ratio=0.3)) as run, watched(subject.module("resid.1")) as after:
        subject.logits(batch)
    change = (after[0] - x)[chosen]
    bound = torch.minimum(0.3 * x[chosen].norm(dim=-1), torch.tensor(6.0))
    assert (change.norm(dim=-1) - bound).abs().max() <= 1e-5
    assert torch.cosine_similarity(change, -target.read[None], dim=-1).min() >= 1 - 1e-5
    assert run.firings[0].max_ratio == pytest.approx(0.3, rel=1e-5)


def test_firings_count_calls_tokens_and_ratios_exactly(tiny_subject):
    subject = tiny_subject("gpt2")
    batch = subject.batch(PROMPTS)
    x, target = stream(subject, batch, "resid.1"), direction()
    chosen = unspecial(subject, batch.ids) & batch.mask
    edit = edits.add(target, 1.5) + edits.scale(direction("p", "mlp.2"), 0.5, positions="last")
    with Runtime(subject, edit) as run:
        for _ in range(3):
            subject.logits(batch)
    one, two = run.firings
    ratios = 1.5 * target.read.norm() / x[chosen].norm(dim=-1)
    assert (one.calls, one.selected, one.open, one.touched) == (3, *[3 * int(chosen.sum())] * 3)
    assert one.mean_ratio == pytest.approx(float(ratios.mean()), rel=1e-5)
    assert one.max_ratio == pytest.approx(float(ratios.max()), rel=1e-5)
    assert (two.calls, two.selected, two.touched) == (3, 9, 9)


def test_cached_generation_fires_once_per_token_that_passes_through(tiny_subject):
    subject, firings = tiny_subject("llama"), []
    edit = edits.add(direction(), 1.0, positions=edits.Positions(exclude_special=False))
    found = generate(subject, PROMPTS, edit, max_new_tokens=7, firings=firings)
    # the last token of a continuation is chosen, never read
    passed = sum(len(one.prompt_ids) + len(one.ids) - 1 for one in found)
    assert (firings[0].calls, firings[0].touched) == (7, passed)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: edits.add(direction(), 1.0, positions=[40]), "no token is in its positions .tokens? 40"),
        (lambda f: edits.add(direction(), 1.0, positions="generated"), "every generated token"),
        (lambda f: edits.add(direction(), 1.0, gate=direction("g") > 1e4), "gate never opened on 12 tokens .*nearest"),
        (lambda f: edits.set_if_active(f, 2.0, gate=direction("g") > -1e4), "never active on 12 tokens"),
        (lambda f: edits.scale(f, 0.0), "feature 0 of dead was never active on 12 tokens, highest activation 0"),
        (lambda f: edits.cap(direction(), 1e4), "never above its cap on 12 tokens, highest activation"),
        (lambda f: edits.floor(direction(), -1e4), "never below its floor"),
    ],
)
def test_an_edit_that_touched_nothing_is_an_error_that_says_why(tiny_subject, make, words):
    subject = tiny_subject("llama")
    dead = make_dictionary("jumprelu")
    dead.weights["threshold"] = torch.full_like(dead.weights["threshold"], 1e6)
    dead.id = "dead"
    edit = make(feature(dead, 0))
    prompt = ["the cat sat on the mat", "no"]
    base = last_logits(subject, prompt)
    words = words.replace("12", str(sum(unspecial(subject, subject.batch([p]).ids).sum() for p in prompt).item()))
    with pytest.raises(FiringError, match=words):
        last_logits(subject, prompt, edit)
    firings = []
    assert torch.equal(last_logits(subject, prompt, edit, allow_idle=True, firings=firings), base)
    assert firings[0].touched == 0
    assert firings[0].mean_ratio is None


def test_a_runtime_in_which_nothing_ran_says_so(tiny_subject):
    with (
        pytest.raises(FiringError, match="never called in this thread"),
        Runtime(tiny_subject("llama"), edits.add(direction(), 1.0)),
    ):
        pass


def test_last_token_that_is_special_is_left_alone_unless_it_is_asked_for(tiny_subject):
    subject, chat = tiny_subject("llama"), [[("user", "help me")]]
    with pytest.raises(FiringError, match="leave out special tokens"):
        last_logits(subject, chat, edits.add(direction(), 1.0, positions="last"))
    asked = edits.Positions("last", exclude_special=False)
    found = last_logits(subject, chat, edits.add(direction(), 1.0, positions=asked))
    assert not torch.equal(found, last_logits(subject, chat))


def state(subject):
    hooks = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__)
        for name, m in subject.model.named_modules()
    ]
    return hooks, {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}


def same_state(before, after):
    return before[0] == after[0] and all(torch.equal(t, after[1][name]) for name, t in before[1].items())


def test_the_model_is_restored_bit_for_bit_also_after_exceptions(any_subject):
    subject = any_subject
    before, batch = state(subject), any_subject.batch(PROMPTS)
    base = subject.logits(batch)
    edit = (
        edits.add(direction(), 2.0)
        + edits.project_out(direction(site="head.2.1"))
        + edits.add(direction(site="mlp_in.0"), 1.0)
    )
    with Runtime(subject, edit):
        assert not same_state(before, state(subject))
        assert not torch.equal(subject.logits(batch), base)
    with pytest.raises(PromptError), Runtime(subject, edit):
        subject.batch([subject.logits(batch).shape[:0]])
    shared = SharedPrefix(subject, PROMPTS, edit.reads)
    with pytest.raises(FiringError):
        shared.last_logits(edits.add(direction(site="resid.2"), 1.0, positions=[50]))
    generate(subject, PROMPTS, edit, max_new_tokens=2)
    assert same_state(before, state(subject))
    assert torch.equal(subject.logits(batch), base)


def test_a_failure_inside_the_model_leaves_no_shadowed_block(tiny_subject):
    subject = tiny_subject("llama")
    before, shared = state(subject), SharedPrefix(subject, PROMPTS, [Site.parse("resid.1")])

    def broken(*_):
        raise RuntimeError("broken")

    handle = subject.module("resid.2").register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        shared.last_logits(edits.add(direction(), 1.0))
    handle.remove()
    assert same_state(before, state(subject))


def test_a_second_runtime_on_the_same_model_is_refused(tiny_subject):
    subject, one = tiny_subject("llama"), edits.add(direction(), 1.0)
    batch = subject.batch(PROMPTS)
    with Runtime(subject, one) as run:
        subject.logits(batch)
        with pytest.raises(EditError, match=r"edits are on this model already: .*1 × d is added.*first \+ second"):
            last_logits(subject, PROMPTS, edits.add(direction(seed=2), 1.0))
        with pytest.raises(EditError, match="edits are on this model already"):
            generate(subject, PROMPTS, max_new_tokens=2)
        after = run.firings[0].calls
    assert after == 1
    with pytest.raises(EditError, match="used once"), run:
        pass
    last_logits(subject, PROMPTS, edits.add(direction(seed=2), 1.0))


def test_a_forward_pass_of_another_thread_is_not_edited(tiny_subject):
    subject, found = tiny_subject("llama"), []
    batch = subject.batch(PROMPTS)
    base = subject.logits(batch)
    with Runtime(subject, edits.add(direction(), 1.0)) as run:
        other = threading.Thread(target=lambda: found.append(subject.logits(batch)))
        other.start()
        other.join()
        assert run.firings[0].calls == 0
        subject.logits(batch)
    assert torch.equal(found[0], base)


def test_targets_that_do_not_fit_the_subject_name_both_sides(tiny_subject):
    subject = tiny_subject("llama")
    with pytest.raises(EditError, match=r"d has width 16, resid.1 of subject 'tiny-llama' has width 32"):
        Runtime(subject, edits.add(direction(d=16), 1.0))
    wide = make_dictionary("jumprelu", d=48)
    with pytest.raises(EditError, match=r"feature 3 of jumprelu:resid.1 has width 48, resid.1 .* has width 32"):
        Runtime(subject, edits.scale(feature(wide, 3), 0.0))
    with pytest.raises(EditError, match="g has width 8"):
        Runtime(subject, edits.add(direction(), 1.0, gate=direction("g", d=8) > 0))
    with pytest.raises(SiteError, match=r"no site 'resid.7'"):
        Runtime(subject, edits.add(direction(site="resid.7"), 1.0))


def test_a_pass_whose_tokens_cannot_be_told_is_refused(tiny_subject):
    subject = tiny_subject("llama")
    embeddings = subject.model.get_input_embeddings()(subject.batch(PROMPTS[:1]).ids)
    one = edits.add(direction(), 1.0)
    with pytest.raises(EditError, match="embeddings instead of token ids"), Runtime(subject, one):
        subject.model(inputs_embeds=embeddings)
    keep = edits.Positions(exclude_special=False)
    with Runtime(subject, edits.add(direction(), 1.0, positions=keep)):
        subject.model(inputs_embeds=embeddings)
    rotary = subject.model.model.rotary_emb(embeddings, torch.arange(embeddings.shape[1])[None])
    with pytest.raises(EditError, match="outside its model"), Runtime(subject, one):
        subject.module("resid.1")(embeddings, position_embeddings=rotary)
    with pytest.raises(EditError, match="prompt_len is for"), Runtime(subject, one, prompt_len=torch.tensor([1, 2])):
        subject.logits(subject.batch(PROMPTS))


@pytest.mark.parametrize(
    "sites", [("resid.1",), ("resid.0", "mlp.2"), ("head.1.2",), ("attn.2",), ("resid.2",), ("mlp.0",)]
)
def test_shared_prefix_is_bit_equal_to_the_full_run_for_every_arm(any_subject, sites):
    edit = Edits()
    for k, site in enumerate(sites):
        edit = (
            edit
            + edits.add(direction(f"d{k}", site, seed=k), 1.5)
            + edits.project_out(direction(f"p{k}", site, seed=k + 5))
        )
    shared = SharedPrefix(any_subject, PROMPTS, edit.reads, batch_size=2)
    assert torch.equal(shared.last_logits(), last_logits(any_subject, PROMPTS, batch_size=2))
    generator = torch.Generator().manual_seed(0)
    for arm in (edit, *(control(edit, generator=generator) for _ in range(3))):
        firings, full = [], []
        found = shared.last_logits(arm, firings=firings)
        assert torch.equal(found, last_logits(any_subject, PROMPTS, arm, batch_size=2, firings=full))
        assert firings == full


def test_shared_prefix_runs_only_the_blocks_that_the_edits_need(tiny_subject):
    subject = tiny_subject("llama")
    gated = edits.add(direction(site="resid.2"), 1.0, gate=direction("g", "mlp.1") > -1e4)
    shared = SharedPrefix(subject, PROMPTS, gated.reads)
    assert shared.first == 1
    ran = []
    handles = [
        subject.model.model.layers[k].mlp.register_forward_pre_hook(lambda *_, k=k: ran.append(k)) for k in range(3)
    ]
    found = shared.last_logits(gated)
    for handle in handles:
        handle.remove()
    assert ran == [1, 2]
    assert torch.equal(found, last_logits(subject, PROMPTS, gated))
    with pytest.raises(EditError, match="need block 0, this prefix runs blocks from 1 on"):
        shared.last_logits(edits.add(direction(site="attn.0"), 1.0))


def test_samples_follow_the_seed_and_arms_share_their_noise(tiny_subject):
    subject = tiny_subject("gpt2")
    options = {"n": 3, "max_new_tokens": 8, "temperature": 1.0}
    first = generate(subject, PROMPTS, seed=1, **options)
    assert first == generate(subject, PROMPTS, seed=1, **options)
    assert first == generate(subject, PROMPTS, seed=1, batch_size=2, **options)
    assert first == generate(subject, PROMPTS, seed=1, use_cache=False, **options)
    assert first != generate(subject, PROMPTS, seed=2, **options)
    assert len({one.ids for one in first}) > 3
    assert [one.prompt_ids for one in first] == [tuple(subject.encode(p)) for p in PROMPTS for _ in range(3)]
    still = edits.add(DirectionTarget.of("tiny", "resid.1", 1e-6 * torch.ones(32)), 1.0)
    assert generate(subject, PROMPTS, still, seed=1, **options) == first
    twice = generate(subject, [PROMPTS[0]] * 2, seed=1, **options)
    assert len({one.ids for one in twice}) > 3, "two equal prompts of one call draw their own samples"
    greedy = generate(subject, PROMPTS, n=2, max_new_tokens=4)
    assert greedy[0] == greedy[1]


def test_sampling_follows_the_model_s_probabilities(tiny_subject):
    subject = tiny_subject("gpt2")
    p = last_logits(subject, PROMPTS[:1])[0].div(0.7).softmax(-1)
    found = generate(subject, PROMPTS[:1], n=600, max_new_tokens=1, temperature=0.7, batch_size=300)
    counts = torch.bincount(torch.tensor([one.ids[0] for one in found]), minlength=len(p)) / 600
    top = p.topk(3).indices
    # four standard errors of a proportion
    assert ((counts - p)[top].abs() <= 4 * (p * (1 - p) / 600).sqrt()[top]).all()


def test_generation_stops_at_the_end_of_text_and_at_the_context(tiny_subject):
    subject = tiny_subject("llama")
    eos = subject.tokenizer.eos_token_id
    head = subject.model.lm_head.weight
    push = DirectionTarget.of(
        "eos", "resid.2", 50 * head[eos] / head[eos].norm() * subject.model.model.norm.weight.sign()
    )
    found = generate(
        subject, PROMPTS, edits.add(push, 20.0, positions=edits.Positions(exclude_special=False)), max_new_tokens=5
    )
    assert [(one.ids[-1], one.stopped) for one in found] == [(eos, "eos")] * 3
    assert all(not one.text for one in found if len(one.ids) == 1)
    long = list(subject.encode("the cat")) * 40
    full = generate(subject, [long[: subject.n_ctx - 2]], max_new_tokens=10)[0]
    assert (len(full.ids), full.stopped) == (2, "context") or full.stopped == "eos"
    with pytest.raises(PromptError, match="leaves no room"):
        generate(subject, [long[: subject.n_ctx]], max_new_tokens=1)
    with pytest.raises(PromptError, match="there is no prompt"):
        generate(subject, [], max_new_tokens=1)
    with pytest.raises(InputError, match="temperature"):
        generate(subject, PROMPTS, max_new_tokens=1, temperature=-1.0)
