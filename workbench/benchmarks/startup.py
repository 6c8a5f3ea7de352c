"""How long a person waits before anything happens: imports, opening the organism, verifying a bundle.

Each figure is the median of five fresh processes, so nothing is warm but the file cache.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys

RUNS = 5

_CASES = (
    ("import_workbench", 0.3, "", "import workbench"),
    (
        "open_organism",
        3.0,
        "import torch, transformers, transformer_lens; import workbench as wb; import tempfile",
        "wb.open('organism', project=tempfile.mkdtemp() + '/p')",
    ),
)


def measure() -> dict:
    """Give the start-up figures as `{"name", "machine", "figures"}`."""
    return {
        "name": "startup",
        "machine": f"{platform.machine()} {platform.system()}, Python {platform.python_version()}",
        "figures": [_figure(*case) for case in _CASES],
    }


def _figure(key: str, target: float, setup: str, statement: str) -> dict:
    code = f"import time\n{setup}\nstart = time.perf_counter()\n{statement}\nprint(time.perf_counter() - start)"
    seconds, failure = [], None
    for _ in range(RUNS):
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
        if done.returncode:
            failure = done.stderr.strip().splitlines()[-1]
            break
        seconds.append(float(done.stdout.split()[-1]))
    value = statistics.median(seconds) if not failure else None
    return {
        "key": key,
        "value": value,
        "unit": "s",
        "target": target,
        "holds": value is not None and value < target,
        "against": "a limit, median of five fresh processes",
        "reason": failure,
    }
