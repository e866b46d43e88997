"""mlkit image: equal inputs give equal images; bundles are pushed, pulled, signed and verified."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.bundle import read_manifest
from mlflowkit.delivery.image.bundle_signature import sign_bundle, verify_bundle
from mlflowkit.delivery.image.image_builder import ImageBuild, build_image
from mlflowkit.errors import BundleError, ServiceError
from tests.support.image_world import signing_key
from tests.support.lending_bundle import make_bundle
from tests.support.registries import real_registry
from tests.support.tools import require_tool
from tests.support.warm_commands import warm_command


def _mlkit(*arguments: str, group: str = "image") -> Any:
    command = [*warm_command("mlflowkit.cli"), group, *arguments, "--json"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return json.loads(process.stdout)


@pytest.mark.delivery
def test_a_bundle_goes_to_a_registry_and_back_by_the_command_line(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle").path
    with real_registry(tmp_path) as host:
        repository = f"{host}/acme/lending-bundle"
        planned = _mlkit("push", str(folder), repository, "--dry-run")["bundle"]
        assert _mlkit("pull", planned, str(tmp_path / "early"))["error"]["kind"] == "service"
        assert _mlkit("push", str(folder), repository)["bundle"] == planned
        assert _mlkit("pull", planned, str(tmp_path / "pulled"))["folder"] == str(tmp_path / "pulled")
        manifest, state = read_manifest(folder), ("--state", str(tmp_path / "state"))
        origin = _mlkit(f"oci://{planned}", *state, group="lineage")
        assert (origin["identity"], origin["lineage"]["git_commit"]) == (manifest.identity, manifest.git_commit)
        assert origin["sources"] == [f"the bundle oci://{planned}"]
        would = _mlkit(planned, "--dry-run", *state, group="deploy")
        assert (would["identity"], would["service"]) == (manifest.identity, manifest.name)
        tag = _mlkit(f"oci://{repository}:latest", "--dry-run", *state, group="deploy")
        assert "names no digest" in tag["error"]["message"]
        assert not (tmp_path / "state").exists()


@pytest.mark.delivery
def test_an_image_of_equal_inputs_is_equal_and_leaves_out_what_is_not_listed(tmp_path: Path) -> None:
    require_tool("buildah")
    context = tmp_path / "context"
    context.mkdir()
    (context / "app").write_text("1")
    (context / ".env").write_text("TOKEN=canary")
    storage = f'[storage]\ndriver = "vfs"\nrunroot = "{tmp_path}/run"\ngraphroot = "{tmp_path}/graph"\n'
    (tmp_path / "storage.conf").write_text(storage)
    environment = {
        **os.environ, "CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf"), "BUILDAH_ISOLATION": "chroot",
    }  # fmt: skip
    with real_registry(tmp_path) as host:

        def build(content: str) -> str:
            (context / "app").write_text(content)
            os.utime(context / "app", (len(content), 10**9 + len(os.listdir(tmp_path))))
            each = ImageBuild(f"{host}/acme/app", "FROM scratch\nCOPY . /srv/\n", "*\n!app\n", context)
            return build_image(each, "buildah", push=True, environment=environment)

        first = build("1")
        (context / "app").unlink()
        assert build("1") == first
        assert build("2") != first
        assert first.startswith(f"{host}/acme/app@sha256:")
        broken = ImageBuild(f"{host}/acme/app", "FROM scratch\nCOPY absent /\n", "*\n", context)
        with pytest.raises(ServiceError, match="failed with exit code"):
            build_image(broken, "buildah", push=False, environment=environment)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "storage").rglob("data"))
    assert b"canary" not in stored


@pytest.mark.delivery
@pytest.mark.parametrize(("host_named", "token"), [(True, "ci-token"), (True, "another"), (False, "ci-token")])
def test_an_image_is_pushed_with_the_token_of_its_registry_only(tmp_path: Path, host_named: bool, token: str) -> None:
    require_tool("buildah")
    (tmp_path / "app").write_text("1")
    storage = f'[storage]\ndriver = "vfs"\nrunroot = "{tmp_path}/run"\ngraphroot = "{tmp_path}/graph"\n'
    (tmp_path / "storage.conf").write_text(storage)
    users = "ci:$2b$06$abcdefghijklmnopqrstuuq.EpSLNGI6f9rRreOj5QiBuOKtchxcu\n"  # of ci-token
    with real_registry(tmp_path, users=users) as host:
        environment = {
            **os.environ, "CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf"), "BUILDAH_ISOLATION": "chroot",
            "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "runtime"), "MLKIT_REGISTRY_USER": "ci",
            "MLKIT_REGISTRY": host if host_named else "registry.example.com", "MLKIT_REGISTRY_TOKEN": token,
        }  # fmt: skip
        each = ImageBuild(f"{host}/acme/app", "FROM scratch\nCOPY app /srv/\n", "*\n!app\n", tmp_path)
        if host_named and token == "ci-token":
            assert build_image(each, "buildah", push=True, environment=environment).startswith(
                f"{host}/acme/app@sha256:"
            )
        else:
            with pytest.raises(ServiceError, match="push failed"):
                build_image(each, "buildah", push=True, environment=environment)
    assert not list(tmp_path.rglob("auth.json"))


@pytest.mark.delivery
def test_a_signature_holds_for_these_files_and_this_key_only(tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="model-signing is not installed: pip install 'mlflowkit[sign]'")
    folder, other = make_bundle(tmp_path / "bundle").path, make_bundle(tmp_path / "other", seed=2).path
    signature = tmp_path / "bundle.sig"
    (private, public), (_, stranger) = signing_key(tmp_path, "ours"), signing_key(tmp_path, "theirs")
    sign_bundle(folder, signature, private)
    verify_bundle(folder, signature, public)
    with pytest.raises(BundleError, match="no signature"):
        verify_bundle(folder, signature, stranger)
    with pytest.raises(BundleError, match="no signature"):
        verify_bundle(other, signature, public)
    (folder / "extra").write_text("x")
    with pytest.raises(BundleError, match="not listed"):
        verify_bundle(folder, signature, public)
