"""A store that is read by plain HTTP: JSON within bounds, and bytes from an offset. Imports httpx when it is used."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mlflowkit.data_access.connections import HeldSecrets
from mlflowkit.data_access.transfer import TransientError
from mlflowkit.errors import DataError
from mlflowkit.system.extras import require_extra
from mlflowkit.system.text import first_line
from mlflowkit.values import Json

MAX_ANSWER = 64 << 20
"""Bytes of an answer in JSON."""
MAX_PROBLEM = 64 << 10
"""Bytes that are read of the body of an error."""
MAX_REDIRECTS = 5
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 8.0
LASTING = frozenset({400, 401, 402, 403, 404, 405, 406, 410, 412, 414, 416, 451})
"""Statuses that another attempt does not change."""


@dataclass(frozen=True, slots=True)
class HttpRefusal:
    """An answer that another attempt does not change; headers in lower case. ``words`` is what the body says."""

    status: int
    headers: Mapping[str, str]
    words: str


RefusalError = Callable[[HttpRefusal], Exception]
"""The error for a refusal."""


class HttpBody:
    """The body of an answer, from ``start``."""

    def __init__(self, response: Any, start: int) -> None:
        self._response, self.start = response, start
        self.headers: Mapping[str, str] = response.headers

    def chunks(self, size: int) -> Iterator[bytes]:
        """The bytes, as they are sent. Raises TransientError."""
        import httpx

        try:
            yield from self._response.iter_raw(size)
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise TransientError(f"the body was cut: {first_line(error)}") from None


@dataclass(frozen=True, slots=True)
class HttpStore:
    """Requests to the server at ``origin``: a token goes to no other one, whatever it answers.

    A token that the server does not know (401) is read again once.
    """

    client: Any
    origin: str
    read_seconds: float
    token: HeldSecrets | None

    def json(self, url: str, refuse: RefusalError) -> tuple[Json, Mapping[str, str]]:
        """The JSON at a URL of this server, and the headers.

        Raises TransientError, DataError, and what ``refuse`` makes of a refusal.
        """
        with self._stream(url, {"Accept": "application/json"}, ANSWER_SECONDS, refuse) as response:
            content = b"".join(_bounded(HttpBody(response, 0), MAX_ANSWER))
            try:
                return json.loads(content), dict(response.headers)
            except (ValueError, RecursionError):
                message = f"{self.origin}: the server's answer is not JSON"
                raise DataError(message, hint="mlkit explain RECIPE connections shows what set its address") from None

    @contextmanager
    def open(self, url: str, start: int, refuse: RefusalError, **headers: str) -> Iterator[HttpBody]:
        """The bytes at a URL from an offset. Raises as `json` does."""
        asked = {**headers, **({"Range": f"bytes={start}-"} if start else {})}
        with self._stream(url, asked, self.read_seconds, refuse) as response:
            begins = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
            partial = response.status_code == 206
            yield HttpBody(response, (int(begins[1]) if begins else -1) if partial else 0)

    @contextmanager
    def _stream(self, url: str, headers: Mapping[str, str], wait: float, refuse: RefusalError) -> Iterator[Any]:
        import httpx

        if not self._is_own(url):
            message = f"{self.origin} leads to another server, {urlsplit(url).hostname}"
            raise DataError(message, hint="mlkit explain RECIPE connections shows what set its address")
        timeout = httpx.Timeout(wait, connect=CONNECT_SECONDS)
        try:
            response = self._send(url, headers, timeout)
        except httpx.InvalidURL:
            raise DataError(f"{self.origin}: a URL is wrong", hint="mlkit explain RECIPE connections") from None
        except (httpx.HTTPError, OSError) as error:
            raise TransientError(f"no answer: {first_line(error) or type(error).__name__}") from None
        try:
            if response.status_code not in (200, 206):
                raise _problem(response, refuse)
            yield response
        finally:
            response.close()

    def _send(self, url: str, headers: Mapping[str, str], timeout: Any) -> Any:
        while True:
            used = self.token.values if self.token is not None else ()
            authorization = {"Authorization": f"Bearer {used[0]}"} if used else {}
            request = self.client.build_request("GET", url, headers={**headers, **authorization}, timeout=timeout)
            response = self.client.send(request, stream=True)
            if response.status_code != 401 or self.token is None or not self.token.renew(used):
                return response
            response.close()

    def _is_own(self, url: str) -> bool:
        return urlsplit(url)[:2] == urlsplit(self.origin)[:2]


@contextmanager
def open_store(
    origin: str, token: HeldSecrets | None, read_seconds: float, *, extra: str, key: str
) -> Iterator[HttpStore]:
    """A client of a server. Redirects to other servers (of a content network) are followed without the token.

    Raises UsageError where httpx is not installed: ``extra`` has it, and ``key`` of the recipe needs it.
    """
    require_extra("httpx", extra, key)
    import httpx

    headers = {"Accept-Encoding": "identity", "User-Agent": "mlflowkit"}
    with httpx.Client(headers=headers, follow_redirects=True, max_redirects=MAX_REDIRECTS) as client:
        yield HttpStore(client, origin, read_seconds, token)


def _problem(response: Any, refuse: RefusalError) -> Exception:
    status, headers = response.status_code, dict(response.headers)
    if status in LASTING:
        return refuse(HttpRefusal(status, headers, _words(response)))
    return TransientError(f"the server answered {status} ({_words(response)})", after=_wait(headers))


def _wait(headers: Mapping[str, str]) -> float:
    """The seconds that a server asks to wait: of ``Retry-After``, or of the ``t=`` of a ``RateLimit``."""
    after = headers.get("retry-after", "")
    if re.fullmatch(r"\d{1,5}", after):
        return float(after)
    limit = re.search(r"\bt=(\d{1,5})\b", headers.get("ratelimit", ""))
    return float(limit[1]) if limit else 0.0


def _words(response: Any) -> str:
    """What a server says about an error, in one line."""
    try:
        content = b"".join(_bounded(HttpBody(response, 0), MAX_PROBLEM))
        value = json.loads(content)
        text = value.get("error") or value.get("message") if isinstance(value, dict) else ""
    except (TransientError, DataError, ValueError, RecursionError):
        text = ""
    text = text if isinstance(text, str) and text else response.headers.get("x-error-message") or response.reason_phrase
    return "".join(character for character in " ".join(text.split()) if character.isprintable())[:300]


def _bounded(body: HttpBody, limit: int) -> Iterator[bytes]:
    size = 0
    for chunk in body.chunks(1 << 16):
        size += len(chunk)
        if size > limit:
            raise DataError(f"an answer has more than {limit:,} bytes", hint="name a folder with fewer files")
        yield chunk
