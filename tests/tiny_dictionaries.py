"""Random dictionaries for tiny subjects, written as sae-lens directories and read back like anybody's."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from workbench.models.dictionary import Dictionary, load_dictionary
from workbench.models.sites import Site, transformer_lens_hook
from workbench.models.subject import Subject


def random_dictionary(subject: Subject, site: str, *, d_dict: int, seed: int, b_enc: float | None = None) -> Dictionary:
    """Give a random JumpReLU SAE at a site of a subject; a very negative `b_enc` makes every feature dead."""
    generator = torch.Generator().manual_seed(seed)
    d_in = subject.path(site).width
    weights = {
        "W_enc": torch.randn(d_in, d_dict, generator=generator) / d_in**0.5,
        "b_enc": torch.full((d_dict,), b_enc) if b_enc is not None else torch.randn(d_dict, generator=generator) * 0.1,
        "W_dec": torch.nn.functional.normalize(torch.randn(d_dict, d_in, generator=generator), dim=1),
        "b_dec": torch.zeros(d_in),
        "threshold": torch.full((d_dict,), 0.5),
    }
    config = {
        "d_in": d_in,
        "d_sae": d_dict,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "architecture": "jumprelu",
        "metadata": {"hook_name": transformer_lens_hook(Site.parse(site))},
    }
    folder = Path(tempfile.mkdtemp(prefix="tiny-dictionary-"))
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(weights, folder / "sae_weights.safetensors")
    return load_dictionary(folder, id=site)
