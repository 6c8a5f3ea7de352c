"""Brings published dictionaries from the hub, or its cache, with the commit they came from.

Gemma Scope 2 is read here: sae-lens asks the network for tensor shapes even when the file is in the cache, cannot pin a
commit, and gives its transcoders a TransformerLens hook that is another tensor (the pre-norm stream, or the MLP's
output). The module names in the repository's own `config.json` are right, so they decide. Other formats go through
sae-lens' readers, imported only then.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor

from workbench.core.canonical import digest
from workbench.core.errors import DictionaryError
from workbench.models.architecture import DictionaryParts
from workbench.models.registry import Entry
from workbench.models.saelens import CONFIG, WEIGHTS, assemble, corrected
from workbench.models.weights import check_safetensors, file_digests, tensors_digest

_REFUSED = {"temporal": "temporal", "mntss_clt_layer_transcoder": "cross-layer transcoder"}
_GEMMA_NAMES = {
    "w_enc": "W_enc",
    "w_dec": "W_dec",
    "b_enc": "b_enc",
    "b_dec": "b_dec",
    "threshold": "threshold",
    "affine_skip_connection": "W_skip",
}
_GEMMA_HOOKS = {
    "resid_post": ("output", None),
    "attn_out": ("self_attn.o_proj.input", None),
    "mlp_out": ("post_feedforward_layernorm.output", None),
    "transcoder": ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"),
}


def fetch_dictionary(
    entry: Entry, *, revision: str | None = None, device: str = "cpu", dtype: str = "float32"
) -> DictionaryParts:
    """Bring a published dictionary.

    Args:
        entry: Which one.
        revision: Commit, tag or branch of its repository.
        device: Torch device.
        dtype: Precision of weights and arithmetic.

    Raises:
        DictionaryError: It cannot be reached, is damaged, or is of a kind that is not supported.
    """
    if entry.format in _REFUSED or re.search(r"(^|[/_])(clt|crosscoder)", entry.path):
        kind = _REFUSED.get(entry.format, "cross-layer transcoder or crosscoder")
        raise DictionaryError(f"{entry.release}:{entry.id} is a {kind}, which is not supported")
    if entry.format == "gemma_3":
        return _fetch_gemma_scope_2(entry, revision, device, dtype)
    if entry.format == "sae_lens":
        return _fetch_sae_lens(entry, revision, device, dtype)
    return _through_sae_lens(entry, revision, device, dtype)


def _fetch_gemma_scope_2(entry: Entry, revision: str | None, device: str, dtype: str) -> DictionaryParts:
    weights = _fetch(entry, "params.safetensors", revision)
    config = _fetch_beside(entry, "config.json", weights)
    check_safetensors(weights, DictionaryError)
    raw = load_file(weights, device=device)
    unknown = sorted(set(raw) - set(_GEMMA_NAMES))
    absent = sorted(set(_GEMMA_NAMES) - {"affine_skip_connection"} - set(raw))
    if unknown or absent:
        raise DictionaryError(
            f"{entry.path} is no Gemma Scope 2 dictionary: absent {absent or 'none'}, unknown {unknown or 'none'}",
            where=str(weights),
        )
    tensors = {_GEMMA_NAMES[name]: tensor for name, tensor in raw.items()}
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].T.contiguous()
    said = json.loads(config.read_text(encoding="utf-8")) if config else {}
    files = [weights, config] if config else [weights]
    return assemble(
        _gemma_config(entry, said, tensors),
        tensors,
        digest=digest(file_digests(files)),
        source=_source(entry, weights),
        dtype=dtype,
    )


def _gemma_config(entry: Entry, said: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    if said.get("architecture", "jump_relu") != "jump_relu":
        raise DictionaryError(f"{entry.path}: architecture {said['architecture']!r} is not supported", where=entry.repo)
    folder = next((kind for kind in _GEMMA_HOOKS if entry.path.startswith(kind)), None)
    layer = re.search(r"layer_(\d+)", entry.path)
    if folder is None or layer is None:
        raise DictionaryError(f"cannot tell what {entry.path!r} reads", where=entry.repo)
    block = f"model.layers.{layer[1]}."
    inferred = [block + end if end else None for end in _GEMMA_HOOKS[folder]]
    read = said.get("hf_hook_point_in") or inferred[0]
    write = said.get("hf_hook_point_out") or inferred[1]
    skips = "W_skip" in tensors
    if folder == "transcoder" and bool(said.get("affine_connection", skips)) != skips:
        raise DictionaryError(f"{entry.path}: config.json and the tensors disagree on the skip connection")
    kind = {False: "jumprelu_transcoder", True: "jumprelu_skip_transcoder"}[skips]
    return {
        "architecture": kind if folder == "transcoder" else "jumprelu",
        "d_in": tensors["W_enc"].shape[0],
        "d_sae": tensors["W_enc"].shape[-1],
        "d_out": tensors["W_dec"].shape[-1],
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "metadata": {
            "model_name": entry.model,
            "hf_hook_name": read,
            "prepend_bos": True,
            "published_l0": entry.l0,
            "sites_from": "config.json" if "hf_hook_point_in" in said else "folder name",
            **({"hf_hook_name_out": write} if write else {}),
        },
    }


def _fetch_sae_lens(entry: Entry, revision: str | None, device: str, dtype: str) -> DictionaryParts:
    config, weights = _fetch(entry, CONFIG, revision), _fetch(entry, WEIGHTS, revision)
    check_safetensors(weights, DictionaryError)
    cfg = corrected(json.loads(config.read_text(encoding="utf-8")), dict(entry.overrides))
    averaged = cfg.get("normalize_activations") in ("expected_average_only_in", True)
    return assemble(
        cfg,
        load_file(weights, device=device),
        digest=digest(file_digests([config, weights])),
        source=_source(entry, weights),
        dtype=dtype,
        norm_factor=entry.norm_factor if averaged else None,
    )


def _through_sae_lens(entry: Entry, revision: str | None, device: str, dtype: str) -> DictionaryParts:
    """Read one of the other published formats with sae-lens' own reader."""
    if revision is not None:
        raise DictionaryError(f"a commit cannot be pinned for the format {entry.format!r}", where=entry.release)
    from sae_lens.loading import pretrained_sae_loaders as loaders

    read = loaders.NAMED_PRETRAINED_SAE_LOADERS[entry.format]
    try:
        cfg, tensors, _ = read(entry.repo, entry.path, device, False, dict(entry.overrides))
    except (OSError, HfHubHTTPError, HFValidationError, KeyError, ValueError) as error:
        raise _unreachable(entry, error) from error
    averaged = cfg.get("normalize_activations") == "expected_average_only_in"
    plain = {key: value for key, value in cfg.items() if isinstance(value, str | int | float | bool | dict | list)}
    return assemble(
        plain,
        tensors,
        digest=tensors_digest(tensors),
        source=_source(entry, None),
        dtype=dtype,
        norm_factor=entry.norm_factor if averaged else None,
    )


def _fetch(entry: Entry, name: str, revision: str | None) -> Path:
    try:
        return Path(huggingface_hub.hf_hub_download(entry.repo, f"{entry.path}/{name}", revision=revision))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise _unreachable(entry, error) from error


def _fetch_beside(entry: Entry, name: str, beside: Path) -> Path | None:
    """Give a file of the same commit as another one, or none where the repository lacks it."""
    if (beside.parent / name).is_file():
        return beside.parent / name
    try:
        file = huggingface_hub.hf_hub_download(entry.repo, f"{entry.path}/{name}", revision=_commit(beside))
    except LocalEntryNotFoundError:
        return None  # offline, and the file is not in the commit that is cached
    except EntryNotFoundError:
        return None
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise _unreachable(entry, error) from error
    return Path(file)


def _commit(file: Path) -> str | None:
    """Give the commit whose snapshot folder a cached file lies in."""
    return file.parts[file.parts.index("snapshots") + 1] if "snapshots" in file.parts else None


def _unreachable(entry: Entry, error: Exception) -> DictionaryError:
    return DictionaryError(
        f"cannot read {entry.path} of {entry.repo}: {str(error).strip().splitlines()[0]}",
        where=f"{entry.release}:{entry.id}",
        hint="offline, only what is in the hub cache opens",
    )


def _source(entry: Entry, file: Path | None) -> dict[str, str]:
    source = {"repo": entry.repo, "path": entry.path, "release": entry.release, "id": entry.id}
    commit = _commit(file) if file else None
    return source | ({"revision": commit} if commit else {})
