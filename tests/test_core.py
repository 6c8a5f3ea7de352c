"""Canonical bytes, files, progress and lazy names keep their promises."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.core import canonical, files, progress
from workbench.core.errors import Cancelled, InputError, SiteError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(alphabet=st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_canonical_bytes_read_back_equal_and_ignore_key_order(value):
    data = canonical.canonical_bytes(value)
    assert json.loads(data) == value
    assert canonical.canonical_bytes(json.loads(data)) == data


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, {1: 2}, "\ud800", object()])
def test_canonical_bytes_refuse_what_json_cannot_keep(value):
    with pytest.raises(InputError):
        canonical.canonical_bytes(value)


def test_derived_seeds_differ_by_nonce_purpose_and_identifier():
    seeds = {canonical.seed(n, p, i) for n in ("00", "01") for p in ("prompts", "controls") for i in ("a", "b")}
    assert len(seeds) == 8
    with pytest.raises(InputError, match="not hexadecimal"):
        canonical.seed("xyz", "prompts", "a")


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    target = tmp_path / "a.json"
    files.write_atomic(target, b"old")

    def refuse(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_changed_file_gets_a_new_digest(tmp_path):
    target = tmp_path / "weights"
    target.write_bytes(b"one")
    first = files.sha256_file(target)
    target.write_bytes(b"another")
    assert files.sha256_file(target) != first
    with pytest.raises(InputError, match="cannot read missing"):
        files.sha256_file(tmp_path / "missing")


def test_progress_reports_every_step_and_stops_between_steps_when_cancelled():
    seen, token = [], progress.CancelToken()

    class Recorder:
        def start(self, label, total):
            seen.append(("start", label, total))

        def advance(self, label, steps):
            seen.append(("advance", steps))

        def finish(self, label):
            seen.append("finish")

    done = []

    def work():
        for item in progress.track([1, 2, 3], "work", cancel=token):
            done.append(item)
            if item == 2:
                token.cancel()

    with progress.reporting(Recorder), pytest.raises(Cancelled, match="stopped on request"):
        work()
    assert done == [1, 2]
    assert seen == [("start", "work", 3), ("advance", 1), ("advance", 1), "finish"]


def test_an_error_says_what_where_and_what_next():
    error = SiteError("no site 'resdi.2'", where="subject 'organism'", hint="did you mean 'resid.2'?")
    assert str(error) == "no site 'resdi.2' [subject 'organism']; did you mean 'resid.2'?"


def test_importing_the_package_costs_no_torch():
    code = "import sys, workbench; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"
