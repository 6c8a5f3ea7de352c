"""Static HTML that cannot run model text: built from parts, every string escaped, nothing that loads or navigates.

A notebook reopened without a kernel, a page sent to a colleague and a printed dossier all show what the widget showed.
Strength is a class (ten steps) and bars are SVG attributes, so that a page's policy may forbid inline styles.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence

from workbench.core import text as core_text

_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Fillers and variation selectors: drawn as nothing, though their category is that of letters and marks."""
_TAGS = {"article", "b", "br", "caption", "code", "div", "figcaption", "figure", "header", "p"}
_TAGS |= {
    "pre",
    "rect",
    "section",
    "small",
    "span",
    "style",
    "svg",
    "table",
    "tbody",
    "td",
    "th",
    "thead",
    "title",
    "tr",
}
_REFUSED = frozenset({"srcdoc", "href", "src", "action", "formaction", "style"})


class Markup(str):
    """HTML that is already escaped."""

    __slots__ = ()


def visible(text: str) -> str:
    """Show control, zero-width, bidirectional, tag and filler characters as marks: `⏎`, `⟨U+202E⟩`."""
    for character, mark in (("\n", "⏎"), ("\t", "⇥"), ("\r", "␍")):
        text = text.replace(character, mark)
    return _BLANK.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", core_text.visible(text))


def element(tag: str, attributes: dict[str, object] | None = None, *children: object) -> Markup:
    """Give one element; children that are not `Markup` are escaped.

    Raises:
        ValueError: A tag or attribute that could load, run or navigate.
    """
    if tag not in _TAGS:
        raise ValueError(f"refused tag {tag!r}")
    parts = []
    for name, value in (attributes or {}).items():
        if name.lower().startswith("on") or name.lower() in _REFUSED or not re.fullmatch(r"[A-Za-z-]+", name):
            raise ValueError(f"refused attribute {name!r}")
        parts.append(f' {name}="{html.escape(str(value), quote=True)}"')
    inside = join(child for child in children if child is not None)
    return Markup(f"<{tag}{''.join(parts)}>") if tag == "br" else Markup(f"<{tag}{''.join(parts)}>{inside}</{tag}>")


def div(style: str, *children: object) -> Markup:
    """Give a `div` of a class."""
    return element("div", {"class": style}, *children)


def span(style: str, *children: object) -> Markup:
    """Give a `span` of a class."""
    return element("span", {"class": style}, *children)


def join(children: Iterable[object]) -> Markup:
    """Put parts one after another, escaping those that are not `Markup`."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(str(c), quote=True) for c in children))


def page(title: str, style: str, body: Markup) -> str:
    """Give a whole page under a policy that allows its own style and nothing else."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="referrer" content="no-referrer"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>:root{{color-scheme:light dark}}body{{margin:24px}}{style}</style>"
        f"</head><body>{body}</body></html>\n"
    )


def number(value: float | int | None, digits: int = 3) -> str:
    """Write a number for people: three significant digits, a true minus sign; a missing one is a dash."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        return f"{value:.{max(0, digits - 2)}e}".replace("-", "−")
    shown = f"{value:.{digits}g}"
    return (f"{float(shown):.0f}" if "e" in shown else shown).replace("-", "−")


def percent(value: float | int | None) -> str:
    """Write a share as a percentage that does not round to a false 0 or 100."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0 < value < 0.001:
        return "<0.1%"
    if 0.999 < value < 1:
        return ">99.9%"
    return f"{value * 100:.{1 if value < 0.1 else 0}f}%"


def level(value: float | int, largest: float | int) -> int:
    """Give the strength of a value among its peers in ten steps; 0 is none."""
    if not largest > 0 or not math.isfinite(value) or value == 0:
        return 0
    return min(10, max(1, math.ceil(abs(value) / largest * 10)))


def tokens(
    pieces: Sequence[str],
    values: Sequence[float | int] = (),
    *,
    largest: float | int | None = None,
    special: Sequence[bool] = (),
    selected: int = -1,
    small: bool = False,
) -> Markup:
    """Give a strip of tokens whose tint tells the value; the value itself is in each token's title."""
    peak = max((abs(v) for v in values), default=0.0) if largest is None else largest
    spans = []
    for i, piece in enumerate(pieces):
        value = float(values[i]) if i < len(values) else 0.0
        classes = f"wb-tok wb-l{level(value, peak)}{' wb-neg' if value < 0 else ''}"
        if i < len(special) and special[i]:
            classes += " wb-special"
        attributes: dict[str, object] = {"class": classes}
        if len(values):
            attributes["title"] = f"{visible(piece)}  {number(value)}"
        if i == selected:
            attributes["aria-selected"] = "true"
        spans.append(element("span", attributes, visible(piece)))
    return element("div", {"class": "wb-tokens wb-small" if small else "wb-tokens"}, join(spans))


def bar(share: float | int, kind: str = "") -> Markup:
    """Give a horizontal bar whose length is a share of its track."""
    width = 100 * min(1.0, max(0.0, share if math.isfinite(share) else 0.0))
    box = {"class": f"wb-bar {kind}".strip(), "viewBox": "0 0 100 8", "preserveAspectRatio": "none"}
    track = element("rect", {"class": "wb-track", "x": 0, "y": 0, "width": 100, "height": 8})
    filled = element("rect", {"class": "wb-fill", "x": 0, "y": 0, "width": f"{width:.2f}", "height": 8})
    return element("svg", {**box, "aria-hidden": "true"}, track, filled)


def panel(kind: str, title: object, note: object, *body: object, error: str = "") -> Markup:
    """Give a widget's outer frame with its content."""
    head = element(
        "header", {"class": "wb-head"}, element("span", {"class": "wb-title"}, title),
        element("span", {"class": "wb-note"}, note),
    )  # fmt: skip
    below = element("div", {"class": "wb-error", "role": "alert"}, visible(error)) if error else ""
    return element("section", {"class": f"wb wb-{kind}"}, head, element("div", {"class": "wb-body"}, *body), below)
