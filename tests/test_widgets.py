"""The panels' Python halves: state that rebuilds itself, static forms that cannot run, requests that cannot freeze."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser

import numpy as np
import pytest
from test_card import TEXTS, make_dictionary

from workbench.bench.bench import Bench
from workbench.core.errors import InputError
from workbench.core.files import static_dir
from workbench.interventions import edits
from workbench.interventions.comparison import marks
from workbench.interventions.targets import DirectionTarget
from workbench.widgets.base import code_list, module_source, prompt_document, stylesheet
from workbench.widgets.edit_rows import nice, scale_of
from workbench.widgets.feature_card import FeatureCard
from workbench.widgets.markup import Markup, element, level, number, percent, visible
from workbench.widgets.steering_bench import SteeringBench
from workbench.widgets.token_strip import TokenStrip
from workbench.widgets.views import VIEWS

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "</style><style>*{display:none}</style>",
    "<!--",
    "&lt;b&gt;",
    '" onmouseover="alert(1)',
    "a\u202egpj",
    "\u200b\u2066\U000e0041zero",
    "nul\x00",
]
CHAT = [("user", "what is the capital of france")]


@pytest.fixture
def bench(tiny_subject, tmp_path):
    """A bench of a tiny subject with two random dictionaries."""
    subject = tiny_subject("llama")
    dictionaries = {site: make_dictionary(subject.d_model, site=site) for site in ("resid.1", "mlp.2")}
    return Bench(subject, dictionaries, project=str(tmp_path / "project"))


class Seen(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text += data


def check_inert(page: str) -> Seen:
    """Check that nothing in a page loads, runs or navigates, and that no character hides."""
    seen = Seen(page)
    assert not {"script", "img", "iframe", "link", "form", "a", "base", "object"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name in ("href", "src", "style")]
    assert not re.search("[\u200b-\u200f\u202a-\u202e\u2066-\u2069\x00\U000e0000-\U000e0fff]", page)
    return seen


def ask(panel, method, **args):
    """Send a request as the page does and give the answer."""
    answers = []
    panel.send = answers.append
    panel._answer(panel, {"id": "1", "method": method, "args": args}, [])
    (answer,) = answers
    assert answer["id"] == "1"
    return answer


def rebuild(panel, bench, **names):
    """Run a panel's code and give what the last line gives."""
    *head, last = panel.code().splitlines()
    scope = {"b": bench, "wb": type("Workbench", (), {"edits": edits}), **names}
    exec("\n".join(head), scope)
    return eval(last, scope)


# ---- static forms and text


def test_static_forms_show_hostile_text_and_never_run_it():
    page = TokenStrip.of(HOSTILE, [1.0] * len(HOSTILE)).to_html()
    seen = check_inert(page)
    for text in HOSTILE:
        assert visible(text) in seen.text


def test_markup_refuses_what_could_load_or_run():
    for tag in ("script", "img", "iframe", "a", "object"):
        with pytest.raises(ValueError, match="refused tag"):
            element(tag)
    for name in ("onclick", "href", "src", "style", "srcdoc", 'x" onload'):
        with pytest.raises(ValueError, match="refused attribute"):
            element("div", {name: "x"})


def test_markup_escapes_every_string_but_its_own_parts():
    made = element("div", {"title": '"<>'}, "<b>", element("b", {}, "&"))
    assert made == '<div title="&quot;&lt;&gt;">&lt;b&gt;<b>&amp;</b></div>'
    assert isinstance(element("div"), Markup)


def test_numbers_in_static_forms_read_like_those_of_the_page():
    assert [number(v) for v in (0, 1.23456, -0.5, 12345, 1e-9, float("nan"), None)] == [
        "0", "1.23", "−0.5", "12300", "1.0e−09", "–", "–",
    ]  # fmt: skip
    assert [percent(v) for v in (0, 0.0004, 0.034, 0.5, 0.9999, 1)] == [
        "0.0%",
        "<0.1%",
        "3.4%",
        "50%",
        ">99.9%",
        "100%",
    ]
    assert [level(v, 1.0) for v in (0, 0.01, 0.5, 1, 2, -1)] == [0, 1, 5, 10, 10, 10]


def test_every_page_forbids_script_and_network_by_policy():
    page = TokenStrip.of(["a"]).to_html()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page).group(1)
    assert "default-src &#x27;none&#x27;" in policy or "default-src 'none'" in policy
    assert "script-src" not in policy


# ---- front-end halves


def test_every_widget_has_both_halves_under_one_name():
    halves = {path.stem for path in static_dir().glob("*.js")}
    kinds = {view.kind for view in VIEWS.values()}
    assert halves == kinds | {"base"}
    for view in VIEWS.values():
        assert view.__module__ == f"workbench.widgets.{view.kind}"


@pytest.mark.parametrize("name", ["token_strip", "feature_card", "steering_bench"])
def test_front_end_is_one_small_module_without_imports(name):
    source = module_source(name)
    assert not re.search(r"^\s*import\b", source, re.MULTILINE)
    assert len(re.findall(r"^export default", source, re.MULTILINE)) == 1
    assert len((source + stylesheet()).encode()) <= 100_000
    declared = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", source, re.MULTILINE)
    assert len(declared) == len(set(declared)), "two halves declare one name"


def test_front_end_never_makes_html_from_text_and_asks_nobody():
    banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|fetch\(|XMLHttpRequest"
    banned += r"|https?://(?!www\.w3\.org)"
    for path in [*static_dir().glob("*.js"), *static_dir().glob("*.css")]:
        assert not re.findall(banned, path.read_text()), path.name


def test_both_halves_know_the_same_commands():
    for view in VIEWS.values():
        source = (static_dir() / f"{view.kind}.js").read_text() + (static_dir() / "base.js").read_text()
        called = set(re.findall(r"(?:ask|call)\(\"(\w+)\"", source))
        known = {name.removeprefix("_command_") for name in dir(view) if name.startswith("_command_")}
        assert called == known, view.kind


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine; the browser tests still run")
def test_front_end_passes_its_own_tests():
    done = subprocess.run(
        ["node", "--test", str(static_dir() / "tests") + "/"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-3000:]


# ---- requests from the page


def test_page_cannot_write_state(bench):
    strip = TokenStrip(bench, "the cat sat")
    spec = dict(strip.spec)
    strip.set_state({"spec": {"view": "other"}, "tokens": ["x"]})
    assert strip.spec == spec
    assert "may not write spec, tokens" in strip.error


def test_spec_cannot_be_assigned(bench):
    with pytest.raises(Exception, match="read-only"):
        TokenStrip(bench, "the cat sat").spec = {}


@pytest.mark.parametrize(
    ("method", "args", "words"),
    [
        ("no_such", {}, "no command 'no_such'"),
        ("choose", {"index": 99}, "whole number from 0 to"),
        ("choose", {"index": "1"}, "whole number"),
        ("choose", {"index": True}, "whole number"),
        ("choose", {}, "index"),
        ("feature", {"dictionary": "resid.9", "index": 0}, "no dictionary 'resid.9'"),
        ("feature", {"dictionary": "resid.1", "index": 10**6}, "no feature 1000000"),
    ],
)
def test_bad_request_is_answered_with_its_reason(bench, method, args, words):
    answer = ask(TokenStrip(bench, "the cat sat"), method, **args)
    assert not answer["ok"]
    assert words in answer["error"]


def test_request_without_an_id_is_told_under_the_panel(bench):
    strip = TokenStrip(bench, "the cat sat")
    for content in ({}, {"id": 3}, "hello", None):
        strip._answer(strip, content, [])
        assert "without an id" in strip.error


# ---- token strip


def test_strip_carries_the_features_activations_as_binary(bench):
    feature = bench.feature("resid.1", 4)
    strip = TokenStrip(bench, CHAT).show(feature)
    bench.worker.run(lambda: None)
    pieces, values = feature.activations(CHAT)
    assert strip.tokens == pieces
    np.testing.assert_array_equal(np.frombuffer(strip.values, dtype="<f4"), values)


def test_strip_follows_the_benchs_selection(bench):
    strip = TokenStrip(bench, CHAT)
    assert ask(strip, "feature", dictionary="resid.1", index=7)["ok"]
    assert strip.spec["feature"] == {"dictionary": "resid.1", "index": 7}
    assert bench.selected.index == 7
    strip.close()
    bench.select(bench.feature("resid.1", 8))
    assert strip.spec["feature"]["index"] == 7


def test_chosen_token_lists_features_of_residual_dictionaries(bench):
    bench.feature("resid.1", 3).label("of three")
    strip = TokenStrip(bench, CHAT).choose(4)
    bench.worker.run(lambda: None)
    assert {row["dictionary"] for row in strip.found} == {"resid.1"}
    assert all(row["activation"] > 0 for row in strip.found)
    assert not strip.computing
    assert all(row["label"] == ("of three" if row["index"] == 3 else "") for row in strip.found)


def test_code_of_a_strip_rebuilds_it(bench):
    strip = TokenStrip(bench, CHAT).show(bench.feature("resid.1", 4)).choose(2)
    assert rebuild(strip, bench).spec == strip.spec
    loose = TokenStrip.of(HOSTILE, np.linspace(-1, 1, len(HOSTILE)).astype("f4").tolist())
    again = rebuild(loose, bench, TokenStrip=TokenStrip)
    assert (again.tokens, again.values) == (loose.tokens, loose.values)


def test_strip_of_unequal_lengths_is_refused():
    with pytest.raises(InputError, match="2 tokens need as many values, got 1"):
        TokenStrip.of(["a", "b"], [1.0])


# ---- feature card


def test_card_shows_what_was_measured_and_names_its_corpus(bench):
    bench.feature("resid.1", 4).label("<b>capital</b> \u202ehint")
    card = bench.feature("resid.1", 4).card(documents=list(TEXTS)).wait(30)
    assert card.error == ""
    assert card.data["stats"]["n_documents"] == len(TEXTS)
    assert "of your own" in card.data["stats"]["corpus"]
    seen = check_inert(card.to_html())
    assert "<b>capital</b> ⟨U+202E⟩hint" in seen.text
    assert f"{card.data['stats']['n_active']} of {card.data['stats']['n_tokens']} tokens" in seen.text
    lengths = [len(e["tokens"]) for part in card.data["examples"].values() for e in part]
    assert len(np.frombuffer(card.values, dtype="<f4")) == sum(lengths)


def test_card_without_documents_says_its_corpus_is_too_small_for_a_density(bench):
    card = bench.feature("resid.1", 4).card().wait(60)
    assert "too few for a density" in card.data["stats"]["corpus"]


def test_label_typed_on_the_page_reaches_the_journal(bench):
    feature = bench.feature("resid.1", 4)
    card = FeatureCard(feature, documents=list(TEXTS)).wait(30)
    assert ask(card, "label", text="  capitals ")["ok"]
    assert feature.labels[-1]["text"] == card.spec["label"] == "capitals"
    assert "1 to 200 characters" in ask(card, "label", text=" ")["error"]


def test_card_tells_an_error_of_the_worker_under_itself(bench):
    card = FeatureCard(bench.feature("resid.1", 4), documents=["the cat", ""]).wait(30)
    assert card.error
    assert not card.computing


def test_code_of_a_card_rebuilds_it(bench):
    card = FeatureCard(bench.feature("resid.1", 4), documents=list(TEXTS), n_top=2).wait(30)
    again = rebuild(card, bench, documents=list(TEXTS)).wait(30)
    assert (again.spec, again.data, again.values) == (card.spec, card.data, card.values)


# ---- steering bench


@pytest.fixture
def steered(bench):
    """A steering bench that has answered its first request."""
    panel = SteeringBench(bench, bench.feature("resid.1", 4), prompt=CHAT, max_new_tokens=6).wait(60)
    assert panel.error == ""
    assert panel.phase == "ready"
    return panel


def test_first_strength_is_the_features_largest_activation(steered):
    (edit,), (fact,) = steered.spec["edits"], steered.facts
    assert edit["value"] == pytest.approx(fact["max"], rel=1e-2)
    assert fact["low"] < 0 < edit["value"] < fact["high"]


def test_panel_shows_what_generate_gives(bench, steered):
    steered.set_edit(0, value=40.0).wait(60)
    table = bench.compare(CHAT, steered.edits, max_new_tokens=6)
    for name, column in (("base", "unsteered"), ("steered", "steered")):
        shown = "".join(steered.result[name]["tokens"]).removesuffix("<|eos|>")
        assert shown.strip() == table[0][column].strip()
    assert any(steered.result["steered"]["marks"]), "an edit of 40 should change the text"


def test_next_token_probabilities_and_firings_are_the_runtimes(bench, steered):
    from workbench.interventions.runtime import logits

    fired = []
    edited = logits(bench.subject, bench.subject.batch([CHAT]), steered.edits, firings=fired)[0, -1].softmax(-1)
    for row in steered.result["next"]:
        token = next(i for i in range(len(edited)) if bench.subject.token_strings([i]) == [row["token"]])
        assert row["steered"] == pytest.approx(float(edited[token]), abs=1e-5)
    (shown,) = steered.result["firings"]
    assert shown["positions"] >= fired[0].touched > 0
    assert shown["max_ratio"] > 0


def test_newest_strength_wins_and_older_waiting_ones_never_run(bench, steered):
    release = threading.Event()
    bench.worker.submit(release.wait)
    ran = []
    work = steered._work
    steered._work = lambda: ran.append(steered.spec["edits"][0]["value"])
    for value in (1.0, 2.0, 3.0):
        assert ask(steered, "edit", position=0, changes={"value": value})["ok"]
    assert steered.phase == "computing"
    release.set()
    bench.worker.run(lambda: None)
    assert ran == [3.0]
    steered._work = work


MODEL_AT_WORK = """
import time, torch
from workbench.core.worker import Worker
def work(cancel):
    while True:
        torch.randn(300, 300) @ torch.randn(300, 300)
        cancel.check()
worker = Worker()
worker.submit(work)
time.sleep(0.2)
"""


def test_process_ends_cleanly_while_the_model_is_working():
    done = subprocess.run([sys.executable, "-c", MODEL_AT_WORK], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_cancel_leaves_the_old_result_and_says_so(bench, steered):
    before = steered.result
    release = threading.Event()
    bench.worker.submit(release.wait)
    ask(steered, "edit", position=0, changes={"value": 1.0})
    assert ask(steered, "cancel")["ok"]
    release.set()
    bench.worker.run(lambda: None)
    assert steered.phase == "cancelled"
    assert steered.result == before
    assert steered.run().wait(60).phase == "ready"


def test_edit_that_touches_no_token_is_told_not_shown_as_a_baseline(steered):
    steered.set_edit(0, index=23, op="scale", value=0.0).wait(60)
    assert steered.phase == "failed"
    assert "touched no token" in steered.error


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"value": float("nan")}, "finite"),
        ({"value": "1"}, "finite"),
        ({"op": "explode"}, "no op 'explode'"),
        ({"positions": "everywhere"}, "no positions 'everywhere'"),
        ({"dictionary": "resid.7"}, "no dictionary 'resid.7'"),
        ({"index": 24}, "no feature 24"),
        ({"rows": 1}, "cannot change rows"),
    ],
)
def test_change_that_does_not_fit_is_refused_and_nothing_moves(steered, changes, words):
    before = dict(steered.spec)
    answer = ask(steered, "edit", position=0, changes=changes)
    assert words in answer["error"]
    assert steered.spec == before


def test_prompt_too_long_or_empty_is_refused_and_the_old_one_stays(steered):
    before = steered.spec["prompt"]
    for prompt in ("", []):
        assert not ask(steered, "prompt", prompt=prompt)["ok"]
    assert steered.spec["prompt"] == before


def test_commit_from_the_page_keeps_the_very_edit(bench, steered):
    assert "needs a reason" in ask(steered, "commit", why=" ")["error"]
    kept = ask(steered, "commit", why="it moves the text")["result"]
    assert bench.candidates[-1].digest == kept["digest"] == steered.edits.digest()


def test_code_of_a_steering_bench_rebuilds_it(bench, steered):
    steered.add(bench.feature("mlp.2", 3)).wait(60)
    steered.set_edit(0, op="set", value=2.5, positions="generated").wait(60)
    steered.set_edit(1, value=1.5).wait(60)
    again = rebuild(steered, bench).wait(60)
    assert again.spec == steered.spec
    assert again.edits == steered.edits


def test_edit_that_no_field_can_show_keeps_everything_but_its_strength(bench):
    direction = DirectionTarget.of("north", "resid.1", bench.dictionaries["resid.1"].decoder(1))
    e = edits.add(direction, 2.0, positions="prompt", max_ratio=0.5)
    panel = SteeringBench(bench, e, prompt=CHAT, max_new_tokens=4).wait(60)
    panel.set_edit(0, value=3.0).wait(60)
    (item,) = panel.edits.items
    assert (item.target.name, item.value, item.positions.where, item.max_ratio) == ("north", 3.0, "prompt", 0.5)
    assert rebuild(panel, bench, e=e).wait(60).edits == panel.edits
    with pytest.raises(InputError, match="cannot change op"):
        panel.set_edit(0, op="set")


def test_static_form_of_a_steering_bench_shows_both_continuations(steered):
    seen = check_inert(steered.to_html())
    for name in ("base", "steered"):
        assert "".join(visible(t) for t in steered.result[name]["tokens"]) in seen.text
    data, _ = steered._repr_mimebundle_()
    assert "text/html" in data
    assert "application/vnd.jupyter.widget-view+json" in data


def test_marks_are_on_tokens_the_other_side_lacks():
    assert marks([1, 2, 3], [1, 9, 3, 4]) == ([False, True, False], [False, True, False, True])
    assert marks([], [5]) == ([], [True])
    assert marks([1, 2], [1, 2]) == ([False, False], [False, False])


def test_slider_range_covers_its_value_and_steps_are_round(bench):
    panel = SteeringBench(bench, edits.set(bench.feature("resid.1", 4).target, 500.0), prompt=CHAT, max_new_tokens=2)
    panel.wait(60)
    facts = scale_of(panel._rows[0], (2.0, "a corpus"), "")
    assert facts["low"] <= 500.0 <= facts["high"]
    assert [nice(v) for v in (0.013, 0.3, 0.011, 7)] == pytest.approx([0.02, 0.5, 0.02, 10])


def test_prompt_of_another_kind_is_refused():
    assert code_list("a 'b'") == repr("a 'b'")
    assert code_list([("user", "x")]) == "b.chat([('user', 'x')])"
    assert code_list([1, 2]) == "[1, 2]"
    assert prompt_document([{"role": "user", "content": "x"}]) == prompt_document([("user", "x")]) == [["user", "x"]]
    with pytest.raises(InputError, match="text, a chat or token ids, got int"):
        code_list(3)
