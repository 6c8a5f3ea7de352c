"""The TransformerBridge view of a subject: caches and attention patterns, without touching the subject.

Booting a bridge replaces modules of the model it is given (`model.layers.0` becomes a bridge block, state-dict keys
change), and its compatibility mode rewrites weights. Both would silently change the model that edits are measured on.
So a bridge stands on a twin: the same modules anew, over the same memory. Weights stay raw.

A model with a vision tower is bridged by its text tower alone: for the whole, transformer-lens 3.9 asks the hub for an
image processor and, where that fails, runs `pip install torchvision`, which replaces the torch of the environment.

Example:
    >>> view = bridge(subject)
    >>> logits, cache = view.run_with_cache(subject.batch([chat]).ids)
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from workbench.core.errors import SiteError, SubjectError
from workbench.models.sites import Site, transformer_lens_hook
from workbench.models.subject import Subject


def bridge(subject: Subject) -> TransformerBridge:
    """Give a TransformerBridge over a subject's weights, which are shared, not copied.

    Compatibility mode is closed: it folds weights in place, and a dictionary trained on raw activations would then
    read something else.

    Raises:
        SubjectError: The subject's tokenizer has no file behind it, which the bridge needs.
    """
    view = TransformerBridge.boot_transformers(
        subject.source.repo or subject.name,
        hf_model=twin(_text_only(subject.model)),
        tokenizer=_tokenizer(subject),
        device=str(subject.device),
        dtype=subject.dtype,
    )
    view.enable_compatibility_mode = _closed  # type: ignore[method-assign]
    return view


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """Build the same model a second time over the same memory: new modules and parameters, no hook, shared storage."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach()
    other = copy.deepcopy(model, memo)
    for module in other.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            hooks.clear()
    return other


def _text_only(model: PreTrainedModel) -> PreTrainedModel:
    """Give the text tower of a multimodal Gemma-3 as the causal model that it is; any other model unchanged."""
    if not isinstance(model, Gemma3ForConditionalGeneration):
        return model
    config: Any = copy.deepcopy(model.config.get_text_config())
    config.architectures = [Gemma3ForCausalLM.__name__]
    with torch.device("meta"):
        text = Gemma3ForCausalLM(config)
    text.model, text.lm_head = model.model.language_model, model.lm_head
    return text.eval()


def hook_point(view: TransformerBridge, site: Site) -> nn.Module:
    """Give the hook point whose tensor a site is; a name the bridge lacks is an error, not a hook that never fires.

    Raises:
        SiteError: The bridge has no such hook.
    """
    name = transformer_lens_hook(site)
    point = view.hook_dict.get(name)
    if point is None:
        raise SiteError(f"the bridge has no hook {name!r}", where=f"site {site}")
    return point


def _tokenizer(subject: Subject) -> PreTrainedTokenizerBase:
    if subject.tokenizer.init_kwargs.get("name_or_path"):
        return subject.tokenizer
    if subject.source.path is None:
        raise SubjectError(
            "a bridge needs a tokenizer that was read from files, this one was made in memory",
            where=subject.name,
            hint="save the subject and load it with load_subject",
        )
    return AutoTokenizer.from_pretrained(subject.source.path, local_files_only=True)


def _closed(*_: object, **__: object) -> NoReturn:
    raise SubjectError(
        "compatibility mode rewrites weights that this view shares with the subject, so it is closed",
        hint="boot a TransformerBridge of your own from the model's files",
    )
