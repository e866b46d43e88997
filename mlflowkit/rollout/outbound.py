"""HTTP requests to other people's servers, bounded whatever the server does: webhooks and Prometheus.

No redirect is followed, no proxy of the environment is used, no other scheme than http and https is opened. A timeout
of a socket bounds each read alone, and a server that sends a byte a second never meets it; so a request has a deadline
in all besides.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

CONNECT_SECONDS = 5.0
"""Of connecting, and of each read and write."""


def request(
    method: str, url: str, body: bytes | None, headers: Mapping[str, str], *, seconds: float, limit: int = 0
) -> tuple[int, bytes]:
    """The status and at most ``limit`` bytes of the body. Raises OSError, HTTPException, or ValueError for a wrong URL.

    Raises TimeoutError after ``seconds`` in all.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("no URL of an HTTP server: http:// or https:// is expected")
    secure, host = parts.scheme == "https", parts.hostname
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = (http.client.HTTPSConnection if secure else http.client.HTTPConnection)(host, parts.port)
    try:
        raw = socket.create_connection((host, connection.port), min(CONNECT_SECONDS, seconds))
        with _cut_after(seconds, raw) as cut:
            try:
                connection.sock = ssl.create_default_context().wrap_socket(raw, server_hostname=host) if secure else raw
                connection.request(method, path, body, dict(headers))
                response = connection.getresponse()
                content = response.read(limit) if limit else b""
            except (OSError, http.client.HTTPException) as error:
                if not cut.is_set():
                    raise
                raise TimeoutError(f"no reply within {seconds:g} s") from error
            if cut.is_set():  # a reply that is cut off may look like one that ended
                raise TimeoutError(f"no reply within {seconds:g} s")
            return response.status, content
    finally:
        connection.close()


@contextmanager
def _cut_after(seconds: float, connected: socket.socket) -> Iterator[threading.Event]:
    """Shut a connection down after a time, whatever it is waiting for; the event tells that it happened."""
    cut = threading.Event()
    handle = connected.dup()  # TLS takes the socket over; the connection can be shut down through this one

    def shut_down() -> None:
        cut.set()
        with suppress(OSError):
            handle.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield cut
    finally:
        timer.cancel()
        timer.join()
        handle.close()
