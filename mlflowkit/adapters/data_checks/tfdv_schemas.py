"""The FileChecker of schemas of TensorFlow Data Validation: protos of tensorflow-metadata, no TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit.errors import DataError, UsageError
from mlflowkit.judging.file_checks import tfdv_judge, tfdv_schema
from mlflowkit.judging.file_checks.check_sections import TfdvCheck, bounded_cell
from mlflowkit.judging.file_checks.number_texts import as_numbers
from mlflowkit.judging.file_checks.tfdv_judge import ComparedTable, TfdvAnomaly
from mlflowkit.system.text import shell_word
from mlflowkit.values import CheckResult

if TYPE_CHECKING:
    import pandas as pd

MAX_LISTED_ROWS = 10
"""Rows that a failure lists; all are counted."""
STATISTICS = "statistics.json"


class TfdvSchemas:
    """The FileChecker port."""

    def check(
        self, table: pd.DataFrame, check: TfdvCheck, folder: Path, evidence: Path, previous: Path | None = None
    ) -> Sequence[CheckResult]:
        """One result per anomaly, and one per feature without any.

        Raises DataError for a schema with what is not judged, UsageError where the protos are not installed.
        """
        if not tfdv_schema.is_installed():
            raise UsageError("a check of kind tfdv needs tensorflow-metadata", hint=tfdv_schema.INSTALL)
        name = str(check.schema)
        text = (folder / name).read_text(encoding="utf-8")
        rules = tfdv_schema.read_schema(text, environment=check.environment, serving=check.serving)
        if rules.problems:
            raise DataError(rules.problems[0].located(name), hint=rules.problems[0].hint)
        schema = tfdv_schema.parse_schema(text)
        numbers = [item.name for item in schema.feature if tfdv_schema.type_name(item) in ("INT", "FLOAT")]
        table = as_numbers(table, numbers)
        before = _earlier(previous, name)
        served = _served(folder / check.serving, schema, numbers) if check.serving else None
        anomalies = tfdv_judge.judge_table(table, schema, check.environment, before, served)
        _write_anomalies(evidence, schema, anomalies)
        drifting = [item.name for item in schema.feature if item.HasField("drift_comparator")]
        summaries = {key: value for key, value in tfdv_judge.count_values(table, schema).items() if key in drifting}
        kept = {"schema": name, "rows": len(table), "features": summaries}
        (evidence / STATISTICS).write_text(json.dumps(kept, indent=1))
        return list(_results(table, schema, anomalies, first=before is None))


def _results(
    table: pd.DataFrame, schema: Any, anomalies: Sequence[TfdvAnomaly], *, first: bool
) -> Iterator[CheckResult]:
    failed = {anomaly.feature for anomaly in anomalies}
    for anomaly in anomalies:
        rows = sorted(anomaly.rows)[:MAX_LISTED_ROWS]
        cells = [_plain(table.at[row, anomaly.feature]) for row in rows]
        message = f"{anomaly.reason}: {anomaly.description.rstrip('. ')}"
        if rows:
            listed = ", ".join(
                f"row {row}: {'missing' if cell is None else repr(cell)}" for row, cell in zip(rows, cells, strict=True)
            )
            more = len(anomaly.rows) - len(rows)
            message += f": {len(anomaly.rows)} row{'s' * (len(anomaly.rows) > 1)}: {listed}"
            message += f" and {more} more" if more else ""
        failures = tuple(zip(rows, cells, strict=True))
        count = max(len(anomaly.rows), 1)
        yield CheckResult("tfdv", anomaly.feature, passed=False, message=message, failed=count, failures=failures)
    for feature in schema.feature:
        if feature.name not in failed:
            skipped = first and feature.HasField("drift_comparator")
            absent = "" if feature.name in table.columns else "; not in the table, and not required"
            note = "; its drift is not judged: there is no earlier version" if skipped else absent
            yield CheckResult("tfdv", feature.name, passed=True, message=f"no anomalies{note}")


def _earlier(previous: Path | None, name: str) -> ComparedTable | None:
    """What the last run kept of its table for the same schema."""
    for path in sorted(previous.glob(f"*-tfdv/{STATISTICS}")) if previous is not None else ():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["schema"] == name:
            return ComparedTable(kept["rows"], kept["features"])
    return None


def _served(path: Path, schema: Any, numbers: Sequence[str]) -> ComparedTable:
    import pandas as pd

    try:
        table = as_numbers(pd.read_parquet(path), numbers)
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read as Parquet: {error}", hint=f"ls -l {shell_word(path)}") from error
    return ComparedTable(len(table), tfdv_judge.count_values(table, schema))


def _write_anomalies(evidence: Path, schema: Any, anomalies: Sequence[TfdvAnomaly]) -> None:
    """Write ``anomalies.pbtxt`` in the format of TFDV."""
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import anomalies_pb2

    message = anomalies_pb2.Anomalies(baseline=schema)
    for name in dict.fromkeys(anomaly.feature for anomaly in anomalies):
        info = message.anomaly_info[name] if name else message.dataset_anomaly_info
        info.severity = anomalies_pb2.AnomalyInfo.ERROR
        if name:
            info.path.step.append(name)
        own = [anomaly for anomaly in anomalies if anomaly.feature == name]
        info.short_description = own[0].short if len(own) == 1 else "Multiple errors"
        info.description = " ".join(anomaly.description for anomaly in own)
        for anomaly in own:
            kind = anomalies_pb2.AnomalyInfo.Type.Value(anomaly.reason)
            info.reason.add(type=kind, short_description=anomaly.short, description=anomaly.description)
    text = text_format.MessageToString(message, as_utf8=True)
    (evidence / "anomalies.pbtxt").write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    import pandas as pd

    if pd.isna(value):
        return None
    value = value.item() if hasattr(value, "item") else value
    return bounded_cell(value if isinstance(value, str | int | float | bool) else str(value))
