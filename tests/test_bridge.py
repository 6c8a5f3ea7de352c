"""The TransformerBridge view sees the subject's own memory and leaves the subject alone."""

from __future__ import annotations

import subprocess

import pytest
import torch
from tiny_models import FAMILIES, make_model, make_tokenizer

from workbench.core.errors import SiteError, SubjectError
from workbench.models.bridge import bridge, hook_point, twin
from workbench.models.sites import Site
from workbench.models.subject import Subject

PROMPT = "what is the capital of france please"


@pytest.mark.parametrize("family", [one for one in FAMILIES if one != "gpt2"])
def test_bridge_and_plain_logits_are_bit_identical_on_llama_style_models(family, tiny_subject):
    subject = tiny_subject(family)
    batch = subject.batch([PROMPT])
    with torch.no_grad():
        seen = bridge(subject)(batch.ids)
    assert torch.equal(seen, subject.logits(batch))


def test_bridge_and_plain_logits_of_gpt2_differ_by_rounding_only(tiny_subject):
    subject = tiny_subject("gpt2")
    batch = subject.batch([PROMPT])
    with torch.no_grad():
        torch.testing.assert_close(bridge(subject)(batch.ids), subject.logits(batch), rtol=0, atol=2e-5)


def test_a_multimodal_model_is_bridged_by_its_text_tower_and_nothing_is_installed(tiny_subject, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"booting a bridge started {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)  # transformer-lens would run `pip install torchvision`
    subject = tiny_subject("gemma3_multimodal")
    batch = subject.batch([PROMPT])
    with torch.no_grad():
        view = bridge(subject)
        assert torch.equal(view(batch.ids), subject.logits(batch))
    assert not getattr(view.cfg, "is_multimodal", False)


def test_booting_a_bridge_leaves_the_subject_as_it_was(any_subject):
    model, batch = any_subject.model, any_subject.batch([PROMPT])
    before = any_subject.logits(batch)
    modules = [(name, id(module)) for name, module in model.named_modules()]
    parameters = [(name, id(p), p.data_ptr()) for name, p in model.named_parameters()]
    view = bridge(any_subject)
    with torch.no_grad():
        view.run_with_cache(batch.ids)
    assert modules == [(name, id(module)) for name, module in model.named_modules()]
    assert parameters == [(name, id(p), p.data_ptr()) for name, p in model.named_parameters()]
    assert torch.equal(any_subject.logits(batch), before)


def test_a_twin_shares_every_parameter_and_no_module(any_subject):
    model, other = any_subject.model, twin(any_subject.model)
    mine, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(mine[name].data_ptr() == theirs[name].data_ptr() and mine[name] is not theirs[name] for name in mine)
    assert not {id(m) for m in model.modules()} & {id(m) for m in other.modules()}


def test_a_twin_carries_no_hook_of_the_subject(tiny_subject):
    subject = tiny_subject("llama")
    handle = subject.module("resid.0").register_forward_hook(lambda module, args, output: output * 0)
    try:
        assert not any(module._forward_hooks for module in twin(subject.model).modules())
    finally:
        handle.remove()


def test_compatibility_mode_is_closed_because_it_would_rewrite_the_subject(tiny_subject):
    with pytest.raises(SubjectError, match="shares with the subject"):
        bridge(tiny_subject("llama")).enable_compatibility_mode()


def test_a_hook_point_that_is_not_there_is_an_error(tiny_subject):
    with pytest.raises(SiteError, match=r"blocks\.7\.hook_resid_post"):
        hook_point(bridge(tiny_subject("llama")), Site("resid", 7))


def test_a_subject_made_in_memory_says_what_a_bridge_lacks():
    subject = Subject(make_model("llama"), make_tokenizer(), name="fresh")
    with pytest.raises(SubjectError, match="save the subject"):
        bridge(subject)
