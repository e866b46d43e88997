"""One row, a few, many: the recipe's graph, its INT8 copy, and what one would serve by hand, measured in turns.

Peers, in the same run: the graph of benchmarks.bare_lending (skl2onnx's ColumnTransformer, one input a column, the same
network), and the Python model itself (mlflowkit.features.preprocess, then torch). Requests are real rows of the
validation part,
already in arrays; every candidate runs on one thread in this process.

    python -m benchmarks.latency --batches 1,8,64,256
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import mlflowkit as mk
from benchmarks.bare_lending import export as bare_export
from benchmarks.process import arguments, report
from mlflowkit.adapters.onnx_passes import OnnxPasses
from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.bench.analysis import QUANTILES, ratio_interval, summarise
from mlflowkit.bench.measure import Request, Samples, measure, requests_over
from mlflowkit.bundle import Signature
from mlflowkit.features.preprocess import load_preprocess, transform
from mlflowkit.features.tensors import inputs_from_table
from mlflowkit.graphs.candidates import Int8
from mlflowkit.models import TabularMLP, load_trained

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "lending.yaml"
OBJECTIVE = "latency_p50"

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Folders:
    """Published folders of the run that is measured."""

    data: Path
    train: Path
    export: Path

    def table(self, part: str) -> pd.DataFrame:
        return pd.read_parquet(self.data / f"{part}.parquet")

    @property
    def signature(self) -> Signature:
        return Signature.model_validate_json((self.export / "signature.json").read_bytes())


def run_recipe(state: Path) -> Folders:
    answer = mk.run(RECIPE, until="export", state=state).answer
    digests = {step["stage"]: step["digest"] for step in answer["steps"]}
    return Folders(*(state / "objects" / digests[stage] for stage in ("data", "train", "export")))


def python_model(folders: Folders) -> Callable[[Inputs], object]:
    preprocess, network = load_preprocess(folders.train), load_trained(folders.train, RECIPE.parent)

    def answer(inputs: Inputs) -> object:
        with torch.inference_mode():
            return network(torch.from_numpy(transform(preprocess, inputs))).softmax(dim=1)

    return answer


def bare_graph(folders: Folders, work: Path) -> tuple[Callable[[Inputs], object], Inputs]:
    """The hand-written graph of the peer, and the validation rows as its inputs."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    columns = {tensor.name: list(tensor.columns) for tensor in folders.signature.inputs}
    names = [*columns["numeric"], *columns["categorical"]]
    train = folders.table("train")[names]
    preprocess = ColumnTransformer(
        [
            ("numeric", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), columns["numeric"]),
            ("strings", OneHotEncoder(handle_unknown="ignore", sparse_output=False), columns["categorical"]),
        ]
    ).fit(train)
    width = preprocess.transform(train.head(1)).shape[1]
    network = TabularMLP(features=width, outputs=2, hidden=[128, 64]).eval()
    bare_export(preprocess, network, train, width, work / "bare.onnx")
    rows = folders.table("validation")
    numbers = {f"front_{name}": rows[[name]].to_numpy(np.float32) for name in columns["numeric"]}
    texts = {f"front_{name}": rows[[name]].to_numpy(object) for name in columns["categorical"]}
    return OnnxRuntime().load(work / "bare.onnx").run, {**numbers, **texts}


def candidates(folders: Folders, work: Path, batch: int) -> dict[str, Request]:
    signature, runtime = folders.signature, OnnxRuntime()
    rows = inputs_from_table(signature, folders.table("validation"))
    calibration = inputs_from_table(signature, folders.table("train").head(512))
    reason = OnnxPasses().apply([Int8()], folders.export / "model.onnx", work / "int8.onnx", calibration)
    if reason:
        raise SystemExit(reason)
    bare, bare_rows = bare_graph(folders, work)
    return {
        "onnx": requests_over(runtime.load(folders.export / "model.onnx").run, rows, batch),
        "onnx-int8": requests_over(runtime.load(work / "int8.onnx").run, rows, batch),
        "by hand: skl2onnx, an input a column": requests_over(bare, bare_rows, batch),
        "Python: preprocess, then torch": requests_over(python_model(folders), rows, batch),
    }


def row_of(name: str, taken: Mapping[str, Samples], batch: int) -> dict[str, Any]:
    mine, ours = taken[name].microseconds, taken["onnx"].microseconds
    found = summarise(mine, batch, OBJECTIVE)
    low, high = ratio_interval(mine, ours, QUANTILES[OBJECTIVE])
    return {
        "candidate": name,
        "batch": batch,
        "samples": found.samples,
        "p50 us": round(found.p50_us, 1),
        "p95 us": round(found.p95_us, 1),
        "p99 us": round(found.p99_us, 1),
        "rows/s": round(found.throughput),
        "p50 / onnx": f"{low:.2f} to {high:.2f}",
        "settled": taken[name].settled,
    }


def main() -> None:
    parser = arguments(__doc__ or "", rounds=100)
    parser.add_argument("--batches", default="1,8,64,256", help="rows a request, comma-separated")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory(prefix="mlkit-latency-") as folder:
        work = Path(folder)
        folders = run_recipe(work / "state")
        for batch in map(int, options.batches.split(",")):
            taken = measure(candidates(folders, work, batch), options.rounds * 50)
            rows += [row_of(name, taken, batch) for name in taken]
    report("latency of lending's candidates", rows, options.out)


if __name__ == "__main__":
    main()
