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
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.core.errors import EditError

Where = Literal["all", "prompt", "generated", "last", "explicit"]


@dataclass(frozen=True)
class Positions:
    """A choice of token positions.

    Attributes:
        where: `all`; `prompt`; `generated` (everything after the prompt); `last` (the prompt's last token);
            `explicit`.
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
            what: `all`, `prompt`, `generated`, `last`, a collection of integers, or positions as they are.
            exclude_special: Leave out special tokens; true where neither this nor `what` says otherwise.
        """
        if isinstance(what, Positions):
            keep = what.exclude_special if exclude_special is None else exclude_special
            return cls(what.where, what.explicit, keep)
        keep = True if exclude_special is None else exclude_special
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
            "prompt": "every prompt token",
            "generated": "every generated token",
            "last": "the last prompt token",
            "explicit": f"token{'s' if len(self.explicit) > 1 else ''} {', '.join(map(str, self.explicit))}",
        }[self.where]
        single = self.where == "last" or len(self.explicit) == 1
        if not self.exclude_special:
            return words
        return words + (" unless it is special" if single else " except special ones")


@dataclass
class Tokens:
    """The tokens of one forward pass: what positions are chosen from.

    Attributes:
        position: Absolute position of each column; -1 and below where a column is padding.
        real: Whether a column is a token.
        special: Whether it is a special token; absent where the pass was given embeddings instead of ids.
        prompt_len: Real prompt tokens of each row.
    """

    position: Int[Tensor, "batch pos"]
    real: Bool[Tensor, "batch pos"]
    special: Bool[Tensor, "batch pos"] | None
    prompt_len: Int[Tensor, " batch"]
    _masks: dict[Positions, tuple[Bool[Tensor, "batch pos"], int]] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the pass."""
        return self.position.shape[0], self.position.shape[1]

    def mask(self, positions: Positions) -> tuple[Bool[Tensor, "batch pos"], int]:
        """Give the chosen columns, and how many they are.

        Raises:
            EditError: Special tokens are to be left out of a pass that was given no token ids.
        """
        if positions not in self._masks:
            chosen = self._choose(positions)
            self._masks[positions] = chosen, int(chosen.sum())
        return self._masks[positions]

    def _choose(self, positions: Positions) -> Bool[Tensor, "batch pos"]:
        length = self.prompt_len[:, None]
        chosen = self.real
        if positions.where == "prompt":
            chosen = chosen & (self.position < length)
        elif positions.where == "generated":
            chosen = chosen & (self.position >= length)
        elif positions.where == "last":
            chosen = chosen & (self.position == length - 1)
        elif positions.where == "explicit":
            wanted = torch.tensor(positions.explicit, device=self.position.device)
            chosen = chosen & torch.isin(self.position, wanted)
        if positions.exclude_special:
            if self.special is None:
                raise EditError(
                    "cannot tell special tokens: the model was called with embeddings instead of token ids",
                    hint="call it with input_ids, or use positions with exclude_special=False",
                )
            chosen = chosen & ~self.special
        return chosen


def read_tokens(
    ids: Int[Tensor, "batch pos"] | None,
    mask: Int[Tensor, "batch all_pos"] | Bool[Tensor, "batch all_pos"] | None,
    *,
    shape: tuple[int, int],
    past: int,
    special: Bool[Tensor, " vocab"],
    prompt_len: Int[Tensor, " rows"] | None,
    device: torch.device,
) -> Tokens:
    """Work out the absolute positions of one forward pass.

    Args:
        ids: Token ids of the new columns; absent where embeddings were given.
        mask: Attention mask over past and new columns; absent where every column is a token.
        shape: Rows and new columns.
        past: Columns that the key-value cache already holds.
        special: For every id whether it is a special token.
        prompt_len: Real prompt tokens per row; absent: all tokens of this pass and before are prompt.
        device: Where the result lives.

    Raises:
        EditError: The mask does not cover past and new columns, or prompt lengths are of another batch.
    """
    rows, columns = shape
    if mask is None:
        position = torch.arange(past, past + columns, device=device).expand(rows, columns)
        real = torch.ones(shape, dtype=torch.bool, device=device)
    else:
        if mask.shape != (rows, past + columns):
            raise EditError(
                f"attention mask has shape {list(mask.shape)}, the pass needs {[rows, past + columns]}",
                hint=f"give a mask over the {past} cached and {columns} new columns",
            )
        kept = mask.to(device).bool()
        position = (kept.long().cumsum(1) - 1)[:, past:]
        real = kept[:, past:]
        position = torch.where(real, position, -1)
    if prompt_len is None:
        prompt_len = position.amax(1) + 1
    elif prompt_len.shape != (rows,):
        raise EditError(
            f"prompt_len is for {list(prompt_len.shape)} rows, the pass has {rows}",
            hint="give one prompt length per row of the batch: batch.prompt_len",
        )
    is_special = None if ids is None else special[ids]
    return Tokens(position, real, is_special, prompt_len.to(device))
