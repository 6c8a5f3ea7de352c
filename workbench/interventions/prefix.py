"""Many arms on the same prompts: everything below the lowest edit is the same for all of them, so it runs once.

A trial compares a candidate with 199 controls that differ only in what they write. `SharedPrefix` runs the unedited
model once and keeps the stream where the first edit reads or writes; for each arm the blocks below are replaced by
one that hands this stream on, while the model's own forward does all the rest. So any family works that the runtime
works on, and the result is bit-equal to a full run.

Example:
    >>> shared = SharedPrefix(subject, prompts, candidate.reads)
    >>> for arm in arms:
    ...     shared.last_logits(arm)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.core.errors import EditError
from workbench.interventions.edits import Edits
from workbench.interventions.firings import Firing
from workbench.interventions.runtime import BATCH_SIZE, Runtime, run_last, sorted_batches
from workbench.models.sites import Site
from workbench.models.subject import Subject, TokenBatch


class SharedPrefix:
    """The unedited lower part of the forward passes of some prompts, kept for many arms.

    Args:
        subject: The model.
        prompts: Text, chats or token ids.
        sites: Every site that an arm will read, gate on or write: `edits.reads` of the candidate.
        batch_size: Prompts per forward pass; the same batches as `last_logits` makes.

    Attributes:
        first: First block that is run for each arm; those below are not.

    Raises:
        PromptError: No prompt, or one that is empty or too long.
        SiteError: A site that the subject does not have.
    """

    def __init__(self, subject: Subject, prompts: Sequence, sites: Iterable[Site], *, batch_size: int = BATCH_SIZE):
        self.subject = subject
        self.first = first_block(subject, sites)
        self._blocks = [subject.module(Site("resid", layer)) for layer in range(self.first)]
        self._n = len(prompts)
        self._batches = [
            (rows, batch, self._record(batch)) for rows, batch in sorted_batches(subject, prompts, batch_size)
        ]

    @torch.no_grad()
    def last_logits(
        self, edits: Edits | None = None, *, allow_idle: bool = False, firings: list[Firing] | None = None
    ) -> Float[Tensor, "n vocab"]:
        """Give what `runtime.last_logits` gives for these prompts, bit for bit; arguments as there.

        Raises:
            EditError: The edits read or write below the first block that is run.
            FiringError: An edit touched no token of any prompt.
        """
        edits = edits or Edits()
        needed = first_block(self.subject, edits.reads)
        if needed < self.first:
            raise EditError(
                f"the edits need block {needed}, this prefix runs blocks from {self.first} on",
                where=", ".join(map(str, edits.reads)),
                hint="name their sites too: SharedPrefix(subject, prompts, [*candidate.reads, *other.reads])",
            )
        found: Tensor | None = None
        with Runtime(self.subject, edits, allow_idle=allow_idle) as run:
            for rows, batch, stream in self._batches:
                run.prompt_len = batch.prompt_len
                with _skipping(self._blocks, stream):
                    last = run_last(self.subject, batch)
                found = last.new_empty(self._n, last.shape[-1]) if found is None else found
                found[rows] = last
        if firings is not None:
            firings.extend(run.firings)
        return found  # type: ignore[return-value]

    @torch.no_grad()
    def _record(self, batch: TokenBatch) -> Any:
        """Run the model and keep what its last unneeded block gave, tensor or tuple, as it is."""
        if not self._blocks:
            return None
        kept: list[Any] = []
        handle = self._blocks[-1].register_forward_hook(lambda module, args, output: kept.append(output))
        try:
            run_last(self.subject, batch)
        finally:
            handle.remove()
        return kept[0]


def first_block(subject: Subject, sites: Iterable[Site]) -> int:
    """Give the first block that edits at these sites need; a block's output can be edited without running it."""
    needed = [subject.site(site).layer + (site.kind == "resid") for site in sites]
    return min(needed, default=subject.n_layers)


@contextlib.contextmanager
def _skipping(blocks: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Let blocks give a stored output instead of computing one; their hooks still run."""
    # a `forward` of the instance shadows that of the class, and is all that has to be taken away again
    shadowed = [(block, block.__dict__.get("forward")) for block in blocks]
    try:
        for block in blocks:
            block.forward = lambda *args, **kwargs: output  # type: ignore[method-assign]
        yield
    finally:
        for block, before in shadowed:
            if before is not None:
                block.forward = before  # type: ignore[method-assign]
            else:
                block.__dict__.pop("forward", None)
