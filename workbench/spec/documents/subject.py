"""On exactly which model, dictionary and module an edit was measured, so that another one is refused."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from workbench.spec.documents.base import (
    Count,
    DictionaryId,
    Digest,
    Document,
    LongText,
    ModulePath,
    Positive,
    SiteName,
    Slug,
    Text,
    Title,
)

Unmeasured = dict[Slug, Text]
"""Field that is null → why it was not measured."""


class SourceRecord(Document):
    """Where a model or dictionary comes from."""

    kind: Literal["hub", "local", "memory"]
    """Hugging Face hub, a directory, or an object that was never on disk."""
    repo: Title | None = None
    """Hub repository, or the name of a local directory (its last part, never a path of a machine)."""
    revision: Title | None = None
    """Commit or tag on the hub."""


class SubjectDigests(Document):
    """SHA-256 of everything that decides what the model computes and reads."""

    weights: Annotated[dict[Title, Digest], Field(min_length=1)]
    """Weight file → its digest."""
    config: Digest
    """`config.json`."""
    tokenizer: Digest
    """Tokenizer files together."""
    chat_template: Digest | None
    """Chat template; null where the subject has none."""


class SubjectRecord(Document):
    """The model that was measured."""

    name: Title
    """What people call it."""
    source: SourceRecord
    """Where it comes from."""
    family: Slug
    """Architecture, as in the model's configuration: `llama`, `gemma3_text`, …"""
    n_layers: Positive
    """Blocks."""
    d_model: Positive
    """Width of the residual stream."""
    n_heads: Positive
    """Attention heads per block."""
    n_vocab: Positive
    """Tokens of the vocabulary."""
    n_ctx: Positive
    """Longest context, tokens."""
    dtype: Literal["float32", "bfloat16", "float16"]
    """Weight precision that everything here was measured in."""
    digests: SubjectDigests
    """What the live subject must equal."""
    loader: Title = "transformers.AutoModelForCausalLM"
    """What opened it."""
    weight_processing: Literal["none", "folded"] = "none"
    """Folded norms or centred weights change the basis a direction lives in."""
    bos: Literal["one", "none"]
    """Whether plain text gets exactly one BOS token."""
    padding_side: Literal["left", "right"] = "left"
    """Side that shorter prompts of a batch are padded on."""
    attention: Slug = "eager"
    """Attention implementation."""


class FitRecord(Document):
    """How well a dictionary fits the subject."""

    unexplained_variance: Annotated[float, Field(ge=0)]
    """Share of the site's variance that its reconstruction misses; above 1 is worse than the mean."""
    n_tokens: Positive
    """Tokens it was measured on."""
    corpus: Title
    """What text."""


class DictionaryRecord(Document):
    """An SAE or transcoder whose features are edited or watched."""

    id: DictionaryId
    """Name that edits and features refer to."""
    kind: Literal["sae", "transcoder"]
    """A transcoder reads one site and writes another."""
    architecture: Slug
    """`standard`, `jumprelu`, `gated`, `batchtopk`, …"""
    release: Title | None = None
    """Registry release or repository."""
    read_site: SiteName
    """Site that the encoder reads."""
    write_site: SiteName
    """Site that the decoder writes."""
    d_in: Positive
    """Width of what is read."""
    d_out: Positive
    """Width of what is written."""
    d_dict: Positive
    """Features."""
    scaling: Literal["none", "layer_norm", "constant_norm"]
    """Normalisation of the input."""
    digest: Digest
    """Weights and configuration together."""
    licence: Title | None = None
    """Licence; null is unknown."""
    trained_on: Digest | Literal["unknown"] = "unknown"
    """Digest of the weights of the model it was trained on."""
    fit: FitRecord | None = None
    """Fit on this subject; null is not measured."""


class SiteRecord(Document):
    """Where a canonical site lives."""

    name: SiteName
    """Canonical name; layers count from 0, `resid.2` is the output of block 2."""
    hf_module: ModulePath
    """Module of the Hugging Face model that is hooked."""
    hf_side: Literal["input", "output"]
    """Which side of the module."""
    head: Count | None = None
    """Head, for single-head sites."""
    width: Positive
    """Width of what is read and written there."""
    transformer_lens_hook: Annotated[str, Field(pattern=r"^[a-z0-9_.]{1,80}$")] | None = None
    """Name of the same place in transformer-lens; for orientation only."""


class ExampleRecord(Document):
    """A piece of text on which a feature was looked at."""

    text: LongText
    """The text around the token."""
    token: LongText
    """The token itself."""
    activation: float
    """Activation there, in the dictionary's units."""
    drawn: Literal["top", "quantile", "random"]
    """How it was picked; top examples alone flatter a label."""


class SelectionRecord(Document):
    """Why this feature and not another: what it did on the split it was selected on."""

    axis: Slug
    """Axis that features were ranked on."""
    split: Slug
    """Split that was looked at; never the confirmation split."""
    effect: float
    """Standardised mean difference between the two sides of the axis."""
    low: float
    """Lower bound of its interval."""
    high: float
    """Upper bound."""
    auroc: Annotated[float, Field(ge=0, le=1)] | None = None
    """Area under the ROC curve; .5 is chance."""
    n: Positive
    """Prompts."""
    rank: Positive | None = None
    """Place among the features looked at, 1 the first."""
    n_ranked: Positive | None = None
    """Features looked at."""


class SiblingRecord(Document):
    """A feature that points nearly the same way."""

    index: Count
    """Row of the sibling."""
    cosine: Annotated[float, Field(ge=-1.0001, le=1.0001)]
    """Cosine of the two decoder rows."""


class FeatureRecord(Document):
    """What is known of a feature that is edited or watched."""

    dictionary: DictionaryId
    """Dictionary it belongs to."""
    index: Count
    """Row, from 0."""
    label: Annotated[str, Field(max_length=500)]
    """What it is believed to mean: a hypothesis."""
    labelled_by: Title
    """Who or what wrote the label."""
    density: Annotated[float, Field(ge=0, le=1)] | None
    """Share of tokens on which it is active."""
    max_activation: Annotated[float, Field(ge=0)] | None
    """Largest activation seen, in the dictionary's units."""
    n_tokens: Positive | None
    """Tokens that density and maximum come from."""
    corpus: Digest | None
    """Digest of those tokens' corpus."""
    examples: Annotated[tuple[ExampleRecord, ...], Field(max_length=64)] = ()
    """Top and random examples."""
    selection: SelectionRecord | None
    """Evidence that selected it."""
    ablation_effect: float | None
    """Change of the primary axis when the feature is removed, on the selection split."""
    siblings: Annotated[tuple[SiblingRecord, ...], Field(max_length=16)] = ()
    """Near duplicates; they may undo or repeat the edit."""
    unmeasured: Unmeasured = Field(default_factory=dict)
    """Why each null field is null."""

    @model_validator(mode="after")
    def _reasons(self) -> "FeatureRecord":
        fields = ("density", "max_activation", "n_tokens", "corpus", "selection", "ablation_effect")
        silent = [name for name in fields if getattr(self, name) is None and name not in self.unmeasured]
        if silent:
            raise ValueError(f"feature {self.dictionary}:{self.index}: {', '.join(silent)} null without a reason")
        return self
