"""Running a subject under edits, on its own Hugging Face modules, exactly and visibly.

Hooks on the modules that plain `transformers` runs are the only place edits are applied, so what was measured in a
notebook is what production applies, bit for bit. Where a run ends, the model is what it was before, bit for bit,
also after an exception, and an edit that touched no token is an error.

Example:
    >>> with Runtime(subject, edits, prompt_len=batch.prompt_len) as run:
    ...     subject.logits(batch)
    >>> run.firings[0].touched
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.core.errors import EditError, FiringError
from workbench.interventions.delta import SiteDelta
from workbench.interventions.edits import Edit, Edits
from workbench.interventions.firings import Firing, check_fired
from workbench.interventions.positions import Tokens, read_tokens
from workbench.interventions.targets import DirectionTarget, Target, read_site
from workbench.models.sites import Site
from workbench.models.subject import Subject

_ACTIVE: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
"""Models that a runtime is on, with what it does there."""


class Runtime(AbstractContextManager):
    """Applies edits to every forward pass of a subject inside a `with` block, in the thread that entered it.

    Args:
        subject: The model.
        edits: What to change; none is a no-op, bit for bit.
        prompt_len: Real prompt tokens per row. Absent, all tokens of a pass without cached ones are prompt. May be
            set anew between passes.
        allow_idle: Accept that an edit touches no token.

    Attributes:
        edits: What is changed.
        prompt_len: See above.

    Raises:
        EditError: A target does not fit the subject, or a runtime is on this model already.
        SiteError: A site that the subject does not have.
        FiringError: At the end of the block, where an edit touched no token.
    """

    def __init__(
        self,
        subject: Subject,
        edits: Edits,
        *,
        prompt_len: Int[Tensor, " batch"] | None = None,
        allow_idle: bool = False,
    ):
        for edit in edits:
            check_fit(subject, edit)
        self.subject, self.edits, self.prompt_len, self.allow_idle = subject, edits, prompt_len, allow_idle
        self._special = np.zeros(subject.n_vocab, dtype=bool)
        self._special[[one for one in subject.special_ids if one < subject.n_vocab]] = True
        self._by_site = {site: [n for n, one in enumerate(edits) if one.site == site] for site in edits.sites}
        self._deltas: dict[Site, SiteDelta] = {}
        self._needs = {
            site: frozenset(one for n in numbers for one in edits.items[n].reads)
            for site, numbers in self._by_site.items()
        }
        self._streams: dict[Site, Tensor] = {}
        self._tokens: Tokens | None = None
        self._first_len: Int[np.ndarray, " rows"] | None = None
        self._handles: list[Any] = []
        self._thread: int | None = None

    def __enter__(self) -> Runtime:
        model = self.subject.model
        if model in _ACTIVE:
            raise EditError(
                f"edits are on this model already: {_ACTIVE[model]}",
                where=f"subject {self.subject.name}",
                hint="compose them: Runtime(subject, first + second)",
            )
        if self._thread is not None:
            raise EditError("a runtime is used once", hint="make a new Runtime, its counters start at zero")
        self._thread = threading.get_ident()
        if not self.edits:
            return self
        _ACTIVE[model] = self.edits.describe()["sentence"]
        try:
            self._install()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()
        if kind is None and not self.allow_idle:
            check_fired(self.edits.items, self.firings)

    @property
    def firings(self) -> tuple[Firing, ...]:
        """What each edit did so far, in the order of the edits."""
        found: dict[int, Firing] = {}
        for site, numbers in self._by_site.items():
            if site in self._deltas:
                found |= {numbers[k]: firing for k, firing in self._deltas[site].firings().items()}
            else:
                found |= {n: Firing(self.edits.items[n].describe()["sentence"]) for n in numbers}
        return tuple(found[n] for n in range(len(self.edits)))

    def _install(self) -> None:
        base = self.subject.model.base_model
        self._handles.append(base.register_forward_pre_hook(self._read_pass, with_kwargs=True))
        self._signature = inspect.signature(base.forward)
        modules: dict[tuple[str, str], list[Site]] = {}
        for site in self.edits.reads:
            path = self.subject.path(site)
            modules.setdefault((path.module, path.side), []).append(site)
        for (name, side), sites in modules.items():
            module = self.subject.model.get_submodule(name)
            if side == "input":
                self._handles.append(module.register_forward_pre_hook(self._input_hook(sites)))
            else:
                self._handles.append(module.register_forward_hook(self._output_hook(sites)))

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._streams.clear()
        self._tokens = None
        _ACTIVE.pop(self.subject.model, None)

    def _read_pass(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Learn where the tokens of this forward pass are, before any block runs."""
        if threading.get_ident() != self._thread:
            return
        self._streams.clear()
        given = self._signature.bind_partial(*args, **kwargs).arguments if args else kwargs
        ids, mask, cache = (given.get(name) for name in ("input_ids", "attention_mask", "past_key_values"))
        source = ids if ids is not None else given["inputs_embeds"]
        past = cache.get_seq_length() if cache is not None else 0
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise EditError("cannot tell real tokens from padding", hint="give a mask of shape [batch, tokens]")
        length = None if self.prompt_len is None else self.prompt_len.cpu().numpy()
        if length is None and past:
            if self._first_len is None or len(self._first_len) != source.shape[0]:
                raise EditError(f"{past} tokens are cached already", hint="give prompt_len to the Runtime")
            length = self._first_len
        self._tokens = read_tokens(
            ids,
            mask,
            shape=(source.shape[0], source.shape[1]),
            past=past,
            special=self._special,
            prompt_len=length,
        )
        self._first_len = self._tokens.prompt_len

    def _input_hook(self, sites: Sequence[Site]) -> Any:
        (site,) = sites
        written = [site] if site in self._by_site else []

        def hook(module: nn.Module, args: tuple) -> tuple | None:
            if threading.get_ident() != self._thread:
                return None
            if not args:
                raise EditError("the module was called without a positional argument", where=str(site))
            self._streams[site] = args[0].float()
            changed = self._change(args[0], written)
            return None if changed is None else (changed, *args[1:])

        return hook

    def _output_hook(self, sites: Sequence[Site]) -> Any:
        weights = {site: self.subject.head_weight(site).float() for site in sites if site.head is not None}
        width = self.subject.d_head
        written = [site for site in sites if site in self._by_site]

        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            if threading.get_ident() != self._thread:
                return None
            stream = output[0] if isinstance(output, tuple) else output
            for site in sites:
                if site in weights:
                    z = args[0][..., site.head * width : (site.head + 1) * width]
                    self._streams[site] = z.float() @ weights[site]
                else:
                    self._streams[site] = stream.float()
            changed = self._change(stream, written)
            if changed is None:
                return None
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    def _change(self, stream: Float[Tensor, "batch pos width"], sites: Sequence[Site]) -> Tensor | None:
        """Give the edited tensor of one module, or nothing where it stays as it is; the tensor itself is kept."""
        tokens = self._tokens
        if tokens is None:
            raise EditError("a block ran outside its model", hint="call subject.model, not a part of it")
        if stream.shape[:2] != tokens.shape:
            raise EditError(f"a module gave {list(stream.shape[:2])} tokens, the pass has {list(tokens.shape)}")
        total = None
        for site in sites:
            if site not in self._deltas:
                edits = [self.edits.items[n] for n in self._by_site[site]]
                self._deltas[site] = SiteDelta(edits, stream.device)
            delta = self._deltas[site]
            self._check_read(site)
            change = delta(self._streams[site], self._streams, tokens)
            if change is not None:
                total = change if total is None else total + change
        if total is None:
            return None
        precise = torch.promote_types(stream.dtype, torch.float32)
        return (stream.to(precise) + total).to(stream.dtype)

    def _check_read(self, site: Site) -> None:
        if not self._needs[site] <= self._streams.keys():
            missing = ", ".join(sorted(map(str, self._needs[site] - self._streams.keys())))
            raise FiringError(f"{missing} was not computed in this pass before {site}", where=str(site))


def check_fit(subject: Subject, edit: Edit) -> None:
    """Refuse an edit whose sites or widths are not the subject's.

    Raises:
        EditError: A width differs; both sides are named.
        SiteError: A site that the subject does not have.
    """
    for target in (edit.target, edit.gate.target if edit.gate else None):
        if target is not None:
            for site, width in _widths(target):
                has = subject.path(site).width
                if width != has:
                    raise EditError(
                        f"{target.name} has width {width}, {site} of subject {subject.name!r} has width {has}",
                        where=str(site),
                        hint="it was made for another model or site",
                    )


def _widths(target: Target) -> list[tuple[Site, int]]:
    if isinstance(target, DirectionTarget):
        return [(read_site(target), len(target.read))]
    return [(target.read, target.rows.W_enc.shape[0]), (target.write, target.rows.W_dec.shape[1])]
