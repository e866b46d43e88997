"""Bodies of a lakeFS server's answers, within a size and a time: lakefs-client reads that of an error whole."""

from __future__ import annotations

import time
from typing import Any

MAX_PROBLEM = 64 << 10
"""Bytes that are read of the body of an error."""


def read_answer(response: Any, limit: int, seconds: float) -> bytes:
    """The body of a response, at most ``limit`` bytes of it. Raises TimeoutError for one that takes too long: the
    client's own timeout begins anew with every byte."""
    deadline, content = time.monotonic() + seconds, bytearray()
    while len(content) < limit and (chunk := response.read1(limit - len(content))):
        content += chunk
        if time.monotonic() > deadline:
            raise TimeoutError(f"the answer was not whole after {seconds:g} s")
    return bytes(content)


class BoundedPool:
    """The connections of a client; an answer that is an error has the first `MAX_PROBLEM` bytes of its body."""

    def __init__(self, pool: Any, seconds: float) -> None:
        self._pool, self._seconds = pool, seconds

    def request(self, method: str, url: str, **options: Any) -> Any:
        import urllib3

        response = self._pool.request(method, url, **options)
        if 200 <= response.status <= 299:
            return response
        try:
            content = read_answer(response, MAX_PROBLEM, self._seconds)
        finally:
            response.close()
        headers = {name: value for name, value in response.headers.items() if name.lower() != "content-encoding"}
        return urllib3.HTTPResponse(content, headers=headers, status=response.status, reason=response.reason)
