"""Opens what people name: the built-in organism, a directory, a hub model, and dictionaries by short name.

Example:
    >>> subject = open_subject("organism")
    >>> open_dictionaries(subject)                                    # those beside the model
    >>> gemma = open_subject("google/gemma-3-4b-it")
    >>> open_dictionaries(gemma, "gemma-scope-2:transcoder/17/16k")
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from workbench.core.errors import DictionaryError, InputError, SubjectError
from workbench.core.files import datasets_dir
from workbench.models.dictionary import Dictionary, load_dictionary
from workbench.models.fit import check_fits, fit_all, warn_bad_fit
from workbench.models.hub import fetch_dictionary
from workbench.models.registry import find_entry
from workbench.models.saelens import CONFIG
from workbench.models.samples import sample_prompts
from workbench.models.subject import Subject, load_subject
from workbench.models.tokens import Prompt

Source = str | os.PathLike[str]


def list_subjects() -> list[dict]:
    """List the built-in subjects: `name`, `description`, `dictionaries` (ids) and `path`."""
    try:
        folders = sorted(path.parent for path in datasets_dir().glob("*/model") if (path / "config.json").is_file())
    except InputError:
        return []
    return [
        {
            "name": folder.name,
            "description": _description(folder),
            "dictionaries": [path.name for path in _dictionary_folders(folder / "dictionaries")],
            "path": str(folder),
        }
        for folder in folders
    ]


def _description(folder: Path) -> str:
    card = folder / "card.json"
    said = json.loads(card.read_text(encoding="utf-8")).get("description") if card.is_file() else None
    if isinstance(said, str):
        return said
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    return f"{config.get('model_type')} model with {layers} layers"


def open_subject(
    source: Source,
    *,
    name: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> Subject:
    """Open a subject.

    Args:
        source: A built-in subject such as `organism`, a Hugging Face directory (or one with a `model` folder in it),
            or a hub repository.
        name: What to call it.
        revision: Commit, tag or branch of a hub repository.
        device: Torch device, or `auto`.
        dtype: Weight precision.

    Raises:
        SubjectError: There is no such model, or its files are damaged.
    """
    options = {"revision": revision, "device": device, "dtype": dtype}
    built_in = {entry["name"]: entry["path"] for entry in list_subjects()}
    text = os.fspath(source)
    folder = Path(built_in.get(text, text))
    if folder.is_dir():
        inner = folder / "model"
        if not (folder / "config.json").is_file() and (inner / "config.json").is_file():
            return load_subject(inner, name=name or folder.resolve().name, **options)
        return load_subject(folder, name=name, **options)
    if text.count("/") != 1 or text.startswith((".", "~", "/")):
        close = difflib.get_close_matches(text, list(built_in), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"built in: {', '.join(built_in) or 'none here'}"
        raise SubjectError(f"no subject {text!r}: not built in, not a directory, not a hub repository", hint=hint)
    return load_subject(text, name=name, **options)


def open_dictionaries(
    subject: Subject,
    sae: Source | Sequence[Source] | None = None,
    *,
    prompts: Sequence[Prompt] | None = None,
    revision: str | None = None,
    same_model: bool = False,
    dtype: str = "float32",
) -> dict[str, Dictionary]:
    """Open dictionaries for a subject, check that they belong to it, and measure how well they fit.

    Args:
        subject: The subject.
        sae: sae-lens directories, folders of them, short names or `release:id`; those in the `dictionaries` folder
            beside the subject's model where absent.
        prompts: Texts to measure the fit on; a few general ones, or the subject's own, where absent.
        revision: Commit of the dictionaries' hub repository.
        same_model: The caller knows that subject and dictionaries mean one model under two names.
        dtype: Precision of weights and arithmetic.

    Returns:
        Dictionaries by id, each with its measured `fit`.

    Raises:
        DictionaryError: One cannot be read, does not fit the subject, or two have one id.
    """
    named = [sae] if isinstance(sae, str | os.PathLike) else list(sae) if sae is not None else _beside(subject)
    found: dict[str, Dictionary] = {}
    for one in named:
        for dictionary in _open(one, subject, revision=revision, dtype=dtype):
            if dictionary.id in found:
                raise DictionaryError(f"two dictionaries are called {dictionary.id!r}", hint="open them one by one")
            check_fits(dictionary, subject, same_model=same_model)
            found[dictionary.id] = dictionary
    if found:
        texts = list(prompts) if prompts is not None else sample_prompts(subject)
        for name, fit in fit_all(found, subject, texts).items():
            found[name].fit = fit
            warn_bad_fit(found[name], subject, fit)
    return found


def _beside(subject: Subject) -> list[Path]:
    if subject.source.kind != "local" or subject.source.path is None:
        return []
    model = Path(subject.source.path)
    return [folder for folder in (model / "dictionaries", model.parent / "dictionaries") if folder.is_dir()][:1]


def _dictionary_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))


def _open(name: Source, subject: Subject, *, revision: str | None, dtype: str) -> list[Dictionary]:
    folder, device = Path(name), str(subject.device)
    if folder.is_dir():
        if not (folder / CONFIG).is_file() and (inside := _dictionary_folders(folder)):
            return [load_dictionary(one, device=device, dtype=dtype) for one in inside]
        return [load_dictionary(folder, device=device, dtype=dtype)]
    entry = find_entry(os.fspath(name), model=subject.source.repo or subject.name)
    parts = fetch_dictionary(entry, revision=revision, device=device, dtype=dtype)
    return [Dictionary.from_parts(parts, id=os.fspath(name))]
