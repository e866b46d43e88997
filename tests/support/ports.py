"""Ports for servers whose port has to be known before they start, or that come back to the same one."""

from __future__ import annotations

import random
import socket

_RANGE = range(21_000, 32_000)
"""Below those that Linux gives to outgoing connections, which could take a port between two starts of a server."""


def free_port() -> int:
    """A port of the loopback interface on which nothing listens; by chance, as other workers ask too."""
    for port in random.SystemRandom().sample(_RANGE, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"none of 200 ports of {_RANGE} is free")
