"""A subject is plain transformers, its prompts mean what they say, and damaged files are named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES, MORE_FAMILIES, N_CTX, make_model, make_tokenizer, save_tiny
from transformers import AutoModelForCausalLM

from workbench.core.errors import PromptError, SubjectError
from workbench.models.subject import Subject, load_subject
from workbench.models.tokens import special_ids, token_strings

CHAT = [("system", "yes"), ("user", "what is the capital of france")]
TEXT = "what is the capital of france please"


@pytest.fixture(params=[*FAMILIES, *MORE_FAMILIES])
def subject(request, tiny_subject):
    return tiny_subject(request.param)


@pytest.fixture
def copied(tiny_dir, tmp_path):
    return shutil.copytree(tiny_dir("llama"), tmp_path / "llama")


def test_logits_are_those_of_plain_transformers(subject):
    model = AutoModelForCausalLM.from_pretrained(subject.source.path, attn_implementation="eager")
    batch = subject.batch([TEXT])
    with torch.no_grad():
        plain = model(batch.ids).logits
    assert torch.equal(subject.logits(batch), plain)


def test_a_subject_is_in_eval_mode_with_eager_attention_and_no_gradients(subject):
    assert not subject.model.training
    assert subject.model.config.get_text_config()._attn_implementation == "eager"
    assert not any(parameter.requires_grad for parameter in subject.model.parameters())
    assert subject.dtype == torch.float32


def test_padding_on_the_left_changes_nothing(subject):
    alone = subject.logits(subject.batch(["the cat"]))
    padded = subject.batch(["the cat", TEXT])
    together = subject.logits(padded)[0, -alone.shape[1] :]
    torch.testing.assert_close(together, alone[0], rtol=0, atol=2e-5)
    assert not padded.mask[0, 0]
    assert padded.positions[0, -alone.shape[1] :].tolist() == list(range(alone.shape[1]))
    assert padded.positions[0, 0] == -1


def test_text_gets_exactly_one_bos(subject):
    bos = subject.tokenizer.bos_token
    ids = subject.encode(TEXT)
    assert ids.count(subject.tokenizer.bos_token_id) == 1
    assert subject.encode(bos + TEXT) == ids
    assert ids[0] == subject.tokenizer.bos_token_id


def test_a_subject_without_bos_gets_none():
    tokenizer = make_tokenizer.__wrapped__("bytes")
    tokenizer.chat_template = None
    subject = Subject(make_model("gpt2"), tokenizer, name="plain")
    assert not subject.uses_bos
    assert subject.tokenizer.bos_token_id not in subject.encode(TEXT)


def test_a_chat_goes_through_the_template_once(subject):
    rendered = subject.tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in CHAT], tokenize=False, add_generation_prompt=True
    )
    ids = subject.encode(CHAT)
    assert subject.decode(ids) == rendered
    assert ids.count(subject.tokenizer.bos_token_id) == 1
    assert subject.encode(rendered) == ids
    assert subject.encode([{"role": role, "content": content} for role, content in CHAT]) == ids


def test_a_chat_that_ends_with_the_assistant_is_continued(tiny_subject):
    subject = tiny_subject("llama")
    ids = subject.encode([*CHAT, ("assistant", "the capital is")])
    assert subject.decode(ids).endswith("<|assistant|> the capital is")


def test_ids_stay_as_they_are(tiny_subject):
    assert tiny_subject("llama").encode([7, 8, 9]) == [7, 8, 9]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ([], "the prompt is empty"),
        ([("user", "  ")], "no message has any text"),
        ([("usr", "hello")], "unknown role 'usr'; roles are system, user, assistant"),
        ([("user", "a", "b")], "pairs of text"),
        ([{"role": "user"}], "pairs of text"),
        ([1, 10**7], "token id 10000000 is outside the vocabulary"),
        ([-1], "token id -1 is outside"),
        ([0.5], "not a sequence of float"),
        ("the " * (N_CTX + 1), f"tokens, the context holds {N_CTX}"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_with_the_reason(prompt, message, tiny_subject):
    with pytest.raises(PromptError, match=message):
        tiny_subject("llama").batch([prompt])


def test_a_template_that_drops_a_message_is_not_trusted(tiny_dir):
    subject = load_subject(tiny_dir("llama"))
    subject.tokenizer.chat_template = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(PromptError, match="drops the system message 'yes'"):
        subject.encode(CHAT)


def test_a_template_that_raises_says_so(tiny_dir):
    subject = load_subject(tiny_dir("llama"))
    subject.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(PromptError, match="System role not supported"):
        subject.encode(CHAT)


def test_a_subject_without_template_says_to_pass_text(tiny_dir):
    subject = load_subject(tiny_dir("llama"))
    subject.tokenizer.chat_template = None
    with pytest.raises(PromptError, match="no chat template; pass plain text"):
        subject.encode(CHAT)


def test_completions_follow_their_prompts(tiny_subject):
    subject = tiny_subject("llama")
    batch = subject.batch(["the cat", TEXT], completions=[" sat", [9]])
    assert batch.row(0) == subject.encode("the cat") + subject.encode_completion(" sat")
    assert batch.row(1)[-1] == 9
    assert batch.prompt_len.tolist() == [len(subject.encode("the cat")), len(subject.encode(TEXT))]
    with pytest.raises(PromptError, match="2 prompts but 1 completions"):
        subject.batch(["a", "b"], completions=["c"])
    with pytest.raises(PromptError, match="there is no prompt"):
        subject.batch([])


def test_chat_markers_are_special_even_where_the_tokenizer_does_not_flag_them():
    tokenizer = make_tokenizer.__wrapped__("bytes")
    flagged = set(tokenizer.all_special_ids)
    markers = {tokenizer.convert_tokens_to_ids(token) for token in ("<|user|>", "<|assistant|>", "<|system|>")}
    assert not markers <= flagged
    assert markers <= special_ids(tokenizer)


def test_ordinary_words_are_not_special(subject):
    words = subject.encode_completion(" the cat sat on mat")
    assert not set(words) & subject.special_ids


@given(st.text(min_size=1, max_size=12), st.sampled_from(["bytes", "spm"]))
def test_token_strings_joined_are_the_text(text, style):
    tokenizer = make_tokenizer(style)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(token_strings(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=False)


def test_pieces_are_shown_as_characters(subject):
    strings = subject.token_strings(subject.encode("a cat Zürich 日本"))
    assert " cat" in strings
    assert "ü" in strings
    assert "日" in strings
    assert not any(mark in "".join(strings) for mark in ("Ġ", "▁", "Ã", "<0x"))


def test_half_a_character_does_not_swallow_the_next_token(tiny_subject):
    subject = tiny_subject("llama")
    half, end = subject.encode_completion("ü")[0], subject.tokenizer.eos_token_id
    assert subject.token_strings([half, end]) == ["\ufffd", "<|eos|>"]


def test_digests_name_each_file_and_follow_its_bytes(copied):
    before = load_subject(copied).digests()
    assert set(before) == {"weights/model.safetensors", "config", "tokenizer", "chat_template"}
    data = bytearray((copied / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copied / "model.safetensors").write_bytes(data)
    after = load_subject(copied).digests()
    assert {key for key in before if before[key] != after[key]} == {"weights/model.safetensors"}


def test_digests_of_a_subject_in_memory_follow_its_weights():
    one, same, other = (Subject(make_model("llama", seed=s), make_tokenizer(), name="m") for s in (0, 0, 1))
    assert one.digest == same.digest
    assert {k for k in one.digests() if one.digests()[k] != other.digests()[k]} == {"weights/memory"}


def test_a_truncated_weight_file_is_named(copied):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SubjectError, match=r"model.safetensors is truncated: \d+ bytes, expected \d+"):
        load_subject(copied)


def test_a_weight_file_cut_inside_its_header_is_named(copied):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(SubjectError, match=r"model.safetensors is truncated or not safetensors: 20 bytes"):
        load_subject(copied)


def test_a_missing_file_is_named(copied):
    (copied / "model.safetensors").unlink()
    with pytest.raises(SubjectError, match=r"missing file model.safetensors"):
        load_subject(copied)
    (copied / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(SubjectError, match="only pickled weights"):
        load_subject(copied)
    (copied / "config.json").unlink()
    with pytest.raises(SubjectError, match=r"no config.json"):
        load_subject(copied)


def test_a_missing_shard_is_named(copied):
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SubjectError, match=r"missing file model-00002-of-00002.safetensors"):
        load_subject(copied)


def test_weights_that_the_files_lack_are_an_error_not_random_numbers(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(SubjectError, match=r"9 weights are missing or of the wrong shape, first 'model.layers.3"):
        load_subject(copied)


def test_weights_of_another_width_are_an_error(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(SubjectError, match=r"(wrong shape|cannot be loaded)"):
        load_subject(copied)


def test_a_directory_without_tokenizer_is_an_error(copied):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink()
    with pytest.raises(SubjectError, match="the tokenizer cannot be read"):
        load_subject(copied)


def test_a_name_that_is_neither_directory_nor_cached_repository_is_refused():
    with pytest.raises(SubjectError, match=r"'nobody/nothing'.*offline"):
        load_subject("nobody/nothing")


def test_an_unknown_precision_is_refused(tiny_dir):
    with pytest.raises(SubjectError, match="no precision 'int4'; one of float32"):
        load_subject(tiny_dir("llama"), dtype="int4")


def test_an_unknown_family_is_refused(tmp_path):
    save_tiny("llama", tmp_path)
    subject = load_subject(tmp_path)
    subject.model.config.model_type = "mystery"
    with pytest.raises(SubjectError, match="family 'mystery'"):
        Subject(subject.model, subject.tokenizer, name="m")


def test_opening_a_subject_imports_neither_transformer_lens_nor_sae_lens(tiny_dir):
    code = (
        "import sys; from workbench.models.subject import load_subject; from workbench.models import dictionary, fit\n"
        f"load_subject({str(tiny_dir('llama'))!r})\n"
        "print([name for name in ('transformer_lens', 'sae_lens', 'IPython') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
