"""A JupyterLab and a browser of their own for the whole test run, closed off from network and user settings."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from find_browser import INSTRUCTION, find
from lab import Lab

ROOT = Path(__file__).resolve().parents[2]

PRIVATE = (
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_RUNTIME_DIR",
    "JUPYTER_DATA_DIR",
    "IPYTHONDIR",
    "JUPYTERLAB_SETTINGS_DIR",
    "JUPYTERLAB_WORKSPACES_DIR",
)
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    # cells off screen keep their size, so that positions do not move under the mouse
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            opener.open(url + "/api/status", timeout=2).read()
            return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.2)
    pytest.fail("JupyterLab did not start:\n" + log.read_text()[-4000:])


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory):
    """Address and folder of a JupyterLab without a token, on loopback, with private settings."""
    folder = tmp_path_factory.mktemp("lab")
    env = {key: value for key, value in os.environ.items() if key.lower() not in ("http_proxy", "https_proxy")}
    for name in PRIVATE:
        (folder / name).mkdir()
        env[name] = str(folder / name)
    for plugin, values in SETTINGS.items():
        extension, name = plugin.split(":")
        path = folder / "JUPYTERLAB_SETTINGS_DIR" / extension / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    work = folder / "work"
    work.mkdir()
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(notebook, work)
    env |= {"NO_PROXY": "127.0.0.1,localhost", "HF_HUB_OFFLINE": "1", "WORKBENCH_HOME": str(folder / "projects")}
    paths = [str(ROOT / "tests" / "offline"), str(ROOT), env.get("PYTHONPATH", "")]
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    port = _free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.password="]
    command += ["--ServerApp.allow_root=True", f"--ServerApp.root_dir={work}", "--expose-app-in-browser"]
    log = folder / "lab.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=env, cwd=work, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    _wait_for(url, process, log)
    yield url, work
    os.killpg(process.pid, signal.SIGINT)  # its own process group only
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium that can reach loopback only."""
    from playwright.sync_api import sync_playwright

    path = find()
    if path is None:
        pytest.fail(INSTRUCTION)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]
        arguments += ["--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
        chromium = playwright.chromium.launch(executable_path=path, headless=True, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def open_lab(lab_server, browser):
    """Open notebooks in fresh pages; each page counts its errors and its requests to anywhere else."""
    url, work = lab_server
    pages: list[Lab] = []

    def open_one(name: str, *, run: bool = True) -> Lab:
        lab = Lab(browser, url, work, name)
        pages.append(lab)
        if run:
            lab.run_all()
        return lab

    yield open_one
    for one in pages:
        one.close()
