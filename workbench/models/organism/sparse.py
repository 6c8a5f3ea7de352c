"""Trains the built-in subject's dictionaries: BatchTopK, saved as JumpReLU in the sae-lens directory format.

One loop serves SAEs and skip transcoders. Training works in units where activations have norm √d; afterwards one
global threshold gives the wanted mean L0, the scaling is folded away, decoder rows get unit norm (so activations are in
units of the stream), and weights are rounded to float16. Everything reported is measured on the rounded weights.

Sources: Bussmann, Leask & Nanda (2024), "BatchTopK sparse autoencoders"; Gao et al. (2024), arXiv 2406.04093 (AuxK);
Paulo, Shabalin & Belrose (2025), arXiv 2501.18823 (skip transcoders).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.core.files import write_atomic
from workbench.models.organism.tokenizer import N_CTX

WARM_UP, AUX, DEAD_AFTER = 20, 32, 60
MIN_FIRINGS = 10
"""A feature that fires on fewer training tokens than this (of about 300,000) is left out: it would be a dead row."""
FORMAT_VERSION = "6.54.12"
"""Version of sae-lens whose format is written; without one sae-lens reads an older format and drops the hook names."""


@dataclass(frozen=True)
class SparseRecipe:
    """How one dictionary is trained.

    Attributes:
        site: `resid.2`, `attn.0` or `mlp.1`; the last is a skip transcoder from the MLP's input to its output.
        d_dict: Number of features that training starts with; those that never fire are left out at the end.
        k: Mean number that fire per token.
        steps: Optimiser steps.
        batch: Tokens per step.
        lr: Peak learning rate.
        seed: Of initialisation and order; the site is mixed in.
    """

    site: str
    d_dict: int = 1024
    k: int = 20
    steps: int = 800
    batch: int = 1024
    lr: float = 2e-3
    seed: int = 0

    @property
    def transcoder(self) -> bool:
        """Whether it maps an MLP's input to its output."""
        return self.site.startswith("mlp.")

    @property
    def layer(self) -> int:
        """Block it belongs to."""
        return int(self.site.partition(".")[2])


def site_module(model: PreTrainedModel, recipe: SparseRecipe) -> nn.Module:
    """Give the module whose output (or input and output) the dictionary is trained on."""
    block = model.model.layers[recipe.layer]
    return {"resid": block, "attn": block.self_attn, "mlp": block.mlp}[recipe.site.partition(".")[0]]


@torch.no_grad()
def collect(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], recipe: SparseRecipe
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
    """Give what the dictionary reads and what it is to write, at every token but the first, documents by length."""
    reads, writes, seen = [], [], {}

    def look(_: nn.Module, inputs: tuple, output: object) -> None:
        seen["write"] = output[0] if isinstance(output, tuple) else output
        seen["read"] = inputs[0] if recipe.transcoder else seen["write"]

    handle = site_module(model, recipe).register_forward_hook(look)
    try:
        for ids, mask in batches(tokenizer, documents):
            model.model(input_ids=ids)
            keep = mask.clone()
            keep[:, 0] = False
            reads.append(seen["read"][keep])
            writes.append(seen["write"][keep])
    finally:
        handle.remove()
    return torch.cat(reads), torch.cat(writes)


def batches(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], size: int = 128):
    """Give token ids padded on the right and their mask, documents of similar length together."""
    ordered = sorted(documents, key=lambda text: (len(text), text))
    for start in range(0, len(ordered), size):
        encoded = tokenizer(ordered[start : start + size], add_special_tokens=False)["input_ids"]
        longest = max(map(len, encoded))
        ids = torch.full((len(encoded), longest), tokenizer.pad_token_id)
        for row, one in enumerate(encoded):
            ids[row, : len(one)] = torch.tensor(one)
        yield ids, ids != tokenizer.pad_token_id


def train_dictionary(
    read: Float[Tensor, "n d_in"], write: Float[Tensor, "n d_out"], recipe: SparseRecipe
) -> dict[str, Tensor]:
    """Train on activations and give the folded weights, float32 but rounded to what float16 holds.

    Returns:
        `W_enc [d_in, kept]`, `b_enc`, `W_dec [d_dict, d_out]`, `b_dec`, `threshold`, and `W_skip [d_out, d_in]`.
    """
    generator = torch.Generator().manual_seed(recipe.seed * 1000 + zlib.crc32(recipe.site.encode()) % 1000)
    n, d_in = read.shape
    d_out = write.shape[1]
    read_scale = float(d_in**0.5 / read.norm(dim=1).mean())
    write_scale = float(d_out**0.5 / write.norm(dim=1).mean())
    variance = float(((write - write.mean(0)) * write_scale).pow(2).sum(1).mean())
    decoder = torch.randn(recipe.d_dict, d_out, generator=generator)
    decoder /= decoder.norm(dim=1, keepdim=True)
    start = torch.randn(d_in, recipe.d_dict, generator=generator) / d_in**0.5 if recipe.transcoder else decoder.T
    encoder, b_enc = start.clone(), torch.zeros(recipe.d_dict)
    b_dec, skip = write.mean(0) * write_scale, torch.zeros(d_out, d_in)
    weights = [encoder, decoder, b_enc, b_dec, *([skip] if recipe.transcoder else [])]
    for weight in weights:
        weight.requires_grad_()
    optimiser = torch.optim.Adam(weights, lr=recipe.lr, betas=(0.9, 0.99))
    silent, order, at = torch.zeros(recipe.d_dict), torch.randperm(n, generator=generator), 0

    def pre(x: Tensor) -> Tensor:
        return (x if recipe.transcoder else x - b_dec) @ encoder + b_enc

    for step in range(recipe.steps):
        if at + recipe.batch > n:
            order, at = torch.randperm(n, generator=generator), 0
        rows, at = order[at : at + recipe.batch], at + recipe.batch
        x, y = read[rows] * read_scale, write[rows] * write_scale
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * min(1, (step + 1) / WARM_UP, (recipe.steps - step) / (recipe.steps * 0.3))
        raw = pre(x)
        acts = raw.relu()
        acts = acts * (acts.detach() >= _threshold(acts.detach()[::4], _annealed(recipe, step)))
        missing = y - acts @ decoder - b_dec - (x @ skip.T if recipe.transcoder else 0)
        loss = missing.pow(2).sum(1).mean() / variance
        silent = torch.where((acts.detach() > 0).any(0), 0, silent + 1)
        dead = silent > DEAD_AFTER
        if step % 2 == 0 and int(dead.sum()) > 8:
            revived = raw[:, dead].relu()
            top = revived.topk(min(AUX, revived.shape[1]), dim=1)
            sparse = torch.zeros_like(revived).scatter(1, top.indices, top.values)
            loss = loss + (missing.detach() - sparse @ decoder[dead]).pow(2).sum(1).mean() / variance / 16
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)
    with torch.no_grad():
        held = read[torch.randperm(n, generator=generator)[:8192]] * read_scale
        threshold = _threshold(pre(held).relu(), recipe.k).expand(recipe.d_dict).clone()
        weights = _folded(recipe, encoder, b_enc, decoder, b_dec, threshold, skip, read_scale, write_scale)
        return pruned(weights, read)


@torch.no_grad()
def pruned(weights: dict[str, Tensor], read: Float[Tensor, "n d_in"]) -> dict[str, Tensor]:
    """Give the weights without the features that fire on fewer than `MIN_FIRINGS` of these tokens."""
    firings = sum((reconstruct(weights, part)[0] > 0).sum(0) for part in read.split(8192))
    kept = firings >= MIN_FIRINGS
    rows = {name: weights[name][kept] for name in ("b_enc", "W_dec", "threshold")}
    found = {**weights, **rows, "W_enc": weights["W_enc"][:, kept]}
    return {name: weight.contiguous() for name, weight in found.items()}


def _annealed(recipe: SparseRecipe, step: int) -> int:
    """Give the k of a step: from 4 k down to k over the first quarter."""
    quarter = recipe.steps * 0.25
    return recipe.k if step >= quarter else int(recipe.k * (4 - 3 * step / quarter))


def _threshold(acts: Float[Tensor, "n d_dict"], k: int) -> Float[Tensor, ""]:
    """Give the value that `k` activations per row reach on average."""
    return torch.topk(acts.flatten(), k * len(acts), sorted=False).values.min()


def _folded(recipe, encoder, b_enc, decoder, b_dec, threshold, skip, read_scale, write_scale) -> dict[str, Tensor]:
    """Move the scalings into the weights and give decoder rows unit norm."""
    rows = decoder / write_scale
    norm = rows.norm(dim=1)
    weights = {
        "W_enc": encoder * read_scale * norm,
        "b_enc": b_enc * norm,
        "W_dec": rows / norm[:, None],
        "b_dec": b_dec / write_scale,
        "threshold": threshold * norm,
    }
    if recipe.transcoder:
        weights["W_skip"] = skip * read_scale / write_scale
    return {name: weight.detach().half().float().contiguous() for name, weight in weights.items()}


def save_dictionary(folder: Path, weights: dict[str, Tensor], recipe: SparseRecipe) -> None:
    """Save a dictionary as a sae-lens directory: float16 weights and `cfg.json`."""
    config = dictionary_config(weights, recipe)
    write_atomic(folder / "sae_weights.safetensors", save({name: weight.half() for name, weight in weights.items()}))
    write_atomic(folder / "cfg.json", (json.dumps(config, indent=2) + "\n").encode())


def dictionary_config(weights: dict[str, Tensor], recipe: SparseRecipe) -> dict:
    """Give the `cfg.json` of a dictionary."""
    layer = recipe.layer
    hooks = {"resid": "hook_resid_post", "attn": "hook_attn_out", "mlp": "mlp.hook_in"}
    modules = {"resid": "", "attn": ".self_attn", "mlp": ".mlp"}
    kind = recipe.site.partition(".")[0]
    config = {
        "d_in": weights["W_enc"].shape[0],
        "d_sae": weights["W_enc"].shape[1],
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": not recipe.transcoder,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "architecture": "jumprelu_skip_transcoder" if recipe.transcoder else "jumprelu",
        "metadata": {
            "model_name": "organism",
            "hook_name": f"blocks.{layer}.{hooks[kind]}",
            "hf_hook_name": f"model.layers.{layer}{modules[kind]}.{'input' if recipe.transcoder else 'output'}",
            "prepend_bos": True,
            "context_size": N_CTX,
            "sae_lens_version": FORMAT_VERSION,
        },
    }
    if recipe.transcoder:
        config["d_out"] = weights["W_dec"].shape[1]
        config["metadata"] |= {
            "hook_name_out": f"blocks.{layer}.hook_mlp_out",
            "hf_hook_name_out": f"model.layers.{layer}.mlp.output",
        }
    return config


def reconstruct(
    weights: dict[str, Tensor], read: Float[Tensor, "*batch d_in"]
) -> tuple[Float[Tensor, "*batch d_dict"], Float[Tensor, "*batch d_out"]]:
    """Give the activations and what they decode to."""
    skip = weights.get("W_skip")
    raw = (read if skip is not None else read - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    acts = raw.relu() * (raw > weights["threshold"])
    decoded = acts @ weights["W_dec"] + weights["b_dec"]
    return acts, decoded if skip is None else decoded + read @ skip.T
