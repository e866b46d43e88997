"""A promotion where the recipe names the key whose owner must have signed."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflowkit.delivery.delivery_plan import RecipeFacts, delivery_plan
from mlflowkit.delivery.delivery_settings import DeliverySection
from mlflowkit.delivery.image.bundle_artifact import bundle_reference
from mlflowkit.delivery.image.image_attachments import sign_image
from mlflowkit.delivery.image.image_signature import KEY_VARIABLE, private_key, signing_key
from mlflowkit.errors import BundleError, UsageError
from tests.support.gitops_world import GitopsWorld
from tests.support.image_world import signing_key as make_key
from tests.support.lending_bundle import make_bundle
from tests.support.registries import FakeRegistry, served_registry

pytest.importorskip("cryptography", reason="pip install 'mlflowkit[sign]'")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GitopsWorld]:
    with served_registry(FakeRegistry()) as host:
        world = GitopsWorld(tmp_path, host, "{strategy: direct}")
        world.recipe.write_text(world.recipe.read_text() + "  policy: {key: keys/signing.pub}\n")
        yield world


@pytest.fixture
def report(world: GitopsWorld) -> Path:
    return world.judged(make_bundle(world.folder / "bundle", 1, policy=world.policy), "first")


def reference_of(world: GitopsWorld, report: Path) -> str:
    return bundle_reference(report.parent / "bundle", f"{world.registry}/acme/lending-bundle")


def owner(world: GitopsWorld, name: str) -> tuple[Path, Path]:
    """The private and the public key of somebody; the recipe's is ``ours``."""
    private, public = make_key(world.folder, name)
    if name == "ours":
        (world.recipe.parent / "keys").mkdir()
        (world.recipe.parent / "keys" / "signing.pub").write_bytes(public.read_bytes())
    return private, public


def test_what_the_owner_of_the_key_signed_is_promoted(world: GitopsWorld, report: Path) -> None:
    private, _ = owner(world, "ours")
    with pytest.raises(BundleError, match=r"not signed|no signature|signed by nobody"):
        world.promote(report)
    sign_image(reference_of(world, report), owner(world, "theirs")[0])
    with pytest.raises(BundleError):
        world.promote(report)
    assert world.git("for-each-ref") == ""
    sign_image(reference_of(world, report), private)
    assert world.promote(report).action == "promoted"


def test_an_image_that_nobody_signed_is_not_promoted_with_a_signed_bundle(world: GitopsWorld, report: Path) -> None:
    private, _ = owner(world, "ours")
    other = world.judged(make_bundle(world.folder / "other", 2, policy=world.policy), "other")
    for item in (report, other):
        identity = json.loads(item.read_text())["identity"]
        image = {
            "reference": reference_of(world, other), "platform": "linux/amd64", "base": "b", "revision": "r",
            "dirty": False, "lock": "l",
        }  # fmt: skip
        bundle = {"reference": reference_of(world, item), "identity": identity, "version": "1"}
        record = {"format": 1, "recipe": "lending", "images": {"serve": image}, "bundle": bundle}
        (item.parent / "image.json").write_text(json.dumps(record))
    sign_image(reference_of(world, report), private)
    with pytest.raises(BundleError):
        world.promote(report)
    sign_image(reference_of(world, other), private)
    assert world.promote(report).action == "promoted"


def test_a_key_that_is_not_there_is_told(world: GitopsWorld, report: Path) -> None:
    with pytest.raises(UsageError, match=r"keys/signing\.pub cannot be read"):
        world.promote(report)


def test_a_key_in_a_variable_is_a_private_file_that_goes_away(tmp_path: Path) -> None:
    private, _ = make_key(tmp_path, "ours")
    with signing_key(None, {KEY_VARIABLE: f"\n{private.read_text()}\n"}) as file:
        assert file is not None
        private_key(file)
        assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert not file.exists()
    with signing_key(private, {KEY_VARIABLE: "no key"}) as file:
        assert file == private
    with signing_key(None, {KEY_VARIABLE: " "}) as file:
        assert file is None
    with signing_key(None, {KEY_VARIABLE: "canary-secret"}) as file:
        assert file is not None
        with pytest.raises(UsageError) as caught:
            private_key(file)
    assert "canary-secret" not in f"{caught.value.message}{caught.value.hint}"


def test_the_private_key_goes_to_the_step_that_pushes_images_only() -> None:
    section = DeliverySection.model_validate(
        {
            "registry": {"image": "ghcr.io/acme/lending"},
            "secrets": {KEY_VARIABLE: {"env": "SIGNING"}, "MLKIT_API_KEY": {"env": "KEY"}, "DB": {"env": "DB"}},
            "environments": {"staging": {}},
            "triggers": [{"on": "data"}],
        }
    )
    steps = delivery_plan(section, RecipeFacts("lending", "recipe.yaml")).steps
    assert [step.id for step in steps if KEY_VARIABLE in step.secrets] == ["image"]
    assert [step.id for step in steps if "MLKIT_API_KEY" in step.secrets] == ["settle-staging"]
    assert [step.id for step in steps if "DB" in step.secrets] == ["trigger", "check", "judge"]
