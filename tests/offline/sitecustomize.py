"""Closes the network but for loopback in every Python process that has this folder on its path: notebook kernels."""

import socket

_LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")
_connect, _getaddrinfo = socket.socket.connect, socket.getaddrinfo


def _check(host: object) -> None:
    text = host.decode() if isinstance(host, bytes) else host
    if text and not str(text).startswith(_LOOPBACK):
        raise OSError(f"a notebook tried to reach {text!r}; notebooks have no network but loopback")


def connect(self, address):
    """Connect, on loopback only."""
    if self.family != socket.AF_UNIX:
        _check(address[0])
    return _connect(self, address)


def getaddrinfo(host, *args, **kwargs):
    """Look a name up, loopback only."""
    _check(host)
    return _getaddrinfo(host, *args, **kwargs)


socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
