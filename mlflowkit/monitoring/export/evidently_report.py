"""Evidently's report of a service's logged rows: those of the last period against those before it.

At most SAMPLE_ROWS of each, drawn uniformly, of the version that is champion. The report is
``services/<service>/monitor/evidently.html``; ``monitor/evidently.json`` has the last attempt's time and fault.
Evidently's own judgement is its own: it tests rows, not windows, and at its defaults calls most small clean samples
drifted (see docs/howto/evidently.md). Nothing here acts on it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlflowkit.errors import DataError, MlkitError, ServiceError
from mlflowkit.monitoring.monitor_settings import read_settings, seconds_of
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.files import make_folder
from mlflowkit.values import Json

if TYPE_CHECKING:
    import pyarrow as pa

RECORD, REPORT = "monitor/evidently.json", "monitor/evidently.html"
SAMPLE_ROWS = 5_000
SEED = 0
_COLUMNS = ("time", "answered", "how", "input.", "label", "prediction", "probability.")


class SampleReports(Protocol):
    """Compares two samples of rows."""

    def write(self, reference: Path, current: Path, out: Path) -> Mapping[str, Any]:
        """Compare two Parquet files and write HTML: {rows, columns, left_out}. Raises MlkitError."""
        ...


def write_report(
    files: ServiceFiles, version: str, reports: SampleReports, out: Path, *, since: float, until: float
) -> Mapping[str, Any]:
    """Compare the rows that a version answered in [since, until) with its rows before, and write a report to ``out``.

    Raises DataError where one of the two has no rows, and what ``reports`` raises.
    """
    from pyarrow import parquet

    from mlflowkit.serving.observer.prediction_log import read_log

    log = files.folder / "predictions"
    make_folder(files.folder / "monitor")
    with tempfile.TemporaryDirectory(prefix=".evidently-", dir=files.folder / "monitor") as folder:
        paths: list[Path] = []
        for name, begin, end in (("rows before", 0.0, since), ("rows since", since, until)):
            sample = sample_rows(read_log(log, begin, end, _COLUMNS), version)
            if sample is None:
                when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(since))
                raise DataError(
                    f"the prediction log of {files.service} has no {name} {when} UTC of version {version}",
                    hint="a shorter --since leaves more rows before it; serve.log says how long rows are kept",
                )
            paths.append(Path(folder) / f"{len(paths)}.parquet")
            parquet.write_table(sample, paths[-1])
        return reports.write(paths[0], paths[1], out)


def sample_rows(tables: Iterable[pa.Table], version: str, rows: int = SAMPLE_ROWS) -> pa.Table | None:
    """At most ``rows`` rows that a version answered itself, drawn uniformly and the same each time; None for none."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as compute

    draws = np.random.default_rng(SEED)
    kept: pa.Table | None = None
    for table in tables:
        own = compute.and_(compute.equal(table["answered"], version), compute.not_equal(table["how"], "mirror"))
        part = table.filter(own)
        part = part.append_column("draw", pa.array(draws.random(part.num_rows)))
        kept = part if kept is None else pa.concat_tables([kept, part], promote_options="default")
        if kept.num_rows > rows:
            kept = kept.take(np.sort(np.argpartition(kept["draw"].to_numpy(), rows)[:rows]))
    if kept is None or not kept.num_rows:
        return None
    names = [name for name in kept.column_names if name not in ("time", "answered", "how", "draw")]
    return kept.select(names).rename_columns([name.removeprefix("input.") for name in names])


class EvidentlyExporter:
    """Writes the report of each service whose settings ask for it, once a period."""

    name = "evidently"

    def __init__(self, reports: SampleReports) -> None:
        self._reports = reports

    def export(self, files: ServiceFiles, now: float) -> None:
        """Write the report when it is due. A failed one is tried again a period later, and raises until then."""
        settings = read_settings(files)
        period = None if settings is None else settings.monitor.export.evidently
        table = files.table()
        if period is None or table is None:
            return
        seconds = seconds_of(period)
        last = files.read_json(RECORD)
        last = last if isinstance(last, dict) else {}
        attempted = last.get("attempted", 0.0)
        if isinstance(attempted, int | float) and 0 <= now - attempted < seconds:
            if last.get("error"):
                raise ServiceError(str(last["error"]))
            return
        version = table.champion.version
        result: dict[str, Json] = {"attempted": now, "version": version, "error": ""}
        try:
            out = files.folder / REPORT
            result |= write_report(files, version, self._reports, out, since=now - seconds, until=now)
        except MlkitError as error:
            hint = f" ({error.hint})" if error.hint else ""
            result["error"] = f"{error.message}{hint}"
        files.write_json(RECORD, result)
        if result["error"]:
            raise ServiceError(result["error"])
