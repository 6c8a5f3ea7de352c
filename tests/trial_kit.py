"""A tiny subject's risk axes, dictionary and edit, small enough to run a whole trial in a second."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch

from workbench.features.axes import Axis
from workbench.models.dictionary import Dictionary, DictionaryConfig
from workbench.models.sites import Site

CUES = ("help me", "the cat", "a dog", "how do i", "please", "what is", "on the mat", "the capital", "is the dog")
CUES += ("do the cat", "me a mat", "i sat on")
ITEMS = (
    "paris",
    "london",
    "france",
    "the mat",
    "a cat",
    "the dog",
    "capital of france",
    "a mat",
    "of london",
    "no cat",
)
ITEMS += ("yes dog", "i")


def write_axis(folder: Path, name: str = "answer", *, n_cues: int = 12, n_items: int = 12, per_split: int = 72) -> Path:
    """Write an axis file: cue × item prompts, dev and test disjoint; label 1 where the cue asks for help."""
    combos = list(itertools.product(CUES[:n_cues], ITEMS[:n_items]))
    step = 7
    combos = [combos[(k * step) % len(combos)] for k in range(len(combos))] if len(combos) % step else combos
    lines = []
    for k, (cue, item) in enumerate(combos[: 2 * per_split]):
        lines.append(
            {
                "text": f"<|bos|><|user|> {cue} {item}<|assistant|>",
                "event": " yes",
                "against": " no",
                "split": "dev" if k % 2 == 0 else "test",
                "cue": cue,
                "item": item,
                "label": int(CUES.index(cue) % 2 == 0),
            }
        )
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def tiny_axis(folder: Path, name: str = "answer", **options) -> Axis:
    """Give an axis whose value is P( yes) against P( no)."""
    shape = {key: options.pop(key) for key in ("n_cues", "n_items", "per_split") if key in options}
    options = {"kind": "target", "direction": "up", "margin": 0.0, "definition": "P(yes) on small talk", **options}
    return Axis.from_file(write_axis(folder, name, **shape), **options)


def make_dictionary(d_model: int, *, site: str = "resid.1", d_dict: int = 24, seed: int = 0) -> Dictionary:
    """Give a random standard SAE on one site."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "W_enc": torch.randn(d_model, d_dict, generator=generator) / d_model**0.5,
        "b_enc": torch.zeros(d_dict),
        "W_dec": torch.nn.functional.normalize(torch.randn(d_dict, d_model, generator=generator), dim=-1),
        "b_dec": torch.zeros(d_model),
    }
    config = DictionaryConfig("standard", d_model, d_model, d_dict)
    return Dictionary(config, weights, id=site, read_site=Site.parse(site), digest="0" * 64)
