"""A harvest equals brute force on the same activations, survives SIGKILL at any moment, and says what it left out."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny_dictionaries import random_dictionary

from workbench.core.errors import Cancelled, InputError
from workbench.core.progress import CancelToken
from workbench.features.atlas import Atlas
from workbench.features.capture import capture
from workbench.features.harvest import Options, harvest, read_corpus

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "what",
    "is",
    "capital",
    "of",
    "france",
    "paris",
    "london",
    "yes",
    "no",
    "help",
    "me",
    "please",
]
SMALL = Options(top=4, sample=6, shard_documents=8, batch_tokens=64, encode_tokens=7)


def texts(n, seed=0):
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(2, 12))) + f" {i}" for i in range(n)]


@pytest.fixture(scope="module")
def setting(tiny_subject):
    subject = tiny_subject("llama")
    dictionaries = {
        "resid.1": random_dictionary(subject, "resid.1", d_dict=40, seed=1),
        "attn.0": random_dictionary(subject, "attn.0", d_dict=24, seed=2),
    }
    return subject, dictionaries


def brute(subject, dictionary, documents, sinks=None):
    """Dense activations of every counted token, with document and position."""
    rows, document, position = [], [], []
    for number, text in enumerate(documents):
        ids = subject.encode(text)
        stream = capture(subject, [ids], [dictionary.read_site])[dictionary.read_site][0]
        for place, token in enumerate(ids):
            if token not in subject.special_ids:
                rows.append(dictionary.encode(stream[place]).numpy())
                document.append(number)
                position.append(place)
    return np.array(rows), np.array(document), np.array(position)


def test_a_harvest_equals_brute_force_on_the_same_activations(setting, tmp_path):
    subject, dictionaries = setting
    documents = texts(30)
    atlases = harvest(subject, dictionaries, documents, corpus="words", folder=tmp_path, options=SMALL)
    for name, dictionary in dictionaries.items():
        dense, document, position = brute(subject, dictionary, documents)
        atlas = atlases[name]
        found = atlas.aggregate()
        assert (atlas.n_tokens, atlas.n_documents) == (len(dense), 30)
        assert (found.fires == (dense > 0).sum(0)).all()
        assert found.maximum == pytest.approx(dense.max(0), rel=1e-4, abs=1e-5)
        assert found.power[1] == pytest.approx((dense.astype(float) ** 2).sum(0), rel=1e-4)
        for feature in np.nonzero(found.fires)[0]:
            value, where, place = atlas.top(int(feature))[0]
            row = np.nonzero((document == where) & (position == place))[0][0]
            assert dense[row, feature] == pytest.approx(value, rel=1e-4)
            assert value == pytest.approx(dense[:, feature].max(), rel=1e-4)
            assert subject.encode(documents[where]) == atlas.document(where).tolist()


def test_repeated_documents_count_once_and_special_tokens_never(setting, tmp_path):
    subject, dictionaries = setting
    documents = texts(6)
    ids, tally = read_corpus(subject, documents + documents[:2])
    assert (len(ids), tally.repeated, tally.documents) == (6, 2, 6)
    assert tally.special >= 6
    atlas = harvest(subject, dictionaries, documents * 2, corpus="words", folder=tmp_path, options=SMALL)["resid.1"]
    assert atlas.n_documents == 6
    assert atlas.n_tokens == sum(len(one) for one in ids) - tally.special


def test_activation_sinks_are_left_out_only_where_asked(setting, tmp_path):
    subject, dictionaries = setting
    counts = {}
    for multiple in (None, 1.2):
        options = Options(top=2, sample=2, sink_multiple=multiple)
        one = {"resid.1": dictionaries["resid.1"]}
        folder = tmp_path / str(multiple)
        counts[multiple] = harvest(subject, one, texts(10), corpus="w", folder=folder, options=options)[
            "resid.1"
        ].n_tokens
    assert 0 < counts[1.2] < counts[None]


def test_a_cancelled_harvest_goes_on_where_it_stopped_and_ends_in_the_same_bytes(setting, tmp_path):
    subject, dictionaries = setting
    documents = texts(40)
    harvest(subject, dictionaries, documents, corpus="words", folder=tmp_path / "whole", options=SMALL)
    token = CancelToken()

    class StopInTheMiddle:
        def start(self, label, total):
            self.seen = 0

        def advance(self, label, steps):
            self.seen += steps
            if self.seen > 20:
                token.cancel()

        def finish(self, label):
            pass

    from workbench.core.progress import reporting

    cut = {"corpus": "words", "folder": tmp_path / "cut", "options": SMALL}
    with reporting(StopInTheMiddle), pytest.raises(Cancelled):
        harvest(subject, dictionaries, documents, cancel=token, **cut)
    assert list((tmp_path / "cut").glob(".harvest-*/*.npz"))
    harvest(subject, dictionaries, documents, **cut)
    assert_same_bytes(tmp_path / "whole", tmp_path / "cut")
    assert not list((tmp_path / "cut").glob(".harvest-*"))


def test_a_damaged_checkpoint_is_passed_over_with_a_warning_and_nothing_is_lost(setting, tmp_path):
    subject, dictionaries = setting
    documents = texts(24)
    harvest(subject, dictionaries, documents, corpus="words", folder=tmp_path / "whole", options=SMALL)
    token = CancelToken()
    calls = []

    class StopLate:
        def start(self, *_):
            pass

        def advance(self, label, steps):
            calls.append(steps)
            if sum(calls) >= 18:
                token.cancel()

        def finish(self, *_):
            pass

    from workbench.core.progress import reporting

    cut = {"corpus": "words", "folder": tmp_path / "cut", "options": SMALL}
    with reporting(StopLate), pytest.raises(Cancelled):
        harvest(subject, dictionaries, documents, cancel=token, **cut)
    newest = max((tmp_path / "cut").glob(".harvest-*/*.npz"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match="is damaged and was passed over"):
        harvest(subject, dictionaries, documents, **cut)
    assert_same_bytes(tmp_path / "whole", tmp_path / "cut")


SCRIPT = """
import sys, pickle
sys.path.insert(0, sys.argv[1])
import torch; torch.set_num_threads(1)
from tiny_dictionaries import random_dictionary
from test_harvest import SMALL, texts
from workbench.features.harvest import harvest
from workbench.models.subject import load_subject
subject = load_subject(sys.argv[2], name="tiny-llama")
dictionary = {"resid.1": random_dictionary(subject, "resid.1", d_dict=40, seed=1)}
print("ready", flush=True)
harvest(subject, dictionary, texts(400), corpus="words", folder=sys.argv[3], options=SMALL)
print("done", flush=True)
"""


def test_a_harvest_killed_at_random_moments_and_resumed_is_byte_identical(tiny_dir, tmp_path):
    arguments = [sys.executable, "-W", "ignore", "-c", SCRIPT, os.path.dirname(__file__), str(tiny_dir("llama"))]
    subprocess.run([*arguments, str(tmp_path / "whole")], check=True, capture_output=True)
    generator, kills = random.Random(0), 0
    for _ in range(12):
        run = subprocess.Popen([*arguments, str(tmp_path / "cut")], stdout=subprocess.PIPE, text=True)
        assert run.stdout.readline() == "ready\n"
        if kills < 3:
            time.sleep(generator.uniform(0.05, 0.6))
            run.send_signal(signal.SIGKILL)
        rest = run.stdout.read()
        run.wait()
        run.stdout.close()
        if "done" in rest:
            break
        kills += 1
    assert kills >= 1
    assert_same_bytes(tmp_path / "whole", tmp_path / "cut")


def test_an_empty_corpus_and_one_of_special_tokens_only_are_errors(setting, tmp_path):
    subject, dictionaries = setting
    with pytest.raises(InputError, match="corpus is empty"):
        harvest(subject, dictionaries, [], corpus="nothing", folder=tmp_path)
    only_special = [[min(subject.special_ids)] * 3]
    with pytest.raises(InputError, match="no token that counts"):
        harvest(subject, dictionaries, only_special, corpus="specials", folder=tmp_path)
    assert not list(tmp_path.glob("*/manifest.json"))


def test_a_dictionary_of_dead_features_gives_an_honest_atlas(tiny_subject, tmp_path):
    subject = tiny_subject("llama")
    dead = random_dictionary(subject, "resid.1", d_dict=8, seed=3, b_enc=-1e6)
    atlas = harvest(subject, {"resid.1": dead}, texts(5), corpus="words", folder=tmp_path)["resid.1"]
    assert [atlas.row(k)["fires"] for k in range(8)] == [0] * 8
    assert atlas.row(0)["mean"] is None


def assert_same_bytes(one, other):
    names = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file() and ".harvest" not in str(p))
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for manifest in one.glob("*/manifest.json"):
        Atlas.open(manifest.parent).check()
