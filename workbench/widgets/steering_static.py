"""The steering bench on paper: its edits, its prompt and both continuations, without script."""

from __future__ import annotations

from workbench.widgets.edit_rows import VALUED
from workbench.widgets.markup import Markup, bar, div, element, number, percent, span, visible


def edit_line(edit: dict, fact: dict) -> Markup:
    """Give one edit in a line: operation, strength, feature, tokens, what its strength stands on."""
    value = "" if edit["value"] is None or edit["op"] not in VALUED else f" {number(edit['value'])}"
    told = f"max activation {number(fact['max'])} on {fact['corpus']}" if fact.get("max") else ""
    where = span("wb-caption", f"tokens: {edit['positions']}")
    return div(
        "wb-row", span("wb-mono", f"{edit['op']}{value}"), visible(edit["name"]), where, span("wb-caption", told)
    )


def prompt_lines(prompt: str | list) -> list[Markup]:
    """Give the prompt, one line per turn."""
    turns = [("prompt", prompt)] if isinstance(prompt, str) else [tuple(one) for one in prompt if isinstance(one, list)]
    return [div("wb-turn", span("wb-caption", f"{role}: "), visible(str(text))) for role, text in turns]


def outcome(result: dict) -> list[Markup]:
    """Give both continuations with their differences, next-token probabilities and firings."""
    if not result:
        return [element("p", {"class": "wb-caption"}, "not computed yet")]
    sides = [_side("Unsteered", "wb-side", "wb-gone", result["base"])]
    if "steered" in result:
        sides.append(_side("Steered", "wb-side wb-on", "wb-diff", result["steered"]))
    chips = [
        span("wb-chip", f"{one['name']} touched {one['positions']} tokens, {_force(one)}")
        for one in result.get("firings", [])
    ]
    table = [_next_tokens(result["next"])] if result.get("next") else []
    return [div("wb-pair", *sides), *table, div("wb-firing", *chips)]


def _force(firing: dict) -> str:
    return f"‖Δ‖/‖x‖ mean {number(firing['mean_ratio'], 2)}, max {number(firing['max_ratio'], 2)}"


def _side(title: str, style: str, mark: str, part: dict) -> Markup:
    words = [
        span(" ".join(filter(None, ["wb-tok", marked and mark, special and "wb-special"])), visible(token))
        for token, marked, special in zip(part["tokens"], part["marks"], part["special"], strict=True)
    ]
    return div(style, div("wb-sub", title), div("wb-tokens", *words))


def _next_tokens(rows: list[dict]) -> Markup:
    head = element("tr", {}, *(element("th", {}, name) for name in ("next token", "unsteered", "", "steered", "")))
    lines = [
        element(
            "tr",
            {},
            element("td", {}, span("wb-tok wb-plain", visible(row["token"]))),
            element("td", {"class": "wb-num"}, percent(row["base"])),
            element("td", {"class": "wb-barcell"}, bar(row["base"], "wb-base")),
            element("td", {"class": "wb-num"}, percent(row["steered"])),
            element("td", {"class": "wb-barcell"}, bar(row["steered"], "wb-steered")),
        )
        for row in rows
    ]
    return element("table", {"class": "wb-next"}, element("thead", {}, head), element("tbody", {}, *lines))
