"""The edge of performance monitoring: reading bundles, labels and gateways' counts; faults are told once."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mlflowkit import bundle
from mlflowkit.judging.online.evidence import Evidence, VariantCounts, latency_bin
from mlflowkit.judging.performance.calibrator import EVIDENCE, fit_calibrator
from mlflowkit.monitoring.monitor_loop import performance_look, replace_kinds
from mlflowkit.monitoring.monitor_performance import REQUESTS, PerformanceMonitoring
from mlflowkit.monitoring.monitor_settings import MonitorSection, MonitorSettings
from mlflowkit.rollout.feedback_loop import _expects_labels
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.values import Lineage, Outcome, RoutingTable, Variant

pytestmark = pytest.mark.unit
SECTION = MonitorSection.model_validate(
    {
        "performance": {
            "estimated": {"metric": "roc_auc", "max_drop": 0.03},
            "realised": {"metric": "recall", "min": 0.6, "mature": "21d"},
        },
        "latency": {"p99_ms": 20, "error_rate": 0.01},
    }
)


@pytest.fixture
def files(tmp_path: Path) -> ServiceFiles:
    folder = tmp_path / "services" / "loans"
    folder.mkdir(parents=True)
    service = ServiceFiles(folder)
    shadow = Variant("shadow", "v2", "d2", "b", role="shadow")
    service.write_json("table.json", asdict(RoutingTable("loans", 1, (Variant("champion", "v1", "d", "b"), shadow))))
    return service


def gateway(files: ServiceFiles, requests: int, seconds: float, errors: int = 0) -> None:
    counts = VariantCounts(requests=requests, errors=errors, latency={latency_bin(seconds): requests - errors})
    evidence = Evidence("", {1: {"champion": counts, "shadow": VariantCounts(requests=9999, errors=9999)}})
    files.write_evidence("r1", json.dumps(evidence.to_json()).encode())


def packed(folder: Path, calibrator: bytes | None) -> Path:
    path = folder / "bundle"
    (path / "evidence").mkdir(parents=True)
    (path / "model.onnx").write_bytes(b"model")
    outputs = [{"name": "label", "datatype": "BYTES", "shape": [-1]}]
    signature = {"task": "classification", "inputs": [], "outputs": outputs, "classes": ["no", "yes"]}
    (path / "signature.json").write_text(json.dumps(signature))
    if calibrator is not None:
        (path / EVIDENCE).write_bytes(calibrator)
    lineage = Lineage("", False, "d", "r")
    bundle.write(path, name="loans", lineage=lineage, policy="p", run="r", blessed=True, created=0.0)
    return path


def test_requests_are_looked_at_and_judged(files: ServiceFiles) -> None:
    monitoring = PerformanceMonitoring(files)
    for minute in range(61):
        gateway(files, 100 * (minute + 1), 0.005 if minute < 30 else 0.2)
        PerformanceMonitoring(files).look_at_requests("v1", 1e6 + 60.0 * minute)  # restarted at each look
    findings = {finding.kind: finding for finding in monitoring.assess(SECTION, "v1", None, (), 1e6 + 3600.0)}
    assert findings["errors"].outcome is Outcome.PASSED  # the shadow's errors reach nobody
    assert findings["errors"].rows == 6000
    gateway(files, 20_000, 0.2)
    monitoring.look_at_requests("v1", 1e6 + 3660.0)
    findings = {finding.kind: finding for finding in monitoring.assess(SECTION, "v1", None, (), 1e6 + 3660.0)}
    assert findings["latency"].outcome is Outcome.FAILED
    between = monitoring.assess_requests(SECTION, "v1", 1e6 + 3660.0)
    assert {finding.kind: finding.outcome for finding in between} == {
        kind: findings[kind].outcome for kind in ("latency", "errors")
    }


def test_latency_is_judged_between_windows_too(files: ServiceFiles, tmp_path: Path) -> None:
    settings, version = MonitorSettings(SECTION), Variant("champion", "v1", "d", str(tmp_path))
    look = performance_look(files)
    gateway(files, 100, 0.2)
    first = look(settings, version, (), 1e6)
    assert [item.kind for item in first] == ["estimated", "realised", "latency", "errors"]
    gateway(files, 5000, 0.2)
    known = replace_kinds(first, look(settings, version, None, 1e6 + 60))
    assert {item.kind: item.verdict for item in known} == {
        "estimated": "INCONCLUSIVE", "realised": "INCONCLUSIVE", "latency": "FAILED", "errors": "PASSED"
    }  # fmt: skip


def test_a_damaged_history_begins_anew_and_is_told_once(files: ServiceFiles, caplog: pytest.LogCaptureFixture) -> None:
    files.write_json(REQUESTS, {"parts": [[1]], "last": {}, "looked": 1})
    files.write_bytes("evidence/r2.json", b"{")
    gateway(files, 100, 0.005)
    monitoring = PerformanceMonitoring(files)
    with caplog.at_level(logging.ERROR):
        for minute in range(3):
            monitoring.look_at_requests("v1", 1e6 + 60.0 * minute)
    assert len(caplog.records) == 2
    assert files.read_json(REQUESTS)["looked"] == 1e6 + 120.0


def test_a_bundle_without_a_calibrator_or_with_a_damaged_one_is_unknown(
    files: ServiceFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, content in enumerate((None, b"{}", b"[1]", b'{"task": "regression", "format": 7}')):
        path = packed(tmp_path / str(number), content)
        monitoring = PerformanceMonitoring(files)
        estimate = monitoring.assess(SECTION, "v1", path, (), 1e9)[0]
        assert (estimate.outcome, estimate.trust) == (Outcome.INCONCLUSIVE, "UNKNOWN")
    assert len(caplog.records) == 3


def test_a_bundle_s_calibrator_is_read(files: ServiceFiles, tmp_path: Path) -> None:
    scores = np.linspace(0.01, 0.99, 400)
    fitted = fit_calibrator(scores, (scores > 0.5).astype(np.int64), (np.arange(400) % 3 == 0).astype(np.int64))
    assert fitted is not None
    path = packed(tmp_path / "with", json.dumps(fitted.to_json()).encode())
    estimate = PerformanceMonitoring(files).assess(SECTION, "v1", path, (), 1e9)[0]
    assert estimate.reference == fitted.held_out["roc_auc"].realised
    assert estimate.outcome is Outcome.INCONCLUSIVE


def test_an_index_that_cannot_be_read_is_told(files: ServiceFiles) -> None:
    (files.folder / "join.sqlite").write_bytes(b"no database at all" * 100)
    realised = PerformanceMonitoring(files).assess(SECTION, "v1", None, (), 1e9)[1]
    assert realised.outcome is Outcome.INCONCLUSIVE
    assert "cannot be read" in realised.message


def test_labels_are_expected_where_the_recipe_judges_them(files: ServiceFiles) -> None:
    assert not _expects_labels(files)
    files.write_json("monitor/settings.json", {"monitor": SECTION.model_dump(mode="json")})
    assert _expects_labels(files)
    files.write_json("monitor/settings.json", {"monitor": MonitorSection().model_dump(mode="json")})
    assert not _expects_labels(files)
