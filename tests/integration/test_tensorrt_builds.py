"""Engines are really built, ahead of time and without a GPU; the store gives a key nothing that is not its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

from mlflowkit.adapters.tensorrt import RowCounts, TensorRTEngines, library
from mlflowkit.adapters.tensorrt.session import TensorRTSession
from mlflowkit.errors import EngineError, MlkitError, StoreError, UsageError
from mlflowkit.graphs.cuda_device import detect_gpu
from mlflowkit.graphs.engine_store import EngineStore
from tests.support.file_limit import failing_writes
from tests.support.onnx_graphs import foreign, mlp, outside, quantised_mlp, save, strings
from tests.support.warm_commands import warm_command

RTX = "tensorrt-rtx"
SMALL = RowCounts(1, 8, 32)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def build(model: Path, store: Path, target: str = "89", rows: RowCounts = SMALL) -> Path:
    return TensorRTEngines(rows).build(model, RTX, target, store)[0]


def refused(model: Path, store: Path, words: str, kind: type[MlkitError] = EngineError, **more: object) -> MlkitError:
    with pytest.raises(kind, match=words) as caught:
        build(model, store, **more)  # type: ignore[arg-type]
    assert caught.value.hint
    return caught.value


def test_a_graphs_precision_is_the_engines(store: Path, tmp_path: Path) -> None:
    """Weights take 4, 2 and 1 bytes in the plan: the builder keeps the types that the graph states."""
    size = {
        name: build(model, store).stat().st_size
        for name, model in {
            "fp32": mlp(tmp_path / "fp32.onnx", width=512),
            "fp16": mlp(tmp_path / "fp16.onnx", width=512, half=True),
            "float": _product(tmp_path / "float.onnx"),
            "int8": quantised_mlp(tmp_path / "int8.onnx", width=4096),
        }.items()
    }
    assert 512 * 512 * 4 < size["fp32"] < 512 * 512 * 4 + 200_000
    assert 512 * 512 * 2 < size["fp16"] < 512 * 512 * 2 + 200_000
    assert size["float"] > 128 * 4096 * 4
    assert 128 * 4096 < size["int8"] < 128 * 4096 + 200_000


def _product(path: Path) -> Path:
    """The product of `quantised_mlp` in float."""
    weights = np.random.default_rng(0).normal(size=(128, 4096)).astype(np.float32)
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    return save(path, [node], {"x": (onnx.TensorProto.FLOAT, ["rows", 128])}, {"y": 1}, {"w": weights})


def test_an_engine_is_built_once_for_each_thing_that_it_depends_on(store: Path, tmp_path: Path) -> None:
    model = mlp(tmp_path / "model.onnx")
    first = build(model, store)
    built_at = first.stat().st_mtime_ns
    assert TensorRTEngines(SMALL).build(model, RTX, "89", store) == (first, False)
    assert first.stat().st_mtime_ns == built_at, "taken, not built again"
    others = {build(model, store, target="120"), build(model, store, rows=RowCounts(1, 8, 64))}
    assert len(others | {first}) == 3
    keys = [entry.key for entry in EngineStore(store).entries()]
    assert sorted(key.target for key in keys if key) == ["120", "89", "89"]
    assert all(key.shapes["x"][0] == (1, 8) for key in keys if key)


def test_a_model_of_the_same_architecture_never_gets_anothers_engine(store: Path, tmp_path: Path) -> None:
    """What went wrong in onnxruntime#6455: same operators, same shapes, other weights."""
    first_model, second_model = (mlp(tmp_path / f"{seed}.onnx", seed=seed) for seed in (1, 2))
    first, second = build(first_model, store), build(second_model, store)
    assert first != second
    assert first.read_bytes() != second.read_bytes()


def test_weights_beside_the_graph_are_part_of_the_key(store: Path, tmp_path: Path) -> None:
    """Two graph files that are equal to the byte; only the files with their weights differ."""
    plans = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        model = onnx.load(mlp(tmp_path / "inside.onnx", seed=seed))
        onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
        plans.append(build(folder / "model.onnx", store))
    graphs = [(tmp_path / seed / "model.onnx").read_bytes() for seed in ("1", "2")]
    assert graphs[0] == graphs[1]
    assert plans[0] != plans[1]
    assert plans[0].read_bytes() != plans[1].read_bytes()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda plan: plan.write_bytes(plan.read_bytes()[:-100]), r"engine\.plan was cut short"),
        (lambda plan: plan.write_bytes(plan.read_bytes()[:-1] + b"\xff"), r"engine\.plan was altered"),
        (lambda plan: plan.write_bytes(plan.read_bytes() + b"\0"), r"engine\.plan has grown"),
        (lambda plan: plan.unlink(), r"engine\.plan cannot be read"),
        (lambda plan: (plan.parent / "key.json").write_text("{"), r"key\.json is not the key of an engine"),
        (lambda plan: (plan.parent / "key.json").unlink(), r"key\.json is not the key of an engine"),
    ],
)
def test_a_damaged_engine_is_refused_and_named(damage: object, words: str, store: Path, tmp_path: Path) -> None:
    model = mlp(tmp_path / "model.onnx")
    plan = build(model, store)
    damage(plan)  # type: ignore[operator]
    error = refused(model, store, words)
    assert str(plan.parent) in error.hint
    (entry,) = EngineStore(store).entries()
    assert entry.fault


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("target", "86", "target is 86, not 89"),
        ("libraries", {"tensorrt_rtx": "1.0"}, "libraries is tensorrt_rtx 1.0, not tensorrt_rtx 1"),
        ("graph", "f" * 64, "graph is ffffffffffff, not "),
    ],
)
def test_an_engine_of_another_gpu_library_or_model_is_refused(
    field: str, value: object, words: str, store: Path, tmp_path: Path
) -> None:
    """A folder that was copied over another's: its own key says what it was built for."""
    model = mlp(tmp_path / "model.onnx")
    file = build(model, store).parent / "key.json"
    about = json.loads(file.read_bytes())
    about["key"][field] = value
    file.write_text(json.dumps(about))
    refused(model, store, f"was built for something else: its {words}")


def test_builders_in_several_processes_build_once(store: Path, tmp_path: Path) -> None:
    model = mlp(tmp_path / "model.onnx")
    command = [
        *warm_command("mlflowkit.cli"),
        "engines",
        "build",
        str(model),
        "--target",
        "89",
        "--json",
        "--store",
        str(store),
    ]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    replies = [json.loads(process.communicate(timeout=60)[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len({each["engines"][0]["path"] for each in replies}) == 1
    assert sum(each["engines"][0]["built"] for each in replies) == 1
    assert [entry.fault for entry in EngineStore(store).entries()] == [""]


def test_operators_that_it_lacks_are_named_with_their_nodes(store: Path, tmp_path: Path) -> None:
    error = refused(foreign(tmp_path / "model.onnx"), store, r"Swirl \(node swirl_1\), Twist \(node twist_2\)")
    assert "ort-" in error.hint
    det = onnx.helper.make_node("Det", ["x"], ["y"], name="determinant")
    graph = save(tmp_path / "det.onnx", [det], {"x": (onnx.TensorProto.FLOAT, [1, 4, 4])}, {"y": 1})
    refused(graph, store, r"Det \(node determinant\)")
    assert not list(EngineStore(store).entries())


def test_a_graph_over_strings_is_refused_with_the_operators_that_take_them(store: Path, tmp_path: Path) -> None:
    words = r"inputs of strings \(home\) and the operators ai\.onnx\.ml\.LabelEncoder \(node encode\)"
    refused(strings(tmp_path / "model.onnx"), store, words)


def test_a_dynamic_dimension_needs_a_range(store: Path, tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["ids"], ["y"])
    model = save(tmp_path / "model.onnx", [node], {"ids": (onnx.TensorProto.FLOAT, ["rows", "tokens"])}, {"y": 1})
    error = refused(model, store, r"dimension 1 \(tokens\) of input ids is dynamic, and there is no range for it")
    option = error.hint.rpartition("--shape ids=")[2]
    shapes = [tuple(int(size) for size in shape.split("x")) for shape in option.split(",")]
    engines = TensorRTEngines(shapes={"ids": (shapes[0], shapes[1], shapes[2])})
    assert engines.build(model, RTX, "89", store)[1], "what the hint says works"


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"y": ((1, 8), (1, 8), (1, 8))}, "no input 'y'"),
        ({"x": ((1, 8), (8, 9), (32, 8))}, "input x is rowsx8, not 8x9"),
        ({"x": ((1, 8, 1), (8, 8, 1), (32, 8, 1))}, "input x is rowsx8, not 1x8x1"),
        ({"x": ((4, 8), (2, 8), (32, 8))}, "do not grow"),
    ],
)
def test_shapes_that_are_not_the_graphs_are_refused(shapes: dict, words: str, store: Path, tmp_path: Path) -> None:
    model = mlp(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=words):
        TensorRTEngines(shapes=shapes).build(model, RTX, "89", store)


def test_fixed_rows_need_no_profile(store: Path, tmp_path: Path) -> None:
    build(mlp(tmp_path / "model.onnx", rows=4), store)
    (entry,) = EngineStore(store).entries()
    assert entry.key is not None
    assert entry.key.shapes == {"x": ((4, 8), (4, 8), (4, 8))}


def test_what_cannot_be_built_for_is_said(store: Path, tmp_path: Path) -> None:
    model = mlp(tmp_path / "model.onnx")
    assert "89" in refused(model, store, "compute capability 42", UsageError, target="42").hint
    with pytest.raises(UsageError, match="least, usual and most"):
        RowCounts.of(8, 4)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname"])
def test_weights_outside_the_models_folder_are_refused(location: str, store: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    (tmp_path / "model").mkdir()
    refused(outside(tmp_path / "model" / "model.onnx", location), store, "outside the model's folder")


def test_a_graph_that_was_cut_short_is_refused(store: Path, tmp_path: Path) -> None:
    model = mlp(tmp_path / "model.onnx")
    model.write_bytes(model.read_bytes()[:-200])
    refused(model, store, "cut off")


def test_a_full_disk_leaves_nothing_behind(store: Path, tmp_path: Path) -> None:
    model = mlp(tmp_path / "model.onnx")
    with failing_writes():
        error = refused(model, store, "cannot be written", kind=StoreError)
    assert "--store" in error.hint
    assert not [path for path in store.iterdir() if path.is_dir()]
    assert build(model, store).exists()


@pytest.mark.skipif(not isinstance(detect_gpu(), str), reason="this machine has a GPU")
@pytest.mark.parametrize("cut", [0, 100])
def test_what_the_library_refuses_to_run_is_an_engine_error(cut: int, store: Path, tmp_path: Path) -> None:
    """Here no engine can run; the library says so itself, as it does for one of another GPU or version."""
    model = mlp(tmp_path / "model.onnx")
    plan = build(model, store).read_bytes()
    with pytest.raises(EngineError, match=r"refuses the engine of model\.onnx: .*(Cuda|Serialization)") as caught:
        TensorRTSession(library.load(RTX), plan[: len(plan) - cut], model, {"x": ((1, 8), (8, 8), (32, 8))})
    assert "build it again" in caught.value.hint


def test_the_command_lists_what_it_built(tmp_path: Path) -> None:
    model = mlp(tmp_path / "model.onnx")
    options = ["--store", str(tmp_path / "store"), "--json"]
    targets = ["--target", "89", "--target", "120", "--rows", "1,8,32"]
    built = json.loads(
        subprocess.check_output(
            [*warm_command("mlflowkit.cli"), "engines", "build", str(model), *targets, *options], text=True
        )
    )
    assert [row["target"] for row in built["engines"]] == ["89", "120"]
    listed = json.loads(
        subprocess.check_output([*warm_command("mlflowkit.cli"), "engines", "list", *options], text=True)
    )
    assert {row["path"] for row in listed["engines"]} == {row["path"] for row in built["engines"]}
    assert {row["key"]["target"] for row in listed["engines"]} == {"89", "120"}
    failed = subprocess.run(
        [*warm_command("mlflowkit.cli"), "engines", "build", str(model), "--target", "42", *options],
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 2
    assert "compute capability 42" in json.loads(failed.stdout)["error"]["message"]
    damaged = Path(built["engines"][0]["path"])
    damaged.write_bytes(damaged.read_bytes()[:-1])
    listed = subprocess.run(
        [*warm_command("mlflowkit.cli"), "engines", "list", *options], capture_output=True, text=True
    )
    assert listed.returncode == 3, "a damaged engine is not passed over"
    assert [bool(row["fault"]) for row in json.loads(listed.stdout)["engines"]].count(True) == 1
