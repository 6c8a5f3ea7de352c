"""Does this dictionary belong to this subject, at this place? The shapes say maybe; the unexplained variance says.

A dictionary read at the wrong hook, from the wrong model or from the base model's chat sibling still gives numbers.
What it leaves unexplained gives it away: on Gemma-2 the raw MLP output instead of the normed one reads 9.8 where the
right place reads 0.26. So the number is measured on a few texts at loading, and a bad one is shouted.

Example:
    >>> check_fits(sae, subject)
    >>> fit(sae, subject, ["the capital of france is paris."])
    Fit(unexplained_variance=0.08, l0=31.2, n_tokens=212)
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from workbench.core.errors import DictionaryError, PromptError, SiteError
from workbench.models.architecture import BAD_FIT, Fit
from workbench.models.dictionary import Dictionary
from workbench.models.reading import read_sites
from workbench.models.subject import Subject, TokenBatch
from workbench.models.tokens import Prompt

BATCH_SIZE = 8


class BadFitWarning(UserWarning):
    """A dictionary explains so little of what it reads that it is probably at the wrong place or of another model."""


def check_fits(dictionary: Dictionary, subject: Subject, *, same_model: bool = False) -> None:
    """Refuse a dictionary that cannot belong to a subject: site, width, or the model it names.

    Args:
        dictionary: The dictionary.
        subject: The subject.
        same_model: The caller knows that the two names mean one model.

    Raises:
        DictionaryError: Naming both sides.
    """
    for verb, site, width in (
        ("reads", dictionary.read_site, dictionary.d_in),
        ("writes", dictionary.write_site, dictionary.d_out),
    ):
        try:
            found = subject.path(site).width
        except SiteError as error:
            raise DictionaryError(
                f"dictionary {dictionary.id!r} {verb} {site}, which subject {subject.name!r} does not have: "
                f"{error.message}"
            ) from error
        if found != width:
            raise DictionaryError(
                f"dictionary {dictionary.id!r} {verb} width {width}, subject {subject.name!r} has width {found} there",
                where=f"site {site}",
                hint="the dictionary was trained on another model",
            )
    trained_on = dictionary.metadata.get("subject_digest", None)
    if trained_on is not None and trained_on != subject.digest and not same_model:
        raise DictionaryError(
            f"dictionary {dictionary.id!r} was trained on the subject {trained_on[:12]}, "
            f"subject {subject.name!r} is {subject.digest[:12]}",
            hint="weights, configuration, tokenizer or chat template differ; pass same_model=True if that is meant",
        )
    named, repo = dictionary.metadata.get("model_name", None), subject.source.repo
    if named and repo and not same_model and _stem(named) != _stem(repo):
        raise DictionaryError(
            f"dictionary {dictionary.id!r} was trained on {named!r}, subject {subject.name!r} is {repo!r}",
            hint="pass same_model=True if the two names mean one model",
        )


def _stem(name: str) -> str:
    """Reduce a model's name to what its siblings (base, instruct, chat) and its aliases share."""
    tail = name.lower().rsplit("/", 1)[-1]
    tail = re.sub(r"[-_.]?(it|pt|instruct|chat|base|hf|small)(?=$|[-_.])", "", tail)
    return re.sub(r"^(meta-)?|[-_. ]", "", tail)


def fit(dictionary: Dictionary, subject: Subject, prompts: Sequence[Prompt]) -> Fit:
    """Measure how well a dictionary reconstructs its site on some prompts.

    Raises:
        PromptError: The prompts have fewer than two ordinary tokens.
    """
    return fit_all({dictionary.id: dictionary}, subject, prompts)[dictionary.id]


def fit_all(dictionaries: Mapping[str, Dictionary], subject: Subject, prompts: Sequence[Prompt]) -> dict[str, Fit]:
    """Measure several dictionaries in the same forward passes; see `fit`."""
    sites = sorted({site for d in dictionaries.values() for site in (d.read_site, d.write_site)})
    sums = {name: _Sums(d.d_out) for name, d in dictionaries.items()}
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = subject.batch(prompts[start : start + BATCH_SIZE])
        keep = _ordinary(batch, subject)
        streams = {site: tensor[keep] for site, tensor in read_sites(subject, batch, sites).items()}
        for name, dictionary in dictionaries.items():
            x, y = streams[dictionary.read_site], streams[dictionary.write_site]
            acts = dictionary.encode(x)
            sums[name].add(y, dictionary.decode(acts, x), acts)
    return {name: one.fit() for name, one in sums.items()}


def warn_bad_fit(dictionary: Dictionary, subject: Subject, found: Fit) -> None:
    """Warn, with the number, where a dictionary explains too little."""
    if found.is_bad:
        processed = dictionary.metadata.get("model_from_pretrained_kwargs", None)
        trained = f" (it was trained on a model processed with {processed}; this one is raw)" if processed else ""
        warnings.warn(
            f"dictionary {dictionary.id!r} leaves {found.unexplained_variance:.2f} of the variance at "
            f"{dictionary.write_site} of subject {subject.name!r} unexplained (n {found.n_tokens} tokens; at most "
            f"{BAD_FIT} is usual): wrong hook, wrong model, or a chat model's dictionary on its base{trained}",
            BadFitWarning,
            stacklevel=3,
        )


def _ordinary(batch: TokenBatch, subject: Subject) -> Tensor:
    special = torch.tensor(sorted(subject.special_ids), device=batch.ids.device, dtype=batch.ids.dtype)
    return batch.mask & ~torch.isin(batch.ids, special)


class _Sums:
    """Running sums in float64 that the unexplained variance needs."""

    def __init__(self, width: int):
        self.total = torch.zeros(width, dtype=torch.float64)
        self.squares = self.errors = 0.0
        self.active = self.n = 0

    def add(self, y: Tensor, reconstruction: Tensor, acts: Tensor) -> None:
        target = y.double().cpu()
        self.total += target.sum(0)
        self.squares += target.square().sum().item()
        self.errors += (target - reconstruction.double().cpu()).square().sum().item()
        self.active += int((acts > 0).sum())
        self.n += len(target)

    def fit(self) -> Fit:
        if self.n < 2:
            raise PromptError(f"a fit needs at least two ordinary tokens, got {self.n}")
        variance = self.squares - self.total.square().sum().item() / self.n
        unexplained = self.errors / variance if variance > 0 else float("nan")
        return Fit(unexplained, self.active / self.n, self.n)
