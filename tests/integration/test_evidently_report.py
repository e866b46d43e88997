"""Evidently's report of logged rows: real Evidently in an environment of its own, bounds, and what happens without it.

`python -m benchmarks.clients evidently` makes that environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from benchmarks.clients import CACHE
from mlflowkit.adapters.evidently import EvidentlyReports
from mlflowkit.errors import DataError, EngineError, MlkitError, ServiceError, UsageError
from mlflowkit.monitoring.export.evidently_report import (
    RECORD,
    REPORT,
    SAMPLE_ROWS,
    EvidentlyExporter,
    sample_rows,
    write_report,
)
from mlflowkit.monitoring.monitor_settings import MonitorSection, MonitorSettings, write_settings
from mlflowkit.service_state.records import ServiceFiles
from tests.support.rollout_world import CHAMPION, RolloutWorld

ROOT = Path(__file__).parents[2]
NOW = 1_764_000_000.0
DAY = 86_400.0


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> str:
    """The interpreter of the environment that has Evidently; it finds this source tree."""
    python = CACHE / "evidently" / "bin" / "python"
    if not (CACHE / "evidently" / "complete").exists():
        pytest.skip("no environment for it: python -m benchmarks.clients evidently")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return str(python)


def logged(rows: int, start: float, *, shift: float = 0.0, seed: int = 0, version: str = CHAMPION.version) -> pa.Table:
    """Rows of the prediction log, one a second from ``start``."""
    draws = np.random.default_rng(seed)
    times = pa.array(((start + np.arange(rows)) * 1e6).astype(np.int64)).cast(pa.timestamp("us", "UTC"))
    return pa.table(
        {
            "time": times,
            "answered": pa.array([version] * rows),
            "how": pa.array(["hash"] * rows),
            "input.age": draws.normal(40 + shift, 10, rows).astype(np.float32),
            "input.city": draws.choice(["Ulm", "Bonn"], rows),
            "input.empty": pa.nulls(rows, pa.float32()),
            "label": draws.choice(["good", "bad"], rows),
            "probability.bad": draws.random(rows),
        }
    )


def service(state: Path, *tables: pa.Table, period: str = "1d") -> ServiceFiles:
    """A service with these tables in its prediction log, and Evidently's report asked for."""
    files = RolloutWorld(state).files
    log = files.folder / "predictions"
    log.mkdir(parents=True, exist_ok=True)
    for number, table in enumerate(tables, 1):
        parts = json.dumps([[number, table.num_rows]]).encode()
        table = table.replace_schema_metadata({b"mlkit.parts": parts})
        parquet.write_table(table, log / f"w-{number:08d}-{number:08d}.parquet")
    write_settings(files, MonitorSettings(MonitorSection.model_validate({"export": {"evidently": period}})))
    return files


class Reports:
    """Records the samples that it is given."""

    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)
        self.samples: list[tuple[pd.DataFrame, pd.DataFrame]] = []

    def write(self, reference: Path, current: Path, out: Path) -> Mapping[str, Any]:
        if self.faults:
            raise self.faults.pop(0)
        self.samples.append((pd.read_parquet(reference), pd.read_parquet(current)))
        out.write_text("<html>")
        return {"rows": [len(table) for table in self.samples[-1]], "columns": 4, "left_out": {}}


def test_last_period_is_compared_with_the_rows_before_it_of_the_champion(tmp_path: Path) -> None:
    files = service(
        tmp_path,
        logged(300, NOW - 2 * DAY),
        logged(200, NOW - 0.5 * DAY, shift=5),
        logged(100, NOW - 0.5 * DAY, version="other"),
    )
    reports = Reports()
    EvidentlyExporter(reports).export(files, NOW)
    ((before, current),) = reports.samples
    assert (len(before), len(current)) == (300, 200)
    assert list(current.columns) == ["age", "city", "empty", "label", "probability.bad"]
    assert (files.folder / REPORT).exists()
    assert not list((files.folder / "monitor").glob(".evidently-*"))


def test_sample_is_bounded_uniform_and_the_same_each_time() -> None:
    table = logged(3 * SAMPLE_ROWS, NOW)
    parts = [table.slice(start, 1000) for start in range(0, table.num_rows, 1000)]
    samples = [sample_rows(iter(parts), CHAMPION.version) for _ in range(2)]
    assert samples[0] is not None
    assert samples[0].num_rows == SAMPLE_ROWS
    assert samples[0].equals(samples[1])
    ages = {age: index for index, age in enumerate(table["input.age"].to_pylist())}
    places = np.array([ages[age] for age in samples[0]["age"].to_pylist()])
    assert 0.30 < np.mean(places < SAMPLE_ROWS) < 0.37  # binomial, 5 sigma
    assert sample_rows(iter(parts), "other") is None


def test_report_is_made_once_a_period_and_a_fault_is_told_until_the_next(tmp_path: Path) -> None:
    files = service(tmp_path, logged(30, NOW - 2 * DAY), logged(20, NOW + 0.5 * DAY), logged(9, NOW - 0.5 * DAY))
    reports = Reports(EngineError("Evidently made no report: KeyError"))
    exporter = EvidentlyExporter(reports)
    for seconds in (0.0, 1.0, 3600.0):
        with pytest.raises(ServiceError, match="made no report: KeyError"):
            exporter.export(files, NOW + seconds)
    exporter.export(files, NOW + DAY)
    assert len(reports.samples) == 1
    exporter.export(files, NOW + DAY + 1)
    assert len(reports.samples) == 1
    assert json.loads((files.folder / RECORD).read_text())["error"] == ""


def test_log_without_rows_of_a_period_is_named(tmp_path: Path) -> None:
    files = service(tmp_path, logged(20, NOW - 0.5 * DAY))
    with pytest.raises(DataError, match="no rows before"):
        write_report(files, CHAMPION.version, Reports(), tmp_path / "x.html", since=NOW - DAY, until=NOW)
    with pytest.raises(ServiceError, match="no rows before"):
        EvidentlyExporter(Reports()).export(files, NOW)


def test_evidently_that_is_not_installed_is_told_with_the_command(tmp_path: Path) -> None:
    try:
        import evidently  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("Evidently is installed here")
    files = service(tmp_path, logged(30, NOW - 2 * DAY), logged(20, NOW - 0.5 * DAY))
    with pytest.raises(UsageError, match="not installed") as raised:
        write_report(files, CHAMPION.version, EvidentlyReports(), tmp_path / "x.html", since=NOW - DAY, until=NOW)
    assert raised.value.hint == "pip install 'mlflowkit[evidently]'"


def _stand_in(folder: Path, code: str) -> Path:
    """A package named evidently that runs ``code`` when it is imported."""
    package = folder / "evidently"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    (package / "presets.py").write_text("DataDriftPreset = object\n")
    return folder


@pytest.mark.parametrize(
    ("code", "bounds", "word"),
    [
        ("import time; time.sleep(600)", {"seconds": 5.0}, "stopped after 5 s"),
        ("import time; held = bytearray(b'x') * (600 << 20); time.sleep(600)", {"megabytes": 500}, "500 are allowed"),
        ("import os; os.kill(os.getpid(), 9)", {}, "exit code -9"),
        (
            "class DataDefinition:\n def __init__(self, **k): raise KeyError('odd')\nDataset = Report = object",
            {},
            "odd",
        ),
    ],
)
def test_child_that_hangs_grows_dies_or_raises_ends_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, bounds: Any, word: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{_stand_in(tmp_path / 'stand_in', code)}:{ROOT}")
    files = service(tmp_path / "state", logged(30, NOW - 2 * DAY), logged(20, NOW - 0.5 * DAY))
    out = tmp_path / "x.html"
    with pytest.raises(MlkitError) as raised:
        write_report(
            files, CHAMPION.version, EvidentlyReports(**{"seconds": 120.0, **bounds}), out, since=NOW - DAY, until=NOW
        )
    assert word in raised.value.message
    assert not out.exists()
    assert not list((files.folder / "monitor").glob(".evidently-*"))


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.timeout(1000)
def test_real_evidently_writes_a_report(tmp_path: Path, interpreter: str) -> None:
    files = service(tmp_path, logged(7000, NOW - 2 * DAY), logged(6000, NOW - 0.5 * DAY, shift=20, seed=1))
    begin = time.monotonic()
    result = write_report(
        files,
        CHAMPION.version,
        EvidentlyReports(interpreter, seconds=900.0),
        tmp_path / "report.html",
        since=NOW - DAY,
        until=NOW,
    )
    sys.stderr.write(f"{time.monotonic() - begin:.1f} s\n")
    assert result["rows"] == [SAMPLE_ROWS, SAMPLE_ROWS]
    assert result["columns"] == 4
    assert set(result["left_out"]) == {"empty"}
    page = (tmp_path / "report.html").read_text()
    assert "Drift" in page
    assert "age" in page
    assert os.stat(tmp_path / "report.html").st_mode & 0o077 == 0
