"""Connections: where a store is and which credentials it takes. A recipe only names where a secret is kept."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit

from pydantic import Field, field_validator, model_validator

from mlflowkit.data_access.redaction import redact
from mlflowkit.errors import DataError, MlkitError
from mlflowkit.sections import PluginUnion, Section
from mlflowkit.system.entry_points import CONNECTIONS, is_own
from mlflowkit.system.text import first_line, shell_word

MAX_SECRET_BYTES = 64 * 1024
READABLE_BY_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class CredentialReference(Section):
    """Where a secret is kept: ``{env: NAME}`` or ``{file: PATH}``."""

    env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds it."""
    file: str | None = Field(default=None, min_length=1)
    """File that holds it, relative to the recipe; nobody else may read it (chmod 600)."""

    @model_validator(mode="after")
    def _names_a_place(self) -> CredentialReference:
        if (self.env is None) == (self.file is None):
            raise ValueError("name one of env and file")
        return self

    def read(self, folder: Path) -> str:
        """The secret, without a newline at its end. Raises DataError where there is none, without any part of it."""
        if self.env is not None:
            text, place = os.environ.get(self.env), f"the environment variable {self.env}"
            if text is None:
                raise DataError(f"{place} is not set; it holds a secret of a connection", hint=f"export {self.env}=...")
            hint = f"export {self.env}=..."
        else:
            path = folder / Path(str(self.file)).expanduser()
            text, place, hint = _read_file(path), f"the secret file {path}", f"ls -l {shell_word(path)}"
        secret = text.strip("\r\n")
        if not secret.strip():
            raise DataError(f"{place} is empty; it holds a secret of a connection", hint=hint)
        if secret != secret.strip() or any(character < " " for character in secret):
            message = f"{place} has blanks around the secret or control characters in it"
            raise DataError(message, hint=hint)
        return secret


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if mode & READABLE_BY_OTHERS:
                message = f"the secret file {path} can be read by others (mode {stat.S_IMODE(mode):o})"
                raise DataError(message, hint=f"chmod 600 {shell_word(path)}")
            return stream.read(MAX_SECRET_BYTES).decode()
    except OSError as error:
        message = f"the secret file {path} cannot be read: {error.strerror}"
        raise DataError(message, hint=f"ls -l {shell_word(path)}") from None
    except UnicodeDecodeError:
        raise DataError(f"the secret file {path} is not text", hint=f"ls -l {shell_word(path)}") from None


class ConnectionSection(Section):
    """A kind of connection. A plugin declares ``kind: Literal[NAME]`` and its keys."""

    kind: str

    def secrets(self) -> Iterator[CredentialReference]:
        """The references to secrets among its keys."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, CredentialReference):
                yield value

    def plugin_names(self) -> tuple[tuple[str, str], ...]:
        return () if is_own(type(self)) else ((CONNECTIONS, self.kind),)


def plain_url(value: str) -> str:
    """An http(s) URL without user information, query and fragment. Raises ValueError, without quoting it."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError("expected a URL such as https://lake.example") from None
    if "@" in parts.netloc:
        raise ValueError("a URL holds no user or password: name them by {env: NAME}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or port == 0:
        raise ValueError("expected a URL such as https://lake.example")
    return value.rstrip("/")


class LakefsConnection(ConnectionSection):
    """A lakeFS server. Without keys, the credentials of lakectl for it."""

    kind: Literal["lakefs"]
    url: str = Field(min_length=1)
    """Its address, such as https://lake.example; a recipe holds no password."""
    access_key: CredentialReference | None = None
    """The access key id."""
    secret: CredentialReference | None = None
    """The secret access key."""

    _url = field_validator("url")(plain_url)

    @model_validator(mode="after")
    def _names_both(self) -> LakefsConnection:
        if (self.access_key is None) != (self.secret is None):
            raise ValueError("name both access_key and secret, or none of them for the credentials of lakectl")
        return self


class S3Connection(ConnectionSection):
    """A store with the S3 protocol. Without keys, the credentials of the AWS SDK's own chain."""

    kind: Literal["s3"]
    endpoint: str | None = None
    """Its address where it is not Amazon's, such as https://minio.example."""
    region: str | None = Field(default=None, pattern=r"^[a-z0-9-]+$")
    """The region, such as eu-central-1."""
    access_key: CredentialReference | None = None
    """The access key id."""
    secret: CredentialReference | None = None
    """The secret access key."""
    session_token: CredentialReference | None = None
    """The token of temporary credentials."""

    _endpoint = field_validator("endpoint")(lambda value: value if value is None else plain_url(value))


class HuggingfaceConnection(ConnectionSection):
    """The Hugging Face Hub, or a server with its API."""

    kind: Literal["huggingface"]
    endpoint: str = Field(default="https://huggingface.co", min_length=1)
    """Its address."""
    token: CredentialReference | None = None
    """A token that may read the dataset."""

    _endpoint = field_validator("endpoint")(plain_url)


Connection = Annotated[
    HuggingfaceConnection | LakefsConnection | S3Connection,
    Field(discriminator="kind"),
    PluginUnion(CONNECTIONS, ConnectionSection),
]


class HeldSecrets:
    """The secrets that a client holds, in the order of their references. They are read again once: credentials expire
    while a run goes on, and what is kept in their place is renewed by others."""

    def __init__(self, read: Callable[[], tuple[str, ...]]) -> None:
        self._read, self._lock, self._renewed = read, threading.Lock(), False
        self.values = read()

    @classmethod
    def of(cls, secrets: OpenSecrets, *references: CredentialReference) -> HeldSecrets:
        """Those of references. Raises DataError."""
        return cls(lambda: tuple(secrets.read(reference) for reference in references))

    def renew(self, refused: Sequence[str]) -> bool:
        """Whether a call that the store refused may be repeated: there are other secrets now. Raises DataError."""
        with self._lock:
            if self.values == tuple(refused) and not self._renewed:
                self._renewed = True
                self.values = self._read()
            return self.values != tuple(refused)


class OpenSecrets:
    """The secrets that a command has read, for the errors and messages that must not hold them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._values: list[str] = []

    def read(self, reference: CredentialReference) -> str:
        """The secret of a reference. Raises DataError."""
        secret = reference.read(self.folder)
        self._values.append(secret)
        return secret

    def add(self, *derived: str) -> None:
        """Values that give a secret away, such as a token that was made with it."""
        self._values.extend(derived)

    @property
    def values(self) -> Sequence[str]:
        return tuple(dict.fromkeys([*self._values, *map(quote, self._values)]))

    def redact(self, text: str) -> str:
        return redact(text, self.values)

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Exceptions of the block as mlflowkit's own, without secrets and without the vendor's exception behind them.

        Raises DataError for any that is not mlflowkit's.
        """
        try:
            yield
        except MlkitError as error:
            error.message, error.hint = self.redact(error.message), self.redact(error.hint)
            error.args = (error.message,)
            error.__cause__ = None
            error.__suppress_context__ = True
            raise
        except Exception as error:  # noqa: BLE001 - a vendor's: its text may hold a URL with credentials
            message = self.redact(f"{what}: {type(error).__name__}: {first_line(error)}")
            raise DataError(message, hint="mlkit plan RECIPE tries it again") from None
