"""What a bench gives back: values first, with a plain form for terminals and an escaped table for notebooks.

Model text is written by the model and whoever steered it, so every cell is escaped and control or bidirectional
characters are shown as code points.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


def visible(text: str) -> str:
    """Show control, zero-width and bidirectional characters as code points, `⟨U+202E⟩`; keep line breaks."""
    return "".join(
        f"⟨U+{ord(char):04X}⟩" if unicodedata.category(char) in ("Cc", "Cf", "Co", "Cs") and char != "\n" else char
        for char in text
    )


@dataclass(frozen=True)
class Table:
    """Rows of one kind, with a title and a note that says what they stand on.

    Attributes:
        columns: Column names, in order.
        rows: One dict per row, with every column.
        title: What is listed.
        note: n, corpus, split, or what is missing.
    """

    columns: tuple[str, ...]
    rows: tuple[dict, ...] = field(default=())
    title: str = ""
    note: str = ""

    def __iter__(self) -> Iterator[dict]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict:
        return self.rows[position]

    def __repr__(self) -> str:
        cells = [self.columns, *([_cell(row[c]) for c in self.columns] for row in self.rows)]
        widths = [min(60, max(len(line[k]) for line in cells)) for k in range(len(self.columns))]
        lines = ["  ".join(str(text)[:w].ljust(w) for text, w in zip(line, widths, strict=True)) for line in cells]
        return "\n".join(filter(None, [self.title, *(line.rstrip() for line in lines), self.note]))

    def _repr_html_(self) -> str:
        head = "".join(f"<th scope='col' style='text-align:left'>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:left;vertical-align:top'>{_html(row[c])}</td>" for c in self.columns)
            + "</tr>"
            for row in self.rows
        )
        caption = f"<caption style='text-align:left'>{html.escape(self.title)}</caption>" if self.title else ""
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def side_by_side(prompt: str, base: Sequence[str], steered: Sequence[str], note: str) -> Table:
    """Give a table of unsteered and steered continuations of one prompt, sample by sample."""
    rows = tuple(
        {"sample": k + 1, "unsteered": one, "steered": other, "same": one == other}
        for k, (one, other) in enumerate(zip(base, steered, strict=True))
    )
    return Table(("sample", "unsteered", "steered", "same"), rows, title=prompt, note=note)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return visible(str(value)).replace("\n", "⏎")


def _html(value: object) -> str:
    return html.escape(_cell(value)).replace("⏎", "<br>")
