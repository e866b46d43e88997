"""The FileChecker of suites of Great Expectations 1.x: evaluated in a child process, which imports it for seconds."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit.errors import DataError, EngineError, UsageError
from mlflowkit.judging.file_checks.check_sections import ExpectationsCheck, bounded_cell
from mlflowkit.judging.file_checks.expectation_suite import columns_of, number_columns, open_suite
from mlflowkit.judging.file_checks.file_problem import FileProblem
from mlflowkit.system.child_process import die_with_parent_command, python_path
from mlflowkit.values import CheckResult

if TYPE_CHECKING:
    import pandas as pd

MAX_LISTED_ROWS = 10
"""Rows that a failure lists; all are counted."""
SECONDS = 1800.0
"""Longest evaluation of a suite."""
QUIET = {"GX_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
INSTALL = "pip install 'mlflowkit[gx]'"
MAX_WORDS = 120


class ExpectationSuites:
    """The FileChecker port."""

    def __init__(self, *, seconds: float = SECONDS) -> None:
        self._seconds = seconds

    def check(
        self, table: pd.DataFrame, check: ExpectationsCheck, folder: Path, evidence: Path, previous: Path | None = None
    ) -> Sequence[CheckResult]:
        """One result per expectation of the suite, in its order.

        Raises DataError for a suite that cannot be evaluated as a whole, UsageError where Great Expectations is not
        installed, EngineError when its process fails or takes too long.
        """
        require_installed()
        text = (folder / check.suite).read_text(encoding="utf-8")
        listed = open_suite(text, check.suite)
        if isinstance(listed, FileProblem):
            raise DataError(listed.located(check.suite), hint=listed.hint)
        answer = self._evaluate(table, check, listed, folder)
        results = answer["results"]
        types = [(item.get("index"), item.get("type")) for item in results]
        if types != [(index, item.get("type")) for index, item in enumerate(listed)]:
            raise EngineError(f"Great Expectations evaluated {len(results)} of {len(listed)} expectations")
        answer["results"] = [
            {**result, "kwargs": item.get("kwargs"), "rows": _bounded(result["rows"])}
            for item, result in zip(listed, results, strict=True)
        ]
        (evidence / "results.json").write_text(json.dumps({"suite": check.suite, **answer}, indent=1))
        return [_convert(item, result) for item, result in zip(listed, answer["results"], strict=True)]

    def _evaluate(
        self, table: pd.DataFrame, check: ExpectationsCheck, listed: Sequence[Any], folder: Path
    ) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="mlkit-suite-") as place:
            work = Path(place)
            table.to_parquet(work / "table.parquet")
            request = {
                "suite": str(folder / check.suite),
                "table": str(work / "table.parquet"),
                "parameters": check.parameters,
                "numbers": sorted(number_columns(listed)),
                "rows": MAX_LISTED_ROWS,
            }
            (work / "suite_request.json").write_text(json.dumps(request))
            module = "mlflowkit.adapters.data_checks.expectations_child"
            command = die_with_parent_command(module, str(work / "suite_request.json"), str(work / "suite_answer.json"))
            self._run(command, work)
            answer: dict[str, Any] = json.loads((work / "suite_answer.json").read_text(encoding="utf-8"))
            return answer

    def _run(self, command: Sequence[str], work: Path) -> None:
        environment = {**os.environ, **python_path(), **QUIET}
        with (work / "stderr").open("wb") as errors:
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=environment, cwd=work,
                    timeout=self._seconds, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                message = f"Great Expectations was stopped after {self._seconds:g} s"
                raise EngineError(message, hint="split the suite, or check fewer columns") from error
        if done.returncode != 0 or not (work / "suite_answer.json").is_file():
            tail = (work / "stderr").read_bytes()[-500:].decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise EngineError(f"Great Expectations ended with {done.returncode}: {tail[:MAX_WORDS]}")


def require_installed() -> None:
    """Raise UsageError unless Great Expectations 1.x is installed."""
    try:
        version = metadata.version("great-expectations")
    except metadata.PackageNotFoundError:
        raise UsageError("a check of kind expectations needs Great Expectations", hint=INSTALL) from None
    if not version.startswith("1."):
        raise UsageError(f"Great Expectations {version} is installed; suites of 1.x are evaluated", hint=INSTALL)


def _bounded(rows: Sequence[Any]) -> list[Any]:
    return [[int(row), bounded_cell(value)] for row, value in rows[:MAX_LISTED_ROWS]]


def _convert(item: Mapping[str, Any], result: Mapping[str, Any]) -> CheckResult:
    """The CheckResult of an expectation of the file and what the child says of it."""
    kwargs = item.get("kwargs") or {}
    shown = ", ".join(f"{key}={value!r}" for key, value in kwargs.items() if key not in ("column", "mostly"))
    rule = f"{item['type']}({shown[:MAX_WORDS]}{'…' * (len(shown) > MAX_WORDS)})"
    column = ", ".join(columns_of(item))
    if result["error"]:
        message = f"{rule}: {result['error']}"
        return CheckResult("expectations", column, passed=False, message=message, failed=1, error=True)
    counts = result["counts"]
    unexpected = int(counts.get("unexpected_count") or 0)
    failures = tuple((row, value) for row, value in result["rows"])
    words = []
    if "unexpected_count" in counts and "element_count" in counts:
        share = counts.get("unexpected_percent") or 0.0
        words.append(f"{unexpected:,} of {counts['element_count']:,} rows unexpected ({share:.2f} %)")
        words += [f"mostly {kwargs['mostly']:g}"] if isinstance(kwargs.get("mostly"), int | float) else []
    elif result["observed"] is not None:
        words.append(f"observed {str(result['observed'])[:MAX_WORDS]}")
    message = f"{rule}: {', '.join(words) or ('holds' if result['success'] else 'does not hold')}"
    if failures and not result["success"]:
        listed = ", ".join(f"row {row}: {'missing' if value is None else repr(value)}" for row, value in failures)
        message += f": {listed}{f' and {unexpected - len(failures)} more' if unexpected > len(failures) else ''}"
    failed = unexpected if result["success"] else max(unexpected, 1)
    return CheckResult("expectations", column, bool(result["success"]), message, failed=failed, failures=failures)
