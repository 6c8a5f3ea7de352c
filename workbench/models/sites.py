"""One name for one place in a model, whatever library speaks about it.

The same tensor is called three things: `resid.2` here, the output of `model.layers.2` in Hugging Face transformers,
`blocks.2.hook_resid_post` in TransformerLens. Published dictionaries name their place in either of the last two, with
traps: the raw output of Gemma-2's MLP is not what it adds to the stream (unexplained variance 9.8 instead of 0.26,
and nothing raises). So every translation is here, checked on each family, and a name that means nothing is an error.

| site | meaning | TransformerLens |
|---|---|---|
| `resid.2` | output of block 2 (0-based) | `blocks.2.hook_resid_post` |
| `attn.2`, `mlp.2` | what each adds to the stream (Gemma-2/3: after its post-norm) | `hook_attn_out`, `hook_mlp_out` |
| `mlp_in.2` | what the MLP module receives (after its pre-norm) | `blocks.2.mlp.hook_in` |
| `z.2` | all heads' mixed values, before the output projection, heads concatenated | `blocks.2.attn.hook_z` |
| `head.2.3` | what head 3 contributes to the output projection's output | row 3 of the same |

Example:
    >>> Site.parse("resid.2")
    Site(kind='resid', layer=2, head=None)
    >>> transformer_lens_hook(Site.parse("attn.0"))
    'blocks.0.hook_attn_out'
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from workbench.core.errors import SiteError

Kind = Literal["resid", "attn", "mlp", "head", "mlp_in", "z"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, order=True)
class Site:
    """A place in a model where activations are read or changed.

    Attributes:
        kind: What is there; see the module's table.
        layer: Block, from 0.
        head: Attention head, from 0, for the kind `head` only.
    """

    kind: Kind
    layer: int
    head: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SiteError(f"no kind of site {self.kind!r}", hint=_did_you_mean(self.kind, KINDS))
        if self.layer < 0 or (self.head is not None and self.head < 0):
            raise SiteError(f"a site's layer and head count from 0, got layer {self.layer}, head {self.head}")
        if (self.head is not None) != (self.kind == "head"):
            raise SiteError(f"a {self.kind!r} site {'needs a' if self.kind == 'head' else 'has no'} head number")

    @classmethod
    def parse(cls, name: str) -> Site:
        """Read a canonical name such as `resid.2` or `head.2.3`.

        Raises:
            SiteError: The name means nothing; the nearest names are given.
        """
        kind, *numbers = name.strip().split(".")
        wanted = 2 if kind == "head" else 1
        if kind in KINDS and len(numbers) == wanted and all(re.fullmatch(r"0|[1-9]\d{0,5}", n) for n in numbers):
            return cls(kind, *(int(number) for number in numbers))  # type: ignore[arg-type]
        raise SiteError(f"no site {name!r}", hint=_nearest(kind, numbers))

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}" + ("" if self.head is None else f".{self.head}")


@dataclass(frozen=True)
class SitePath:
    """Where a site lies in the module tree of one Hugging Face model.

    Attributes:
        module: Dotted path below the model, such as `model.layers.2`.
        side: Which of the module's tensors it is. An output may be a tuple whose first entry is the tensor.
        head: Head number for a head site, whose module is the attention's output projection: its reading is that
            head's slice of the input times its slice of the weight, and it is written by adding to the output.
        width: Size of the last dimension.
    """

    module: str
    side: Literal["output", "input"]
    head: int | None
    width: int


@dataclass(frozen=True)
class Family:
    """Module names of one model family, below its list of blocks."""

    blocks: str
    attn: str
    projection: str
    mlp: str
    attn_out: str | None = None
    mlp_out: str | None = None


_LLAMA = Family("model.layers", "self_attn", "self_attn.o_proj", "mlp")
_GEMMA = Family(
    "model.layers",
    "self_attn",
    "self_attn.o_proj",
    "mlp",
    attn_out="post_attention_layernorm",
    mlp_out="post_feedforward_layernorm",
)
FAMILIES: dict[str, Family] = {
    "gpt2": Family("transformer.h", "attn", "attn.c_proj", "mlp"),
    "gpt_neox": Family("gpt_neox.layers", "attention", "attention.dense", "mlp"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gemma3": replace(_GEMMA, blocks="model.language_model.layers"),
}
"""Families by `config.model_type`; each is checked in the tests against TransformerLens and against its own sums."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model that sites depend on."""

    family: str
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int


def shape_of(config: Any) -> Shape:
    """Read a Hugging Face configuration's sizes, of the text tower where there are several.

    Raises:
        SiteError: The family is not one whose sites are known.
    """
    family = getattr(config, "model_type", None)
    if family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise SiteError(f"sites of the model family {family!r} are not known", hint=f"known families: {known}")
    text = config.get_text_config()
    n_heads = text.num_attention_heads
    d_head = getattr(text, "head_dim", None) or text.hidden_size // n_heads
    return Shape(family, text.num_hidden_layers, text.hidden_size, n_heads, d_head)


def resolve(site: Site, config: Any) -> SitePath:
    """Find a site in the module tree of a Hugging Face model.

    Args:
        site: The site.
        config: The model's configuration.

    Raises:
        SiteError: The family is unknown, or the model has no such layer or head.
    """
    shape = shape_of(config)
    check_range(site, shape.n_layers, shape.n_heads)
    family = FAMILIES[shape.family]
    block = f"{family.blocks}.{site.layer}"
    if site.kind == "resid":
        return SitePath(block, "output", None, shape.d_model)
    if site.kind == "attn":
        return SitePath(f"{block}.{family.attn_out or family.attn}", "output", None, shape.d_model)
    if site.kind == "mlp":
        return SitePath(f"{block}.{family.mlp_out or family.mlp}", "output", None, shape.d_model)
    if site.kind == "mlp_in":
        return SitePath(f"{block}.{family.mlp}", "input", None, shape.d_model)
    if site.kind == "z":
        return SitePath(f"{block}.{family.projection}", "input", None, shape.n_heads * shape.d_head)
    return SitePath(f"{block}.{family.projection}", "output", site.head, shape.d_model)


def check_range(site: Site, n_layers: int, n_heads: int, *, where: str | None = None) -> None:
    """Refuse a site beyond a model's layers or heads.

    Raises:
        SiteError: There is no such layer or head.
    """
    if site.layer >= n_layers:
        raise SiteError(
            f"no site {str(site)!r}: layers are 0 to {n_layers - 1}",
            where=where,
            hint=f"the nearest is {str(Site(site.kind, n_layers - 1, site.head))!r}",
        )
    if site.head is not None and site.head >= n_heads:
        raise SiteError(
            f"no site {str(site)!r}: heads are 0 to {n_heads - 1}",
            where=where,
            hint=f"the nearest is {f'head.{site.layer}.{n_heads - 1}'!r}",
        )


_HOOKS = {
    "resid": "hook_resid_post",
    "attn": "hook_attn_out",
    "mlp": "hook_mlp_out",
    "mlp_in": "mlp.hook_in",
    "z": "attn.hook_z",
}
_OTHER_HOOKS = {"hook_out": "resid"}
_REFUSED_HOOKS = {
    "hook_resid_mid": "the stream between attention and MLP is not a site here",
    "hook_mlp_in": "TransformerLens gives different tensors under this name; the MLP's input is 'mlp.hook_in'",
    "ln2.hook_normalized": "a norm before its gain is no module's tensor; the MLP's input is 'mlp.hook_in'",
    "ln1.hook_normalized": "a norm before its gain is no module's tensor",
    "mlp.hook_post": "MLP neurons are not a site here",
}


def transformer_lens_hook(site: Site) -> str:
    """Give the TransformerLens hook whose tensor a site is; for a head, the one that holds all heads' values."""
    return f"blocks.{site.layer}.{_HOOKS['z' if site.kind == 'head' else site.kind]}"


def site_of_hook(hook: str) -> Site:
    """Give the site that a TransformerLens hook name means, as dictionaries' metadata writes it.

    `hook_resid_pre` of block n is the output of block n − 1.

    Raises:
        SiteError: The hook is none of ours; says why where the name is a known trap.
    """
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    if not found:
        example = transformer_lens_hook(Site("resid", 2))
        raise SiteError(f"no site for the hook {hook!r}", hint=f"a hook name looks like {example!r}")
    layer, rest = int(found[1]), found[2]
    if rest == "hook_resid_pre":
        if layer == 0:
            raise SiteError(f"no site for the hook {hook!r}: the embedding is not a site here")
        return Site("resid", layer - 1)
    kinds = {name: kind for kind, name in _HOOKS.items()} | _OTHER_HOOKS
    if rest not in kinds:
        hint = _REFUSED_HOOKS.get(rest) or _did_you_mean(rest, kinds)
        raise SiteError(f"no site for the hook {hook!r}", hint=hint)
    return Site(kinds[rest], layer)  # type: ignore[arg-type]


_MODULE_HOOKS = {
    "output": "resid",
    "self_attn.o_proj.input": "z",
    "attn.c_proj.input": "z",
    "mlp.input": "mlp_in",
    "pre_feedforward_layernorm.output": "mlp_in",
    "post_feedforward_layernorm.output": "mlp",
}


def site_of_module_hook(hook: str) -> Site:
    """Give the site that a Hugging Face hook name means, such as `model.layers.2.pre_feedforward_layernorm.output`.

    Gemma Scope 2 writes its places this way, and its readers' TransformerLens names for transcoders are wrong. A name
    that means different things in different families (`post_attention_layernorm.output`) is refused.

    Raises:
        SiteError: The name is none of ours.
    """
    found = re.fullmatch(r"(?:model\.(?:language_model\.)?layers|transformer\.h|gpt_neox\.layers)\.(\d+)\.(.+)", hook)
    kind = _MODULE_HOOKS.get(found[2]) if found else None
    if found is None or kind is None:
        raise SiteError(f"no site for the module hook {hook!r}", hint=f"known ends: {', '.join(_MODULE_HOOKS)}")
    return Site(kind, int(found[1]))  # type: ignore[arg-type]


def _nearest(kind: str, numbers: list[str]) -> str:
    read = [int(number) for number in numbers if number.isdecimal() and number.isascii()]
    layer, head = (read + [2, 0][len(read) :])[:2]
    close = difflib.get_close_matches(kind, KINDS, n=2, cutoff=0.5) or ["resid", "attn", "mlp"]
    names = [f"head.{layer}.{head}" if one == "head" else f"{one}.{layer}" for one in close]
    return "did you mean " + " or ".join(repr(name) for name in names) + "?"


def _did_you_mean(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5) or list(known)
    return "did you mean " + " or ".join(repr(one) for one in close) + "?"
