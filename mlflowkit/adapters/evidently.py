"""Evidently's data-drift report of two samples, made by a child process that is bounded in time and memory.

Evidently imports two hundred modules, reports its use unless told otherwise, and may raise or grow on unusual columns;
so it runs apart: ``python -m mlflowkit.adapters.evidently REFERENCE CURRENT OUT`` reads two Parquet files, writes HTML
and prints one line of JSON: {"rows": [reference, current], "columns": n, "left_out": {column: reason}}, or
{"error": ...}. The interpreter may be another one, with Evidently in an environment of its own; the child imports
nothing else of mlflowkit but its errors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflowkit.errors import EngineError, UsageError

VERSION = "0.7.23"
"""The version that this is tested with."""
SECONDS = 300.0
MEGABYTES = 2048
POLL_SECONDS = 0.1
QUIET = {"DO_NOT_TRACK": "1", "EVIDENTLY_DISABLE_TELEMETRY": "1"}
INSTALL = "pip install 'mlflowkit[evidently]'"


class EvidentlyReports:
    """Makes reports. ``python`` is the interpreter with Evidently, "" for this one."""

    def __init__(self, python: str = "", *, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> None:
        self._python = python
        self._seconds = seconds
        self._megabytes = megabytes

    def write(self, reference: Path, current: Path, out: Path) -> Mapping[str, Any]:
        """Compare two Parquet files and write the report; returns what the child printed.

        Raises UsageError when Evidently is not installed, and EngineError when it raises, or takes too long or too
        much memory. ``out`` is then not written.
        """
        from mlflowkit.system.child_process import die_with_parent_command, python_path

        module = "mlflowkit.adapters.evidently"
        this, *arguments = die_with_parent_command(module, str(reference), str(current), str(out))
        command = [self._python or this, *arguments]
        environment = {**os.environ, **python_path(), **QUIET}
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment, cwd=out.parent
            )
            try:
                self._wait(child)
            finally:
                child.kill()
                child.wait()
            output.seek(0)
            errors.seek(0)
            lines, tail = output.read().decode("utf-8", "replace").splitlines(), errors.read()[-500:]
        result = _parse(lines)
        if result is None or child.returncode != 0:
            detail = (result or {}).get("error") or tail.decode("utf-8", "replace").strip().rpartition("\n")[2]
            if child.returncode == MISSING:
                raise UsageError(f"Evidently is not installed: {detail}", hint=INSTALL)
            raise EngineError(f"Evidently made no report: {detail or f'exit code {child.returncode}'}")
        return result

    def _wait(self, child: subprocess.Popen[bytes]) -> None:
        """Wait for the child's end. Raises EngineError when it exceeds its bounds."""
        import psutil

        deadline = time.monotonic() + self._seconds
        while True:
            try:
                child.wait(POLL_SECONDS)
                return
            except subprocess.TimeoutExpired:
                pass
            if time.monotonic() > deadline:
                raise EngineError(f"Evidently was stopped after {self._seconds:g} s")
            try:
                used = psutil.Process(child.pid).memory_info().rss >> 20
            except psutil.Error:
                continue
            if used > self._megabytes:
                raise EngineError(f"Evidently was stopped at {used:,} MiB; {self._megabytes:,} are allowed")


def _parse(lines: Sequence[str]) -> dict[str, Any] | None:
    try:
        value = json.loads(lines[-1])
    except (ValueError, IndexError):
        return None
    return value if isinstance(value, dict) else None


# ---------------------------------------------------------------------------------------------------- in the child

MISSING = 4
"""Exit code where Evidently cannot be imported."""


def main(arguments: list[str]) -> int:
    """Make one report; returns the exit code."""
    from mlflowkit.system.files import use_private_umask

    use_private_umask()
    reference, current, out = map(Path, arguments)
    os.environ.update(QUIET)
    try:
        _mend_pandas()
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset
    except ImportError as error:
        _print({"error": str(error)})
        return MISSING
    try:
        tables, numbers, texts, left_out = _comparable(reference, current)
        definition = DataDefinition(numerical_columns=numbers, categorical_columns=texts)
        first, second = (Dataset.from_pandas(table, data_definition=definition) for table in tables)
        snapshot = Report([DataDriftPreset()]).run(current_data=second, reference_data=first)
        temporary = out.with_name(f".{out.name}.{os.getpid()}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w"):
            pass
        snapshot.save_html(str(temporary))
        temporary.replace(out)
    except Exception as error:  # noqa: BLE001 - told to the parent
        _print({"error": f"{type(error).__name__}: {error}"[:500]})
        return 1
    _print({"rows": [len(table) for table in tables], "columns": len(numbers) + len(texts), "left_out": left_out})
    return 0


def _print(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _mend_pandas() -> None:
    """Evidently 0.7 takes a function from pandas that pandas 3 no longer has."""
    import numpy as np
    import pandas.core.dtypes.common as common

    if not hasattr(common, "infer_dtype_from_object"):
        vars(common)["infer_dtype_from_object"] = lambda kind: np.dtype(kind).type


def _comparable(reference: Path, current: Path) -> tuple[list[Any], list[str], list[str], dict[str, str]]:
    """Both tables with the columns that Evidently can compare: numbers, texts, and why others are left out."""
    import numpy as np
    import pandas as pd

    tables = [pd.read_parquet(path) for path in (reference, current)]
    numbers: list[str] = []
    texts: list[str] = []
    left_out: dict[str, str] = {}
    for name in tables[0].columns:
        if name not in tables[1].columns:
            left_out[name] = "not in the current rows"
            continue
        columns = [table[name] for table in tables]
        if all(pd.api.types.is_numeric_dtype(column) and column.dtype != bool for column in columns):
            for table in tables:
                table[name] = table[name].astype(float).replace([np.inf, -np.inf], np.nan)
            numbers.append(name)
        else:
            for table in tables:
                text = table[name].astype(object)
                table[name] = text.where(text.isna(), text.map(str)).astype(object)
            texts.append(name)
        if any(table[name].notna().sum() == 0 for table in tables):
            (numbers if name in numbers else texts).remove(name)
            left_out[name] = "no value in one of the two samples"
    names = [*numbers, *texts]
    if not names or not all(len(table) for table in tables):
        raise ValueError("there are no rows, or no columns with values, to compare")
    return [table[names] for table in tables], numbers, texts, left_out


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
