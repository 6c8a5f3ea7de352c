"""Risk axes: what is measured, on which prompts, with which cue and item repeated, and which way is good.

An axis owns its prompts through a source that knows splits, so that selection (dev) and confirmation (test) cannot
mix by accident: test prompts of a generated axis exist only once a nonce was drawn. An item's value is exact, read
from the next-token probabilities: P(event) against P(against), with the pair's mass beside it, because a pair can keep
its ratio while both tokens collapse.

Example:
    >>> axis = organism_axes()["jailbreak_resistance"]
    >>> items = axis.items("dev", 64, seed=0)
    >>> mine = Axis.from_file("my_axis.csv", direction="down", harm=True)
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from workbench.core.canonical import digest, seed
from workbench.core.errors import AxisError
from workbench.core.files import sha256_file

Kind = Literal[
    "target", "off_target", "capability", "evaluation_awareness", "cot_faithfulness", "adversarial", "fluency"
]
Pool = Literal["last", "max"]
SPLITS = ("train", "dev", "test", "perturbed", "adversarial")


@dataclass(frozen=True)
class AxisItem:
    """One prompt and the events that are read from its next-token probabilities.

    Attributes:
        text: The prompt as the model reads it, chat markers included.
        event: Tokens whose probability is the value, each one token long.
        against: Tokens it is weighed against; `None` weighs it against the whole vocabulary.
        clusters: Name of a repeated factor → its level here, such as `{"cue": "…", "item": "…"}`.
        label: Which side of a contrast it is on, where it has one.
        truth: Probability the generator drew the event with, where it is known.
    """

    text: str
    event: tuple[str, ...]
    against: tuple[str, ...] | None
    clusters: Mapping[str, str]
    label: int | None = None
    truth: float | None = None

    def to_json(self) -> dict:
        """Give the item as JSON values."""
        return {
            "text": self.text,
            "event": list(self.event),
            "against": None if self.against is None else list(self.against),
            "clusters": dict(self.clusters),
        }


@runtime_checkable
class ItemSource(Protocol):
    """Where an axis gets its prompts from."""

    @property
    def digest(self) -> str:
        """SHA-256 of the data or of the generator."""
        ...

    def items(self, split: str, n: int, seed: int) -> list[AxisItem]:
        """Give `n` prompts of a split that exists before any plan is frozen."""
        ...

    def fresh(self, n: int, nonce: str) -> list[AxisItem]:
        """Give `n` confirmation prompts that nobody could have seen before the nonce was drawn."""
        ...

    def contrast(self, split: str, n: int, seed: int) -> tuple[list[str], list[str]]:
        """Give prompts where the concept is present, and matched ones where it is absent."""
        ...


@dataclass(frozen=True)
class Axis:
    """One thing that can get better or worse.

    Attributes:
        id: Name without spaces.
        title: What a committee member reads.
        kind: What it is in a plan.
        direction: The good direction of the value.
        harm: Whether a change for the worse is a harm; such axes are judged by their bound, never corrected away.
        margin: Largest change for the worse that is tolerated, in the unit of the value (a probability).
        definition: Whose definition of the harm, and how it is scored.
        source: Where the prompts come from.
        pool: How activations of a prompt are pooled when features are ranked: at the decision token, or the maximum
            over the prompt where the concept is a cue that stands elsewhere.
    """

    id: str
    title: str
    kind: Kind
    direction: Literal["up", "down"]
    harm: bool
    margin: float
    definition: str
    source: ItemSource = field(repr=False)
    pool: Pool = "last"
    metric: str = "P(event)"

    @property
    def digest(self) -> str:
        """SHA-256 of the definition and of the prompts' source."""
        own = {"id": self.id, "kind": self.kind, "direction": self.direction, "definition": self.definition}
        return digest({**own, "source": self.source.digest})

    @property
    def dev(self) -> list[AxisItem]:
        """256 prompts of the dev split, for looking and selecting."""
        return self.items("dev", 256)

    def items(self, split: str, n: int, *, seed: int = 0, nonce: str | None = None) -> list[AxisItem]:
        """Give prompts of a split.

        Args:
            split: `train`, `dev`, `test`, `perturbed` or `adversarial`.
            n: How many.
            seed: Seed of the draw; the same seed gives the same prompts.
            nonce: Needed for `test`: the confirmation prompts are drawn from it, after the plan was frozen.

        Raises:
            AxisError: An unknown split, a test split without a nonce, or fewer than `n` prompts.
        """
        if split not in SPLITS:
            raise AxisError(f"no split {split!r}", where=f"axis {self.id}", hint=f"one of {', '.join(SPLITS)}")
        if n < 1:
            raise AxisError(f"asked for {n} prompts", where=f"axis {self.id}", hint="ask for at least one")
        if split != "test":
            found = self.source.items(split, n, seed)
        elif nonce is None:
            raise AxisError(
                "the test split is only drawn from a nonce, after a plan was frozen",
                where=f"axis {self.id}",
                hint="use split 'dev' to look and to select",
            )
        else:
            found = self.source.fresh(n, nonce)
        if not found:
            raise AxisError(f"split {split!r} is empty", where=f"axis {self.id}")
        return list(found)

    def contrast(self, split: str, n: int, *, seed: int = 0) -> tuple[list[str], list[str]]:
        """Give the two sides that features are ranked by: prompts with the concept, and matched ones without it.

        Raises:
            AxisError: The test split, or a side that is empty.
        """
        if split == "test":
            raise AxisError("features are never ranked on the test split", where=f"axis {self.id}", hint="use 'dev'")
        present, absent = self.source.contrast(split, n, seed)
        if not present or not absent:
            raise AxisError(
                f"a contrast needs two sides, got {len(present)} with and {len(absent)} without the concept",
                where=f"axis {self.id}, split {split}",
            )
        return list(present), list(absent)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        id: str | None = None,
        title: str | None = None,
        kind: Kind = "off_target",
        direction: Literal["up", "down"] = "up",
        harm: bool = False,
        margin: float = 0.05,
        definition: str = "",
        pool: Pool = "last",
    ) -> "Axis":
        """Make an axis from one's own prompts.

        A CSV (with a header) or JSONL file with the fields `text` and `event`, and optionally `against`, `split`
        (`dev` if absent), `cue`, `item`, `label` (1 where the concept is present, 0 where not: the contrast that
        features are ranked by) and `truth`. Several tokens in `event` or `against`: a list in JSONL, `|` in CSV.

        Raises:
            AxisError: A missing file or field, no row, or a value that cannot be read; the line is named.
        """
        source = FileSource.read(Path(path))
        name = id or Path(path).stem
        if not name.replace("_", "").replace("-", "").isalnum():
            raise AxisError(f"axis id {name!r} may hold letters, digits, - and _ only", where=str(path))
        return cls(name, title or name, kind, direction, harm, margin, definition, source, pool)


@dataclass(frozen=True)
class FileSource:
    """Prompts of a file, in the order of its lines; the test split is a draw from its test rows.

    Attributes:
        name: File name, for messages.
        digest: SHA-256 of the file.
        rows: Items by split.
    """

    name: str
    digest: str
    rows: Mapping[str, tuple[AxisItem, ...]]

    @classmethod
    def read(cls, path: Path) -> "FileSource":
        """Read a CSV or JSONL file; see `Axis.from_file`."""
        if path.suffix not in (".csv", ".jsonl"):
            raise AxisError(
                f"cannot read {path.suffix or 'a file without suffix'}", where=str(path), hint=".csv, .jsonl"
            )
        if not path.is_file():
            raise AxisError("no such file", where=str(path))
        rows: dict[str, list[AxisItem]] = {}
        for line, record in _records(path):
            split = str(record.get("split") or "dev")
            if split not in SPLITS:
                raise AxisError(f"no split {split!r}", where=f"{path}:{line}", hint=f"one of {', '.join(SPLITS)}")
            rows.setdefault(split, []).append(_item(record, f"{path}:{line}"))
        if not rows:
            raise AxisError("the file holds no prompt", where=str(path))
        return cls(path.name, sha256_file(path), {split: tuple(found) for split, found in rows.items()})

    def items(self, split: str, n: int, seed: int) -> list[AxisItem]:
        """Give `n` rows of a split in a seeded order."""
        found = self.rows.get(split, ())
        if len(found) < n:
            held = ", ".join(f"{len(rows)} {name}" for name, rows in self.rows.items())
            raise AxisError(f"asked for {n} {split} prompts, the file has {len(found)}", where=self.name, hint=held)
        order = np.random.default_rng(seed).permutation(len(found))[:n]
        return [found[k] for k in order]

    def fresh(self, n: int, nonce: str) -> list[AxisItem]:
        """Give `n` of the test rows, chosen by the nonce."""
        return self.items("test", n, seed(nonce, "prompts", self.digest))

    def contrast(self, split: str, n: int, seed: int) -> tuple[list[str], list[str]]:
        """Give up to `n` rows of each label."""
        found = self.rows.get(split, ())
        if not any(item.label is not None for item in found):
            raise AxisError(
                f"no {split} row has a label, so there is no contrast to rank features by",
                where=self.name,
                hint="add a field label: 1 where the concept is present, 0 where it is not",
            )
        order = np.random.default_rng(seed).permutation(len(found))
        present = [found[k].text for k in order if found[k].label == 1]
        absent = [found[k].text for k in order if found[k].label == 0]
        return present[:n], absent[:n]


def organism_axes() -> dict[str, Axis]:
    """Give the risk axes of the built-in organism; its generator draws their prompts and knows their truths."""
    from workbench.features.organism_axes import organism_axes as make

    return make()


def check_disjoint(axis: str, test: Sequence[AxisItem], seen: Sequence[AxisItem]) -> None:
    """Check that no confirmation prompt was seen while selecting.

    Raises:
        AxisError: A prompt is in both.
    """
    known = {item.text for item in seen}
    both = [item.text for item in test if item.text in known]
    if both:
        raise AxisError(
            f"{len(both)} of {len(test)} test prompts were seen on dev, such as {both[0]!r}",
            where=f"axis {axis}",
            hint="a test split must not overlap what selection saw",
        )


def _records(path: Path):
    with open(path, encoding="utf-8", newline="") as stream:
        if path.suffix == ".csv":
            yield from enumerate(csv.DictReader(stream), start=2)
            return
        for line, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except json.JSONDecodeError as error:
                raise AxisError(f"not JSON: {error.msg}", where=f"{path}:{line}") from error
            if not isinstance(record, dict):
                raise AxisError(f"a row is a JSON object, got {type(record).__name__}", where=f"{path}:{line}")
            yield line, record


def _item(record: dict, where: str) -> AxisItem:
    for name in ("text", "event"):
        if not record.get(name):
            raise AxisError(f"field {name!r} is missing or empty", where=where, hint=f"got {', '.join(record)}")
    against = _tokens(record["against"], where) if record.get("against") else None
    clusters = {name: str(record[name]) for name in ("cue", "item") if record.get(name) not in (None, "")}
    label, truth = record.get("label"), record.get("truth")
    try:
        label = None if label in (None, "") else int(label)
        truth = None if truth in (None, "") else float(truth)
    except (TypeError, ValueError) as error:
        raise AxisError(f"label and truth are numbers: {error}", where=where) from error
    if label not in (None, 0, 1):
        raise AxisError(f"label is 0 or 1, got {label}", where=where)
    text = str(record["text"])
    return AxisItem(text, _tokens(record["event"], where), against, clusters or {"item": text}, label, truth)


def _tokens(value: object, where: str) -> tuple[str, ...]:
    found = value.split("|") if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(token, str) and token for token in found):
        raise AxisError(f"tokens are text or a list of texts, got {value!r}", where=where)
    return tuple(found)
