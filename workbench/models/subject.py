"""The model under study: one object that everything else types against, over plain `transformers`.

What is measured on it in a notebook is what plain `transformers` does in production, so nothing is folded, fused or
wrapped: eval mode, eager attention, gradients off, float32 unless asked otherwise. Batches are padded on the left and
carry their real positions, so that a prompt alone and a prompt in a batch see the same numbers.

Example:
    >>> subject = load_subject("datasets/organism/model")
    >>> batch = subject.batch([[("user", "what is the capital of france?")]])
    >>> subject.logits(batch).shape
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from workbench.core.canonical import digest, sha256_hex
from workbench.core.errors import PromptError, SiteError, SubjectError
from workbench.models import tokens
from workbench.models.sites import Site, SitePath, check_range, resolve, shape_of
from workbench.models.tokens import Prompt
from workbench.models.weights import file_digests, tensors_digest, weight_files

TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
WANTED_FILES = ("*.json", "*.safetensors", "*.jinja", "merges.txt", "tokenizer.model")


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of several prompts, padded on the left.

    Attributes:
        ids: Token ids; padding where `mask` is false.
        mask: True at real tokens.
        prompt_len: Number of real prompt tokens per row; what follows them in the row is a completion.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    prompt_len: Int[Tensor, " batch"]

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def positions(self) -> Int[Tensor, "batch pos"]:
        """Absolute position of each real token, from 0; −1 at padding."""
        return torch.where(self.mask, self.mask.long().cumsum(-1) - 1, -1)

    def row(self, index: int) -> list[int]:
        """Give one row's real token ids."""
        return self.ids[index][self.mask[index]].tolist()


@dataclass(frozen=True)
class SubjectSource:
    """Where a subject came from.

    Attributes:
        kind: `local` directory, `hub` repository, or `memory`.
        path: Directory that was read, if any.
        repo: Hub repository, if any.
        revision: Commit of the hub repository, if any.
    """

    kind: Literal["local", "hub", "memory"]
    path: str | None = None
    repo: str | None = None
    revision: str | None = None


class Subject:
    """A causal language model with its tokenizer, ready to be read and edited.

    Attributes:
        name: What people call it on a bench.
        model: The `transformers` model: eval mode, eager attention, gradients off.
        tokenizer: Its tokenizer.
        source: Where it came from.
        family: `config.model_type`.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        n_heads: Attention heads per block.
        d_head: Width of one head.
        n_ctx: Longest context, in tokens.
        n_vocab: Number of logits.
        dtype: Weight precision.
        device: Where inputs go.
        uses_bos: Whether plain text starts with BOS.
        special_ids: Ids of all special tokens, chat markers among them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        source: SubjectSource | None = None,
        uses_bos: bool | None = None,
    ):
        try:
            shape = shape_of(model.config)
        except SiteError as error:
            raise SubjectError(error.message, where=name, hint=error.hint) from error
        self.model = model.eval().requires_grad_(False)
        self.model.set_attn_implementation("eager")
        self.tokenizer, self.name = tokenizer, name
        self.source = source or SubjectSource("memory")
        self.family, self.n_layers, self.d_model = shape.family, shape.n_layers, shape.d_model
        self.n_heads, self.d_head = shape.n_heads, shape.d_head
        text = model.config.get_text_config()
        self.n_ctx: int = text.max_position_embeddings
        self.n_vocab: int = text.vocab_size
        self.uses_bos = tokens.uses_bos(tokenizer) if uses_bos is None else uses_bos
        self.special_ids = tokens.special_ids(tokenizer)

    @property
    def dtype(self) -> torch.dtype:
        """Weight precision."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.model.device

    def site(self, name: str | Site) -> Site:
        """Read a site name and check that this subject has it.

        Raises:
            SiteError: The name means nothing, or the subject has no such layer or head.
        """
        site = Site.parse(name) if isinstance(name, str) else name
        check_range(site, self.n_layers, self.n_heads, where=f"subject {self.name!r}")
        return site

    def path(self, site: str | Site) -> SitePath:
        """Give where a site lies in this subject's module tree."""
        return resolve(self.site(site), self.model.config)

    def module(self, site: str | Site) -> nn.Module:
        """Give the module that a site is the output or input of."""
        return self.model.get_submodule(self.path(site).module)

    def head_weight(self, site: str | Site) -> Float[Tensor, "d_head d_model"]:
        """Give a head's slice of the output projection: its contribution is its mixed values times this.

        Raises:
            SiteError: The site is not a head.
        """
        site = self.site(site)
        if site.head is None:
            raise SiteError(f"{site} is not a head site", hint=f"a head is named like 'head.{site.layer}.0'")
        weight: Tensor = self.module(site).get_parameter("weight")
        rows = slice(site.head * self.d_head, (site.head + 1) * self.d_head)
        return weight[rows] if type(self.module(site)).__name__ == "Conv1D" else weight[:, rows].T

    def encode(self, prompt: Prompt) -> list[int]:
        """Turn a prompt into token ids.

        Args:
            prompt: Text gets one BOS if the subject uses one, never two; special tokens in it are read as such. A
                conversation goes through the chat template and ends where the assistant speaks. Ids stay as they are.

        Raises:
            PromptError: The prompt is empty, has an unknown role, or ids outside the vocabulary.
        """
        return tokens.encode(self.tokenizer, prompt, bos=self.uses_bos, n_vocab=self.n_vocab)

    def encode_completion(self, completion: str | Sequence[int]) -> list[int]:
        """Turn what follows a prompt into token ids: no BOS is added.

        Raises:
            PromptError: The completion is empty.
        """
        return tokens.encode(self.tokenizer, completion, bos=False, n_vocab=self.n_vocab)

    def batch(
        self, prompts: Sequence[Prompt], *, completions: Sequence[str | Sequence[int]] | None = None
    ) -> TokenBatch:
        """Encode prompts, each with its completion where there are any, and pad them on the left.

        Raises:
            PromptError: No prompt, an empty one, one longer than the context, or completions that do not match.
        """
        if not len(prompts):
            raise PromptError("there is no prompt")
        if completions is not None and len(completions) != len(prompts):
            raise PromptError(f"{len(prompts)} prompts but {len(completions)} completions")
        starts = [self.encode(prompt) for prompt in prompts]
        rows = starts
        if completions is not None:
            rows = [a + self.encode_completion(b) for a, b in zip(starts, completions, strict=True)]
        for number, row in enumerate(rows):
            if len(row) > self.n_ctx:
                raise PromptError(
                    f"prompt {number} has {len(row)} tokens, the context holds {self.n_ctx}", where=self.name
                )
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, width - len(row) :] = torch.tensor(row)
            mask[number, width - len(row) :] = True
        prompt_len = torch.tensor([len(start) for start in starts])
        return TokenBatch(ids.to(self.device), mask.to(self.device), prompt_len.to(self.device))

    @property
    def pad_id(self) -> int:
        """Id that fills the left of shorter rows; masked everywhere."""
        candidates: tuple[Any, ...] = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(one for one in candidates if one is not None and one < self.n_vocab)

    @torch.no_grad()
    def logits(self, batch: TokenBatch) -> Float[Tensor, "batch pos vocab"]:
        """Run the model and give the logits at every position; at padding they mean nothing."""
        return self.model(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            position_ids=batch.positions.clamp(min=0),
            use_cache=False,
        ).logits

    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of token ids, special tokens included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Give each token as readable characters; joined they are the text."""
        return tokens.token_strings(self.tokenizer, ids)

    def digests(self) -> dict[str, str]:
        """Give what identifies this subject, as SHA-256 digests.

        Keys: `weights/<file>` for each weight file (`weights/memory` for a model made in memory), `config`,
        `tokenizer`, and `chat_template` where there is one.
        """
        found = self._weight_digests | self._tokenizer_digests
        return dict(sorted(found.items()))

    @property
    def digest(self) -> str:
        """One SHA-256 over all of `digests`."""
        return digest(self.digests())

    @property
    def _weight_digests(self) -> dict[str, str]:
        if self.source.path is None:
            return self._memory_digests
        folder = Path(self.source.path)
        files = file_digests(weight_files(folder, SubjectError))
        config = file_digests([folder / "config.json"])["config.json"]
        return {f"weights/{name}": value for name, value in files.items()} | {"config": config}

    @functools.cached_property
    def _memory_digests(self) -> dict[str, str]:
        config = self.model.config.to_json_string(use_diff=False).encode()
        return {"weights/memory": tensors_digest(self.model.state_dict()), "config": sha256_hex(config)}

    @property
    def _tokenizer_digests(self) -> dict[str, str]:
        template = self.tokenizer.chat_template
        found = {"chat_template": sha256_hex(template.encode())} if isinstance(template, str) else {}
        if self.source.path is None:
            backend: Any = self.tokenizer.backend_tokenizer
            return found | {"tokenizer": sha256_hex(backend.to_str().encode())}
        present = [path for name in TOKENIZER_FILES if (path := Path(self.source.path) / name).is_file()]
        return found | {"tokenizer": digest(file_digests(present))}

    def __repr__(self) -> str:
        shape = f"{self.n_layers} layers, d_model {self.d_model}, {self.n_heads} heads, context {self.n_ctx}"
        return f"Subject({self.name!r}: {self.family}, {shape}, {str(self.dtype).removeprefix('torch.')})"


def load_subject(
    path_or_repo: str | Path,
    *,
    name: str | None = None,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    uses_bos: bool | None = None,
) -> Subject:
    """Load a subject from a Hugging Face directory or a hub repository.

    Args:
        path_or_repo: Directory with `config.json`, or `owner/name`.
        name: What to call it; the last part of the path or repository where absent.
        revision: Commit, tag or branch of a repository; the commit it led to is recorded.
        dtype: Weight precision: `float32`, `bfloat16` or `float16`.
        device: Torch device, or `auto` to spread a large model over what there is.
        uses_bos: Whether plain text starts with BOS; found out from the tokenizer and its template where absent.

    Raises:
        SubjectError: There is no such model, a file is missing or truncated, or a weight is not in the files.
    """
    directory = Path(path_or_repo)
    if directory.is_dir():
        source = SubjectSource("local", path=str(directory.resolve()))
    else:
        source = _fetch(str(path_or_repo), revision)
        directory = Path(source.path or "")
    precision = _precision(dtype)
    if not (directory / "config.json").is_file():
        raise SubjectError("no config.json: this is not a Hugging Face model directory", where=str(path_or_repo))
    weight_files(directory, SubjectError)
    model = _load_model(directory, precision, device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise SubjectError(f"the tokenizer cannot be read: {error}", where=str(path_or_repo)) from error
    name = name or (source.repo or str(directory.resolve())).rstrip("/").rsplit("/", 1)[-1]
    return Subject(model, tokenizer, name=name, source=source, uses_bos=uses_bos)


def _precision(dtype: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise SubjectError(f"no precision {dtype!r}", hint=f"one of {', '.join(known)}")
    return known[dtype]


def _load_model(directory: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    options = {"device_map": "auto"} if device == "auto" else {}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise SubjectError(f"the model cannot be loaded: {error}", where=str(directory)) from error
    finally:
        if shown:
            logging.enable_progress_bar()
    model, report = loaded
    wrong = [*report["missing_keys"], *report["mismatched_keys"]]
    if wrong:
        raise SubjectError(
            f"{len(wrong)} weights are missing or of the wrong shape, first {sorted(map(str, wrong))[0]!r}",
            where=str(directory),
            hint="the configuration and the weight files do not belong together",
        )
    return model if device == "auto" else model.to(device)


def _fetch(repo: str, revision: str | None) -> SubjectSource:
    """Bring a repository's safe files into the hub cache, or find them there, and give where they are."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=list(WANTED_FILES))
    except (OSError, HFValidationError, HfHubHTTPError) as error:
        raise SubjectError(
            f"no directory and no reachable hub repository {repo!r}: {str(error).splitlines()[0]}",
            hint="check the spelling; offline, only what is in the hub cache or on disk opens",
        ) from error
    return SubjectSource("hub", path=folder, repo=repo, revision=Path(folder).name)
