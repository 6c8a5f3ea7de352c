"""What a bundle says about the model, the dictionaries, the code and the machine, read off the live objects.

A consumer makes the same records of what it has loaded and compares, so both sides are written in one place. Nothing
here names a path of a machine: a local model is known by its digests.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from workbench.core.canonical import digest
from workbench.core.version import VERSION
from workbench.interventions.edits import Edits
from workbench.interventions.targets import FeatureTarget
from workbench.models.dictionary import Dictionary
from workbench.models.sites import Site, transformer_lens_hook
from workbench.models.subject import Subject
from workbench.spec.documents.spec import CodeRecord, EnvironmentRecord
from workbench.spec.documents.subject import (
    DictionaryRecord,
    SiteRecord,
    SourceRecord,
    SubjectDigests,
    SubjectRecord,
)

_PACKAGES = ("numpy", "safetensors", "tokenizers", "torch", "transformers")


def now() -> str:
    """Give the UTC time as documents write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def subject_record(subject: Subject) -> SubjectRecord:
    """Describe a live subject."""
    found = subject.digests()
    weights = {name.removeprefix("weights/"): one for name, one in found.items() if name.startswith("weights/")}
    source = subject.source
    repo = source.repo or (Path(source.path).name if source.path else None)
    return SubjectRecord(
        name=subject.name,
        source=SourceRecord(kind=source.kind, repo=repo, revision=source.revision),
        family=subject.family,
        n_layers=subject.n_layers,
        d_model=subject.d_model,
        n_heads=subject.n_heads,
        n_vocab=subject.n_vocab,
        n_ctx=subject.n_ctx,
        dtype=str(subject.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        digests=SubjectDigests(
            weights=weights,
            config=found["config"],
            tokenizer=found["tokenizer"],
            chat_template=found.get("chat_template"),
        ),
        bos="one" if subject.uses_bos else "none",
        attention=subject.model.config._attn_implementation or "eager",
    )


def dictionary_record(dictionary: Dictionary) -> DictionaryRecord:
    """Describe a dictionary whose features are edited."""
    return DictionaryRecord(
        id=dictionary.id,
        kind=dictionary.kind,
        architecture=dictionary.architecture,
        release=_text(dictionary.metadata.get("release", None)),
        read_site=str(dictionary.read_site),
        write_site=str(dictionary.write_site),
        d_in=dictionary.d_in,
        d_out=dictionary.d_out,
        d_dict=dictionary.d_dict,
        scaling=dictionary.config.scaling,
        digest=dictionary.digest,
        licence=_text(dictionary.metadata.get("licence", None)),
    )


def site_records(subject: Subject, edits: Edits) -> tuple[SiteRecord, ...]:
    """Say where every site that the edits read or write lives in this subject."""
    return tuple(_site_record(subject, site) for site in edits.reads)


def _site_record(subject: Subject, site: Site) -> SiteRecord:
    path = subject.path(site)
    return SiteRecord(
        name=str(site),
        hf_module=path.module,
        hf_side=path.side,
        head=path.head,
        width=path.width,
        transformer_lens_hook=transformer_lens_hook(site),
    )


def code_record() -> CodeRecord:
    """Give the version of this software, and its commit where it runs from a checkout."""
    root = Path(__file__).resolve().parents[2]
    revision = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    dirty = None if revision is None else bool(_git(root, "status", "--porcelain", "--untracked-files=no", "workbench"))
    return CodeRecord(version=VERSION, revision=revision, dirty=dirty)


def environment_record() -> EnvironmentRecord:
    """Give what decides the numbers: versions, processor, threads."""
    installed = {one.metadata["Name"].lower(): one.version for one in metadata.distributions()}
    return EnvironmentRecord(
        python=platform.python_version(),
        packages={name: installed[name] for name in _PACKAGES if name in installed},
        lock=digest(sorted(installed.items())),
        hardware=f"{_processor()}, {sys.platform}",
        threads=torch.get_num_threads(),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def used_dictionaries(edits: Edits, dictionaries: Iterable[Dictionary]) -> list[Dictionary]:
    """Give the dictionaries that edits or their gates take features from, by id."""
    targets = [edit.target for edit in edits] + [edit.gate.target for edit in edits if edit.gate]
    wanted = {target.dictionary_id for target in targets if isinstance(target, FeatureTarget)}
    return sorted((one for one in dictionaries if one.id in wanted), key=lambda one: one.id)


def _processor() -> str:
    """Give the processor's model name; Linux writes it in a file, elsewhere the platform knows it."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _text(value: object) -> str | None:
    return value[:200] if isinstance(value, str) and value else None
