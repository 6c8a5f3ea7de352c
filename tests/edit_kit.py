"""Random dictionaries and an independent splice through the whole of them, to check edits from rows against."""

from __future__ import annotations

import contextlib

import torch

from workbench.interventions import edits
from workbench.interventions.targets import DirectionTarget, FeatureTarget
from workbench.models.dictionary import Dictionary, DictionaryConfig
from workbench.models.sites import Site

PROMPTS = ("what is the capital of france", "no", "the cat sat on the mat please")
D_DICT = 96


def make_dictionary(
    architecture: str,
    read: str = "resid.1",
    write: str | None = None,
    *,
    scaling: str = "none",
    d: int = 32,
    seed: int = 0,
) -> Dictionary:
    """Make a dictionary with decoder rows of norms 0.5 to 2, so that a dropped norm shows."""
    subtracts = architecture in ("standard", "jumprelu", "gated")
    config = DictionaryConfig(architecture, d, d, D_DICT, subtracts, scaling, 8 if architecture == "topk" else None)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in config.shapes().items():
        noise = torch.randn(shape, generator=generator)
        if name == "W_dec":
            norms = 0.5 + 1.5 * torch.rand(len(noise), 1, generator=generator)
            weights[name] = noise / noise.norm(dim=-1, keepdim=True) * norms
        elif name == "threshold":
            weights[name] = 0.2 + 0.3 * noise.abs()
        else:
            weights[name] = noise * {"W_enc": d**-0.5, "W_skip": d**-0.5}.get(name, 0.1)
    sites = {"read_site": Site.parse(read), "write_site": Site.parse(write or read)}
    return Dictionary(config, weights, id=f"{architecture}:{read}", **sites)


def encode_all(dictionary: Dictionary, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give every activation and the factor that what is written is scaled by, in float64 and by the book."""
    w = {name: tensor.double() for name, tensor in dictionary.weights.items()}
    config, x = dictionary.config, x.double()
    factor = torch.ones_like(x[..., :1])
    if config.scaling == "layer_norm":
        x = x - x.mean(-1, keepdim=True)
        factor = x.std(-1, keepdim=True)
        x = x / (factor + 1e-5)
    elif config.scaling == "constant_norm":
        factor = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        x = x / factor
    if config.subtracts_b_dec:
        x = x - w["b_dec"]
    pre = x @ w["W_enc"]
    if config.architecture == "gated":
        acts = ((pre + w["b_gate"]) > 0) * torch.relu(pre * w["r_mag"].exp() + w["b_mag"])
    else:
        pre = pre + w["b_enc"]
        acts = torch.relu(pre)
        if "threshold" in w:
            acts = acts * (pre > w["threshold"])
    return acts, (torch.ones_like(factor) if config.is_transcoder else factor)


def splice(dictionary: Dictionary, x: torch.Tensor, y: torch.Tensor, change) -> torch.Tensor:
    """Decode the whole edited activation vector and put back the error: reconstruction′ + (y − reconstruction)."""
    acts, factor = encode_all(dictionary, x)
    w = {name: tensor.double() for name, tensor in dictionary.weights.items()}
    rest = w["b_dec"] + (x.double() @ w["W_skip"].T if "W_skip" in w else 0.0)
    before = factor * (acts @ w["W_dec"] + rest)
    after = factor * (change(acts.clone()) @ w["W_dec"] + rest)
    return after + (y.double() - before)


@contextlib.contextmanager
def hooked(module, function):
    """Replace a module's output by function(args, output tensor) within the block."""

    def hook(_, args, output):
        if isinstance(output, tuple):
            return (function(args, output[0]), *output[1:])
        return function(args, output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def watched(module):
    """Collect a module's output tensors within the block."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
    try:
        yield seen
    finally:
        handle.remove()


def feature(dictionary: Dictionary, index: int, label: str = "") -> FeatureTarget:
    return FeatureTarget.of(dictionary, index, label=label)


def direction(
    name: str = "d", site: str = "resid.1", *, seed: int = 1, d: int = 32, norm: float = 2.0
) -> DirectionTarget:
    vector = torch.randn(d, generator=torch.Generator().manual_seed(seed))
    return DirectionTarget.of(name, site, norm * vector / vector.norm())


def busiest(dictionary: Dictionary, x: torch.Tensor, k: int = 3) -> list[int]:
    """Give the features that fire on about half of the tokens."""
    share = (encode_all(dictionary, x)[0] > 0).double().flatten(0, -2).mean(0)
    return (share - 0.5).abs().argsort()[:k].tolist()


def every_op(target, value: float = 1.3) -> dict[str, edits.Edits]:
    """Give each operation once on one target."""
    found = {}
    for op in ("add", "set", "set_if_active", "scale", "cap", "floor", "mean_ablate", "projection_cap"):
        found[op] = getattr(edits, op)(target, value)
    return found | {op: getattr(edits, op)(target) for op in ("zero_ablate", "project_out")}
