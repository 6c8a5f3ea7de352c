"""A prompt token by token, coloured by one feature; a chosen token tells which features fire there.

Example:
    >>> strip = b.tokens("how do i kill weeds?")
    >>> strip.show(b.feature("resid.2", 843)).choose(5)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import traitlets

from workbench.bench.bench import Bench
from workbench.bench.feature import Feature
from workbench.core.errors import InputError
from workbench.features.card import strongest
from workbench.models.tokens import Prompt
from workbench.widgets.base import View, code_list, prompt_document, whole
from workbench.widgets.markup import Markup, element, panel, tokens, visible


class TokenStrip(View):
    """A prompt's tokens with one feature's activations.

    Attributes:
        tokens: Token strings, in order.
        values: float32 activations of the shown feature, one per token, as bytes; empty where none is shown.
        special: Whether each token is a special one.
        found: The strongest features at the chosen token: `dictionary`, `index`, `activation`, `label`.
    """

    kind = "token_strip"

    tokens = traitlets.List(read_only=True).tag(sync=True)
    values = traitlets.Bytes(b"", read_only=True).tag(sync=True)
    special = traitlets.List(read_only=True).tag(sync=True)
    found = traitlets.List(read_only=True).tag(sync=True)

    def __init__(self, bench: Bench, prompt: Prompt):
        subject = bench.subject
        self._bench, self._prompt = bench, prompt
        self._ids = subject.encode(prompt)
        super().__init__(subject=subject.name, prompt=prompt_document(prompt), feature=None, label="", selected=-1)
        self._set_tokens(subject.token_strings(self._ids), [i in subject.special_ids for i in self._ids])
        self._closers.append(bench.on_select(self._follow))
        if bench.selected is not None:
            self.show(bench.selected)

    @classmethod
    def of(cls, pieces: Sequence[str], values: Sequence[float | int] = ()) -> "TokenStrip":
        """Show tokens and values from anywhere, without a bench.

        Raises:
            InputError: There are not as many values as tokens.
        """
        if len(values) not in (0, len(pieces)):
            raise InputError(f"{len(pieces)} tokens need as many values, got {len(values)}")
        strip = cls.__new__(cls)
        strip._bench = strip._prompt = None
        View.__init__(strip, subject="", prompt=None, feature=None, label="", selected=-1)
        strip._set_tokens(list(pieces), [False] * len(pieces))
        strip.set_trait("values", np.asarray(values, dtype="<f4").tobytes())
        return strip

    def show(self, feature: Feature) -> "TokenStrip":
        """Colour the tokens by a feature's activation, computed on the bench's worker."""
        shown = {"dictionary": feature.dictionary.id, "index": feature.index}
        label = feature.labels[-1]["text"] if feature.labels else ""
        self._change(feature=shown, label=label)

        def drawn(result: Any) -> None:
            if self.spec["feature"] == shown:
                self._fail(None)
                self.set_trait("values", np.asarray(result[1], dtype="<f4").tobytes())

        self._when_done(self._submit("show", feature.activations, self._prompt), drawn)
        return self

    def choose(self, index: int) -> "TokenStrip":
        """Choose a token and look up which features fire there.

        Raises:
            InputError: There is no such token.
        """
        whole(index, "token", 0, len(self.tokens) - 1)
        self._change(selected=index)
        if self._bench is None:
            return self
        residual = {n: d for n, d in self._bench.dictionaries.items() if d.read_site.kind == "resid"}
        looked = residual or self._bench.dictionaries
        self.set_trait("computing", True)

        def listed(rows: list[dict]) -> None:
            labels = self._labels()
            named = [{**row, "label": labels.get((row["dictionary"], row["index"]), "")} for row in rows]
            if self.spec["selected"] == index:
                self._fail(None)
                self.set_trait("found", named)
                self.set_trait("computing", False)

        self._when_done(self._submit("choose", strongest, self._bench.subject, looked, self._ids, index), listed)
        return self

    def code(self) -> str:
        """Give Python that rebuilds this strip."""
        if self._bench is None:
            values = np.frombuffer(self.values, dtype="<f4").tolist()
            return f"TokenStrip.of({self.tokens!r}, {values!r})"
        code = f"b.tokens({code_list(self.spec['prompt'])})"
        if feature := self.spec["feature"]:
            code += f".show(b.feature({feature['dictionary']!r}, {feature['index']}))"
        return code + (f".choose({self.spec['selected']})" if self.spec["selected"] >= 0 else "")

    def body(self) -> Markup:
        """Give the strip without script."""
        feature = self.spec["feature"]
        note = (
            element("span", {"class": "wb-chip wb-chip-on"}, f"{feature['dictionary']} / {feature['index']}")
            if feature
            else ""
        )
        if self.spec["label"]:
            note = Markup(note + element("span", {"class": "wb-hypothesis"}, visible(self.spec["label"])))
        values = np.frombuffer(self.values, dtype="<f4").tolist()
        strip = tokens(self.tokens, values, special=self.special, selected=self.spec["selected"])
        return panel("strip", "Tokens", note, strip, error=self.error)

    def _set_tokens(self, pieces: list[str], special: list[bool]) -> None:
        self.set_trait("tokens", pieces)
        self.set_trait("special", special)

    def _follow(self, feature: Feature) -> None:
        self.show(feature)

    def _submit(self, purpose: str, call: Callable[..., object], *args: object) -> Future:
        return self._bench.worker.submit(call, *args, key=(self.model_id, purpose))

    def _labels(self) -> dict[tuple[str, int], str]:
        ids = {one.digest: name for name, one in self._bench.dictionaries.items()}
        records = [record.payload for record in self._bench.journal.records("labelled")]
        return {(ids[r["dictionary"]], r["index"]): r["text"] for r in records if r["dictionary"] in ids}

    def _command_choose(self, index: object) -> None:
        self.choose(whole(index, "token", 0, len(self.tokens) - 1))

    def _command_feature(self, dictionary: object, index: object) -> None:
        self._bench.select(self._bench.feature(str(dictionary), whole(index, "feature", 0, 2**31)))
