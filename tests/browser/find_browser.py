"""Find a Chrome or Chromium for the browser tests, or install one.

Order: the WORKBENCH_BROWSER variable, a browser on the path, Debian's package where this user may install it,
Playwright's own download. Where none can be had, say what to do and fail: the browser tests never vanish.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
INSTRUCTION = (
    "no Chrome or Chromium found for the browser tests; install one (Debian: apt-get install chromium fonts-dejavu; "
    "anywhere: python -m playwright install chromium) or point WORKBENCH_BROWSER at one"
)


def find() -> str | None:
    """Give the path of a browser that Playwright can drive, or None."""
    named = os.environ.get("WORKBENCH_BROWSER")
    if named:
        return named if os.access(named, os.X_OK) else None
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    return found or _playwrights_own()


def _playwrights_own() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if path and os.path.exists(path) else None


def install() -> None:
    """Install a browser: Debian's as root, else Playwright's."""
    if shutil.which("apt-get") and os.geteuid() == 0:
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu"]
        subprocess.run(["apt-get", "update", "-qq"], check=False, stdout=subprocess.DEVNULL)
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0:
            return
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)


if __name__ == "__main__":
    if find() is None and "--install" in sys.argv:
        install()
    browser = find()
    if browser is None:
        sys.exit(INSTRUCTION)
    print(f"browser: {os.path.basename(browser)}")
