"""What every test stands on: no network but loopback, no model hub, one thread, warnings as errors, tiny subjects.

Torch is not imported here: a test that needs no model starts fast. Tiny random models of each family come from
`tiny_models`; ask for the `tiny_subject` fixture (a function of the family's name) or the directory it was read from.
"""

from __future__ import annotations

import os
import socket
import tempfile

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="workbench-no-hub-")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

_LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")
_real = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
_real_getaddrinfo = socket.getaddrinfo

THIRD_PARTY_WARNINGS = [
    # transformer-lens' own import of a module it has deprecated, reached through sae-lens
    "ignore:The 'utils' module has been deprecated. Please use 'transformer_lens.utilities':DeprecationWarning",
]


def pytest_configure(config: pytest.Config) -> None:
    """Close the network, and ignore exactly the warnings of others that we cannot fix."""
    for line in THIRD_PARTY_WARNINGS:
        config.addinivalue_line("filterwarnings", line)
    for name in _real:
        setattr(socket.socket, name, _guarded(name))
    socket.getaddrinfo = _guarded_getaddrinfo


def pytest_unconfigure() -> None:
    """Open the network again for whoever runs pytest in process."""
    for name, method in _real.items():
        setattr(socket.socket, name, method)
    socket.getaddrinfo = _real_getaddrinfo


def _guarded(name: str):
    def method(self, *args):
        address = args[-1]
        if self.family != socket.AF_UNIX and isinstance(address, tuple):
            _check_host(address[0])
        return _real[name](self, *args)

    return method


def _guarded_getaddrinfo(host, *args, **kwargs):
    _check_host(host)
    return _real_getaddrinfo(host, *args, **kwargs)


def _check_host(host) -> None:
    text = host.decode() if isinstance(host, bytes) else host
    if text and not str(text).startswith(_LOOPBACK):
        raise OSError(f"a test tried to reach {text!r}; tests have no network but loopback")


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory):
    """Give a function: family name → directory of a tiny random model with its tokenizer, made once per session."""
    from tiny_models import save_tiny

    made = {}

    def directory(family: str):
        if family not in made:
            made[family] = save_tiny(family, tmp_path_factory.mktemp("subjects") / f"tiny-{family}")
        return made[family]

    return directory


@pytest.fixture(scope="session")
def tiny_subject(tiny_dir):
    """Give a function: family name → `Subject`, loaded once per session; tests must leave it as it was."""
    from workbench.models.subject import load_subject

    loaded = {}

    def subject(family: str):
        if family not in loaded:
            loaded[family] = load_subject(tiny_dir(family), name=f"tiny-{family}")
        return loaded[family]

    return subject


@pytest.fixture(params=["gpt2", "llama", "qwen2", "gemma2", "gemma3"])
def any_subject(request, tiny_subject):
    """One tiny subject of each family that people come with."""
    return tiny_subject(request.param)
