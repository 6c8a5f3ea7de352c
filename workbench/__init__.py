"""Explore SAE features and circuits of a language model, steer it, and export what holds as a review-ready spec.

Example:
    >>> import workbench as wb
    >>> b = wb.open("organism", project="first_look")
    >>> b.rank("jailbreak_resistance")

Importing this costs no torch; `open` does.
"""

from __future__ import annotations

from workbench.core import lazy as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        "Axis": "features.axes",
        "VERSION": "core.version",
        "apply": "consumer.apply",
        "edits": "interventions.edits:",
        "remeasure": "consumer.remeasure",
        "verify": "spec.verify",
    },
)
__all__ += ["open"]


def open(source="organism", **options):
    """Open a bench on a subject and let its objects show themselves as widgets.

    Args:
        source: `organism`, a Hugging Face directory, or a hub repository.
        **options: See `workbench.bench.bench.open_bench`: `sae`, `project`, `revision`, `device`, `dtype`.
    """
    import workbench.widgets.views  # noqa: F401 - registers the widgets with the bench
    from workbench.bench.bench import open_bench

    return open_bench(source, **options)
