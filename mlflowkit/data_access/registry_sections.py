"""The recipe's ``registries``: where blessed bundles go, and how a reference to one of them is written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from mlflowkit.data_access.connections import ConnectionSection, HuggingfaceConnection
from mlflowkit.errors import UsageError, closest_match
from mlflowkit.sections import Section

HUB_SCHEME = "hf://"
HUB_NAME = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
IDENTITY_TAG = re.compile(r"v-([0-9a-f]{14})")
"""The tag of a pushed bundle: the first digits of its identity."""
_HUB_REFERENCE = re.compile(rf"hf://(?P<name>{HUB_NAME})@(?P<revision>[A-Za-z0-9][\w./+-]{{0,249}})")


class HuggingfaceRegistry(Section):
    """A repository of models on the Hugging Face Hub: one commit a bundle, with a card, tagged by its identity."""

    kind: Literal["huggingface"]
    repository: str = Field(pattern=f"^{HUB_NAME}$")
    """The repository, such as org/lending; created by the first push."""
    connection: str | None = Field(default=None, min_length=1)
    """The connection (of kind huggingface) with a token that may write. Without it the token is HF_TOKEN, or that of
    ``hf auth login``."""
    private: bool = True
    """Whether only those who are allowed to see the repository; a public one is refused then."""
    license: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9.-]{0,59}$")
    """The licence on the card, by the Hub's name for it, such as apache-2.0."""
    send_values: bool = False
    """Also send the evidence that holds values of the data's rows: profiles, sample rows, digests of rows, curves. A
    bundle without it serves; its drift and estimated performance are not monitored."""


class OciRegistry(Section):
    """A registry of artifacts, such as ghcr.io, with the credentials of docker login."""

    kind: Literal["oci"]
    repository: str = Field(pattern=r"^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+$", max_length=200)
    """The repository, such as ghcr.io/acme/lending-bundle."""


class MlflowRegistry(Section):
    """MLflow (MLFLOW_TRACKING_URI, or the state folder's own database), where every run is recorded and every blessed
    bundle registered anyway: listed here, a run without MLflow installed is refused."""

    kind: Literal["mlflow"]


ModelRegistrySection = Annotated[HuggingfaceRegistry | OciRegistry | MlflowRegistry, Field(discriminator="kind")]


def describe_registry(section: HuggingfaceRegistry | OciRegistry | MlflowRegistry) -> str:
    """Where a blessed bundle goes, in words.

    >>> describe_registry(HuggingfaceRegistry(kind="huggingface", repository="org/lending"))
    'hf://org/lending (private, without values of rows)'
    """
    if isinstance(section, HuggingfaceRegistry):
        visibility = "private" if section.private else "public"
        values = "with" if section.send_values else "without"
        return f"{HUB_SCHEME}{section.repository} ({visibility}, {values} values of rows)"
    return f"oci://{section.repository}" if isinstance(section, OciRegistry) else "MLflow"


def hub_connection(section: HuggingfaceRegistry, connections: Mapping[str, ConnectionSection]) -> HuggingfaceConnection:
    """The connection of a registry; without one that of Hugging Face's own tools (HF_ENDPOINT). Raises UsageError."""
    if section.connection is None:
        endpoint = os.environ.get("HF_ENDPOINT", "").strip()
        try:
            return HuggingfaceConnection(kind="huggingface", **({"endpoint": endpoint} if endpoint else {}))
        except ValueError:  # not quoted: it may hold a password
            message = "the environment variable HF_ENDPOINT is no URL such as https://huggingface.co"
            raise UsageError(message, hint="unset HF_ENDPOINT, or export HF_ENDPOINT=https://...") from None
    connection = connections.get(section.connection)
    if isinstance(connection, HuggingfaceConnection):
        return connection
    if connection is not None:
        message = f"connection {section.connection!r} is of kind {connection.kind}, and the registry is huggingface"
        raise UsageError(message, hint="mlkit explain RECIPE registries")
    near = closest_match(section.connection, connections)
    hint = f"did you mean {near}?" if near else f"add connections: {{{section.connection}: {{kind: huggingface}}}}"
    raise UsageError(f"there is no connection {section.connection!r}", hint=hint)


@dataclass(frozen=True, slots=True)
class HubReference:
    """A bundle on the Hub: ``hf://org/name@revision``.

    >>> parse_hub_reference("hf://org/lending@v-3f9a2c41d0e5b7").repository
    'org/lending'
    """

    repository: str
    revision: str

    @property
    def identity(self) -> str:
        """The first digits of the identity, where the revision is the tag of a push; else ""."""
        tag = IDENTITY_TAG.fullmatch(self.revision)
        return tag[1] if tag else ""

    def __str__(self) -> str:
        return f"{HUB_SCHEME}{self.repository}@{self.revision}"


def hub_reference(section: HuggingfaceRegistry, identity: str) -> HubReference:
    """The reference of a pushed bundle, by its identity.

    >>> section = HuggingfaceRegistry(kind="huggingface", repository="org/lending")
    >>> str(hub_reference(section, "3f9a2c41d0e5b7" + "0" * 50))
    'hf://org/lending@v-3f9a2c41d0e5b7'
    """
    return HubReference(section.repository, f"v-{identity[:14]}")


def is_remote_reference(reference: str) -> bool:
    """Whether a recipe's reference names a bundle in a registry, and not a folder."""
    in_registry = re.fullmatch(r"[\w.:-]+/\S+@sha256:[0-9a-f]{64}", reference)
    return bool(in_registry) or reference.startswith(("models:/", "runs:/", HUB_SCHEME, "oci://"))


def require_one_version(reference: str) -> None:
    """Raise ValueError for a reference to a registry that may name another bundle tomorrow: an alias, a branch, a tag.

    A path is none.

    >>> require_one_version("models:/lending/3")
    >>> require_one_version("models:/lending@champion")
    Traceback (most recent call last):
    ValueError: an alias moves: name a version, such as models:/lending/3
    """
    if reference.startswith("models:/"):
        if not re.fullmatch(r"models:/[^/@\s]+/[1-9]\d*", reference):
            name = re.split("[/@]", reference.removeprefix("models:/"))[0] or "NAME"
            raise ValueError(f"an alias moves: name a version, such as models:/{name}/3")
    elif reference.startswith(HUB_SCHEME):
        matched = _HUB_REFERENCE.fullmatch(reference)
        revision = matched["revision"] if matched else ""
        if not IDENTITY_TAG.fullmatch(revision) and not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise ValueError("name the tag of a push, hf://org/name@v-DIGITS, or a commit of 40 digits: a branch moves")
    elif reference.startswith("oci://") and not re.search(r"@sha256:[0-9a-f]{64}$", reference):
        raise ValueError("a tag moves: name a digest, oci://host/name@sha256:DIGEST")


def parse_hub_reference(reference: str) -> HubReference:
    """Raises UsageError for anything but ``hf://org/name@revision``."""
    matched = _HUB_REFERENCE.fullmatch(reference)
    if matched is None or ".." in reference or "//" in reference.removeprefix(HUB_SCHEME):
        raise UsageError(
            f"{reference!r} names no bundle on the Hub",
            hint="hf://org/name@v-DIGITS, with the tag of a push, or a commit or a branch",
        )
    return HubReference(matched["name"], matched["revision"])
