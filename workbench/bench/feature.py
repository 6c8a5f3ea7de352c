"""One feature of one dictionary, as a researcher holds it: read it, see it, name it, edit with it.

A label is a hypothesis: it carries who wrote it and when, and lives in the project's journal, keyed to the exact
dictionary.

Example:
    >>> f = b.feature("resid.2", 843)
    >>> f.label("incentive to deceive")
    >>> b.compare(chat, edit=wb.edits.scale(f, 0.0))
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.bench.corpus import corpus_of, readings
from workbench.core.errors import DictionaryError
from workbench.features.capture import capture
from workbench.features.card import LogitEffects, Profile, logit_effects, profile
from workbench.interventions.edits import FeatureTarget
from workbench.models.dictionary import Dictionary


class Feature:
    """A feature of a dictionary on the bench.

    Attributes:
        bench: The bench it lies on.
        dictionary: The SAE or transcoder it belongs to.
        index: Its row, from 0.
    """

    def __init__(self, bench: Any, dictionary: Dictionary, index: int):
        if not 0 <= index < dictionary.d_dict:
            raise DictionaryError(
                f"no feature {index}: {dictionary.id} has features 0 to {dictionary.d_dict - 1}",
                where=f"dictionary {dictionary.id}",
            )
        self.bench, self.dictionary, self.index = bench, dictionary, index

    @property
    def site(self) -> str:
        """Canonical name of the site that an edit of this feature writes to."""
        return str(self.dictionary.write_site)

    @property
    def target(self) -> FeatureTarget:
        """What an edit needs: the sites and this feature's rows."""
        return FeatureTarget.of(self.dictionary, self.index, label=self.labels[-1]["text"] if self.labels else "")

    @property
    def labels(self) -> list[dict]:
        """Every label ever given, oldest first: `text`, `author`, `time`."""
        return [
            {**record.payload, "time": record.time}
            for record in self.bench.journal.records("labelled")
            if (record.payload["dictionary"], record.payload["index"]) == (self.dictionary.digest, self.index)
        ]

    def label(self, text: str, *, author: str = "") -> "Feature":
        """Write down what this feature is believed to mean; older labels are kept."""
        payload = {"dictionary": self.dictionary.digest, "index": self.index, "text": text, "author": author}
        self.bench.journal.append("labelled", payload)
        return self

    def activations(self, prompt: object) -> tuple[list[str], np.ndarray]:
        """Give each token of a prompt and this feature's activation there.

        Args:
            prompt: Text, chat or token ids.

        Returns:
            Token strings, and float32 activations `[pos]` in the dictionary's units.
        """
        return self.bench.worker.run(self._activations, prompt)

    def _activations(self, prompt: object) -> tuple[list[str], np.ndarray]:
        subject = self.bench.subject
        ids = subject.encode(prompt)
        stream = capture(subject, [ids], [self.dictionary.read_site])[self.dictionary.read_site][0]
        values = self.dictionary.encode(stream)[:, self.index].clone()
        return subject.token_strings(ids), values.numpy()

    def profile(
        self, documents: list[str] | None = None, *, n_top: int = 5, n_random: int = 5, seed: int = 0
    ) -> Profile:
        """Measure how it fires on documents, or on the subject's default corpus, with examples."""
        read = readings(self.bench.subject, corpus_of(self.bench.subject, documents))
        options = {"n_top": n_top, "n_random": n_random, "seed": seed}
        return self.bench.worker.run(lambda: profile(read, self.dictionary, self.index, **options))

    def logit_effects(self, k: int = 6) -> LogitEffects:
        """Tell which next tokens its decoder row favours and disfavours on the direct path."""
        return self.bench.worker.run(lambda: logit_effects(self.bench.subject, self.dictionary, self.index, k=k))

    def card(self, **options: object) -> object:
        """Give the card: label, density, examples, logit effects; `documents=[…]` measures it on your own."""
        from workbench.bench.views import view

        return view("card", self, **options)

    def __repr__(self) -> str:
        label = f" {self.labels[-1]['text']!r}" if self.labels else ""
        return f"Feature({self.dictionary.id!r}, {self.index}){label}"
