"""Every name of a place means one tensor, in every family, in three libraries."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES, MORE_FAMILIES, N_HEADS, N_LAYERS

from workbench.core.errors import SiteError
from workbench.models.bridge import bridge, hook_point
from workbench.models.reading import read_sites
from workbench.models.sites import KINDS, Site, resolve, site_of_hook, site_of_module_hook, transformer_lens_hook

PROMPTS = ["the cat sat on the mat", "what is the capital of france please", "yes"]
ALL_FAMILIES = [*FAMILIES, *MORE_FAMILIES]
LAYER_KINDS = [kind for kind in KINDS if kind != "head"]
sites = st.builds(
    lambda kind, layer, head: Site(kind, layer, head if kind == "head" else None),
    st.sampled_from(KINDS),
    st.integers(0, 500),
    st.integers(0, 200),
)


@pytest.fixture(params=ALL_FAMILIES)
def subject(request, tiny_subject):
    return tiny_subject(request.param)


@given(sites)
def test_a_site_reads_back_from_its_name(site):
    assert Site.parse(str(site)) == site


@given(sites)
def test_a_hook_name_leads_back_to_its_site(site):
    expected = Site("z", site.layer) if site.kind == "head" else site
    assert site_of_hook(transformer_lens_hook(site)) == expected


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("resdi.2", "'resid.2'"),
        ("head.1", "'head.1.0'"),
        ("resid.1.3", "'resid.1'"),
        ("attn.x", "'attn.2'"),
        ("mlpin.4", "'mlp_in.4'"),
        ("resid.-1", "'resid.2'"),
        ("resid.٣", "'resid.2'"),
        ("resid.01", "'resid.1'"),
        ("", "'resid.2'"),
    ],
)
def test_a_misspelt_site_names_the_nearest(name, suggestion):
    with pytest.raises(SiteError) as caught:
        Site.parse(name)
    assert f"no site {name!r}" in str(caught.value)
    assert suggestion in str(caught.value)


def test_a_site_beyond_the_model_names_the_range_and_the_subject(tiny_subject):
    subject = tiny_subject("llama")
    with pytest.raises(SiteError, match=r"layers are 0 to 2 \[subject 'tiny-llama'\]; the nearest is 'resid.2'"):
        subject.site("resid.3")
    with pytest.raises(SiteError, match=r"heads are 0 to 3 .*'head.0.3'"):
        subject.site("head.0.4")


def test_an_unknown_family_says_which_are_known(tiny_subject):
    class Config:
        model_type = "mamba"

    with pytest.raises(SiteError, match=r"'mamba' are not known; known families: gemma, .*llama"):
        resolve(Site("resid", 0), Config())


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.8.hook_resid_pre", "resid.7"),
        ("blocks.8.hook_resid_post", "resid.8"),
        ("blocks.3.hook_out", "resid.3"),
        ("blocks.0.attn.hook_z", "z.0"),
        ("blocks.12.mlp.hook_in", "mlp_in.12"),
    ],
)
def test_hooks_of_published_dictionaries_are_read(hook, site):
    assert str(site_of_hook(hook)) == site


@pytest.mark.parametrize(
    ("hook", "why"),
    [
        ("blocks.0.hook_resid_pre", "embedding"),
        ("blocks.1.hook_mlp_in", "mlp.hook_in"),
        ("blocks.1.ln2.hook_normalized", "before its gain"),
        ("blocks.1.hook_resid_pst", "did you mean 'hook_resid_post'"),
        ("hook_embed", "looks like"),
        ("blocks.1.hook_resid_post.hook_sae_acts_post", "did you mean"),
    ],
)
def test_a_hook_that_is_a_trap_or_a_typo_is_refused_with_the_reason(hook, why):
    with pytest.raises(SiteError, match=why):
        site_of_hook(hook)


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("model.layers.17.output", "resid.17"),
        ("model.layers.17.pre_feedforward_layernorm.output", "mlp_in.17"),
        ("model.layers.17.post_feedforward_layernorm.output", "mlp.17"),
        ("model.layers.17.self_attn.o_proj.input", "z.17"),
        ("model.language_model.layers.3.output", "resid.3"),
        ("transformer.h.3.output", "resid.3"),
    ],
)
def test_module_hooks_of_gemma_scope_2_are_read(hook, site):
    assert str(site_of_module_hook(hook)) == site


def test_a_module_hook_that_differs_between_families_is_refused():
    with pytest.raises(SiteError, match="post_attention_layernorm"):
        site_of_module_hook("model.layers.3.post_attention_layernorm.output")


def test_every_site_is_the_tensor_of_the_transformer_lens_hook_of_its_name(subject):
    batch = subject.batch([PROMPTS[1]])
    view = bridge(subject)
    wanted = [Site(kind, layer) for kind in LAYER_KINDS for layer in range(N_LAYERS)]
    seen = {}
    points = {site: hook_point(view, site) for site in wanted}
    for site, point in points.items():
        point.add_hook(lambda x, hook, site=site: seen.__setitem__(site, x.detach().clone()))
    with torch.no_grad():
        view(batch.ids)
    ours = read_sites(subject, batch, wanted)
    assert set(seen) == set(wanted)
    tolerance = 1e-5 if subject.family == "gpt2" else 0.0  # the bridge's GPT-2 attention sums in another order
    for site in wanted:
        torch.testing.assert_close(seen[site].reshape(ours[site].shape), ours[site], rtol=0, atol=tolerance)


def test_the_stream_is_the_sum_of_what_attention_and_mlp_add(subject):
    streams = read_sites(
        subject, subject.batch(PROMPTS), [Site(k, n) for k in ("resid", "attn", "mlp") for n in (1, 2)]
    )
    grown = streams[Site("resid", 1)] + streams[Site("attn", 2)] + streams[Site("mlp", 2)]
    torch.testing.assert_close(grown, streams[Site("resid", 2)], rtol=0, atol=5e-6)
    assert (streams[Site("mlp", 2)] - streams[Site("mlp", 1)]).abs().max() > 0.1


def test_head_contributions_sum_to_the_output_projection_without_its_bias(subject):
    heads = [Site("head", 1, number) for number in range(N_HEADS)]
    batch = subject.batch(PROMPTS)
    projection, seen = subject.module(heads[0]), {}
    handle = projection.register_forward_hook(lambda module, args, output: seen.update(out=output))
    try:
        streams = read_sites(subject, batch, heads)
    finally:
        handle.remove()
    bias = projection.bias if getattr(projection, "bias", None) is not None else 0.0
    torch.testing.assert_close(sum(streams[head] for head in heads), seen["out"] - bias, rtol=0, atol=5e-6)
    assert subject.path(heads[3]).head == 3


def test_the_mlp_input_site_is_what_the_mlp_receives(subject):
    batch = subject.batch(PROMPTS[:1])
    site = Site("mlp_in", 1)
    value = read_sites(subject, batch, [site])[site]
    raw = subject.model.get_submodule(subject.path(site).module)(value)
    after = raw if "gemma2" not in subject.family and "gemma3" not in subject.family else None
    if after is None:
        after = subject.module("mlp.1")(raw)
    torch.testing.assert_close(after, read_sites(subject, batch, [Site("mlp", 1)])[Site("mlp", 1)], rtol=0, atol=2e-6)


def test_widths_are_those_of_the_tensors(subject):
    wanted = [Site("head", 0, 1), *(Site(kind, 0) for kind in LAYER_KINDS)]
    streams = read_sites(subject, subject.batch(PROMPTS), wanted)
    assert {site: tensor.shape[-1] for site, tensor in streams.items()} == {s: subject.path(s).width for s in wanted}


def test_only_a_head_site_has_head_weights(tiny_subject):
    with pytest.raises(SiteError, match="not a head site"):
        tiny_subject("llama").head_weight("attn.1")
