"""`python -m workbench.models.organism build|measure`: rebuild the built-in subject, or measure the shipped one."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch

from workbench.core.files import datasets_dir, write_atomic
from workbench.models.organism import rebuild
from workbench.models.organism.card import write_card
from workbench.models.organism.training import Recipe


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m workbench.models.organism", description=__doc__)
    parser.add_argument("what", choices=("build", "measure"))
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="seed of weights and corpus")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="optimiser steps")
    parser.add_argument("--out", type=Path, default=None, help="folder; the shipped organism's if absent")
    parser.add_argument("--model-only", action="store_true", help="train no dictionaries")
    parser.add_argument("--n", type=int, default=512, help="prompts per cell")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    folder = options.out or datasets_dir() / "organism"
    if options.what == "build":
        build(folder, Recipe(seed=options.seed, steps=options.steps), model_only=options.model_only, n=options.n)
    else:
        print(json.dumps(rebuild.measure(folder / "model", n=options.n), indent=2))


def build(folder: Path, recipe: Recipe, *, model_only: bool, n: int) -> None:
    """Train, measure and write the card; an organism that is already there is replaced at the end."""
    started = time.time()
    building = folder.with_name(f"{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    rebuild.build_model(building / "model", recipe)
    dictionaries = {}
    if not model_only:
        recipes = rebuild.recipes(recipe.n_layers)
        dictionaries = rebuild.build_dictionaries(building / "model", building / "dictionaries", recipes)
    card = {"recipe": vars(recipe), **rebuild.measure(building / "model", n=n), "dictionaries": dictionaries}
    if (folder / "README.md").is_file():
        write_atomic(building / "README.md", (folder / "README.md").read_bytes())
    write_card(building, {**card, "build_seconds": round(time.time() - started)})
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


if __name__ == "__main__":
    main()
