"""The protocol's real clients, unchanged, ask a real gateway: tritonclient, the KServe SDK, `mlserver infer`; and
schemathesis drives it by its OpenAPI document. Each lives in an environment of its own (benchmarks/clients.py)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.clients import CACHE
from mlflowkit.bundle import Bundle
from mlflowkit.service_state.records import GatewaySettings
from tests.support.gateways import Grpc, InProcess
from tests.support.lending_bundle import ROWS, expected, make_bundle, table

HERE = Path(__file__).parent / "clients"
ROOT = Path(__file__).parents[2]


def tool(environment: str, name: str) -> str:
    """A program of an environment; the test is skipped where there is no such environment."""
    if not (CACHE / environment / "complete").exists():
        pytest.skip(f"no environment for it: python -m benchmarks.clients {environment}")
    return str(CACHE / environment / "bin" / name)


def told(*command: str, **more: Any) -> Any:
    """What a program printed, as JSON."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **more)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("clients") / "one", 1)


@pytest.fixture(scope="module")
def gateway(bundle: Bundle) -> Iterator[tuple[InProcess, Grpc]]:
    running = InProcess(GatewaySettings("lending"))
    running.swap(table(1, bundle))
    with Grpc(running) as grpc:
        yield running, grpc
    running.close()


@pytest.fixture(scope="module")
def truth(bundle: Bundle) -> dict[str, Any]:
    return expected(bundle.path, ROWS)


@pytest.fixture(scope="module")
def truth_without_gaps(bundle: Bundle) -> dict[str, Any]:
    """JSON has no NaN, so those clients send a 0 in its place."""
    return expected(bundle.path, [{**ROWS[0], "debt": 0.0}, ROWS[1]])


@pytest.mark.parametrize("door", ["http", "grpc"])
def test_tritonclient(
    gateway: tuple[InProcess, Grpc],
    bundle: Bundle,
    truth: dict[str, Any],
    truth_without_gaps: dict[str, Any],
    door: str,
    triton: dict[str, Any],
) -> None:
    found, version = triton[door], bundle.manifest.version
    np.testing.assert_allclose(found["probabilities"], truth["probabilities"], rtol=1e-6)
    assert found["label"] == truth["label"]
    assert (found["binary"], found["id"], found["others"]) == (True, "t1", True)
    assert found["chosen"] == found["probabilities"]
    assert found["live"] == [True, True, True]
    assert found["server"]["extensions"] == [
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "statistics",
    ]
    assert [tensor["name"] for tensor in found["model"]["inputs"]] == ["numeric", "categorical"]
    config = found["config"] if door == "http" else found["config"]["config"]
    assert (config["name"], config["platform"]) == ("lending", "onnx_onnxruntime")
    assert [(tensor["name"], tensor["data_type"]) for tensor in config["input"]] == [
        ("numeric", "TYPE_FP32"), ("categorical", "TYPE_STRING"),
    ]  # fmt: skip
    best = [max(range(2), key=row.__getitem__) for row in truth["probabilities"]]
    labels = [
        f"{row[place]:f}:{place}:{label}"
        for row, place, label in zip(truth["probabilities"], best, truth["label"], strict=True)
    ]
    assert found["classes"] == [[label] for label in labels]
    index = found["index"] if door == "http" else found["index"]["models"]
    assert index == [{"name": "lending", "version": version, "state": "READY", "reason": "champion"}]
    (statistics,) = found["statistics"]["model_stats"]
    assert (statistics["name"], statistics["version"]) == ("lending", version)
    assert int(statistics["inference_count"]) >= 2 * int(statistics["execution_count"]) > 0
    for refused, code, words in (
        ("load", ("403", "StatusCode.PERMISSION_DENIED"), "governed by rollouts"),
        ("unload", ("403", "StatusCode.PERMISSION_DENIED"), "governed by rollouts"),
        ("unknown", ("404", "StatusCode.NOT_FOUND"), "this service has lending"),
        ("wrong", ("400", "StatusCode.INVALID_ARGUMENT"), "tensor categorical is missing"),
    ):
        assert found[refused][0] in code
        assert words in found[refused][1]
    if door == "http":
        np.testing.assert_allclose(found["json"], truth_without_gaps["probabilities"], rtol=1e-5)
    else:
        assert found["later"] is True


@pytest.fixture(scope="module")
def triton(gateway: tuple[InProcess, Grpc], bundle: Bundle) -> Any:
    python = tool("clients", "python")
    running, grpc = gateway
    http = running.url.removeprefix("http://")
    return told(python, str(HERE / "triton.py"), http, grpc.address, bundle.manifest.version)


def test_kserve_sdk(gateway: tuple[InProcess, Grpc], truth: dict[str, Any], truth_without_gaps: dict[str, Any]) -> None:
    running, grpc = gateway
    found = told(tool("clients", "python"), str(HERE / "kserve_sdk.py"), running.url, grpc.address)
    assert found["ready"] == [True] * 6
    for road, right in (("rest", truth), ("grpc", truth), ("json", truth_without_gaps), ("typed", truth_without_gaps)):
        assert found[road]["id"] == "k1"
        assert found[road]["label"] == right["label"]
        np.testing.assert_allclose(found[road]["probabilities"], right["probabilities"], rtol=1e-5)


def test_mlserver_infer(
    gateway: tuple[InProcess, Grpc], bundle: Bundle, truth_without_gaps: dict[str, Any], tmp_path: Path
) -> None:
    mlserver = tool("mlserver", "mlserver")
    asked = {
        "inputs": [
            {"name": "numeric", "shape": [2, 3], "datatype": "FP32", "data": [41, 52000, 0, 23, 18000, 900]},
            {
                "name": "categorical", "shape": [2, 2], "datatype": "BYTES",
                "data": ["36 months", "car", "60 months", ""],
            },
        ]
    }  # fmt: skip
    (tmp_path / "in").write_text(f"{json.dumps(asked)}\n" * 3)
    address = gateway[0].url.removeprefix("http://")
    places = ("--input-data-path", str(tmp_path / "in"), "--output-data-path", str(tmp_path / "out"))
    command = (mlserver, "infer", "--url", address, "--model-name", "lending", "--binary-data", *places)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    replies = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert len(replies) == 3
    for reply in replies:
        assert reply["model_version"] == bundle.manifest.version
        outputs = {output["name"]: output for output in reply["outputs"]}
        assert outputs["label"]["data"] == truth_without_gaps["label"]
        found = np.reshape(outputs["probabilities"]["data"], (2, 2))
        np.testing.assert_allclose(found, truth_without_gaps["probabilities"], rtol=1e-5)


def test_the_descriptors_are_those_of_the_proto(tmp_path: Path) -> None:
    python = tool("clients", "python")
    folder = ROOT / "mlflowkit" / "serving" / "grpc"
    made = tmp_path / "made.binpb"
    command = (python, "-m", "grpc_tools.protoc", f"-I{folder}", f"--descriptor_set_out={made}", "open_inference.proto")
    subprocess.run(command, check=True, timeout=60)
    assert made.read_bytes() == (folder / "open_inference.binpb").read_bytes()


def test_schemathesis_finds_no_answer_that_the_document_does_not_have(
    gateway: tuple[InProcess, Grpc], tmp_path: Path
) -> None:
    schemathesis = tool("schemathesis", "schemathesis")
    command = (
        schemathesis, "--config-file", str(HERE / "schemathesis.toml"), "run", f"{gateway[0].url}/openapi.json",
        "--max-examples", "25", "--seed", "1", "--no-color", "--checks", "all", "--phases", "coverage,fuzzing",
        "--request-timeout", "20",
    )  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
