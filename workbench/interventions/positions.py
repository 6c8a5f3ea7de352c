"""Which tokens an edit touches, so that a cached decode and a full recompute touch the same ones.

A hook sees a tensor, not a text: in a cached decode it sees one column, under left padding it sees columns that are no
tokens. So positions are absolute: 0 is a row's first real token, whatever stands before it. A forward pass is
described by `Tokens`, and each `Positions` picks its columns from it.

Example:
    >>> Positions("generated")
    >>> Positions.of("last", exclude_special=False)
    >>> Positions.of([3, 4, 5])
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.core.errors import EditError

Where = Literal["all", "after_first", "prompt", "generated", "last", "explicit"]


@dataclass(frozen=True)
class Positions:
    """A choice of token positions.

    Attributes:
        where: `all`; `after_first` (all but position 0, which is BOS or an attention sink: what a chat model decides
            at a mark of its template needs this, with special tokens kept); `prompt`; `generated` (everything after
            the prompt); `last` (the prompt's last token); `explicit`.
        explicit: Absolute positions of real tokens, for `explicit` only; 0 is the first token that is not padding.
        exclude_special: Leave out special tokens (BOS, chat-template marks), also where the rest would choose them.

    Raises:
        EditError: An unknown choice, or explicit positions that are absent, negative, repeated or not wanted.
    """

    where: str = "all"
    explicit: tuple[int, ...] = ()
    exclude_special: bool = True

    def __post_init__(self):
        if self.where not in get_args(Where):
            raise EditError(f"no positions {self.where!r}", hint=f"one of {', '.join(get_args(Where))}")
        if (self.where == "explicit") != bool(self.explicit):
            got = f"where={self.where!r} with explicit={self.explicit}"
            raise EditError(f"positions contradict themselves: {got}", hint="Positions.of([0, 1]) gives explicit ones")
        if any(one < 0 for one in self.explicit) or len(set(self.explicit)) != len(self.explicit):
            raise EditError(f"explicit positions must be distinct and at least 0, got {list(self.explicit)}")
        object.__setattr__(self, "explicit", tuple(sorted(self.explicit)))

    @classmethod
    def of(cls, what: "Positions | str | Iterable[int]", *, exclude_special: bool | None = None) -> "Positions":
        """Make positions from what a person types: a name, or absolute positions.

        Args:
            what: `all`, `after_first`, `prompt`, `generated`, `last`, a collection of integers, or positions as they
                are.
            exclude_special: Leave out special tokens; true where neither this nor `what` says otherwise, but for
                `after_first`.
        """
        if isinstance(what, Positions):
            keep = what.exclude_special if exclude_special is None else exclude_special
            return cls(what.where, what.explicit, keep)
        keep = what != "after_first" if exclude_special is None else exclude_special
        if isinstance(what, str):
            return cls(what, (), keep)
        return cls("explicit", tuple(int(one) for one in what), keep)

    def overlaps(self, other: "Positions") -> bool:
        """Whether some text has a token that both choose."""
        kinds = {self.where, other.where}
        if kinds == {"explicit"}:
            return bool(set(self.explicit) & set(other.explicit))
        return kinds not in ({"prompt", "generated"}, {"last", "generated"})

    def describe(self) -> str:
        """Name the tokens in words, such as `every token except special ones`."""
        words = {
            "all": "every token",
            "after_first": "every token after the first",
            "prompt": "every prompt token",
            "generated": "every generated token",
            "last": "the last prompt token",
            "explicit": f"token{'s' if len(self.explicit) > 1 else ''} {', '.join(map(str, self.explicit))}",
        }[self.where]
        single = self.where == "last" or len(self.explicit) == 1
        if not self.exclude_special:
            return words
        return words + (" unless it is special" if single else " except special ones")


class Tokens:
    """The tokens of one forward pass: what positions are chosen from.

    Plain numpy on the CPU: a decode step chooses one column, and a dozen small tensor operations would cost more than
    the edit itself.

    Args:
        real: For past and new columns, whether there is a token; absent where every column is one.
        special: For each new column, whether its token is special; absent where no ids were given.
        shape: Rows and new columns.
        past: Columns before the new ones.
        prompt_len: Real prompt tokens of each row; absent: all tokens up to here are prompt.
    """

    def __init__(
        self,
        real: Bool[np.ndarray, "batch all_pos"] | None,
        special: Bool[np.ndarray, "batch pos"] | None,
        *,
        shape: tuple[int, int],
        past: int,
        prompt_len: Int[np.ndarray, " batch"] | None,
    ):
        self.shape, self._past, self._special, self._all_real = shape, past, special, real
        if prompt_len is None:
            prompt_len = np.full(shape[0], past + shape[1]) if real is None else real.sum(1)
        self.prompt_len = prompt_len
        self._masks: dict[Positions, tuple[Bool[Tensor, "batch pos"] | None, int]] = {}

    @cached_property
    def position(self) -> Int[np.ndarray, "batch pos"]:
        """Absolute position of each new column; that of the token before it where it is padding."""
        if self._all_real is None:
            return np.broadcast_to(np.arange(self._past, self._past + self.shape[1]), self.shape)
        return (self._all_real.cumsum(1) - 1)[:, self._past :]

    def mask(self, positions: Positions) -> tuple[Bool[Tensor, "batch pos"] | None, int]:
        """Give the chosen columns (nothing where that is all of them), and how many they are.

        Raises:
            EditError: Special tokens are to be left out of a pass that was given no token ids.
        """
        if positions not in self._masks:
            chosen = self._choose(positions)
            count = self.shape[0] * self.shape[1] if chosen is None else int(chosen.sum())
            every = count == self.shape[0] * self.shape[1]
            self._masks[positions] = None if every else torch.from_numpy(chosen), count
        return self._masks[positions]

    def _choose(self, positions: Positions) -> Bool[np.ndarray, "batch pos"] | None:
        chosen = None if self._all_real is None else self._all_real[:, self._past :]
        if positions.where != "all":
            among = self._among(positions)
            chosen = among if chosen is None else chosen & among
        if not positions.exclude_special:
            return chosen
        if self._special is None:
            raise EditError(
                "cannot tell special tokens: the model was called with embeddings instead of token ids",
                hint="call it with input_ids, or use positions with exclude_special=False",
            )
        return ~self._special if chosen is None else chosen & ~self._special

    def _among(self, positions: Positions) -> Bool[np.ndarray, "batch pos"]:
        length = self.prompt_len[:, None]
        if positions.where == "after_first":
            return self.position > 0
        if positions.where == "prompt":
            return self.position < length
        if positions.where == "generated":
            return self.position >= length
        if positions.where == "last":
            return self.position == length - 1
        return np.isin(self.position, positions.explicit)


def read_tokens(
    ids: Int[Tensor, "batch pos"] | None,
    mask: Int[Tensor, "batch all_pos"] | Bool[Tensor, "batch all_pos"] | None,
    *,
    shape: tuple[int, int],
    past: int,
    special: Bool[np.ndarray, " vocab"],
    prompt_len: Int[np.ndarray, " rows"] | None,
) -> Tokens:
    """Work out the absolute positions of one forward pass.

    Args:
        ids: Token ids of the new columns; absent where embeddings were given.
        mask: Attention mask over past and new columns; absent where every column is a token.
        shape: Rows and new columns.
        past: Columns that the key-value cache already holds.
        special: For every id whether it is a special token.
        prompt_len: Real prompt tokens per row; absent: all tokens of this pass and before are prompt.

    Raises:
        EditError: The mask does not cover past and new columns, or prompt lengths are of another batch.
    """
    rows, columns = shape
    if mask is not None and mask.shape != (rows, past + columns):
        raise EditError(
            f"attention mask has shape {list(mask.shape)}, the pass needs {[rows, past + columns]}",
            hint=f"give a mask over the {past} cached and {columns} new columns",
        )
    if prompt_len is not None and len(prompt_len) != rows:
        raise EditError(
            f"prompt_len is for {len(prompt_len)} rows, the pass has {rows}",
            hint="give one prompt length per row of the batch: batch.prompt_len",
        )
    real = None if mask is None else mask.cpu().numpy().astype(bool)
    is_special = None if ids is None else special[ids.cpu().numpy()]
    return Tokens(real, is_special, shape=shape, past=past, prompt_len=prompt_len)
