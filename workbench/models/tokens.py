"""Prompts to token ids and back, with the three mistakes that spoil evidence made impossible.

A doubled BOS moves every activation at the first positions; a chat marker counted as an ordinary token leads a maximum
list; a token shown as `ĠcafÃ©` cannot be read. So BOS is counted, chat markers count as special even where the
tokenizer does not flag them, and pieces are shown as the characters they stand for.
"""

from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from workbench.core.errors import PromptError

Chat = Sequence[tuple[str, str]]
"""A conversation: `(role, content)` pairs, oldest first."""
Prompt = str | Sequence[Any]
"""Plain text, a conversation (`Chat`, or dicts with `role` and `content`), or token ids that are taken as they are.
What is in the sequence is checked with a message for people, not by its type."""

ROLES = ("system", "user", "assistant")
_MARKER = re.compile(r"<\|?/?[A-Za-z][\w.\- ]*\|?>|<｜[^｜<>]+｜>|\[/?[A-Z_]+\]")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def uses_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether texts of this tokenizer start with BOS: it adds one itself, or its chat template does."""
    if tokenizer.bos_token_id is None:
        return False
    if list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]:
        return True
    return _probe(tokenizer).startswith(str(tokenizer.bos_token))


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Give the ids of all special tokens, the chat template's markers among them.

    Tokenizers flag BOS, EOS and padding; markers such as `<|user|>` are often plain added tokens, or plain vocabulary.
    """
    found = set(tokenizer.all_special_ids)
    rendered = _probe(tokenizer)
    for index, token in tokenizer.added_tokens_decoder.items():
        if token.special or token.content in rendered or token.content in (tokenizer.chat_template or ""):
            found.add(index)
    vocabulary = tokenizer.get_vocab()
    for marker in _MARKER.findall(rendered):
        if marker in vocabulary:
            found.add(vocabulary[marker])
    return frozenset(found)


def _probe(tokenizer: PreTrainedTokenizerBase) -> str:
    """Render a short conversation, with a system turn where the template takes one; empty without a template."""
    if not isinstance(tokenizer.chat_template, str):
        return ""
    turns = [{"role": role, "content": "a"} for role in ("system", "user", "assistant", "user")]
    for messages in (turns, turns[1:]):
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError:
            continue
    return ""


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, bos: bool, n_vocab: int) -> list[int]:
    """Turn a prompt into token ids.

    Args:
        tokenizer: The subject's tokenizer.
        prompt: Text, conversation or ids.
        bos: Whether plain text starts with exactly one BOS; text that already starts with it gets no second.
        n_vocab: Size of the vocabulary, to refuse ids beyond it.

    Raises:
        PromptError: The prompt is empty, has an unknown role, or is none of the three kinds.
    """
    if isinstance(prompt, str):
        return _encode_text(tokenizer, prompt, bos=bos)
    if not prompt:
        raise PromptError("the prompt is empty")
    if isinstance(prompt[0], (tuple, list, Mapping)):
        return _encode_chat(tokenizer, [_message(turn) for turn in prompt])
    try:
        ids = [operator.index(one) for one in prompt]
    except TypeError as error:
        raise PromptError(
            f"a prompt is text, (role, content) pairs or token ids, not a sequence of {type(prompt[0]).__name__}"
        ) from error
    outside = [one for one in ids if not 0 <= one < n_vocab]
    if outside:
        raise PromptError(f"token id {outside[0]} is outside the vocabulary of {n_vocab}")
    return ids


def _encode_text(tokenizer: PreTrainedTokenizerBase, text: str, *, bos: bool) -> list[int]:
    if not text:
        raise PromptError("the prompt is empty")
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if bos and ids[:1] != [tokenizer.bos_token_id]:
        ids.insert(0, tokenizer.bos_token_id)
    return ids


def _message(turn: object) -> tuple[str, str]:
    pair = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else tuple(turn)  # type: ignore[arg-type]
    if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        raise PromptError(f"a chat is a list of (role, content) pairs of text, got {turn!r}")
    if pair[0] not in ROLES:
        raise PromptError(f"unknown role {pair[0]!r}", hint=f"roles are {', '.join(ROLES)}")
    return pair  # type: ignore[return-value]


def _encode_chat(tokenizer: PreTrainedTokenizerBase, chat: list[tuple[str, str]]) -> list[int]:
    text = render_chat(tokenizer, chat)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def render_chat(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> str:
    """Render a conversation with the tokenizer's template, ready for the assistant to speak.

    A conversation that ends with the assistant is continued inside that last message.

    Raises:
        PromptError: There is no template, or it refuses the conversation or drops a message.
    """
    if not tokenizer.chat_template:
        raise PromptError("this subject has no chat template", hint="pass plain text instead of a conversation")
    if not any(content.strip() for _, content in chat):
        raise PromptError("the prompt is empty: no message has any text")
    messages = [{"role": role, "content": content} for role, content in chat]
    continues = chat[-1][0] == "assistant"
    try:
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not continues, continue_final_message=continues
        )
    except (TemplateError, ValueError) as error:
        raise PromptError(f"the chat template refuses this conversation: {error}") from error
    text = str(rendered)
    for role, content in chat:
        if content.strip() not in text:
            raise PromptError(f"the chat template drops the {role} message {content[:40]!r}")
    return text


def token_strings(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Give each token's text as readable characters, one string per id.

    A character whose bytes span several tokens is shown at the first of them, the others are empty; so the joined
    strings are the text. Bytes that make no character show as U+FFFD.
    """
    decoder = _decoder(tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    added = tokenizer.added_tokens_decoder
    raw = [
        (added[index].content if index in added else piece or "").encode()
        if index in added or piece is None
        else _piece_bytes(piece, decoder)
        for index, piece in zip(ids, pieces, strict=True)
    ]
    return _whole_characters(raw)


def _whole_characters(raw: list[bytes]) -> list[str]:
    data, owners = b"".join(raw), [index for index, piece in enumerate(raw) for _ in piece]
    shown, start = [""] * len(raw), 0
    while start < len(data):
        lead = data[start]
        length = 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        try:
            character = data[start : start + length].decode()
        except UnicodeDecodeError:
            character, length = "\ufffd", 1
        shown[owners[start]] += character
        start += length
    return shown


def _decoder(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = json.dumps(json.loads(backend.to_str())["decoder"], ensure_ascii=False) if backend is not None else "▁"
    return "bytes" if "ByteLevel" in text else "spm" if "▁" in text or "Metaspace" in text else "plain"


def _piece_bytes(piece: str, decoder: str) -> bytes:
    if decoder == "bytes":
        table = _byte_level_table()
        return bytes(table[char] for char in piece) if all(char in table for char in piece) else piece.encode()
    if decoder == "spm":
        byte = _BYTE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()
    return piece.encode()


@functools.cache
def _byte_level_table() -> dict[str, int]:
    """Give GPT-2's table from printable stand-ins to bytes (Radford et al. 2019, `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return table | {chr(256 + offset): byte for offset, byte in enumerate(others)}
