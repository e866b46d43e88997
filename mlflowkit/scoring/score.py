"""Score a file: read rows in batches, predict them, and write them with their predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import pyarrow as pa

from mlflowkit.errors import DataError, UsageError, closest_match
from mlflowkit.scoring.conversion import feature_frame, feature_names, signature_for_csv, unseen_counts
from mlflowkit.scoring.predictors import Predictor, prediction_table
from mlflowkit.scoring.reading import RowFile
from mlflowkit.system.text import format_list


class Sink(Protocol):
    def write(self, table: pa.Table) -> None: ...


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """How a file is scored.

    keep         columns written in front of the predictions; None keeps all
    prefix       put before the names of the prediction columns
    fill         whether a feature column that the file lacks counts as missing in all rows, instead of an error
    categories   values of the training data by column, where known; None where the predictor itself knows them
    """

    keep: Sequence[str] | None = None
    prefix: str = ""
    fill: bool = False
    categories: Mapping[str, Collection[str]] | None = field(default_factory=dict)


@dataclass(slots=True)
class ScoringSummary:
    """What was scored.

    ignored      columns of the file that the model does not take
    filled       feature columns that the file lacks
    undefined    rows for which the model has no finite prediction; null in the result
    unseen       rows by column with a category that was not in the training data
    no_dates     rows by column with a value that is no date, which counts as missing
    shortened    rows by column with a free text that has more words or characters than are read
    """

    rows: int = 0
    ignored: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    undefined: int = 0
    unseen: dict[str, int] = field(default_factory=dict)
    no_dates: Counter[str] = field(default_factory=Counter)
    shortened: Counter[str] = field(default_factory=Counter)


def score(
    file: RowFile, predictor: Predictor, sink: Sink, options: ScoringOptions, progress: Callable[[int], None]
) -> ScoringSummary:
    """Write every row of ``file`` with its prediction to ``sink``, in order.

    ``progress`` is called with the number of rows so far. Raises UsageError for columns that do not fit (before any
    row is read), DataError for a value that is not one of its column.
    """
    file = _trimmed(file) if predictor.signature.texts.trim else file
    signature = signature_for_csv(predictor.signature, options.categories) if file.text else predictor.signature
    features = feature_names(signature)
    absent = [name for name in features if name not in file.names]
    if absent and not options.fill:
        raise _lacks_columns(file, features, absent)
    kept = _kept_columns(file, predictor, options)
    summary = ScoringSummary(ignored=tuple(name for name in file.names if name not in features), filled=tuple(absent))
    for table in file.batches:
        for name in absent:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
        frame = feature_frame(
            table, signature, start=summary.rows, categories=options.categories,
            no_dates=summary.no_dates, shortened=summary.shortened,
        )  # fmt: skip
        predictions = prediction_table(predictor.predict(frame), signature.classes, options.prefix)
        for name, count in unseen_counts(frame, options.categories or {}).items():
            summary.unseen[name] = summary.unseen.get(name, 0) + count
        summary.undefined += predictions.column(predictions.num_columns - 1).null_count
        columns = [table.column(name) for name in kept] + predictions.columns
        sink.write(pa.table(columns, names=[*kept, *predictions.column_names]))
        summary.rows += table.num_rows
        progress(summary.rows)
    if not summary.rows:
        raise DataError(f"{file.path} has no rows", hint="there is nothing to predict")
    return summary


def _trimmed(file: RowFile) -> RowFile:
    """The file without blanks around the names of its columns, as the training data was read."""
    names = [name.strip() for name in file.names]
    return replace(file, names=tuple(names), batches=(table.rename_columns(names) for table in file.batches))


def _lacks_columns(file: RowFile, features: Sequence[str], absent: Sequence[str]) -> UsageError:
    near = closest_match(absent[0], [name for name in file.names if name not in features])
    hint = f"did you mean {near!r}? rename it" if near else "--missing-columns null counts them as missing in all rows"
    columns = "columns" if len(absent) > 1 else "column"
    return UsageError(f"{file.path} lacks the {columns} {format_list(absent, 12)} of the model", hint=hint)


def _kept_columns(file: RowFile, predictor: Predictor, options: ScoringOptions) -> tuple[str, ...]:
    """Columns to write in front of the predictions. Raises UsageError for an unknown one, or a name that clashes."""
    kept = file.names if options.keep is None else tuple(options.keep)
    unknown = [name for name in kept if name not in file.names]
    if unknown:
        raise UsageError(
            f"--keep {unknown[0]}: {file.path} has no such column", hint=f"it has {format_list(file.names, 20)}"
        )
    signature = predictor.signature
    outputs = {f"{options.prefix}prediction", *(f"{options.prefix}probability_{name}" for name in signature.classes)}
    clashing = [name for name in kept if name in outputs]
    if clashing:
        message = f"{file.path} already has a column {clashing[0]!r}, the name of a prediction"
        raise UsageError(message, hint="--prefix model_ puts a prefix before the predictions' names")
    return kept
