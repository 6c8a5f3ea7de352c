"""Which documents a feature card is measured on, where nobody named any, and one reading of them per subject.

The built-in subject brings its corpus generator; any other gets a small set of everyday sentences, enough to see what
a feature does and far too few for a density: the card says so, and takes documents of one's own.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence

from workbench.core.canonical import digest
from workbench.core.errors import InputError
from workbench.features.card import Corpus, Readings
from workbench.models.organism import prompts
from workbench.models.subject import Subject

N_DOCUMENTS = 400
"""Documents that the built-in corpus is read in for a card."""

SUBJECTS = ("the doctor", "my neighbour", "a student", "the old captain", "the company", "her sister")
EVENTS = (
    "went to the market and bought bread, apples and a bottle of milk.",
    "asked whether the train to Paris would leave on time.",
    "explained that 7 plus 5 is 12, not 14.",
    "wrote a long letter about the weather in the mountains.",
    "refused to answer the question and said sorry.",
    "read the news on the computer before the meeting began.",
    "told a joke, and everyone in the kitchen laughed.",
    "lost the keys of the red car near the river.",
)

_readings: weakref.WeakKeyDictionary[Subject, dict[str, Readings]] = weakref.WeakKeyDictionary()


def corpus_of(subject: Subject, documents: Sequence[str] | None = None) -> Corpus:
    """Give the named documents, or the default corpus of a subject.

    Raises:
        InputError: An empty list of documents.
    """
    if documents is not None:
        if isinstance(documents, str) or not documents:
            raise InputError("documents must be a non-empty list of texts")
        return Corpus(f"{len(documents)} documents of your own", tuple(documents))
    if subject.name == "organism":
        return Corpus("the built-in subject's dev documents", _organism_documents())
    sentences = tuple(f"{who} {what}" for what in EVENTS for who in SUBJECTS)
    return Corpus(f"{len(sentences)} everyday sentences (too few for a density)", sentences)


@functools.cache
def _organism_documents() -> tuple[str, ...]:
    return tuple(prompts.documents(N_DOCUMENTS, seed=0, split="dev"))


def readings(subject: Subject, corpus: Corpus) -> Readings:
    """Give a subject's reading of a corpus; its streams are captured once."""
    held = _readings.setdefault(subject, {})
    key = digest([corpus.name, [str(one) for one in corpus.documents]])
    if key not in held:
        held[key] = Readings(subject, corpus)
    return held[key]
