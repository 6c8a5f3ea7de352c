"""What flows through sites while the plain model reads a batch, taken with hooks on its own modules.

Example:
    >>> with reading(subject, [Site.parse("resid.2")]) as streams:
    ...     subject.logits(batch)
    >>> streams[Site.parse("resid.2")].shape
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workbench.core.errors import SiteError
from workbench.models.sites import Site
from workbench.models.subject import Subject, TokenBatch


@contextlib.contextmanager
def reading(subject: Subject, sites: Sequence[Site]) -> Iterator[dict[Site, Tensor]]:
    """Collect each site's tensor, in the model's precision, from the forward passes inside; the last pass wins."""
    streams: dict[Site, Tensor] = {}
    handles: list[RemovableHandle] = []
    try:
        for site in dict.fromkeys(sites):
            handles.append(_listen(subject, site, streams))
        yield streams
    finally:
        for handle in handles:
            handle.remove()


def read_sites(subject: Subject, batch: TokenBatch, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Run the model on a batch and give each site's tensor `[batch, pos, width]`; padding means nothing.

    Raises:
        SiteError: The subject has no such site, or nothing flowed through it.
    """
    with reading(subject, sites) as streams:
        subject.logits(batch)
    silent = [str(site) for site in sites if site not in streams]
    if silent:
        raise SiteError(f"nothing flowed through {', '.join(silent)}", where=f"subject {subject.name!r}")
    return streams


def _listen(subject: Subject, site: Site, streams: dict[Site, Tensor]) -> RemovableHandle:
    path, module = subject.path(site), subject.module(site)
    part, weight = slice(None), None
    if path.head is not None:
        part, weight = slice(path.head * subject.d_head, (path.head + 1) * subject.d_head), subject.head_weight(site)

    def before(_: nn.Module, args: tuple, options: dict[str, Any]) -> None:
        tensor = (args[0] if args else next(iter(options.values()))).detach()[..., part]
        streams[site] = tensor if weight is None else tensor @ weight

    def after(_: nn.Module, args: tuple, output: Any) -> None:
        streams[site] = (output[0] if isinstance(output, tuple) else output).detach()

    if path.side == "input" or path.head is not None:
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)
