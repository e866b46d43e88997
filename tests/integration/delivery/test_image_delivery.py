"""`mlkit image build` of a recipe, as the step ``image`` of a pipeline runs it: buildah, a real registry, real pip."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflowkit.delivery.image.image_record import FILE, read_image_record
from mlflowkit.errors import UsageError
from mlflowkit.system.digests import digest_file
from tests.support.image_world import LOCK, ImageWorld, image_world
from tests.support.lending_bundle import make_bundle

pytestmark = [pytest.mark.delivery, pytest.mark.slow, pytest.mark.timeout(540)]


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
