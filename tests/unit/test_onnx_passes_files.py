"""ONNX files are loaded whole or refused, and no graph reaches out of its own folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mlflowkit.adapters import onnx_passes
from mlflowkit.adapters.onnx_passes import OnnxPasses
from mlflowkit.adapters.onnx_passes.calibration import split_requests
from mlflowkit.adapters.onnx_passes.float16 import rewrite as to_float16
from mlflowkit.adapters.onnx_passes.typed_graph import topological_order
from mlflowkit.errors import EngineError
from mlflowkit.graphs.candidates import Float16, Int8, WeightOnly
from mlflowkit.graphs.onnx_file import external_files, graph_digest, iter_nodes, load_checked, unsupported_nodes, write
from mlflowkit.system.own_modules import own_modules
from tests.support.onnx_graphs import foreign, mlp, outside, save, strings
from tests.support.pass_graphs import answers

pytestmark = pytest.mark.heavy

FLOAT = TensorProto.FLOAT
SAME_FOLDER = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def external(path: Path, seed: int = 0) -> Path:
    """An MLP with its large weights beside it; those of its head differ by ``seed``."""
    model = onnx.load(mlp(path))
    head = next(tensor for tensor in model.graph.initializer if tensor.name == "v")
    head.raw_data = np.random.default_rng(seed).normal(size=(128, 128)).astype(np.float32).tobytes()
    write(model, path, max_bytes=0)
    return path


def test_a_written_model_with_external_data_is_the_same_model(tmp_path: Path) -> None:
    parted = external(tmp_path / "parted.onnx")
    onnx.save(onnx.load(parted), single := tmp_path / "whole.onnx")
    assert external_files(single) == ()
    assert external_files(parted) == (tmp_path / "parted.onnx.data",)
    assert parted.stat().st_size < 2000 < (tmp_path / "parted.onnx.data").stat().st_size
    rows = {"x": np.ones((3, 8), np.float32)}
    assert np.array_equal(answers(parted, rows)["y"], answers(single, rows)["y"])
    loaded = {t.name: t for t in load_checked(parted).graph.initializer}
    for tensor in load_checked(single).graph.initializer:
        assert loaded[tensor.name].raw_data == tensor.raw_data
    assert load_checked(parted, weights=False).graph.initializer[2].data_location == TensorProto.EXTERNAL
    assert sorted(file.name for file in tmp_path.iterdir()) == ["parted.onnx", "parted.onnx.data", "whole.onnx"]


def test_passes_read_weights_that_lie_beside_the_graph(tmp_path: Path) -> None:
    rows = {"x": np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)}
    parted = external(tmp_path / "parted.onnx")
    onnx.save(onnx.load(parted), single := tmp_path / "whole.onnx")
    for passes in ([], [Float16()], [Int8()], [WeightOnly(smallest=64)]):
        for model in (single, parted):
            assert OnnxPasses().apply(passes, model, tmp_path / f"out of {model.name}", rows) == ""
        contents = [(tmp_path / f"out of {model.name}").read_bytes() for model in (single, parted)]
        assert contents[0] == contents[1]


def test_a_digest_tells_weights_apart_that_lie_beside_the_graph(tmp_path: Path) -> None:
    """onnxruntime#6455: a cache that looked at the graph's own file gave a model the engine of another."""
    for name in "ab":
        (tmp_path / name).mkdir()
        external(tmp_path / name / "model.onnx", seed=ord(name))
    first, second = (tmp_path / name / "model.onnx" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert graph_digest(first) != graph_digest(second)
    assert graph_digest(first) == graph_digest(external(tmp_path / "model.onnx", seed=ord("a")).rename(first))


OUTSIDE = [
    "/etc/hostname",
    "../weights",
    "below/../../weights",
    "link",
    "links/weights",
    "",
    "..\\weights",
    "a\0b",
    "\0",
]


@pytest.mark.parametrize("location", OUTSIDE)
@pytest.mark.parametrize("ask", [load_checked, graph_digest, external_files], ids=lambda ask: ask.__name__)
def test_weights_outside_the_folder_are_refused(location: str, ask: Callable[[Path], object], tmp_path: Path) -> None:
    """The file is there and long enough: what is wrong is where it is. It is a pipe, so that reading it would hang."""
    os.mkfifo(tmp_path / "weights")
    home = tmp_path / "model"
    (home / "below").mkdir(parents=True)
    (home / "link").symlink_to(tmp_path / "weights")
    (home / "links").symlink_to(tmp_path)
    model = outside(home / "model.onnx", location)
    with pytest.raises(EngineError, match=r"tensor w points at .* outside the model's folder") as caught:
        ask(model)
    assert caught.value.hint
    with pytest.raises(EngineError, match="outside the model's folder"):
        OnnxPasses().apply([Float16()], model, tmp_path / "out.onnx", {})
    assert not (tmp_path / "out.onnx").exists()


PARTS = st.sampled_from(["..", ".", "a", "b", "/", "//", "etc"])


@SAME_FOLDER
@given(location=st.lists(PARTS, min_size=1, max_size=6).map("/".join))
def test_no_location_reaches_out(location: str, tmp_path: Path) -> None:
    """Whatever the location is made of, an answer names files below the folder only."""
    home = tmp_path / "home"
    (home / "a" / "b").mkdir(parents=True, exist_ok=True)
    for place in (home / "b", home / "a" / "a", home / "a" / "b" / "a", tmp_path / "a", tmp_path / "b"):
        place.write_bytes(bytes(32))
    try:
        files = external_files(outside(home / "model.onnx", location))
    except EngineError:
        return
    assert files
    assert all(file.resolve().is_relative_to(home.resolve()) for file in files)


@pytest.mark.parametrize(("content", "message"), [(None, "is not beside it"), (bytes(31), "too short for w")])
def test_weights_that_are_missing_or_cut_off(content: bytes | None, message: str, tmp_path: Path) -> None:
    model = outside(tmp_path / "model.onnx", "weights")
    if content is not None:
        (tmp_path / "weights").write_bytes(content)
    for ask in (load_checked, graph_digest):
        with pytest.raises(EngineError, match=message):
            ask(model)
    (tmp_path / "weights").write_bytes(bytes(32))
    assert load_checked(model).graph.initializer[0].raw_data == bytes(32)


@SAME_FOLDER
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_cut_off_file_is_refused_wherever_it_is_cut(cut: float, tmp_path: Path) -> None:
    content = strings(tmp_path / "whole.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: int(cut * len(content))])
    with pytest.raises(EngineError, match="cut off or no ONNX file"):
        load_checked(tmp_path / "cut.onnx")


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"name: mnist\n", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match="cut off or no ONNX file"):
        OnnxPasses().apply([], path, tmp_path / "out.onnx", {})


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be read: No such file"):
        load_checked(tmp_path / "absent.onnx")
    with pytest.raises(EngineError, match="cannot be read: Is a directory"):
        load_checked(tmp_path)


def test_operators_that_onnx_does_not_have_are_named_with_their_nodes(tmp_path: Path) -> None:
    swirls = [helper.make_node("Swirl", ["x"], ["a"], name="first"), helper.make_node("Twist", ["a"], ["y"])]
    path = save(tmp_path / "model.onnx", swirls, {"x": (FLOAT, ["rows", 2])}, {"y": FLOAT})
    with pytest.raises(EngineError, match=r"Swirl \(node first\); Twist \(node without a name, giving y\)"):
        load_checked(path)
    assert load_checked(foreign(tmp_path / "foreign.onnx")), "a vendor's domain is the runtime's to know"


def test_what_a_runtime_lacks_is_found_in_inner_graphs_too(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Erf", ["x"], ["z"], name="inside")],
        "inner",
        [],
        [helper.make_tensor_value_info("z", FLOAT, None)],
    )
    choice = helper.make_node("If", ["flag"], ["y"], name="choice", then_branch=inner, else_branch=inner)
    path = save(tmp_path / "if.onnx", [choice], {"x": (FLOAT, ["n"]), "flag": (TensorProto.BOOL, [])}, {"y": FLOAT})
    model = load_checked(path)
    assert [node.name for node in iter_nodes(model)] == ["choice", "inside", "inside"]
    assert unsupported_nodes(model, lambda domain, name: name != "Erf") == ["Erf (node inside)", "Erf (node inside)"]
    assert OnnxPasses().apply([], path, tmp_path / "out.onnx", {}) == ""


@given(count=st.integers(1, 200), fixed=st.integers(0, 50))
def test_requests_are_the_rows_in_their_order(count: int, fixed: int) -> None:
    rows = {"a": np.arange(count), "b": -np.arange(count)}
    cut = list(split_requests(rows, fixed))
    if fixed:
        assert all(len(part["a"]) == fixed for part in cut)
        assert len(cut) == count // fixed
    joined = np.concatenate([part["a"] for part in cut]) if cut else np.arange(0)
    assert np.array_equal(joined, np.arange(count if not fixed else count // fixed * fixed))
    assert all(np.array_equal(part["a"], -part["b"]) for part in cut)


@given(data=st.data(), count=st.integers(1, 30))
def test_nodes_in_order_come_after_what_they_read(data: st.DataObject, count: int) -> None:
    nodes = [
        helper.make_node("Sum", [f"t{other}" for other in range(index) if data.draw(st.booleans())], [f"t{index}"])
        for index in range(count)
    ]
    shuffled = data.draw(st.permutations(nodes))
    ordered = topological_order(shuffled)
    assert sorted(node.output[0] for node in ordered) == sorted(node.output[0] for node in nodes)
    defined: set[str] = set()
    for node in ordered:
        assert defined.issuperset(node.input)
        defined.update(node.output)
    assert [node.output[0] for node in topological_order(shuffled)] == [node.output[0] for node in ordered]


@SAME_FOLDER
@given(scale=st.floats(1e-12, 6e4))
def test_fp16_rounds_weights_to_the_nearest_and_none_to_nothing(scale: float, tmp_path: Path) -> None:
    weights = (np.array([[1, -0.5], [0.25, 0]], np.float32) * np.float32(scale)).astype(np.float32)
    path = save(
        tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (FLOAT, ["rows", 2])}, {"y": FLOAT},
        {"w": weights},
    )  # fmt: skip
    model = to_float16(Float16(), load_checked(path), {})
    (tensor,) = [t for t in model.graph.initializer if t.name == "w/float16"]
    rounded = onnx.numpy_helper.to_array(tensor)
    assert np.array_equal(rounded != 0, weights != 0)
    assert np.array_equal(np.sign(rounded), np.sign(weights))
    smallest = np.finfo(np.float16).smallest_subnormal
    assert (np.abs(rounded.astype(np.float64) - weights) <= np.maximum(np.abs(weights) * 2**-11, smallest)).all()


def test_code_digests_cover_the_module_of_every_pass() -> None:
    """Each is imported by a statement, which `own_modules` reads: a changed pass makes new graphs."""
    folder = Path(onnx_passes.__file__).parent
    names = {f"adapters.onnx_passes.{file.stem}" for file in folder.glob("*.py") if file.stem != "__init__"}
    assert names <= set(own_modules(["adapters.onnx_passes"]))
