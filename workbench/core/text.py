"""Text that a model or an attacker wrote, made safe to look at: what is invisible becomes a code point."""

from __future__ import annotations

import unicodedata

_HIDDEN = frozenset(("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"))


def visible(text: str) -> str:
    """Show control, zero-width, bidirectional and unassigned characters as `⟨U+202E⟩`; keep line breaks."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"⟨U+{ord(char):04X}⟩" if unicodedata.category(char) in _HIDDEN and char != "\n" else char for char in text
    )
