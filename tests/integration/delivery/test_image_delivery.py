"""`mlkit image build` of a recipe, as the step ``image`` of a pipeline runs it: buildah, a real registry, real pip."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflowkit.delivery.image.image_record import FILE, read_image_record
from mlflowkit.errors import UsageError
from mlflowkit.system.digests import digest_file
from tests.support.image_world import LOCK, ImageWorld, image_world, signing_key
from tests.support.lending_bundle import make_bundle

pytestmark = [pytest.mark.delivery, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageWorld]:
    with image_world(tmp_path_factory.mktemp("images")) as world:
        yield world


def _judged(world: ImageWorld, name: str, seed: int = 0) -> Path:
    """A folder as `mlkit ci judge` leaves it; returns the report."""
    folder = world.folder / name
    bundle = make_bundle(folder / "bundle", seed)
    (folder / "report.json").write_text(json.dumps({"identity": bundle.manifest.identity}))
    return folder / "report.json"


def test_what_was_pushed_is_recorded_for_the_steps_after_it(world: ImageWorld) -> None:
    report = _judged(world, "first")
    built = world.mlkit("build", str(world.recipe), "--push", "--from", str(report))
    assert built["record"] == str(report.with_name(FILE)), built
    record = read_image_record(report.with_name(FILE))
    image = record.images["serve"]
    assert image.reference == built["images"]["serve"] == f"{world.repository}@{image.digest}"
    assert image.platform.startswith("linux/")
    assert image.base == world.base
    assert (image.revision, image.dirty) == (world.git("rev-parse", "HEAD"), False)
    assert image.lock == digest_file(world.root / "requirements.txt")
    assert record.bundle is not None
    assert record.bundle.reference == built["bundle"]
    assert record.bundle.identity == json.loads(report.read_text())["identity"]
    document = json.loads(report.with_name(FILE).read_text())
    assert document["images"]["serve"]["digest"] == image.digest
    assert document["bundle"]["digest"] == record.bundle.digest


def test_another_day_gives_the_same_record_and_uncommitted_changes_are_told(world: ImageWorld) -> None:
    first, again = _judged(world, "one"), _judged(world, "two")
    for report in (first, again):
        world.mlkit("build", str(world.recipe), "--push", "--from", str(report))
        (world.root / "requirements.txt").touch()
    assert first.with_name(FILE).read_bytes() == again.with_name(FILE).read_bytes()
    (world.root / "requirements.txt").write_text(LOCK + "small==0.1\n")
    out = world.folder / "out"
    world.mlkit("build", str(world.recipe), "--push", "--out", str(out))
    (world.root / "requirements.txt").write_text(LOCK)
    changed = read_image_record(out / FILE)
    assert changed.bundle is None
    assert changed.images["serve"].dirty
    assert changed.images["serve"].digest != read_image_record(first.with_name(FILE)).images["serve"].digest


def test_a_record_needs_a_registry_and_a_damaged_one_is_refused(world: ImageWorld, tmp_path: Path) -> None:
    error = world.mlkit("build", str(world.recipe), "--out", str(tmp_path))["error"]
    assert error["kind"] == "usage"
    with pytest.raises(UsageError, match="cannot be read"):
        read_image_record(tmp_path / FILE)
    for text in ("{", "[]", '{"images": {}}', '{"recipe": "a", "images": {"serve": {"reference": "a:latest"}}}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(UsageError, match="no record"):
            read_image_record(tmp_path / FILE)
    (tmp_path / FILE).write_text('{"recipe": "a", "images": {}, "format": 2, "later": 1}')
    with pytest.raises(UsageError, match="has format 2"):
        read_image_record(tmp_path / FILE)


def test_a_new_model_sends_little_more_than_its_own_files(world: ImageWorld) -> None:
    """The bytes that clients send, all requests and all headers included; the image's are there already."""
    first, second = _judged(world, "before", 11), _judged(world, "after", 12)
    world.mlkit("build", str(world.recipe), "--push", "--from", str(first))
    before = world.registry.sent
    assert before > 5_000_000, "the base went through the proxy"
    built = world.mlkit("build", str(world.recipe), "--push", "--from", str(second))
    sent = world.registry.sent - before
    model = sum(path.stat().st_size for path in (second.parent / "bundle").rglob("*") if path.is_file())
    print(f"{sent} bytes for a bundle of {model} bytes; {before} bytes before it")  # noqa: T201
    earlier = read_image_record(first.with_name(FILE)).bundle
    assert earlier is not None
    assert built["bundle"] != earlier.reference
    assert sent >= model
    assert sent < model + 1_000_000
    again = world.registry.sent
    world.mlkit("build", str(world.recipe), "--push", "--from", str(second))
    assert world.registry.sent - again < 100_000, "a second push of the same is not only questions"


def test_no_secret_is_in_a_layer_a_document_or_a_log(world: ImageWorld) -> None:
    report = _judged(world, "secret", 13)
    private, _ = signing_key(world.folder, "canary")
    body = "".join(private.read_text().splitlines()[1:-1])
    canaries = [f"canary-{number}-7f31c9" for number in range(9)]
    variables = {
        "MLKIT_REGISTRY_TOKEN": canaries[0], "MLKIT_GIT_TOKEN": canaries[1], "DB_URL": f"postgres://u:{canaries[2]}@db/x",
        "PIP_INDEX_URL": f"https://u:{canaries[3]}@pypi.example.org/simple", "AWS_SECRET_ACCESS_KEY": canaries[4],
        "GITHUB_TOKEN": canaries[5], "MLKIT_SIGNING_KEY": str(private),
    }  # fmt: skip
    (world.root / ".env").write_text(f"TOKEN={canaries[6]}\n")
    (world.root / "keys.json").write_text(f'["{canaries[7]}"]')
    (world.root / "private.pem").write_bytes(private.read_bytes())
    world.git("remote", "add", "origin", f"https://x:{canaries[8]}@git.example.org/acme.git")
    roles = [word for role in ("train", "serve", "monitor") for word in ("--role", role)]
    process = world.run("build", str(world.recipe), "--push", "--from", str(report), *roles, environment=variables)
    assert process.returncode == 0, process.stderr[-3000:]
    everything = {
        "the registry": world.stored(),
        "the log": (process.stdout + process.stderr).encode(),
        "image.json": report.with_name(FILE).read_bytes(),
    }
    assert b"acme_scores" in everything["the registry"], "layers are not looked into"
    assert b"sklearn.linear_model" in everything["the registry"], "the recipe is in no train image"
    assert [
        (place, text) for place, content in everything.items() for text in canaries if text.encode() in content
    ] == []
    assert [place for place, content in everything.items() if body[:60].encode() in content] == []
