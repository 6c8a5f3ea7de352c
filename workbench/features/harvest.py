"""One streaming pass over a corpus for any number of dictionaries of one subject.

Each batch runs the subject once, up to the highest site that somebody reads, encodes it, and hands the firings to the
accumulators; no activation is kept and no dense table of the corpus is ever made, so memory does not grow with the
corpus. Work is cut into shards of documents; after each one a checkpoint is written whole, so a harvest that is
killed at any moment goes on from its last shard and ends in the same bytes.

What is not counted is said: special tokens, tokens whose stream is far longer than their document's median
(activation sinks), and documents that repeat an earlier one.

Example:
    >>> atlases = harvest(subject, {"resid.2": dictionary}, documents, corpus="stories", folder="atlas")
    >>> atlases["resid.2"].row(843)["density"]
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.core.canonical import digest
from workbench.core.errors import InputError
from workbench.core.files import write_atomic
from workbench.core.progress import CancelToken, Progress
from workbench.core.version import VERSION
from workbench.features.aggregate import Aggregate, Layout, Ranked
from workbench.features.atlas import Atlas, Origin, write_atlas
from workbench.models.dictionary import Dictionary
from workbench.models.reading import reading
from workbench.models.sites import Site
from workbench.models.subject import Subject

_ARRAYS = ("fires", "fires_documents", "power", "maximum", "histogram")
_RANKED = ("key", "value", "document", "position")


@dataclass(frozen=True)
class Options:
    """How a harvest reads and what it keeps.

    Attributes:
        top: Documents kept per feature by their largest activation.
        sample: Firings kept per feature as a uniform random sample.
        seed: Seed of that sample.
        shard_documents: Documents per shard; a checkpoint is written after each.
        batch_tokens: Tokens per forward pass, padding included; a longer document makes a batch of its own.
        encode_tokens: Tokens encoded at once; bounds memory at this many × d_dict float32.
        sink_multiple: Tokens whose stream is longer than this many times their document's median are left out;
            `None` keeps them.
    """

    top: int = 20
    sample: int = 64
    seed: int = 0
    shard_documents: int = 512
    batch_tokens: int = 2048
    encode_tokens: int = 512
    sink_multiple: float | None = 10.0


@dataclass
class Tally:
    """What was read and what was left out.

    Attributes:
        documents: Documents read, each text once.
        repeated: Documents left out because an earlier one has the same tokens.
        cut: Documents longer than the context, of which only the beginning was read.
        special: Special tokens left out.
        sinks: Tokens left out as activation sinks, counted at each site.
    """

    documents: int = 0
    repeated: int = 0
    cut: int = 0
    special: int = 0
    sinks: dict[str, int] = field(default_factory=dict)


class _Reached(Exception):
    """The highest site was read; the rest of the forward pass is not needed."""


def harvest(
    subject: Subject,
    dictionaries: Mapping[str, Dictionary],
    documents: Sequence,
    *,
    corpus: str,
    folder: str | os.PathLike[str],
    options: Options | None = None,
    cancel: CancelToken | None = None,
) -> dict[str, Atlas]:
    """Read a corpus and write one atlas per dictionary; goes on where an interrupted harvest stopped.

    Args:
        subject: The model.
        dictionaries: By id; all are read in the same pass.
        documents: Text, chats or token ids.
        corpus: What the documents are, as people will read it.
        folder: Where the atlases go, one folder each, and the checkpoint meanwhile.
        options: How to read and what to keep.
        cancel: Stops between batches; what was finished is kept.

    Returns:
        Dictionary id → atlas.

    Raises:
        InputError: No document, or none with a token that counts.
        DictionaryError: A dictionary does not fit the subject.
    """
    options = options or Options()
    if not dictionaries:
        raise InputError("a harvest needs at least one dictionary")
    ids, _ = read_corpus(subject, documents)
    corpus_digest = _corpus_digest(ids)
    identity = {
        "subject": digest(subject.digests()),
        "dictionaries": {name: one.digest for name, one in dictionaries.items()},
        "corpus": corpus_digest,
        "options": asdict(options),
    }
    root = Path(folder)
    checkpoints = _Checkpoints(root / f".harvest-{digest(identity)[:16]}")
    layouts = {n: Layout(d.d_dict, options.top, options.sample, options.seed) for n, d in dictionaries.items()}
    done, totals = checkpoints.latest(layouts)
    shards = [range(k, min(k + options.shard_documents, len(ids))) for k in range(0, len(ids), options.shard_documents)]
    with Progress(f"harvesting {corpus}", len(ids), cancel=cancel) as bar:
        bar.advance(sum(len(shard) for shard in shards[:done]))
        for number, shard in enumerate(shards[done:], start=done):
            for name, part in _read_shard(subject, dictionaries, ids, shard, options, layouts, bar).items():
                totals[name].merge(part)
            checkpoints.save(number + 1, totals)
    if any(total.n_tokens == 0 for total in totals.values()):
        raise InputError("the corpus has no token that counts: every one is special", where=f"corpus {corpus!r}")
    tokens = np.concatenate([np.asarray(one, np.int32) for one in ids])
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in ids])])
    atlases = {}
    for name, total in totals.items():
        origin = Origin(
            subject.name,
            identity["subject"],
            name,
            dictionaries[name].digest,
            corpus,
            corpus_digest,
            f"sae-workbench {VERSION}",
        )
        atlases[name] = write_atlas(root / name, origin, total, tokens, offsets)
    checkpoints.remove()
    return atlases


def read_corpus(subject: Subject, documents: Sequence) -> tuple[list[list[int]], Tally]:
    """Give each distinct document's token ids, cut to the context, and what was left out.

    Raises:
        InputError: There is no document.
    """
    tally, seen, ids = Tally(), set(), []
    for document in documents:
        one = list(subject.encode(document))
        if len(one) > subject.n_ctx:
            one, tally.cut = one[: subject.n_ctx], tally.cut + 1
        key = tuple(one)
        if key in seen:
            tally.repeated += 1
            continue
        seen.add(key)
        ids.append(one)
        tally.special += sum(token in subject.special_ids for token in one)
    if not ids:
        raise InputError("the corpus is empty", hint="give at least one document")
    tally.documents = len(ids)
    return ids, tally


def firings(
    dictionary: Dictionary, stream: Float[Tensor, "n d_in"], *, chunk: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Encode a stream a chunk at a time and give what fired as `(feature, token, value)`.

    Args:
        dictionary: What encodes.
        stream: Its read site's stream.
        chunk: Tokens encoded at once.
    """
    for start in range(0, len(stream), chunk):
        acts = dictionary.encode(stream[start : start + chunk])
        token, feature = torch.nonzero(acts, as_tuple=True)
        value = acts[token, feature]
        yield feature.cpu().numpy(), token.cpu().numpy() + start, value.float().cpu().numpy()


def _read_shard(
    subject: Subject,
    dictionaries: Mapping[str, Dictionary],
    ids: Sequence[Sequence[int]],
    shard: range,
    options: Options,
    layouts: Mapping[str, Layout],
    bar: Progress,
) -> dict[str, Aggregate]:
    parts = {name: Aggregate(layout) for name, layout in layouts.items()}
    sites = sorted({one.read_site for one in dictionaries.values()})
    special = torch.tensor(sorted(subject.special_ids), dtype=torch.long)
    for rows in _batches(ids, shard, options.batch_tokens):
        batch = subject.batch([ids[row] for row in rows])
        counted = batch.mask & ~torch.isin(batch.ids.cpu(), special).to(batch.mask.device)
        document = torch.tensor(rows)[:, None].expand(counted.shape)
        position = batch.mask.long().cumsum(1) - 1
        with torch.inference_mode():
            streams = _forward_to(subject, batch, sites)
            for name, dictionary in dictionaries.items():
                stream = streams[dictionary.read_site]
                keep = counted & ~_sinks(stream, counted, options.sink_multiple)
                _add(parts[name], dictionary, stream[keep], document[keep], position[keep], options.encode_tokens)
        bar.advance(len(rows))
    return parts


def _add(
    part: Aggregate,
    dictionary: Dictionary,
    stream: Float[Tensor, "n d_in"],
    document: Tensor,
    position: Tensor,
    chunk: int,
) -> None:
    found = list(firings(dictionary, stream, chunk=chunk)) or [
        (np.zeros(0, np.int64),) * 2 + (np.zeros(0, np.float32),)
    ]
    feature, token, value = (np.concatenate(column) for column in zip(*found, strict=True))
    part.add(
        feature.astype(np.int64),
        token.astype(np.int64),
        value.astype(np.float32),
        document=document.cpu().numpy().astype(np.int64),
        position=position.cpu().numpy().astype(np.int32),
    )


def _forward_to(subject: Subject, batch, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Run the subject until every site was read, and no further."""

    def stop(*_: object) -> None:
        if len(streams) == len(sites):
            raise _Reached

    top = max(site.layer for site in sites)
    with reading(subject, sites) as streams:
        handle = subject.module(Site("resid", top)).register_forward_hook(stop)
        try:
            subject.model(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False)
        except _Reached:
            pass
        finally:
            handle.remove()
    return dict(streams)


def _sinks(
    stream: Float[Tensor, "batch pos d"], counted: Bool[Tensor, "batch pos"], multiple: float | None
) -> Bool[Tensor, "batch pos"]:
    if multiple is None:
        return torch.zeros_like(counted)
    norm = stream.float().norm(dim=-1)
    median = norm.masked_fill(~counted, torch.nan).nanmedian(dim=1, keepdim=True).values
    return norm > multiple * median


def _batches(ids: Sequence[Sequence[int]], shard: range, batch_tokens: int) -> Iterator[list[int]]:
    """Group a shard's documents of similar length, within a budget of padded tokens."""
    rows: list[int] = []
    for row in sorted(shard, key=lambda k: (len(ids[k]), k)):
        if rows and len(ids[row]) * (len(rows) + 1) > batch_tokens:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


def _corpus_digest(ids: Sequence[Sequence[int]]) -> str:
    state = hashlib.sha256()
    for one in ids:
        state.update(np.asarray([len(one), *one], np.int32).tobytes())
    return state.hexdigest()


class _Checkpoints:
    """The merged aggregates after each shard, in one file whose name carries its digest; the last two are kept."""

    def __init__(self, folder: Path):
        self.folder = folder

    def latest(self, layouts: Mapping[str, Layout]) -> tuple[int, dict[str, Aggregate]]:
        """Give how many shards are done and their sum; from nothing where no checkpoint is whole."""
        for path in sorted(self.folder.glob("*.npz"), reverse=True):
            number, _, wanted = path.stem.partition("-")
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest()[:16] != wanted:
                warnings.warn(f"checkpoint {path.name} is damaged and was passed over", stacklevel=3)
                continue
            return int(number), _unpack(data, layouts)
        return 0, {name: Aggregate(layout) for name, layout in layouts.items()}

    def save(self, number: int, totals: Mapping[str, Aggregate]) -> None:
        """Write a checkpoint, then forget all but the one before it."""
        data = _pack(totals)
        older = sorted(self.folder.glob("*.npz"))
        write_atomic(self.folder / f"{number:06d}-{hashlib.sha256(data).hexdigest()[:16]}.npz", data)
        for path in older[:-1]:
            path.unlink()

    def remove(self) -> None:
        """Forget all; the atlases stand."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _pack(totals: Mapping[str, Aggregate]) -> bytes:
    arrays = {}
    for name, total in totals.items():
        arrays[f"{name}/counts"] = np.array([total.n_tokens, total.n_documents])
        arrays |= {f"{name}/{key}": getattr(total, key) for key in _ARRAYS}
        for kind in ("top", "sample"):
            arrays |= {f"{name}/{kind}_{key}": getattr(getattr(total, kind), key) for key in _RANKED}
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def _unpack(data: bytes, layouts: Mapping[str, Layout]) -> dict[str, Aggregate]:
    totals = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        for name, layout in layouts.items():
            total = Aggregate(layout, *map(int, arrays[f"{name}/counts"]))
            for key in _ARRAYS:
                setattr(total, key, arrays[f"{name}/{key}"])
            for kind in ("top", "sample"):
                setattr(total, kind, Ranked(*(arrays[f"{name}/{kind}_{key}"] for key in _RANKED)))
            totals[name] = total
    return totals
