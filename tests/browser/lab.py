"""One notebook in one page of JupyterLab: run it, look at it, ask its kernel."""

from __future__ import annotations

import json
import time
from pathlib import Path

import nbformat

SCREENSHOTS = Path(__file__).resolve().parents[2] / "screenshots"

_OPEN = """(name) => {
  const shown = window.jupyterapp?.shell?.currentWidget;
  return shown?.context?.path === name && shown.context.isReady
    && shown.sessionContext?.session?.kernel?.status === 'idle';
}"""
_DONE = """() => {
  const shown = window.jupyterapp.shell.currentWidget;
  const cells = [...shown.content.model.cells].filter((cell) => cell.type === 'code');
  const outputs = (cell) => Array.from({ length: cell.outputs.length }, (_, k) => cell.outputs.get(k).type);
  if (cells.some((cell) => outputs(cell).includes('error'))) return true; // the rest will not run
  return cells.every((cell) => cell.executionCount > 0 && cell.executionState !== 'running');
}"""
_ASK = """async (code) => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const request = kernel.requestExecute({ code, store_history: false });
  let out = '';
  let error = null;
  request.onIOPub = (message) => {
    if (message.header.msg_type === 'stream' && message.content.name === 'stdout') out += message.content.text;
    if (message.header.msg_type === 'error') error = message.content.ename + ': ' + message.content.evalue;
  };
  await request.done;
  if (error) throw new Error(error);
  return out;
}"""


class Lab:
    """A notebook that is open in a page of its own.

    Attributes:
        page: The page.
        errors: Uncaught errors of the page's scripts.
        offsite: Addresses outside this Lab that the page asked for; every such request is refused.
    """

    def __init__(self, browser, url: str, work: Path, name: str):
        self.work, self.name = work, name
        self.errors: list[str] = []
        self.offsite: list[str] = []
        self._context = browser.new_context(viewport={"width": 1280, "height": 1500})
        self._context.route("**/*", lambda route: self._guard(route, url))
        self.page = self._context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{url}/lab/tree/{name}?reset", wait_until="domcontentloaded")
        self.page.wait_for_function(_OPEN, arg=name, timeout=120_000)

    def _guard(self, route, url: str) -> None:
        if route.request.url.startswith((url, "blob:", "data:")):
            route.continue_()
        else:
            self.offsite.append(route.request.url)
            route.abort()

    def run_all(self) -> None:
        """Run every cell and wait for the last one, or for the first that fails."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.page.wait_for_function(_DONE, timeout=600_000)

    def ask(self, expression: str):
        """Give a Python expression's value in the notebook's kernel."""
        code = f"import json as _json; print(_json.dumps({expression}), flush=True)"
        return json.loads(self.page.evaluate(_ASK, code))

    def wait_for(self, expression: str, wanted, seconds: float = 60):
        """Ask again and again until the value is the wanted one (or a function of it says so)."""
        end, got = time.monotonic() + seconds, None
        while time.monotonic() < end:
            got = self.ask(expression)
            if wanted(got) if callable(wanted) else got == wanted:
                return got
            time.sleep(0.1)
        raise AssertionError(f"{expression} is {got!r} after {seconds} s")

    def cell_errors(self) -> list[str]:
        """Give the text of every error output."""
        shown = self.page.locator("[data-mime-type='application/vnd.jupyter.error']")
        return shown.all_inner_texts()

    def theme(self, name: str) -> None:
        """Change JupyterLab's theme."""
        self.page.evaluate("(theme) => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", name)
        light = "true" if "Light" in name else "false"
        self.page.wait_for_function("(want) => document.body.dataset.jpThemeLight === want", arg=light)

    def shot(self, locator, name: str) -> None:
        """Keep a picture of one element."""
        SCREENSHOTS.mkdir(exist_ok=True)
        locator.scroll_into_view_if_needed()
        locator.screenshot(path=str(SCREENSHOTS / f"{name}.png"))

    def close(self) -> None:
        """Close the page and end its kernel."""
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        self._context.close()


def write_notebook(path: Path, cells: list[str]) -> None:
    """Write a notebook of code cells."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    nbformat.write(notebook, path)
