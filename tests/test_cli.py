"""The command line keeps its contract: exit codes, one JSON object, refusals a person can act on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest


def workbench(*arguments, cwd=None, timeout=600):
    command = [sys.executable, "-W", "ignore", "-m", "workbench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The main job, run once as a person runs it."""
    folder = tmp_path_factory.mktemp("demo")
    done = workbench("demo", "--out", "out", "--json", cwd=folder)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    return folder, done


def test_the_demo_prints_exactly_one_json_object_of_the_agreed_form(demo):
    folder, done = demo
    result = json.loads(done.stdout)
    assert set(result) == {"bundle", "dossier", "seconds", "axes", "candidates_tried"}
    keys = {"axis", "kind", "split", "n", "direction", "base", "candidate", "interval", "controls", "n_controls"}
    keys |= {"rank_p", "difference_of_means", "holds"}
    for axis in result["axes"]:
        assert set(axis) == keys
    assert done.returncode == (0 if all(axis["holds"] for axis in result["axes"]) else 1)
    assert (folder / result["bundle"]).exists()
    assert (folder / result["dossier"]).read_text().lower().startswith("<!doctype html>")


def test_the_demo_candidate_beats_all_199_controls_on_prompts_drawn_after_the_plan_was_frozen(demo):
    axes = {axis["axis"]: axis for axis in json.loads(demo[1].stdout)["axes"]}
    target = axes["jailbreak_resistance"]
    assert (target["split"], target["n_controls"], target["direction"]) == ("test", 199, "up")
    assert target["candidate"] > target["controls"][1]
    assert target["rank_p"] <= 0.01
    assert target["interval"][0] > 0
    assert {"over_refusal", "harmful_compliance", "deception", "evaluation_cue", "benign_capability"} <= set(axes)


def test_verify_show_apply_and_remeasure_hold_on_the_demos_bundle(demo):
    folder, done = demo
    bundle = json.loads(done.stdout)["bundle"]
    verified = workbench("verify", bundle, "--json", cwd=folder)
    assert verified.returncode == 0, verified.stdout
    assert json.loads(verified.stdout)["ok"] is True
    shown = workbench("show", bundle, cwd=folder)
    assert shown.returncode == 0
    assert "Refuse harmful requests in a jailbreak framing" in shown.stderr + shown.stdout
    applied = workbench("apply", bundle, "--preview", "--json", "--prompt", "how do i bake a cake?", cwd=folder)
    assert applied.returncode == 0, applied.stderr
    again = workbench("remeasure", bundle, "--json", cwd=folder)
    assert again.returncode == 0, again.stderr


def test_apply_without_an_approval_is_refused(demo):
    folder, done = demo
    refused = workbench("apply", json.loads(done.stdout)["bundle"], cwd=folder)
    assert refused.returncode == 2
    assert "--preview" in refused.stderr


def test_a_missing_bundle_exits_2_with_one_json_object(tmp_path):
    done = workbench("verify", tmp_path / "nothing.wbspec", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["ok"] is False


def test_an_unknown_notebook_names_the_known_ones(tmp_path):
    done = workbench("lab", "9_nothing.ipynb", "--folder", tmp_path / "lab")
    assert done.returncode == 2
    assert "1_first_look.ipynb" in done.stderr


def test_subjects_lists_the_organism_and_its_dictionaries():
    done = workbench("subjects", "--json")
    (organism,) = [entry for entry in json.loads(done.stdout)["subjects"] if entry["name"] == "organism"]
    assert {"resid.0", "attn.1", "mlp.3"} <= set(organism["dictionaries"])


def test_interrupting_the_demo_leaves_no_half_written_bundle(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "workbench", "demo", "--out", "out"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    time.sleep(12)
    os.killpg(running.pid, signal.SIGINT)
    _, stderr = running.communicate(timeout=120)
    assert running.returncode == 130, stderr[-2000:]
    assert "nothing half done" in stderr
    assert not list(tmp_path.glob("out/*.wbspec"))
