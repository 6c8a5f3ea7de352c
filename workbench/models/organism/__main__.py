"""`python -m workbench.models.organism build|measure|card`: rebuild the built-in subject, or measure it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import torch

from workbench.core.files import datasets_dir, write_atomic
from workbench.core.progress import reporting
from workbench.models.organism import rebuild
from workbench.models.organism.card import read_card, write_card
from workbench.models.organism.training import Recipe

SECONDS_BETWEEN_LINES = 15


class Lines:
    """Says on standard error how far the work is and how long it may still take."""

    def __init__(self) -> None:
        self._total: int | None = None
        self._done = 0
        self._started = self._said = time.monotonic()

    def start(self, label: str, total: int | None) -> None:
        """Begin a piece of work."""
        self._total, self._done = total, 0
        self._started = self._said = time.monotonic()
        print(f"{label}: {total or 'some'}", file=sys.stderr, flush=True)

    def advance(self, label: str, steps: int) -> None:
        """Count steps, and say so now and then."""
        self._done += steps
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN_LINES:
            left = (now - self._started) / self._done * (self._total - self._done) if self._total else None
            rest = "" if left is None else f" of {self._total}, about {left / 60:.0f} min left"
            print(f"{label}: {self._done}{rest}", file=sys.stderr, flush=True)
            self._said = now

    def finish(self, label: str) -> None:
        """Say how long it took."""
        print(f"{label}: done in {(time.monotonic() - self._started) / 60:.1f} min", file=sys.stderr, flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m workbench.models.organism", description=__doc__)
    parser.add_argument("what", choices=("build", "measure", "card"), help="card: write the README's tables anew")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="seed of weights and corpus")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="optimiser steps")
    parser.add_argument("--out", type=Path, default=None, help="folder; the shipped organism's if absent")
    parser.add_argument("--model-only", action="store_true", help="train no dictionaries")
    parser.add_argument("--n", type=int, default=512, help="prompts per cell")
    parser.add_argument("--workers", type=int, default=2, help="processes that train dictionaries side by side")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    folder = options.out or datasets_dir() / "organism"
    with reporting(Lines):
        if options.what == "build":
            recipe = Recipe(seed=options.seed, steps=options.steps)
            build(folder, recipe, model_only=options.model_only, n=options.n, workers=options.workers)
        elif options.what == "card":
            write_card(folder, read_card(folder))
        else:
            print(json.dumps(rebuild.measure(folder / "model", n=options.n), indent=2))


def build(folder: Path, recipe: Recipe, *, model_only: bool, n: int, workers: int = 1) -> None:
    """Train, measure and write the card; an organism that is already there is replaced at the end."""
    started = time.time()
    building = folder.with_name(f"{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    rebuild.build_model(building / "model", recipe)
    dictionaries = {}
    if not model_only:
        chosen = rebuild.recipes(recipe.n_layers)
        model, target = building / "model", building / "dictionaries"
        dictionaries = rebuild.build_dictionaries(model, target, chosen, workers=workers)
    card = {"recipe": vars(recipe), **rebuild.measure(building / "model", n=n), "dictionaries": dictionaries}
    if (folder / "README.md").is_file():
        write_atomic(building / "README.md", (folder / "README.md").read_bytes())
    write_card(building, {**card, "build_seconds": round(time.time() - started)})
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


if __name__ == "__main__":
    main()
