"""The built-in subject's tokenizer: byte-level BPE in which every word of its corpus is one token.

Any other text falls back to bytes and round-trips exactly. The tokenizer adds no beginning marker by itself; the chat
template does.
"""

from __future__ import annotations

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from workbench.models.organism import corpus

SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|think|>", "<|/think|>")
N_CTX = 128
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(seed: int, n_documents: int = 40_000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on documents of every split, so that held-out words are tokens too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(seed)
    drawn = [d for split in ("train", "dev", "test") for d in corpus.documents(rng, n_documents // 3, split=split)]
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.prompt + d.completion + corpus.EOS for d in drawn), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        extra_special_tokens=list(SPECIAL[3:]),
        clean_up_tokenization_spaces=False,
        model_max_length=N_CTX,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
