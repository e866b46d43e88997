"""What a gateway that asks for no API key refuses, because a browser may have been made to send it.

Such a gateway trusts whoever reaches it, and a page of any site that a user of this machine opens can make the browser
reach it: directly, with a form or a fetch (cross-site request forgery), or under a name of the page's own that resolves
to this machine (DNS rebinding). Three things that such a page cannot choose tell it apart: the name it has in the
address bar (Host), where it comes from (Origin, Sec-Fetch-Site), and the content types that a browser sends to another
site without asking that site first.

Sources: Fetch standard, "CORS-safelisted request-header" and "Origin header"; RFC 9110, section 7.4 (421).
"""

from __future__ import annotations

from collections.abc import Iterable

from mlflowkit.serving.protocol.http_error import CLOSE, RequestError

SIMPLE_TYPES = frozenset({b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data"})
"""Content types that a page may send to another site without a preflight request."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class BrowserGuard:
    """Checks heads. ``host`` is the listener's address, ``allowed`` the further names that clients use.

    >>> guard = BrowserGuard("127.0.0.1", ["models.example.org"])
    >>> guard.check("POST", [(b"host", b"localhost:8080"), (b"content-type", b"application/json")])
    >>> guard.check("GET", [(b"host", b"evil.example")])
    Traceback (most recent call last):
    mlflowkit.serving.protocol.http_error.RequestError: ...
    """

    def __init__(self, host: str, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(name.lower() for name in allowed)
        self._names = _LOOPBACK | {host.lower()} | self._allowed
        self._known: set[bytes] = set()

    def check(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise RequestError: 421 for a foreign Host, 403 for a page of another site, 415 for its content types."""
        posted = method not in ("GET", "HEAD")
        host = b""
        for name, value in headers:
            if name == b"host":
                host = value
                if value not in self._known:
                    self._check_host(value)
            elif posted and name == b"sec-fetch-site":
                if value not in (b"same-origin", b"none"):
                    raise RequestError(403, "a page of another site may not send this", CLOSE)
            elif posted and name == b"content-type":
                _check_type(value)
        if posted:
            origin = next((value.partition(b"://")[2] for name, value in headers if name == b"origin"), host)
            if origin != host and host_name(origin) not in self._allowed:
                raise RequestError(403, "a page of another origin may not send this", CLOSE)

    def _check_host(self, value: bytes) -> None:
        if host_name(value) not in self._names:
            shown = value[:80].decode("latin-1")
            more = "name it in serve.allowed_hosts, or ask for keys (serve.auth)"
            raise RequestError(421, f"no service for the host {shown!r} here; {more}", CLOSE)
        if len(self._known) < 64:  # spelled with any port
            self._known.add(value)


def host_name(value: bytes) -> str:
    """The name in a Host header, in lower case, without its port.

    >>> host_name(b"Localhost:80"), host_name(b"[::1]:80"), host_name(b"evil.example")
    ('localhost', '::1', 'evil.example')
    """
    text = value.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def _check_type(value: bytes) -> None:
    kind = value.partition(b";")[0].strip().lower()
    if kind in SIMPLE_TYPES:
        shown = kind.decode("latin-1")
        raise RequestError(415, f"content-type {shown} is not read; send content-type: application/json", CLOSE)
