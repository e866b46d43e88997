"""The file of a measurement: rows, machine, and the samples themselves, so that a later run can be held against it.

::

    {format: "mlkit-bench", version: 1, made: "2026-11-20T12:00:00+00:00", quantile: "p99",
     machine: {...}, candidates: [{name, batch, status, reason, ...}], notes: [...],
     measured: [{name, batch, starts: [{samples_us, block, warm_up, settled, parts_us?}]}]}

A file has one entry in ``starts`` for each time that a candidate's process was started. Keys that are not named here
(comparisons, subjects, ...) are kept and not read. Versions count changes that an older reader would misread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlflowkit.bench.measure import Samples
from mlflowkit.errors import UsageError
from mlflowkit.system.files import replace_file
from mlflowkit.values import Json

FORMAT = "mlkit-bench"
VERSION = 1
HINT = "write one with: mlkit bench ... --out baseline.json"
Microseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Start(_Model):
    samples_us: list[Microseconds] = Field(min_length=1)
    block: int = Field(ge=1)
    warm_up: int = 0
    settled: bool
    parts_us: dict[str, list[Microseconds]] = Field(default_factory=dict)


class _Measured(_Model):
    name: str
    batch: int = Field(ge=1)
    starts: list[_Start] = Field(min_length=1)


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: str
    batch: int = Field(ge=1)
    status: str
    reason: str = ""


class _File(_Model):
    format: Literal["mlkit-bench"]
    version: int
    made: str
    quantile: str = Field(pattern=r"^p\d{1,2}(\.\d+)?$")
    machine: dict[str, Json]
    candidates: list[_Row]
    measured: list[_Measured]
    notes: list[str] = Field(default_factory=list)


Key = tuple[str, int]
"""A candidate's name and its batch size."""


@dataclass(frozen=True, slots=True)
class Results:
    """What one run measured."""

    quantile: float
    """What its intervals and comparisons are of."""
    machine: Mapping[str, Json]
    rows: Mapping[Key, Mapping[str, Json]]
    """Of every candidate, those that could not be measured too."""
    starts: Mapping[Key, tuple[Samples, ...]]
    """Of those that were measured."""
    made: str = ""
    notes: tuple[str, ...] = ()


def document(shown: Mapping[str, Json], starts: Mapping[Key, Sequence[Samples]], made: str) -> dict[str, Json]:
    """What `mlkit bench --json` shows, with what it takes to be a baseline.

    ``shown`` has machine, quantile ("p99") and candidates; ``made`` is the time in ISO 8601.
    """
    measured = [
        {"name": name, "batch": batch, "starts": [samples.to_json() for samples in each]}
        for (name, batch), each in starts.items()
    ]
    return {"format": FORMAT, "version": VERSION, "made": made, **shown, "measured": measured}


def write(path: Path, written: Mapping[str, Json]) -> None:
    """Write a document whole or not at all. Raises StoreError when the disk refuses it."""
    replace_file(path, json.dumps(written, indent=1).encode() + b"\n")


def read(path: Path) -> Results:
    """The results in a file. Raises UsageError that says what the file lacks."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}", hint=HINT) from error
    try:
        value = json.loads(content)
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", hint=HINT) from error
    return parse(value, str(path))


def parse(value: Json, where: str = "the results") -> Results:
    """The results in a document. Raises UsageError that names ``where`` and what is wrong with it.

    >>> parse({"candidates": []}, "old.json")
    Traceback (most recent call last):
    mlflowkit.errors.UsageError: old.json is not a results file of mlkit bench
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UsageError(f"{where} is not a results file of mlkit bench", hint=HINT)
    if value.get("version") != VERSION:
        raise UsageError(
            f"{where} has version {value.get('version')!r} of the format; this mlkit reads version {VERSION}", hint=HINT
        )
    try:
        file = _File.model_validate(value)
    except ValidationError as error:
        raise UsageError(f"{where} is damaged: {_first(error)}", hint=HINT) from error
    return Results(
        quantile=float(file.quantile[1:]) / 100,
        machine=file.machine,
        rows=_once(where, (((row.name, row.batch), row.model_dump()) for row in file.candidates)),
        starts=_once(where, (((one.name, one.batch), _samples(where, one)) for one in file.measured)),
        made=file.made,
        notes=tuple(file.notes),
    )


Item = TypeVar("Item")


def _once(where: str, items: Iterable[tuple[Key, Item]]) -> dict[Key, Item]:
    found: dict[Key, Item] = {}
    for key, item in items:
        if key in found:
            raise UsageError(f"{where} is damaged: {key[0]} at batch {key[1]} is in it twice", hint=HINT)
        found[key] = item
    return found


def _samples(where: str, measured: _Measured) -> tuple[Samples, ...]:
    for start in measured.starts:
        for times in (start.samples_us, *start.parts_us.values()):
            if len(times) != len(start.samples_us) or len(times) % start.block:
                said = f"{len(times)} samples of {measured.name} are not whole blocks of {start.block}"
                raise UsageError(f"{where} is damaged: {said}", hint=HINT)
    return tuple(Samples.from_json(start.model_dump()) for start in measured.starts)


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"])
    return f"{place}: {fault['msg']}"
