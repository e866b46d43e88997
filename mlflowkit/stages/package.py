"""Gather graph, signature and evidence into a bundle, and bless it when its gates passed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit import bundle
from mlflowkit.errors import EngineError, StoreError
from mlflowkit.features import row_digests
from mlflowkit.features.tensors import inputs_from_table
from mlflowkit.judging import gates
from mlflowkit.sections import Section
from mlflowkit.stages.base import read_signature, read_table_info, write_json
from mlflowkit.values import Event, Json, StageResult, Verdict

if TYPE_CHECKING:
    from mlflowkit.ports import StageContext

GATHERED: Mapping[str, tuple[str, str]] = {
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
"""Each file of a bundle, and the stage and file that it is copied from."""

SAMPLE_ROWS = 3
"""Test rows that travel in the bundle: what a gateway warms up with, and what the curl line shows."""


class Spec(Section):
    """What the package stage's result depends on, besides its inputs."""

    name: str
    policy: str
    """Digest of the gates."""


def run(spec: Spec, context: StageContext) -> StageResult:
    """Write ``bundle/``; bless it unless a verdict bars the way. See mlflowkit.bundle for the layout.

    Raises StoreError when an input lacks a file and BundleError when what was written does not verify.
    """
    out = context.out / "bundle"
    (out / "evidence").mkdir(parents=True)
    for name, (stage, file) in GATHERED.items():
        _copy(context.inputs[stage] / file, out / name, stage)
    for file, place in ((bundle.ENGINE, bundle.ENGINE), ("machine.json", "evidence/machine.json")):
        if (context.inputs["optimize"] / file).exists():
            _copy(context.inputs["optimize"] / file, out / place, "optimize")
    verdicts = read_verdicts(out / "evidence" / "verdicts.json")
    context.progress(Event("package", "progress", "digesting the rows that the model has seen", fraction=0.3))
    _write_seen(context, out)
    context.progress(Event("package", "progress", "asking the sample rows", fraction=0.5))
    sample = _sample(context, out)
    write_json(out / "evidence" / "sample.json", sample)
    made = bundle.write(
        out,
        name=spec.name,
        lineage=context.lineage,
        policy=spec.policy,
        run=context.run,
        blessed=gates.blessed(verdicts),
        created=time.time(),
    )
    barring = [verdict for verdict in verdicts if gates.bars(verdict)]
    return StageResult(
        metrics={"bundle_bytes": float(sum((out / name).stat().st_size for name in made.manifest.files))},
        summary={
            "name": spec.name,
            "identity": made.manifest.identity,
            "version": made.manifest.version,
            "evidence": made.manifest.evidence,
            "policy": spec.policy,
            "blessed": made.blessing is not None,
            "worst": str(gates.worst(verdicts)),
            "barring": [verdict.message for verdict in barring],
            "model_bytes": made.model.stat().st_size,
        },
    )


def read_verdicts(path: Path) -> tuple[Verdict, ...]:
    """The verdicts of the evaluate stage. Raises StoreError when the file is missing or is not what it should be."""
    try:
        return tuple(Verdict.from_json(item) for item in json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path} cannot be read: {error}", hint="mlkit run --force evaluate") from error


def _copy(source: Path, target: Path, stage: str) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise StoreError(
            f"the {stage} stage's {source.name} cannot be copied: {error.strerror or error}",
            hint="a full disk? free some space and run again" if source.exists() else f"mlkit run --force {stage}",
        ) from error


def _write_seen(context: StageContext, out: Path) -> None:
    """What a later candidate must know of this model to be compared with it fairly."""
    data = context.inputs["data"]
    signature = read_signature(out)
    row_digests.write(out / row_digests.EVIDENCE, row_digests.seen_by(data, signature, read_table_info(data).target))


def _sample(context: StageContext, out: Path) -> Json:
    """A few test rows as ``POST /predict`` takes them, and what the graph answers."""
    import numpy as np
    import pandas as pd

    data = context.inputs["data"]
    info = read_table_info(data)
    signature = read_signature(out)
    columns = [column.name for column in info.features]
    table = pd.read_parquet(data / "test.parquet", columns=columns).head(SAMPLE_ROWS)
    table = table.replace([np.inf, -np.inf], np.nan)  # JSON has no infinity
    session = context.ports.runtime.load(out / "model.onnx", engine=bundle.read_engine(out))
    outputs = session.run(inputs_from_table(signature, table))
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise EngineError(f"the graph's {name} holds NaN or infinity on test rows", hint="mlkit run --force train")
    rows = [{name: _plain(row[name]) for name in columns} for row in table.to_dict(orient="records")]
    return {"rows": rows, "outputs": {tensor.name: outputs[tensor.name].tolist() for tensor in signature.outputs}}


def _plain(value: object) -> Json:
    """A cell as JSON: null for a missing value."""
    plain = value.item() if hasattr(value, "item") else value
    if plain is None or type(plain).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(plain, float) and plain != plain:
        return None
    return plain if isinstance(plain, str | int | float | bool) else str(plain)
