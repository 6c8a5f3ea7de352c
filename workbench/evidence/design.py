"""Finding a candidate by honest search: every one that was looked at is counted, on dev, by a rule stated beforehand.

A group of features is set to where the other side of the axis has them: feature i to relu(absent + a·(present −
absent)), so a = 0 is the absent side's mean and a = −1 goes as far beyond it. The search varies sites, group size, the
strength a, and whether the group acts only where a gate feature is active: the best one of a gate axis, such as one
that tells harmful requests from harmless look-alikes. What it picks is a hypothesis; how many were tried goes into the
plan, because the best of many flatters itself.

Example:
    >>> found = search(subject, dictionaries, axis, guards=others, benign=texts)
    >>> found.edits.describe()["sentence"], len(found.tried)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.core.errors import TrialError
from workbench.core.progress import CancelToken, Progress
from workbench.evidence.arms import POSITIONS
from workbench.evidence.metrics import BenignText, Prepared, measure, prepare
from workbench.features.axes import Axis, AxisItem
from workbench.features.ranking import RankedFeature, Ranking, rank
from workbench.interventions.edits import Edit, Edits
from workbench.interventions.prefix import SharedPrefix
from workbench.interventions.targets import FeatureTarget, Gate
from workbench.models.dictionary import Dictionary
from workbench.models.subject import Subject

SIZES = (1, 4, 8, 16, 32)
STRENGTHS_DOWN = (0.0, -0.5, -1.0, -2.0)
STRENGTHS_UP = (1.0, 1.5, 2.0, 3.0)
N_DEV = 96
"""Dev prompts per axis that a candidate is judged on."""
N_FINALISTS = 48
"""Most candidates whose cost on benign text and on the other axes is looked at."""
SAFETY = 0.6
"""Share of an axis's margin that a finalist may use up on dev, so that the test split has room for noise."""


@dataclass(frozen=True)
class Group:
    """One point of the search space.

    Attributes:
        dictionaries: Ids of the dictionaries whose best features are set, all at once.
        k: Features per dictionary.
        strength: The a of relu(absent + a·(present − absent)).
        gated: Whether it acts only at tokens where its dictionary's best feature of the gate axis is active.
    """

    dictionaries: tuple[str, ...]
    k: int
    strength: float
    gated: bool = False


@dataclass(frozen=True)
class Found:
    """What a search picked, and everything it looked at.

    Attributes:
        edits: The candidate.
        group: Its point of the search space.
        ranking: The ranking that its features were taken from.
        gate_ranking: The ranking that gate features were taken from.
        tried: One record per candidate, in the order tried; `chosen` marks the pick.
        rule: How it was picked.
        space: What was searched.
        benign_kl: Its mean benign KL on dev, nats per token.
        seen: Every dev prompt that was looked at.
    """

    edits: Edits
    group: Group
    ranking: Ranking
    gate_ranking: Ranking
    tried: tuple[dict, ...]
    rule: str
    space: str
    benign_kl: float
    seen: tuple[AxisItem, ...]

    @property
    def features(self) -> tuple[RankedFeature, ...]:
        """The ranked features that the candidate sets."""
        return tuple(row for name in self.group.dictionaries for row in self.ranking.top(self.group.k, dictionary=name))


def build(
    ranking: Ranking, dictionaries: Mapping[str, Dictionary], group: Group, *, gate_ranking: Ranking | None = None
) -> Edits:
    """Build the edits of one point of the search space.

    Args:
        ranking: Where the features come from, best first.
        dictionaries: Dictionaries by id.
        group: The point.
        gate_ranking: Where the gate feature comes from; the same ranking where absent.

    Raises:
        TrialError: A dictionary has fewer live features than the group needs.
    """
    items = []
    for name in group.dictionaries:
        rows = ranking.top(group.k, dictionary=name)
        if len(rows) < group.k:
            raise TrialError(f"a group of {group.k} features, the ranking has {len(rows)} live ones", where=name)
        gate = _gate(gate_ranking or ranking, dictionaries[name], name) if group.gated else None
        for row in rows:
            value = max(0.0, row.mean_absent + group.strength * (row.mean_present - row.mean_absent))
            target = FeatureTarget.of(dictionaries[name], row.index)
            items.append(Edit("set", target, round(value, 6), POSITIONS, gate=gate))
    return Edits(tuple(items))


def _gate(ranking: Ranking, dictionary: Dictionary, name: str) -> Gate:
    """Give a gate on the best feature that is more active where the concept is present, half-way between the sides."""
    for row in ranking.top(len(ranking), dictionary=name):
        if row.mean_present > row.mean_absent:
            threshold = round((row.mean_present + row.mean_absent) / 2, 6)
            return Gate(FeatureTarget.of(dictionary, row.index), threshold)
    raise TrialError("no feature is more active where the concept is present, so nothing can gate", where=name)


def search(
    subject: Subject,
    dictionaries: Mapping[str, Dictionary],
    axis: Axis,
    *,
    guards: Sequence[Axis],
    benign: Sequence[str],
    site_groups: Sequence[tuple[str, ...]] | None = None,
    sizes: Sequence[int] = SIZES,
    strengths: Sequence[float] | None = None,
    gate_axis: Axis | None = None,
    gates: Sequence[bool] = (False, True),
    kl_limit: float = 0.05,
    n_dev: int = N_DEV,
    n_rank: int = 128,
    seed: int = 0,
    cancel: CancelToken | None = None,
) -> Found:
    """Search groups of features for an edit that moves an axis the good way at little cost, on the dev split only.

    Args:
        subject: The model.
        dictionaries: Dictionaries by id.
        axis: The axis to move.
        guards: Axes that must not get worse.
        benign: Benign dev documents.
        site_groups: Dictionary ids that are edited together; each alone, neighbours, and all where absent.
        sizes: Features per dictionary.
        strengths: Values of a; where absent, the side that helps is found first and its four strengths are tried.
        gate_axis: Axis whose concept opens the gate; the searched axis itself where absent.
        gates: Ungated, gated, or both.
        kl_limit: Largest mean benign KL of a finalist, nats per token.
        n_dev: Dev prompts per axis.
        n_rank: Contrast prompts per side for the ranking.
        seed: Seed of dev prompts and ranking.
        cancel: Stops the search between candidates.

    Raises:
        TrialError: No candidate moves the axis the good way within the benign limit.
    """
    options = {"n": n_rank, "seed": seed, "n_intervals": 4 * max(sizes) * len(dictionaries), "cancel": cancel}
    ranking = rank(subject, dictionaries, axis, by="separation", **options)
    gate_ranking = ranking
    if gate_axis is not None and any(gates):
        gate_ranking = rank(subject, dictionaries, gate_axis, by="separation", **{**options, "n_intervals": 50})
    rankings = ranking, gate_ranking
    looked = _Look(subject, axis, guards, benign, rankings, dictionaries, n_dev=n_dev, seed=seed, cancel=cancel)
    groups = tuple(site_groups) if site_groups is not None else _site_groups(tuple(dictionaries))
    with Progress("searching", None, cancel=cancel) as bar:
        for names in groups:
            for gated in gates:
                for group in looked.grid(names, sizes, strengths, gated):
                    looked.gain(group)
                    bar.advance()
        best = looked.choose(kl_limit, bar)
    space = (
        f"sites {'; '.join('+'.join(names) for names in groups)}; {', '.join(map(str, sizes))} features per site; "
        f"set to relu(absent + a·(present − absent)), a from "
        f"{', '.join(f'{a:g}' for a in (strengths or (*STRENGTHS_DOWN, *STRENGTHS_UP)))}; "
        f"{' and '.join('gated' if one else 'ungated' for one in gates)}"
        f"{f' on {gate_axis.id}' if gate_axis is not None and any(gates) else ''}"
    )
    return Found(
        edits=looked.build(best),
        group=best,
        ranking=ranking,
        gate_ranking=gate_ranking,
        tried=tuple(looked.tried.values()),
        rule=_rule(axis, kl_limit, n_dev),
        space=space,
        benign_kl=looked.tried[best]["benign_kl"],
        seen=tuple(looked.seen),
    )


def _rule(axis: Axis, kl_limit: float, n_dev: int) -> str:
    return (
        f"On {n_dev} dev prompts per axis: in the order of their gain on {axis.id}, candidates with a mean benign KL "
        f"of at most {kl_limit:g} nats per token were read on every other axis, until one used less than {SAFETY:g} of "
        f"each margin; that one. If none of the first {N_FINALISTS} did, the one that exceeds them least."
    )


def _site_groups(names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    single = tuple((name,) for name in names)
    pairs = tuple(itertools.pairwise(names)) if len(names) > 2 else ()
    return (*single, *pairs, *((names,) if len(names) > 1 else ()))


class _Look:
    """The dev read-outs of a search: what was tried, what was seen, and the prefixes that are shared."""

    def __init__(
        self,
        subject: Subject,
        axis: Axis,
        guards: Sequence[Axis],
        benign: Sequence[str],
        rankings: tuple[Ranking, Ranking],
        dictionaries: Mapping[str, Dictionary],
        *,
        n_dev: int,
        seed: int,
        cancel: CancelToken | None,
    ):
        self.subject, self.axis, self.dictionaries = subject, axis, dictionaries
        self.ranking, self.gate_ranking = rankings
        self.cancel = cancel
        self.tried: dict[Group, dict] = {}
        self._known: dict[str, Group] = {}
        self.good = 1.0 if axis.direction == "up" else -1.0
        self.guards = {one.id: one for one in guards if one.id != axis.id}
        self.dev = {
            one.id: prepare(subject, one.items("dev", n_dev, seed=seed)) for one in (axis, *self.guards.values())
        }
        self.seen = [item for ready in self.dev.values() for item in ready.items]
        self.base = {name: measure(subject, ready).value for name, ready in self.dev.items()}
        self.text = BenignText(subject, benign)
        self._prefix: tuple[tuple[str, ...], SharedPrefix] | None = None

    def grid(self, names: tuple[str, ...], sizes: Sequence[int], strengths: Sequence[float] | None, gated: bool):
        """Give the groups of one set of sites; the side that helps is found with two probes."""
        if strengths is None:
            probes = [Group(names, sizes[len(sizes) // 2], a, gated) for a in (STRENGTHS_DOWN[2], STRENGTHS_UP[2])]
            gains = [self.gain(probe) for probe in probes]
            strengths = STRENGTHS_DOWN if gains[0] >= gains[1] else STRENGTHS_UP
        return [Group(names, k, a, gated) for k in sizes for a in strengths]

    def gain(self, group: Group) -> float:
        """Give the mean gain of a candidate on the axis, in the good direction, and write it down."""
        return self._tried(group)["gain"]

    def build(self, group: Group) -> Edits:
        """Build the edits of a point of the space."""
        return build(self.ranking, self.dictionaries, group, gate_ranking=self.gate_ranking)

    def _tried(self, group: Group) -> dict:
        """Give the record of a candidate; two points of the space that make the same edits are one candidate."""
        edits = self.build(group)
        first = self._known.setdefault(edits.digest(), group)
        if first not in self.tried:
            found = self._target(group.dictionaries, edits)
            self.tried[first] = {
                "dictionaries": list(group.dictionaries),
                "k": group.k,
                "strength": group.strength,
                "gated": group.gated,
                "digest": edits.digest(),
                "gain": float(self.good * (found - self.base[self.axis.id]).mean()),
                "benign_kl": None,
                "worse": None,
                "chosen": False,
            }
        return self.tried[first]

    def choose(self, kl_limit: float, bar: Progress) -> Group:
        """Read candidates in the order of their gain on benign text and on every other axis, and pick by the rule."""
        helping = [group for group, one in self.tried.items() if one["gain"] > 0]
        excess: dict[Group, float] = {}
        for group in sorted(helping, key=lambda group: -self.tried[group]["gain"]):
            one, edits = self.tried[group], self.build(group)
            one["benign_kl"] = float(self.text.cost(edits, cancel=self.cancel).kl.mean())
            bar.advance()
            if one["benign_kl"] > kl_limit:
                continue
            one["worse"] = {name: self._worse(name, edits) for name in self.guards}
            excess[group] = self._excess(one["worse"])
            if excess[group] == 0 or len(excess) == N_FINALISTS:
                break
        if not excess:
            best = max((one["gain"] for one in self.tried.values()), default=0.0)
            raise TrialError(
                f"none of {len(self.tried)} candidates moves {self.axis.id} the good way within a benign KL of "
                f"{kl_limit:g}; the largest gain at any cost was {best:+.3f}",
                hint="allow more benign cost, or give other sites, sizes or strengths",
            )
        best = min(excess, key=lambda group: (excess[group], -self.tried[group]["gain"]))
        self.tried[best]["chosen"] = True
        return best

    def _worse(self, name: str, edits: Edits) -> float:
        good = 1.0 if self.guards[name].direction == "up" else -1.0
        found = measure(self.subject, self.dev[name], edits, allow_idle=True).value
        return float(-(good * (found - self.base[name])).mean())

    def _excess(self, worse: Mapping[str, float]) -> float:
        over = [max(0.0, worse[name] / max(axis.margin, 1e-9) - SAFETY) for name, axis in self.guards.items()]
        return float(np.sum(over)) if over else 0.0

    def _target(self, names: tuple[str, ...], edits: Edits) -> np.ndarray:
        """Read the axis under an edit; the layers below these sites run once per set of sites."""
        ready: Prepared = self.dev[self.axis.id]
        if self._prefix is None or self._prefix[0] != names:
            sites = [self.dictionaries[name].read_site for name in names]
            sites += [self.dictionaries[name].write_site for name in names]
            self._prefix = names, SharedPrefix(self.subject, [list(one) for one in ready.ids], sites)
        return ready.read(self._prefix[1].last_logits(edits, allow_idle=True)).value
