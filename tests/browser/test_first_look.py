"""The first notebook in a real JupyterLab and a real browser: what a person sees, moves and reads."""

from __future__ import annotations

import re

import pytest
from lab import write_notebook

RUN_A_SLOW_CELL = """() => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  window.cellEnded = false;
  kernel.requestExecute({ code: 'import time; time.sleep(8)' }).done.then(() => { window.cellEnded = true; });
}"""
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}


@pytest.fixture(scope="module")
def first_look(open_lab):
    """The first notebook, all its cells run."""
    return open_lab("1_first_look.ipynb")


def settled(lab) -> None:
    """Wait until the steering bench has answered its newest request, and the page shows it."""
    lab.wait_for("panel.phase", lambda phase: phase != "computing")
    lab.page.wait_for_function("() => document.querySelector('.wb-steer').getAttribute('aria-busy') === 'false'")


def steered_text(lab) -> str:
    """Read the steered continuation off the page."""
    return lab.page.locator(".wb-steer .wb-side.wb-on .wb-tokens").text_content()


def test_every_cell_runs_without_an_error(first_look):
    assert first_look.cell_errors() == []


def test_notebook_leaves_a_bundle_that_verifies_and_its_dossier(first_look):
    left = first_look.ask("sorted(path.name for path in b.folder.iterdir())")
    assert {"dossier.html", "jailbreak_resistance.wbspec"} <= set(left)
    assert first_look.ask("wb.verify(b.folder / 'jailbreak_resistance.wbspec').ok")


def test_every_panel_is_drawn(first_look):
    for kind in ("strip", "card", "steer"):
        first_look.page.locator(f".wb-{kind}").first.wait_for()
    first_look.page.locator(".wb-card .wb-example").first.wait_for()


def test_slider_moved_by_keyboard_changes_the_continuation_on_the_page(first_look):
    settled(first_look)
    slider = first_look.page.locator(".wb-steer .wb-slider").first
    slider.focus()
    texts = set()
    for key in ("Home", "End"):
        before = first_look.ask("panel.edits.digest()")
        slider.press(key)
        first_look.wait_for("panel.edits.digest()", lambda now, was=before: now != was)
        settled(first_look)
        texts.add(steered_text(first_look))
        assert steered_text(first_look) == first_look.ask("''.join(panel.result['steered']['tokens'])")
    assert len(texts) == 2, f"weakest and strongest edit gave the same text {texts}"


def test_slider_step_by_arrow_key_reaches_python_exactly(first_look):
    settled(first_look)
    slider = first_look.page.locator(".wb-steer .wb-slider").first
    slider.focus()
    slider.press("ArrowLeft")
    shown = float(first_look.page.locator(".wb-steer .wb-number:not(.wb-index)").first.input_value())
    first_look.wait_for("panel.spec['edits'][0]['value']", lambda value: abs(value - shown) < 1e-6)


def test_refused_number_is_told_under_the_panel_and_put_back(first_look):
    index = first_look.page.locator(".wb-steer .wb-index").first
    held = index.input_value()
    index.fill("99999999")
    index.press("Enter")
    first_look.page.locator(".wb-steer .wb-error", has_text="no feature 99999999").wait_for()
    assert index.input_value() == held


def test_commit_without_a_reason_is_refused_and_with_one_is_kept(first_look):
    settled(first_look)
    before = first_look.ask("len(b.candidates)")
    button = first_look.page.get_by_role("button", name="Commit candidate")
    button.click()
    first_look.page.locator(".wb-steer .wb-error", has_text="needs a reason").wait_for()
    reason = first_look.page.get_by_label("reason for committing")
    reason.fill("kept by the browser test")
    button.click()
    first_look.wait_for("len(b.candidates)", before + 1)
    assert first_look.ask("b.candidates[-1].why") == "kept by the browser test"


def test_tokens_are_walked_and_chosen_by_keyboard(first_look):
    tokens = first_look.page.locator(".wb-strip [role=option]")
    tokens.nth(0).focus()
    first_look.page.keyboard.press("ArrowRight")
    first_look.page.keyboard.press("ArrowRight")
    assert first_look.page.evaluate("() => document.activeElement.dataset.index") == "2"
    first_look.page.keyboard.press("Enter")
    first_look.page.locator(".wb-strip .wb-feature").first.wait_for()
    assert tokens.nth(2).get_attribute("aria-selected") == "true"
    assert first_look.page.locator(".wb-strip [tabindex='0'][role=option]").count() == 1
    first_look.page.keyboard.press("End")
    last = int(first_look.page.evaluate("() => document.activeElement.dataset.index"))
    assert last == tokens.count() - 1


def test_feature_chosen_in_one_panel_is_selected_on_the_bench(first_look):
    chosen = first_look.page.locator(".wb-strip .wb-feature").first
    dictionary, index = re.match(r"(\S+) / (\d+)", chosen.inner_text()).groups()
    chosen.click()
    first_look.wait_for("[b.selected.dictionary.id, b.selected.index]", [dictionary, int(index)])
    first_look.page.locator(".wb-strip .wb-chip-on", has_text=f"{dictionary} / {index}").wait_for()


def test_panel_answers_while_a_cell_is_running(first_look):
    settled(first_look)
    away = "End" if first_look.ask("panel.spec['edits'][0]['value']") < 0 else "Home"
    before = first_look.page.locator(".wb-steer .wb-next").inner_text()
    first_look.page.evaluate(RUN_A_SLOW_CELL)
    first_look.page.locator(".wb-steer .wb-slider").first.press(away)
    first_look.page.wait_for_function(
        "(was) => document.querySelector('.wb-steer .wb-next').innerText !== was", arg=before
    )
    assert first_look.page.evaluate("window.cellEnded") is False
    first_look.page.wait_for_function("() => window.cellEnded")


@pytest.mark.parametrize("theme", THEMES)
def test_pictures_of_every_panel_can_be_taken_in_both_themes(first_look, theme):
    first_look.theme(THEMES[theme])
    for kind in ("strip", "card", "steer"):
        panel = first_look.page.locator(f".wb-{kind}").first
        first_look.shot(panel, f"{kind}_{theme}")
        paper = panel.evaluate("(e) => getComputedStyle(e).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
        assert (sum(paper) / 3 > 128) == (theme == "light")


def test_page_asked_nobody_else_and_raised_nothing(first_look):
    assert first_look.offsite == []
    assert first_look.errors == []


HOSTILE = [
    "<img src=x onerror=window.hacked=1>",
    "</script><script>window.hacked=2</script>",
    "<!--",
    "&lt;b&gt;",
    "a\u202egpj",
    "\u200b\u2066zero",
    "nul\x00",
    "javascript:window.hacked=3",
    "<style>*{display:none}</style>",
]


def test_hostile_model_text_is_shown_and_never_run(open_lab, lab_server):
    shown = f"strip = TokenStrip.of({HOSTILE!r}, [1.0] * {len(HOSTILE)})"
    cells = [
        f"from workbench.widgets.token_strip import TokenStrip\n{shown}\nstrip",
        "from IPython.display import HTML\nHTML(str(strip.body()))",
    ]
    write_notebook(lab_server[1] / "hostile.ipynb", cells)
    lab = open_lab("hostile.ipynb")
    live, static = lab.page.locator(".wb-strip").nth(0), lab.page.locator(".wb-strip").nth(1)
    for strip in (live, static):
        strip.wait_for()
        shown = strip.locator(".wb-tok").all_inner_texts()
        assert shown[0] == HOSTILE[0]
        assert shown[1] == HOSTILE[1]
        assert shown[4] == "a⟨U+202E⟩gpj"
        assert shown[5] == "⟨U+200B⟩⟨U+2066⟩zero"
        assert shown[6] == "nul⟨U+0000⟩"
        assert strip.locator("img, script, style").count() == 0
    assert lab.page.evaluate("window.hacked") is None
    assert lab.errors == []
    assert lab.offsite == []
