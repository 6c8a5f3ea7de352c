"""What flows through a site while the plain model reads prompts, batch by batch.

Ranking, probes and difference-of-means directions need the stream at a few sites; they take it with ordinary hooks on
the Hugging Face modules, so that what is read is what the edit runtime reads, and no second model form is needed.

Example:
    >>> stream = capture(subject, ["the capital of france is"], [Site.parse("resid.2")])
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.core.errors import PromptError, SiteError
from workbench.core.progress import CancelToken, Progress
from workbench.models.reading import reading
from workbench.models.sites import Site
from workbench.models.subject import Subject

BATCH_SIZE = 32
"""Prompts per forward pass where the caller names no other number."""


@dataclass(frozen=True)
class Captured:
    """The streams of one batch.

    Attributes:
        rows: Positions of these prompts in the sequence that was asked for.
        mask: Where a token is real; prompts are padded on the left.
        ids: Token ids.
        streams: Site → float32 stream.
    """

    rows: tuple[int, ...]
    mask: Bool[Tensor, "batch pos"]
    ids: Int[Tensor, "batch pos"]
    streams: dict[Site, Float[Tensor, "batch pos d_model"]]


def capture(subject: Subject, prompts: Sequence, sites: Sequence[Site], *, batch_size: int = BATCH_SIZE) -> dict:
    """Give the stream of each prompt at each site.

    Args:
        subject: The model.
        prompts: Text, chats or token ids.
        sites: Where to read.
        batch_size: Prompts per forward pass.

    Returns:
        Site → list of float32 tensors `[pos, d_model]`, one per prompt, without padding.

    Raises:
        PromptError: No prompt, or one that is empty or too long.
        SiteError: A site that this subject does not have.
    """
    found: dict[Site, list] = {site: [None] * len(prompts) for site in sites}
    for batch in capture_batches(subject, prompts, sites, batch_size=batch_size):
        for site, stream in batch.streams.items():
            for k, row in enumerate(batch.rows):
                found[site][row] = stream[k][batch.mask[k]].clone()
    return found


def capture_batches(
    subject: Subject,
    prompts: Sequence,
    sites: Sequence[Site],
    *,
    batch_size: int = BATCH_SIZE,
    label: str | None = None,
    cancel: CancelToken | None = None,
) -> Iterator[Captured]:
    """Give the streams batch by batch, prompts of similar length together; nothing larger than a batch is kept.

    The model is run without its head where the model has a body of its own, and every hook is removed after a batch.
    """
    encoded = [subject.encode(prompt) for prompt in prompts]
    if not encoded:
        raise PromptError("there is no prompt to read", where=f"subject {subject.name}")
    order = sorted(range(len(encoded)), key=lambda k: len(encoded[k]))
    with Progress(label, len(order), cancel=cancel) if label else contextlib.nullcontext() as bar:
        for start in range(0, len(order), batch_size):
            rows = tuple(order[start : start + batch_size])
            batch = subject.batch([encoded[k] for k in rows])
            with reading(subject, sites) as streams:
                subject.logits(batch)
            missing = [str(site) for site in sites if site not in streams]
            if missing:
                raise SiteError(f"nothing flowed through {', '.join(missing)}", where=f"subject {subject.name}")
            found = {site: stream.float() for site, stream in streams.items()}
            yield Captured(rows, batch.mask, batch.ids, found)
            if bar:
                bar.advance(len(rows))


def decision_tokens(
    subject: Subject, prompts: Sequence, sites: Sequence[Site], *, batch_size: int = BATCH_SIZE
) -> dict[Site, Float[Tensor, "batch d_model"]]:
    """Give each prompt's stream at its last token, where the next one is decided."""
    found: dict[Site, dict[int, Tensor]] = {site: {} for site in sites}
    for batch in capture_batches(subject, prompts, sites, batch_size=batch_size):
        for site, stream in batch.streams.items():
            for k, row in enumerate(batch.rows):
                found[site][row] = stream[k, -1].clone()
    return {site: torch.stack([rows[k] for k in range(len(prompts))]) for site, rows in found.items()}
