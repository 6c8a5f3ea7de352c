"""A tiny subject's risk axes, dictionary and edit, small enough to run a whole trial in a second."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch

from workbench.evidence.arms import POSITIONS
from workbench.evidence.export import Texts
from workbench.evidence.plan import Draft
from workbench.features.axes import Axis
from workbench.interventions.edits import Edit, Edits
from workbench.interventions.targets import DirectionTarget, FeatureTarget
from workbench.models.dictionary import Dictionary, DictionaryConfig
from workbench.models.sites import Site
from workbench.models.subject import Subject

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
    random.Random(0).shuffle(combos)
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


def yes_edits(subject: Subject, dictionary: Dictionary, *, strength: float = 4.0) -> Edits:
    """Give an edit that raises P( yes): the two tokens' unembedding difference, and one feature set."""
    ids = [subject.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in ("yes", "no")]
    rows = subject.model.get_output_embeddings().weight
    direction = torch.nn.functional.normalize(rows[ids[0]] - rows[ids[1]], dim=0)
    target = DirectionTarget("yes, not no", Site.parse("resid.2"), direction, direction)
    feature = FeatureTarget.of(dictionary, 5, label="five")
    return Edits((Edit("add", target, strength, POSITIONS), Edit("set", feature, 0.5, POSITIONS)))


@dataclass
class Kit:
    """Everything a tiny trial needs.

    Attributes:
        subject: A tiny llama.
        dictionary: Its random SAE.
        edits: The candidate.
        axes: Target and one off-target axis.
    """

    subject: Subject
    dictionary: Dictionary
    edits: Edits
    axes: tuple[Axis, Axis]

    def draft(self, **options) -> Draft:
        """Give a draft of a small plan; options replace its own."""
        plan = {
            "primary": "answer",
            "title": "the tiny subject says yes",
            "author": "a test",
            "selection_rule": "the first one that came to mind",
            "dictionaries": [self.dictionary],
            "n": {"answer": 64, "bystander": 64},
            "margins": {"answer": 0.0, "bystander": 0.9},
            "n_controls": 19,
            "alpha": 0.05,
            "benign": BENIGN,
            **options,
        }
        return Draft(self.subject, plan.pop("edits", self.edits), plan.pop("axes", self.axes), **plan)


BENIGN = tuple(f"<|bos|> {cue} {item} {cue}" for cue in CUES[:4] for item in ITEMS[:3])
NONCE = "5a" * 32


def make_kit(subject: Subject, folder: Path) -> Kit:
    """Make a kit on a subject."""
    axes = tiny_axis(folder), tiny_axis(folder, "bystander", kind="off_target", harm=True, margin=0.9)
    dictionary = make_dictionary(subject.d_model)
    return Kit(subject, dictionary, yes_edits(subject, dictionary), axes)


def texts() -> Texts:
    """What a person says about the tiny spec."""
    return Texts("say-yes", "Say yes", "So that it says yes.", "It is a test.", "a test", ("It is a toy.",))


def hooks(subject: Subject) -> int:
    """Count the hooks on a subject's modules."""
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in subject.model.modules())
