"""A client of the OCI distribution API (version 1.1): blobs and manifests, by digest.

What a registry sends is untrusted: sizes are bounded, every digest is computed here before content is used, and
credentials go to the registry's own host and to the token service that it names, over TLS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from mlflowkit.delivery.image.registry_credentials import RegistryCredentials, registry_credentials
from mlflowkit.delivery.image.registry_reference import RegistryReference
from mlflowkit.errors import BundleError, ServiceError, StoreError, UsageError
from mlflowkit.system.files import private_opener

if TYPE_CHECKING:
    import httpx

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
MAX_MANIFEST_BYTES = 4 << 20
MAX_DOCUMENT_BYTES = 32 << 20
MAX_PAGES = 20
CHUNK_BYTES = 8 << 20
TIMEOUT_SECONDS = 30.0
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NEXT = re.compile(r'<([^>]{1,2000})>\s*;\s*rel="?next"?')
_PARAMETER = re.compile(r'([a-z_]+)="([^"]*)"')
_REALM_FAULT = "the registry asks for a token from a place that is not safe to send credentials to"


@dataclass(frozen=True, slots=True)
class BlobDescriptor:
    """Type, digest and size of a blob or manifest, as manifests list it."""

    type: str
    digest: str
    size: int

    def to_json(self) -> dict[str, Any]:
        return {"mediaType": self.type, "digest": self.digest, "size": self.size}


def descriptor_of(value: Any, repository: str) -> BlobDescriptor:
    """A descriptor as a manifest lists it. Raises BundleError unless it is whole."""
    fields = value if isinstance(value, dict) else {}
    kind, digest, size = fields.get("mediaType"), fields.get("digest"), fields.get("size")
    if (
        not isinstance(kind, str)
        or not isinstance(digest, str)
        or type(size) is not int
        or not _DIGEST.fullmatch(digest)
    ):
        hint = f"skopeo inspect docker://{repository} shows what it has"
        raise BundleError(f"a manifest of {repository} lists {str(value)[:120]}, which is no descriptor", hint=hint)
    return BlobDescriptor(kind, digest, size)


def index_entries(content: bytes, repository: str) -> list[Any]:
    """What an index lists. Raises BundleError for anything else."""
    try:
        entries = json.loads(content)["manifests"]
        if isinstance(entries, list):
            return entries
    except (ValueError, RecursionError, KeyError, TypeError):
        pass
    raise BundleError(f"{repository} sent no index of manifests", hint=f"skopeo inspect docker://{repository}")


def digest_of(content: bytes) -> str:
    """The digest of bytes, as registries write it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class RegistryClient:
    """Reads and writes one repository. A context manager.

    Methods raise ServiceError when the registry does not answer as the API says, UsageError for refused credentials.
    """

    def __init__(self, repository: RegistryReference, *, transport: httpx.BaseTransport | None = None) -> None:
        try:
            import httpx
        except ImportError as error:
            hint = "pip install 'mlflowkit[delivery]'"
            raise UsageError("registries need httpx, which is not installed", hint=hint) from error
        self._httpx, self.repository = httpx, repository
        self._client = httpx.Client(timeout=TIMEOUT_SECONDS, transport=transport, headers={"user-agent": "mlflowkit"})
        self._origin = urlsplit(repository.url)[:2]
        self._authorization = ""

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def has_blob(self, digest: str) -> bool:
        """Whether the repository has a blob."""
        with self._send("HEAD", f"{self.repository.url}/blobs/{digest}") as reply:
            return self._is_there(reply, f"blob {digest}")

    def has_manifest(self, reference: str) -> bool:
        """Whether the repository has a manifest of a digest or tag."""
        with self._send(
            "HEAD", self._manifest_url(reference), headers={"accept": f"{MANIFEST_TYPE}, {INDEX_TYPE}"}
        ) as reply:
            return self._is_there(reply, f"manifest {reference}")

    def push_blob(self, content: bytes | Path, digest: str) -> bool:
        """Upload a blob unless the repository has it; a file goes up in chunks. Returns whether it was sent."""
        if self.has_blob(digest):
            return False
        with self._send("POST", f"{self.repository.url}/blobs/uploads/") as reply:
            self._expect(reply, (202,), "start an upload")
            location = self._location(reply)
        if isinstance(content, Path):
            location = self._push_chunks(content, location)
            content = b""
        headers = {"content-type": "application/octet-stream"}
        closing = str(self._httpx.URL(location).copy_merge_params({"digest": digest}))
        with self._send("PUT", closing, content=content, headers=headers) as reply:
            self._expect(reply, (201,), "store a blob")
        return True

    def _push_chunks(self, path: Path, location: str) -> str:
        """Send a file's bytes to an upload session; returns where the session goes on."""
        start = 0
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                headers = {
                    "content-type": "application/octet-stream",
                    "content-range": f"{start}-{start + len(chunk) - 1}",
                }
                with self._send("PATCH", location, content=chunk, headers=headers) as reply:
                    self._expect(reply, (202,), "take a part of a blob")
                    location = self._location(reply)
                start += len(chunk)
        return location

    def push_manifest(self, content: bytes, tag: str = "", kind: str = MANIFEST_TYPE) -> str:
        """Store a manifest under its digest, or under a tag; returns the digest."""
        return self.push_referring_manifest(content, tag, kind)[0]

    def push_referring_manifest(self, content: bytes, tag: str = "", kind: str = MANIFEST_TYPE) -> tuple[str, bool]:
        """As `push_manifest`; returns the digest, and whether the registry lists it among its subject's referrers."""
        digest = digest_of(content)
        with self._send(
            "PUT", self._manifest_url(tag or digest), content=content, headers={"content-type": kind}
        ) as reply:
            self._expect(reply, (201,), "store a manifest")
            answered = reply.headers.get("docker-content-digest", digest)
            listed = "oci-subject" in reply.headers
        if answered != digest:
            raise ServiceError(
                f"{self.repository.name} stored {answered} where {digest} was sent", hint=self._inspect()
            )
        return digest, listed

    def list_referrers(self, digest: str) -> list[Any] | None:
        """Descriptors of the manifests that have ``digest`` as their subject; None where the registry keeps no list."""
        url, descriptors = f"{self.repository.url}/referrers/{digest}", []
        for _ in range(MAX_PAGES):
            with self._send("GET", url, headers={"accept": INDEX_TYPE}) as reply:
                if reply.status_code in (404, 405):
                    return None
                self._expect(reply, (200,), f"list what refers to {digest}")
                content = b"".join(self._bounded(reply, MAX_MANIFEST_BYTES, "a list of referrers"))
                following = _NEXT.search(reply.headers.get("link", ""))
                url = urljoin(str(reply.request.url), following[1]) if following else ""
            descriptors += index_entries(content, self.repository.name)
            if not url:
                return descriptors
            if urlsplit(url)[:2] != self._origin:
                break
        raise ServiceError(f"{self.repository.name} lists referrers without end", hint=self._inspect())

    def pull_manifest(self, reference: str, kind: str = MANIFEST_TYPE) -> dict[str, Any]:
        """A manifest, verified when ``reference`` is a digest. Raises BundleError for other content than asked for."""
        return self._parse(self._pull_content(reference, kind), reference)

    def manifest_bytes(self, digest: str) -> bytes:
        """A manifest as it is stored, verified. Raises BundleError."""
        return self._pull_content(digest, MANIFEST_TYPE)

    def _pull_content(self, reference: str, kind: str) -> bytes:
        with self._send("GET", self._manifest_url(reference), headers={"accept": kind}) as reply:
            self._expect(reply, (200,), f"hand out {reference}")
            content = b"".join(self._bounded(reply, MAX_MANIFEST_BYTES, "a manifest"))
        if reference.startswith("sha256:") and digest_of(content) != reference:
            raise BundleError(f"{self.repository.name} sent {digest_of(content)} for {reference}", hint=self._inspect())
        return content

    def _parse(self, content: bytes, reference: str) -> dict[str, Any]:
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise BundleError(f"{self.repository.at(reference)} is not a manifest", hint=self._inspect())
        return document

    def describe_image(self, digest: str) -> tuple[BlobDescriptor, dict[str, Any]]:
        """An image's descriptor and manifest, in either format. Raises BundleError for an index, which is no image."""
        content = self._pull_content(digest, f"{MANIFEST_TYPE}, {DOCKER_MANIFEST_TYPE}, {INDEX_TYPE}")
        manifest = self._parse(content, digest)
        if not isinstance(manifest.get("config"), dict) or not isinstance(manifest.get("layers"), list):
            message = f"{self.repository.at(digest)} is no image but an index or an artifact"
            raise BundleError(message, hint=self._inspect())
        return BlobDescriptor(str(manifest.get("mediaType") or MANIFEST_TYPE), digest, len(content)), manifest

    def pull_config(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration that an image's manifest names. Raises BundleError."""
        return self.pull_document(descriptor_of(manifest.get("config"), self.repository.name))

    def pull_document(self, blob: BlobDescriptor) -> dict[str, Any]:
        """A small blob that is a JSON object, verified. Raises BundleError."""
        return self.pull_small(blob)[1]

    def pull_small(self, blob: BlobDescriptor) -> tuple[bytes, dict[str, Any]]:
        """The bytes of a small blob, verified, and the JSON object that they are. Raises BundleError."""
        with self._get_blob(blob.digest) as reply:
            content = b"".join(self._bounded(reply, min(blob.size, MAX_DOCUMENT_BYTES), f"blob {blob.digest}"))
        if digest_of(content) != blob.digest:
            message = f"{self.repository.name} sent {digest_of(content)} for blob {blob.digest}"
            raise BundleError(message, hint=self._inspect())
        return content, self._parse(content, blob.digest)

    def pull_blob(self, blob: BlobDescriptor, path: Path) -> None:
        """Write a blob to a new file. Raises BundleError unless it has the size and digest of its descriptor."""
        sha, size = hashlib.sha256(), 0
        try:
            with self._get_blob(blob.digest) as reply, open(path, "xb", opener=private_opener) as stream:
                for part in self._bounded(reply, blob.size, f"blob {blob.digest}"):
                    sha.update(part)
                    size += len(part)
                    stream.write(part)
        except OSError as error:
            raise StoreError(
                f"{path} cannot be written: {error.strerror}", hint="make room, then run it again"
            ) from error
        if size != blob.size or f"sha256:{sha.hexdigest()}" != blob.digest:
            message = f"{self.repository.name} sent {size} bytes of sha256:{sha.hexdigest()} for blob {blob.digest}"
            raise BundleError(message, hint=self._inspect())

    @contextmanager
    def _get_blob(self, digest: str) -> Iterator[httpx.Response]:
        """The reply with a blob; redirections to an object store are followed, without our credentials."""
        url = f"{self.repository.url}/blobs/{digest}"
        for _ in range(5):
            with self._send("GET", url) as reply:
                if reply.status_code not in (301, 302, 303, 307, 308):
                    self._expect(reply, (200,), f"hand out blob {digest}")
                    yield reply
                    return
                url = self._location(reply)
        raise ServiceError(f"{self.repository.name} redirects without end", hint=self._inspect())

    @contextmanager
    def _send(
        self, method: str, url: str, *, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """A reply whose body is not read yet; a challenge for a token is answered once."""
        for attempt in (1, 2):
            own = urlsplit(url)[:2] == self._origin
            credentials = {"authorization": self._authorization} if own and self._authorization else {}
            try:
                with self._client.stream(
                    method, url, content=content, headers={**(headers or {}), **credentials}
                ) as reply:
                    if reply.status_code == 401 and own and attempt == 1:
                        self._authorization = self._answer_challenge(reply.headers.get("www-authenticate", ""))
                        continue
                    yield reply
                    return
            except self._httpx.HTTPError as error:
                reason = str(error) or type(error).__name__
                hint = f"curl -I {self.repository.url.partition('/v2/')[0]}/v2/ shows whether it answers"
                raise ServiceError(
                    f"the registry {self.repository.host} does not answer: {reason}", hint=hint
                ) from error

    def _answer_challenge(self, challenge: str) -> str:
        """The authorization that a 401 asks for. Raises UsageError without credentials, or when they are refused."""
        kind, _, rest = challenge.partition(" ")
        credentials = registry_credentials(self.repository.host)
        if kind.lower() == "basic" and credentials is not None:
            pair = f"{credentials.user}:{credentials.password}".encode()
            return f"Basic {base64.b64encode(pair).decode()}"
        if kind.lower() == "bearer":
            return f"Bearer {self._token(dict(_PARAMETER.findall(rest)), credentials)}"
        raise self._refused("asks for credentials")

    def _token(self, parameters: Mapping[str, str], credentials: RegistryCredentials | None) -> str:
        """A short token from the service that the registry names."""
        realm = parameters.get("realm", "")
        parts = urlsplit(realm)
        if parts.scheme != "https" and not (self.repository.is_local and parts.hostname in ("localhost", "127.0.0.1")):
            raise ServiceError(f"{_REALM_FAULT}: {realm[:120]}", hint=self._inspect())
        query = {name: parameters[name] for name in ("service", "scope") if name in parameters}
        auth = None if credentials is None else (credentials.user, credentials.password)
        try:
            with self._client.stream("GET", realm, params=query, auth=auth) as reply:
                status, content = reply.status_code, b"".join(self._bounded(reply, 1 << 20, "a token"))
            document = json.loads(content) if status == 200 else {}
            token = document.get("token") or document.get("access_token")
        except self._httpx.HTTPError as error:
            message = f"{parts.hostname}, where {self.repository.host} sends for tokens, does not answer"
            raise ServiceError(message, hint="run it again") from error
        except (ValueError, AttributeError, RecursionError):
            token = None
        if status in (401, 403):
            raise self._refused("refuses the credentials")
        if not isinstance(token, str):
            raise ServiceError(f"{parts.hostname} answered {status} without a token", hint=self._inspect())
        return token

    def _refused(self, action: str) -> UsageError:
        return UsageError(
            f"the registry {self.repository.host} {action} for {self.repository.repository}",
            hint=f"docker login {self.repository.host}, or set MLKIT_REGISTRY={self.repository.host}, "
            "MLKIT_REGISTRY_USER and MLKIT_REGISTRY_PASSWORD",
        )

    def _expect(self, reply: httpx.Response, statuses: tuple[int, ...], action: str) -> None:
        """Raise the error of a reply with another status."""
        if reply.status_code in statuses:
            return
        if reply.status_code in (401, 403):
            raise self._refused("refuses the credentials")
        if reply.status_code == 404:
            raise ServiceError(f"{self.repository.name} has no such content: it cannot {action}", hint=self._inspect())
        text = b"".join(self._bounded(reply, 2000, "a message", cut=True)).decode(errors="replace")
        message = (
            f"the registry {self.repository.host} does not {action}: it answered {reply.status_code} {text}".strip()
        )
        raise ServiceError(message[:600], hint=self._inspect())

    def _is_there(self, reply: httpx.Response, what: str) -> bool:
        if reply.status_code == 404:
            return False
        self._expect(reply, (200,), f"say whether it has {what}")
        return True

    def _location(self, reply: httpx.Response) -> str:
        location: str = urljoin(str(reply.request.url), reply.headers.get("location", ""))
        scheme = urlsplit(location).scheme
        if scheme != "https" and not (scheme == "http" and self.repository.is_local):
            raise ServiceError(f"{self.repository.name} leads to {location[:120]}, without TLS", hint=self._inspect())
        return location

    def _bounded(self, reply: httpx.Response, limit: int, what: str, *, cut: bool = False) -> Iterator[bytes]:
        """Parts of a body. Raises BundleError when it has more than ``limit`` bytes, unless it is ``cut`` there."""
        size = 0
        for part in reply.iter_bytes(1 << 16):
            size += len(part)
            if size > limit:
                if cut:
                    yield part[: len(part) - (size - limit)]
                    return
                message = f"{self.repository.name} sends more than {limit} bytes for {what}"
                raise BundleError(message, hint=self._inspect())
            yield part

    def _manifest_url(self, reference: str) -> str:
        return f"{self.repository.url}/manifests/{reference}"

    def _inspect(self) -> str:
        return f"skopeo inspect --raw docker://{self.repository}"
