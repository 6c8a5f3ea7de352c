"""Risk axes: prompts by split, test prompts only from a nonce, files of one's own with clear errors."""

import json

import pytest
from trial_kit import tiny_axis, write_axis

from workbench.core.errors import AxisError
from workbench.features.axes import Axis, check_disjoint

NONCE = "ab" * 32


def _write(tmp_path, *rows):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_file_axis_keeps_its_splits_apart(tmp_path):
    axis = tiny_axis(tmp_path)
    dev, test = axis.items("dev", 72), axis.items("test", 72, nonce=NONCE)
    assert not {item.text for item in dev} & {item.text for item in test}
    check_disjoint(axis.id, test, dev)


def test_test_split_needs_a_nonce_and_follows_from_it(tmp_path):
    axis = tiny_axis(tmp_path)
    with pytest.raises(AxisError, match="only drawn from a nonce"):
        axis.items("test", 8)
    first, again, other = (axis.items("test", 20, nonce=one) for one in (NONCE, NONCE, "cd" * 32))
    assert first == again
    assert first != other


def test_overlap_with_what_selection_saw_is_an_error(tmp_path):
    axis = tiny_axis(tmp_path)
    items = axis.items("dev", 10)
    with pytest.raises(AxisError, match="10 of 10 test prompts were seen on dev"):
        check_disjoint("answer", items, items)


def test_same_seed_gives_the_same_dev_prompts_and_another_seed_others(tmp_path):
    axis = tiny_axis(tmp_path)
    assert axis.items("dev", 30, seed=3) == axis.items("dev", 30, seed=3)
    assert axis.items("dev", 30, seed=3) != axis.items("dev", 30, seed=4)


def test_contrast_gives_both_labels_and_never_the_test_split(tmp_path):
    axis = tiny_axis(tmp_path)
    present, absent = axis.contrast("dev", 10)
    assert len(present) == len(absent) == 10
    assert not set(present) & set(absent)
    with pytest.raises(AxisError, match="never ranked on the test split"):
        axis.contrast("test", 10)


def test_csv_reads_like_jsonl(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('text,event,against,label,cue\nhello there, yes| sure, no,1,a\n"bye, you", yes, no,0,b\n')
    items = Axis.from_file(path).items("dev", 2)
    assert {item.event for item in items} == {(" yes", " sure"), (" yes",)}
    assert {item.text for item in items} == {"hello there", "bye, you"}
    assert {item.clusters["cue"] for item in items} == {"a", "b"}


def test_changed_file_is_another_axis(tmp_path):
    path = write_axis(tmp_path)
    before = Axis.from_file(path).digest
    path.write_text(path.read_text().replace("paris", "london"))
    assert Axis.from_file(path).digest != before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"event": " yes"}, "field 'text' is missing"),
        ({"text": "a"}, "field 'event' is missing"),
        ({"text": "a", "event": 3}, "tokens are text"),
        ({"text": "a", "event": " yes", "label": 2}, "label is 0 or 1"),
        ({"text": "a", "event": " yes", "truth": "high"}, "label and truth are numbers"),
        ({"text": "a", "event": " yes", "split": "tset"}, "no split 'tset'"),
    ],
)
def test_bad_row_is_an_error_that_names_its_line(tmp_path, row, message):
    with pytest.raises(AxisError, match=message) as caught:
        Axis.from_file(_write(tmp_path, {"text": "fine", "event": " yes"}, row))
    assert "mine.jsonl:2" in str(caught.value)


def test_unreadable_files_are_clear_errors(tmp_path):
    with pytest.raises(AxisError, match="no such file"):
        Axis.from_file(tmp_path / "absent.csv")
    with pytest.raises(AxisError, match=r"cannot read \.txt"):
        Axis.from_file(tmp_path / "mine.txt")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(AxisError, match="holds no prompt"):
        Axis.from_file(tmp_path / "empty.jsonl")
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(AxisError, match="not JSON"):
        Axis.from_file(tmp_path / "broken.jsonl")


def test_asking_for_too_many_prompts_says_what_there_is(tmp_path):
    with pytest.raises(AxisError, match="asked for 500 dev prompts, the file has 72"):
        tiny_axis(tmp_path).items("dev", 500)
    with pytest.raises(AxisError, match="no split 'tets'"):
        tiny_axis(tmp_path).items("tets", 5)
