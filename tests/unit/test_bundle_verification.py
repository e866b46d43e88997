"""A bundle is served as it was written or not at all."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mlflowkit.bundle import WITHHELD, Bundle, Manifest, Signature, TensorSpec, open_bundle, withheld_record, write
from mlflowkit.errors import BundleError, StoreError
from mlflowkit.values import Lineage

SIGNATURE = Signature(
    task="regression",
    inputs=(TensorSpec(name="numeric", datatype="FP32", shape=(-1, 2), columns=("a", "b")),),
    outputs=(TensorSpec(name="prediction", datatype="FP32", shape=(-1,)),),
)
GRAPH = b"a graph of fifty bytes or so, to be cut anywhere at will"
LINEAGE = Lineage("c" * 40, False, "d" * 64, "r" * 64)
OLD_CHECKSUMS = {
    "manifest.json": "fdc2c6cc41a8408d922075f378612d6614fd831bb253e636d5dd4d2edef96824",
    "blessing.json": "13eea95565a340c5be5a35822ffc89932581934f8c321e3b23ad95b32053ad1d",
}
"""Of the bundle of `fill`, as version 0.1 wrote it: without the git tree."""


def fill(path: Path, model: bytes = GRAPH) -> Path:
    (path / "evidence").mkdir(parents=True)
    (path / "model.onnx").write_bytes(model)
    (path / "signature.json").write_text(SIGNATURE.model_dump_json())
    (path / "evidence" / "evaluation.json").write_text('{"rows": 10}')
    (path / "evidence" / "reference.whylogs").write_bytes(bytes(range(64)))
    return path


def make(path: Path, *, blessed: bool = True, model: bytes = GRAPH, lineage: Lineage = LINEAGE) -> Bundle:
    return write(
        fill(path, model), name="loans", lineage=lineage, policy="p" * 64, run="run-1", blessed=blessed, created=12.5
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "bundle").path


def refused(folder: Path, words: str, *, blessed: bool = True) -> BundleError:
    with pytest.raises(BundleError, match=words) as caught:
        open_bundle(folder, blessed=blessed)
    assert caught.value.hint
    assert caught.value.exit_code == 3
    return caught.value


def reseal(folder: Path, file: str, **changes: object) -> None:
    """Rewrite a manifest or blessing with a checksum that holds, as someone who knows the format could."""
    from mlflowkit import bundle

    models: dict[str, type[Manifest | bundle.Blessing | bundle.Withheld]]
    models = {"manifest.json": Manifest, "blessing.json": bundle.Blessing, WITHHELD: bundle.Withheld}
    model = models[file]
    value = model.model_validate_json((folder / file).read_bytes()).model_copy(update=changes)
    sealed = value.model_copy(update={"checksum": value.compute_checksum()})
    text = json.dumps(sealed.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False)
    (folder / file).write_text(text)


def test_what_was_written_is_read(folder: Path) -> None:
    bundle = open_bundle(folder, blessed=True)
    assert bundle.manifest.name == "loans"
    assert bundle.manifest.version == bundle.manifest.identity[:12]
    assert bundle.signature == SIGNATURE
    assert bundle.blessing is not None
    assert bundle.blessing.run == "run-1"
    assert bundle.blessing.created == 12.5
    assert set(bundle.manifest.files) == {
        "model.onnx",
        "signature.json",
        "evidence/evaluation.json",
        "evidence/reference.whylogs",
    }


def test_a_bundle_without_a_git_tree_is_byte_for_byte_that_of_earlier_versions(folder: Path) -> None:
    for name, checksum in OLD_CHECKSUMS.items():
        value = json.loads((folder / name).read_bytes())
        assert "git_tree" not in value
        assert value["checksum"] == checksum
    assert open_bundle(folder, blessed=True).manifest.git_tree == ""


def test_the_git_tree_is_bound_by_manifest_and_blessing(tmp_path: Path) -> None:
    bundle = make(tmp_path / "bundle", lineage=replace(LINEAGE, git_tree="e" * 40))
    assert bundle.blessing is not None
    assert (bundle.manifest.git_tree, bundle.blessing.git_tree) == ("e" * 40, "e" * 40)
    assert bundle.manifest.identity == make(tmp_path / "old").manifest.identity
    reseal(bundle.path, "blessing.json", git_tree="f" * 40)
    refused(bundle.path, "its git_tree is")


def test_the_commit_of_the_data_is_bound_by_manifest_and_blessing(tmp_path: Path) -> None:
    lineage = replace(LINEAGE, data_source="lakefs://lending/loans/", data_commit="3f" * 32)
    bundle = make(tmp_path / "bundle", lineage=lineage)
    assert bundle.blessing is not None
    assert bundle.blessing.data_commit == bundle.manifest.data_commit == lineage.data_commit
    assert bundle.manifest.identity == make(tmp_path / "old").manifest.identity
    reseal(bundle.path, "blessing.json", data_commit="9b" * 32)
    refused(bundle.path, "its data_commit is")


def test_identity_is_of_what_answers_and_of_nothing_else(tmp_path: Path) -> None:
    first = make(tmp_path / "one")
    other = fill(tmp_path / "other")
    (other / "evidence" / "evaluation.json").write_text('{"rows": 11}')
    second = write(
        other,
        name="loans",
        lineage=Lineage("e" * 40, True, "f" * 64, "r" * 64),
        policy="q",
        run="run-2",
        blessed=True,
        created=99.0,
    )
    assert first.manifest.identity == second.manifest.identity
    assert first.manifest.evidence != second.manifest.evidence
    assert make(tmp_path / "three", model=b"another").manifest.identity != first.manifest.identity


@pytest.mark.parametrize(
    "file",
    [
        "manifest.json",
        "blessing.json",
        "signature.json",
        "model.onnx",
        "evidence/evaluation.json",
        "evidence/reference.whylogs",
    ],
)
def test_every_altered_byte_is_found(folder: Path, file: str) -> None:
    path = folder / file
    content = path.read_bytes()
    for place in range(len(content)):
        altered = bytearray(content)
        altered[place] ^= 1 << (place % 8)
        path.write_bytes(altered)
        with pytest.raises(BundleError):
            open_bundle(folder, blessed=True)
    path.write_bytes(content)
    open_bundle(folder, blessed=True)


@pytest.mark.parametrize("file", ["manifest.json", "blessing.json", "signature.json", "model.onnx"])
@pytest.mark.parametrize("keep", [0, 1, 40, -1])
def test_truncation_is_found(folder: Path, file: str, keep: int) -> None:
    path = folder / file
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, r"not a valid|altered")


@pytest.mark.parametrize("tail", [b" ", b"\n", b"\0", b"{}"])
def test_trailing_bytes_are_found(folder: Path, tail: bytes) -> None:
    for file in ("manifest.json", "blessing.json", "model.onnx"):
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content + tail)
        refused(folder, r"not a valid|altered")
        (folder / file).write_bytes(content)


@pytest.mark.parametrize("file", ["model.onnx", "signature.json", "evidence/evaluation.json", "manifest.json"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    refused(folder, f"{file} is missing")


def test_an_added_file_is_named(folder: Path) -> None:
    (folder / "evidence" / "manifest.json").write_text("{}")
    refused(folder, r"evidence/manifest\.json is not listed")


def test_a_file_renamed_within_the_bundle_is_refused(folder: Path) -> None:
    (folder / "evidence" / "evaluation.json").rename(folder / "evidence" / "Evaluation.json")
    refused(folder, r"is not listed|is missing")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "evidence/../../outside", "a\\b", ""])
def test_a_listed_name_that_leaves_the_folder_is_never_read(folder: Path, name: str) -> None:
    (folder.parent / "outside").write_text("secret")
    manifest = open_bundle(folder).manifest
    reseal(folder, "manifest.json", files={**manifest.files, name: "0" * 64})
    refused(folder, "is missing")


def test_a_link_is_refused_even_where_its_content_is_right(folder: Path) -> None:
    outside = folder.parent / "model.onnx"
    shutil.move(folder / "model.onnx", outside)
    (folder / "model.onnx").symlink_to(outside)
    refused(folder, "model.onnx is a link")


def test_a_linked_folder_is_refused(folder: Path) -> None:
    shutil.move(folder / "evidence", folder.parent / "evidence")
    (folder / "evidence").symlink_to(folder.parent / "evidence", target_is_directory=True)
    refused(folder, "evidence is a link")


@pytest.mark.parametrize("file", ["manifest.json", "blessing.json"])
def test_a_linked_manifest_or_blessing_is_refused(folder: Path, file: str) -> None:
    shutil.move(folder / file, folder.parent / file)
    (folder / file).symlink_to(folder.parent / file)
    refused(folder, "is a link")


def test_a_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "evidence" / "pipe")
    refused(folder, "no regular file")


def test_a_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "blessing.json").unlink()
    (folder / "blessing.json").mkdir()
    refused(folder, "cannot be read")


def test_the_blessing_of_another_bundle_is_refused(tmp_path: Path, folder: Path) -> None:
    other = make(tmp_path / "other", model=b"another graph").path
    shutil.copy(other / "blessing.json", folder / "blessing.json")
    refused(folder, "for another bundle: its identity")


def test_a_blessing_binds_commit_data_policy_and_evidence(tmp_path: Path) -> None:
    changes: list[tuple[str, object]] = [
        ("git_commit", "f" * 40),
        ("git_dirty", True),
        ("data_version", "0" * 64),
        ("policy", "0" * 64),
        ("evidence", "0" * 64),
    ]
    for field, value in changes:
        path = make(tmp_path / field).path
        reseal(path, "blessing.json", **{field: value})
        refused(path, f"its {field} is")


def test_a_resealed_manifest_must_agree_with_the_files(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"swapped graph")
    reseal(folder, "manifest.json", identity="0" * 64)
    refused(folder, "model.onnx was altered")


def test_a_version_that_is_not_the_identity_is_refused(folder: Path) -> None:
    reseal(folder, "manifest.json", version="000000000000")
    refused(folder, "do not agree")


def test_an_unblessed_bundle_opens_and_is_not_served(tmp_path: Path) -> None:
    path = make(tmp_path / "bundle", blessed=False).path
    assert open_bundle(path).blessing is None
    refused(path, "is not blessed")


def test_writing_again_without_a_blessing_takes_the_old_one_away(folder: Path) -> None:
    write(folder, name="loans", lineage=LINEAGE, policy="p", run="run-2", blessed=False, created=1.0)
    refused(folder, "is not blessed")


def test_another_format_is_named(folder: Path) -> None:
    value = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**value, "format": 2, "new": 1}))
    refused(folder, "bundle format 2")


@pytest.mark.parametrize("content", [b"[]", b"null", b"\xff\xfe", b'{"format": 1}', b'{"format": NaN}'])
def test_nonsense_in_the_manifest_is_a_bundle_error(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    refused(folder, "not a valid manifest|bundle format")


def test_a_bundle_needs_a_graph_and_a_signature(tmp_path: Path) -> None:
    path = fill(tmp_path / "bundle")
    (path / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"needs model\.onnx"):
        write(path, name="loans", lineage=LINEAGE, policy="p", run="r", blessed=True, created=0.0)
    assert not (path / "blessing.json").exists()


def test_a_link_is_not_packed(tmp_path: Path) -> None:
    path = fill(tmp_path / "bundle")
    (path / "evidence" / "more.json").symlink_to("/etc/hostname")
    with pytest.raises(BundleError, match="is a link"):
        write(path, name="loans", lineage=LINEAGE, policy="p", run="r", blessed=True, created=0.0)


def test_a_file_altered_after_opening_is_refused_when_read(folder: Path) -> None:
    bundle = open_bundle(folder, blessed=True)
    assert bundle.read("model.onnx") == GRAPH
    (folder / "model.onnx").write_bytes(b"swapped")
    with pytest.raises(BundleError, match="altered"):
        bundle.read("model.onnx")
    with pytest.raises(BundleError, match="no file"):
        bundle.read("../outside")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fill(tmp_path / "bundle")
    real = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        return real(Path("/dev/full") if self.name == "manifest.json" else self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match="No space left"):
        write(path, name="loans", lineage=LINEAGE, policy="p", run="r", blessed=True, created=0.0)


@pytest.mark.parametrize("name", ["manifest.json", "blessing.json", "signature.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_a_document_deeper_than_the_reader_goes_is_refused(name: str, text: str, tmp_path: Path) -> None:
    from tests.support import lending_bundle

    made = lending_bundle.make_bundle(tmp_path / "bundle")
    path = made.path / name
    path.chmod(0o600)
    path.write_text(text)
    with pytest.raises(BundleError):
        open_bundle(made.path, blessed=True)


def withhold(folder: Path) -> None:
    """Make a folder the copy that is published without values of rows."""
    (folder / WITHHELD).write_bytes(withheld_record(open_bundle(folder)))
    for name in ("evaluation.json", "reference.whylogs"):
        (folder / "evidence" / name).unlink()


def test_a_copy_without_values_of_rows_is_still_the_blessed_bundle(folder: Path) -> None:
    manifest = open_bundle(folder, blessed=True).manifest
    withhold(folder)
    copy = open_bundle(folder, blessed=True)
    assert copy.manifest == manifest
    assert copy.withheld == ("evidence/evaluation.json", "evidence/reference.whylogs")
    assert not copy.has("evidence/reference.whylogs")
    with pytest.raises(BundleError, match="published without"):
        copy.read("evidence/reference.whylogs")
    assert copy.has("model.onnx")


def test_a_record_of_what_is_withheld_excuses_nothing_else(folder: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", model=GRAPH + b"2")
    whole = withheld_record(open_bundle(folder))
    (folder / WITHHELD).write_bytes(whole)
    refused(folder, "evaluation.json is there, and withheld.json says that it is not")
    (folder / WITHHELD).write_bytes(withheld_record(other))
    refused(folder, f"names bundle {other.manifest.version}")
    (folder / WITHHELD).write_bytes(whole.replace(b"evaluation.json", b"evaluation.jsom"))
    refused(folder, "its checksum does not hold")
    for name in ("model.onnx", "evidence/verdicts.json", "evidence/unknown.json"):
        (folder / WITHHELD).write_bytes(whole)
        reseal(folder, WITHHELD, files=(name,))
        refused(folder, f"names {name}, which cannot be withheld")
    (folder / WITHHELD).unlink()
    withhold(folder)
    (folder / "model.onnx").unlink()
    refused(folder, "model.onnx is missing")
