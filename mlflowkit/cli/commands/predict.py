"""mlkit predict: ask a service."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, echo, emit_json, state_folder
from mlflowkit.cli.service_lookup import endpoint_of, reason
from mlflowkit.errors import ServiceError, UsageError

BATCH = 1000
"""Rows a request."""
MISSING = frozenset(
    (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
        *("N/A", "NA", "NULL", "NaN", "n/a", "nan", "null"),
    )
)
"""What a missing value looks like in a CSV: the same texts as where the data stage reads one (pyarrow's)."""
_NO_NUMBER = "a number that is not finite cannot be sent; null says that a value is missing"


@dataclass(frozen=True, slots=True)
class _Service:
    """Where to ask, and what proves that one may."""

    url: str
    headers: Mapping[str, str]

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """(status, reply). Raises UsageError for an API key that is missing, unknown or without the scope."""
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
    endpoint: Annotated[str | None, typer.Option("--endpoint", metavar="URL", help="Ask this URL instead.")] = None,
    rows: Annotated[
        str | None, typer.Option("--rows", metavar="JSON", help='Rows as JSON: [{"column": value}].')
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Rows from a .json or .csv file; - is stdin.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", envvar="MLKIT_API_KEY", metavar="KEY", help="An API key with scope infer.")
    ] = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> int:
    """Ask a service for predictions; rows come from --rows, --file or stdin (JSON or CSV)."""
    if service is not None and endpoint is not None:
        raise UsageError("give a service or --endpoint, not both", hint="mlkit predict --help")
    if rows is not None and file is not None:
        raise UsageError("give --rows or --file, not both", hint="mlkit predict --help")
    url = endpoint or endpoint_of(state_folder(state), service, "mlkit predict")
    at = _Service(url, {} if key is None else {"authorization": f"Bearer {key}"})
    asked = _rows(rows, file, at)
    if not asked:
        raise UsageError("there are no rows to ask", hint="--rows '[{\"column\": value}]'")
    replies = list(_ask(at, asked))
    predictions = [prediction for reply in replies for prediction in reply["predictions"]]
    if json:
        emit_json(
            {
                "endpoint": url,
                "model_name": replies[-1]["model_name"],
                "model_version": replies[-1]["model_version"],
                "predictions": predictions,
            }
        )
        return 0
    for prediction in predictions:
        echo(_line(prediction))
    return 0


def _rows(text: str | None, file: Path | None, at: _Service) -> list[Any]:
    """Rows from the option, the file or stdin."""
    import json

    where = "--rows"
    if text is None:
        where = "stdin" if file is None or str(file) == "-" else str(file)
        text = _stdin(file) if where == "stdin" else _read(Path(where))
        if where.endswith(".csv") or (where == "stdin" and text.lstrip()[:1] not in ("[", "{")):
            return _csv(text, at, where)
    try:
        document = json.loads(text, parse_constant=_not_json, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}", hint='such as [{"column": value}]') from error
    if isinstance(document, dict):
        document = document.get("rows", [document])
    if not isinstance(document, list):
        raise UsageError(f"{where} is not a list of rows", hint='such as [{"column": value}]')
    return document


def _not_json(name: str) -> float:
    raise ValueError(f"{name}: {_NO_NUMBER}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]}: {_NO_NUMBER}")
    return value


def _stdin(file: Path | None) -> str:
    if file is None and sys.stdin.isatty():
        raise UsageError("there are no rows to ask", hint="--rows JSON or --file FILE; --file - reads what you type")
    return _decoded(sys.stdin.buffer.read(), "stdin")


def _read(path: Path) -> str:
    try:
        return _decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="--file FILE.json or FILE.csv") from error


def _decoded(content: bytes, where: str) -> str:
    """The text, line ends untouched: those within a quoted field of a CSV are its own."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8: {error}", hint="rows are JSON or CSV, in UTF-8") from error


def _csv(text: str, at: _Service, where: str) -> list[dict[str, Any]]:
    """Rows of a CSV; the model's metadata says which columns are numbers. What is in `MISSING` is a missing value."""
    numeric = _numeric_columns(at)
    lines = _csv_lines(text, where)
    _, header = next(lines, (0, []))
    twice = [column for place, column in enumerate(header) if column in header[:place]]
    if twice:
        raise UsageError(f"{where}:1: column {twice[0]!r} is there twice", hint="name each column once")
    rows = []
    for number, fields in lines:
        if len(fields) != len(header):
            raise UsageError(
                f"{where}:{number}: {len(fields)} fields; the header has {len(header)}",
                hint='a field with a comma in it is quoted: "a, b"',
            )
        rows.append(
            {
                column: _number(value, f"{where}:{number}: {column}")
                if column in numeric
                else (None if value in MISSING else value)
                for column, value in zip(header, fields, strict=True)
            }
        )
    return rows


def _csv_lines(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """(number, fields) of each line of a CSV that is not blank. Raises UsageError."""
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


def _number(text: str, where: str) -> float | bool | None:
    value = text.strip()
    if value in MISSING:
        return None
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        return _finite(value)
    except ValueError as error:
        raise UsageError(
            f"{where}: {text[:40]!r} is not a finite number", hint="an empty field is a missing value"
        ) from error


def _numeric_columns(at: _Service) -> frozenset[str]:
    server = _get(at, "/v2")
    models = server.get("models") if isinstance(server, dict) else None
    if not models:
        raise ServiceError(f"{at.url} does not say which models it has", hint="is it a service of mlkit? mlkit status")
    inputs = _get(at, f"/v2/models/{models[0]}")["inputs"]
    return frozenset(
        column
        for tensor in inputs
        if tensor["datatype"] != "BYTES"
        for column in tensor.get("parameters", {}).get("columns", ())
    )


def _get(at: _Service, path: str) -> Any:
    status, reply = at.ask("GET", path)
    if status != 200:
        raise ServiceError(f"{at.url}{path}: {reason(status, reply)}", hint="mlkit status")
    return reply


def _ask(at: _Service, rows: Sequence[Any]) -> Iterator[Any]:
    for begin in range(0, len(rows), BATCH):
        status, reply = at.ask("POST", "/predict", {"rows": list(rows[begin : begin + BATCH])})
        if status == 200:
            if not isinstance(reply, dict) or "predictions" not in reply:
                raise ServiceError(f"{at.url}/predict does not answer as a service of mlkit does", hint="mlkit status")
            yield reply
        elif 400 <= status < 500:
            more = f" (rows are counted from row {begin} of the input)" if begin else ""
            raise UsageError(reason(status, reply) + more, hint=f"{at.url}/v2 and its models say what is allowed")
        else:
            raise ServiceError(f"{at.url}: {reason(status, reply)}", hint="mlkit status")


def _line(prediction: dict[str, Any]) -> str:
    if "prediction" in prediction:
        return f"{prediction['prediction']:.6g}"
    shares = "  ".join(f"{name} {share:.4f}" for name, share in prediction["probabilities"].items())
    return f"{prediction['label']}  {shares}"
