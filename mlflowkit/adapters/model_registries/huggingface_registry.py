"""The registry of models on the Hugging Face Hub: a bundle is one commit with a card, tagged by its identity.

In the repository the bundle is ``bundle/`` and the card ``README.md``; whatever else it has is left as it is. Pushed by
huggingface_hub in a child process, which is ended at a deadline; read by plain HTTP, every file against its digest.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mlflowkit.adapters.model_registries.hub_upload import PUSH_AGAIN, run_upload
from mlflowkit.adapters.model_registries.model_card import MARK, model_card
from mlflowkit.bundle import BLESSING, MANIFEST, PUBLIC_EVIDENCE, WITHHELD, Bundle, open_bundle, withheld_record
from mlflowkit.data_access.connections import HeldSecrets, HuggingfaceConnection, OpenSecrets
from mlflowkit.data_access.http_store import HttpBody, open_store
from mlflowkit.data_access.hub_repository import HUB, HubRepository, own_token
from mlflowkit.data_access.object_cache import ObjectCache
from mlflowkit.data_access.registry_sections import (
    HubReference,
    HuggingfaceRegistry,
    hub_reference,
    parse_hub_reference,
)
from mlflowkit.data_access.transfer import Transfer, TransferLimits, TransientError
from mlflowkit.errors import BundleError, DataError, MlkitError, ServiceError, UsageError
from mlflowkit.system.extras import require_extra
from mlflowkit.system.files import disk_errors, make_folder
from mlflowkit.system.text import first_line, parse_json
from mlflowkit.values import DataObject

FOLDER, CARD = "bundle", "README.md"
MAX_FILES, MAX_BYTES = 10_000, 16 << 30
MAX_SMALL = 1 << 20
"""Bytes of a manifest or a card that are read."""
SLOWEST_UPLOAD = 500_000
"""Bytes a second that a push is given time for, besides `HubLimits.push_seconds`."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class HubLimits:
    """Limits in seconds: of a push, and of a request that is tried again after 429, 5xx and no answer."""

    push_seconds: float = 300.0
    request_seconds: float = 60.0
    transfer: TransferLimits = field(default_factory=TransferLimits)


@dataclass
class HubModels:
    """The ModelRegistry port for a repository of the Hub. ``folder`` is the base of paths of secret files."""

    section: HuggingfaceRegistry
    connection: HuggingfaceConnection
    folder: Path
    state: Path
    limits: HubLimits = field(default_factory=HubLimits)
    upload: Callable[[Mapping[str, Any], Path, float], Mapping[str, Any]] = run_upload

    def push(self, bundle: Path) -> str:
        """Store a blessed bundle; returns ``hf://org/name@v-DIGITS``. One identity is one commit.

        Raises BundleError for a bundle that is not blessed, UsageError for what the Hub or the recipe does not allow,
        ServiceError when the Hub fails or is not done by the deadline.
        """
        require_extra("huggingface_hub", "hub", "registries.kind: huggingface")
        opened = open_bundle(bundle, blessed=True)
        if opened.withheld:
            message = f"{bundle} was published without {opened.withheld[0]}, so that its card would lack what it says"
            raise BundleError(message, hint="push the bundle from the state folder that made it")
        reference = hub_reference(self.section, opened.manifest.identity)
        with self._reading(str(reference)) as (hub, secrets_read):
            if not self._has(hub, reference, opened):
                token = self._token(secrets_read, hub)
                self._commit(opened, reference, token)
        return str(reference)

    def pull(self, reference: str, folder: Path) -> Path:
        """Fetch a bundle into a new folder, which appears whole, verified and blessed, or not at all.

        Raises UsageError for a reference that names none, BundleError for one that does not verify, is not blessed or
        has another identity than its tag says, ServiceError when the Hub fails.
        """
        requested = parse_hub_reference(reference)
        if folder.exists():
            _require_identity(open_bundle(folder, blessed=True), requested)
            if requested.identity:
                return folder
            raise UsageError(f"{folder} exists", hint="name a new folder")
        make_folder(folder.parent)
        staging = make_folder(folder.parent / f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            with self._reading(reference, requested.revision) as (hub, _):
                commit = self._patiently(partial(hub.commit, requested.revision))
                objects = self._patiently(lambda: _bundle_objects(hub, commit, reference))
                received = self._transfer(hub, commit, objects)
            with disk_errors(staging):
                for path, file in received.items():
                    target = staging / path
                    make_folder(target.parent)
                    shutil.copyfile(file, target)
            opened = open_bundle(staging / FOLDER, blessed=True)
            _require_identity(opened, requested)
            with disk_errors(folder):
                (staging / FOLDER).rename(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return folder

    def _has(self, hub: HubRepository, reference: HubReference, bundle: Bundle) -> bool:
        """Whether the bundle is there under its tag. Raises UsageError for a tag, or a card, of something else."""
        references = self._patiently(hub.references)
        if references is None:
            return False
        if reference.revision in references:
            content = self._patiently(
                partial(hub.read, references[reference.revision], f"{FOLDER}/{MANIFEST}", MAX_SMALL)
            )
            if _identity_in(content) != bundle.manifest.identity:
                message = f"{reference} is there, and is not bundle {bundle.manifest.version}"
                raise UsageError(message, hint=f"delete the tag {reference.revision} on {hub.page}/tree/main")
            return True
        head = references.get("main")
        paths = [item.path for item in self._patiently(lambda: list(hub.files(head, "")))] if head else []
        if (
            head
            and CARD in paths
            and MARK not in self._patiently(partial(hub.read, head, CARD, MAX_SMALL)).decode("utf-8", "replace")
        ):
            message = f"{CARD} of hf://{reference.repository} was not written by mlkit, and a push would replace it"
            raise UsageError(message, hint=f"rename it on {hub.page}/tree/main, or name another repository")
        return False

    def _commit(self, bundle: Bundle, reference: HubReference, token: str) -> None:
        with tempfile.TemporaryDirectory(prefix="mlkit-hub-") as temporary:
            work = Path(temporary)
            files = self._files(bundle, reference, work)
            manifest = bundle.manifest
            request = {
                "endpoint": self.connection.endpoint,
                "token": token,
                "repository": reference.repository,
                "private": self.section.private,
                "folder": FOLDER,
                "files": files,
                "tag": reference.revision,
                "title": f"{manifest.name} {manifest.version}",
            }
            size = sum(Path(file).stat().st_size for file in files.values())
            answer = self.upload(request, work, self.limits.push_seconds + size / SLOWEST_UPLOAD)
        if "commit" not in answer:
            raise self._push_error(answer, reference)

    def _files(self, bundle: Bundle, reference: HubReference, work: Path) -> dict[str, str]:
        """The files that leave, by their path there: all of the bundle, or what holds no values of rows, and a card."""
        names = [MANIFEST, BLESSING, *bundle.manifest.files]
        withheld: list[str] = []
        if not self.section.send_values:
            withheld = [name for name in names if name.startswith("evidence/") and name not in PUBLIC_EVIDENCE]
        files = {f"{FOLDER}/{name}": str(bundle.path / name) for name in names if name not in withheld}
        if withheld:
            (work / WITHHELD).write_bytes(withheld_record(bundle))
            files[f"{FOLDER}/{WITHHELD}"] = str(work / WITHHELD)
        card = model_card(bundle, str(reference), license=self.section.license, withheld=withheld)
        (work / CARD).write_text(card, encoding="utf-8")
        return {**files, CARD: str(work / CARD)}

    def _push_error(self, answer: Mapping[str, Any], reference: HubReference) -> MlkitError:
        where, words = f"hf://{reference.repository}", str(answer.get("words", ""))
        page = f"{self.connection.endpoint}/{reference.repository}"
        if answer["problem"] == "public":
            hint = "write private: false in registries to publish it to everybody, or name another repository"
            return UsageError(f"{where} is public, and the recipe says private: true", hint=hint)
        if answer["problem"] == "tagged":
            return UsageError(f"{where} has the tag {words} on another commit", hint=f"delete it on {page}/tree/main")
        if answer["problem"] in ("missing", "altered"):
            message = f"{where}: its commit lacks {words}, or has other bytes of it, and was not tagged"
            return UsageError(message, hint=f"does .gitignore leave it out? See {page}/tree/main")
        status = int(answer.get("status") or 0)
        shown = f"{status}: {words}" if status else words
        if status in (401, 403) or answer.get("code") == "RepoNotFound":
            message = f"{where} cannot be written with this token ({shown})"
            return UsageError(message, hint=self._token_hint() + "; it needs the right to write")
        if status == 400 or words.startswith("ValueError: Invalid metadata"):
            return UsageError(f"{where}: the Hub refuses the push ({shown})", hint="is license one that the Hub knows?")
        if status == 412:
            return ServiceError(f"{where}: others pushed twice meanwhile ({shown})", hint=PUSH_AGAIN)
        return ServiceError(f"{where}: the push failed ({shown})", hint=PUSH_AGAIN)

    def _transfer(self, hub: HubRepository, commit: str, objects: list[DataObject]) -> Mapping[str, Path]:
        @contextmanager
        def open_object(item: DataObject, start: int) -> Iterator[HttpBody]:
            with hub.open(commit, item.locator, start) as body:
                yield body

        uri = f"hf://{self.section.repository}@{commit}/"
        cache = ObjectCache.of(self.state)
        cached = {item.path: cache.find(uri, item) for item in objects}
        files = {path: file for path, file in cached.items() if file is not None}
        missing = [item for item in objects if item.path not in files]
        if missing:
            transfer = Transfer(uri, open_object, cache, lambda text, share: None, self.limits.transfer)
            files |= transfer.fetch(missing)
        return files

    @contextmanager
    def _reading(self, shown: str, revision: str = "main") -> Iterator[tuple[HubRepository, OpenSecrets]]:
        """The repository, read with the token if there is one. Errors of the block are without secrets."""
        values = OpenSecrets(self.folder)
        reference = self.connection.token or _hub_token(self.connection.endpoint)
        try:
            with values.guarded(shown):
                token = HeldSecrets.of(values, reference) if reference is not None else None
                key = "registries.kind: huggingface"
                read_seconds = self.limits.transfer.read_seconds
                with open_store(self.connection.endpoint, token, read_seconds, extra="hub", key=key) as store:
                    yield (
                        HubRepository(
                            store, "models", self.section.repository, revision, FOLDER, token is not None,
                            self._no_token_hint(), self._token_hint(),
                            f"the reference is hf://{self.section.repository}@{{}}",
                        ),
                        values,
                    )  # fmt: skip
        except DataError as error:
            raise ServiceError(error.message, hint=error.hint) from None

    def _token(self, values: OpenSecrets, hub: HubRepository) -> str:
        reference = self.connection.token or _hub_token(self.connection.endpoint)
        if reference is None:
            raise UsageError(f"hf://{hub.name} cannot be written without a token", hint=self._no_token_hint())
        return values.read(reference)

    def _no_token_hint(self) -> str:
        if self.section.connection is None:
            return "export HF_TOKEN=..., or hf auth login"
        name = self.section.connection
        return f"name a token: connections: {{{name}: {{kind: huggingface, token: {{env: HF_TOKEN}}}}}}"

    def _token_hint(self) -> str:
        if self.section.connection is None:
            return "hf auth whoami tells whose token it is: that of HF_TOKEN, or of hf auth login"
        return f"mlkit explain RECIPE connections.{self.section.connection} shows where the token is kept"

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """The answer of a call, tried again while it may come. Raises ServiceError at the deadline."""
        deadline, wait = time.monotonic() + self.limits.request_seconds, 0.2
        while True:
            try:
                return call()
            except TransientError as error:
                pause = max(random.uniform(0, wait), error.after)
                if time.monotonic() + pause > deadline:
                    tried = f"(tried for {self.limits.request_seconds:.0f} s)"
                    message = f"{self.connection.endpoint}: {first_line(error)} {tried}"
                    raise ServiceError(message, hint="run the same command again later") from None
                time.sleep(pause)
                wait = min(2 * wait, 8.0)


def _hub_token(endpoint: str) -> Any:
    """Where the token of this user is, for their Hub, or the one that HF_ENDPOINT names."""
    return own_token(HUB if endpoint == os.environ.get("HF_ENDPOINT", "").rstrip("/") else endpoint)


def _bundle_objects(hub: HubRepository, commit: str, reference: str) -> list[DataObject]:
    """The files of ``bundle/`` at a commit. Raises BundleError for none, too many, or a name that leads elsewhere."""
    objects = list(hub.files(commit, f"{FOLDER}/"))
    for item in objects:
        parts = item.path.split("/")
        if parts[0] != FOLDER or {"", ".", ".."} & set(parts) or "\\" in item.path or "\0" in item.path:
            message = f"{reference}: {item.path[:120]!r} is no path below {FOLDER}/"
            raise BundleError(message, hint=f"{hub.page}/tree/{commit} shows what there is")
    total = sum(item.size for item in objects)
    if len(objects) > MAX_FILES or total > MAX_BYTES:
        message = f"{reference} has {len(objects):,} files of {total:,} bytes"
        raise BundleError(message, hint=f"at most {MAX_FILES:,} files of {MAX_BYTES:,} bytes are pulled")
    return objects


def _require_identity(bundle: Bundle, requested: HubReference) -> None:
    identity = bundle.manifest.identity
    if requested.identity and not identity.startswith(requested.identity):
        message = (
            f"{requested} is bundle {bundle.manifest.version} of {bundle.manifest.name}, not the one that the tag names"
        )
        raise BundleError(message, hint="somebody moved the tag: name the commit of the push, or push the bundle again")


def _identity_in(manifest: bytes) -> str:
    try:
        return str(parse_json(manifest)["identity"])
    except (ValueError, LookupError, TypeError):
        return ""
