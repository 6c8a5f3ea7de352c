"""Dictionaries compute what sae-lens computes, and say no to what they cannot read."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.core.errors import DictionaryError, PromptError
from workbench.models.architecture import ACTIVATIONS, DictionaryConfig
from workbench.models.dictionary import Dictionary, Metadata, load_dictionary
from workbench.models.fit import BadFitWarning, Fit, check_fits, fit, warn_bad_fit
from workbench.models.reading import read_sites
from workbench.models.rows import FeatureRows
from workbench.models.samples import sample_prompts
from workbench.models.sites import Site

D_IN, D_OUT, D_DICT = 16, 24, 48
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
CASES = [
    (architecture, scaling, subtracts, rescales)
    for architecture, scaling, subtracts, rescales in itertools.product(
        ACTIVATIONS, NORMALISATIONS, (True, False), (True, False)
    )
    if not (architecture.endswith("transcoder") and subtracts) and not (rescales and architecture != "topk")
]


def save_sae(folder, architecture="standard", scaling="none", subtracts=False, rescales=False, **options):
    """Let sae-lens itself save a dictionary with random weights, and give what it is."""
    from sae_lens.registry import get_sae_class

    kind, config = get_sae_class(architecture)
    fields = {"d_in": D_IN, "d_sae": D_DICT, "normalize_activations": scaling, "apply_b_dec_to_input": subtracts}
    fields |= {"d_out": D_OUT} if architecture.endswith("transcoder") else {}
    fields |= {"k": 5, "rescale_acts_by_decoder_norm": rescales} if architecture == "topk" else {}
    sae = kind(config(**fields | options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise.abs() if name == "threshold" else 0.3 * noise)
    if architecture.endswith("transcoder"):
        sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
    else:
        sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    sae.save_model(folder)
    return sae


@pytest.fixture
def inputs():
    return torch.randn(3, 7, D_IN, generator=torch.Generator().manual_seed(1)) * 2 + 0.5


@pytest.fixture
def saved(tmp_path):
    save_sae(tmp_path / "resid.1", "jumprelu", subtracts=True)
    return tmp_path / "resid.1"


def edit_config(folder, **changes):
    """Change fields of cfg.json; `None` removes one."""
    path = folder / "cfg.json"
    cfg = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in cfg.items() if value is not None}))


@pytest.mark.parametrize(("architecture", "scaling", "subtracts", "rescales"), CASES)
def test_encode_and_decode_are_bit_equal_to_sae_lens(tmp_path, inputs, architecture, scaling, subtracts, rescales):
    from sae_lens import SAE

    save_sae(tmp_path, architecture, scaling, subtracts, rescales)
    theirs, ours = SAE.load_from_disk(tmp_path), load_dictionary(tmp_path)
    with torch.no_grad():
        acts, out = theirs.encode(inputs), theirs(inputs)
    assert torch.equal(ours.encode(inputs), acts)
    assert torch.equal(ours.decode(acts, inputs), out)
    assert 0.02 < (acts > 0).float().mean() < 0.9
    assert ours.kind == ("transcoder" if "transcoder" in architecture else "sae")


def test_a_batch_topk_saved_for_inference_is_read_as_jumprelu(tmp_path, inputs):
    from sae_lens import SAE
    from sae_lens.registry import get_sae_training_class

    kind, config = get_sae_training_class("batchtopk")
    sae = kind(config(d_in=D_IN, d_sae=D_DICT, k=4))
    sae.topk_threshold.fill_(0.4)
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    sae.save_inference_model(tmp_path)
    ours = load_dictionary(tmp_path)
    assert ours.architecture == "jumprelu"
    with torch.no_grad():
        assert torch.equal(ours.encode(inputs), SAE.load_from_disk(tmp_path).encode(inputs))


def test_a_hook_z_dictionary_reads_the_heads_concatenated(tmp_path):
    from sae_lens import SAE

    sae = save_sae(tmp_path, "standard")
    sae.cfg.reshape_activations, sae.cfg.metadata.hook_name = "hook_z", "blocks.1.attn.hook_z"
    sae.save_model(tmp_path)
    heads = torch.randn(2, 5, 4, D_IN // 4, generator=torch.Generator().manual_seed(2))
    theirs, ours = SAE.load_from_disk(tmp_path), load_dictionary(tmp_path)
    with torch.no_grad():
        acts, out = theirs.encode(heads), theirs(heads)
    flat = heads.flatten(-2)
    assert torch.equal(ours.encode(flat), acts)
    assert torch.equal(ours.decode(acts, flat), out.flatten(-2))
    assert ours.read_site == Site("z", 1)


def test_half_precision_files_are_computed_in_float32(tmp_path, inputs):
    sae = save_sae(tmp_path, "jumprelu", dtype="float16")
    ours = load_dictionary(tmp_path)
    assert ours.dtype == torch.float32
    assert torch.equal(ours.weights["W_enc"], sae.W_enc.detach().float())
    assert load_dictionary(tmp_path, dtype="bfloat16").encode(inputs).dtype == torch.bfloat16


@pytest.mark.parametrize(("architecture", "scaling", "subtracts", "rescales"), [c for c in CASES if c[0] != "topk"])
def test_rows_encode_and_write_what_the_dictionary_does(tmp_path, inputs, architecture, scaling, subtracts, rescales):
    save_sae(tmp_path, architecture, scaling, subtracts, rescales)
    sae, picked = load_dictionary(tmp_path), [3, 40, 7]
    rows = sae.rows(picked)
    acts = sae.encode(inputs)
    torch.testing.assert_close(rows.encode(inputs), acts[..., picked], rtol=0, atol=2e-6)
    changed = acts.clone()
    changed[..., picked] += torch.tensor([1.0, -0.5, 2.0])
    expected = sae.decode(changed, inputs) - sae.decode(acts, inputs)
    delta = rows.scale(inputs) * (torch.tensor([1.0, -0.5, 2.0]) @ rows.W_dec)
    torch.testing.assert_close(delta.expand_as(expected), expected, rtol=0, atol=2e-5)
    assert rows.index == (3, 40, 7)


def test_rows_survive_the_way_through_documents_and_tensors(tmp_path, inputs):
    for architecture, scaling in (("gated", "layer_norm"), ("jumprelu_skip_transcoder", "none"), ("standard", "none")):
        save_sae(tmp_path / architecture, architecture, scaling, subtracts=architecture == "gated")
        rows = load_dictionary(tmp_path / architecture).rows([1, 2])
        again = FeatureRows.from_tensors(json.loads(json.dumps(rows.to_doc())), rows.tensors("e1"), "e1")
        assert torch.equal(again.encode(inputs), rows.encode(inputs))
        assert torch.equal(again.scale(inputs), rows.scale(inputs))
        assert torch.equal(rows.take([1]).encode(inputs), rows.encode(inputs)[..., 1:]) or torch.allclose(
            rows.take([1]).encode(inputs), rows.encode(inputs)[..., 1:], atol=1e-6
        )


def test_rows_without_what_their_activation_needs_are_refused():
    tensors = {"W_enc": torch.ones(2, 1), "b_enc": torch.zeros(1), "W_dec": torch.ones(1, 2)}
    with pytest.raises(DictionaryError, match="jumprelu rows need threshold"):
        FeatureRows(index=(0,), activation="jumprelu", **tensors)
    with pytest.raises(DictionaryError, match="W_dec of features \\[0\\] is not finite"):
        FeatureRows(index=(0,), activation="relu", **{**tensors, "W_dec": torch.full((1, 2), torch.nan)})
    with pytest.raises(DictionaryError, match=r"e1\.W_enc"):
        FeatureRows.from_tensors({}, {}, "e1")


def test_rows_of_a_topk_dictionary_are_refused(tmp_path):
    save_sae(tmp_path, "topk")
    with pytest.raises(DictionaryError, match="TopK dictionary are not enough"):
        load_dictionary(tmp_path).rows([1])


def test_the_error_is_what_is_left_unexplained(tmp_path, inputs):
    save_sae(tmp_path / "a", "gated", "layer_norm")
    sae = load_dictionary(tmp_path / "a")
    assert torch.equal(sae.error(inputs), inputs - sae.decode(sae.encode(inputs), inputs))
    save_sae(tmp_path / "b", "skip_transcoder")
    transcoder, written = load_dictionary(tmp_path / "b"), torch.randn(3, 7, D_OUT)
    assert transcoder.error(inputs, written).shape == written.shape
    with pytest.raises(DictionaryError, match=r"transcoder needs y, what mlp\.1 held"):
        transcoder.error(inputs)
    with pytest.raises(DictionaryError, match="needs the input x"):
        transcoder.decode(transcoder.encode(inputs))


def test_a_misspelt_metadata_field_never_reads_as_none(saved):
    metadata = load_dictionary(saved).metadata
    assert metadata["hook_name"] == "blocks.1.hook_resid_post"
    for read in (lambda: metadata["hok_name"], lambda: metadata.get("hok_name")):
        with pytest.raises(DictionaryError, match=r"no field 'hok_name'; did you mean 'hook_name'"):
            read()
    assert metadata.get("hok_name", 7) == 7
    with pytest.raises(DictionaryError, match="known: a, b"):
        Metadata(a=1, b=2)["zzz"]


@pytest.mark.parametrize("index", [-1, D_DICT, 10**9])
def test_a_feature_that_is_not_there_names_the_range(saved, index):
    sae = load_dictionary(saved)
    for read in (lambda: sae.decoder(index), lambda: sae.rows([0, index])):
        with pytest.raises(DictionaryError, match=rf"no feature {index}: features are 0 to {D_DICT - 1} \[resid.1\]"):
            read()


def test_activations_of_another_width_name_both(saved):
    with pytest.raises(DictionaryError, match=r"'resid.1' reads width 16, the activations have width 20"):
        load_dictionary(saved).encode(torch.zeros(2, 20))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("temporal", "'temporal' is not supported"),
        ("matching_pursuit", "'matching_pursuit' is not supported"),
        ("crosscoder", "'crosscoder' is not supported; supported: standard, jumprelu"),
        ("abstopk", "'abstopk' is not supported"),
        ("batchtopk", "save it for inference first"),
        ("matryoshka_batchtopk", "save it for inference first"),
    ],
)
def test_other_architectures_are_refused_by_name(saved, architecture, message):
    edit_config(saved, architecture=architecture)
    with pytest.raises(DictionaryError, match=message):
        load_dictionary(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalize_activations": "expected_average_only_in"}, "fold the dataset's scaling factor"),
        ({"normalize_activations": "covariance_whitening"}, "'covariance_whitening' is not supported"),
        ({"reshape_activations": "hook_q"}, "reshape_activations 'hook_q'"),
        ({"d_in": 20}, r"W_enc has shape \(16, 48\), the configuration says \(20, 48\)"),
        ({"d_in": "16"}, "d_in must be a int, got '16'"),
        ({"d_sae": True}, "d_sae must be a int, got True"),
        ({"d_sae": None}, "d_sae must be a int, got None"),
        ({"architecture": "standard"}, "unknown: threshold"),
        ({"architecture": "gated"}, "absent: b_gate, b_mag, r_mag, unknown: b_enc, threshold"),
        ({"finetuning_gain": 2.0}, "fields that are not known: finetuning_gain"),
        ({"metadata": {"hook_name": "blocks.1.hook_resid_pst"}}, "did you mean 'hook_resid_post'"),
        ({"metadata": {}}, r"hook_name is absent .*pass site='resid.2'"),
        ({"metadata": {"hook_name": "blocks.1.hook_resid_post", "hook_head_index": 2}}, "single head"),
    ],
)
def test_a_configuration_that_does_not_hold_together_is_refused(saved, changes, message):
    edit_config(saved, **changes)
    with pytest.raises(DictionaryError, match=message):
        load_dictionary(saved)


def test_metadata_that_contradict_themselves_name_both_sides(saved):
    hooks = {"hook_name": "blocks.1.hook_resid_post", "hf_hook_name": "model.layers.2.output"}
    edit_config(saved, metadata=hooks)
    with pytest.raises(DictionaryError, match=r"'model.layers.2.output' means resid.2 and .* means resid.1"):
        load_dictionary(saved)
    assert load_dictionary(saved, site="resid.2").read_site == Site("resid", 2)


def test_the_module_name_decides_where_the_hook_name_is_a_trap(tmp_path):
    save_sae(tmp_path, "jumprelu_transcoder")
    edit_config(
        tmp_path,
        metadata={
            "hook_name": "blocks.1.hook_mlp_in",
            "hf_hook_name": "model.layers.1.pre_feedforward_layernorm.output",
            "hook_name_out": "blocks.1.hook_mlp_out",
        },
    )
    transcoder = load_dictionary(tmp_path)
    assert (str(transcoder.read_site), str(transcoder.write_site)) == ("mlp_in.1", "mlp.1")


def test_configurations_from_before_sae_lens_6_are_read(saved, inputs):
    before = load_dictionary(saved).encode(inputs)
    old = {
        "architecture": "jumprelu",
        "d_in": D_IN,
        "d_sae": D_DICT,
        "activation_fn_str": "relu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "hook_point": "blocks.1.hook_resid_pre",
        "model_name": "gpt2-small",
        "dtype": "torch.float32",
    }
    (saved / "cfg.json").write_text(json.dumps(old))
    sae = load_dictionary(saved)
    assert torch.equal(sae.encode(inputs), before)
    assert sae.read_site == Site("resid", 0)
    assert sae.metadata["model_name"] == "gpt2-small"
    (saved / "cfg.json").write_text(json.dumps({**old, "activation_fn_str": "tanh-relu"}))
    with pytest.raises(DictionaryError, match="'tanh-relu' is not supported"):
        load_dictionary(saved)


def test_an_sae_that_writes_elsewhere_is_refused():
    config = DictionaryConfig("standard", 4, 4, 8)
    weights = {name: torch.zeros(shape) for name, shape in config.shapes().items()}
    with pytest.raises(DictionaryError, match=r"reads resid.1 and writes mlp.1"):
        Dictionary(config, weights, id="x", read_site=Site("resid", 1), write_site=Site("mlp", 1))


def test_a_truncated_file_is_named(saved):
    path = saved / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DictionaryError, match=r"sae_weights.safetensors is truncated"):
        load_dictionary(saved)


def test_a_missing_file_is_named(saved):
    (saved / "sae_weights.safetensors").unlink()
    with pytest.raises(DictionaryError, match=r"missing file sae_weights.safetensors"):
        load_dictionary(saved)
    (saved / "cfg.json").unlink()
    with pytest.raises(DictionaryError, match=r"missing file cfg.json"):
        load_dictionary(saved)


def test_a_configuration_that_is_not_json_is_named(saved):
    (saved / "cfg.json").write_text("{")
    with pytest.raises(DictionaryError, match=r"cfg.json is not JSON"):
        load_dictionary(saved)


def test_weights_that_are_not_finite_are_refused(saved):
    tensors = load_file(saved / "sae_weights.safetensors")
    tensors["b_dec"][3] = torch.inf
    save_file(tensors, saved / "sae_weights.safetensors")
    with pytest.raises(DictionaryError, match="b_dec holds values that are not finite"):
        load_dictionary(saved)


def test_the_digest_follows_weights_and_configuration(saved, tmp_path):
    first = load_dictionary(saved).digest
    again = shutil.copytree(saved, tmp_path / "copy")
    assert load_dictionary(again).digest == first
    edit_config(again, apply_b_dec_to_input=False)
    assert load_dictionary(again).digest != first


def perfect(subject, site="resid.1", **metadata):
    """A dictionary that reconstructs exactly: every coordinate and its negative are features."""
    width = subject.path(site).width
    eye = torch.eye(width)
    config = DictionaryConfig("standard", width, width, 2 * width)
    weights = {"W_enc": torch.cat([eye, -eye], 1), "W_dec": torch.cat([eye, -eye]), "b_enc": torch.zeros(2 * width)}
    weights["b_dec"] = torch.zeros(width)
    return Dictionary(config, weights, id="perfect", read_site=subject.site(site), metadata=metadata)


PROMPTS = ["the cat sat on the mat", "what is the capital of france please", [("user", "help me")]]


def test_the_fit_of_a_perfect_dictionary_leaves_nothing_unexplained(any_subject):
    found = fit(perfect(any_subject), any_subject, PROMPTS)
    assert found.unexplained_variance < 1e-10
    assert abs(found.l0 - any_subject.d_model) < 0.5
    ordinary = sum(one not in any_subject.special_ids for prompt in PROMPTS for one in any_subject.encode(prompt))
    assert found.n_tokens == ordinary


def test_the_fit_equals_its_definition(tiny_subject):
    subject, dictionary = tiny_subject("gemma3"), perfect(tiny_subject("gemma3"))
    noise = torch.randn(dictionary.weights["W_dec"].shape, generator=torch.Generator().manual_seed(3))
    dictionary.weights["W_dec"] = dictionary.weights["W_dec"] + 0.2 * noise
    rows = []
    for prompt in PROMPTS:
        batch = subject.batch([prompt])
        keep = [one not in subject.special_ids for one in batch.row(0)]
        rows.append(read_sites(subject, batch, [dictionary.read_site])[dictionary.read_site][0, keep])
    x = torch.cat(rows).double()
    error = (x - dictionary.decode(dictionary.encode(x.float())).double()).square().sum()
    expected = (error / (x - x.mean(0)).square().sum()).item()
    assert fit(dictionary, subject, PROMPTS).unexplained_variance == pytest.approx(expected, rel=1e-5)


def test_a_dictionary_at_the_wrong_place_is_a_loud_warning_with_the_number(tiny_subject):
    subject = tiny_subject("llama")
    dictionary = perfect(subject)
    dictionary.weights["W_enc"] = dictionary.weights["W_enc"].roll(1, dims=1)
    found = fit(dictionary, subject, PROMPTS)
    assert found.is_bad
    with pytest.warns(BadFitWarning, match=rf"leaves {found.unexplained_variance:.2f} of the variance at resid.1"):
        warn_bad_fit(dictionary, subject, found)
    warn_bad_fit(dictionary, subject, Fit(0.4, 10.0, 100))
    assert Fit(float("nan"), 0.0, 10).is_bad


def test_a_fit_without_ordinary_tokens_is_refused(tiny_subject):
    subject = tiny_subject("llama")
    with pytest.raises(PromptError, match="at least two ordinary tokens, got 0"):
        fit(perfect(subject), subject, [[subject.tokenizer.bos_token_id]])


def test_a_dictionary_of_another_width_names_both_sides(tiny_subject, saved):
    with pytest.raises(DictionaryError, match=r"'resid.1' reads width 16, subject 'tiny-llama' has width 32 there"):
        check_fits(load_dictionary(saved), tiny_subject("llama"))


def test_a_dictionary_of_a_layer_that_is_not_there_names_both_sides(tiny_subject):
    subject, dictionary = tiny_subject("llama"), perfect(tiny_subject("llama"))
    dictionary.read_site = dictionary.write_site = Site("resid", 9)
    with pytest.raises(DictionaryError, match=r"'perfect' reads resid.9, which subject 'tiny-llama' does not have"):
        check_fits(dictionary, subject)


def test_a_dictionary_of_another_subject_is_refused_by_digest(tiny_subject):
    subject = tiny_subject("llama")
    check_fits(perfect(subject, subject_digest=subject.digest), subject)
    stranger = perfect(subject, subject_digest="0" * 64)
    with pytest.raises(DictionaryError, match=rf"trained on the subject 000000000000, .* is {subject.digest[:12]}"):
        check_fits(stranger, subject)
    check_fits(stranger, subject, same_model=True)


def test_sample_prompts_speak_the_subject_s_own_language(tiny_subject):
    subject = tiny_subject("llama")
    samples = sample_prompts(subject, n=5, length=20)
    assert samples == sample_prompts(subject, n=5, length=20)
    assert samples != sample_prompts(subject, n=5, length=20, seed=1)
    assert len(samples) == 5
    assert all(one[0] == subject.tokenizer.bos_token_id and len(one) <= 20 for one in samples)
    assert all(subject.tokenizer.eos_token_id not in one[1:-1] for one in samples)
