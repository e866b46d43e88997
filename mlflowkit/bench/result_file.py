"""Results file of a bench run: rows, machine and all samples, so that a later run can be compared with it.

::

    {format: "mlkit-bench", version: 1, made: "2026-11-20T12:00:00+00:00", quantile: "p99",
     machine: {...}, candidates: [{name, batch, status, reason, ...}], notes: [...],
     measured: [{name, batch, starts: [{samples_us, block, warm_up, settled, parts_us?}]}]}

``starts`` has one entry for each process start of a candidate. Other keys (comparisons, subjects, ...) are kept and not
read. The version counts changes that an older reader would misread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlflowkit.bench.measure import Samples
from mlflowkit.errors import UsageError
from mlflowkit.system.files import replace_file
from mlflowkit.values import Json

FORMAT = "mlkit-bench"
VERSION = 1
HINT = "write one with: mlkit bench TARGET --out baseline.json"
Microseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Start(BaseModel):
    model_config = ConfigDict(strict=True)

    samples_us: list[Microseconds] = Field(min_length=1)
    block: int = Field(ge=1)
    warm_up: int = 0
    settled: bool
    parts_us: dict[str, list[Microseconds]] = Field(default_factory=dict)


class _Measured(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str
    batch: int = Field(ge=1)
    starts: list[_Start] = Field(min_length=1)


class _Row(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    name: str
    batch: int = Field(ge=1)
    status: str
    reason: str = ""


class _ResultDocument(BaseModel):
    model_config = ConfigDict(strict=True)

    time: str = Field(alias="made")
    quantile: str = Field(pattern=r"^p\d{1,2}(\.\d+)?$")
    machine: dict[str, Json]
    candidates: list[_Row]
    measured: list[_Measured]
    notes: list[str] = Field(default_factory=list)


Key = tuple[str, int]
"""A candidate's name and its batch size."""


@dataclass(frozen=True, slots=True)
class SavedResults:
    """Results of an earlier run."""

    quantile: float
    """Quantile of its intervals and comparisons."""
    machine: Mapping[str, Json]
    rows: Mapping[Key, Mapping[str, Json]]
    """Rows of every candidate, measured or not."""
    starts: Mapping[Key, tuple[Samples, ...]]
    """Samples of the measured candidates."""
    time: str = ""
    notes: tuple[str, ...] = ()


def document(result: Mapping[str, Json], starts: Mapping[Key, Sequence[Samples]], time: str) -> dict[str, Json]:
    """Return the results document: the JSON of `mlkit bench --json` with all samples.

    ``result`` has machine, quantile ("p99") and candidates; ``time`` is in ISO 8601.
    """
    measured = [
        {"name": name, "batch": batch, "starts": [samples.to_json() for samples in process_starts]}
        for (name, batch), process_starts in starts.items()
    ]
    return {"format": FORMAT, "version": VERSION, "made": time, **result, "measured": measured}


def write(path: Path, results: Mapping[str, Json]) -> None:
    """Write a document atomically. Raises StoreError if it cannot be written."""
    replace_file(path, json.dumps(results, indent=1).encode() + b"\n", shared=True)


def read(path: Path) -> SavedResults:
    """Read a results file. Raises UsageError with the reason if it is not valid."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}", hint=HINT) from error
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}", hint=HINT) from error
    return parse(value, str(path))


def parse(value: Json, where: str = "the results") -> SavedResults:
    """Parse a results document. Raises UsageError that names ``where`` and the fault.

    >>> parse({"candidates": []}, "old.json")
    Traceback (most recent call last):
    mlflowkit.errors.UsageError: old.json is not a results file of mlkit bench
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UsageError(f"{where} is not a results file of mlkit bench", hint=HINT)
    if value.get("version") != VERSION:
        reads = f"this mlkit reads version {VERSION}"
        raise UsageError(f"{where} has version {value.get('version')!r} of the format; {reads}", hint=HINT)
    try:
        file = _ResultDocument.model_validate(value)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise UsageError(f"{where} is damaged: {place}: {fault['msg']}", hint=HINT) from error
    return SavedResults(
        quantile=float(file.quantile[1:]) / 100,
        machine=file.machine,
        rows=_unique(where, (((row.name, row.batch), row.model_dump()) for row in file.candidates)),
        starts=_unique(where, (((entry.name, entry.batch), _samples(where, entry)) for entry in file.measured)),
        time=file.time,
        notes=tuple(file.notes),
    )


Item = TypeVar("Item")


def _unique(where: str, items: Iterable[tuple[Key, Item]]) -> dict[Key, Item]:
    by_key: dict[Key, Item] = {}
    for key, item in items:
        if key in by_key:
            raise UsageError(f"{where} is damaged: {key[0]} at batch {key[1]} is in it twice", hint=HINT)
        by_key[key] = item
    return by_key


def _samples(where: str, measured: _Measured) -> tuple[Samples, ...]:
    for start in measured.starts:
        for times in (start.samples_us, *start.parts_us.values()):
            if len(times) != len(start.samples_us) or len(times) % start.block:
                fault = f"{len(times)} samples of {measured.name} are not whole blocks of {start.block}"
                raise UsageError(f"{where} is damaged: {fault}", hint=HINT)
    return tuple(Samples.from_json(start.model_dump()) for start in measured.starts)
