"""Which published dictionaries there are and where they lie, without parsing 1.5 MB for one of them.

sae-lens ships a list of 13,857 dictionaries; loading it takes 2 to 8 seconds and importing sae-lens 6 more. A release
is a block of that file, so the block is found as text and only that is parsed. Short names say what people mean:

    gemma-scope-2:resid/17/16k                  layer 17, 16k features, the one whose L0 is nearest 60
    gemma-scope-2:transcoder/17/16k/small/affine
    gpt2-small-res-jb:blocks.8.hook_resid_pre   any other, as release:id

Source: sae-lens `pretrained_saes.yaml`; Gemma Scope 2 (Google DeepMind, 2025), repositories `google/gemma-scope-2-*`.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from workbench.core.errors import DictionaryError

GEMMA_SCOPE_2 = "gemma-scope-2"
_KINDS = {"resid": "res", "attn": "att", "mlp": "mlp", "transcoder": "transcoders"}
_SIZES = ("small", "medium", "big")
_TYPICAL_L0 = 60


@dataclass(frozen=True)
class Entry:
    """One published dictionary.

    Attributes:
        release: Release that it is part of.
        id: Its id in the release.
        repo: Hub repository.
        path: Folder in the repository.
        format: Name of the reader that its files need.
        model: Model it was trained on.
        l0: Published mean number of active features, where known.
        norm_factor: Published factor that inputs are multiplied by, where there is one.
        overrides: Configuration fields that the release corrects.
    """

    release: str
    id: str
    repo: str
    path: str
    format: str
    model: str
    l0: float | None = None
    norm_factor: float | None = None
    overrides: tuple[tuple[str, Any], ...] = ()


def find_entry(name: str, *, model: str | None = None) -> Entry:
    """Find a published dictionary by short name or by `release:id`.

    Args:
        name: The name; see the module. `owner/repository:folder` is a repository in sae-lens' own form.
        model: Repository or name of the subject, which decides the release of a short name.

    Raises:
        DictionaryError: There is no such release or id, or the subject is none that the short name covers.
    """
    release, colon, rest = name.partition(":")
    if not colon or not release or not rest:
        raise DictionaryError(
            f"no dictionary {name!r}",
            hint="name a directory, a short name such as 'gemma-scope-2:resid/17/16k', or 'release:id'",
        )
    if release == GEMMA_SCOPE_2:
        return _short_name(rest, model)
    if "/" in release:
        return Entry(release, rest, release, rest, "sae_lens", "")
    entries = release_entries(release)
    if rest not in entries:
        raise DictionaryError(f"no dictionary {rest!r} in release {release!r}", hint=_near(rest, list(entries)))
    return entries[rest]


@functools.cache
def release_entries(release: str) -> dict[str, Entry]:
    """Give every dictionary of a release, by id.

    Raises:
        DictionaryError: There is no such release; the nearest names are given.
    """
    text = _registry_path().read_text(encoding="utf-8")
    block = re.search(rf"^{re.escape(release)}:\n(?:[ -].*\n?|\n)+", text, re.MULTILINE)
    if block is None:
        names = re.findall(r"^([\w.-]+):$", text, re.MULTILINE)
        raise DictionaryError(f"no release {release!r} of dictionaries", hint=_near(release, names))
    body = yaml.safe_load(block[0])[release]
    overrides = tuple(sorted((body.get("config_overrides") or {}).items()))
    return {
        str(one["id"]): Entry(
            release=release,
            id=str(one["id"]),
            repo=body["repo_id"],
            path=str(one["path"]),
            format=body.get("conversion_func") or "sae_lens",
            model=body["model"],
            l0=_number(one.get("l0")),
            norm_factor=_number(one.get("norm_scaling_factor")),
            overrides=overrides,
        )
        for one in body["saes"]
    }


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _registry_path() -> Path:
    spec = importlib.util.find_spec("sae_lens")
    if spec is None or not spec.submodule_search_locations:
        raise DictionaryError("published dictionaries need sae-lens", hint="pip install sae-lens")
    return Path(next(iter(spec.submodule_search_locations))) / "pretrained_saes.yaml"


def _short_name(rest: str, model: str | None) -> Entry:
    kind, layer, width, options = _parse_short(rest)
    stem = f"{GEMMA_SCOPE_2}-{_gemma_3_size(model)}-{_KINDS[kind]}"
    wanted = f"layer_{layer}_width_{width}_l0_"
    size = next((one for one in options if one in _SIZES), None)
    tail = "_affine" if "affine" in options else ""
    known: list[str] = []
    for release in (stem, f"{stem}-all"):
        try:
            entries = release_entries(release)
        except DictionaryError:
            continue
        known += entries
        ends = {f"{wanted}{one}{tail}": one for one in ((size,) if size else _SIZES)}
        found = [entry for entry in entries.values() if entry.id.rsplit("/", 1)[-1] in ends]
        if found:
            return min(found, key=lambda entry: abs((entry.l0 or 0) - _TYPICAL_L0))
    layers = sorted({int(n) for one in known for n in re.findall(r"layer_(\d+)_", one)})
    widths = sorted({n for one in known for n in re.findall(r"width_(\w+?)_l0", one)})
    raise DictionaryError(
        f"Gemma Scope 2 has no {kind} dictionary {rest!r} for {model}",
        hint=f"layers {_spans(layers) or 'none'}, widths {', '.join(widths) or 'none'}",
    )


def _parse_short(rest: str) -> tuple[str, int, str, list[str]]:
    kind, *parts = rest.split("/")
    options = parts[2:]
    if kind not in _KINDS or len(parts) < 2 or not parts[0].isdecimal() or set(options) - {*_SIZES, "affine"}:
        raise DictionaryError(
            f"cannot read the short name {GEMMA_SCOPE_2}:{rest}",
            hint=f"{'|'.join(_KINDS)}/layer/width, then small, medium or big, and affine for transcoders that skip",
        )
    return kind, int(parts[0]), parts[1], options


def _gemma_3_size(model: str | None) -> str:
    found = re.search(r"gemma-3-(270m|1b|4b|12b|27b)(-it|-pt)?$", model or "")
    if not found:
        raise DictionaryError(
            f"Gemma Scope 2 belongs to Gemma 3 models, the subject is {model!r}",
            hint="name the release itself: 'gemma-scope-2-4b-it-res:layer_17_width_16k_l0_medium'",
        )
    return found[1] + (found[2] or "-pt")


def _spans(numbers: list[int]) -> str:
    if len(numbers) > 8 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
    return f"did you mean {', '.join(map(repr, close))}?"
