"""Binary tensors of 1 MB: requests a second against plain uvicorn + ONNX Runtime with the same graph and body (bar: at
least 0.5 of it), at 1 and 4 connections. JSON of the same values stands beside it, for our gateway only.

The graph is a linear layer over [rows, 64] FP32; request and reply use the binary tensor extension of the Open
Inference Protocol, which both servers speak.

    python -m benchmarks.tensors --rounds 5 --seconds 3
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.infer import PATH, load, plain, quotient
from benchmarks.process import arguments, report, spread
from mlflowkit import bundle as bundles
from mlflowkit.adapters.ray_serve import RayServePlatform
from mlflowkit.bundle import Bundle, Signature, TensorSpec
from mlflowkit.stages.deploy import ServeSection
from mlflowkit.values import Lineage, RoutingTable, Variant

WIDTH = 64
ROWS = (1 << 20) // (4 * WIDTH)
OURS, PLAIN, JSON = "mlkit gateway, binary", "uvicorn + ONNX Runtime, binary", "mlkit gateway, JSON"
BAR = 0.5


def linear(folder: Path) -> Bundle:
    """A blessed bundle whose graph multiplies [rows, 64] by a vector."""
    weights = np.random.default_rng(0).normal(size=(WIDTH,)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["numeric", "weights"], ["prediction"])],
        "linear",
        [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, [None, WIDTH])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, [None])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    columns = tuple(f"x{place}" for place in range(WIDTH))
    signature = Signature(
        task="regression",
        inputs=(TensorSpec(name="numeric", datatype="FP32", shape=(-1, WIDTH), columns=columns),),
        outputs=(TensorSpec(name="prediction", datatype="FP32", shape=(-1,)),),
    )
    (folder / "signature.json").write_text(signature.model_dump_json())
    return bundles.write(
        folder, name="lending", lineage=Lineage("", False, "", ""), policy="", run="", blessed=True, created=0.0
    )


def bodies() -> tuple[bytes, int, bytes]:
    """A request in binary with the length of its JSON part, and the same in JSON."""
    values = np.random.default_rng(1).normal(size=(ROWS, WIDTH)).astype(np.float32)
    tensor = {"name": "numeric", "shape": [ROWS, WIDTH], "datatype": "FP32"}
    head = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": values.nbytes}}],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(head).encode()
    whole = json.dumps({"inputs": [{**tensor, "data": values.ravel().tolist()}]}).encode()
    return text + values.tobytes(), len(text), whole


def main() -> None:
    parser = arguments(__doc__ or "", rounds=5)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    options = parser.parse_args()
    binary, head, text = bodies()
    results: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="mlkit-tensors-") as place, ExitStack() as stack:
        folder = Path(place)
        made = linear(folder / "bundle")
        (folder / "binary").write_bytes(binary)
        (folder / "text").write_bytes(text)
        platform = RayServePlatform(folder / "state")
        stack.callback(platform.down)
        section = ServeSection.model_validate({"service": "lending", "port": 0, "max_body_mb": 32})
        url = f"{platform.ensure(section)}{PATH}"
        variant = Variant("champion", made.manifest.version, made.manifest.identity, str(made.path))
        platform.publish(RoutingTable("lending", 1, (variant,)))
        peer = stack.enter_context(plain(made))
        headers = (f"inference-header-content-length: {head}",)
        for number in range(options.rounds + 1):
            for connections in (1, 4):
                for name, where, file, more in (
                    (OURS, url, "binary", headers), (PLAIN, peer, "binary", headers), (JSON, url, "text", ()),
                ):  # fmt: skip
                    found = load(where, folder / file, connections, options.seconds, more)
                    if number:
                        results.setdefault((name, connections), []).append(found)
    rows = [
        {
            "server": name,
            "connections": connections,
            "requests": spread([one["per_second"] for one in found], "/s"),
            "p50": spread([one["p50_us"] / 1e3 for one in found], "ms"),
            "of plain": quotient(found, results[PLAIN, connections]),
        }
        for (name, connections), found in sorted(results.items(), key=lambda item: item[0][1])
    ]
    report(f"binary tensors of {ROWS * WIDTH * 4 / 2**20:g} MiB", rows, options.out)
    print(f"  bar: at least {BAR} of plain")
    raise SystemExit(int(any(row["server"] == OURS and row["of plain"].median < BAR for row in rows)))


if __name__ == "__main__":
    main()
