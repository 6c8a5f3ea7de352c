"""What one feature does, on a named corpus: how often it fires, where most, where at random, and what it writes.

A feature's meaning is a hypothesis read off examples, so the examples must not flatter it: beside the strongest
documents stand documents drawn at random from all in which it fires, and every number names its corpus and its n.

Example:
    >>> readings = Readings(subject, Corpus("my prompts", texts))
    >>> profile(readings, dictionary, 843).top[0].tokens
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.core.errors import InputError, SubjectError
from workbench.features.capture import capture
from workbench.models.dictionary import Dictionary
from workbench.models.sites import Site
from workbench.models.subject import Subject
from workbench.models.tokens import Prompt

_FINAL_NORMS = (
    "model.norm",
    "model.language_model.norm",
    "transformer.ln_f",
    "gpt_neox.final_layer_norm",
    "model.final_layernorm",
)
_BINS = 24
_BATCH = 32


@dataclass(frozen=True)
class Corpus:
    """Documents with a name that every number measured on them carries.

    Attributes:
        name: What they are, as shown to people.
        documents: Text (chat markers included) or token ids, one per document.
    """

    name: str
    documents: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        if not self.documents:
            raise InputError("a corpus needs at least one document", where=f"corpus {self.name!r}")


class Readings:
    """A corpus as one subject reads it: token ids, and the streams of the sites that were asked for, kept.

    Args:
        subject: The model.
        corpus: What it reads; a document longer than the context is cut.
    """

    def __init__(self, subject: Subject, corpus: Corpus):
        self.subject, self.corpus = subject, corpus
        self.ids = [subject.encode(document)[: subject.n_ctx] for document in corpus.documents]
        self._streams: dict[Site, list[Tensor]] = {}
        self._lock = threading.Lock()

    def streams(self, site: Site) -> list[Tensor]:
        """Give each document's stream `[pos, d_model]` at a site, computed once."""
        with self._lock:
            if site not in self._streams:
                parts: list[Tensor] = []
                for start in range(0, len(self.ids), _BATCH):
                    parts += capture(self.subject, self.ids[start : start + _BATCH], [site])[site]
                self._streams[site] = parts
            return self._streams[site]

    def special(self, document: int) -> list[bool]:
        """Tell which tokens of a document are special ones."""
        return [one in self.subject.special_ids for one in self.ids[document]]


@dataclass(frozen=True)
class Example:
    """One document with a feature's activations.

    Attributes:
        document: Its position in the corpus.
        tokens: Token strings.
        values: Activation at each token, in the dictionary's units.
        special: Whether each token is a special one; those are not counted.
        max: Largest activation on a token that counts.
    """

    document: int
    tokens: tuple[str, ...]
    values: tuple[float, ...]
    special: tuple[bool, ...]
    max: float


@dataclass(frozen=True)
class Profile:
    """How a feature fires on a corpus; special tokens are not counted.

    Attributes:
        corpus: Name of the corpus.
        n_documents: Documents read.
        n_tokens: Tokens counted.
        n_active: Tokens on which it fires.
        max: Largest activation.
        mean_active: Mean activation where it fires; absent where it never does.
        edges: Edges of the histogram's bins, from 0 to `max`.
        counts: Firing tokens per bin.
        top: Documents of largest activation, strongest first.
        random: Documents drawn without replacement from all others in which it fires.
    """

    corpus: str
    n_documents: int
    n_tokens: int
    n_active: int
    max: float
    mean_active: float | None
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    top: tuple[Example, ...]
    random: tuple[Example, ...]

    @property
    def density(self) -> float:
        """Share of counted tokens on which it fires."""
        return self.n_active / self.n_tokens


@dataclass(frozen=True)
class LogitEffects:
    """Which next tokens a feature's decoder direction favours and disfavours on the direct path.

    Attributes:
        promoted: Token and effect, largest first.
        suppressed: Token and effect, most negative first.
        meaning: What the numbers are and leave out.
    """

    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    meaning: str


def profile(
    readings: Readings, dictionary: Dictionary, index: int, *, n_top: int = 5, n_random: int = 5, seed: int = 0
) -> Profile:
    """Measure a feature on a corpus and choose examples.

    Args:
        readings: The corpus as the subject reads it.
        dictionary: The feature's dictionary.
        index: The feature, from 0.
        n_top: Documents of largest activation.
        n_random: Documents drawn at random.
        seed: Seed of the draw.

    Raises:
        InputError: The corpus has only special tokens.
    """
    streams = readings.streams(dictionary.read_site)
    values = _activations(dictionary, index, streams)
    keep = [~np.asarray(readings.special(k), dtype=bool) for k in range(len(values))]
    counted = np.concatenate([v[k] for v, k in zip(values, keep, strict=True)])
    if counted.size == 0:
        raise InputError("the corpus has no token that counts", where=f"corpus {readings.corpus.name!r}")
    active = counted[counted > 0]
    peaks = np.array([v[k].max(initial=0.0) for v, k in zip(values, keep, strict=True)])
    order = [int(k) for k in np.argsort(-peaks, kind="stable") if peaks[k] > 0]
    rest = order[n_top:]
    drawn = np.random.default_rng(seed).permutation(len(rest))[:n_random]
    top = float(active.max()) if active.size else 0.0
    counts, edges = np.histogram(active, bins=_BINS, range=(0.0, top)) if active.size else ((), ())

    def example(k: int) -> Example:
        words = tuple(readings.subject.token_strings(readings.ids[k]))
        special = tuple(readings.special(k))
        return Example(k, words, tuple(map(float, values[k])), special, float(peaks[k]))

    return Profile(
        corpus=readings.corpus.name,
        n_documents=len(values),
        n_tokens=int(counted.size),
        n_active=int(active.size),
        max=top,
        mean_active=float(active.mean()) if active.size else None,
        edges=tuple(map(float, edges)),
        counts=tuple(map(int, counts)),
        top=tuple(example(k) for k in order[:n_top]),
        random=tuple(example(rest[k]) for k in drawn),
    )


def largest(readings: Readings, dictionary: Dictionary, index: int) -> float:
    """Give a feature's largest activation on a corpus, special tokens left out; 0 where it never fires."""
    values = _activations(dictionary, index, readings.streams(dictionary.read_site))
    return max(float(v[~np.asarray(readings.special(k), dtype=bool)].max(initial=0.0)) for k, v in enumerate(values))


def strongest(
    subject: Subject, dictionaries: Mapping[str, Dictionary], ids: Sequence[int], position: int, k: int = 3
) -> list[dict]:
    """List the strongest features of each dictionary at one token, largest activation first.

    Args:
        subject: The model.
        dictionaries: Where to look, by id.
        ids: Token ids of the prompt.
        position: The token, from 0.
        k: Features per dictionary.
    """
    sites = sorted({one.read_site for one in dictionaries.values()})
    streams = capture(subject, [list(ids)], sites)
    rows = []
    for name, dictionary in dictionaries.items():
        acts = dictionary.encode(streams[dictionary.read_site][0][position])
        for value, index in zip(*(part.tolist() for part in acts.topk(min(k, acts.shape[-1]))), strict=True):
            if value > 0:
                rows.append({"dictionary": name, "index": int(index), "activation": float(value)})
    return sorted(rows, key=lambda row: -row["activation"])


def logit_effects(subject: Subject, dictionary: Dictionary, index: int, *, k: int = 6) -> LogitEffects:
    """Project a feature's decoder row onto the vocabulary through the final norm's gain (the logit lens).

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020), applied to a decoder row.

    Raises:
        SubjectError: The model has no output embedding.
    """
    head = subject.model.get_output_embeddings()
    if head is None:
        raise SubjectError("this model has no output embedding to read effects from", where=subject.name)
    with torch.no_grad():
        row = dictionary.decoder(index).to(head.weight.device, torch.float32)
        norm = _final_norm(subject.model)
        logits = head.weight.float() @ (row if norm is None else _gain(norm, row))
        logits = logits - logits.mean()
    up, down = logits.topk(k), (-logits).topk(k)

    def named(values: list[float], indices: list[int]) -> tuple[tuple[str, float], ...]:
        return tuple(zip(subject.token_strings(indices), values, strict=True))

    through = "through the final norm's gain" if norm is not None else "without the final norm, which was not found"
    return LogitEffects(
        promoted=named(up.values.tolist(), up.indices.tolist()),
        suppressed=named((-down.values).tolist(), down.indices.tolist()),
        meaning=(
            f"Direct path only: decoder row × unembedding {through}, mean over the vocabulary subtracted; "
            "logits per unit of activation where the final stream's scale is 1. Later layers are left out."
        ),
    )


def _activations(dictionary: Dictionary, index: int, streams: Sequence[Tensor]) -> list[np.ndarray]:
    whole = torch.cat(list(streams))
    with torch.no_grad():
        if dictionary.config.activation == "topk":
            flat = dictionary.encode(whole)[:, index].float()
        else:
            # one feature's rows give its activation, a thousand times cheaper than the whole dictionary
            flat = dictionary.rows([index]).encode(whole)[:, 0]
    return [part.cpu().numpy().copy() for part in flat.split([len(one) for one in streams])]


def _final_norm(model: nn.Module) -> nn.Module | None:
    modules = dict(model.named_modules())
    return next((modules[name] for name in _FINAL_NORMS if name in modules), None)


def _gain(norm: nn.Module, row: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """Apply a norm's learned gain, whatever it is called: the norm of a long vector, times that vector's scale."""
    weight = next(norm.parameters())
    long = (row * 1e4 / row.norm().clamp_min(1e-12)).to(weight.device, weight.dtype)
    centred = long - long.mean() if isinstance(norm, nn.LayerNorm) else long
    out = norm(long[None, None])[0, 0].float() - norm(torch.zeros_like(long)[None, None])[0, 0].float()
    return out * centred.float().pow(2).mean().sqrt() * row.norm() / 1e4
