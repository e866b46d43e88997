"""The gRPC door over the wire: the same answers as HTTP's, refusals as status codes, no client that stays for ever."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from mlflowkit.bundle import Bundle
from mlflowkit.serving.auth import Keyring, make_key
from mlflowkit.serving.grpc.grpc_server import GrpcServer
from mlflowkit.serving.grpc.message_codec import SERVICE, messages
from mlflowkit.serving.protocol.binary_tensors import encode
from mlflowkit.values import Affinity, RoutingTable, Variant
from tests.support.gateways import Grpc, InProcess
from tests.support.lending_bundle import CATEGORIES, NUMERIC, ROWS, expected, table


@pytest.fixture(scope="module")
def door(served: InProcess) -> Iterator[Grpc]:
    with Grpc(served) as found:
        yield found


def request(rows: list[dict[str, Any]] = ROWS, **more: Any) -> Any:
    numeric = np.array([[np.nan if row[c] is None else row[c] for c in NUMERIC] for row in rows], dtype=np.float32)
    texts = np.array([[row[c] or "" for c in CATEGORIES] for row in rows], dtype=object)
    asked = messages().ModelInferRequest(model_name="lending", **more)
    asked.inputs.add(name="numeric", datatype="FP32", shape=numeric.shape)
    asked.inputs.add(name="categorical", datatype="BYTES", shape=texts.shape)
    asked.raw_input_contents.extend([bytes(encode(numeric)), bytes(encode(texts))])
    return asked


def probabilities(reply: Any) -> list[list[float]]:
    place = [output.name for output in reply.outputs].index("probabilities")
    found = np.frombuffer(reply.raw_output_contents[place], "<f4")
    return found.reshape(reply.outputs[place].shape).tolist()  # type: ignore[no-any-return]


def test_it_answers_what_onnx_runtime_alone_answers(door: Grpc, first: Bundle) -> None:
    reply = door.ask("ModelInfer", request(id="q7"), metadata=[("x-request-id", "mine")])
    version = first.manifest.version
    assert (reply.model_name, reply.model_version, reply.id) == ("lending", version, "q7")
    np.testing.assert_allclose(probabilities(reply), expected(first.path, ROWS)["probabilities"], rtol=1e-6)
    assert door.trailer["x-mlkit-variant"] == "champion"
    assert door.trailer["x-mlkit-version"] == version
    assert door.trailer["x-mlkit-request-id"] == "mine"
    some = door.ask("ModelInfer", request(outputs=[{"name": "probabilities"}]))
    assert [output.name for output in some.outputs] == ["probabilities"]
    assert door.ask("ModelInfer", request(model_version=version)).model_version == version


def test_the_configuration_is_that_of_http(door: Grpc, served: InProcess, first: Bundle) -> None:
    version = first.manifest.version
    config = door.ask("ModelConfig", messages().ModelConfigRequest(name="lending", version=version)).config
    document = served.client.get(f"/v2/models/lending/versions/{version}/config").json()
    assert served.client.get("/v2/models/lending/config").json() == document
    assert (config.name, config.platform, config.max_batch_size) == ("lending", "onnx_onnxruntime", 65_536)
    assert config.version_policy.WhichOneof("policy_choice") == "all"
    kinds = type(config.input[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    tensors = [(tensor.name, kinds[tensor.data_type].name, list(tensor.dims)) for tensor in config.input]
    assert tensors == [("numeric", "TYPE_FP32", [3]), ("categorical", "TYPE_STRING", [2])]
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("label", [1]), ("probabilities", [2])]
    assert config.output[0].HasField("reshape")
    assert not config.output[1].HasField("reshape")
    assert document["input"] == [{"name": name, "data_type": kind, "dims": dims} for name, kind, dims in tensors]
    assert config.parameters["version"].string_value == document["parameters"]["version"]["string_value"] == version
    assert door.refused("ModelConfig", messages().ModelConfigRequest(name="lendin"))[0] == "NOT_FOUND"


def test_the_best_classes_are_answered_as_their_value_index_and_label(door: Grpc, first: Bundle) -> None:
    truth = expected(first.path, ROWS)
    asked = request()
    output = asked.outputs.add(name="probabilities")
    output.parameters["classification"].int64_param = 2
    reply = door.ask("ModelInfer", asked)
    assert (reply.outputs[0].datatype, list(reply.outputs[0].shape)) == ("BYTES", [2, 2])
    lines = [
        f"{row[index]:f}:{index}:{('bad', 'good')[index]}"
        for row in truth["probabilities"]
        for index in sorted(range(2), key=lambda index, row=row: -row[index])
    ]
    assert reply.raw_output_contents[0] == bytes(encode(np.array(lines, dtype=object)))


def test_whole_numbers_of_a_categorical_column_are_its_text_and_unseen_ones_are_told(door: Grpc, first: Bundle) -> None:
    asked = messages().ModelInferRequest(model_name="lending")
    row = {**ROWS[0], "purpose": "7"}
    for name in NUMERIC:
        asked.inputs.add(name=name, datatype="FP64", shape=[1])
        asked.raw_input_contents.append(np.float64(np.nan if row[name] is None else row[name]).tobytes())
    asked.inputs.add(name="term", datatype="BYTES", shape=[1])
    asked.inputs.add(name="purpose", datatype="INT64", shape=[1])
    asked.raw_input_contents.extend([bytes(encode(np.array([row["term"]], dtype=object))), np.int64(7).tobytes()])
    reply = door.ask("ModelInfer", asked)
    np.testing.assert_allclose(probabilities(reply), expected(first.path, [row])["probabilities"], rtol=1e-6)
    assert reply.parameters["unseen_categories"].string_param == '{"purpose": 1}'
    assert door.trailer["x-mlkit-unseen-categories"] == '{"purpose": 1}'


def test_health_metadata_index_and_statistics(door: Grpc, first: Bundle) -> None:
    version = first.manifest.version
    assert door.ask("ServerLive").live
    assert door.ask("ServerReady").ready
    assert door.ask("ModelReady", messages().ModelReadyRequest(name="lending", version=version)).ready
    server = door.ask("ServerMetadata")
    assert (server.name, list(server.extensions)) == (
        "mlflowkit",
        ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"],
    )
    model = door.ask("ModelMetadata", messages().ModelMetadataRequest(name="lending"))
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in model.inputs] == [
        ("numeric", "FP32", [-1, 3]),
        ("categorical", "BYTES", [-1, 2]),
    ]
    (entry,) = door.ask("RepositoryIndex").models
    assert (entry.name, entry.version, entry.state, entry.reason) == ("lending", version, "READY", "champion")

    def counted() -> Any:
        (found,) = door.ask("ModelStatistics", messages().ModelStatisticsRequest(name="lending")).model_stats
        return found

    before = counted()
    door.ask("ModelInfer", request())
    after = counted()
    assert after.inference_count == before.inference_count + len(ROWS)
    assert after.execution_count == before.execution_count + 1
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert after.inference_stats.compute_infer.count == after.inference_stats.success.count
    assert after.last_inference >= before.last_inference > 0


def _cut(change: Callable[[Any], None]) -> Any:
    asked = request()
    change(asked)
    return asked


@pytest.mark.parametrize(
    ("method", "asked", "code", "words"),
    [
        ("ModelInfer", b"\xff\xff\xff", "INVALID_ARGUMENT", "no ModelInferRequest"),
        ("ModelInfer", b"", "NOT_FOUND", "no model ''"),
        ("ModelInfer", request(model_version="7"), "NOT_FOUND", "no version '7'"),
        ("ModelInfer", messages().ModelInferRequest(model_name="lending"), "INVALID_ARGUMENT", "list of tensors"),
        ("ModelInfer", request([{**ROWS[0], "debt": -5.0}]), "OUT_OF_RANGE", "row 0"),
        ("ModelInfer", request(outputs=[{"name": "labels"}]), "INVALID_ARGUMENT", "Did you mean label?"),
        ("ModelInfer", _cut(lambda asked: asked.raw_input_contents.pop()), "INVALID_ARGUMENT", "1 for 2 inputs"),
        ("ModelInfer", _cut(lambda asked: asked.inputs[0].contents.fp32_contents.append(1)), "INVALID_ARGUMENT",
         "both contents and raw"),
        ("ModelInfer", _cut(lambda asked: asked.ClearField("raw_input_contents")), "INVALID_ARGUMENT", "0 values"),
        ("ModelInfer", _cut(lambda asked: asked.inputs[0].shape.pop()), "INVALID_ARGUMENT", "[-1, 3] is expected"),
        ("ModelInfer", _cut(lambda asked: asked.inputs[0].shape.__setitem__(0, -2)), "INVALID_ARGUMENT", "one row"),
        ("ModelInfer", _cut(lambda asked: asked.inputs[0].shape.__setitem__(0, 10**12)), "RESOURCE_EXHAUSTED",
         "at most"),
        ("ModelInfer", _cut(lambda asked: asked.inputs[1].shape.__setitem__(0, 1)), "INVALID_ARGUMENT",
         "another tensor has"),
        ("ModelReady", messages().ModelReadyRequest(name="lendin"), "NOT_FOUND", "this service has lending"),
        ("ModelMetadata", messages().ModelMetadataRequest(name="lending", version="7"), "NOT_FOUND", "no version"),
        ("ModelStatistics", messages().ModelStatisticsRequest(name="x"), "NOT_FOUND", "this service has lending"),
        ("RepositoryModelLoad", messages().RepositoryModelLoadRequest(model_name="lending"), "PERMISSION_DENIED",
         "governed by rollouts"),
        ("RepositoryModelUnload", messages().RepositoryModelUnloadRequest(model_name="lending"), "PERMISSION_DENIED",
         "governed by rollouts"),
    ],
)  # fmt: skip
def test_refusals_have_a_status_and_a_sentence(door: Grpc, method: str, asked: Any, code: str, words: str) -> None:
    found = door.refused(method, asked)
    assert found[0] == code, found
    assert words in found[1]


def test_streams_and_unknown_methods_are_unimplemented(door: Grpc) -> None:
    call = door.channel.stream_stream(
        f"/{SERVICE}/ModelStreamInfer",
        request_serializer=lambda value: value,
        response_deserializer=lambda value: value,
    )
    with pytest.raises(grpc.RpcError) as caught:
        list(call(iter([request().SerializeToString()]), timeout=20))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "ModelInfer" in caught.value.details()
    shared = door.channel.unary_unary(f"/{SERVICE}/SystemSharedMemoryStatus", request_serializer=lambda value: value)
    with pytest.raises(grpc.RpcError) as caught:
        shared(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_message_over_the_limit_is_refused_and_the_next_one_is_answered(door: Grpc) -> None:
    asked = request()
    asked.raw_input_contents[0] = b"\x00" * (2 << 20)
    assert door.refused("ModelInfer", asked)[0] == "RESOURCE_EXHAUSTED"
    assert door.ask("ModelInfer", request()).model_name == "lending"


def test_a_compressed_message_is_refused_before_it_is_unpacked(door: Grpc) -> None:
    call = door.channel.unary_unary(f"/{SERVICE}/ModelInfer", request_serializer=lambda value: value)
    for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\x00" * (4 << 20), timeout=20, compression=compression)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert door.ask("ServerLive").live


def test_a_message_that_never_comes_is_given_up(start: Callable[..., InProcess], first: Bundle) -> None:
    running = start(timeout_seconds=0.3)
    running.swap(table(1, first))
    with Grpc(running) as door:
        release = threading.Event()

        def never() -> Iterator[bytes]:
            release.wait(20)
            yield b""

        call = door.channel.stream_unary(f"/{SERVICE}/ModelInfer", request_serializer=lambda value: value)
        with pytest.raises(grpc.RpcError) as caught:
            call(never(), timeout=10)
        release.set()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "did not arrive in time" in caught.value.details()
        assert door.ask("ModelInfer", request()).model_name == "lending"


def test_keys_affinity_and_overrides_come_in_metadata(
    start: Callable[..., InProcess], first: Bundle, second: Bundle
) -> None:
    running = start()
    names = ("champion", "challenger")
    variants = tuple(
        Variant(name, made.manifest.version, made.manifest.identity, str(made.path), role=name, weight=0.5)  # type: ignore[arg-type]
        for name, made in zip(names, (first, second), strict=True)
    )
    running.swap(RoutingTable("lending", 1, variants, salt="s", affinity=Affinity("header", "x-user")))
    key, token = make_key(["infer"], now=0.0)
    running.plane.keys = Keyring([key])
    with Grpc(running) as door:
        assert door.ask("ServerLive").live
        assert door.refused("ModelInfer", request())[0] == "UNAUTHENTICATED"
        assert door.refused("ServerMetadata", metadata=[("x-api-key", "mlk_no")])[0] == "UNAUTHENTICATED"
        bearer = ("authorization", f"Bearer {token}")

        def dealt(*metadata: tuple[str, str]) -> str:
            door.ask("ModelInfer", request(), metadata=[bearer, *metadata])
            return str(door.trailer["x-mlkit-variant"])

        by_http = [
            running.client.post("/predict", json={"rows": ROWS}, headers={"x-api-key": token, "x-user": str(user)})
            for user in range(12)
        ]
        assert [dealt(("x-user", str(user))) for user in range(12)] == [
            reply.headers["x-mlkit-variant"] for reply in by_http
        ]
        assert {dealt(("x-user", str(user))) for user in range(12)} == set(names)
        assert [dealt(("x-mlkit-variant", name)) for name in names] == list(names)
        key, feedback = make_key(["feedback"], now=0.0)
        running.plane.keys = Keyring([key])
        assert door.refused("ModelInfer", request(), metadata=[("x-api-key", feedback)])[0] == "PERMISSION_DENIED"


def test_an_affinity_in_a_parameter_is_dealt_as_over_http(
    start: Callable[..., InProcess], first: Bundle, second: Bundle
) -> None:
    running = start()
    variants = (
        Variant("champion", first.manifest.version, first.manifest.identity, str(first.path), weight=0.5),
        Variant("b", second.manifest.version, second.manifest.identity, str(second.path), "challenger", 0.5),
    )
    running.swap(RoutingTable("lending", 1, variants, salt="s", affinity=Affinity("parameter", "user")))
    with Grpc(running) as door:
        found = []
        for user in range(8):
            reply = running.client.post("/predict", json={"rows": ROWS, "parameters": {"user": user}})
            asked = request()
            asked.parameters["user"].int64_param = user
            door.ask("ModelInfer", asked)
            found.append((door.trailer["x-mlkit-variant"], reply.headers["x-mlkit-variant"]))
    assert all(ours == theirs for ours, theirs in found)
    assert len(set(found)) == 2


def test_without_a_model_it_is_alive_and_unavailable(start: Callable[..., InProcess]) -> None:
    with Grpc(start()) as door:
        assert door.ask("ServerLive").live
        assert not door.ask("ServerReady").ready
        assert door.refused("ModelInfer", request())[0] == "UNAVAILABLE"
        assert list(door.ask("RepositoryIndex").models) == []


def test_many_calls_at_once_are_each_answered_their_own(door: Grpc, first: Bundle) -> None:
    def ask(income: int) -> bool:
        rows = [{**ROWS[0], "income": float(income)}]
        found = probabilities(door.ask("ModelInfer", request(rows)))
        return bool(np.allclose(found, truth[income], rtol=1e-5))

    truth = {
        income: expected(first.path, [{**ROWS[0], "income": float(income)}])["probabilities"] for income in range(40)
    }
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(40)))


def test_two_listeners_share_a_port_and_a_taken_one_is_told(door: Grpc, served: InProcess) -> None:
    from mlflowkit.errors import ServiceError

    beside = GrpcServer(served.plane, "127.0.0.1", door.listener.port, served.listener.loop)
    assert beside.port == door.listener.port
    beside.stop(1.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServiceError, match="cannot listen"):
            GrpcServer(served.plane, "127.0.0.1", taken.getsockname()[1], served.listener.loop)


def test_bytes_that_are_no_grpc_are_dropped_and_calls_go_on(door: Grpc) -> None:
    for sent in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 4096, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096):
        with socket.create_connection(("127.0.0.1", door.listener.port), timeout=10) as odd:
            odd.sendall(sent)
            odd.settimeout(10)
            try:
                while odd.recv(65536):
                    pass
            except (ConnectionError, TimeoutError):
                pass
    assert door.ask("ServerLive").live


def test_messages_of_another_client_may_be_in_the_same_process() -> None:
    """In a fresh process: another description of the package `inference` in the default pool, then ours."""
    code = """
from google.protobuf import descriptor_pb2, descriptor_pool
file = descriptor_pb2.FileDescriptorProto(name="grpc_service.proto", package="inference")
file.message_type.add(name="ModelInferRequest").field.add(name="other", number=9, type=9, label=1)
descriptor_pool.Default().Add(file)
from mlflowkit.serving.grpc.message_codec import messages
print(messages().ModelInferRequest(model_name="x").model_name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "x", done.stderr
