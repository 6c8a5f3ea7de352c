"""Weight files that are what they say: whole, safetensors, every shard there, each with its digest.

A file cut short by a full disk or a broken download must be named, before a library turns it into an error about
something else, or worse, into randomly initialised tensors. Pickled weights are code and are not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from workbench.core.errors import WorkbenchError
from workbench.core.files import sha256_file


def check_safetensors(path: Path, error: type[WorkbenchError]) -> None:
    """Refuse a safetensors file that is missing, truncated or has no readable header.

    Args:
        path: The file.
        error: Which error to raise.

    Raises:
        WorkbenchError: Of the given type, naming the file and the sizes found and expected.
    """
    hint = "fetch or copy the file again"
    if not path.is_file():
        raise error(f"missing file {path.name}", where=str(path.parent), hint=hint)
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, 100_000_000):
            raise error(f"{path.name} is truncated or not safetensors: {size} bytes", where=str(path), hint=hint)
        try:
            header = json.loads(stream.read(length))
        except ValueError as problem:
            raise error(f"{path.name} has no readable safetensors header", where=str(path), hint=hint) from problem
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        what = "truncated" if size < expected else "longer than its header says"
        raise error(f"{path.name} is {what}: {size} bytes, expected {expected}", where=str(path), hint=hint)


def weight_files(directory: Path, error: type[WorkbenchError]) -> list[Path]:
    """Give the weight files of a Hugging Face directory, checked, in the order of their names.

    Raises:
        WorkbenchError: Of the given type, where there is none, one is missing or broken, or only a pickle exists.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as problem:
            raise error(f"{index.name} is not a weight index", where=str(index)) from problem
    else:
        names = sorted(path.name for path in directory.glob("*.safetensors")) or ["model.safetensors"]
        if not (directory / names[0]).exists() and any(directory.glob("*.bin")):
            raise error("only pickled weights are here, which can run code", where=str(directory), hint="convert them")
    for name in names:
        check_safetensors(directory / name, error)
    return [directory / name for name in names]


def file_digests(paths: list[Path]) -> dict[str, str]:
    """Give file name → SHA-256, computed once per file, size and modification time."""
    return {path.name: sha256_file(path) for path in paths}


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Give one SHA-256 for named tensors: names, dtypes, shapes and bytes, in the order of the names."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        state.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return state.hexdigest()
