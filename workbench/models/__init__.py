"""Subjects, the sites in them, and the dictionaries that read them."""

from __future__ import annotations

from workbench.core import lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    {
        "Dictionary": "dictionary",
        "FeatureRows": "rows",
        "Fit": "fit",
        "Site": "sites",
        "SitePath": "sites",
        "Subject": "subject",
        "TokenBatch": "subject",
        "bridge": "bridge:",
        "list_subjects": "pretrained",
        "load_dictionary": "dictionary",
        "load_subject": "subject",
        "open_dictionaries": "pretrained",
        "open_subject": "pretrained",
    },
)
