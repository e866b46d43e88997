"""Evaluates a suite of Great Expectations 1.x on a Parquet file, in a process of its own.

``python -m mlflowkit.adapters.data_checks.expectations_child REQUEST ANSWER``: the request is JSON {suite, table,
parameters, rows}, the answer JSON {version, results: [{index, type, success, error, counts, observed, rows}]}, one
result per expectation of the suite, in its order. No cell value is written but those of the first ``rows`` rows.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

COUNTS = ("element_count", "missing_count", "unexpected_count", "unexpected_percent")
INDEX = "mlkit_index"
"""Key of an expectation's meta: results are in another order than the suite."""
MAX_WORDS = 300
MAX_LIST = 10


def main(arguments: list[str]) -> int:
    """Evaluate one request; returns the exit code."""
    from mlflowkit.system.files import use_private_umask

    use_private_umask()
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    answer = evaluate(**request)
    Path(arguments[1]).write_text(json.dumps(answer, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    return 0


def evaluate(suite: str, table: str, parameters: Mapping[str, Any], numbers: Sequence[str], rows: int) -> Any:
    """Evaluate all expectations of a suite's file."""
    import great_expectations as gx
    import pandas as pd

    from mlflowkit.judging.file_checks.number_texts import as_numbers

    listed = json.loads(Path(suite).read_text(encoding="utf-8"))["expectations"]
    frame = as_numbers(pd.read_parquet(table), numbers)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    asset = context.data_sources.add_pandas("table").add_dataframe_asset("table")
    batch = asset.add_batch_definition_whole_dataframe("table").get_batch({"dataframe": frame})
    built: dict[int, Any] = {}
    errors: dict[int, str] = {}
    for index, item in enumerate(listed):
        try:
            built[index] = _build(item, index)
        except Exception as error:  # noqa: BLE001 - the result of this expectation
            errors[index] = _words(error)
    answers, failed = _validate(batch, built, parameters)
    errors |= failed
    results = [
        {"index": index, **_result(item, answers.get(index), errors.get(index, ""), rows)}
        for index, item in enumerate(listed)
    ]
    return {"version": gx.__version__, "results": results}


def _build(item: Mapping[str, Any], index: int) -> Any:
    """An expectation whose result can be told by its index. Raises for an unknown type or argument."""
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    fields = {key: value for key, value in item.items() if key not in ("id", "meta", "rendered_content")}
    return ExpectationConfiguration(**fields, meta={INDEX: index}).to_domain_obj()


def _validate(
    batch: Any, built: Mapping[int, Any], parameters: Mapping[str, Any]
) -> tuple[dict[int, Any], dict[int, str]]:
    """Results and errors by index. Where the suite as a whole raises, each expectation is evaluated alone."""
    from great_expectations.core.expectation_suite import ExpectationSuite

    def evaluate_together(indices: Sequence[int]) -> dict[int, Any]:
        suite = ExpectationSuite(name="suite", expectations=[copy(built[index]) for index in indices])
        options = {"result_format": {"result_format": "COMPLETE"}, "expectation_parameters": dict(parameters)}
        results = batch.validate(suite, **options).results
        by_index = {result.expectation_config.meta[INDEX]: result for result in results}
        if len(results) != len(indices) or set(by_index) != set(indices):
            raise RuntimeError(f"{len(indices)} expectations gave {len(results)} results")
        return by_index

    try:
        return evaluate_together(list(built)) if built else {}, {}
    except Exception:  # noqa: BLE001 - found out for each below
        answers: dict[int, Any] = {}
        errors: dict[int, str] = {}
        for index in built:
            try:
                answers |= evaluate_together([index])
            except Exception as error:  # noqa: BLE001 - the result of this expectation
                errors[index] = _words(error)
        return answers, errors


def _result(item: Mapping[str, Any], result: Any, error: str, rows: int) -> dict[str, Any]:
    plain: dict[str, Any] = {"type": item.get("type"), "success": False, "error": error, "counts": {}}
    plain |= {"observed": None, "rows": []}
    if result is None:
        return {**plain, "error": error or "Great Expectations gave no result"}
    if result.expectation_config.type != item.get("type"):
        return {**plain, "error": f"{result.expectation_config.type} was evaluated in its place"}
    details = result.result or {}
    plain["error"] = _exception(result.exception_info)
    plain["success"] = bool(result.success) and not plain["error"]
    plain["counts"] = {name: _number(details[name]) for name in COUNTS if details.get(name) is not None}
    plain["observed"] = _observed(details.get("observed_value"))
    labels, values = details.get("unexpected_index_list") or [], details.get("unexpected_list") or []
    if labels and len(labels) == len(values):
        pairs = sorted(zip(map(int, labels), values, strict=True), key=lambda pair: pair[0])
        plain["rows"] = [[row, _cell(value)] for row, value in pairs[:rows]]
    return plain


def _exception(info: Any) -> str:
    """The message of an exception, in either of the forms of Great Expectations; "" for none."""
    if not isinstance(info, Mapping):
        return ""
    if info.get("raised_exception"):
        return str(info.get("exception_message") or "raised an exception")[:MAX_WORDS]
    return next(filter(None, map(_exception, info.values())), "")


def _number(value: Any) -> float | int | None:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> Any:
    if isinstance(value, Mapping):
        return [_cell(item) for item in value.values()]
    if isinstance(value, list | tuple):
        return [_cell(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, str | int | float | bool) else str(value)


def _observed(value: Any) -> Any:
    """What an expectation of a whole column saw: a number, or the first few values."""
    if isinstance(value, Mapping):
        return {str(key)[:MAX_WORDS]: _observed(item) for key, item in list(value.items())[:MAX_LIST]}
    if isinstance(value, list | tuple | set):
        return [_observed(item) for item in list(value)[:MAX_LIST]]
    cell = _cell(value)
    return cell[:MAX_WORDS] if isinstance(cell, str) else cell


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:MAX_WORDS]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
