"""What is known about one feature: a label that is a hypothesis, how often it fires, where, and what it writes.

Example:
    >>> b.feature("resid.2", 843).card()
"""

from __future__ import annotations

import itertools

import numpy as np
import traitlets

from workbench.bench.corpus import corpus_of, readings
from workbench.bench.feature import Feature
from workbench.core.errors import InputError
from workbench.features.card import Example, LogitEffects, Profile, logit_effects, profile
from workbench.widgets.base import View
from workbench.widgets.markup import Markup, bar, div, element, join, number, panel, percent, span, tokens, visible

_LONGEST_LABEL = 200


class FeatureCard(View):
    """A feature's label, statistics, examples and logit effects, computed on the bench's worker.

    Attributes:
        data: `stats`, `histogram`, `logits` and `examples`; empty until they are computed.
        values: float32 activations of all examples one after another, as bytes; examples carry their offset.
    """

    kind = "feature_card"

    data = traitlets.Dict(read_only=True).tag(sync=True)
    values = traitlets.Bytes(b"", read_only=True).tag(sync=True)

    def __init__(
        self, feature: Feature, *, documents: list[str] | None = None, n_top: int = 5, n_random: int = 5, seed: int = 0
    ):
        dictionary, labels = feature.dictionary, feature.labels
        self._feature, self._documents = feature, documents
        self._options = {"n_top": n_top, "n_random": n_random, "seed": seed}
        super().__init__(
            subject=feature.bench.subject.name,
            feature={"dictionary": dictionary.id, "index": feature.index},
            kind=f"{dictionary.architecture} {dictionary.kind}, {dictionary.d_dict} features",
            label=labels[-1]["text"] if labels else "",
            **self._options,
        )
        self.set_trait("computing", True)
        work = feature.bench.worker.submit(self._measure, key=(self.model_id, "card"))
        self._when_done(work, lambda found: self._drawn(*found))
        self._work = work

    def label(self, text: str) -> "FeatureCard":
        """Write down what this feature is believed to mean.

        Raises:
            InputError: The label is empty or too long.
        """
        if not 0 < len(text.strip()) <= _LONGEST_LABEL:
            raise InputError(f"a hypothesis has 1 to {_LONGEST_LABEL} characters, got {len(text.strip())}")
        self._feature.label(text.strip())
        self._change(label=text.strip())
        return self

    def wait(self, seconds: float | int | None = None) -> "FeatureCard":
        """Wait until the card is computed."""
        self._settle(self._work, seconds)
        return self

    def code(self) -> str:
        """Give Python that rebuilds this card."""
        feature, given = self.spec["feature"], "" if self._documents is None else "documents=documents"
        defaults = {"n_top": 5, "n_random": 5, "seed": 0}
        changed = [f"{name}={value}" for name, value in self._options.items() if value != defaults[name]]
        options = ", ".join(filter(None, [given, *changed]))
        return f"b.feature({feature['dictionary']!r}, {feature['index']}).card({options})"

    def body(self) -> Markup:
        """Give the card without script."""
        spec = self.spec
        title = join(
            [
                "Feature ",
                element("span", {"class": "wb-mono"}, f"{spec['feature']['dictionary']} / {spec['feature']['index']}"),
            ]
        )
        label = (
            element("span", {"class": "wb-hypothesis"}, visible(spec["label"]))
            if spec["label"]
            else "no hypothesis yet"
        )
        top = element("div", {"class": "wb-row"}, element("span", {"class": "wb-caption"}, "Hypothesis"), label)
        content = [_facts(self.data), *self._examples()] if self.data else [element("p", {}, "not computed yet")]
        return panel("card", title, f"{spec['subject']} · {spec['kind']}", top, *content, error=self.error)

    def _measure(self) -> tuple[Profile, LogitEffects]:
        feature, subject = self._feature, self._feature.bench.subject
        read = readings(subject, corpus_of(subject, self._documents))
        found = profile(read, feature.dictionary, feature.index, **self._options)
        return found, logit_effects(subject, feature.dictionary, feature.index)

    def _drawn(self, found: Profile, effects: LogitEffects) -> None:
        offset = itertools.accumulate((len(e.tokens) for e in (*found.top, *found.random)), initial=0)
        shown = {name: [_row(e, next(offset)) for e in getattr(found, name)] for name in ("top", "random")}
        flat = [value for example in (*found.top, *found.random) for value in example.values]
        self._fail(None)
        self.set_trait("values", np.asarray(flat, dtype="<f4").tobytes())
        self.set_trait(
            "data",
            {
                "stats": {
                    "corpus": found.corpus, "n_documents": found.n_documents, "n_tokens": found.n_tokens,
                    "n_active": found.n_active, "density": found.density, "max": found.max,
                    "mean_active": found.mean_active,
                },
                "histogram": {"edges": list(found.edges), "counts": list(found.counts)},
                "logits": {
                    "promoted": [list(one) for one in effects.promoted],
                    "suppressed": [list(one) for one in effects.suppressed],
                    "meaning": effects.meaning,
                },
                "examples": shown,
            },
        )  # fmt: skip
        self.set_trait("computing", False)

    def _examples(self) -> list[Markup]:
        values, parts = np.frombuffer(self.values, dtype="<f4"), []
        titles = {"top": "Where it fires most", "random": "Documents drawn at random among those where it fires"}
        for name, title in titles.items():
            rows = self.data["examples"][name]
            if not rows:
                continue
            lines = [
                element(
                    "div",
                    {"class": "wb-example"},
                    element("span", {"class": "wb-num"}, number(row["max"])),
                    tokens(
                        row["tokens"],
                        values[row["offset"] : row["offset"] + len(row["tokens"])].tolist(),
                        largest=self.data["stats"]["max"],
                        special=row["special"],
                        small=True,
                    ),
                )
                for row in rows
            ]
            parts.append(element("div", {"class": "wb-examples"}, div("wb-sub", title), *lines))
        return parts

    def _command_label(self, text: object) -> None:
        self.label(str(text))


def _row(example: Example, offset: int) -> dict:
    row = {"tokens": list(example.tokens), "special": list(example.special), "max": example.max}
    return {**row, "document": example.document, "offset": offset}


def _facts(data: dict) -> Markup:
    stats, logits = data["stats"], data["logits"]
    counted = f"{stats['n_active']} of {stats['n_tokens']} tokens, special ones left out"

    def fact(name: str, value: str, detail: str = "") -> Markup:
        return div("wb-stat", span("wb-caption", name), element("b", {}, value), element("small", {}, detail))

    peak = max((abs(value) for _, value in [*logits["promoted"], *logits["suppressed"]]), default=0) or 1.0

    def effects(title: str, rows: list, kind: str) -> Markup:
        lines = [
            element(
                "div",
                {"class": "wb-effect"},
                element("span", {"class": "wb-tok wb-plain"}, visible(text)),
                bar(abs(value) / peak, kind),
                element("span", {"class": "wb-num"}, number(value)),
            )
            for text, value in rows
        ]
        return element("div", {"class": "wb-effects"}, div("wb-sub", title), *lines)

    return join(
        [
            element(
                "div",
                {"class": "wb-stats"},
                fact("fires on", percent(stats["density"]), counted),
                fact("max activation", number(stats["max"])),
                fact("mean where it fires", number(stats["mean_active"])),
                fact("corpus", stats["corpus"], f"{stats['n_documents']} documents"),
            ),
            element(
                "div",
                {"class": "wb-columns"},
                _histogram(data["histogram"]),
                effects("writes toward", logits["promoted"], "wb-up"),
                effects("writes away from", logits["suppressed"], "wb-down"),
            ),
            element("p", {"class": "wb-caption"}, logits["meaning"]),
        ]
    )


def _histogram(bins: dict) -> Markup:
    counts = bins["counts"]
    if not counts:
        return element("p", {"class": "wb-caption"}, "it never fires on this corpus")
    width, most = 100 / len(counts), max(counts)
    rects = []
    for k, n in enumerate(counts):
        height = max(0.8, (n / most) ** 0.5 * 32) if n else 0
        box = {"x": f"{k * width + 0.4:.2f}", "y": f"{32 - height:.2f}", "width": f"{width - 0.8:.2f}"}
        told = f"{number(bins['edges'][k])} to {number(bins['edges'][k + 1])}: {n} tokens"
        rects.append(
            element("rect", {**box, "height": f"{height:.2f}", "class": "wb-fill"}, element("title", {}, told))
        )
    picture = element("svg", {"viewBox": "0 0 100 32", "preserveAspectRatio": "none", "role": "img"}, *rects)
    ends = ["0", "activation where it fires (√ count)", number(bins["edges"][-1])]
    return element(
        "figure", {"class": "wb-histogram"}, picture, element("figcaption", {}, *(element("span", {}, e) for e in ends))
    )
