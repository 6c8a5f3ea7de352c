"""Tiny random models of each family, with a real tokenizer, made in memory and saved like a hub repository.

Weights are larger than an initialiser's, norms have gains and biases are not zero, so that a wrong site or a dropped
factor shows. Heads are grouped where the family groups them, and Gemma-3's heads are wider than d_model / n_heads.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

torch.set_num_threads(1)

FAMILIES = ("gpt2", "llama", "qwen2", "gemma2", "gemma3")
MORE_FAMILIES = ("gpt_neox", "mistral", "qwen3", "gemma", "gemma3_multimodal")
N_LAYERS, D_MODEL, N_HEADS, N_CTX = 3, 32, 4, 64

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "what", "is", "capital", "of", "france", "paris", "london"]
WORDS += ["yes", "no", "help", "me", "please", "how", "do", "i"]
SPECIALS = ["<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_model(family: str, *, seed: int = 0, n_layers: int = N_LAYERS, dtype=torch.float32) -> PreTrainedModel:
    """Make a tiny model of a family with random weights, in eval mode with eager attention."""
    torch.manual_seed(seed)
    config, name = _config(family, n_layers)
    config._attn_implementation = "eager"
    model = getattr(transformers, name)(config).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and ("norm" in key or "ln_" in key) and not key.endswith("bias"):
                parameter.copy_((0.0 if family.startswith("gemma") else 1.0) + 0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            elif any(part in key for part in ("embed", "wte", "wpe")):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return model.requires_grad_(False).to(dtype)


def _config(family: str, n_layers: int):
    vocab = len(make_tokenizer("spm" if family.startswith("gemma") else "bytes")) + 6
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    common = {
        "vocab_size": vocab,
        "hidden_size": D_MODEL,
        "intermediate_size": 2 * D_MODEL,
        "num_hidden_layers": n_layers,
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": N_CTX,
        **ids,
    }
    gemma = {**common, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
    gemma3 = {**gemma, "head_dim": 16, "layer_types": (["sliding_attention", "full_attention"] * n_layers)[:n_layers]}
    if family == "gpt2":
        options = {"vocab_size": vocab, "n_embd": D_MODEL, "n_layer": n_layers, "n_head": N_HEADS, "n_positions": N_CTX}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return transformers.GPT2Config(**options, **dropout, **ids), "GPT2LMHeadModel"
    if family == "gpt_neox":
        options = {k: v for k, v in common.items() if k != "num_key_value_heads"}
        return transformers.GPTNeoXConfig(**options), "GPTNeoXForCausalLM"
    if family == "gemma3_multimodal":
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision |= {"image_size": 28, "patch_size": 14}
        text = {key: value for key, value in gemma3.items() if key not in ids}
        options = {"text_config": text, "vision_config": vision, "mm_tokens_per_image": 4, **ids}
        options |= {"boi_token_index": 3, "eoi_token_index": 4, "image_token_index": 5}
        return transformers.Gemma3Config(**options), "Gemma3ForConditionalGeneration"
    return {
        "llama": lambda: (transformers.LlamaConfig(**common), "LlamaForCausalLM"),
        "mistral": lambda: (transformers.MistralConfig(**common, sliding_window=None), "MistralForCausalLM"),
        "qwen2": lambda: (transformers.Qwen2Config(**common), "Qwen2ForCausalLM"),
        "qwen3": lambda: (transformers.Qwen3Config(**common, head_dim=16), "Qwen3ForCausalLM"),
        "gemma": lambda: (transformers.GemmaConfig(**common, head_dim=8), "GemmaForCausalLM"),
        "gemma2": lambda: (transformers.Gemma2Config(**gemma), "Gemma2ForCausalLM"),
        "gemma3": lambda: (transformers.Gemma3TextConfig(**gemma3), "Gemma3ForCausalLM"),
    }[family]()


@functools.cache
def make_tokenizer(style: str = "bytes") -> PreTrainedTokenizerFast:
    """Make a tokenizer: `bytes` is byte-level BPE that adds no BOS, `spm` is sentencepiece-like and adds one."""
    tokenizer = _byte_level() if style == "bytes" else _sentencepiece()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
        model_max_length=N_CTX,
    )
    fast.chat_template = CHAT
    return fast


def _byte_level() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = _merge([f"Ġ{word}" for word in WORDS], [*SPECIALS, *letters])
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def _sentencepiece() -> Tokenizer:
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz.,?!", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab, merges = _merge([f"▁{word}" for word in WORDS], [*SPECIALS, *letters])
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<|pad|>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A <|bos|> $B", special_tokens=[("<|bos|>", vocab["<|bos|>"])]
    )
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def _merge(words: list[str], start: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    pieces, merges = list(start), []
    for word in words:
        grown = word[0]
        for letter in word[1:]:
            if (grown, letter) not in merges:
                merges.append((grown, letter))
            grown += letter
            if grown not in pieces:
                pieces.append(grown)
    return {piece: index for index, piece in enumerate(pieces)}, merges


def save_tiny(family: str, directory: Path, *, seed: int = 0, n_layers: int = N_LAYERS) -> Path:
    """Save a tiny model and its tokenizer as a Hugging Face directory, and give the directory."""
    make_model(family, seed=seed, n_layers=n_layers).save_pretrained(directory)
    make_tokenizer("spm" if family.startswith("gemma") else "bytes").save_pretrained(directory)
    return Path(directory)
