"""Files that others may write: whatever was done to one, its reader answers with an error of ours."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mlflowkit import bundle
from mlflowkit.bundle import BLESSING, MANIFEST
from mlflowkit.errors import BundleError, EngineError, MlkitError
from mlflowkit.graphs import imported_graph, onnx_file
from mlflowkit.system.text import parse_json
from tests.support.columns_bundle import make_columns_bundle

DEEP = 100_000


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_columns_bundle(tmp_path_factory.mktemp("sound") / "bundle", ("age", "income")).path


@pytest.mark.parametrize("name", [MANIFEST, BLESSING, "signature.json", "engine.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"[" * DEEP,
        b'{"format": 1, "files": ' + b'{"a":' * DEEP,
        b"\xff\xfe",
        b"null",
        b"[1]",
        b'{"format": 1e400}',
        b'{"format": {"a": 1}}',
        b'{"files": {"\\ud800": "x"}}',
        b"",
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
    ids=["deep list", "deep object", "not UTF-8", "null", "list", "infinity", "object", "surrogate", "empty", "digits"],
)
def test_a_bundle_with_a_crafted_file_is_damaged_and_no_more(
    name: str, content: bytes, sound: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(sound, folder)
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError) as caught:
        bundle.open_bundle(folder)
    assert caught.value.hint


@given(place=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.booleans(), name=st.sampled_from([MANIFEST]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_bundle_with_a_changed_byte_is_damaged(
    place: int, value: int, cut: bool, name: str, sound: Path, tmp_path: Path
) -> None:
    original = (sound / name).read_bytes()
    place %= len(original)
    changed = original[:place] if cut else original[:place] + bytes([value]) + original[place + 1 :]
    if changed == original:
        return
    folder = tmp_path / f"{place}-{value}-{cut}"
    if not folder.exists():
        shutil.copytree(sound, folder)
    (folder / name).write_bytes(changed)
    with pytest.raises(BundleError):
        bundle.open_bundle(folder)


def graph(folder: Path, location: str = "") -> Path:
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [2, 2], np.ones(4, np.float32))
    if location:
        weights.ClearField("float_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
    nodes = [helper.make_node("MatMul", ["x", "weights"], ["y"], name="product")]
    sides = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2])] for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", *sides, [weights]))
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["w\0x", "\0", "a\0/../b", "x" * 5000, "..", "/etc/passwd", "a\\b"])
def test_a_location_of_weights_that_is_no_file_name_is_refused(location: str, tmp_path: Path) -> None:
    path = graph(tmp_path, location)
    for read in (onnx_file.load_checked, onnx_file.external_files, onnx_file.graph_digest, onnx_file.graph_files):
        with pytest.raises(EngineError):
            read(path)


@given(data=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_graph_with_changed_bytes_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(graph(tmp_path).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed.onnx"
    path.write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    with contextlib.suppress(MlkitError):
        model = onnx_file.load_checked(path)
        assert isinstance(model, onnx.ModelProto)
        imported_graph.read_interface(model)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_parse_json_reads_what_json_reads(value: object) -> None:
    text = json.dumps(value)
    assert json.dumps(parse_json(text)) == text


@given(st.binary(max_size=40))
def test_parse_json_raises_value_error_and_nothing_else(content: bytes) -> None:
    for text in (content, content * 10_000):
        with contextlib.suppress(ValueError):
            parse_json(text)
