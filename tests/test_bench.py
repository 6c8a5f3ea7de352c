"""The bench on somebody's own model directory: prompts, features, edits, candidates and history that stay."""

import shutil

import pytest
from tiny_dictionaries import random_dictionary

import workbench as wb
from workbench.bench.bench import Bench, open_bench
from workbench.core.errors import (
    AxisError,
    DictionaryError,
    InputError,
    JournalError,
    PromptError,
    SubjectError,
    WorkbenchError,
)


@pytest.fixture
def bench(tiny_subject, tmp_path):
    subject = tiny_subject("llama")
    dictionary = random_dictionary(subject, "resid.1", d_dict=32, seed=1)
    return Bench(subject, {"resid.1": dictionary}, project=str(tmp_path / "projects" / "mine"))


def test_comparing_shows_both_continuations_on_the_same_random_numbers(bench):
    feature = bench.feature("resid.1", 3)
    strong = wb.edits.add(feature, 40.0)
    table = bench.compare("the cat sat on", strong, n=3, temperature=1.0, seed=5, max_new_tokens=6)
    assert [row["unsteered"] for row in table] == [
        row["text"] for row in bench.generate("the cat sat on", n=3, temperature=1.0, seed=5, max_new_tokens=6)
    ]
    assert not all(row["same"] for row in table)
    nothing = bench.compare("the cat sat on", wb.edits.scale(feature, 1.0), max_new_tokens=6, temperature=0.0)
    assert all(row["same"] for row in nothing)


def test_a_candidate_is_there_again_tomorrow_with_equal_digest(bench):
    edit = wb.edits.scale(bench.feature("resid.1", 3), 0.0) + wb.edits.add(bench.feature("resid.1", 5), 2.0)
    kept = bench.commit(edit, why="looks promising")
    again = Bench(bench.subject, bench.dictionaries, project=str(bench.folder))
    (found,) = again.candidates
    assert (found.id, found.why, found.digest) == ("c1", "looks promising", edit.digest())
    assert found.edits.digest() == kept.edits.digest()
    assert [row["kind"] for row in again.history()] == ["opened", "committed", "opened"]
    bench.journal.check()


def test_a_candidate_whose_tensors_were_changed_is_refused(bench):
    kept = bench.commit(wb.edits.add(bench.feature("resid.1", 1), 1.0), why="first")
    other = bench.commit(wb.edits.add(bench.feature("resid.1", 2), 1.0), why="second")
    folder = bench.folder / "candidates"
    shutil.copy(folder / f"{other.digest}.safetensors", folder / f"{kept.digest}.safetensors")
    with pytest.raises(JournalError, match="is not what was committed"):
        _ = bench.candidates


def test_committing_needs_a_reason_and_an_edit(bench):
    with pytest.raises(InputError, match="needs a reason"):
        bench.commit(wb.edits.add(bench.feature("resid.1", 1), 1.0), why="  ")
    assert bench.candidates == []


def test_labels_are_kept_with_author_and_time_and_never_overwritten(bench):
    feature = bench.feature("resid.1", 7).label("cats", author="ann").label("animals", author="bo")
    assert [(one["text"], one["author"]) for one in feature.labels] == [("cats", "ann"), ("animals", "bo")]
    assert feature.target.label == "animals"
    assert bench.feature("resid.1", 8).labels == []


def test_activations_of_a_feature_are_those_of_its_dictionary(bench):
    tokens, values = bench.feature("resid.1", 3).activations("the cat sat")
    assert len(tokens) == len(values) == len(bench.subject.encode("the cat sat"))
    assert (values >= 0).all()


def test_selection_reaches_every_listener_until_it_leaves(bench):
    seen = []
    leave = bench.on_select(lambda feature: seen.append(feature.index))
    bench.select(bench.feature("resid.1", 3))
    leave()
    bench.select(bench.feature("resid.1", 4))
    assert (seen, bench.selected.index) == ([3], 4)


def test_tables_escape_model_text_and_show_bidirectional_characters(bench):
    from workbench.bench.results import Table

    hostile = Table(("text",), ({"text": "<script>alert(1)</script>\u202ereversed"},), title="<b>")
    page = hostile._repr_html_()
    assert "<script>" not in page
    assert "<b>" not in page
    assert "⟨U+202E⟩reversed" in page
    assert "⟨U+202E⟩" in repr(hostile)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b: b.feature("resdi.1", 0), DictionaryError, r"no dictionary 'resdi\.1'.*known: resid\.1"),
        (lambda b: b.feature("resid.1", 32), DictionaryError, r"has features 0 to 31"),
        (lambda b: b.axis("jailbrake"), AxisError, "no axis 'jailbrake'"),
        (lambda b: b.generate(""), PromptError, "empty"),
        (lambda b: b.generate("the " * 100), PromptError, "context"),
        (lambda b: b.chat([("robot", "hello")]), PromptError, "role"),
        (lambda b: b.add(b.subject.name, "organism"), SubjectError, "already a subject"),
    ],
)
def test_a_mistake_gets_a_clear_error(bench, call, error, message):
    with pytest.raises(error, match=message):
        call(bench)


def test_a_view_without_widgets_says_what_to_import(bench, monkeypatch):
    monkeypatch.setattr("workbench.bench.views._factories", {})
    with pytest.raises(WorkbenchError, match=r"import workbench\.widgets\.views"):
        bench.tokens("the cat")


def test_a_missing_model_directory_is_named(tmp_path):
    with pytest.raises(SubjectError, match="nowhere"):
        open_bench(tmp_path / "nowhere", project=str(tmp_path / "p"))
