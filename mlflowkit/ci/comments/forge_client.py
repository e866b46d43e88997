"""What a forge is to a comment: list, create, update, delete; and the HTTP client that the forges' modules share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from mlflowkit.errors import ServiceError, UsageError
from mlflowkit.system.text import printable_line, truncate

if TYPE_CHECKING:
    import httpx

TIMEOUT_SECONDS = 20.0
BUDGET_SECONDS = 150.0
"""Longest that a comment waits for a forge, retries included."""
MAX_WAIT_SECONDS = 60.0
PAUSES = (1.0, 4.0, 15.0)
"""Seconds before each retry after a failure of the forge, where it names none itself."""
MAX_PAGES = 50
MAX_ANSWER_BYTES = 16 << 20
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class ForgeComment:
    """A comment on the pull request; ``own`` whether the account that comments wrote it. Ids rise with time."""

    id: int
    body: str
    own: bool
    place: str = ""
    """Whatever else the forge needs to find it: the thread that it is in."""


class ForgeRefusedError(ServiceError):
    """The forge does not let this token write: that of a pull request from a fork."""


class CommentForge(Protocol):
    """The comments of one pull request. Methods raise ServiceError, and ForgeRefusedError where writing is refused."""

    name: str

    def head(self) -> str:
        """The pull request's newest commit; "" where the forge does not say."""

    def comments(self) -> list[ForgeComment]: ...

    def written(self, text: str) -> str:
        """A text as this forge keeps it."""

    def create(self, body: str) -> None: ...

    def update(self, comment: ForgeComment, body: str) -> None: ...

    def delete(self, comment: ForgeComment) -> None: ...


@dataclass
class ForgeClient:
    """Requests to one API with its token, retried within a budget. Nothing that it raises or prints has the token."""

    base: str
    headers: Mapping[str, str] = field(repr=False)
    forge: str
    sleep: Callable[[float], None] = time.sleep
    transport: httpx.BaseTransport | None = None

    def __post_init__(self) -> None:
        address = urlsplit(self.base)
        if address.scheme != "https" and address.hostname not in LOOPBACK:
            raise UsageError(f"the address of {self.forge} is {self.base}: a token goes over https only", hint=HELP)
        try:
            import httpx
        except ImportError as error:
            hint = "pip install 'mlflowkit[delivery]'"
            raise UsageError("comments need httpx, which is not installed", hint=hint) from error
        self._deadline = time.monotonic() + BUDGET_SECONDS
        self._httpx = httpx
        self._client = httpx.Client(
            base_url=self.base.rstrip("/"),
            headers={"user-agent": "mlflowkit", **self.headers},
            timeout=TIMEOUT_SECONDS,
            transport=self.transport,
        )

    def get(self, path: str, **parameters: Any) -> Any:
        return self._request("GET", path, params=parameters)

    def send(self, method: str, path: str, body: Any, **parameters: Any) -> Any:
        """POST, PUT, PATCH or DELETE, with a JSON body."""
        return self._request(method, path, json=body, params=parameters)

    def pages(self, path: str, size: str = "per_page", **parameters: Any) -> Iterator[Any]:
        """The items of a listing by numbered pages of a hundred. Raises ServiceError when it does not end."""
        for page in range(1, MAX_PAGES + 1):
            items = self.get(path, **{size: 100, "page": page}, **parameters)
            if not isinstance(items, list):
                raise self._unexpected(path)
            yield from items
            if len(items) < 100:
                return
        raise ServiceError(f"{self.forge} lists more than {MAX_PAGES * 100:,} comments", hint=HELP)

    def _unexpected(self, path: str) -> ServiceError:
        return ServiceError(f"{self.forge} answered {path} with something else than its API says", hint=HELP)

    def _request(self, method: str, path: str, **options: Any) -> Any:
        pauses = iter(PAUSES)
        while True:
            problem, wait = "", None
            try:
                reply = self._client.request(method, path, **options)
            except self._httpx.HTTPError as error:
                problem = f"{type(error).__name__}"
            else:
                if reply.is_success:
                    return self._content(reply, path)
                problem, wait = self._refusal(reply, method, path)
            pause = next(pauses, None)
            pause = pause if wait is None else wait
            if pause is None or time.monotonic() + pause > self._deadline or pause > MAX_WAIT_SECONDS:
                raise ServiceError(f"{self.forge} did not take the comment: {problem}", hint=HELP)
            if method == "POST":  # it may have arrived: whoever called looks first
                self.sleep(pause)
                raise RetryCreationError(f"{self.forge} did not take the comment: {problem}", hint=HELP)
            self.sleep(pause)

    def _refusal(self, reply: httpx.Response, method: str, path: str) -> tuple[str, float | None]:
        """What was answered, and after how many seconds to try again (None: by the schedule). Raises for the rest."""
        problem = f"{reply.status_code} {printable_line(truncate(reply.text, 200))}"
        limited = reply.headers.get("retry-after") or reply.headers.get("x-ratelimit-remaining") == "0"
        if reply.status_code == 429 or (reply.status_code == 403 and limited):
            wait = reply.headers.get("retry-after", "")
            return problem, float(wait) if wait.isdigit() else None
        if reply.status_code in (401, 403, 404) and method != "GET":
            raise ForgeRefusedError(f"{self.forge} does not let this token comment: {problem}", hint=HELP)
        if reply.status_code >= 500 or reply.status_code == 408:
            return problem, None
        raise ServiceError(f"{self.forge} refused {method} {path}: {problem}", hint=HELP)

    def _content(self, reply: httpx.Response, path: str) -> Any:
        if len(reply.content) > MAX_ANSWER_BYTES:
            raise self._unexpected(path)
        try:
            return reply.json() if reply.content else None
        except ValueError as error:
            raise self._unexpected(path) from error


class RetryCreationError(ServiceError):
    """A comment may or may not have been created: it is looked for before it is created again."""


HELP = "mlkit ci comment --help"
