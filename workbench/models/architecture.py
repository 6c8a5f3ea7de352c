"""What kinds of dictionary there are, which tensors each has, and what its files may say.

A reader that skips a field it does not know computes something else than was trained. So the architectures are a
closed list, their tensors are checked one by one, and asking for a field that is not there is an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from workbench.core.errors import DictionaryError
from workbench.models.rows import Activation, Scaling
from workbench.models.sites import Site

ACTIVATIONS: dict[str, Activation | Literal["topk"]] = {
    "standard": "relu",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "topk": "topk",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
"""Architectures that are read, by sae-lens' names, and how their features fire."""


BAD_FIT = 0.5
"""Unexplained variance above which a dictionary is taken for misplaced; published ones leave 0.05 to 0.4."""


class Metadata(dict):
    """What a dictionary's files say about it; an unknown key is an error that names the nearest, never `None`."""

    def __missing__(self, key: str) -> NoReturn:
        close = difflib.get_close_matches(str(key), list(self), n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(sorted(self))}"
        raise DictionaryError(f"the dictionary's metadata has no field {key!r}", hint=hint)

    def get(self, key: str, *default: Any) -> Any:
        """Give a field, or the default that was given; without a default an absent field is an error."""
        return self[key] if key in self or not default else default[0]


@dataclass(frozen=True)
class DictionaryConfig:
    """How a dictionary computes.

    Attributes:
        architecture: sae-lens' name.
        d_in: Width of what it reads.
        d_out: Width of what it writes.
        d_dict: Number of features.
        subtracts_b_dec: Whether the decoder bias is subtracted from the input.
        scaling: How inputs are normalised.
        k: TopK: how many features fire.
        rescales_by_decoder_norm: TopK: whether activations are in units of the decoder rows' norms.
    """

    architecture: str
    d_in: int
    d_out: int
    d_dict: int
    subtracts_b_dec: bool = False
    scaling: Scaling = "none"
    k: int | None = None
    rescales_by_decoder_norm: bool = False

    def __post_init__(self) -> None:
        if self.architecture not in ACTIVATIONS:
            raise DictionaryError(
                f"the architecture {self.architecture!r} is not supported",
                hint=f"supported: {', '.join(ACTIVATIONS)}",
            )
        if self.activation == "topk" and not (self.k and 0 < self.k <= self.d_dict):
            raise DictionaryError(f"a topk dictionary needs 0 < k ≤ {self.d_dict}, got {self.k}")
        if self.is_transcoder and self.subtracts_b_dec:
            raise DictionaryError("a transcoder cannot subtract its decoder bias from the input")

    @property
    def activation(self) -> str:
        """How pre-activations become activations."""
        return ACTIVATIONS[self.architecture]

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes elsewhere than it reads."""
        return self.architecture.endswith("transcoder")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Give the shape of every tensor this architecture has."""
        shapes: dict[str, tuple[int, ...]] = {
            "W_enc": (self.d_in, self.d_dict),
            "W_dec": (self.d_dict, self.d_out),
            "b_dec": (self.d_out,),
        }
        names = ("r_mag", "b_gate", "b_mag") if self.activation == "gated" else ("b_enc",)
        names += ("threshold",) if self.activation == "jumprelu" else ()
        shapes |= dict.fromkeys(names, (self.d_dict,))
        return shapes | ({"W_skip": (self.d_out, self.d_in)} if "skip" in self.architecture else {})

    def check_weights(self, weights: Mapping[str, Tensor], where: str) -> None:
        """Refuse tensors that are absent, unknown, of another shape, or not finite.

        Raises:
            DictionaryError: Naming what was found and expected.
        """
        expected = self.shapes()
        absent, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
        if absent or unknown:
            raise DictionaryError(
                f"a {self.architecture} dictionary has tensors {', '.join(sorted(expected))}; "
                f"absent: {', '.join(absent) or 'none'}, unknown: {', '.join(unknown) or 'none'}",
                where=where,
            )
        for name, shape in expected.items():
            if tuple(weights[name].shape) != shape:
                found = tuple(weights[name].shape)
                raise DictionaryError(f"{name} has shape {found}, the configuration says {shape}", where=where)
            if not torch.isfinite(weights[name]).all():
                raise DictionaryError(f"{name} holds values that are not finite", where=where)


@dataclass(frozen=True, eq=False)
class DictionaryParts:
    """What a reader found in a dictionary's files.

    Attributes:
        config: How it computes.
        weights: Its tensors.
        read_site: Where it reads.
        write_site: Where it writes.
        metadata: What the files say about it.
        digest: SHA-256 over the files.
        source: Where they came from.
    """

    config: DictionaryConfig
    weights: dict[str, Tensor]
    read_site: Site
    write_site: Site
    metadata: dict[str, Any]
    digest: str
    source: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """How well a dictionary reconstructs what flows through its site.

    Attributes:
        unexplained_variance: Squared error over squared distance from the mean, summed over tokens; 0 is perfect,
            1 no better than the mean.
        l0: Mean number of features that fire on a token.
        n_tokens: Ordinary tokens measured; special ones are left out.
    """

    unexplained_variance: float
    l0: float
    n_tokens: int

    @property
    def is_bad(self) -> bool:
        """Whether it is above `BAD_FIT`, or not a number."""
        return not self.unexplained_variance <= BAD_FIT
