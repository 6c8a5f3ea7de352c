"""An atlas: what a corpus says about every feature of one dictionary, on disk, one feature in well under a millisecond.

A folder of memory-mapped columns (`.npy`), the corpus's tokens once, one Parquet table of the per-feature numbers for
DuckDB or Arrow, and a manifest that names subject, dictionary, corpus and software with digests. The manifest is
written last, so a folder without one is unfinished, and it is checked on opening: another dictionary's atlas, a
missing or truncated column and a changed byte are refused by name.

Example:
    >>> atlas = Atlas.open("atlas/resid.2", dictionary_digest=dictionary.digest)
    >>> atlas.row(843)["density"]
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.core.canonical import canonical_bytes
from workbench.core.errors import DictionaryError, InputError
from workbench.core.files import sha256_file, write_atomic
from workbench.features.aggregate import OCTAVES, Aggregate, Layout, Ranked

FORMAT = "workbench.atlas/1"
MANIFEST = "manifest.json"
ROW_GROUP = 4096
"""Features per Parquet row group: one feature costs a reader a few per cent of the file."""

_COLUMNS = ("fires", "fires_documents", "power", "maximum", "histogram")
_RANKED = ("key", "value", "document", "position")


@dataclass(frozen=True)
class Origin:
    """What an atlas was made from.

    Attributes:
        subject: Name of the subject.
        subject_digest: SHA-256 over its weight files.
        dictionary: Id of the dictionary.
        dictionary_digest: SHA-256 of its weights and configuration.
        corpus: Name of the corpus.
        corpus_digest: SHA-256 over its token ids.
        software: Name and version of what harvested it.
    """

    subject: str
    subject_digest: str
    dictionary: str
    dictionary_digest: str
    corpus: str
    corpus_digest: str
    software: str


def write_atlas(
    folder: str | os.PathLike[str], origin: Origin, aggregate: Aggregate, tokens: np.ndarray, offsets: np.ndarray
) -> "Atlas":
    """Write an atlas and open it.

    Args:
        folder: Where; an atlas that is already there is replaced only when the new one is whole.
        origin: What it was made from.
        aggregate: The merged harvest.
        tokens: int32 `[n]`, the token ids of all documents, one after another.
        offsets: int64 `[n_documents + 1]`, where each document begins.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / MANIFEST).unlink(missing_ok=True)
    arrays = {name: getattr(aggregate, name) for name in _COLUMNS}
    for kind in ("top", "sample"):
        arrays |= {f"{kind}_{name}": getattr(getattr(aggregate, kind), name) for name in _RANKED}
    arrays |= {"tokens": tokens.astype(np.int32), "offsets": offsets.astype(np.int64)}
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array, allow_pickle=False)
    pq.write_table(_table(aggregate), path / "features.parquet", row_group_size=ROW_GROUP, compression="zstd")
    files = [f"{name}.npy" for name in arrays] + ["features.parquet"]
    manifest = {
        "format": FORMAT,
        "origin": asdict(origin),
        "layout": asdict(aggregate.layout),
        "n_tokens": aggregate.n_tokens,
        "n_documents": aggregate.n_documents,
        "files": {name: {"size": (path / name).stat().st_size, "sha256": sha256_file(path / name)} for name in files},
    }
    write_atomic(path / MANIFEST, canonical_bytes(manifest))
    return Atlas.open(path)


class Atlas:
    """An opened atlas; columns are memory-mapped and read on access.

    Attributes:
        folder: Where it lies.
        origin: What it was made from.
        layout: How much is kept per feature.
        n_tokens: Tokens counted; special tokens and masked ones excluded.
        n_documents: Documents read.
    """

    def __init__(self, folder: Path, manifest: Mapping):
        self.folder = folder
        self.origin = Origin(**manifest["origin"])
        self.layout = Layout(**manifest["layout"])
        self.n_tokens, self.n_documents = int(manifest["n_tokens"]), int(manifest["n_documents"])
        self._files = manifest["files"]

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, dictionary_digest: str | None = None) -> "Atlas":
        """Open an atlas after checking its manifest and the sizes of its files; `check` reads every byte.

        Args:
            folder: Where it lies.
            dictionary_digest: The dictionary it must belong to.

        Raises:
            InputError: There is no manifest (unfinished), it is damaged, or a file is missing or truncated.
            DictionaryError: It belongs to another dictionary; both are named.
        """
        path = Path(folder)
        manifest = _manifest(path)
        for name, entry in manifest["files"].items():
            size = (path / name).stat().st_size if (path / name).is_file() else None
            if size != entry["size"]:
                state = "is missing" if size is None else f"has {size} bytes, expected {entry['size']}"
                raise InputError(f"{name} {state}", where=str(path), hint="harvest again; nothing else was changed")
        found = manifest["origin"]["dictionary_digest"]
        if dictionary_digest is not None and found != dictionary_digest:
            raise DictionaryError(
                f"this atlas belongs to dictionary {manifest['origin']['dictionary']} ({found[:12]}), "
                f"not to the one in hand ({dictionary_digest[:12]})",
                where=str(path),
            )
        return cls(path, manifest)

    def check(self) -> None:
        """Read every byte and compare with the manifest.

        Raises:
            InputError: A file differs from what was written; it is named.
        """
        for name, entry in self._files.items():
            if sha256_file(self.folder / name) != entry["sha256"]:
                raise InputError(f"{name} is not what was written: its digest differs", where=str(self.folder))

    @property
    def table_path(self) -> Path:
        """The Parquet table with one row per feature, for DuckDB or Arrow."""
        return self.folder / "features.parquet"

    def row(self, feature: int) -> dict:
        """Give one feature's numbers.

        Raises:
            InputError: There is no such feature.
        """
        if not 0 <= feature < self.layout.d_dict:
            raise InputError(f"no feature {feature}: there are {self.layout.d_dict}", where=str(self.folder))
        fires = int(self._column("fires")[feature])
        power = np.asarray(self._column("power")[:, feature])
        return {
            "feature": feature,
            "fires": fires,
            "density": fires / self.n_tokens,
            "documents": int(self._column("fires_documents")[feature]),
            "mean": float(power[0] / fires) if fires else None,
            "max": float(self._column("maximum")[feature]),
            "not_fired": self.n_tokens - fires,
            "histogram": {int(o): int(n) for o, n in zip(OCTAVES, self._column("histogram")[feature], strict=True)},
        }

    def top(self, feature: int) -> list[tuple[float, int, int]]:
        """Give the documents of largest activation as `(activation, document, position)`, largest first."""
        return self._entries("top", feature)

    def sample(self, feature: int) -> list[tuple[float, int, int]]:
        """Give the uniform random firings as `(activation, document, position)`, in random order."""
        return self._entries("sample", feature)

    def quantiles(self, feature: int, n: int) -> list[tuple[float, int, int]]:
        """Give `n` firings at evenly spaced ranks of the uniform sample, strongest first."""
        ordered = sorted(self.sample(feature), reverse=True)
        if not ordered:
            return []
        ranks = np.unique(np.linspace(0, len(ordered) - 1, n).round().astype(int))
        return [ordered[rank] for rank in ranks]

    def document(self, number: int) -> np.ndarray:
        """Give a document's token ids, int32 `[pos]`."""
        offsets = self._column("offsets")
        return np.asarray(self._column("tokens")[offsets[number] : offsets[number + 1]])

    def aggregate(self) -> Aggregate:
        """Read everything back as one aggregate."""
        found = Aggregate(self.layout, self.n_tokens, self.n_documents)
        for name in _COLUMNS:
            setattr(found, name, np.array(self._column(name)))
        for kind in ("top", "sample"):
            setattr(found, kind, Ranked(*(np.array(self._column(f"{kind}_{name}")) for name in _RANKED)))
        return found

    def _entries(self, kind: str, feature: int) -> list[tuple[float, int, int]]:
        rows = zip(*(self._column(f"{kind}_{name}")[feature].tolist() for name in _RANKED[1:]), strict=True)
        return [(value, document, position) for value, document, position in rows if document >= 0]

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return {}

    def _column(self, name: str) -> np.ndarray:
        if name not in self._columns:
            self._columns[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return self._columns[name]

    def __repr__(self) -> str:
        return (
            f"Atlas({self.origin.dictionary!r} of {self.origin.subject!r}: {self.layout.d_dict} features on "
            f"{self.n_tokens} tokens of {self.origin.corpus!r})"
        )


def _manifest(path: Path) -> dict:
    try:
        data = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise InputError(
            "this is no finished atlas: it has no manifest", where=str(path), hint="run the harvest again to go on"
        ) from error
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise InputError(f"the manifest is damaged: {error}", where=str(path / MANIFEST)) from error
    if not isinstance(manifest, dict) or canonical_bytes(manifest) != data or manifest.get("format") != FORMAT:
        raise InputError(f"the manifest is not one of {FORMAT}", where=str(path / MANIFEST))
    return manifest


def _table(aggregate: Aggregate) -> pa.Table:
    fires = aggregate.fires
    alive = fires > 0
    mean = np.divide(aggregate.power[0], fires, where=alive, out=np.zeros(len(fires)))
    square = np.divide(aggregate.power[1], fires, where=alive, out=np.zeros(len(fires)))
    return pa.table(
        {
            "feature": np.arange(len(fires), dtype=np.int32),
            "fires": fires,
            "documents": aggregate.fires_documents,
            "density": fires / max(1, aggregate.n_tokens),
            "mean": pa.array(mean, mask=~alive),
            "std": pa.array(np.sqrt(np.maximum(square - mean**2, 0)), mask=~alive),
            "max": aggregate.maximum,
        }
    )
