"""Graphs of the models, made once and kept under benchmarks/.cache by a digest of all that they depend on."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_latency import lending
from benchmarks.gpu_latency.models import Model
from benchmarks.process import CACHE
from mlflowkit.graphs.candidates import Pass
from mlflowkit.ports import Passes
from mlflowkit.system.digests import digest_file, digest_json

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
KEPT = CACHE / "gpu_latency"
OPSET = 17


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph on disk, or the reason why there is none. ``seconds`` is what making it took, when it was made."""

    path: Path
    seconds: float
    reason: str = ""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size


def exported(model: Model) -> Graph:
    """The float graph of a model, with a dynamic first axis."""
    if not model.network:
        return Graph(lending.folder() / "model.onnx", 0.0)
    import torch

    sources = [
        HERE / "models.py",
        HERE / "networks.py",
        HERE / "exports.py",
        ROOT / "recipes" / "minilm.py",
        ROOT / "mlflowkit" / "models.py",
    ]
    key = digest_json([model.name, OPSET, torch.__version__, *map(digest_file, sources)])
    return _kept(f"{model.name}-{key[:12]}", lambda out: _export(model, out))


def _export(model: Model, out: Path) -> str:
    import torch

    from benchmarks.gpu_latency.networks import make

    rows = model.rows(2)
    names = [*rows, model.output]
    with warnings.catch_warnings():  # the exporter that needs no onnxscript says that it is the older one
        warnings.simplefilter("ignore")
        torch.onnx.export(
            make(model.name),
            tuple(torch.from_numpy(values) for values in rows.values()),
            str(out),
            input_names=list(rows),
            output_names=[model.output],
            dynamic_axes={name: {0: "rows"} for name in names},
            opset_version=OPSET,
            dynamo=False,
        )
    return ""


def rewritten(model: Model, passes: Sequence[Pass], port: Passes) -> Graph:
    """The model's graph after passes. A reason why it cannot be had is not kept."""
    float_graph = exported(model)
    if not passes:
        return float_graph
    said = [one.model_dump(mode="json") for one in passes]
    sources = sorted((ROOT / "mlflowkit" / "adapters" / "onnx_passes").glob("*.py"))
    key = digest_json([digest_file(float_graph.path), said, model.calibration, _versions(), *map(digest_file, sources)])

    rows = model.rows(model.calibration)
    return _kept(f"{model.name}-{key[:12]}", lambda out: port.apply(passes, float_graph.path, out, rows))


def _versions() -> list[str]:
    from importlib.metadata import version

    return [version(name) for name in ("onnx", "onnxruntime")]


def _kept(name: str, make: Callable[[Path], str]) -> Graph:
    """The graph in the folder called ``name``, made there first when it is absent; whole or not there at all."""
    folder = KEPT / name
    if not folder.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=KEPT))
        try:
            begin = time.perf_counter()
            reason = make(made / "model.onnx")
            seconds = time.perf_counter() - begin
            if reason:
                return Graph(folder / "model.onnx", seconds, reason)
            (made / "made.json").write_text(json.dumps({"seconds": seconds}))
            os.replace(made, folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    said = json.loads((folder / "made.json").read_bytes())
    return Graph(folder / "model.onnx", said["seconds"])
