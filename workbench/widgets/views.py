"""Tells the bench which widgets draw its objects; importing this is enough.

Example:
    >>> import workbench.widgets.views  # workbench.open does it
    >>> b.tokens("the capital of france is")
"""

from __future__ import annotations

from workbench.bench.views import register_view
from workbench.core import progress
from workbench.widgets.feature_card import FeatureCard
from workbench.widgets.progress_bar import NotebookBar, in_notebook
from workbench.widgets.steering_bench import SteeringBench
from workbench.widgets.token_strip import TokenStrip

VIEWS = {"tokens": TokenStrip, "card": FeatureCard, "steer": SteeringBench}

for _name, _factory in VIEWS.items():
    register_view(_name, _factory)

if in_notebook():
    progress.install(NotebookBar)
