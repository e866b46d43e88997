"""Replies of the listener itself, complete, for requests that do not reach the application."""

from __future__ import annotations

import http
import json

MAX_HEAD_BYTES = 64 << 10
"""Limit on a request's line and headers, and again on its trailers with what else is no body."""
MAX_FIELDS = 256
"""Limit on the number of headers, and on that of trailers."""
STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}


def final_reply(status: int, message: str) -> bytes:
    """A complete error reply, after which the connection is closed."""
    body = json.dumps({"error": message}).encode()
    head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    return STATUS[status] + head + body


BODY_TIMEOUT = final_reply(408, "the body did not arrive in time")
HEADERS_TOO_LARGE = final_reply(431, f"headers of at most {MAX_HEAD_BYTES} bytes, and {MAX_FIELDS} of them, are read")
TRAILERS_TOO_LARGE = final_reply(431, f"trailers of at most {MAX_HEAD_BYTES} bytes, {MAX_FIELDS} of them, are read")
NOT_HTTP = final_reply(400, "this is not a request of HTTP/1.1")
SERVER_ERROR = final_reply(500, "the server failed; its log says why")
TOO_MANY_PIPELINED = final_reply(503, "too many requests were sent on this connection before their answers were read")
_NO_HOST = final_reply(400, "a request of HTTP/1.1 has one Host header")
_CODINGS_IN_1_0 = final_reply(400, "HTTP/1.0 has no transfer codings; send Content-Length")
_UNKNOWN_CODING = final_reply(501, "the only transfer coding that is read is chunked, once")
_UNKNOWN_VERSION = final_reply(505, "HTTP/1.1 and HTTP/1.0 are spoken here")
_NO_TUNNEL = final_reply(405, "CONNECT is not served here")
OVERLOAD = (
    STATUS[503]
    + b"content-type: application/json\r\nretry-after: 1\r\nx-mlkit-request-id: %s\r\n%scontent-length: %d\r\n\r\n%s"
)


def refusal(method: bytes, version: str, hosts: int, codings: list[bytes]) -> bytes | None:
    """The reply to a head that must not be served (RFC 9112, sections 2.3, 3.2, 6.1), None for one that may.

    ``hosts`` counts the Host headers, ``codings`` are the values of Transfer-Encoding.

    >>> refusal(b"POST", "1.1", 1, [b"chunked"]) is refusal(b"GET", "1.0", 0, []) is None
    True
    >>> refusal(b"POST", "1.1", 1, [b"gzip, chunked"])[:12], refusal(b"GET", "2.0", 1, [])[:12]
    (b'HTTP/1.1 501', b'HTTP/1.1 505')
    """
    if version not in ("1.1", "1.0"):
        return _UNKNOWN_VERSION
    if method == b"CONNECT":
        return _NO_TUNNEL
    if hosts > 1 or (not hosts and version == "1.1"):
        return _NO_HOST
    if codings:
        if version == "1.0":
            return _CODINGS_IN_1_0
        if len(codings) > 1 or codings[0].strip().lower() != b"chunked":
            return _UNKNOWN_CODING
    return None
