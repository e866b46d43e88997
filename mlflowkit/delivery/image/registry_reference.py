"""References to what a registry holds: ``host/repository@sha256:digest``. Nothing is deployed by a tag."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlflowkit.errors import UsageError

_REFERENCE = re.compile(
    r"(?P<host>[a-z0-9.-]+(?::[0-9]{1,5})?|\[[0-9a-f:]+\](?::[0-9]{1,5})?)/"
    r"(?P<repository>[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True, slots=True)
class RegistryReference:
    """A repository of a registry, with a digest or a tag where one is named.

    >>> str(parse_reference("ghcr.io/acme/lending-bundle"))
    'ghcr.io/acme/lending-bundle'
    """

    host: str
    repository: str
    digest: str = ""
    tag: str = ""

    @property
    def name(self) -> str:
        """Host and repository."""
        return f"{self.host}/{self.repository}"

    @property
    def is_local(self) -> bool:
        """Whether the registry is on this machine, where it is spoken to without TLS."""
        name = self.host.rpartition(":")[0] or self.host if not self.host.endswith("]") else self.host
        return name in ("localhost", "127.0.0.1", "[::1]")

    @property
    def url(self) -> str:
        """Base URL of the repository in the distribution API."""
        return f"{'http' if self.is_local else 'https'}://{self._api_host}/v2/{self._api_repository}"

    @property
    def _api_host(self) -> str:
        return "registry-1.docker.io" if self.host == "docker.io" else self.host

    @property
    def _api_repository(self) -> str:
        bare = self.host == "docker.io" and "/" not in self.repository
        return f"library/{self.repository}" if bare else self.repository

    def at(self, digest: str) -> RegistryReference:
        """The same repository at a digest."""
        return RegistryReference(self.host, self.repository, digest)

    def __str__(self) -> str:
        return f"{self.name}{':' + self.tag if self.tag else ''}{'@' + self.digest if self.digest else ''}"


def parse_reference(text: str, *, pinned: bool = False) -> RegistryReference:
    """Parse a reference; with ``pinned``, it must have a digest. Raises UsageError."""
    parts = _REFERENCE.fullmatch(text) if len(text) <= 512 else None
    if parts is None:
        hint = "write it as ghcr.io/acme/lending-bundle@sha256:DIGEST, in lower case"
        raise UsageError(f"{text[:120]!r} is not a reference to a registry", hint=hint)
    if pinned and not parts["digest"]:
        hint = f"skopeo inspect docker://{text} shows its digest"
        raise UsageError(f"{text} names no digest, and what a tag points to may change", hint=hint)
    return RegistryReference(parts["host"], parts["repository"], parts["digest"] or "", parts["tag"] or "")
