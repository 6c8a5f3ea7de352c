"""What a feature card says is what the model and the dictionary really do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.core.errors import InputError
from workbench.features.capture import capture
from workbench.features.card import Corpus, Readings, largest, logit_effects, profile, strongest
from workbench.models.dictionary import Dictionary, DictionaryConfig
from workbench.models.sites import Site

TEXTS = ("the cat sat on the mat", "what is the capital of france", "help me please", "yes", "no no no", "a dog")


def make_dictionary(d_model: int, *, site: str = "resid.1", d_dict: int = 24) -> Dictionary:
    """Make a random JumpReLU dictionary whose last feature never fires."""
    generator = torch.Generator().manual_seed(3)
    threshold = torch.full((d_dict,), 0.5)
    threshold[-1] = 1e9
    weights = {
        "W_enc": torch.randn(d_model, d_dict, generator=generator) / d_model**0.5,
        "b_enc": torch.zeros(d_dict),
        "W_dec": torch.randn(d_dict, d_model, generator=generator) / d_model**0.5,
        "b_dec": 0.1 * torch.randn(d_model, generator=generator),
        "threshold": threshold,
    }
    config = DictionaryConfig(architecture="jumprelu", d_in=d_model, d_out=d_model, d_dict=d_dict)
    return Dictionary(config, weights, id=site, read_site=Site.parse(site))


@pytest.fixture(scope="module")
def setting(tiny_subject):
    """A tiny subject, a random dictionary, and a corpus as the subject reads it."""
    subject = tiny_subject("llama")
    return subject, make_dictionary(subject.d_model), Readings(subject, Corpus("six texts", TEXTS))


def by_hand(subject, dictionary, index):
    """Activations per document and which tokens count, the slow and plain way."""
    found = []
    for text in TEXTS:
        ids = subject.encode(text)
        stream = capture(subject, [ids], [dictionary.read_site])[dictionary.read_site][0]
        counted = np.array([one not in subject.special_ids for one in ids])
        found.append((dictionary.encode(stream)[:, index].numpy(), counted))
    return found


def test_density_and_maximum_are_those_of_tokens_that_count(setting):
    subject, dictionary, readings = setting
    for index in (0, 5, 11):
        values = np.concatenate([v[keep] for v, keep in by_hand(subject, dictionary, index)])
        found = profile(readings, dictionary, index)
        assert found.n_tokens == len(values)
        assert found.n_active == int((values > 0).sum())
        assert found.max == pytest.approx(values.max(), rel=1e-5)
        assert sum(found.counts) == found.n_active
        assert largest(readings, dictionary, index) == found.max


def test_examples_carry_the_activations_they_are_ranked_by(setting):
    subject, dictionary, readings = setting
    index = int(np.argmax([profile(readings, dictionary, k).n_active for k in range(20)]))
    found = profile(readings, dictionary, index, n_top=2, n_random=3)
    hand = by_hand(subject, dictionary, index)
    peaks = sorted((float(v[keep].max(initial=0)) for v, keep in hand), reverse=True)
    assert [one.max for one in found.top] == pytest.approx([p for p in peaks[:2] if p > 0], rel=1e-5)
    chosen = [one.document for one in (*found.top, *found.random)]
    assert len(set(chosen)) == len(chosen), "a document is shown twice"
    for one in (*found.top, *found.random):
        np.testing.assert_allclose(one.values, hand[one.document][0], atol=1e-5)
        assert list(one.tokens) == subject.token_strings(subject.encode(TEXTS[one.document]))


def test_random_examples_depend_on_the_seed_only(setting):
    _, dictionary, readings = setting
    index = int(np.argmax([profile(readings, dictionary, k).n_active for k in range(20)]))
    found = [profile(readings, dictionary, index, n_top=0, n_random=3, seed=seed) for seed in (0, 0, 1, 2)]
    draws = [[example.document for example in one.random] for one in found]
    assert draws[0] == draws[1]
    assert len({tuple(one) for one in draws}) > 1


def test_feature_that_never_fires_says_so_without_inventing_numbers(setting):
    _, dictionary, readings = setting
    found = profile(readings, dictionary, 23)
    assert (found.n_active, found.max, found.density, found.mean_active) == (0, 0.0, 0.0, None)
    assert found.top == found.random == found.counts == ()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gemma3"])
def test_logit_effects_are_what_the_final_norm_and_unembedding_do_to_the_row(tiny_subject, family):
    subject = tiny_subject(family)
    dictionary = make_dictionary(subject.d_model)
    found = logit_effects(subject, dictionary, 4, k=5)
    model, row = subject.model, dictionary.decoder(4)
    norm = model.transformer.ln_f if family == "gpt2" else model.model.norm
    gain = 1 + norm.weight if family.startswith("gemma") else norm.weight
    centred = row - row.mean() if family == "gpt2" else row
    logits = model.get_output_embeddings().weight @ (gain * centred)
    logits = logits - logits.mean()
    best = logits.topk(5)
    assert [name for name, _ in found.promoted] == subject.token_strings(best.indices.tolist())
    np.testing.assert_allclose([v for _, v in found.promoted], best.values.tolist(), rtol=2e-3, atol=1e-4)
    assert all(value < 0 for _, value in found.suppressed)
    assert "direct path only" in found.meaning.lower()


def test_strongest_features_at_a_token_are_those_of_its_own_stream(setting):
    subject, dictionary, _ = setting
    ids = subject.encode(TEXTS[0])
    stream = capture(subject, [ids], [dictionary.read_site])[dictionary.read_site][0]
    acts = dictionary.encode(stream)[3]
    rows = strongest(subject, {"mine": dictionary}, ids, 3, k=4)
    wanted = [int(i) for i in acts.argsort(descending=True)[:4] if acts[i] > 0]
    assert [row["index"] for row in rows] == wanted
    assert [row["activation"] for row in rows] == pytest.approx([float(acts[i]) for i in wanted], rel=1e-5)


def test_empty_corpus_is_refused():
    with pytest.raises(InputError, match=r"at least one document.*'nothing'"):
        Corpus("nothing", ())
