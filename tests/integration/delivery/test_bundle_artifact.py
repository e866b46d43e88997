"""Bundles in a registry: pushed once, pulled by digest, and refused when anything about them is wrong."""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
from pathlib import Path

import httpx
import pytest

from mlflowkit.bundle import Bundle, open_bundle
from mlflowkit.delivery.image.bundle_artifact import OciBundles, bundle_reference, pull_bundle, push_bundle
from mlflowkit.delivery.image.registry_client import digest_of
from mlflowkit.errors import BundleError, MlkitError, ServiceError, UsageError
from mlflowkit.testing import ModelRegistryContract
from tests.support.lending_bundle import make_bundle
from tests.support.registries import FakeRegistry, real_registry

REPOSITORY = "registry.example.org/acme/lending-bundle"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle").path


class TestOciBundles(ModelRegistryContract):
    @pytest.fixture(autouse=True)
    def _server(self) -> None:
        self.server = FakeRegistry()
        self.transport = self.server.transport

    def registry(self) -> OciBundles:
        return OciBundles(REPOSITORY, self.transport)

    def make(self, folder: Path, seed: int, *, blessed: bool = True) -> Bundle:
        return make_bundle(folder, seed, blessed=blessed)

    def versions(self) -> int:
        return len(self.server.manifests)

    def damage(self) -> None:
        for digest, content in self.server.blobs.items():
            self.server.lies[digest] = b"0" * len(content)

    def stop(self) -> None:
        def refuse(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("refused", request=request)

        self.transport = httpx.MockTransport(refuse)


def test_a_pushed_bundle_comes_back_byte_for_byte(bundle: Path, tmp_path: Path) -> None:
    registry = FakeRegistry()
    reference = push_bundle(bundle, REPOSITORY, transport=registry.transport)
    pulled = pull_bundle(reference, tmp_path / "pulled", transport=registry.transport)
    assert open_bundle(pulled, blessed=True).manifest == open_bundle(bundle).manifest
    files = [path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file()]
    assert all((pulled / file).read_bytes() == (bundle / file).read_bytes() for file in files)
    assert not [path for path in tmp_path.iterdir() if path != pulled]
    assert pulled.stat().st_mode & 0o077 == 0


def test_equal_bundles_are_one_artifact_whenever_they_were_written(bundle: Path, tmp_path: Path) -> None:
    again = make_bundle(tmp_path / "bundle").path
    for path in (*again.rglob("*"), again):
        os.utime(path, (1, 1))
    assert bundle_reference(again, REPOSITORY) == bundle_reference(bundle, REPOSITORY)
    assert bundle_reference(make_bundle(tmp_path / "other", seed=2).path, REPOSITORY) != bundle_reference(
        bundle, REPOSITORY
    )


def test_a_second_push_sends_nothing(bundle: Path) -> None:
    registry = FakeRegistry()
    reference = push_bundle(bundle, REPOSITORY, transport=registry.transport)
    sent = registry.sent
    assert push_bundle(bundle, REPOSITORY, transport=registry.transport) == reference
    assert registry.sent == sent > 0


def test_pulling_again_is_idempotent_and_never_overwrites(bundle: Path, tmp_path: Path) -> None:
    registry, folder = FakeRegistry(), tmp_path / "pulled"
    reference = push_bundle(bundle, REPOSITORY, transport=registry.transport)
    pull_bundle(reference, folder, transport=registry.transport)
    calls = len(registry.calls)
    assert pull_bundle(reference, folder, transport=registry.transport) == folder
    assert len(registry.calls) == calls
    other = push_bundle(make_bundle(tmp_path / "b2", seed=2).path, REPOSITORY, transport=registry.transport)
    with pytest.raises(UsageError, match="another bundle"):
        pull_bundle(other, folder, transport=registry.transport)


@pytest.mark.parametrize("kind", ["manifest", "layer", "longer"])
def test_altered_content_is_refused_before_it_is_unpacked(bundle: Path, tmp_path: Path, kind: str) -> None:
    registry = FakeRegistry()
    reference = push_bundle(bundle, REPOSITORY, transport=registry.transport)
    digest = reference.partition("@")[2]
    layer = json.loads(registry.manifests[digest])["layers"][0]["digest"]
    content = registry.blobs[layer]
    registry.lies = {
        "manifest": {digest: registry.manifests[digest] + b" "},
        "layer": {layer: content[:-1] + b"x"},
        "longer": {layer: content + bytes(1 << 20)},
    }[kind]
    with pytest.raises(BundleError, match="sen"):
        pull_bundle(reference, tmp_path / "pulled", transport=registry.transport)
    assert not list(tmp_path.iterdir())


def _hostile(registry: FakeRegistry, reference: str, *entries: tarfile.TarInfo) -> str:
    """An artifact with right digests whose layer holds ``entries``; returns its reference."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for entry in entries:
            archive.addfile(entry, io.BytesIO(bytes(entry.size)) if entry.isreg() else None)
    layer, manifest = buffer.getvalue(), json.loads(registry.manifests[reference.partition("@")[2]])
    manifest["layers"][0] |= {"digest": digest_of(layer), "size": len(layer)}
    content = json.dumps(manifest).encode()
    registry.blobs[digest_of(layer)], registry.manifests[digest_of(content)] = layer, content
    return f"{REPOSITORY}@{digest_of(content)}"


def _entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, 3 if kind == tarfile.REGTYPE else 0
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        _entry("bundle/../../escaped"),
        _entry("/etc/escaped"),
        _entry("escaped"),
        _entry("bundle/link", tarfile.SYMTYPE, "/etc"),
        _entry("bundle/link", tarfile.LNKTYPE, "/etc/passwd"),
        _entry("bundle/device", tarfile.CHRTYPE),
        _entry("bundle/fifo", tarfile.FIFOTYPE),
    ],
)
def test_paths_out_of_the_bundle_and_links_are_refused(bundle: Path, tmp_path: Path, entry: tarfile.TarInfo) -> None:
    registry = FakeRegistry()
    reference = push_bundle(bundle, REPOSITORY, transport=registry.transport)
    hostile = _hostile(registry, reference, entry)
    with pytest.raises(BundleError, match=r"regular file|below bundle"):
        pull_bundle(hostile, tmp_path / "in" / "pulled", transport=registry.transport)
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]


def test_an_artifact_that_is_no_bundle_is_named(bundle: Path, tmp_path: Path) -> None:
    registry = FakeRegistry()
    reference = push_bundle(bundle, REPOSITORY, transport=registry.transport)
    empty = _hostile(registry, reference, _entry("bundle", tarfile.DIRTYPE))
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        pull_bundle(empty, tmp_path / "pulled", transport=registry.transport)
    manifest = json.loads(registry.manifests[reference.partition("@")[2]]) | {"artifactType": "application/x-sbom"}
    content = json.dumps(manifest).encode()
    registry.manifests[digest_of(content)] = content
    with pytest.raises(BundleError, match="no bundle but application/x-sbom"):
        pull_bundle(f"{REPOSITORY}@{digest_of(content)}", tmp_path / "pulled", transport=registry.transport)


def test_credentials_come_from_the_docker_configuration(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = FakeRegistry(token="t0ken", password="hunter2")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    with pytest.raises(UsageError, match="refuses the credentials") as refused:
        push_bundle(bundle, REPOSITORY, transport=registry.transport)
    assert "docker login registry.example.org" in refused.value.hint
    auth = base64.b64encode(b"ci:hunter2").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"registry.example.org": {"auth": auth}}}))
    assert push_bundle(bundle, REPOSITORY, transport=registry.transport).startswith(REPOSITORY)


def test_credentials_of_the_environment_go_to_the_named_host_only(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = FakeRegistry(token="t0ken", password="hunter2")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("MLKIT_REGISTRY_USER", "ci")
    monkeypatch.setenv("MLKIT_REGISTRY_PASSWORD", "hunter2")
    monkeypatch.setenv("MLKIT_REGISTRY", "other.example.org")
    with pytest.raises(UsageError) as refused:
        push_bundle(bundle, REPOSITORY, transport=registry.transport)
    assert "hunter2" not in f"{refused.value} {refused.value.hint}"
    monkeypatch.setenv("MLKIT_REGISTRY", "registry.example.org")
    assert push_bundle(bundle, REPOSITORY, transport=registry.transport).startswith(REPOSITORY)


@pytest.mark.parametrize("reference", [REPOSITORY, f"{REPOSITORY}:latest", "nothing", "a/../b@sha256:" + "0" * 64])
def test_a_reference_without_a_digest_is_not_pulled(reference: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"digest|reference"):
        pull_bundle(reference, tmp_path / "pulled")


def test_an_absent_digest_and_a_silent_registry_are_errors_of_the_world(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="no such content"):
        pull_bundle(f"{REPOSITORY}@sha256:{'0' * 64}", tmp_path / "pulled", transport=FakeRegistry().transport)
    with pytest.raises(MlkitError, match="does not answer"):
        pull_bundle(f"127.0.0.1:1/a/b@sha256:{'0' * 64}", tmp_path / "pulled")


@pytest.mark.delivery
def test_a_real_registry_stores_and_returns_a_bundle(bundle: Path, tmp_path: Path) -> None:
    with real_registry(tmp_path) as host:
        reference = push_bundle(bundle, f"{host}/acme/lending-bundle")
        assert reference == push_bundle(bundle, f"{host}/acme/lending-bundle")
        pulled = pull_bundle(reference, tmp_path / "pulled")
        assert open_bundle(pulled, blessed=True).manifest == open_bundle(bundle).manifest
        with pytest.raises(ServiceError, match="no such content"):
            pull_bundle(f"{host}/acme/other@{reference.partition('@')[2]}", tmp_path / "other")
