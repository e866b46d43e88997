"""Collects graph, signature and evidence into a bundle, and blesses it when its gates passed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mlflowkit import bundle
from mlflowkit.bundle import Signature
from mlflowkit.errors import EngineError, StoreError
from mlflowkit.judging import gates
from mlflowkit.judging.shift.reference import EVIDENCE, Reference
from mlflowkit.ports import StageContext
from mlflowkit.sections import Section
from mlflowkit.stages import monitor_evidence
from mlflowkit.stages.base import read_signature, read_table_info, write_json
from mlflowkit.system.text import parse_json
from mlflowkit.values import Event, Json, StageResult, Verdict

PORTS = ("runtime",)
"""Ports that the result depends on."""

BUNDLE_SOURCES: Mapping[str, tuple[str, str]] = {
    "model.onnx": ("optimize", "model.onnx"),
    "signature.json": ("optimize", "signature.json"),
    "evidence/candidates.json": ("optimize", "candidates.json"),
    "evidence/latency.json": ("optimize", "latency.json"),
    "evidence/reference.whylogs": ("validate", "reference.whylogs"),
    "evidence/reference.json": ("validate", "reference.json"),
    "evidence/parity.json": ("export", "parity.json"),
    "evidence/evaluation.json": ("evaluate", "evaluation.json"),
    "evidence/verdicts.json": ("evaluate", "verdicts.json"),
}
"""Files of a bundle with the stage and file that each is copied from."""

SAMPLE_ROWS = 3
"""Test rows in the bundle: for a gateway's warm-up and the curl line."""


class Spec(Section):
    """What the package stage's result depends on, besides its inputs."""

    name: str
    policy: str
    """Digest of the gates."""
    time_column: str = ""
    """The column that orders the rows, where they are split by time."""
    segments: tuple[str, ...] = ()
    """Columns by whose values live traffic is also judged."""
    outliers: float | None = None
    """The share of outliers that is no harm, where the recipe asks for a model of them."""


def run(spec: Spec, context: StageContext) -> StageResult:
    """Write ``bundle/``; bless it unless a verdict is blocking. See mlflowkit.bundle for the layout.

    Raises StoreError when an input lacks a file and BundleError when the written bundle does not verify.
    """
    import numpy as np

    from mlflowkit.features import row_digests

    out = context.out / "bundle"
    (out / "evidence").mkdir(parents=True)
    for name, (stage, file) in BUNDLE_SOURCES.items():
        _copy(context.inputs[stage] / file, out / name, stage)
    if (context.inputs["export"] / "decision.json").exists():
        _copy(context.inputs["export"] / "decision.json", out / "evidence" / "decision.json", "export")
    for file, target in ((bundle.ENGINE, bundle.ENGINE), ("machine.json", "evidence/machine.json")):
        if (context.inputs["optimize"] / file).exists():
            _copy(context.inputs["optimize"] / file, out / target, "optimize")
    verdicts = read_verdicts(out / "evidence" / "verdicts.json")
    context.progress(Event("package", "progress", "digesting the rows that the model was trained on", fraction=0.3))
    data, signature = context.inputs["data"], read_signature(out)
    digests = row_digests.training_row_digests(data, signature, read_table_info(data).target)
    if (context.inputs["export"] / row_digests.FILE).exists():  # of a bundle that is the model
        digests = np.union1d(digests, np.load(context.inputs["export"] / row_digests.FILE, allow_pickle=False))
    row_digests.write(out / row_digests.EVIDENCE, digests)
    context.progress(Event("package", "progress", "counting the rows that live traffic is compared with", fraction=0.4))
    reference = _write_reference(spec, context, out, signature)
    _write_calibrator(spec, context, out, signature, reference)
    context.progress(Event("package", "progress", "predicting the sample rows", fraction=0.8))
    write_json(out / "evidence" / "sample.json", _sample(context, out, signature))
    written = bundle.write(
        out,
        name=spec.name,
        lineage=context.lineage,
        policy=spec.policy,
        run=context.run,
        blessed=gates.blessed(verdicts),
        created=time.time(),
    )
    return StageResult(
        metrics={"bundle_bytes": float(sum((out / name).stat().st_size for name in written.manifest.files))},
        summary={
            "name": spec.name,
            "identity": written.manifest.identity,
            "version": written.manifest.version,
            "evidence": written.manifest.evidence,
            "policy": spec.policy,
            "blessed": written.blessing is not None,
            "worst": str(gates.worst_blocking(verdicts)),
            "barring": [verdict.message for verdict in verdicts if gates.is_blocking(verdict)],
            "model_bytes": written.model.stat().st_size,
        },
    )


def _write_reference(spec: Spec, context: StageContext, out: Path, signature: Signature) -> Reference:
    """Write what live traffic is compared with, and the outlier model if the recipe asks for one."""
    from mlflowkit.features import outlier_forest

    data, columns = context.inputs["data"], {}
    reference = monitor_evidence.model_reference(
        data, context.inputs["evaluate"], signature, time_column=spec.time_column, segments=spec.segments
    )
    if spec.outliers is not None:
        # half of the share is the baseline: live traffic may rise by the other half
        forest, column = monitor_evidence.outlier_model(data, signature, reference, spec.outliers / 2)
        columns[outlier_forest.COLUMN] = column
        (out / outlier_forest.EVIDENCE_FILE).write_text(json.dumps(forest.to_json(), allow_nan=False))
    reference = replace(reference, columns={**reference.columns, **columns})
    (out / EVIDENCE).write_text(json.dumps(reference.to_json(), ensure_ascii=False, allow_nan=False))
    return reference


def read_verdicts(path: Path) -> tuple[Verdict, ...]:
    """The verdicts of the evaluate stage. Raises StoreError when the file is missing or malformed."""
    try:
        return tuple(Verdict.from_json(item) for item in parse_json(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path} cannot be read: {error}", hint="mlkit run RECIPE --force evaluate") from error


def _write_calibrator(spec: Spec, context: StageContext, out: Path, signature: Signature, reference: Reference) -> None:
    """Write what estimates of performance are made from; nothing where the rows allow none."""
    from mlflowkit.judging.performance import calibrator
    from mlflowkit.stages.evaluation.calibration_evidence import model_calibrator

    context.progress(Event("package", "progress", "calibrating estimates of performance", fraction=0.5))
    data = context.inputs["data"]
    session = context.ports.runtime.load(out / "model.onnx", engine=bundle.read_engine(out))
    document = model_calibrator(data, session, signature, read_table_info(data), reference, spec.time_column)
    if document is not None:
        (out / calibrator.EVIDENCE).write_text(json.dumps(document, allow_nan=False))


def _copy(source: Path, target: Path, stage: str) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        message = f"the {stage} stage's {source.name} cannot be copied: {error.strerror or error}"
        full_disk = "a full disk? free some space and run again"
        hint = full_disk if source.exists() else f"mlkit run RECIPE --force {stage}"
        raise StoreError(message, hint=hint) from error


def _sample(context: StageContext, out: Path, signature: Signature) -> Json:
    """A few test rows as ``POST /predict`` takes them, and the graph's predictions."""
    import numpy as np
    import pandas as pd

    from mlflowkit.features.dates.date_reading import date_text
    from mlflowkit.features.tensors import inputs_from_table

    data = context.inputs["data"]
    columns = [column.name for column in read_table_info(data).features]
    table = pd.read_parquet(data / "test.parquet", columns=columns).head(SAMPLE_ROWS)
    table = table.replace([np.inf, -np.inf], np.nan)  # JSON has no infinity
    session = context.ports.runtime.load(out / "model.onnx", engine=bundle.read_engine(out))
    outputs = session.run(inputs_from_table(signature, table))
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            message = f"the graph's {name} holds NaN or infinity on test rows"
            raise EngineError(message, hint="mlkit run RECIPE --force train")
    rows = [{name: _to_json(row[name]) for name in columns} for row in table.to_dict(orient="records")]
    for name, zone in signature.texts.dates.items():
        rows = [{**row, name: None if row[name] is None else date_text(row[name], zone)} for row in rows]
    return {"rows": rows, "outputs": {tensor.name: outputs[tensor.name].tolist() for tensor in signature.outputs}}


def _to_json(value: object) -> Json:
    """A cell as JSON: null for a missing value."""
    plain = value.item() if hasattr(value, "item") else value
    if plain is None or type(plain).__name__ in ("NAType", "NaTType") or (isinstance(plain, float) and plain != plain):
        return None
    return plain if isinstance(plain, str | int | float | bool) else str(plain)
