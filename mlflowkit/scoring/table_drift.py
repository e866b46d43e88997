"""An ad hoc comparison for drift: of two tables, or of a file with the reference of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.errors import BundleError, DataError, UsageError, closest_match
from mlflowkit.judging.shift.findings import ColumnFinding
from mlflowkit.judging.shift.reference import EVIDENCE, Reference
from mlflowkit.judging.shift.sample_shift import SampleShift
from mlflowkit.system.text import format_list, parse_json
from mlflowkit.values import Json, Outcome

if TYPE_CHECKING:
    import pyarrow as pa

    from mlflowkit.bundle import Bundle
    from mlflowkit.features.table_shift import TableShift, TableValues

EXIT_CODES = {Outcome.PASSED: 0, Outcome.FAILED: 1, Outcome.INCONCLUSIVE: 4}


@dataclass(frozen=True)
class DriftReport:
    """The result of a comparison. ``first`` and ``second`` name the tables, ``rows`` and ``units`` are of both."""

    first: str
    second: str
    rows: tuple[int, int]
    units: tuple[int, int]
    unit: str | None
    settings: SampleShift
    shift: TableShift
    cells: bool = False
    """Whether numbers were compared over the cells of a reference: the distance of the rows may be larger."""

    @property
    def findings(self) -> tuple[ColumnFinding, ...]:
        return self.shift.findings

    @property
    def outcome(self) -> Outcome:
        """FAILED where any finding is, or where the second table lacks a column; else INCONCLUSIVE where any is."""
        outcomes = {finding.outcome for finding in self.findings}
        if Outcome.FAILED in outcomes or any(problem.broken for problem in self.shift.problems):
            return Outcome.FAILED
        return Outcome.INCONCLUSIVE if Outcome.INCONCLUSIVE in outcomes or not outcomes else Outcome.PASSED

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]

    @property
    def assumption(self) -> str:
        """What the intervals assume, in one sentence."""
        if self.unit is not None:
            text = f"the values of {self.unit} are independent, and the rows of one are one observation"
        else:
            text = "rows are independent; rows of one day, user or batch rarely are: --unit COLUMN takes those as one"
        level = f"the intervals of all columns hold together at {100 * (1 - self.settings.level):g} % if {text}"
        return level + ("; numbers are compared at the edges of the reference's cells" if self.cells else "")

    def to_json(self) -> Json:
        """The report as JSON, without NaN."""
        return {
            "first": self.first,
            "second": self.second,
            "rows": list(self.rows),
            "unit": self.unit,
            "units": list(self.units),
            "margin": self.settings.margin,
            "level": self.settings.level,
            "assumption": self.assumption,
            "outcome": str(self.outcome),
            "columns": [finding.to_json() for finding in self.findings],
            "problems": [
                {"column": item.column, "message": item.message, "broken": item.broken} for item in self.shift.problems
            ],
        }

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(finding.outcome)}</td><td>{escape(finding.message)}</td></tr>"
            for finding in self.findings
        )
        return f"<h4>drift: {escape(self.outcome)}</h4><table>{rows}</table>"


def compare_two(
    first: pa.Table, second: pa.Table, names: tuple[str, str], *, by: Sequence[str] = (), unit: str | None = None,
    settings: SampleShift | None = None,
) -> DriftReport:  # fmt: skip
    """Compare two tables, called by ``names``. Raises DataError for one without rows, UsageError for a column."""
    from mlflowkit.features.table_shift import compare_tables, table_values

    settings, pair = settings or SampleShift(), (first, second)
    for name, table in zip(names, pair, strict=True):
        if not table.num_rows:
            raise DataError(f"{name} has no rows", hint="there is nothing to compare")
        _require_columns(name, table.column_names, [*by, *([unit] if unit else [])])
    values = [table_values(table, unit) for table in pair]
    _require_segments(by, values)
    shift = compare_tables(values[0], values[1], settings, by)
    rows, units = (values[0].rows, values[1].rows), (values[0].units, values[1].units)
    return DriftReport(*names, rows, units, unit, settings, shift)


def compare_with_bundle(
    bundle: Bundle, table: Path | pa.Table, *, by: Sequence[str] = (), unit: str | None = None,
    settings: SampleShift | None = None,
) -> DriftReport:  # fmt: skip
    """Compare a table with a model's reference, its columns read as `mlkit predict` reads them.

    Raises UsageError for a bundle without a reference, DataError for a table that cannot be read.
    """
    from mlflowkit.features.table_shift import compare_with_reference

    settings = settings or SampleShift()
    reference = read_reference(bundle)
    segments = {name.partition("=")[0] for name in reference.segments}
    unknown = [name for name in by if name not in segments]
    if unknown:
        has = f"it has {format_list(sorted(segments))}" if segments else "it has none"
        raise UsageError(
            f"--by {unknown[0]}: the reference of the model has no segments of that column; {has}",
            hint=f"add it to the recipe: monitor.segments: [{unknown[0]}], and run it again",
        )
    name = str(table) if isinstance(table, Path) else "the table"
    values = _bundle_values(bundle, table, unit)
    if not values.rows:
        raise DataError(f"{name} has no rows", hint="there is nothing to compare")
    shift = compare_with_reference(reference, values, settings, by)
    rows = max((column.rows for name, column in reference.columns.items() if not name.startswith("output.")), default=0)
    label = f"{bundle.manifest.name} {bundle.manifest.version}"
    return DriftReport(label, name, (rows, values.rows), (rows, values.units), unit, settings, shift, cells=True)


def read_reference(bundle: Bundle) -> Reference:
    """The reference in a bundle. Raises UsageError for an older bundle without one, BundleError for a damaged one."""
    if not bundle.has(EVIDENCE):
        message = f"bundle {bundle.manifest.version} of {bundle.manifest.name} holds no reference"
        raise UsageError(message, hint="mlkit run RECIPE packages it again, with its reference")
    try:
        return Reference.from_json(parse_json(bundle.read(EVIDENCE)))
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{bundle.path}: {EVIDENCE} cannot be read: {error}") from error


def _bundle_values(bundle: Bundle, table: Path | pa.Table, unit: str | None) -> TableValues:
    """The columns that a graph takes, in its types, from a file or a table in memory."""
    import numpy as np
    import pandas as pd

    from mlflowkit.features.table_shift import TableValues
    from mlflowkit.features.tensors import inputs_from_table
    from mlflowkit.scoring.conversion import feature_frame, signature_for_csv
    from mlflowkit.scoring.reading import open_rows
    from mlflowkit.serving.inference.variants import complete_categories

    categories = complete_categories(bundle.path)
    if isinstance(table, Path):
        file = open_rows(table)
        names, text, batches = file.names, file.text, file.batches
    else:
        names, text, batches = tuple(table.column_names), False, iter([table])
    _require_columns("the table", names, [unit] if unit else [])
    signature = signature_for_csv(bundle.signature, categories) if text else bundle.signature
    present = {name for tensor in signature.inputs for name in tensor.columns} & set(names)
    kept = [
        tensor.model_copy(update={"columns": tuple(name for name in tensor.columns if name in present)})
        for tensor in signature.inputs
    ]
    signature = signature.model_copy(update={"inputs": tuple(tensor for tensor in kept if tensor.columns)})
    parts: dict[str, list[np.ndarray]] = {name: [] for name in sorted(present)}
    units, rows = [], 0
    for batch in batches:
        frame = feature_frame(batch, signature, start=rows, categories=categories)
        inputs = inputs_from_table(signature, frame)
        for tensor in signature.inputs:
            for index, name in enumerate(tensor.columns):
                parts[name].append(inputs[tensor.name][:, index])
        units += [batch.column(unit).to_pandas()] if unit else []
        rows += batch.num_rows
    columns = {name: np.concatenate(part) for name, part in parts.items() if part}
    weights = np.ones(rows)
    if unit and units:
        codes, _ = pd.factorize(pd.concat(units, ignore_index=True), use_na_sentinel=False)
        weights = 1.0 / np.bincount(codes)[codes]
    return TableValues(columns, rows, weights)


def _require_columns(name: str, present: Sequence[str], wanted: Sequence[str]) -> None:
    for column in wanted:
        if column not in present:
            close = closest_match(column, present)
            hint = f"did you mean {close!r}?" if close else f"it has {format_list(present, 12)}"
            raise UsageError(f"{name} has no column {column!r}", hint=hint)


def _require_segments(by: Sequence[str], values: Sequence[TableValues]) -> None:
    for name in by:
        kinds = [side.columns[name].dtype == object for side in values if name in side.columns]
        if len(kinds) < 2 or len(set(kinds)) > 1:
            raise UsageError(
                f"--by {name}: its values cannot be compared between the tables",
                hint="name a column that both tables hold with one type, other than that of --unit",
            )
