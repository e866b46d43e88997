"""A rehearsal of training and export on a few rows, which refuses a model that no graph can hold before it is trained.

Fitting to a sample may fail where fitting to all rows does not (more neighbours than rows), so that is no verdict. What
the exporter says of the result is one, and so is a graph that differs in more than a few rows: ties and thresholds
explain a few, and the export stage measures the trained model anyway.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mlflowkit.bundle import Signature
from mlflowkit.features.tensors import double_inputs
from mlflowkit.graphs import onnx_file
from mlflowkit.graphs.last_activation import bounded_scores, last_activation
from mlflowkit.graphs.parity import row_count, with_gaps
from mlflowkit.graphs.parity_check import Comparison, measure
from mlflowkit.ports import StageContext
from mlflowkit.system.files import disk_errors
from mlflowkit.values import Event

ROWS = 300
"""Training rows of a rehearsal, of a classification at least LEAST of each class."""
LEAST = 10
BATCH = 65_536
"""Rows of the training part that are read at a time."""
CHECKED = 60
"""Rows of each part that the graph is asked for."""
TOLERANCE, ALLOWED = 1e-2, 0.05
"""Difference of scores, and the share of rows that may differ by more."""
SCORES = f"{onnx_file.NETWORK_PREFIX}scores"
"""The network's output in an exported graph."""
DONE = "rehearsed"
"""File in the scratch folder: a run that resumes does not rehearse again."""


def rehearse(context: StageContext, fit: Callable[[StageContext], object]) -> tuple[str, str] | None:
    """Fit to a sample of ``context``'s rows, export the result, and compare the two.

    Returns message and hint where the network's last activation spoils what it can learn. Raises EngineError or
    UserCodeError for a model that has no graph, or one whose graph answers otherwise.
    """
    if (context.scratch / DONE).exists():
        advice = json.loads((context.scratch / DONE).read_bytes() or b"null")
        return advice and tuple(advice)
    base = context.scratch / "rehearsal"
    shutil.rmtree(base, ignore_errors=True)
    folders = {name: base / name for name in ("data", "train", "scratch", "export")}
    try:
        with _random_states_kept(), disk_errors(base):
            for folder in folders.values():
                folder.mkdir(parents=True)
            _write_sample(context.inputs["data"], folders["data"])
            inputs = {"data": folders["data"]}
            quiet = replace(context, inputs=inputs, out=folders["train"], scratch=folders["scratch"], progress=_ignore)
            advice = _export(context, folders) if _fits(fit, quiet) else None
    finally:
        shutil.rmtree(base, ignore_errors=True)
    (context.scratch / DONE).write_text(json.dumps(advice))
    return advice


def _fits(fit: Callable[[StageContext], object], context: StageContext) -> bool:
    """Whether the sample can be fitted; where not (more neighbours than rows), the training says it if it is so."""
    try:
        fit(context)
    except Exception:  # noqa: BLE001
        return False
    return True


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Leave the global random generators as they are: a model may draw from them when it is made."""
    torch: Any = sys.modules.get("torch")
    states = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch:
            torch.set_rng_state(states[2])


def _export(context: StageContext, folders: dict[str, Path]) -> tuple[str, str] | None:
    exporter, out = context.ports.exporter, folders["export"]
    exporter.export(folders["train"], context.folder, out)
    signature = Signature.model_validate_json((out / "signature.json").read_bytes())
    columns = [column for tensor in signature.inputs for column in tensor.columns]
    parts = [pd.read_parquet(folders["data"] / f"{part}.parquet", columns=columns) for part in ("train", "validation")]
    real = double_inputs(signature, pd.concat([part.head(CHECKED) for part in parts], ignore_index=True))
    scale = _deviation(folders["data"], signature)
    comparison = Comparison(
        with_gaps(real, context.seed), signature, TOLERANCE, scale, row_count(real), allowed=ALLOWED, double=False
    )
    model = exporter.reference(folders["train"], context.folder)
    measure(model, context.ports.runtime.load(out / "model.onnx"), comparison)
    if model.kind != "torch":
        return None
    activation = last_activation(onnx_file.load_checked(out / "model.onnx"), SCORES)
    return bounded_scores(activation, model.name, len(signature.classes))


def _write_sample(data: Path, out: Path) -> None:
    """Copy ``table.json`` and a sample of both parts."""
    shutil.copyfile(data / "table.json", out / "table.json")
    info = json.loads((data / "table.json").read_text())
    train = _first_rows(data / "train.parquet", info["target"] if info["classes"] else "", len(info["classes"]))
    pq.write_table(train, out / "train.parquet")
    pq.write_table(_first_rows(data / "validation.parquet", "", 0), out / "validation.parquet")


def _first_rows(part: Path, target: str, classes: int) -> pa.Table:
    """The first ROWS rows, or (with a target) the first of each class; reads no further than it must."""
    quota = max(LEAST, ROWS // max(classes, 1))
    taken: list[pa.RecordBatch] = []
    counts: dict[object, int] = {}
    with pq.ParquetFile(part) as file:
        for batch in file.iter_batches(batch_size=BATCH):
            if not target:
                taken.append(batch.slice(0, ROWS - sum(map(len, taken))))
                if sum(map(len, taken)) >= ROWS:
                    break
                continue
            keep = []
            for row, label in enumerate(batch.column(batch.schema.get_field_index(target)).to_pylist()):
                if counts.get(label, 0) < quota:
                    counts[label] = counts.get(label, 0) + 1
                    keep.append(row)
            taken.append(batch.take(pa.array(keep, pa.int64())))
            if len(counts) == classes and min(counts.values()) >= quota:
                break
        return pa.Table.from_batches(taken, file.schema_arrow)


def _deviation(data: Path, signature: Signature) -> float:
    """Standard deviation of a regression's target in the sample; 1 for a classification or a constant."""
    if signature.task != "regression":
        return 1.0
    target = json.loads((data / "table.json").read_text())["target"]
    values = pd.read_parquet(data / "train.parquet", columns=[target])[target].to_numpy(np.float64, na_value=np.nan)
    return float(np.nanstd(values)) or 1.0


def _ignore(event: Event) -> None:
    """No progress is shown of a rehearsal."""
