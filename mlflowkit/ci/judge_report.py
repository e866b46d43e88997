"""What a pipeline's judgement says: the file ``report.json`` that `mlkit ci judge` writes and the later steps read.

It crosses jobs, and from a fork it crosses trust: `read_report` bounds its size and checks every field.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlflowkit.errors import UsageError

SCHEMA = 1
"""Version of the file; it rises when a key is removed or changes its meaning."""
MAX_BYTES = 200_000
"""Largest report that is read."""
MAX_VERDICTS = 2000
"""Verdicts of a report; more are counted in ``verdicts_left_out``, those that PASSED first."""
OutcomeWord = Literal["PASSED", "FAILED", "INCONCLUSIVE", "ERROR"]
Text = Annotated[str, Field(max_length=2000)]
Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Commit = Annotated[str, Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})?$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, strict=True)


class ReportedMeasurement(_Part):
    """A number with its interval: ``low <= value <= high`` at ``confidence`` from ``samples`` observations."""

    value: float
    low: float
    high: float
    samples: int = 0
    confidence: float = 0.95
    unit: Text = ""
    method: Text = ""


class ReportedVerdict(_Part):
    """The verdict of one gate; ``blocking`` whether it keeps the bundle from being blessed unless it PASSED."""

    gate: Text
    verdict: OutcomeWord
    message: Text
    metric: Text = ""
    measurement: ReportedMeasurement | None = None
    threshold: float | None = None
    direction: Literal["min", "max"] = "min"
    blocking: bool = True
    slice: Text = ""
    change: bool = False


class ReportedStep(_Part):
    """A step of the run."""

    stage: Text
    action: Text
    reason: Text = ""
    seconds: float = 0.0


class ReportedChampion(_Part):
    """The bundle that gates compared with; ``source`` is where it came from."""

    identity: Digest
    version: Text
    source: Text = ""
    git_commit: Commit = ""
    data_version: Text = ""


class ReportedComparison(_Part):
    """A metric of champion and candidate on the same rows, and candidate minus champion, paired."""

    champion: ReportedMeasurement
    candidate: ReportedMeasurement
    difference: ReportedMeasurement


class ReportedChange(_Part):
    """Something in which the candidate differs from the champion: ``kind`` is code, data or recipe."""

    kind: Text
    name: Text
    before: Text
    after: Text


class JudgeReport(_Part):
    """The judgement of one recipe for one environment."""

    schema_version: int = Field(default=SCHEMA, alias="schema", ge=1, le=SCHEMA)
    recipe: Text
    """The recipe's name."""
    path: Text
    """Its file, from the repository's root."""
    environment: Text = ""
    """The environment whose champion it was compared with."""
    status: Literal["done", "gate-failed", "inconclusive", "error"]
    exit_code: Literal[0, 1, 2, 3, 4]
    identity: Digest = ""
    """Of the judged bundle; "" where the run ended before one."""
    version: Text = ""
    blessed: bool = False
    run: Text = ""
    verdicts: tuple[ReportedVerdict, ...] = Field(default=(), max_length=MAX_VERDICTS)
    verdicts_left_out: int = 0
    metrics: dict[Text, ReportedMeasurement] = Field(default_factory=dict, max_length=200)
    comparisons: dict[Text, ReportedComparison] = Field(default_factory=dict, max_length=200)
    compared_rows: int = 0
    """Test rows that champion and candidate were compared on."""
    champion: ReportedChampion | None = None
    changes: tuple[ReportedChange, ...] = Field(default=(), max_length=200)
    steps: tuple[ReportedStep, ...] = Field(default=(), max_length=50)
    warnings: tuple[Text, ...] = Field(default=(), max_length=100)
    git_commit: Commit = ""
    git_dirty: bool = False
    git_changes: tuple[Text, ...] = Field(default=(), max_length=50)
    """What makes it dirty: inputs of the run that no commit holds."""
    tree: Commit = ""
    """Digest of git's tree of the recipe's folder; "" where it is not known."""
    head: Commit = ""
    """The commit that the change is about (the head of a pull request); "" where it is not known."""
    data_version: Text = ""
    trigger: Digest = ""
    """Key under which `mlkit trigger` claims this training; "" where nothing in the recipe asks for claims."""
    machine: Text = ""
    runner: Text = ""
    """Class of machines that the recipe names for its pipeline."""
    error: Text = ""
    hint: Text = ""

    model_config = ConfigDict(populate_by_name=True)  # added to that of the base

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON, as `read_report` reads it."""
        value: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        return value

    def counted(self, *verdicts: OutcomeWord) -> Sequence[ReportedVerdict]:
        """The verdicts of these outcomes, in the recipe's order."""
        return [verdict for verdict in self.verdicts if verdict.verdict in verdicts]


def read_report(path: Path) -> JudgeReport:
    """Read and check a report. Raises UsageError for a file that is missing, too large or none."""
    hint = "mlkit ci judge RECIPE --out DIR writes it"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path} is larger than a report may be ({MAX_BYTES:,} bytes)", hint=hint)
    return parse_report(content, str(path))


def parse_report(content: bytes, name: str) -> JudgeReport:
    """The report in some bytes that came from ``name``. Raises UsageError."""
    try:
        return JudgeReport.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        message = f"{name} is no report of mlkit ci judge RECIPE: {where}: {first['msg']}"
        raise UsageError(message, hint="mlkit ci judge RECIPE --out DIR writes it") from error


def report_bytes(report: JudgeReport) -> bytes:
    """The file's content: within MAX_BYTES, for which verdicts that PASSED are left out, last first, and counted."""
    content = _encode(report)
    while len(content) > MAX_BYTES:
        passed = [index for index, verdict in enumerate(report.verdicts) if verdict.verdict == "PASSED"]
        drop = set(passed[-max(1, len(passed) // 4) :]) if passed else {len(report.verdicts) - 1}
        kept = tuple(verdict for index, verdict in enumerate(report.verdicts) if index not in drop)
        if not report.verdicts:
            raise UsageError(
                f"the report of {report.recipe} is larger than {MAX_BYTES:,} bytes", hint="use fewer gates"
            )
        left_out = report.verdicts_left_out + len(report.verdicts) - len(kept)
        report = report.model_copy(update={"verdicts": kept, "verdicts_left_out": left_out})
        content = _encode(report)
    return content


def _encode(report: JudgeReport) -> bytes:
    return (json.dumps(report.to_json(), ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()
