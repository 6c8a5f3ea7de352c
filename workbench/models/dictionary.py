"""SAEs and transcoders as one type: read a site, give features, write to a site.

Everything above asks the same of both: encode, decode, the error they leave, and the rows of a few features. The
arithmetic is sae-lens' own, operation by operation, so that results are bit-equal, without the seconds that importing
sae-lens takes and without its metadata, which answers `None` to a misspelt field.

Example:
    >>> sae = load_dictionary("datasets/organism/dictionaries/resid.2")
    >>> acts = sae.encode(stream)
    >>> sae.error(stream).norm()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.core.errors import DictionaryError
from workbench.models.architecture import DictionaryConfig, DictionaryParts, Fit, Metadata
from workbench.models.rows import FeatureRows, normalise
from workbench.models.saelens import read_directory
from workbench.models.sites import Site

__all__ = ["Dictionary", "DictionaryConfig", "FeatureRows", "Metadata", "load_dictionary"]


class Dictionary:
    """An SAE or a transcoder.

    Attributes:
        id: What people call it, such as `resid.2`.
        kind: `sae` or `transcoder`.
        config: How it computes.
        architecture: sae-lens' name of its architecture.
        read_site: Where it reads.
        write_site: Where it writes; the same for an SAE.
        d_in: Width of what it reads.
        d_out: Width of what it writes.
        d_dict: Number of features.
        metadata: What its files say about it.
        digest: SHA-256 over its files.
        source: Where it came from: path, or repository, release, id and revision.
        fit: How well it reconstructed its site when it was opened for a subject, if that was measured.
    """

    def __init__(
        self,
        config: DictionaryConfig,
        weights: Mapping[str, Tensor],
        *,
        id: str,
        read_site: Site,
        write_site: Site | None = None,
        metadata: Mapping[str, Any] | None = None,
        digest: str = "",
        source: Mapping[str, str] | None = None,
    ):
        config.check_weights(weights, id)
        self.config, self.id, self.digest = config, id, digest
        self.weights = {name: tensor.detach() for name, tensor in weights.items()}
        self.read_site, self.write_site = read_site, write_site or read_site
        if (self.read_site != self.write_site) != config.is_transcoder:
            raise DictionaryError(
                f"a {config.architecture} dictionary reads {self.read_site} and writes {self.write_site}",
                where=id,
                hint="a transcoder writes to another site than it reads, an SAE to the same",
            )
        self.metadata = Metadata(metadata or {})
        self.source = dict(source or {})
        self.fit: Fit | None = None
        self.kind: Literal["sae", "transcoder"] = "transcoder" if config.is_transcoder else "sae"
        self.architecture = config.architecture
        self.d_in, self.d_out, self.d_dict = config.d_in, config.d_out, config.d_dict

    @classmethod
    def from_parts(cls, parts: DictionaryParts, *, id: str) -> Dictionary:
        """Make a dictionary of what a reader found."""
        rest = {name: value for name, value in vars(parts).items() if name not in ("config", "weights")}
        return cls(parts.config, parts.weights, id=id, **rest)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of weights and arithmetic."""
        return self.weights["W_enc"].dtype

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*b d_in"]) -> Float[Tensor, "*b d_dict"]:
        """Give every feature's activation at each position.

        Args:
            x: Activations of the read site; cast to the dictionary's precision.
        """
        w, config = self.weights, self.config
        self._check_width(x, self.d_in, self.read_site)
        x = normalise(x.to(self.dtype), config.scaling)
        if config.subtracts_b_dec:
            x = x - w["b_dec"]
        if config.activation == "gated":
            gate = (x @ w["W_enc"] + w["b_gate"] > 0).to(self.dtype)
            return gate * torch.relu(x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"])
        pre = x @ w["W_enc"] + w["b_enc"]
        if config.activation == "jumprelu":
            return torch.relu(pre) * (pre > w["threshold"]).to(self.dtype)
        return self._topk(pre) if config.activation == "topk" else torch.relu(pre)

    def _topk(self, pre: Tensor) -> Tensor:
        if self.config.rescales_by_decoder_norm:
            pre = pre * self.weights["W_dec"].norm(dim=-1)
        values, indices = torch.topk(pre, k=self.config.k or 0, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, indices, values.relu())

    @torch.no_grad()
    def decode(
        self, acts: Float[Tensor, "*b d_dict"], x: Float[Tensor, "*b d_in"] | None = None
    ) -> Float[Tensor, "*b d_out"]:
        """Give what these activations write.

        Args:
            acts: Activations.
            x: The input they came from; needed where the dictionary normalises its input or has a skip connection.

        Raises:
            DictionaryError: The input is needed and absent.
        """
        w, config = self.weights, self.config
        needs_input = "W_skip" in w or (config.scaling != "none" and not config.is_transcoder)
        if needs_input and x is None:
            raise DictionaryError(f"decoding {config.architecture} with {config.scaling} scaling needs the input x")
        if config.rescales_by_decoder_norm:
            acts = acts * (1 / w["W_dec"].norm(dim=-1))
        out = acts @ w["W_dec"] + w["b_dec"]
        if x is None or not needs_input:
            return out
        if "W_skip" in w:
            return out + x.to(self.dtype) @ w["W_skip"].T
        return self._denormalise(out, x.to(self.dtype))

    def _denormalise(self, out: Tensor, x: Tensor) -> Tensor:
        if self.config.scaling == "layer_norm":
            mean = x.mean(dim=-1, keepdim=True)
            return out * (x - mean).std(dim=-1, keepdim=True) + mean
        return out / (x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True))

    def error(
        self, x: Float[Tensor, "*b d_in"], y: Float[Tensor, "*b d_out"] | None = None
    ) -> Float[Tensor, "*b d_out"]:
        """Give what the dictionary leaves unexplained: target minus reconstruction.

        Args:
            x: Activations of the read site.
            y: Activations of the write site, which a transcoder is measured against; an SAE's target is `x`.

        Raises:
            DictionaryError: A transcoder was given no `y`.
        """
        if y is None and self.kind == "transcoder":
            raise DictionaryError(f"the error of a transcoder needs y, what {self.write_site} held", where=self.id)
        return (x if y is None else y).to(self.dtype) - self.decode(self.encode(x), x)

    def rows(self, indices: Sequence[int]) -> FeatureRows:
        """Give the rows of some features, in float32: all that an edit of them needs.

        Raises:
            DictionaryError: There is no such feature, or the dictionary is TopK, where whether a feature fires
                depends on every other one.
        """
        if self.config.activation == "topk":
            raise DictionaryError(
                "rows of a TopK dictionary are not enough to know when a feature fires",
                where=self.id,
                hint="use its direction, or convert the dictionary to JumpReLU with a threshold",
            )
        picked = [self._check_index(index) for index in indices]
        w = {name: tensor.float() for name, tensor in self._slices(picked).items()}
        zeros = torch.zeros(len(picked), device=self.weights["W_enc"].device)
        b_in = self.weights["b_dec"].float().clone() if self.config.subtracts_b_dec else None
        return FeatureRows(
            index=tuple(picked),
            activation=self.config.activation,  # type: ignore[arg-type]
            **{"b_enc": zeros, **w},
            b_in=b_in,
            scaling=self.config.scaling,
            rescale=self.kind == "sae",
        )

    def _slices(self, picked: list[int]) -> dict[str, Tensor]:
        whole = ("b_dec", "W_skip")
        return {
            name: tensor[:, picked].contiguous() if name == "W_enc" else tensor[picked].contiguous()
            for name, tensor in self.weights.items()
            if name not in whole
        }

    def decoder(self, index: int) -> Float[Tensor, " d_out"]:
        """Give a feature's decoder row, in float32.

        Raises:
            DictionaryError: There is no such feature.
        """
        return self.weights["W_dec"][self._check_index(index)].float()

    def _check_index(self, index: int) -> int:
        if not 0 <= index < self.d_dict:
            raise DictionaryError(f"no feature {index}: features are 0 to {self.d_dict - 1}", where=self.id)
        return int(index)

    def _check_width(self, x: Tensor, width: int, site: Site) -> None:
        if x.shape[-1] != width:
            raise DictionaryError(
                f"dictionary {self.id!r} reads width {width}, the activations have width {x.shape[-1]}",
                where=f"site {site}",
            )

    def __repr__(self) -> str:
        where = str(self.read_site) if self.kind == "sae" else f"{self.read_site} → {self.write_site}"
        return f"Dictionary({self.id!r}: {self.architecture}, {where}, {self.d_dict} features of width {self.d_in})"


def load_dictionary(
    path: str | Path,
    *,
    id: str | None = None,
    site: str | Site | None = None,
    write_site: str | Site | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> Dictionary:
    """Load a dictionary from a sae-lens directory (`cfg.json` and `sae_weights.safetensors`).

    Args:
        path: The directory.
        id: What to call it; the directory's name where absent.
        site: Where it reads; from its metadata where absent.
        write_site: Where a transcoder writes; from its metadata where absent.
        device: Torch device.
        dtype: Precision of weights and arithmetic, whatever the file holds.

    Raises:
        DictionaryError: A file is missing, truncated or contradictory, the architecture is not supported, or the
            metadata name no site.
    """
    directory = Path(path)
    read = read_directory(directory, site=site, write_site=write_site, device=device, dtype=dtype)
    return Dictionary.from_parts(read, id=id or directory.resolve().name)
