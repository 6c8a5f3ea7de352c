"""The consumer fails closed on another model, strength, layer or picked prompts, and reproduces the rest."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from trial_kit import BENIGN, NONCE, hooks, make_kit, texts

from workbench.consumer.apply import apply
from workbench.consumer.known_answers import check_known_answers
from workbench.consumer.live import check_sites, check_subject, read_edits, verified
from workbench.consumer.remeasure import remeasure
from workbench.core.errors import BundleError, EditError, TrialError
from workbench.evidence.export import export
from workbench.evidence.known_answers import make_known_answers
from workbench.evidence.run import run
from workbench.interventions.controls import dosed
from workbench.interventions.edits import Edits
from workbench.interventions.runtime import last_logits, logits
from workbench.models.subject import load_subject
from workbench.spec.bundle import make_files, read_bundle, write_bundle
from workbench.spec.documents.edit import EditDocument
from workbench.spec.documents.manifest import Manifest
from workbench.spec.verify import verify


@pytest.fixture(scope="module")
def model(tiny_dir):
    return tiny_dir("llama")


@pytest.fixture(scope="module")
def kit(tiny_subject, tmp_path_factory):
    return make_kit(tiny_subject("llama"), tmp_path_factory.mktemp("kit"))


@pytest.fixture(scope="module")
def measurement(kit):
    return run(kit.draft().freeze(), kit.subject, draw=lambda: NONCE)


@pytest.fixture(scope="module")
def bundle(kit, measurement, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "yes.wbspec"
    dictionaries = {kit.dictionary.id: kit.dictionary}
    return export(path, measurement, kit.subject, dictionaries, texts=texts(), corpus=BENIGN, corpus_name="small talk")


@pytest.fixture
def axes(kit):
    return {axis.id: axis for axis in kit.axes}


@pytest.fixture
def changed(model, tmp_path):
    """A copy of the model's directory, to be spoilt."""
    return shutil.copytree(model, tmp_path / "changed")


# export


def test_export_writes_a_bundle_that_verifies_and_says_what_it_stands_on(bundle, kit, measurement):
    found = verify(bundle)
    assert found.ok, found.checks[-1]
    spec = found.bundle.spec
    assert [(one.dictionary, one.index) for one in spec.features] == [("resid.1", 5)]
    feature = spec.features[0]
    assert 0 <= feature.density <= 1
    assert feature.n_tokens > 10
    assert {one.drawn for one in feature.examples} <= {"top", "random"}
    assert feature.ablation_effect is not None
    assert "selection" in feature.unmeasured
    assert len(spec.known_answers.answers) >= 8
    assert found.bundle.measurement.nonce == NONCE
    assert set(found.bundle.tensors) == {key for edit in spec.edits for key in _keys(edit)}
    assert "/" not in (spec.subject.source.repo or "")


def _keys(edit: EditDocument):
    target = edit.target
    return target.rows.values() if target.kind == "feature" else (target.read, target.write)


def test_export_of_another_subject_is_refused(measurement, kit, tiny_subject, tmp_path):
    with pytest.raises(TrialError, match="not the one that was measured"):
        export(tmp_path / "x.wbspec", measurement, tiny_subject("qwen2"), {}, texts=texts())
    assert not list(tmp_path.iterdir())


def test_known_answers_need_prompts_on_which_every_edit_acts(kit):
    with pytest.raises(TrialError, match="3 prompts for known answers, at least 8"):
        make_known_answers(kit.subject, kit.edits, [one.text for one in kit.axes[0].items("dev", 3)])


# apply


def test_apply_needs_preview_since_nothing_is_approved(bundle, model):
    with pytest.raises(BundleError, match="nobody has approved") as caught:
        apply(bundle, model)
    assert caught.value.check == "approval"


def test_applied_edit_equals_the_workbench_bit_for_bit(bundle, model, kit):
    applied = apply(bundle, model, preview=True)
    prompts = [one.text for one in kit.axes[0].items("dev", 6)]
    ours = last_logits(kit.subject, prompts, kit.edits)
    assert torch.equal(last_logits(applied.subject, prompts, applied.edits), ours)
    batch = applied.subject.batch(prompts[:2])
    before = hooks(applied.subject)
    with applied as running:
        inside = applied.subject.logits(batch)
    assert all(one.touched for one in running.firings)
    assert torch.equal(inside, logits(kit.subject, kit.subject.batch(prompts[:2]), kit.edits))
    assert hooks(applied.subject) == before
    assert torch.equal(applied.subject.logits(batch), kit.subject.logits(batch))


def test_applied_edit_generates_and_reports(bundle, model):
    applied = apply(bundle, model, preview=True)
    both = applied.compare("<|bos|><|user|> the cat<|assistant|>", max_new_tokens=6)
    assert both["base"] != both["candidate"]
    assert applied.generate("<|bos|><|user|> the cat<|assistant|>", max_new_tokens=6)[0].text == both["candidate"]
    report = json.loads(json.dumps(applied.to_json()))
    assert report["preview"] is True
    assert len(report["known_answers"]) >= 8
    assert max(one["edited"] for one in report["known_answers"]) == 0


def test_swapped_weights_are_refused(bundle, changed):
    weights = load_file(changed / "model.safetensors")
    name = next(iter(sorted(weights)))
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BundleError, match=r"weight file model\.safetensors of the live subject is") as caught:
        apply(bundle, changed, preview=True)
    assert caught.value.check == "subject"


def test_another_family_is_refused(bundle, tiny_dir):
    with pytest.raises(BundleError) as caught:
        apply(bundle, tiny_dir("qwen2"), preview=True)
    assert caught.value.check == "subject"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("tokenizer_config.json", '"model_max_length": 64', '"model_max_length": 63', "the tokenizer"),
        ("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05', "config.json"),
        ("chat_template.jinja", "{{ bos_token }}", "{{ bos_token }} ", "the chat template"),
    ],
)
def test_changed_tokenizer_config_or_template_is_refused(bundle, changed, file, old, new, message):
    text = (changed / file).read_text()
    assert old in text
    (changed / file).write_text(text.replace(old, new))
    with pytest.raises(BundleError, match=f"{message} of the live subject is") as caught:
        apply(bundle, changed, preview=True)
    assert caught.value.check == "subject"


def test_site_of_another_width_or_module_is_refused(bundle, kit):
    spec = read_bundle(bundle).spec
    for field, value in (("width", 64), ("hf_module", "model.layers.0"), ("hf_side", "input"), ("name", "resid.7")):
        sites = (spec.sites[0].model_copy(update={field: value}), *spec.sites[1:])
        with pytest.raises(BundleError) as caught:
            check_sites(spec.model_copy(update={"sites": sites}), kit.subject)
        assert caught.value.check == "sites"


def test_tampered_tensors_and_a_missing_bundle_are_refused(bundle, model, tmp_path):
    files = dict(read_bundle(bundle).files)
    folder = tmp_path / "tampered"
    data = bytearray(files["tensors.safetensors"])
    data[-2] ^= 1
    files["tensors.safetensors"] = bytes(data)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    with pytest.raises(BundleError) as caught:
        apply(folder, model, preview=True)
    assert caught.value.check in ("tensors", "manifest")
    with pytest.raises(BundleError):
        apply(tmp_path / "absent.wbspec", model, preview=True)


def test_changed_strength_fails_known_answers_though_everything_is_hashed_again(bundle, model, tmp_path):
    opened = read_bundle(bundle)
    edits = [document.to_json() for document in opened.spec.edits]
    edits[0]["value"] *= 1.25
    tensors = {name: torch.tensor(array) for name, array in opened.tensors.items()}
    identity = Edits.from_doc(edits, tensors).digest()
    spec = opened.spec.model_copy(update={"edits": tuple(EditDocument.from_json(one) for one in edits)})
    plan = opened.plan.model_copy(update={"edits": identity})
    measured = opened.measurement.model_copy(update={"edits": identity, "plan": plan.identity()})
    path = write_bundle(tmp_path / "stronger.wbspec", spec, plan, measured, opened.tensors, opened.outcomes)
    assert verify(path).ok
    with pytest.raises(BundleError, match=r"known answer 0: an edited logit differs by") as caught:
        apply(path, model, preview=True)
    assert caught.value.check == "known_answers"


def test_runtime_that_ignores_or_doubles_the_edit_fails_known_answers(bundle, kit):
    opened = read_bundle(bundle)
    edits = read_edits(opened)
    assert len(check_known_answers(opened.spec, kit.subject, edits)) >= 8
    for dose in (0.0, 0.5, 2.0):
        with pytest.raises(BundleError, match="known answer 0"):
            check_known_answers(opened.spec, kit.subject, dosed(edits, dose))


def test_edit_that_acts_elsewhere_fails_known_answers_by_its_firings(bundle, kit):
    opened = read_bundle(bundle)
    answers = opened.spec.known_answers
    fewer = answers.answers[0].model_copy(
        update={"firings": tuple(one.model_copy(update={"positions": 1}) for one in answers.answers[0].firings)}
    )
    known = answers.model_copy(update={"answers": (fewer, *answers.answers[1:])})
    with pytest.raises(BundleError, match="recorded were 1"):
        check_known_answers(opened.spec.model_copy(update={"known_answers": known}), kit.subject, read_edits(opened))


def test_unknown_model_of_a_local_spec_asks_for_its_directory(bundle):
    with pytest.raises(BundleError, match="cannot be found from here"):
        apply(bundle, None, preview=True)


def test_other_precision_than_measured_is_refused(bundle, kit, model):
    half = load_subject(model, name=kit.subject.name, dtype="bfloat16")
    with pytest.raises(BundleError, match="dtype of the live subject is bfloat16, the bundle was measured on float32"):
        check_subject(read_bundle(bundle).spec.subject, half)


# re-measure


def test_remeasure_reproduces_every_outcome_to_the_last_bit(bundle, model, axes):
    report = remeasure(bundle, model, axes=axes)
    assert report.ok
    assert [axis["axis"] for axis in report.axes] == ["answer", "bystander"]
    assert all(axis["max_difference"] == 0 and axis["prompts_redrawn"] for axis in report.axes)
    assert all(axis["verdict"] == axis["recorded_verdict"] for axis in report.axes)
    assert json.loads(json.dumps(report.to_json()))["ok"] is True
    assert "reproduced" in repr(report)


def test_remeasure_without_the_axis_source_runs_the_recorded_prompts(bundle, model):
    report = remeasure(bundle, model, axes={})
    assert report.ok
    assert not any(axis["prompts_redrawn"] for axis in report.axes)


def test_remeasure_finds_invented_outcomes(bundle, model, axes, kit, measurement, tmp_path):
    invented = {}
    for name, found in measurement.axes.items():
        arms = dict(found.arms)
        if name == "answer":
            better = np.clip(arms["candidate"].value + 0.02, 0, 1)
            arms["candidate"] = type(arms["candidate"])(better, arms["candidate"].mass)
        invented[name] = type(found)(found.items, arms, found.continuations)
    claimed = _replaced(measurement, axes=invented)
    dictionaries = {kit.dictionary.id: kit.dictionary}
    path = export(tmp_path / "invented.wbspec", claimed, kit.subject, dictionaries, texts=texts())
    assert verify(path).ok
    report = remeasure(path, model, axes=axes)
    assert not report.ok
    assert [axis["holds"] for axis in report.axes] == [False, True]
    assert report.axes[0]["max_difference"] == pytest.approx(0.02)


def test_remeasure_refuses_prompts_that_the_nonce_does_not_draw(bundle, model, axes, kit, measurement, tmp_path):
    picked = dict(measurement.axes)
    found = picked["answer"]
    order = [*range(1, len(found.items)), 0]
    arms = {name: type(one)(one.value[order], one.mass[order]) for name, one in found.arms.items()}
    picked["answer"] = type(found)(tuple(found.items[k] for k in order), arms, ())
    claimed = _replaced(measurement, axes=picked)
    path = export(tmp_path / "picked.wbspec", claimed, kit.subject, {kit.dictionary.id: kit.dictionary}, texts=texts())
    assert verify(path).ok
    with pytest.raises(BundleError, match="prompt 0 is not the one that the nonce draws"):
        remeasure(path, model, axes=axes)


def _replaced(measurement, **fields):
    import dataclasses

    return dataclasses.replace(measurement, **fields)


def test_unverified_bundle_is_never_measured(bundle, model, tmp_path):
    opened = read_bundle(bundle)
    files = make_files(opened.spec, opened.plan, opened.measurement, opened.tensors, opened.outcomes)
    files["dossier.html"] += b" "
    files["manifest.json"] = Manifest.of(files).to_bytes()
    folder = tmp_path / "forged"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    with pytest.raises(BundleError) as caught:
        verified(folder)
    assert caught.value.check == "dossier"


def test_consumer_reaches_no_research_library(bundle, model):
    code = (
        "import sys; from workbench.consumer.remeasure import remeasure; from workbench.consumer.apply import apply;"
        f"applied = apply({str(bundle)!r}, {str(model)!r}, preview=True);"
        "bad = [m for m in ('transformer_lens', 'sae_lens', 'IPython', 'ipywidgets', 'anywidget', 'plotly') "
        "if m in sys.modules]; print(bad); sys.exit(bool(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_dictionary_as_wide_as_another_model_never_reaches_the_hooks(kit, tiny_subject):
    from trial_kit import make_dictionary, yes_edits

    wide = make_dictionary(kit.subject.d_model * 2)
    with pytest.raises(EditError, match="width"):
        last_logits(kit.subject, [BENIGN[0]], yes_edits(kit.subject, wide))
