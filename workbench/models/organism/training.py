"""Trains the built-in subject: a small Llama-style transformer, one document per row, completions over prompts.

Muon on the blocks' matrices and AdamW on the rest, at one learning rate; constant, then linear to almost nothing. With
one thread and one process a seed gives the same bits on one machine class; elsewhere a rebuild is judged by its
metrics.

Source: Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural networks", as in `torch.optim.Muon`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from workbench.models.organism import corpus
from workbench.models.organism.tokenizer import N_CTX


@dataclass(frozen=True)
class Recipe:
    """How the subject is trained.

    Attributes:
        seed: Of weights and corpus.
        steps: Optimiser steps.
        batch: Documents per step.
        lr: Peak learning rate of both optimisers.
        prompt_weight: Loss weight of a prompt token against a completion token's 1.
        d_model, n_layers, n_heads, d_mlp: Shape.
    """

    seed: int = 1
    steps: int = 2600
    batch: int = 64
    lr: float = 4e-3
    prompt_weight: float = 0.3
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    d_mlp: int = 320


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Make the untrained subject."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_heads,
        max_position_embeddings=N_CTX,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    return LlamaForCausalLM(config)


def train(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, log=lambda step, loss: None) -> LlamaForCausalLM:
    """Train the subject; `log` hears the mean loss of every 50 steps."""
    model = make_model(recipe, tokenizer)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "layers" in name)]
    optimisers = (
        torch.optim.Muon(matrices, lr=recipe.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.0),
    )
    batches, recent = _batches(recipe, tokenizer), []
    for step in range(recipe.steps):
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = recipe.lr * _schedule(step, recipe.steps)
        ids, weights = next(batches)
        logits = model(input_ids=ids).logits[:, :-1]
        losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            log(step + 1, sum(recent) / len(recent))
            recent = []
    return model.eval().requires_grad_(False)


def _schedule(step: int, steps: int) -> float:
    done = step / steps
    decay = 1.0 if done < 0.4 else (1 - done) / 0.6 * 0.98 + 0.02
    return min(1.0, (step + 1) / 40) * decay


def _batches(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Tensor, Tensor]]:
    """Give batches of similar length: token ids, padded on the right, and each token's loss weight."""
    rng = random.Random(recipe.seed + 1000)
    while True:
        drawn = corpus.documents(rng, recipe.batch * 16)
        drawn.sort(key=lambda d: len(d.prompt.split()) + len(d.completion.split()))
        groups = [drawn[k : k + recipe.batch] for k in range(0, len(drawn), recipe.batch)]
        rng.shuffle(groups)
        for group in groups:
            yield _encode(group, recipe, tokenizer)


def _encode(group: list[corpus.Document], recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    prompts = tokenizer([d.prompt for d in group], add_special_tokens=False)["input_ids"]
    rest = tokenizer([d.completion + corpus.EOS for d in group], add_special_tokens=False)["input_ids"]
    longest = max(len(p) + len(c) for p, c in zip(prompts, rest, strict=True))
    ids = torch.full((len(group), longest), tokenizer.pad_token_id)
    weights = torch.zeros(len(group), longest)
    for k, (prompt, completion) in enumerate(zip(prompts, rest, strict=True)):
        n = len(prompt) + len(completion)
        ids[k, :n] = torch.tensor(prompt + completion)
        weights[k, : len(prompt)] = recipe.prompt_weight
        weights[k, len(prompt) : n] = 1.0
    return ids, weights
