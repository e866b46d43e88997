"""mlkit predict: predict rows by a service, or by a bundle in this process."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, note, print_result, state_folder
from mlflowkit.cli.score_file import ScoringRequest, score_with_bundle, score_with_service
from mlflowkit.cli.service_lookup import endpoint_of, reason
from mlflowkit.errors import ServiceError, UsageError
from mlflowkit.system.text import format_list

if TYPE_CHECKING:
    from mlflowkit.bundle import TextRule

BATCH = 1000
"""Rows of one request."""
_NOT_FINITE = "a number that is not finite cannot be sent; use null for a missing value"


@dataclass(frozen=True, slots=True)
class _Client:
    """A service's URL and authorization header."""

    url: str
    headers: Mapping[str, str]

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return (status, reply). Raises UsageError for an API key that is missing, unknown or without the scope."""
        from mlflowkit.service_state import http_client

        status, reply = http_client.request(self.url, method, path, body, headers=self.headers)
        if status in (401, 403):
            hint = "--key KEY, or MLKIT_API_KEY; mlkit key create --scope infer"
            raise UsageError(f"{self.url}: {reason(status, reply)}", hint=hint)
        return status, reply


@app.command()
def predict(
    service: Annotated[
        str | None, typer.Argument(metavar="[SERVICE]", help="A service of the state folder; the only one if left out.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(metavar="URL", help="Use this URL instead.")] = None,
    rows: Annotated[str | None, typer.Option(metavar="JSON", help='Rows as JSON: [{"column": value}].')] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Rows from a .csv, .parquet, .jsonl or .json file; - is stdin (JSON or CSV)."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="BUNDLE", help="Predict here, without a service: a bundle's folder, or RECIPE@champion."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the rows with their predictions to a .csv, .parquet or .jsonl file."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="With --out: a column to write beside the predictions [default: all]."),
    ] = None,
    prefix: Annotated[str, typer.Option(metavar="TEXT", help="With --out: prefix of the predictions' columns.")] = "",
    missing_columns: Annotated[
        str,
        typer.Option(metavar="error|null", help="With --out or --model: when the file lacks a column of the model."),
    ] = "error",
    separator: Annotated[
        str | None, typer.Option(metavar="CHARACTER", help="Between the fields of a CSV, with --out or --model.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar="MLKIT_API_KEY", metavar="KEY", help="An API key with scope infer.")
    ] = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Predict rows from --rows, --file or stdin, by a service or (--model) by a bundle in this process.

    With --out or --model a file of any size is read in batches, and columns that the model does not take are ignored.
    """
    _check_options(service, endpoint, rows, file, model, missing_columns)
    request = ScoringRequest(file, rows, out, keep, prefix, missing_columns == "null", separator, json)
    if model is not None:
        score_with_bundle(state_folder(state), model, request)
        return
    url = endpoint or endpoint_of(state_folder(state), service, "mlkit predict")
    client = _Client(url, {} if key is None else {"authorization": f"Bearer {key}"})
    if out is not None or (file is not None and file.suffix not in (".json", ".csv", "")):
        score_with_service(url, client.request, request)
    else:
        _predict_rows(client, _rows(rows, file, client), json)


def _check_options(
    service: str | None,
    endpoint: str | None,
    rows: str | None,
    file: Path | None,
    model: str | None,
    missing_columns: str,
) -> None:
    """Raise UsageError for options that exclude each other, and for an unknown value."""
    excluding = [
        (service is not None and endpoint is not None, "a service or --endpoint"),
        (rows is not None and file is not None, "--rows or --file"),
        (model is not None and (service is not None or endpoint is not None), "--model or a service"),
    ]
    for both, names in excluding:
        if both:
            raise UsageError(f"give {names}, not both", hint="mlkit predict --help")
    if missing_columns not in ("error", "null"):
        raise UsageError(f"--missing-columns {missing_columns}: error or null is expected", hint="mlkit predict --help")


def _predict_rows(client: _Client, inputs: Sequence[Any], json: bool) -> None:
    """Request predictions of a few rows and print them, with what the service notes about them."""
    if not inputs:
        raise UsageError("there are no rows to predict", hint="--rows '[{\"column\": value}]'")
    replies = list(_predict(client, inputs))
    predictions = [prediction for reply in replies for prediction in reply["predictions"]]
    served = {name: replies[-1][name] for name in ("model_name", "model_version")}
    notes = [reply["notes"] for reply in replies if reply.get("notes")]
    value = {"endpoint": client.url, **served, "predictions": predictions, **({"notes": notes} if notes else {})}
    for reply_notes in notes:
        note(f"warning: {_format_notes(reply_notes)}")
    print_result(value, "\n".join(map(_format_prediction, predictions)), json)


def _rows(text: str | None, file: Path | None, client: _Client) -> list[Any]:
    """Read rows from the option, the file or stdin."""
    import json

    where = "--rows"
    if text is None:
        where = "stdin" if file is None or str(file) == "-" else str(file)
        text = _read(file)
        if where.endswith(".csv") or (where == "stdin" and text.lstrip()[:1] not in ("[", "{")):
            return _csv(text, client, where)
    try:
        document = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}", hint='such as [{"column": value}]') from error
    if isinstance(document, dict):
        document = document.get("rows", [document])
    if not isinstance(document, list):
        raise UsageError(f"{where} is not a list of rows", hint='such as [{"column": value}]')
    return document


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]}: {_NOT_FINITE}")
    return value


def _read(file: Path | None) -> str:
    """Read a file, or stdin for None, without changing line ends, which may be inside a quoted field of a CSV."""
    if file is None and sys.stdin.isatty():
        hint = "--rows JSON or --file FILE; --file - reads what you type"
        raise UsageError("there are no rows to predict", hint=hint)
    stdin = file is None or str(file) == "-"
    try:
        return (sys.stdin.buffer.read() if file is None or stdin else file.read_bytes()).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", hint="--file FILE.json or FILE.csv") from error
    except UnicodeDecodeError as error:
        where = "stdin" if stdin else file
        raise UsageError(f"{where} is not UTF-8: {error}", hint="rows are JSON or CSV, in UTF-8") from error


def _csv(text: str, client: _Client, where: str) -> list[dict[str, Any]]:
    """Parse rows of a CSV, with the model's metadata for numeric columns and for what texts mean."""
    from mlflowkit.features.cells import category_rules

    numeric, columns, rule = _model_columns(client)
    lines = _csv_lines(text, where)
    _, header = next(lines, (0, []))
    header = [name.strip() for name in header] if rule.trim else header
    repeated = [column for index, column in enumerate(header) if column in header[:index]]
    if repeated:
        raise UsageError(f"{where}:1: column {repeated[0]!r} occurs twice", hint="name each column once")
    ignored = [column for column in header if column not in columns] if columns else []
    if ignored:
        note(f"ignored, because the model does not take them: {format_list(ignored, 12)}")
    categories = category_rules(rule.model_copy(update={"tokens": {}}), header)  # the service takes texts apart
    rows = []
    for number, fields in lines:
        if len(fields) != len(header):
            problem = f"{len(fields)} fields; the header has {len(header)}"
            raise UsageError(f"{where}:{number}: {problem}", hint='a field with a comma in it is quoted: "a, b"')
        row: dict[str, Any] = {}
        for column, value in zip(header, fields, strict=True):
            if column in ignored:
                continue
            if column in numeric:
                row[column] = _number(value, rule, f"{where}:{number}: {column}")
            else:
                row[column] = categories[column].text(value) or None
        rows.append(row)
    return rows


def _csv_lines(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number, fields) of each line of a CSV that is not blank. Raises UsageError."""
    import csv
    import io

    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise UsageError(f"{where}:{reader.line_num}: not CSV: {error}", hint="--file FILE.json or FILE.csv") from error


def _number(text: str, rule: TextRule, where: str) -> float | bool | None:
    from mlflowkit.features.cells import number_of

    try:
        return number_of(text, rule)
    except ValueError as error:
        raise UsageError(f"{where}: {error}", hint="an empty field is a missing value") from error


def _model_columns(client: _Client) -> tuple[frozenset[str], frozenset[str], TextRule]:
    """The numeric columns of the service's model, all of them, and what texts mean to it.

    A service of version 0.1 does not say; its model was trained with the default texts of missing values.
    """
    from mlflowkit.bundle import TextRule
    from mlflowkit.features.cells import DEFAULT_MISSING

    server = _get(client, "/v2")
    models = server.get("models") if isinstance(server, dict) else None
    if not models:
        raise ServiceError(
            f"{client.url} does not list its models", hint="mlkit status lists the services: this is none of them"
        )
    columns: dict[bool, set[str]] = {True: set(), False: set()}
    model = _get(client, f"/v2/models/{models[0]}")
    for tensor in model["inputs"]:
        columns[tensor["datatype"] != "BYTES"].update(tensor.get("parameters", {}).get("columns", ()))
    texts = model.get("parameters", {}).get("texts", {"missing": DEFAULT_MISSING})
    rule = TextRule.model_validate(texts)
    return frozenset(columns[True]), frozenset(columns[True] | columns[False]), rule


def _get(client: _Client, path: str) -> Any:
    status, reply = client.request("GET", path)
    if status != 200:
        raise ServiceError(f"{client.url}{path}: {reason(status, reply)}", hint="mlkit status")
    return reply


def _predict(client: _Client, rows: Sequence[Any]) -> Iterator[Any]:
    for begin in range(0, len(rows), BATCH):
        status, reply = client.request("POST", "/predict", {"rows": list(rows[begin : begin + BATCH])})
        if status == 200:
            if not isinstance(reply, dict) or "predictions" not in reply:
                raise ServiceError(f"{client.url}/predict is no endpoint of an mlkit service", hint="mlkit status")
            yield reply
        elif 400 <= status < 500:
            more = f" (rows are counted from row {begin} of the input)" if begin else ""
            raise UsageError(reason(status, reply) + more, hint=f"{client.url}/v2 and its models describe the inputs")
        else:
            raise ServiceError(f"{client.url}: {reason(status, reply)}", hint="mlkit status")


def _format_notes(notes: Mapping[str, Mapping[str, int]]) -> str:
    """What a reply tells of its rows: cells by note and column.

    >>> _format_notes({"unseen_categories": {"zip": 2}})
    'unseen categories: zip in 2 rows'
    """
    parts = []
    for name, columns in notes.items():
        cells = ", ".join(f"{column} in {rows} row{'' if rows == 1 else 's'}" for column, rows in columns.items())
        parts.append(f"{name.replace('_', ' ')}: {cells}")
    return "; ".join(parts)


def _format_prediction(prediction: dict[str, Any]) -> str:
    if "prediction" in prediction:
        return f"{prediction['prediction']:.6g}"
    shares = "  ".join(f"{name} {share:.4f}" for name, share in prediction["probabilities"].items())
    return f"{prediction['label']}  {shares}"
