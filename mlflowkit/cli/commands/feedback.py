"""mlkit feedback: send a service the true labels or values of earlier requests.

``--json`` prints {endpoint, accepted}.
"""

from __future__ import annotations

import csv
import io
import json as documents
from pathlib import Path
from typing import Annotated, Any

import typer

from mlflowkit.cli.app import JsonOption, StateOption, app, print_result, state_folder
from mlflowkit.cli.service_lookup import endpoint_of, reason
from mlflowkit.errors import ServiceError, UsageError
from mlflowkit.system.text import format_count

BATCH = 1000
"""Items of one request."""
_HINT = "a CSV with the columns id and label (or target), or lines of JSON such as " + '{"id": "...", "label": "..."}'


@app.command()
def feedback(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Items in a .csv, .jsonl or .json file.")
    ] = None,
    service: Annotated[
        str | None, typer.Option(metavar="NAME", help="A service; optional if there is only one.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(metavar="URL", help="Use this URL instead.")] = None,
    id: Annotated[str | None, typer.Option(metavar="ID", help="The id of one request.")] = None,
    label: Annotated[str | None, typer.Option(metavar="CLASS", help="The true class of its row.")] = None,
    target: Annotated[float | None, typer.Option(metavar="NUMBER", help="The true value.")] = None,
    key: Annotated[
        str | None, typer.Option(envvar="MLKIT_API_KEY", metavar="KEY", help="An API key with scope feedback.")
    ] = None,
    state: StateOption = None,
    json: JsonOption = False,
) -> None:
    """Send true labels or values by request id; sending them again does no harm."""
    if (file is None) == (id is None):
        raise UsageError("give a file, or --id with --label or --target", hint="mlkit feedback --help")
    if service is not None and endpoint is not None:
        raise UsageError("give --service or --endpoint, not both", hint="mlkit feedback --help")
    items = _single_item(id, label, target) if file is None else _items(file)
    url = endpoint or endpoint_of(state_folder(state), service, "mlkit feedback --service")
    accepted = _send(url, items, key)
    print_result({"endpoint": url, "accepted": accepted}, f"{format_count(accepted, 'item')} accepted by {url}", json)


def _single_item(number: str | None, label: str | None, target: float | None) -> list[Any]:
    if (label is None) == (target is None):
        raise UsageError("--id needs --label (classification) or --target (regression)", hint="mlkit feedback --help")
    return [{"id": number, **({"label": label} if label is not None else {"target": target})}]


def _items(path: Path) -> list[Any]:
    """Read the items of a file. Raises UsageError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", hint=_HINT) from error
    if path.suffix == ".csv":
        items = _csv(text, path)
    elif path.suffix in (".jsonl", ".ndjson"):
        items = [_json(line, f"{path}:{number}") for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    else:
        document = _json(text, str(path))
        items = document.get("feedback", [document]) if isinstance(document, dict) else document
    if not isinstance(items, list) or not items:
        raise UsageError(f"{path} holds no feedback", hint=_HINT)
    return items


def _json(text: str, where: str) -> Any:
    try:
        return documents.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON: {error}", hint=_HINT) from error


def _csv(text: str, path: Path) -> list[dict[str, Any]]:
    """Parse a CSV of one row an item; repeated ids are the rows of one request, in order."""
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise UsageError(f"{path}: not CSV: {error}", hint=_HINT) from error
    header = set(rows[0]) if rows else set()
    kinds = header & {"label", "target"}
    if "id" not in header or len(kinds) != 1 or not header <= {"id", "label", "target", "time"}:
        columns = ", ".join(sorted(map(str, header))) or "nothing"
        raise UsageError(f"{path}:1: the columns id and label (or target) are needed, columns {columns}", hint=_HINT)
    kind = kinds.pop()
    items: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows, 2):
        item = items.setdefault(row["id"], {"id": row["id"], kind: []})
        item[kind].append(_value(kind, row[kind], f"{path}:{number}"))
        if row.get("time"):
            item["time"] = _value("target", row["time"], f"{path}:{number}")
    return [item for item in items.values() if any(value is not None for value in item[kind])]


def _value(kind: str, text: str | None, where: str) -> str | float | None:
    if not text:
        return None
    if kind == "label":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{where}: {text[:40]!r} is not a number", hint=_HINT) from error


def _send(url: str, items: list[Any], key: str | None) -> int:
    """Send the items; return the number accepted. Raises UsageError or ServiceError with the number accepted before."""
    from mlflowkit.service_state import http_client

    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    accepted = 0
    for begin in range(0, len(items), BATCH):
        body = {"feedback": items[begin : begin + BATCH]}
        try:
            status, reply = http_client.request(url, "POST", "/v2/feedback", body, headers=headers)
        except ValueError as error:
            raise UsageError(f"a number that is not finite cannot be sent: {error}", hint=_HINT) from error
        if status != 202:
            message = reason(status, reply) + (f"; {accepted} items were accepted before" if accepted else "")
            if status in (401, 403):
                hint = "--key KEY, or MLKIT_API_KEY; mlkit key create --scope feedback"
                raise UsageError(f"{url}: {message}", hint=hint)
            if 400 <= status < 500:
                more = f" (items are counted from item {begin} of the input)" if begin else ""
                raise UsageError(message + more, hint=_HINT)
            raise ServiceError(f"{url}: {message}", hint="run it again: accepted items do no harm")
        accepted += int(reply["accepted"])
    return accepted
