"""A blessed bundle with the evidence of its gates, and values of rows that must not leave."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mlflowkit import bundle
from mlflowkit.values import Lineage, Measurement, Outcome, Verdict
from tests.support.lending_bundle import make_bundle

ROW_VALUE = "canary of a row"
"""A text of the data, in evidence."""
LINEAGE = Lineage(
    "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00", True, "data1", "recipe1", "7ree7ree",
    data_source="hf://datasets/org/loans/data", data_commit="d" * 40,
)  # fmt: skip


def make_judged_bundle(folder: Path, seed: int = 1, *, blessed: bool = True) -> bundle.Bundle:
    """A bundle with metrics, verdicts, a profile and digests of rows."""
    make_bundle(folder, seed)
    measured = Measurement("roc_auc", 0.741, 0.702, 0.78, samples=1479, method="DeLong")
    gate = Verdict("roc_auc >= 0.7", Outcome.PASSED, "0.741 | <b>1,479 rows</b>", "roc_auc", measured, 0.7)
    evidence = folder / "evidence"
    (evidence / "evaluation.json").write_text(
        json.dumps({"metrics": {"roc_auc": asdict(measured)}, "slices": [{"value": ROW_VALUE}]})
    )
    (evidence / "verdicts.json").write_text(json.dumps([{**asdict(gate), "outcome": "PASSED"}]))
    (evidence / "candidates.json").write_text(json.dumps([{"status": "failed", "reason": f"/home/me: {ROW_VALUE}"}]))
    (evidence / "reference.whylogs").write_bytes(ROW_VALUE.encode())
    (evidence / "outlier.json").write_text(json.dumps({"edges": [ROW_VALUE]}))
    np.save(evidence / "seen_rows.npy", np.array([1, 2, 3], dtype="<u8"))
    return bundle.write(
        folder, name="lending", lineage=LINEAGE, policy="policy1", run="run1", blessed=blessed, created=0.0
    )  # fmt: skip
