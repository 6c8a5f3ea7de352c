"""The change that edits make to one site, from the edited rows alone.

Every edit is a signed coefficient per token times one fixed row, so all edits of a site are one matrix of coefficients
and one matrix of rows: change = K·W, ‖change of edit e‖ = |K_e|·‖W_e‖. A splice through the whole dictionary gives the
same stream and costs thousands of times more; the dictionary's error term never enters. All of it is float32, whatever
the model's precision: a clamp computed in bfloat16 flips 0.08 % of JumpReLU gates and triples the error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.interventions.edits import Edit
from workbench.interventions.firings import Counters, Firing
from workbench.interventions.operations import CHANGES, FIRES, ON_PROJECTION
from workbench.interventions.positions import Tokens
from workbench.interventions.targets import DirectionTarget, Target
from workbench.models.rows import FeatureRows
from workbench.models.sites import Site

Scores = Float[Tensor, "batch pos n"]
TINY = torch.finfo(torch.float32).tiny
_ROW_TENSORS = ("W_enc", "b_enc", "W_dec", "threshold", "r_mag", "b_gate", "b_mag")


def stack_rows(rows: Sequence[FeatureRows]) -> FeatureRows:
    """Put single features of one dictionary beside each other."""
    first = rows[0]
    if len(rows) == 1:
        return first
    stacked = {
        name: torch.cat([getattr(one, name) for one in rows], dim=1 if name == "W_enc" else 0)
        for name in _ROW_TENSORS
        if getattr(first, name) is not None
    }
    return dataclasses.replace(first, index=tuple(i for one in rows for i in one.index), **stacked)


class Reader:
    """Reads the activations or projections of several targets in as few products as their dictionaries allow.

    Args:
        targets: What to read, in the order of the result.
        projected: For each, whether a feature's write row is projected on instead of its encoder being asked.
        device: Where the streams live.
    """

    def __init__(self, targets: Sequence[Target], projected: Sequence[bool], device: torch.device):
        groups: dict[tuple, list[int]] = {}
        for number, (target, project) in enumerate(zip(targets, projected, strict=True)):
            groups.setdefault(_group(target, project), []).append(number)
        self._device = device
        self._features: list[tuple[Site, FeatureRows]] = []
        self._directions: list[tuple[Site, Float[Tensor, "d_model n"]]] = []
        order: list[int] = []
        for key, members in sorted(groups.items(), key=lambda item: item[0][0] != "rows"):
            if key[0] == "rows":
                rows = stack_rows([targets[n].rows for n in members])
                self._features.append((key[2], rows.to(device)))
            else:
                units = torch.stack([_unit(targets[n]) for n in members], dim=1)
                self._directions.append((key[1], units.to(device)))
            order += members
        inverse = torch.tensor(order, device=device).argsort()
        self._inverse = None if order == sorted(order) else inverse
        self._scaled = any(rows.scaling != "none" for _, rows in self._features)

    def __call__(self, streams: dict[Site, Float[Tensor, "batch pos _"]]) -> tuple[Scores, Scores | None]:
        """Give the scores, and the factors that scale their changes (none where all are 1).

        Args:
            streams: The unedited stream of each site that is read, float32.
        """
        scores = [rows.encode(streams[site].to(self._device)) for site, rows in self._features]
        scores += [streams[site].to(self._device) @ units for site, units in self._directions]
        found = scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1)
        factors = None
        if self._scaled:
            read = zip(self._features, scores, strict=False)
            parts = [rows.scale(streams[site].to(self._device)).expand_as(score) for (site, rows), score in read]
            parts += [torch.ones_like(score) for score in scores[len(parts) :]]
            factors = torch.cat(parts, dim=-1)
        if self._inverse is not None:
            found = found[..., self._inverse]
            factors = None if factors is None else factors[..., self._inverse]
        return found, factors


class _Entry(NamedTuple):
    """What one call leaves to be counted later: a few numbers per token."""

    k: Scores
    norm: Float[Tensor, "batch pos 1"]
    scores: Scores | None
    gates: Float[Tensor, "batch pos n_gates"] | None
    chosen: Bool[Tensor, "batch pos _"] | None

    def chosen_rows(self, n: int, device: torch.device) -> Bool[Tensor, "tokens n"]:
        """Give the chosen tokens of each edit, rows one after the other."""
        if self.chosen is None:
            return torch.ones(self.norm.numel(), n, dtype=torch.bool, device=device)
        return self.chosen.expand(*self.chosen.shape[:2], n).flatten(0, 1)


class SiteDelta:
    """All edits of one site, ready to be applied to its stream, with their counters.

    Args:
        edits: Edits that write this site.
        device: Where the stream lives.
    """

    def __init__(self, edits: Sequence[Edit], device: torch.device):
        order = sorted(range(len(edits)), key=lambda n: edits[n].op)
        self._device = device
        self.edits, self.order = [edits[n] for n in order], order
        ops = [one.op for one in self.edits]
        self._ops = [(op, ops.index(op), ops.index(op) + ops.count(op)) for op in dict.fromkeys(ops)]
        self._rows = torch.stack([_write_row(one) for one in self.edits]).to(device)
        self._norms = self._rows.norm(dim=-1)
        self._values = torch.tensor([one.value or 0.0 for one in self.edits], device=device)
        raw = [one.op == "add" and isinstance(one.target, DirectionTarget) for one in self.edits]
        self._reader = (
            None
            if all(raw)
            else Reader([one.target for one in self.edits], [one.op in ON_PROJECTION for one in self.edits], device)
        )
        self._gated = [n for n, one in enumerate(self.edits) if one.gate is not None]
        if self._gated:
            gates = [self.edits[n].gate for n in self._gated]
            self._gate_reader = Reader([gate.target for gate in gates], [False] * len(gates), device)
            self._signs = torch.tensor([1.0 if gate.above else -1.0 for gate in gates], device=device)
            self._thresholds = self._signs * torch.tensor([gate.threshold for gate in gates], device=device)
        limits = [float("inf") if one.max_ratio is None else one.max_ratio for one in self.edits]
        self._limits = torch.tensor(limits, device=device) if min(limits) < float("inf") else None
        self._kinds = [one.positions for one in self.edits]
        self._one_kind = len(set(self._kinds)) == 1
        self._every = list(range(len(edits)))
        self._entries: list[_Entry] = []
        self._pending = 0
        self._conditional = any(op in FIRES for op in ops)
        self.counters = Counters(len(edits), device)

    def __call__(
        self, x: Float[Tensor, "batch pos d_out"], streams: dict[Site, Float[Tensor, "batch pos _"]], tokens: Tokens
    ) -> Float[Tensor, "batch pos d_out"] | None:
        """Give the change of the stream, or nothing where no token is chosen.

        Args:
            x: The unedited stream of the site that is written, float32.
            streams: The unedited streams of all sites that are read, float32.
            tokens: The tokens of this forward pass.
        """
        chosen, counts = self._chosen(tokens)
        self.counters.select(counts)
        if not any(counts):
            return None
        scores, factors = (None, None) if self._reader is None else self._reader(streams)
        gates = self._gate_reader(streams)[0] if self._gated else None
        allowed = chosen if gates is None else self._open(gates, chosen)
        k = self._values.expand(*x.shape[:2], -1) if scores is None else self._changes(scores)
        if factors is not None:
            k = k * factors
        if allowed is not None:
            k = torch.where(allowed, k, 0.0)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        if self._limits is not None:
            longest = self._limits * norm.clamp_min(TINY)
            k = k * (longest / (k.abs() * self._norms).clamp_min(TINY)).clamp(max=1.0)
        self._log(_Entry(k, norm, scores, gates, chosen))
        return k @ self._rows

    def _chosen(self, tokens: Tokens) -> tuple[Bool[Tensor, "batch pos n"] | None, list[int]]:
        """Give the tokens in each edit's positions, nothing where those are all, and their numbers."""
        kinds = self._kinds[:1] if self._one_kind else self._kinds
        found = [tokens.mask(kind) for kind in kinds]
        counts = [count for _, count in found] * (len(self._kinds) // len(kinds))
        if all(mask is None for mask, _ in found):
            return None, counts
        masks = [torch.ones(tokens.shape, dtype=torch.bool) if mask is None else mask for mask, _ in found]
        return torch.stack(masks, dim=-1).to(self._device), counts

    def _open(self, gates: Float[Tensor, "*b n_gates"], chosen: Bool[Tensor, "*b _"] | None) -> Bool[Tensor, "*b n"]:
        """Give the tokens that each edit is let at."""
        # below is above, both negated
        opened = gates * self._signs > self._thresholds
        if self._gated != self._every:
            partly = opened
            opened = torch.ones(*gates.shape[:-1], len(self.edits), dtype=torch.bool, device=self._device)
            opened[..., self._gated] = partly
        return opened if chosen is None else opened & chosen

    def _changes(self, scores: Scores) -> Scores:
        if len(self._ops) == 1:
            return CHANGES[self._ops[0][0]](scores, self._values)
        parts = [CHANGES[op](scores[..., a:b], self._values[a:b]) for op, a, b in self._ops]
        return torch.cat(parts, dim=-1)

    def _log(self, entry: _Entry) -> None:
        """Keep what is to be counted: counting it at each decode step would cost more than the edit."""
        self._entries.append(entry)
        self._pending += entry.norm.numel()
        if len(self._entries) >= 256 or self._pending >= 2**16:
            self._fold()

    @torch.no_grad()
    def _fold(self) -> None:
        if not self._entries:
            return
        every, self._entries, self._pending = self._entries, [], 0
        n = len(self.edits)
        k, norm = (torch.cat([getattr(one, name).flatten(0, 1) for one in every]) for name in ("k", "norm"))
        if all(one.chosen is None for one in every):
            chosen = torch.ones(len(k), n, dtype=torch.bool, device=self._device)
        else:
            chosen = torch.cat([one.chosen_rows(n, self._device) for one in every])
        allowed, best = chosen, None
        if self._gated:
            gates = torch.cat([one.gates.flatten(0, 1) for one in every])  # type: ignore[union-attr]
            allowed = self._open(gates, chosen)
            best = torch.where(chosen[:, self._gated], gates * self._signs, -torch.inf).amax(0)
        touched, seen = allowed, None
        if self._conditional:
            scores = torch.cat([one.scores.flatten(0, 1) for one in every])  # type: ignore[union-attr]
            fires = [
                FIRES[op](scores[:, a:b], self._values[a:b]) if op in FIRES else torch.ones_like(allowed[:, a:b])
                for op, a, b in self._ops
            ]
            touched = allowed & torch.cat(fires, dim=-1)
            seen = torch.where(allowed, scores, -torch.inf).amax(0)
        ratio = k.abs() * self._norms / norm.clamp_min(TINY)
        self.counters.add(allowed, touched, ratio, seen)
        if best is not None:
            self.counters.see_gates(self._gated, best)

    def firings(self) -> dict[int, Firing]:
        """Give what each edit did so far, by its number among the edits that were given."""
        self._fold()
        return dict(zip(self.order, self.counters.read(self.edits), strict=True))


def _group(target: Target, project: bool) -> tuple:
    """Give what targets must share to be read in one product."""
    if isinstance(target, DirectionTarget):
        return "units", target.site
    if project:
        return "units", target.write
    rows = target.rows
    b_in = None if rows.b_in is None else rows.b_in.cpu().numpy().tobytes()
    return "rows", target.dictionary_id, target.read, rows.activation, rows.scaling, rows.rescale, b_in


def _unit(target: Target) -> Float[Tensor, " d_model"]:
    return target.read_unit if isinstance(target, DirectionTarget) else target.write_row / target.write_row.norm()


def _write_row(edit: Edit) -> Float[Tensor, " d_model"]:
    target = edit.target
    if isinstance(target, DirectionTarget):
        return target.write if edit.op == "add" else target.write_row
    return _unit(target) if edit.op in ON_PROJECTION else target.write_row
