"""A bundle is served on its engine or not at all; without engine.json its identity is as before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from mlflowkit.bundle import Bundle, Signature, TensorSpec, open_bundle, read_engine, write, write_engine
from mlflowkit.errors import BundleError, EngineError
from mlflowkit.graphs.candidates import Engine
from mlflowkit.graphs.cuda_device import detect_gpu
from mlflowkit.serving.inference.variants import load_variant
from mlflowkit.system.digests import digest_json
from mlflowkit.values import Lineage, Variant
from mlflowkit.wiring import ServingRuntime
from tests.support.onnx_graphs import FLOAT, save

SIGNATURE = Signature(
    task="regression",
    inputs=(TensorSpec(name="numeric", datatype="FP32", shape=(-1, 2), columns=("a", "b")),),
    outputs=(TensorSpec(name="prediction", datatype="FP32", shape=(-1,)),),
)


def make_bundle(path: Path, engine: Engine | None = None) -> Bundle:
    path.mkdir()
    node = onnx.helper.make_node("ReduceSum", ["numeric", "axes"], ["prediction"], keepdims=0)
    axes = {"axes": np.array([1], np.int64)}
    save(path / "model.onnx", [node], {"numeric": (FLOAT, ["rows", 2])}, {"prediction": FLOAT}, axes)
    (path / "signature.json").write_text(SIGNATURE.model_dump_json())
    if engine is not None:
        write_engine(path, engine)
    lineage = Lineage("c" * 40, False, "d" * 64, "r" * 64)
    return write(path, name="sums", lineage=lineage, policy="p" * 64, run="run-1", blessed=True, created=12.5)


def variant(bundle: Bundle) -> Variant:
    return Variant("champion", bundle.manifest.version, bundle.manifest.identity, str(bundle.path))


def test_the_default_engine_leaves_no_trace(tmp_path: Path) -> None:
    plain, default = make_bundle(tmp_path / "plain"), make_bundle(tmp_path / "default", Engine())
    assert not (default.path / "engine.json").exists()
    assert default.manifest.identity == plain.manifest.identity
    files = plain.manifest.files
    both = {name: files[name] for name in ("model.onnx", "signature.json")}
    assert plain.manifest.identity == digest_json(both), "as bundles of before were identified"
    assert plain.engine == Engine()


def test_the_engine_is_part_of_the_identity(tmp_path: Path) -> None:
    engines = [Engine(threads=2), Engine(graph_level="basic"), Engine(runtime="ort-cuda"), Engine(cuda_graph=True)]
    bundles = [make_bundle(tmp_path / str(index), engine) for index, engine in enumerate([Engine(), *engines])]
    assert len({bundle.manifest.identity for bundle in bundles}) == 5
    assert [open_bundle(bundle.path, blessed=True).engine for bundle in bundles] == [Engine(), *engines]


def test_an_engine_that_was_altered_added_or_taken_away_is_refused(tmp_path: Path) -> None:
    altered, added, gone = (make_bundle(tmp_path / name, Engine(threads=2)) for name in ("altered", "added", "gone"))
    (altered.path / "engine.json").write_text(json.dumps({"threads": 4}))
    (gone.path / "engine.json").unlink()
    plain = make_bundle(tmp_path / "plain")
    (plain.path / "engine.json").write_bytes((added.path / "engine.json").read_bytes())
    for bundle, words in ((altered, "was altered"), (gone, "is missing"), (plain, "is not listed")):
        with pytest.raises(BundleError, match=rf"engine\.json {words}"):
            open_bundle(bundle.path, blessed=True)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"runtime": "abacus"}', '{"threads": 0}', '{"thread": 1}'])
def test_what_is_no_engine_is_refused_and_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text(content)
    with pytest.raises(BundleError, match=r"engine\.json is not a valid engine"):
        read_engine(tmp_path)


def test_a_gateway_runs_the_engine_with_at_least_its_own_threads(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", Engine(threads=2, graph_level="basic"))
    for floor, threads in ((1, 2), (3, 3)):
        model = load_variant(variant(bundle), ServingRuntime(), floor)
        assert model.session.run({"numeric": np.ones((3, 2), np.float32)})["prediction"].tolist() == [2.0] * 3
        options = model.session._session.get_session_options()  # type: ignore[attr-defined]
        assert options.intra_op_num_threads == threads
        assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"


@pytest.mark.skipif(not isinstance(detect_gpu(), str), reason="this machine has a GPU")
@pytest.mark.parametrize("runtime", ["ort-cuda", "tensorrt", "tensorrt-rtx"])
def test_a_gateway_without_the_engine_does_not_serve_the_bundle_on_another(runtime: str, tmp_path: Path) -> None:
    engine = Engine.model_validate({"runtime": runtime})
    bundle = make_bundle(tmp_path / "bundle", engine)
    with pytest.raises(EngineError, match=f"cannot run on {runtime}") as caught:
        load_variant(variant(bundle), ServingRuntime(), 1)
    assert caught.value.hint
