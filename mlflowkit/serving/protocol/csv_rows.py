"""Rows of a request in CSV (RFC 4180), as SageMaker's clients send them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from mlflowkit.bundle import Signature
from mlflowkit.features.cells import categorical_columns
from mlflowkit.serving.protocol.binary_tensors import Buffer
from mlflowkit.serving.protocol.http_error import CLOSE, RequestError, bad_request


def content_kind(headers: Iterable[tuple[bytes, bytes]]) -> bool | None:
    """Whether a CSV body has a header line, None for a JSON body. Raises RequestError(415) for another content type.

    >>> content_kind([(b"content-type", b"application/json; charset=utf-8")])
    >>> content_kind([(b"content-type", b"text/csv")]), content_kind([(b"content-type", b"text/csv;header=absent")])
    (True, False)
    """
    value = next((value for name, value in headers if name == b"content-type"), b"application/json").lower()
    kind, _, parameters = value.partition(b";")
    if kind.strip() == b"text/csv":
        return b"absent" not in [part.strip().partition(b"=")[2] for part in parameters.split(b";")]
    if kind.strip() == b"application/json":
        return None
    shown = kind[:80].decode("latin-1")
    raise RequestError(415, f"content-type {shown} is not read; send application/json or text/csv", CLOSE)


def csv_rows(body: Buffer, signature: Signature, *, header: bool, limit: int) -> list[dict[str, Any]]:
    """The rows of a CSV body as ``{column: value}``. Raises RequestError naming line and column.

    The first line names the columns; without a ``header``, they come in the order of the signature. An empty cell is a
    missing value.
    """
    try:
        text = bytes(body).decode("utf-8-sig")
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        texts = {*categorical_columns(signature), *signature.texts.dates}
        numeric = {column: column not in texts for tensor in signature.inputs for column in tensor.columns}
        names: Sequence[str] = next(lines, []) if header else list(numeric)
        repeated = [name for name in names if names.count(name) > 1]
        if not names or repeated:
            raise bad_request(f"line 1: {'column ' + repr(repeated[0]) + ' comes twice' if repeated else 'no columns'}")
        rows: list[dict[str, Any]] = []
        for cells in lines:
            if not cells:
                continue
            if len(cells) != len(names):
                raise bad_request(f"line {lines.line_num}: {len(cells)} cells; the columns are {len(names)}")
            if len(rows) == limit:
                raise RequestError(413, f"more than {limit} rows; at most {limit} are answered at once")
            rows.append(
                {
                    name: _cell(cell, lines.line_num, name) if numeric.get(name) else cell or None
                    for name, cell in zip(names, cells, strict=True)
                }
            )
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8: byte {error.start}") from error
    except csv.Error as error:
        raise bad_request(f"the body is not CSV: {error}") from error
    return rows


def _cell(text: str, line: int, name: str) -> float | None:
    """A number, None for an empty cell. Raises RequestError."""
    try:
        return float(text) if text.strip() else None
    except ValueError:
        raise bad_request(f"line {line}, column {name}: {text[:40]!r} is no number") from None
