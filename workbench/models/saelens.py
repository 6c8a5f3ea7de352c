"""Reads dictionaries in sae-lens' form, without sae-lens: its import takes seconds, and its metadata hides typos.

A directory holds `cfg.json` and `sae_weights.safetensors`. Both the form of sae-lens 6 (with a `metadata` object) and
the flat one before it are read. A field that changes what is computed and is not known here is refused.

Source: sae-lens 6.54, `loading/pretrained_sae_loaders.py` and `saes/sae.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from workbench.core.canonical import digest
from workbench.core.errors import DictionaryError, SiteError
from workbench.models.architecture import DictionaryConfig, DictionaryParts
from workbench.models.rows import Scaling
from workbench.models.sites import Site, site_of_hook, site_of_module_hook
from workbench.models.weights import check_safetensors, file_digests

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALINGS: dict[str, Scaling] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
}
_KNOWN = {"d_in", "d_sae", "d_out", "dtype", "device", "apply_b_dec_to_input", "normalize_activations"}
_KNOWN |= {"reshape_activations", "metadata", "architecture", "k", "rescale_acts_by_decoder_norm", "sae_lens_version"}
_TRAINED_ONLY = {
    "batchtopk": "save it for inference first (sae-lens save_inference_model makes a jumprelu of it)",
    "matryoshka_batchtopk": "save it for inference first (sae-lens save_inference_model makes a jumprelu of it)",
}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def read_directory(
    directory: Path,
    *,
    site: str | Site | None = None,
    write_site: str | Site | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> DictionaryParts:
    """Read a sae-lens directory; see `dictionary.load_dictionary`.

    Raises:
        DictionaryError: A file is missing, truncated or contradictory, or describes something not supported.
    """
    if not (directory / CONFIG).is_file():
        raise DictionaryError(
            f"missing file {CONFIG}", where=str(directory), hint="a sae-lens directory holds cfg.json and weights"
        )
    check_safetensors(directory / WEIGHTS, DictionaryError)
    try:
        cfg = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DictionaryError(f"{CONFIG} is not JSON: {error}", where=str(directory)) from error
    if not isinstance(cfg, dict):
        raise DictionaryError(f"{CONFIG} is not an object", where=str(directory))
    return assemble(
        cfg,
        load_file(directory / WEIGHTS, device=device),
        digest=digest(file_digests([directory / CONFIG, directory / WEIGHTS])),
        source={"path": str(directory.resolve())},
        site=site,
        write_site=write_site,
        dtype=dtype,
    )


def assemble(
    cfg: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    digest: str,
    source: dict[str, str],
    site: str | Site | None = None,
    write_site: str | Site | None = None,
    dtype: str = "float32",
    norm_factor: float | None = None,
) -> DictionaryParts:
    """Make a dictionary's parts of a sae-lens configuration and its tensors.

    Args:
        cfg: The configuration, in either form.
        tensors: The tensors, by sae-lens' names.
        digest: SHA-256 over the files they came from.
        source: Where they came from.
        site: Where it reads; from the metadata where absent.
        write_site: Where it writes; from the metadata where absent.
        dtype: Precision of weights and arithmetic.
        norm_factor: What inputs are to be multiplied by so that their mean norm is √d_in; folded into the weights.

    Raises:
        DictionaryError: The configuration is contradictory or describes something not supported.
    """
    where = next(iter(source.values()), "")
    cfg = dict(cfg) if "metadata" in cfg else _modern(cfg)
    if dtype not in _DTYPES:
        raise DictionaryError(f"no precision {dtype!r}", where=where, hint=f"one of {', '.join(_DTYPES)}")
    config = _config(cfg, where, folded=norm_factor is not None)
    weights = {name: tensor.to(_DTYPES[dtype]) for name, tensor in tensors.items() if name != "scaling_factor"}
    if "scaling_factor" in tensors and not bool((tensors["scaling_factor"] == 1).all()):
        raise DictionaryError("finetuning scaling factors are not supported", where=where)
    if norm_factor is not None:
        weights = {name: _fold(name, tensor, norm_factor) for name, tensor in weights.items()}
    metadata = dict(cfg["metadata"])
    read, write = _sites(metadata, config, where, site, write_site)
    return DictionaryParts(config, weights, read, write, metadata, digest, source)


def corrected(cfg: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Give a configuration with a release's corrections, each where it belongs in the configuration's form."""
    if "metadata" not in cfg:
        return {**cfg, **overrides}
    about = {key: value for key, value in overrides.items() if key in METADATA_FIELDS}
    computed = {key: value for key, value in overrides.items() if key not in METADATA_FIELDS}
    return {**cfg, **computed, "metadata": {**cfg["metadata"], **about}}


def _fold(name: str, tensor: Tensor, factor: float) -> Tensor:
    return tensor * factor if name == "W_enc" else tensor / factor if name in ("W_dec", "b_dec") else tensor


def _modern(old: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a configuration from before sae-lens 6 into today's form."""
    renamed = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation"}
    cfg = {renamed.get(key, key): value for key, value in old.items()}
    k = (cfg.get("activation_fn_kwargs") or {}).get("k")
    activation = cfg.get("activation", cfg.get("activation_fn", "relu"))
    scaling = cfg.get("normalize_activations") or "none"
    hook = str(cfg.get("hook_name", ""))
    new = {key: cfg[key] for key in ("d_in", "d_sae", "d_out", "k", "rescale_acts_by_decoder_norm") if key in cfg}
    new |= {
        "architecture": cfg.get("architecture", "standard"),
        "apply_b_dec_to_input": cfg.get("apply_b_dec_to_input", True),
        "normalize_activations": "expected_average_only_in" if scaling is True else scaling,
        "reshape_activations": cfg.get("reshape_activations", "hook_z" if "hook_z" in hook else "none"),
        "metadata": {key: cfg[key] for key in METADATA_FIELDS if key in cfg},
    }
    if activation == "topk" and k is not None:
        new |= {"architecture": "topk", "k": k}
    elif activation not in ("relu", "topk"):
        raise DictionaryError(f"the activation function {activation!r} is not supported")
    return new


METADATA_FIELDS = (
    "model_name",
    "model_class_name",
    "sae_lens_training_version",
    "hook_name",
    "hook_name_out",
    "hook_head_index",
    "hook_head_index_out",
    "hf_hook_name",
    "hf_hook_name_out",
    "prepend_bos",
    "context_size",
    "dataset_path",
    "neuronpedia_id",
    "model_from_pretrained_kwargs",
)


def _config(cfg: Mapping[str, Any], where: str, *, folded: bool) -> DictionaryConfig:
    unknown = sorted(set(cfg) - _KNOWN)
    if unknown:
        raise DictionaryError(f"{CONFIG} has fields that are not known: {', '.join(unknown)}", where=where)
    architecture = _field(cfg, "architecture", str, where)
    if architecture in _TRAINED_ONLY:
        raise DictionaryError(
            f"the architecture {architecture!r} is not supported", where=where, hint=_TRAINED_ONLY[architecture]
        )
    scaling = "none" if folded else cfg.get("normalize_activations", "none")
    if scaling not in SCALINGS:
        hint = "fold the dataset's scaling factor into the weights first"
        hint = hint if scaling == "expected_average_only_in" else f"supported: {', '.join(SCALINGS)}"
        raise DictionaryError(f"input normalisation {scaling!r} is not supported", where=where, hint=hint)
    if cfg.get("reshape_activations", "none") not in ("none", "hook_z"):
        raise DictionaryError(f"reshape_activations {cfg['reshape_activations']!r} is not supported", where=where)
    d_in = _field(cfg, "d_in", int, where)
    is_transcoder = architecture.endswith("transcoder")
    return DictionaryConfig(
        architecture=architecture,
        d_in=d_in,
        d_out=_field(cfg, "d_out", int, where) if is_transcoder else d_in,
        d_dict=_field(cfg, "d_sae", int, where),
        subtracts_b_dec=bool(cfg.get("apply_b_dec_to_input", not is_transcoder)),
        scaling=SCALINGS[scaling],
        k=_field(cfg, "k", int, where) if architecture == "topk" else None,
        rescales_by_decoder_norm=bool(cfg.get("rescale_acts_by_decoder_norm", False)),
    )


def _field(cfg: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    value: Any = cfg.get(name)
    if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and value <= 0):
        raise DictionaryError(f"{CONFIG}: {name} must be a {kind.__name__}, got {value!r}", where=where)
    return value


def _sites(
    metadata: Mapping[str, Any],
    config: DictionaryConfig,
    where: str,
    site: str | Site | None,
    write_site: str | Site | None,
) -> tuple[Site, Site]:
    if metadata.get("hook_head_index") is not None:
        raise DictionaryError("a dictionary on a single head's values is not supported", where=where)
    read = _given(site) or _named(metadata, "", where)
    if not config.is_transcoder:
        return read, read
    return read, _given(write_site) or _named(metadata, "_out", where)


def _given(site: str | Site | None) -> Site | None:
    return Site.parse(site) if isinstance(site, str) else site


def _named(metadata: Mapping[str, Any], end: str, where: str) -> Site:
    """Give the site that the metadata name; where they name a Hugging Face module, that is the one to trust."""
    readers = {
        f"hf_hook_name{end}": site_of_module_hook,
        f"hook_name{end}": site_of_hook,
    }
    found, problems = {}, []
    for key, read in readers.items():
        name = metadata.get(key)
        if name is None:
            continue
        try:
            found[key] = read(name)
        except SiteError as error:
            problems.append(str(error))
    if len(set(found.values())) > 1:
        both = " and ".join(f"{key} {metadata[key]!r} means {site}" for key, site in found.items())
        raise DictionaryError(f"the metadata contradict themselves: {both}", where=where, hint="name the site yourself")
    if found:
        return next(iter(found.values()))
    raise DictionaryError(
        "the metadata name no site: " + ("; ".join(problems) or f"hook_name{end} is absent"),
        where=where,
        hint="pass site='resid.2' (and write_site for a transcoder)",
    )
