"""Names lead to the right files: the built-in organism, directories, hub models, and published dictionaries offline.

The hub is a cache directory laid out like the real repositories, read by `huggingface_hub` itself with tiny weights.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from test_dictionary import perfect, save_sae
from tiny_models import save_tiny

from workbench.core.errors import DictionaryError, SubjectError
from workbench.models import pretrained, registry
from workbench.models.dictionary import Dictionary
from workbench.models.fit import BadFitWarning, fit
from workbench.models.pretrained import list_subjects, open_dictionaries, open_subject
from workbench.models.reading import read_sites
from workbench.models.registry import find_entry, release_entries
from workbench.models.sites import Site

MODEL, SCOPE = "google/gemma-3-4b-it", "google/gemma-scope-2-4b-it"
MODEL_COMMIT, SCOPE_COMMIT, OTHER_COMMIT = "1" * 40, "2" * 40, "3" * 40
LAYERS = 18
PROMPTS = ["the cat sat on the mat please", "what is the capital of france", "how do i help me"]


class Hub:
    """A hub cache directory, filled the way `huggingface_hub` fills it."""

    def __init__(self, folder):
        self.folder = folder

    def snapshot(self, repo, commit, *, main=True):
        """Make a commit of a repository and give its folder."""
        root = self.folder / f"models--{repo.replace('/', '--')}"
        (root / "refs").mkdir(parents=True, exist_ok=True)
        if main:
            (root / "refs" / "main").write_text(commit)
        folder = root / "snapshots" / commit
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def scope(self, path, tensors, config, *, commit=SCOPE_COMMIT, main=True):
        """Put a Gemma Scope 2 dictionary into the cache."""
        folder = self.snapshot(SCOPE, commit, main=main) / path
        folder.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "params.safetensors")
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return Hub(cache)


@pytest.fixture(scope="session")
def gemma_dir(tmp_path_factory):
    return save_tiny("gemma3_multimodal", tmp_path_factory.mktemp("hub-models") / "gemma", n_layers=LAYERS)


@pytest.fixture
def gemma(hub, gemma_dir):
    shutil.copytree(gemma_dir, hub.snapshot(MODEL, MODEL_COMMIT), dirs_exist_ok=True)
    return open_subject(MODEL)


def scope_config(layer, read, write=None, **more):
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-4b-it", "width": 64, **more}
    config["hf_hook_point_in"] = f"model.layers.{layer}.{read}"
    return config | ({"hf_hook_point_out": f"model.layers.{layer}.{write}"} if write else {})


TRANSCODER = ("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output")


def exact(width):
    """Tensors of an SAE that reconstructs exactly, under Gemma Scope's names."""
    eye, zeros = torch.eye(width), torch.zeros(2 * width)
    tensors = {"w_enc": torch.cat([eye, -eye], 1), "w_dec": torch.cat([eye, -eye]), "b_enc": zeros}
    return tensors | {"b_dec": torch.zeros(width), "threshold": zeros.clone()}


def fitted_transcoder(subject, layer, *, skip):
    """Tensors of a transcoder fitted by least squares to what the subject's MLP really does, by way of a skip."""
    sites = [Site("mlp_in", layer), Site("mlp", layer)]
    batch = subject.batch(PROMPTS)
    keep = batch.mask & ~torch.isin(batch.ids, torch.tensor(sorted(subject.special_ids)))
    x, y = (read_sites(subject, batch, sites)[site][keep] for site in sites)
    # fewer tokens than dimensions + 1: the affine map is exact on them
    ones = torch.ones(len(x), 1)
    solution = torch.linalg.lstsq(torch.cat([x, ones], 1).double(), y.double(), driver="gelsd").solution.float()
    weight, bias = solution[:-1], solution[-1]
    width = x.shape[1]
    if skip:
        zeros = {"w_enc": torch.zeros(width, 64), "w_dec": torch.zeros(64, width), "b_enc": torch.zeros(64)}
        return {**zeros, "threshold": torch.ones(64), "b_dec": bias, "affine_skip_connection": weight}
    tensors = exact(width)
    return {**tensors, "w_dec": tensors["w_dec"] @ weight, "b_dec": bias}


def test_the_tests_have_no_network():
    with pytest.raises(OSError, match="no network but loopback"):
        socket.create_connection(("pypi.org", 443), timeout=2)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain,
        pytest.raises(OSError, match="no network but loopback"),
    ):
        plain.sendto(b"x", ("192.0.2.1", 9))


def test_a_hub_model_opens_from_the_cache_with_its_commit(gemma):
    assert (gemma.source.kind, gemma.source.repo, gemma.source.revision) == ("hub", MODEL, MODEL_COMMIT)
    assert gemma.name == "gemma-3-4b-it"
    assert gemma.family == "gemma3"


def test_a_pinned_commit_of_a_hub_model_is_the_one_that_opens(hub, gemma_dir):
    for commit, main in ((MODEL_COMMIT, True), (OTHER_COMMIT, False)):
        shutil.copytree(gemma_dir, hub.snapshot(MODEL, commit, main=main), dirs_exist_ok=True)
    assert open_subject(MODEL, revision=OTHER_COMMIT).source.revision == OTHER_COMMIT


def test_a_gemma_scope_2_sae_loads_by_its_short_name_and_fits(hub, gemma):
    hub.scope("resid_post/layer_17_width_16k_l0_medium", exact(gemma.d_model), scope_config(17, "output"))
    name = "gemma-scope-2:resid/17/16k"
    sae = open_dictionaries(gemma, name, prompts=PROMPTS)[name]
    assert (sae.architecture, sae.read_site, sae.d_dict) == ("jumprelu", Site("resid", 17), 2 * gemma.d_model)
    assert sae.fit.unexplained_variance < 1e-9
    assert sae.source["revision"] == SCOPE_COMMIT
    assert sae.source["release"] == "gemma-scope-2-4b-it-res"
    assert sae.metadata["model_name"] == MODEL


@pytest.mark.parametrize("skip", [False, True])
def test_a_gemma_scope_2_transcoder_reads_the_mlp_s_input_and_nothing_else(hub, gemma, skip):
    path = "transcoder/layer_17_width_16k_l0_medium" + "_affine" * skip
    tensors = fitted_transcoder(gemma, 17, skip=skip)
    hub.scope(path, tensors, scope_config(17, *TRANSCODER, affine_connection=skip))
    name = "gemma-scope-2:transcoder/17/16k" + "/affine" * skip
    transcoder = open_dictionaries(gemma, name, prompts=PROMPTS)[name]
    assert transcoder.architecture == ("jumprelu_skip_transcoder" if skip else "jumprelu_transcoder")
    assert (str(transcoder.read_site), str(transcoder.write_site)) == ("mlp_in.17", "mlp.17")
    assert transcoder.fit.unexplained_variance < 1e-3
    transcoder.read_site = Site("resid", 16)  # what sae-lens' name for it means on transformer-lens 3.9
    assert fit(transcoder, gemma, PROMPTS).unexplained_variance > 1


@pytest.mark.parametrize(
    ("short", "path", "config", "site", "width"),
    [
        ("attn/17/16k", "attn_out/layer_17_width_16k_l0_medium", ("self_attn.o_proj.input",), "z.17", 64),
        ("mlp/17/65k", "mlp_out/layer_17_width_65k_l0_medium", ("post_feedforward_layernorm.output",), "mlp.17", 32),
        ("resid/3/16k", "resid_post_all/layer_3_width_16k_l0_big", ("output",), "resid.3", 32),
        ("resid/17/16k/small", "resid_post/layer_17_width_16k_l0_small", ("output",), "resid.17", 32),
    ],
)
def test_every_kind_of_gemma_scope_2_dictionary_finds_its_site(hub, gemma, short, path, config, site, width):
    hub.scope(path, exact(width), scope_config(int(short.split("/")[1]), *config))
    (dictionary,) = open_dictionaries(gemma, f"gemma-scope-2:{short}", prompts=PROMPTS).values()
    assert str(dictionary.read_site) == site
    assert dictionary.fit.unexplained_variance < 1e-9


def test_without_a_config_file_the_folder_decides_and_the_metadata_say_so(hub, gemma):
    hub.scope("transcoder/layer_17_width_16k_l0_medium", fitted_transcoder(gemma, 17, skip=False), None)
    (transcoder,) = open_dictionaries(gemma, ["gemma-scope-2:transcoder/17/16k"], prompts=PROMPTS).values()
    assert (str(transcoder.read_site), str(transcoder.write_site)) == ("mlp_in.17", "mlp.17")
    assert transcoder.metadata["sites_from"] == "folder name"


def test_a_pinned_commit_of_a_dictionary_is_the_one_that_loads(hub, gemma):
    path, config = "resid_post/layer_17_width_16k_l0_medium", scope_config(17, "output")
    hub.scope(path, exact(gemma.d_model), config)
    hub.scope(path, {**exact(gemma.d_model), "b_dec": torch.ones(32)}, config, commit=OTHER_COMMIT, main=False)
    name = "gemma-scope-2:resid/17/16k"
    first = open_dictionaries(gemma, name, prompts=PROMPTS)[name]
    other = open_dictionaries(gemma, name, prompts=PROMPTS, revision=OTHER_COMMIT)[name]
    assert (first.source["revision"], other.source["revision"]) == (SCOPE_COMMIT, OTHER_COMMIT)
    assert first.digest != other.digest


def test_a_dictionary_of_random_weights_is_a_loud_warning_with_the_number(hub, gemma):
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(t.shape, generator=generator) for name, t in exact(gemma.d_model).items()}
    hub.scope("resid_post/layer_17_width_16k_l0_medium", tensors, scope_config(17, "output"))
    with pytest.warns(BadFitWarning, match=r"leaves \d+\.\d\d of the variance at resid\.17 of subject 'gemma-3-4b-it'"):
        open_dictionaries(gemma, "gemma-scope-2:resid/17/16k")


def test_a_truncated_download_is_named(hub, gemma):
    folder = hub.scope("resid_post/layer_17_width_16k_l0_medium", exact(32), scope_config(17, "output"))
    path = folder / "params.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DictionaryError, match=r"params\.safetensors is truncated"):
        open_dictionaries(gemma, "gemma-scope-2:resid/17/16k")


def test_tensors_that_are_not_gemma_scope_s_are_refused(hub, gemma):
    hub.scope("resid_post/layer_17_width_16k_l0_medium", {"w_enc": torch.ones(2, 2)}, scope_config(17, "output"))
    with pytest.raises(DictionaryError, match=r"no Gemma Scope 2 dictionary: absent .*b_dec"):
        open_dictionaries(gemma, "gemma-scope-2:resid/17/16k")


def test_a_dictionary_that_is_not_cached_says_so_offline(hub, gemma):
    with pytest.raises(
        DictionaryError, match=r"gemma-scope-2-4b-it-res:layer_17_.*only what is in the hub cache opens"
    ):
        open_dictionaries(gemma, "gemma-scope-2:resid/17/16k")


def test_a_dictionary_of_another_model_names_both(hub, gemma):
    hub.scope("resid_post/layer_17_width_16k_l0_medium", exact(32), scope_config(17, "output"))
    gemma.source = type(gemma.source)("hub", path=gemma.source.path, repo="google/gemma-3-1b-it")
    name = "gemma-scope-2-4b-it-res:layer_17_width_16k_l0_medium"
    with pytest.raises(DictionaryError, match=r"trained on 'google/gemma-3-4b-it', .* is 'google/gemma-3-1b-it'"):
        open_dictionaries(gemma, name)
    assert open_dictionaries(gemma, name, same_model=True, prompts=PROMPTS)


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("gemma-scope-2:resid/17/16k", "gpt2", "belongs to Gemma 3 models, the subject is 'gpt2'"),
        ("gemma-scope-2:resd/17/16k", MODEL, "cannot read the short name"),
        ("gemma-scope-2:resid/17", MODEL, "cannot read the short name"),
        ("gemma-scope-2:resid/17/16k/huge", MODEL, "small, medium or big"),
        ("gemma-scope-2:resid/99/16k", MODEL, "layers 0 to 33, widths"),
        ("gemma-scope-2-4b-it-rs:x", MODEL, "no release .*did you mean 'gemma-scope-2-4b-it-res'"),
        ("gemma-scope-2-4b-it-res:layer_17_width_16k_l0_mdium", MODEL, "did you mean 'layer_17_width_16k_l0_medium'"),
        ("resid.2", MODEL, "name a directory, a short name"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_would(name, model, message):
    with pytest.raises(DictionaryError, match=message):
        find_entry(name, model=model)


def test_short_names_follow_the_subject_s_size_and_kind():
    small = find_entry("gemma-scope-2:resid/5/16k", model="google/gemma-3-270m")
    assert (small.release, small.repo) == ("gemma-scope-2-270m-pt-res", "google/gemma-scope-2-270m-pt")
    skip = find_entry("gemma-scope-2:transcoder/17/262k/small/affine", model="some/where/gemma-3-4b-pt")
    assert skip.path == "transcoder/layer_17_width_262k_l0_small_affine"


def test_our_reading_of_the_registry_equals_sae_lens_own():
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    for release in ("gpt2-small-res-jb", "gemma-scope-2-4b-it-transcoders-all", "llama_scope_lxr_8x"):
        theirs, ours = directory[release], release_entries(release)
        assert {key: entry.path for key, entry in ours.items()} == theirs.saes_map
        assert {entry.repo for entry in ours.values()} == {theirs.repo_id}
        factors = {key: entry.norm_factor for key, entry in ours.items() if entry.norm_factor is not None}
        assert factors == theirs.norm_scaling_factor


def test_a_release_in_sae_lens_own_form_loads_with_its_commit(hub, tiny_subject):
    entry = find_entry("gpt2-small-res-jb:blocks.1.hook_resid_pre")
    folder = hub.snapshot(entry.repo, SCOPE_COMMIT) / entry.path
    sae = save_sae(folder, "standard", d_in=32)
    subject = tiny_subject("gpt2")
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg["metadata"] |= {"hook_name": "blocks.1.hook_resid_pre", "model_name": "gpt2-small"}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    with pytest.warns(BadFitWarning, match=r"processed with .*'center_writing_weights': True"):
        (loaded,) = open_dictionaries(subject, "gpt2-small-res-jb:blocks.1.hook_resid_pre").values()
    assert torch.equal(loaded.weights["W_enc"], sae.W_enc.detach())
    assert loaded.read_site == Site("resid", 0)
    assert loaded.source["revision"] == SCOPE_COMMIT


def test_a_release_in_another_form_goes_through_sae_lens_reader(hub, tiny_subject):
    subject = tiny_subject("gpt_neox")
    entry = registry.Entry("r", "i", "some/saes", "layer_1/trainer_0", "dictionary_learning_1", "pythia-70m-deduped")
    folder = hub.snapshot(entry.repo, SCOPE_COMMIT) / entry.path
    folder.mkdir(parents=True)
    trainer = {"layer": 1, "activation_dim": 32, "dict_size": 64, "dict_class": "AutoEncoder", "lm_name": "x/pythia"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    ours = exact(32)
    weights = {"encoder.weight": ours["w_enc"].T, "decoder.weight": ours["w_dec"].T, "bias": ours["b_dec"]}
    torch.save({**weights, "encoder.bias": ours["b_enc"]}, folder / "ae.pt")
    dictionary = Dictionary.from_parts(pretrained.fetch_dictionary(entry), id="x")
    assert dictionary.read_site == Site("resid", 1)
    assert dictionary.metadata["model_name"] == "pythia"
    assert fit(dictionary, subject, PROMPTS).unexplained_variance < 1e-9


def test_a_commit_that_cannot_be_pinned_is_refused(tiny_subject):
    name = "gemma-scope-2b-pt-res-canonical:layer_1/width_16k/canonical"
    with pytest.raises(DictionaryError, match="a commit cannot be pinned for the format 'gemma_2'"):
        open_dictionaries(tiny_subject("gemma2"), name, revision=SCOPE_COMMIT)


def test_a_published_factor_is_folded_into_the_weights(hub, tiny_subject):
    entry = registry.Entry("r", "i", "some/repo", "a", "sae_lens", "m", norm_factor=0.25)
    folder = hub.snapshot(entry.repo, SCOPE_COMMIT) / entry.path
    save_sae(folder, "standard", "expected_average_only_in")
    from sae_lens import SAE

    theirs = SAE.load_from_disk(folder)
    theirs.fold_activation_norm_scaling_factor(0.25)
    parts = pretrained.fetch_dictionary(entry)
    for name, tensor in parts.weights.items():
        assert torch.equal(tensor, getattr(theirs, name).detach())


@pytest.mark.parametrize("path", ["clt/width_262k_l0_medium/params_layer_3", "crosscoder/layer_3"])
def test_cross_layer_dictionaries_are_refused_by_name(path):
    entry = registry.Entry("r", "i", SCOPE, path, "gemma_3", MODEL)
    with pytest.raises(DictionaryError, match="cross-layer transcoder or crosscoder, which is not supported"):
        pretrained.fetch_dictionary(entry)


@pytest.fixture
def datasets(tmp_path, monkeypatch, tiny_dir):
    """A data folder with one built-in subject and the dictionaries beside it."""
    root = tmp_path / "datasets"
    shutil.copytree(tiny_dir("llama"), root / "toy" / "model")
    save_sae(root / "toy" / "dictionaries" / "resid.1", "jumprelu", d_in=32)
    save_sae(root / "toy" / "dictionaries" / "mlp.1", "transcoder", d_in=32, d_out=32)
    (root / "toy" / "card.json").write_text(json.dumps({"description": "a toy"}))
    monkeypatch.setattr(pretrained, "datasets_dir", lambda: root)
    return root


def test_built_in_subjects_are_listed_with_their_dictionaries(datasets):
    (toy,) = list_subjects()
    assert (toy["name"], toy["description"], toy["dictionaries"]) == ("toy", "a toy", ["mlp.1", "resid.1"])


def test_a_built_in_subject_opens_by_name_with_the_dictionaries_beside_it(datasets):
    subject = open_subject("toy")
    assert subject.name == "toy"
    with pytest.warns(BadFitWarning):
        found = open_dictionaries(subject)
    assert set(found) == {"resid.1", "mlp.1"}
    assert all(dictionary.fit.n_tokens > 10 for dictionary in found.values())


def test_a_directory_opens_like_a_built_in_subject(datasets, monkeypatch):
    monkeypatch.setattr(pretrained, "list_subjects", list)
    subject = open_subject(datasets / "toy")
    assert subject.name == "toy"
    folder = datasets / "toy" / "dictionaries"
    with pytest.warns(BadFitWarning):
        assert set(open_dictionaries(subject, folder)) == {"resid.1", "mlp.1"}
    with pytest.warns(BadFitWarning):
        assert set(open_dictionaries(subject, [folder / "resid.1"])) == {"resid.1"}


def test_two_dictionaries_of_one_name_are_refused(datasets):
    folder = datasets / "toy" / "dictionaries" / "resid.1"
    with pytest.raises(DictionaryError, match=r"two dictionaries are called 'resid\.1'"):
        open_dictionaries(open_subject("toy"), [folder, folder])


def test_a_subject_that_is_not_there_names_the_nearest(datasets):
    with pytest.raises(SubjectError, match=r"no subject 'toi': .*did you mean 'toy'"):
        open_subject("toi")
    with pytest.raises(SubjectError, match="no directory and no reachable hub repository 'some/thing'"):
        open_subject("some/thing")


def test_the_dictionaries_of_the_organism_fit_it():
    subject = open_subject("organism")
    found = open_dictionaries(subject)
    assert {f"resid.{layer}" for layer in range(subject.n_layers)} <= set(found)
    assert all(str(dictionary.write_site) == name for name, dictionary in found.items())
    assert max(dictionary.fit.unexplained_variance for dictionary in found.values()) < 0.2


def test_a_subject_without_dictionaries_opens_with_none(tiny_subject):
    assert open_dictionaries(tiny_subject("llama")) == {}
    assert perfect(tiny_subject("llama")).fit is None


def test_a_local_dictionary_needs_neither_sae_lens_nor_its_registry(datasets):
    code = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from workbench.models import pretrained\n"
        f"subject = pretrained.open_subject({str(datasets / 'toy')!r})\n"
        "found = pretrained.open_dictionaries(subject)\n"
        "print(len(found), 'sae_lens' in sys.modules, 'transformer_lens' in sys.modules)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["2", "False", "False"]
