"""The commands that people and pipelines run; exit codes decide.

Every command ends with 0 (holds), 1 (measured and falls short) or 2 (refused or bad input). Text for people goes to
standard error; with `--json` exactly one JSON object goes to standard output. Heavy imports happen inside the command
that needs them, so `workbench verify` runs without torch.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from workbench.core import progress
from workbench.core.errors import WorkbenchError

HOLDS, FALLS_SHORT, REFUSED = 0, 1, 2

console = Console(stderr=True, highlight=False)
app = typer.Typer(
    help="Explore SAE features, build steering interventions, export and check review-ready specs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench_app = typer.Typer(help="Measure the budgets; every figure is a ratio in one run or a median of five.")
app.add_typer(bench_app, name="bench")

Json = Annotated[bool, typer.Option("--json", help="Exactly one JSON object on standard output.")]
BundlePath = Annotated[Path, typer.Argument(help="A .wbspec file or a bundle folder.")]
ModelPath = Annotated[
    str | None,
    typer.Option("--model", help="Directory or hub repository of the live subject; the spec's own if absent."),
]


def main() -> None:
    """Run the command line."""
    app()


def command(name: str, *, group: typer.Typer = app) -> Callable:
    """Register a command whose errors become a message and exit code 2.

    A command returns `(code, result)`; the result is printed as JSON where `--json` was given.
    """

    def register(function: Callable[..., tuple[int, dict]]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: object, **options: object) -> None:
            as_json = bool(options.get("as_json"))
            try:
                with _terminal_progress(quiet=as_json):
                    code, result = function(*args, **options)
            except WorkbenchError as error:
                code, result = (
                    REFUSED,
                    {"ok": False, "error": error.message, "where": error.where, "next": error.hint},
                )
                console.print(f"[bold red]refused[/] {_plain(str(error))}")
            except KeyboardInterrupt:
                console.print("stopped; nothing half done was left behind")
                raise typer.Exit(130) from None
            except Exception as error:
                if os.environ.get("WORKBENCH_DEBUG"):
                    raise
                code, result = REFUSED, {"ok": False, "error": f"{type(error).__name__}: {error}"}
                console.print(f"[bold red]failed[/] {type(error).__name__}: {_plain(str(error))}")
                console.print("set WORKBENCH_DEBUG=1 for the traceback")
            if as_json:
                sys.stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n")
            raise typer.Exit(code)

        group.command(name)(run)
        return run

    return register


@command("lab")
def lab(
    notebook: Annotated[str, typer.Argument(help="Which shipped notebook to open.")] = "1_first_look.ipynb",
    folder: Annotated[Path, typer.Option(help="Where the notebooks are copied to and projects are kept.")] = Path(
        "workbench-lab"
    ),
) -> tuple[int, dict]:
    """Open JupyterLab on the first notebook, on copies that are yours to change."""
    import shutil

    from workbench.core.files import notebooks_dir

    folder.mkdir(parents=True, exist_ok=True)
    for shipped in sorted(notebooks_dir().glob("*.ipynb")):
        if not (folder / shipped.name).exists():
            shutil.copy(shipped, folder / shipped.name)
    if not (folder / notebook).is_file():
        names = ", ".join(p.name for p in sorted(notebooks_dir().glob("*.ipynb")))
        raise WorkbenchError(f"no notebook {notebook!r}", hint=f"one of: {names}")
    console.print(f"opening {notebook} in {folder}; Ctrl-C twice stops it")
    done = subprocess.run([sys.executable, "-m", "jupyterlab", notebook], cwd=folder, check=False)
    return (HOLDS if done.returncode == 0 else REFUSED), {}


@command("subjects")
def subjects(as_json: Json = False) -> tuple[int, dict]:
    """List the subjects that open without a network, and their dictionaries."""
    from workbench.models.pretrained import list_subjects

    found = list_subjects()
    for entry in found:
        console.print(f"[bold]{entry['name']}[/]  {entry['description']}")
        console.print(f"  dictionaries: {', '.join(entry['dictionaries']) or 'none'}")
    console.print("any Hugging Face directory or repository opens too: workbench.open(path, sae=…)")
    return HOLDS, {"subjects": found}


@command("demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the bundle and its dossier.")] = Path("demo"),
    as_json: Json = False,
) -> tuple[int, dict]:
    """Run the whole loop on the built-in organism: rank, design, measure, bundle, verify, apply, re-measure."""
    from workbench.bench.demo import run_demo

    result = run_demo(out)
    for axis in result["axes"]:
        mark = "[green]holds[/]      " if axis["holds"] else "[yellow]falls short[/]"
        low, high = axis["interval"]
        console.print(
            f"{mark} {axis['axis']:<22} {axis['base']:.3f} → {axis['candidate']:.3f}  "
            f"change {low:+.3f} to {high:+.3f}  n {axis['n']}"
        )
    console.print(f"bundle  {result['bundle']}\ndossier {result['dossier']}\n{result['seconds']:.0f} s")
    return (HOLDS if all(axis["holds"] for axis in result["axes"]) else FALLS_SHORT), result


@command("verify")
def verify(bundle: BundlePath, as_json: Json = False) -> tuple[int, dict]:
    """Check a bundle's bytes, documents, tensors, chain and verdicts; needs no torch."""
    from workbench.spec.verify import verify as verify_bundle

    result = verify_bundle(bundle)
    for check in result.checks:
        console.print(
            f"{'[green]ok[/]     ' if check.ok else '[bold red]refused[/]'} {check.id}: {_plain(check.message)}"
        )
    console.print(f"state: {result.state}")
    return (HOLDS if result.ok else REFUSED), result.to_json()


@command("show")
def show(bundle: BundlePath, as_json: Json = False) -> tuple[int, dict]:
    """Print a bundle as text: what it changes, what was measured, worst axis first."""
    from workbench.spec.bundle import read_bundle
    from workbench.spec.summary import summary_json, summary_text

    opened = read_bundle(bundle)
    console.print(summary_text(opened), markup=False)
    return HOLDS, summary_json(opened) if as_json else {}


@command("apply")
def apply(
    bundle: BundlePath,
    model: ModelPath = None,
    preview: Annotated[bool, typer.Option("--preview", help="Apply without an approval, for looking only.")] = False,
    prompt: Annotated[str | None, typer.Option(help="Generate from this prompt, unsteered and steered.")] = None,
    as_json: Json = False,
) -> tuple[int, dict]:
    """Apply a bundle's edit to the live subject on plain transformers, after every check passed."""
    from workbench.consumer.apply import apply as apply_bundle

    applied = apply_bundle(bundle, model, preview=preview)
    result = applied.to_json()
    if prompt:
        result["prompt"], result["text"] = prompt, applied.compare(prompt)
        for arm, text in result["text"].items():
            console.print(f"[bold]{arm}[/] {_plain(text)}")
    console.print(f"[green]ok[/] {len(result['known_answers'])} known answers reproduced on this runtime")
    return HOLDS, result


@command("remeasure")
def remeasure(bundle: BundlePath, model: ModelPath = None, as_json: Json = False) -> tuple[int, dict]:
    """Run the bundle's plan again on the live subject, base and candidate, and compare with what was recorded."""
    from workbench.consumer.remeasure import remeasure as remeasure_bundle

    report = remeasure_bundle(bundle, model)
    for axis in report.axes:
        mark = "[green]holds[/]" if axis["holds"] else "[yellow]differs[/]"
        console.print(f"{mark} {axis['axis']}: {axis['base']:.3f} → {axis['candidate']:.3f}, n {axis['n']}")
    return (HOLDS if report.ok else FALLS_SHORT), report.to_json()


@command("startup", group=bench_app)
def startup(as_json: Json = False) -> tuple[int, dict]:
    """Time imports, opening the organism and verifying, medians of five."""
    from workbench.benchmarks.startup import measure

    return _figures(measure())


def _figures(result: dict) -> tuple[int, dict]:
    for figure in result["figures"]:
        mark = "[green]holds[/]" if figure["holds"] else "[yellow]falls short[/]"
        value = "not measured" if figure["value"] is None else f"{figure['value']:.3g} {figure['unit']}"
        console.print(f"{mark} {figure['key']}: {value} (target {figure['target']}) {figure['reason'] or ''}")
    return (HOLDS if all(figure["holds"] for figure in result["figures"]) else FALLS_SHORT), result


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


class _Bars:
    """Rich bars for `core.progress`, one per label, shared by all work of a command."""

    def __init__(self, bars: Progress):
        self._bars, self._tasks = bars, {}

    def start(self, label: str, total: int | None) -> None:
        self._tasks[label] = self._bars.add_task(label, total=total)

    def advance(self, label: str, steps: int) -> None:
        self._bars.advance(self._tasks[label], steps)

    def finish(self, label: str) -> None:
        task = self._tasks.pop(label, None)
        if task is not None:
            self._bars.stop_task(task)


@contextlib.contextmanager
def _terminal_progress(*, quiet: bool) -> Iterator[None]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=quiet and not console.is_terminal) as bars:
        reporter = _Bars(bars)
        with progress.reporting(lambda: reporter):
            yield
