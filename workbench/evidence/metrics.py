"""Exact read-outs of the plain model: probabilities of events on an axis's prompts, and cost on benign text.

A read-out is teacher-forced: one forward pass per prompt gives the probability itself, with no sampling noise, so
hundreds of controls are affordable. Base, no-op and every edited arm read the same batches in the same order, which is
what makes a no-op comparable bit for bit.

Example:
    >>> outcomes = measure(subject, axis.items("dev", 64), edits)
    >>> outcomes.value.mean()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.core.errors import AxisError, TrialError
from workbench.core.progress import CancelToken
from workbench.features.axes import AxisItem
from workbench.interventions.edits import Edits
from workbench.interventions.runtime import last_logits, logits
from workbench.models.subject import Subject

BATCH_SIZE = 64
"""Prompts per forward pass; part of what a re-measurement keeps, since float32 sums depend on shapes."""


@dataclass(frozen=True)
class Outcomes:
    """Per-sample read-outs of one arm on one axis.

    Attributes:
        value: `[n]`, the item's probability of the event, 0–1.
        mass: `[n]`, probability of event and alternative together; the value says nothing about the rest.
    """

    value: np.ndarray
    mass: np.ndarray


@dataclass(frozen=True)
class Prepared:
    """An axis's prompts as one subject reads them.

    Attributes:
        items: The prompts, in the order of the outcomes.
        ids: Token ids of each.
        event: Token ids of the event of each.
        against: Token ids of the alternative; `None` for the whole vocabulary.
    """

    items: tuple[AxisItem, ...]
    ids: tuple[tuple[int, ...], ...]
    event: tuple[tuple[int, ...], ...]
    against: tuple[tuple[int, ...] | None, ...]

    def read(self, found: Float[Tensor, "batch vocab"]) -> Outcomes:
        """Turn the logits after each prompt into outcomes; `found` is in the order of the items.

        Raises:
            TrialError: A logit is not finite.
        """
        if not bool(torch.isfinite(found).all()):
            raise TrialError("the model gave logits that are not finite", hint="the edit is too strong to be read")
        p = found.double().softmax(-1)
        value, mass = np.empty(len(self.items)), np.empty(len(self.items))
        for k, (event, against) in enumerate(zip(self.event, self.against, strict=True)):
            one = float(p[k, list(event)].sum())
            total = 1.0 if against is None else one + float(p[k, list(against)].sum())
            value[k], mass[k] = one / total if total > 0 else 0.0, total if against is not None else one
        return Outcomes(value, mass)


def prepare(subject: Subject, items: Sequence[AxisItem]) -> Prepared:
    """Tokenise an axis's prompts and the events read from them.

    Raises:
        AxisError: No item, or an event that is not one token of this subject.
        PromptError: A prompt that is empty or longer than the context.
    """
    if not items:
        raise AxisError("there is no prompt to measure")
    known: dict[str, int] = {}

    def tokens(texts: tuple[str, ...] | None) -> tuple[int, ...] | None:
        return None if texts is None else tuple(known.setdefault(text, _one_token(subject, text)) for text in texts)

    ids = tuple(tuple(subject.encode(item.text)) for item in items)
    event = tuple(tokens(item.event) for item in items)
    return Prepared(tuple(items), ids, event, tuple(tokens(item.against) for item in items))  # type: ignore[arg-type]


def _one_token(subject: Subject, text: str) -> int:
    found = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(found) != 1:
        raise AxisError(
            f"event {text!r} is {len(found)} tokens of this subject, an exact read-out needs one",
            where=f"subject {subject.name}",
            hint="name the first token of the reply, with its leading space",
        )
    return int(found[0])


def measure(
    subject: Subject,
    items: Sequence[AxisItem] | Prepared,
    edits: Edits | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    allow_idle: bool = False,
) -> Outcomes:
    """Read each item's outcome, unsteered or under an edit.

    Args:
        subject: The model.
        items: The prompts, tokenised or not.
        edits: What to change.
        batch_size: Prompts per forward pass.
        allow_idle: Accept that an edit touches no token of these prompts, as a gated one may off its target.

    Raises:
        AxisError: No item, or an event that is not one token.
        FiringError: An edit touched no position.
    """
    prepared = items if isinstance(items, Prepared) else prepare(subject, items)
    ids = [list(one) for one in prepared.ids]
    found = last_logits(subject, ids, edits, batch_size=batch_size, allow_idle=allow_idle)
    return prepared.read(found)


@dataclass(frozen=True)
class BenignCost:
    """What an edit does to text that it should leave alone, token by token.

    Attributes:
        kl: `[n_tokens]`, KL(base ‖ edited) of the next-token distribution, nats.
        delta_nll: `[n_tokens]`, change of the true next token's surprise, nats; above 0 is worse.
        document: `[n_tokens]`, number of the document that the token is in.
    """

    kl: np.ndarray
    delta_nll: np.ndarray
    document: np.ndarray

    def summary(self) -> dict[str, float]:
        """Give mean, p95, p99 and max of both, in nats per token."""
        found: dict[str, float] = {}
        for name, values in (("kl", self.kl), ("delta_nll", self.delta_nll)):
            found[f"{name}_mean"] = float(values.mean())
            for level in (95, 99):
                found[f"{name}_p{level}"] = float(np.quantile(values, level / 100))
            found[f"{name}_max"] = float(values.max())
        return found


class BenignText:
    """Benign documents with the base model's predictions on them, kept so that many edits are compared with one base.

    Args:
        subject: The model.
        documents: Whole texts, chat markers included.
        batch_size: Documents per forward pass.

    Raises:
        TrialError: No document, or only documents of one token.
    """

    def __init__(self, subject: Subject, documents: Sequence[str], *, batch_size: int = BATCH_SIZE):
        if not documents:
            raise TrialError("there is no benign text to measure the cost on")
        encoded = [subject.encode(text) for text in documents]
        order = sorted(range(len(encoded)), key=lambda k: len(encoded[k]))
        self.subject, self.n_documents = subject, len(encoded)
        self._batches = []
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = subject.batch([encoded[k] for k in rows])
            predicts = batch.mask[:, :-1] & batch.mask[:, 1:]
            true = batch.ids[:, 1:][predicts]
            document = torch.tensor(rows)[:, None].expand_as(predicts)[predicts].numpy()
            base = logits(subject, batch)[:, :-1][predicts].log_softmax(-1)
            self._batches.append((batch, predicts, true, document, base))
        if not sum(len(true) for _, _, true, _, _ in self._batches):
            raise TrialError("the benign texts hold no token to predict")

    def cost(self, edits: Edits, *, cancel: CancelToken | None = None) -> BenignCost:
        """Measure what an edit costs on these documents; one that touches none of them costs nothing."""
        kl, delta, documents = [], [], []
        for batch, predicts, true, document, base in self._batches:
            if cancel:
                cancel.check()
            edited = logits(self.subject, batch, edits, allow_idle=True)[:, :-1][predicts].log_softmax(-1)
            kl.append((base.exp() * (base - edited)).sum(-1).double().clamp(min=0).numpy())
            delta.append(_at(base, true).sub(_at(edited, true)).double().numpy())
            documents.append(document)
        return BenignCost(np.concatenate(kl), np.concatenate(delta), np.concatenate(documents))


def _at(logprobs: Float[Tensor, "n vocab"], ids: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return logprobs.gather(-1, ids[:, None])[:, 0]
