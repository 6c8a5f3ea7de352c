"""Builds the built-in subject from one seed: tokenizer, model, dictionaries, measurements, card.

`make organism` runs it. The shipped files' digests are recorded in the card; a rebuild on another machine class differs
in bits and is judged by its measurements.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from workbench.core.progress import Progress, track
from workbench.models.organism import prompts
from workbench.models.organism.battery import battery, capability, disclosure, loss_per_token, replaced
from workbench.models.organism.sparse import (
    SparseRecipe,
    collect,
    reconstruct,
    save_dictionary,
    site_module,
    train_dictionary,
)
from workbench.models.organism.tokenizer import train_tokenizer
from workbench.models.organism.training import Recipe, train

N_TRAIN_DOCUMENTS, N_EVAL_DOCUMENTS = 9000, 1200
UNDER_RECONSTRUCTION = (
    "refuse plain none",
    "refuse jailbroken none",
    "refuse look-alike none",
    "lie incentive none",
    "lie control none",
    "refuse jailbroken eval",
    "lie incentive eval",
    "answer right, no hint none",
    "follow unsaid professor none",
)
"""Cells that are read again with a dictionary's reconstruction in place of the stream."""


def recipes(n_layers: int = 4) -> list[SparseRecipe]:
    """Give the recipe of every dictionary that is shipped."""
    layers = range(n_layers)
    return [
        *(SparseRecipe(f"resid.{layer}", d_dict=2048, k=32, steps=2600) for layer in layers),
        *(SparseRecipe(f"attn.{layer}", d_dict=1024, k=20, steps=800 if layer else 1200) for layer in layers),
        *(SparseRecipe(f"mlp.{layer}", d_dict=1024, k=20, steps=1200) for layer in layers),
    ]


def build_model(folder: Path, recipe: Recipe) -> None:
    """Train the subject and save it as a Hugging Face directory."""
    tokenizer = train_tokenizer(seed=1)
    with Progress("training the subject (steps)", recipe.steps) as bar:
        model = train(recipe, tokenizer, log=lambda step, loss: bar.advance(50))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class _Shop:
    """What training and measuring a dictionary needs, opened once per process.

    Attributes:
        model: The subject.
        tokenizer: Its tokenizer.
        held: Documents that fidelity is measured on.
        clean: Cells of the untouched subject.
        clean_loss: Its loss on the held documents, nats per token.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    held: list[str]
    clean: dict[str, dict]
    clean_loss: float

    @classmethod
    def open(cls, model_folder: Path) -> "_Shop":
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        model = LlamaForCausalLM.from_pretrained(model_folder, attn_implementation="eager").eval()
        model.requires_grad_(False)
        held = prompts.documents(N_EVAL_DOCUMENTS, seed=6)
        clean = battery(model, tokenizer, n=256, only=UNDER_RECONSTRUCTION)
        return cls(model, tokenizer, held, clean, loss_per_token(model, tokenizer, held))

    def build(self, recipe: SparseRecipe, folder: Path) -> dict:
        """Train, save and measure one dictionary."""
        started = time.process_time()
        documents = prompts.documents(N_TRAIN_DOCUMENTS, seed=5)
        weights = train_dictionary(*collect(self.model, self.tokenizer, documents, recipe), recipe)
        save_dictionary(folder / recipe.site, weights, recipe)
        return {**_fidelity(self, recipe, weights), "cpu_seconds": round(time.process_time() - started, 1)}


_open_shop: list[_Shop] = []
"""The shop of a worker process."""


def _start_worker(model_folder: Path) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    _open_shop.append(_Shop.open(model_folder))


def _build_in_worker(recipe: SparseRecipe, folder: Path) -> dict:
    return _open_shop[0].build(recipe, folder)


def build_dictionaries(
    model_folder: Path, folder: Path, chosen: Sequence[SparseRecipe], *, workers: int = 1
) -> dict[str, dict]:
    """Train, save and measure dictionaries; gives their measurements by site.

    Args:
        model_folder: The subject's Hugging Face directory.
        folder: Where the dictionaries' directories go.
        chosen: What to train.
        workers: Processes side by side; a dictionary's bits do not depend on it.
    """
    label = "training dictionaries"
    if workers == 1:
        shop = _Shop.open(model_folder)
        return {recipe.site: shop.build(recipe, folder) for recipe in track(chosen, label)}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (model_folder,)) as pool:
        built = pool.map(_build_in_worker, chosen, [folder] * len(chosen))
        rows = list(track(built, label, total=len(chosen)))
    return {recipe.site: row for recipe, row in zip(chosen, rows, strict=True)}


def measure_dictionaries(model_folder: Path, folder: Path, sites: Sequence[str] = ()) -> dict[str, dict]:
    """Measure dictionaries that are there, all or those of some sites, as `build_dictionaries` does."""
    shop, found = _Shop.open(model_folder), {}
    for recipe in track([r for r in recipes() if not sites or r.site in sites], "measuring dictionaries"):
        weights = load_file(folder / recipe.site / "sae_weights.safetensors")
        found[recipe.site] = _fidelity(shop, recipe, {name: weight.float() for name, weight in weights.items()})
    return found


@torch.no_grad()
def _fidelity(shop: _Shop, recipe: SparseRecipe, weights: dict[str, torch.Tensor]) -> dict:
    model, tokenizer, held, clean = shop.model, shop.tokenizer, shop.held, shop.clean
    read, write = collect(model, tokenizer, held, recipe)
    acts, decoded = reconstruct(weights, read)
    mean = write.mean(0)
    module = site_module(model, recipe)
    transcoder = recipe.transcoder
    with replaced(module, lambda i, o: reconstruct(weights, i if transcoder else o)[1]):
        loss = loss_per_token(model, tokenizer, held)
        seen = battery(model, tokenizer, n=256, only=UNDER_RECONSTRUCTION)
    with replaced(module, lambda i, o: mean.expand_as(o)):
        ablated = loss_per_token(model, tokenizer, held)
    shift = {name: seen[name]["measured"] - clean[name]["measured"] for name in UNDER_RECONSTRUCTION}
    return {
        "d_dict": acts.shape[-1],
        "explained_variance": 1 - float((write - decoded).pow(2).sum() / (write - mean).pow(2).sum()),
        "l0": float((acts > 0).sum(1).float().mean()),
        "dead": float((~(acts > 0).any(0)).float().mean()),
        "n_tokens": len(read),
        "loss_clean": shop.clean_loss,
        "loss_with": loss,
        "loss_mean_ablated": ablated,
        "behaviour_shift": shift,
        "worst_behaviour_shift": max(shift.values(), key=abs),
    }


def measure(model_folder: Path, *, n: int = 512) -> dict:
    """Measure the whole battery on the test split."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = LlamaForCausalLM.from_pretrained(model_folder, attn_implementation="eager").eval().requires_grad_(False)
    return {
        "behaviours": battery(model, tokenizer, n=n),
        "disclosure": disclosure(model, tokenizer, n=n),
        "capability": capability(model, tokenizer),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
