"""Real bundles, small enough to be made in a test: a softmax over numbers with gaps and two one-hot encoded columns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlflowkit import bundle
from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.bundle import Signature, Tensor
from mlflowkit.service_state.records import Settings
from mlflowkit.serving.grpc.grpc_server import GrpcListener
from mlflowkit.serving.grpc.messages import SERVICE, messages
from mlflowkit.serving.http.gateway import Gateway
from mlflowkit.serving.http.http_server import Listener
from mlflowkit.serving.inference.gateway_metrics import Telemetry
from mlflowkit.serving.inference.variants import Versions, load_table
from mlflowkit.values import Lineage, RoutingTable, Variant

NUMERIC = ("age", "income", "debt")
CATEGORIES = {"term": ("36 months", "60 months"), "purpose": ("car", "home", "other")}
LABELS = ("bad", "good")
ROWS = [
    {"age": 41.0, "income": 52000.0, "debt": None, "term": "36 months", "purpose": "car"},
    {"age": 23.0, "income": 18000.0, "debt": 900.0, "term": "60 months", "purpose": None},
]


def graph(seed: int) -> onnx.ModelProto:
    """log1p of the numbers (so that a number below -1 has no finite answer), one-hot columns, softmax."""
    rng = np.random.default_rng(seed)
    width = len(NUMERIC) + sum(map(len, CATEGORIES.values()))
    weights = rng.normal(size=(width, 2)).astype(np.float32) * 0.2
    nodes = [
        helper.make_node("IsNaN", ["numeric"], ["gaps"]),
        helper.make_node("Where", ["gaps", "one", "numeric"], ["filled"]),
        helper.make_node("Add", ["filled", "one"], ["shifted"]),
        helper.make_node("Log", ["shifted"], ["numbers"]),
    ]
    parts = ["numbers"]
    constants = {"one": np.float32(1), "weights": weights, "classes": np.array(LABELS, dtype=object)}
    for place, (column, values) in enumerate(CATEGORIES.items()):
        constants[f"at_{column}"] = np.array([place], dtype=np.int64)
        nodes += [
            helper.make_node("Gather", ["categorical", f"at_{column}"], [f"{column}_cell"], axis=1),
            helper.make_node(
                "OneHotEncoder",
                [f"{column}_cell"],
                [f"{column}_cube"],
                domain="ai.onnx.ml",
                cats_strings=list(values),
                zeros=1,
            ),
            helper.make_node("Flatten", [f"{column}_cube"], [f"{column}_hot"]),
        ]
        parts.append(f"{column}_hot")
    nodes += [
        helper.make_node("Concat", parts, ["features"], axis=1),
        helper.make_node("MatMul", ["features", "weights"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["best"], axis=1, keepdims=0),
        helper.make_node("Gather", ["classes", "best"], ["label"]),
    ]
    built = helper.make_graph(
        nodes,
        "lending",
        [
            helper.make_tensor_value_info("numeric", TensorProto.FLOAT, [None, len(NUMERIC)]),
            helper.make_tensor_value_info("categorical", TensorProto.STRING, [None, len(CATEGORIES)]),
        ],
        [
            helper.make_tensor_value_info("label", TensorProto.STRING, [None]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model


SIGNATURE = Signature(
    task="classification",
    inputs=(
        Tensor(name="numeric", datatype="FP32", shape=(-1, len(NUMERIC)), columns=NUMERIC),
        Tensor(name="categorical", datatype="BYTES", shape=(-1, len(CATEGORIES)), columns=tuple(CATEGORIES)),
    ),
    outputs=(
        Tensor(name="label", datatype="BYTES", shape=(-1,)),
        Tensor(name="probabilities", datatype="FP32", shape=(-1, 2)),
    ),
    classes=LABELS,
)


def make_bundle(
    folder: Path, seed: int = 1, *, blessed: bool = True, rows: list[dict[str, Any]] | None = None
) -> bundle.Bundle:
    """Write a bundle of version ``seed`` into ``folder``."""
    (folder / "evidence").mkdir(parents=True)
    onnx.save(graph(seed), folder / "model.onnx")
    (folder / "signature.json").write_text(SIGNATURE.model_dump_json())
    reference = {
        "rows": 100,
        "columns": {
            name: {"type": "categorical", "unique": len(values), "frequent": [[value, 9] for value in values]}
            for name, values in CATEGORIES.items()
        },
    }
    (folder / "evidence" / "reference.json").write_text(json.dumps(reference))
    rows = ROWS if rows is None else rows
    (folder / "evidence" / "sample.json").write_text(json.dumps({"rows": rows, "outputs": expected(folder, rows)}))
    return bundle.write(
        folder,
        name="lending",
        lineage=Lineage("c0ffee", False, "data1", "recipe1"),
        policy="policy1",
        run="run1",
        blessed=blessed,
        created=0.0,
    )


def expected(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What ONNX Runtime alone answers for ``rows``."""
    numeric = np.array([[np.nan if row[c] is None else row[c] for c in NUMERIC] for row in rows], dtype=np.float32)
    texts = np.array([[row[c] or "" for c in CATEGORIES] for row in rows], dtype=object)
    answers = OnnxRuntime().load(folder / "model.onnx").run({"numeric": numeric, "categorical": texts})
    return {name: array.tolist() for name, array in answers.items()}


def table(epoch: int, made: bundle.Bundle, service: str = "lending") -> RoutingTable:
    variant = Variant("champion", made.manifest.version, made.manifest.identity, str(made.path))
    return RoutingTable(service, epoch, (variant,))


def wait_for(found: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What ``found`` returns, once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return value


class InProcess:
    """A gateway with its listener in this process, without Ray."""

    def __init__(self, settings: Settings) -> None:
        self.versions = Versions()
        self.gateway = Gateway(settings, self.versions, Telemetry(settings.service, "test"))
        self.listener = Listener(self.gateway, "127.0.0.1", 0, header_seconds=1.0)
        self.url = f"http://127.0.0.1:{self.listener.port}"
        self.client = httpx.Client(base_url=self.url, timeout=20)

    def swap(self, new: RoutingTable) -> None:
        self.versions.activate(load_table(new, OnnxRuntime(), 1))

    def close(self) -> None:
        self.client.close()
        self.listener.stop()
        self.gateway.close()


class Grpc:
    """The gRPC door of a gateway in this process, and a client for it that is made of nothing but messages."""

    def __init__(self, running: InProcess) -> None:
        self.listener = GrpcListener(running.gateway, "127.0.0.1", 0, running.listener.loop)
        self.address = f"127.0.0.1:{self.listener.port}"
        self.channel = grpc.insecure_channel(self.address)

    def ask(self, method: str, request: Any = None, *, metadata: Any = (), seconds: float = 20.0) -> Any:
        """The reply. Raises grpc.RpcError. ``request`` may be bytes, sent as they are."""
        kind = {"ModelStreamInfer": "ModelInfer"}.get(method, method)
        request = getattr(messages(), f"{kind}Request")() if request is None else request
        call = self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda value: value if isinstance(value, bytes) else value.SerializeToString(),
            response_deserializer=getattr(messages(), f"{method}Response").FromString,
        )
        reply, found = call.with_call(request, metadata=metadata, timeout=seconds)
        self.trailer = dict(found.trailing_metadata())
        return reply

    def refused(self, method: str, request: Any = None, **more: Any) -> tuple[str, str]:
        """The status and the sentence of a call that is refused."""
        with pytest.raises(grpc.RpcError) as caught:
            self.ask(method, request, **more)
        return caught.value.code().name, caught.value.details()

    def close(self) -> None:
        self.channel.close()
        self.listener.stop(1.0)

    def __enter__(self) -> Grpc:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "one", 1)


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "two", 2)


@pytest.fixture
def start() -> Iterator[Callable[..., InProcess]]:
    """Starts gateways in this process and stops them at the end of the test."""
    running: list[InProcess] = []

    def make(**settings: Any) -> InProcess:
        running.append(InProcess(Settings("lending", **settings)))
        return running[-1]

    yield make
    for one in running:
        one.close()


@pytest.fixture(scope="module")
def served(first: bundle.Bundle) -> Iterator[InProcess]:
    """A gateway that answers with the first bundle."""
    running = InProcess(Settings("lending", max_body_bytes=1 << 20, timeout_seconds=2.0))
    running.swap(table(1, first))
    yield running
    running.close()
