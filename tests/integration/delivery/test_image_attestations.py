"""What is attached to a pushed image: its packages, its provenance and its signature, in a real registry without a list
of referrers, and in a fake one that keeps it."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlflowkit.delivery.image import image_attachments, referrers
from mlflowkit.delivery.image.image_record import FILE
from mlflowkit.delivery.image.image_signature import SIGNATURE_TYPE
from mlflowkit.delivery.image.registry_client import INDEX_TYPE, RegistryClient, digest_of
from mlflowkit.delivery.image.registry_reference import parse_reference
from mlflowkit.errors import BundleError, UsageError
from tests.support.image_world import ImageWorld, image_world, signing_key
from tests.support.lending_bundle import make_bundle
from tests.support.registries import FakeRegistry
from tests.support.tools import require_tool

pytestmark = [pytest.mark.delivery, pytest.mark.slow, pytest.mark.timeout(900)]
WORKFLOW = {
    "GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "acme/lending", "GITHUB_RUN_ID": "77",
    "GITHUB_WORKFLOW_REF": "acme/lending/.github/workflows/mlkit-lending.yml@refs/heads/main",
}  # fmt: skip
IDENTITY = "https://github.com/acme/lending/.github/workflows/mlkit-lending.yml@refs/heads/main"


VALIDATE = """
import pathlib, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
print(JsonStrictValidator(SchemaVersion.V1_6).validate_str(pathlib.Path(sys.argv[1]).read_text()))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageWorld]:
    with image_world(tmp_path_factory.mktemp("attested")) as world:
        yield world


@pytest.fixture(scope="module")
def keys(world: ImageWorld) -> tuple[Path, Path]:
    return signing_key(world.folder, "ours")


@pytest.fixture(scope="module")
def pushed(world: ImageWorld, keys: tuple[Path, Path]) -> dict[str, Any]:
    """The record of the serve image, built by a workflow and signed."""
    return build(world, keys[0], world.folder / "out")


def build(world: ImageWorld, key: Path, out: Path) -> dict[str, Any]:
    built = world.mlkit(
        "build", str(world.recipe), "--push", "--out", str(out), "--key", str(key), environment=WORKFLOW
    )
    assert "error" not in built, built
    record: dict[str, Any] = json.loads((out / FILE).read_text())["images"]["serve"]
    return record


def document(world: ImageWorld, digest: str) -> Any:
    """The one document of an attached manifest."""
    with RegistryClient(parse_reference(world.repository)) as client:
        (layer,) = client.pull_manifest(digest)["layers"]
        return client.pull_document(referrers.descriptor_of(layer, world.repository))


def test_the_list_of_packages_is_what_pip_says_in_the_image(
    world: ImageWorld, pushed: dict[str, Any], tmp_path: Path
) -> None:
    bill = document(world, pushed["sbom"])
    ours = {f"{item['name']}=={item['version']}" for item in bill["components"]}
    assert ours == set(frozen(world, pushed["reference"], tmp_path))
    assert {item["purl"] for item in bill["components"]} == {"pkg:pypi/acme-scores@1.4.0", "pkg:pypi/acme-tables@2.0.1"}
    assert bill["metadata"]["component"]["version"] == pushed["digest"]
    assert [item["licenses"] for item in bill["components"]] == [[{"expression": "MIT"}]] * 2


def frozen(world: ImageWorld, reference: str, folder: Path) -> list[str]:
    """What pip says is installed in an image: the base's pip, in a container of the image's files."""
    text = (
        f"FROM {world.base} AS tools\nFROM {reference}\nUSER 0\n"
        "COPY --from=tools /usr/local/lib /usr/local/lib\n"
        'RUN ["/usr/local/bin/python", "-m", "pip", "--python", "/opt/venv/bin/python", "list", "--format=freeze"]\n'
    )
    (folder / "Dockerfile").write_text(text)
    command = ["buildah", "build", "--format", "oci", "--no-cache", "--file", str(folder / "Dockerfile"), str(folder)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=280, env=world.environment, check=False)
    assert process.returncode == 0, process.stderr
    return [line for line in process.stdout.splitlines() if "==" in line]


def test_the_list_of_packages_keeps_to_the_published_schema(
    world: ImageWorld, pushed: dict[str, Any], tmp_path: Path
) -> None:
    python = Path(require_tool("check-jsonschema")).with_name("python")
    bill = document(world, pushed["sbom"])
    answers = []
    for number, text in enumerate((json.dumps(bill), json.dumps({**bill, "componets": []}))):
        (tmp_path / f"{number}.json").write_text(text)
        command = [str(python), "-c", VALIDATE, str(tmp_path / f"{number}.json")]
        process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if "ModuleNotFoundError" in process.stderr:
            pytest.skip(f"cyclonedx-python-lib is not installed beside {python}: make tools")
        answers.append(process.stdout.strip())
    assert answers[0] == "None"
    assert "componets" in answers[1]


def test_the_provenance_names_the_pushed_digest_and_how_it_came_about(
    world: ImageWorld, pushed: dict[str, Any], keys: tuple[Path, Path]
) -> None:
    envelope = document(world, pushed["provenance"])
    statement = image_attachments.open_envelope(envelope, image_attachments.public_key(keys[1]))
    assert statement is not None
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert statement["subject"] == [
        {"name": world.repository, "digest": {"sha256": pushed["digest"].removeprefix("sha256:")}}
    ]
    predicate = statement["predicate"]
    assert predicate["runDetails"]["builder"]["id"] == IDENTITY
    assert predicate["runDetails"]["metadata"]["invocationId"].endswith("/acme/lending/actions/runs/77/attempts/1")
    sources = {item["name"]: item["digest"] for item in predicate["buildDefinition"]["resolvedDependencies"]}
    assert sources["source"] == {"gitCommit": world.git("rev-parse", "HEAD")}
    assert sources["base"]["sha256"] == world.base.rpartition(":")[2]
    assert sources["lock"]["sha256"] == pushed["lock"]


def test_the_image_stays_one_manifest_and_its_referrers_are_under_the_tag(
    world: ImageWorld, pushed: dict[str, Any]
) -> None:
    reference = parse_reference(pushed["reference"])
    with RegistryClient(reference) as client:
        assert client.list_referrers(reference.digest) is None, (
            "this registry keeps a list: test the fallback elsewhere"
        )
        descriptor, manifest = client.describe_image(reference.digest)
        assert "subject" not in manifest
        assert descriptor.type == "application/vnd.oci.image.manifest.v1+json"
        index = client.pull_manifest(referrers.fallback_tag(reference.digest), INDEX_TYPE)
        listed = {item["digest"] for item in index["manifests"]}
        assert listed == {pushed["sbom"], pushed["provenance"], pushed["signature"]}
        for digest in listed:
            assert client.pull_manifest(digest)["subject"] == descriptor.to_json()


def test_another_build_of_the_run_attaches_nothing_new(
    world: ImageWorld, pushed: dict[str, Any], keys: tuple[Path, Path]
) -> None:
    assert build(world, keys[0], world.folder / "again") == pushed


def test_verification_names_the_signer_the_builder_and_the_contents(
    world: ImageWorld, pushed: dict[str, Any], keys: tuple[Path, Path]
) -> None:
    verified = world.mlkit("verify", pushed["reference"], "--key", str(keys[1]), "--identity", IDENTITY)
    assert verified["verified"] is True, verified
    assert (verified["identity"], verified["packages"], verified["base"]) == (IDENTITY, 2, world.base)
    assert verified["sbom"] == pushed["sbom"]
    assert verified["revision"] == world.git("rev-parse", "HEAD")
    text = world.run("verify", pushed["reference"], "--key", str(keys[1])).stdout
    assert verified["key"] in text
    assert IDENTITY in text


@pytest.mark.parametrize("other", [IDENTITY[:-1], f"{IDENTITY}2", IDENTITY.upper(), ".*", ""])
def test_another_builder_is_refused_and_both_are_named(
    world: ImageWorld, pushed: dict[str, Any], keys: tuple[Path, Path], other: str
) -> None:
    error = world.mlkit("verify", pushed["reference"], "--key", str(keys[1]), "--identity", other)["error"]
    assert error["kind"] == "bundle"
    assert f"was built by {IDENTITY}, not by {other}" in error["message"]


def test_another_key_is_refused_and_both_are_named(
    world: ImageWorld, pushed: dict[str, Any], keys: tuple[Path, Path], tmp_path: Path
) -> None:
    _, stranger = signing_key(tmp_path, "theirs")
    error = world.mlkit("verify", pushed["reference"], "--key", str(stranger), "--identity", IDENTITY)["error"]
    ours = image_attachments.fingerprint(image_attachments.public_key(keys[1]))
    theirs = image_attachments.fingerprint(image_attachments.public_key(stranger))
    assert f"is signed by {ours}, as it says, and not by {theirs}" in error["message"]


def test_openssl_verifies_what_cosign_would_read(
    world: ImageWorld, pushed: dict[str, Any], keys: tuple[Path, Path], tmp_path: Path
) -> None:
    reference = parse_reference(pushed["reference"])
    with RegistryClient(reference) as client:
        tagged = client.pull_manifest(f"{referrers.fallback_tag(reference.digest)}.sig")
        (layer,) = tagged["layers"]
        payload, value = client.pull_small(referrers.descriptor_of(layer, world.repository))
    assert layer["mediaType"] == "application/vnd.dev.cosign.simplesigning.v1+json"
    assert value["critical"]["image"] == {"docker-manifest-digest": reference.digest}
    assert value["critical"]["identity"] == {"docker-reference": world.repository}
    envelope = document(world, pushed["provenance"])
    statement, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    signed = {
        "image": (payload, layer["annotations"]["dev.cosignproject.cosign/signature"]),
        "statement": (
            f"DSSEv1 {len(kind)} {kind} {len(statement)} ".encode() + statement,
            envelope["signatures"][0]["sig"],
        ),
    }
    for name, (content, signature) in signed.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / f"{name}.sig").write_bytes(base64.b64decode(signature))
        command = ["openssl", "dgst", "-sha256", "-verify", str(keys[1]), "-signature", str(tmp_path / f"{name}.sig")]
        process = subprocess.run([*command, str(tmp_path / name)], capture_output=True, text=True, check=False)
        assert process.stdout.strip() == "Verified OK"


def test_containers_own_policy_takes_the_signature_and_refuses_another_key(
    world: ImageWorld, pushed: dict[str, Any], keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """Skopeo reads cosign's format by itself: an independent verifier."""
    require_tool("skopeo")
    lookup = tmp_path / "registries.d"
    lookup.mkdir()
    (lookup / "own.yaml").write_text(f"docker:\n  {world.host}:\n    use-sigstore-attachments: true\n")
    codes = []
    for number, public in enumerate((keys[1], signing_key(tmp_path, "stranger")[1])):
        signed = {"type": "sigstoreSigned", "keyPath": str(public), "signedIdentity": {"type": "matchRepository"}}
        policy = {"default": [{"type": "reject"}], "transports": {"docker": {world.host: [signed]}}}
        (tmp_path / "policy.json").write_text(json.dumps(policy))
        command = [
            "skopeo", "--policy", str(tmp_path / "policy.json"), "--registries.d", str(lookup), "copy",
            "--src-tls-verify=false", f"docker://{pushed['reference']}", f"dir:{tmp_path / str(number)}",
        ]  # fmt: skip
        process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if "sigstore disabled" in process.stderr:
            pytest.skip("this skopeo is built without sigstore, as Debian's is")
        codes.append((process.returncode, process.stderr))
    assert codes[0][0] == 0, codes[0][1]
    assert codes[1][0] != 0


def test_a_bundle_in_a_registry_is_signed_the_same_way(
    world: ImageWorld, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle", 5).path
    reference = world.mlkit("push", str(bundle), f"{world.repository}-bundle")["bundle"]
    with pytest.raises(BundleError, match="is signed by nobody, and not by SHA256:"):
        image_attachments.verify_image(reference, keys[1])
    assert world.mlkit("sign", reference, "--key", str(keys[0]))["signature"].startswith("sha256:")
    assert image_attachments.verify_image(reference, keys[1]).identity == ""
    with pytest.raises(BundleError, match="built by nobody who is named in a signed provenance, not by me"):
        image_attachments.verify_image(reference, keys[1], "me")


def test_a_provenance_without_a_signature_is_signed_later(
    world: ImageWorld, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    (world.root / "requirements.txt").write_text("--no-index\n--find-links /wheels\nsmall==0.1\n")
    built = world.mlkit("build", str(world.recipe), "--push", "--out", str(tmp_path), environment=WORKFLOW)
    image = json.loads((tmp_path / FILE).read_text())["images"]["serve"]
    assert image["reference"] == built["images"]["serve"]
    assert not image["signature"]
    with pytest.raises(BundleError, match="signed by nobody"):
        image_attachments.verify_image(image["reference"], keys[1])
    image_attachments.sign_image(image["reference"], keys[0])
    verified = image_attachments.verify_image(image["reference"], keys[1], IDENTITY)
    assert verified.packages == 1


def test_a_file_that_is_no_key_is_refused_before_anything_is_built(
    world: ImageWorld, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "not.pem").write_text("secret-words")
    error = world.mlkit("build", str(world.recipe), "--push", "--key", str(tmp_path / "not.pem"))["error"]
    assert (error["kind"], "secret-words" in json.dumps(error)) == ("usage", False)
    with pytest.raises(UsageError, match="no public key"):
        image_attachments.verify_image(f"{world.repository}@sha256:{'0' * 64}", keys[0])


class _Listing(FakeRegistry):
    """A registry that keeps a list of referrers (OCI 1.1)."""

    def answer(self, request: httpx.Request) -> httpx.Response:
        if "/referrers/" in request.url.path:
            subject = request.url.path.rpartition("/")[2]
            entries = [
                {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": len(content),
                 "artifactType": json.loads(content).get("artifactType")}
                for digest, content in self.manifests.items()
                if digest.startswith("sha256:") and json.loads(content).get("subject", {}).get("digest") == subject
            ]  # fmt: skip
            return httpx.Response(200, json={"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries})
        reply = super().answer(request)
        if request.method == "PUT" and "/manifests/" in request.url.path and b'"subject"' in request.content:
            reply.headers["oci-subject"] = json.loads(request.content)["subject"]["digest"]
        return reply


@pytest.mark.parametrize("kind", [_Listing, FakeRegistry])
def test_a_registry_with_a_list_gets_no_tag_and_one_without_gets_it(kind: type[FakeRegistry]) -> None:
    registry = kind()
    image = json.dumps({"config": {}, "layers": []}).encode()
    digest = digest_of(image)
    with RegistryClient(parse_reference("r.example.org/acme/a"), transport=registry.transport) as client:
        client.push_manifest(image)
        subject, _ = client.describe_image(digest)
        first = referrers.attach_document(client, subject, "a/b", b'{"n":1}', "a/b")
        assert referrers.attach_document(client, subject, "a/b", b'{"n":1}', "a/b") == first
        referrers.attach_document(client, subject, "a/b", b'{"n":2}', "a/b")
        referrers.attach_document(client, subject, "c/d", b'{"n":2}', "c/d")
        attached = referrers.referrers_of(client, digest, "a/b")
    assert len(attached) == 2
    assert first in {item.digest for item in attached}
    assert (referrers.fallback_tag(digest) in registry.manifests) == (kind is FakeRegistry)


def test_what_refers_to_another_image_counts_for_nothing() -> None:
    """A registry that lies in its list cannot lend one image's signature to another."""
    registry = FakeRegistry()
    images = [json.dumps({"config": {}, "layers": [], "n": number}).encode() for number in (1, 2)]
    with RegistryClient(parse_reference("r.example.org/acme/a"), transport=registry.transport) as client:
        one, two = (client.push_manifest(image) for image in images)
        referrers.attach_document(client, client.describe_image(one)[0], SIGNATURE_TYPE, b"{}", "a/b")
        registry.manifests[referrers.fallback_tag(two)] = registry.manifests[referrers.fallback_tag(one)]
        assert len(referrers.referrers_of(client, one, SIGNATURE_TYPE)) == 1
        assert referrers.referrers_of(client, two, SIGNATURE_TYPE) == []
