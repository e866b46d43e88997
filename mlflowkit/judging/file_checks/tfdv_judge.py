"""Judges a table by a schema of TensorFlow Data Validation: anomalies of the kinds and thresholds of TFDV 1.16.1.

Each cell is a feature of one value, or of none where it is missing. TFDV counts in sketches; here every row counts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflowkit.judging.file_checks.tfdv_schema import in_environment, is_categorical, is_ignored, is_required, type_name

if TYPE_CHECKING:
    import pandas as pd

BINS = 10
"""Bins of equal width of a number, as TFDV's standard histogram."""
MAX_VALUES = 10


@dataclass(frozen=True, slots=True)
class TfdvAnomaly:
    """An anomaly of a feature ("" for the whole table). ``rows`` are all rows that fail, where rows do."""

    feature: str
    reason: str
    short: str
    description: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ComparedTable:
    """What a comparator needs of another table: its rows, and per feature counts or a histogram (`count_values`)."""

    rows: int
    features: Mapping[str, Mapping[str, Any]]


def judge_table(
    table: pd.DataFrame,
    schema: Any,
    environment: str = "",
    previous: ComparedTable | None = None,
    serving: ComparedTable | None = None,
) -> list[TfdvAnomaly]:
    """The anomalies of a table. Comparators without a table to compare with are not judged, as in TFDV."""
    anomalies = list(_dataset(len(table), schema.dataset_constraints, previous))
    for feature in schema.feature:
        if feature.name in table.columns:
            others = {"drift": previous, "skew": serving}
            anomalies += _column(table[feature.name], feature, schema, environment, others)
        elif is_required(schema, feature, environment):
            description = "Column is completely missing"
            anomalies.append(TfdvAnomaly(feature.name, "SCHEMA_MISSING_COLUMN", "Column dropped", description))
    known = {feature.name for feature in schema.feature}
    new = "New column (column in data but not in schema)"
    names = [str(name) for name in table.columns if name not in known]
    return [*anomalies, *(TfdvAnomaly(name, "SCHEMA_NEW_COLUMN", "New column", new) for name in names)]


def count_values(table: pd.DataFrame, schema: Any) -> dict[str, dict[str, Any]]:
    """What a later table is compared with, for each feature of a table: counts by value, or a histogram.

    A value of text is named by the first 16 digits of its SHA-256, so that no cell is kept.
    """
    summaries: dict[str, dict[str, Any]] = {}
    for feature in schema.feature:
        if feature.name in table.columns and not is_ignored(feature):
            summaries[feature.name] = _summary(table[feature.name], categorical=is_categorical(feature))
    return summaries


def _summary(series: pd.Series, *, categorical: bool) -> dict[str, Any]:
    present = series.dropna()
    if categorical or data_type(series) == "BYTES":
        values = present.astype("string").value_counts()
        return {"counts": {_digest(str(value)): int(count) for value, count in values.items()}}
    import numpy as np

    numbers = present.to_numpy(dtype=np.float64)
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        return {"low": 0.0, "high": 0.0, "counts": [], "infinite": len(numbers)}
    low, high = float(finite.min()), float(finite.max())
    counts, _ = np.histogram(finite, BINS, (low, high)) if low < high else (np.array([len(finite)]), None)
    return {"low": low, "high": high, "counts": counts.tolist(), "infinite": len(numbers) - len(finite)}


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:16]


def data_type(series: pd.Series) -> str:
    """TFDV's type of a column: INT, FLOAT or BYTES."""
    from pandas.api import types

    if types.is_bool_dtype(series.dtype) or types.is_integer_dtype(series.dtype):
        return "INT"
    return "FLOAT" if types.is_float_dtype(series.dtype) else "BYTES"


def _dataset(rows: int, constraints: Any, previous: ComparedTable | None) -> Iterator[TfdvAnomaly]:
    low, high = constraints.min_examples_count, constraints.max_examples_count
    if constraints.HasField("min_examples_count") and rows < low:
        text = f"The dataset has fewer examples than expected: {rows} < {low}."
        yield TfdvAnomaly("", "DATASET_LOW_NUM_EXAMPLES", "Low num examples in dataset.", text)
    if constraints.HasField("max_examples_count") and rows > high:
        text = f"The dataset has more examples than expected: {rows} > {high}."
        yield TfdvAnomaly("", "DATASET_HIGH_NUM_EXAMPLES", "High num examples in dataset.", text)
    if previous is None or not previous.rows or not constraints.HasField("num_examples_drift_comparator"):
        return
    comparator, ratio = constraints.num_examples_drift_comparator, rows / previous.rows
    if comparator.HasField("min_fraction_threshold") and ratio < comparator.min_fraction_threshold:
        text = f"The ratio of num examples in the current dataset versus the previous span is {ratio:.6g}, "
        text += f"which is below the threshold {comparator.min_fraction_threshold:.6g}."
        yield TfdvAnomaly("", "COMPARATOR_LOW_NUM_EXAMPLES", "Low num examples in current dataset.", text)
    if comparator.HasField("max_fraction_threshold") and ratio > comparator.max_fraction_threshold:
        text = f"The ratio of num examples in the current dataset versus the previous span is {ratio:.6g}, "
        text += f"which is above the threshold {comparator.max_fraction_threshold:.6g}."
        yield TfdvAnomaly("", "COMPARATOR_HIGH_NUM_EXAMPLES", "High num examples in current dataset.", text)


def _column(
    series: pd.Series, feature: Any, schema: Any, environment: str, others: Mapping[str, ComparedTable | None]
) -> Iterator[TfdvAnomaly]:
    """The anomalies of a column that is in the table, in TFDV's order."""
    if is_ignored(feature):
        return
    present = series.dropna()
    if present.empty:
        if is_required(schema, feature, environment):
            text = "The feature was not present in any examples."
            yield TfdvAnomaly(feature.name, "FEATURE_TYPE_NOT_PRESENT", "Column dropped", text)
        return
    if not in_environment(schema, feature, environment):
        text = f"New column {feature.name} found in data but not in the environment {environment} in the schema."
        yield TfdvAnomaly(feature.name, "SCHEMA_NEW_COLUMN", "Column missing in environment", text)
    yield from _counts(series, feature)
    actual, expected = data_type(series), type_name(feature)
    if actual != expected:
        shown = "STRING" if actual == "BYTES" else actual
        text = f"Expected data of type: {expected} but got {shown}"
        rows = _no_numbers(present) if actual == "BYTES" else ()
        yield TfdvAnomaly(feature.name, "UNEXPECTED_DATA_TYPE", "Unexpected data type", text, rows)
    yield from _domain(present, actual, feature, schema)
    if feature.HasField("unique_constraints"):
        yield from _unique(present, feature)
    for kind, control in (("drift", "previous"), ("skew", "serving")):
        if feature.HasField(f"{kind}_comparator") and (other := others[kind]) is not None:
            yield from _compared(series, feature, getattr(feature, f"{kind}_comparator"), other, control)


def _counts(series: pd.Series, feature: Any) -> Iterator[TfdvAnomaly]:
    """Presence, number of values and shape."""
    name, count, present = feature.name, feature.value_count, int(series.notna().sum())
    missing = tuple(map(int, series.index[series.isna().to_numpy()]))
    if count.HasField("min") and count.min > 1:
        text = "Some examples have fewer values than expected."
        yield TfdvAnomaly(name, "FEATURE_TYPE_LOW_NUMBER_VALUES", "Missing values", text)
    if count.HasField("max") and count.max < 1:
        text = "Some examples have more values than expected."
        yield TfdvAnomaly(name, "FEATURE_TYPE_HIGH_NUMBER_VALUES", "Superfluous values", text)
    if feature.HasField("shape") and (missing or math.prod(dim.size for dim in feature.shape.dim) != 1):
        text = "The feature has a shape, but it is not always present or its value lengths vary."
        yield TfdvAnomaly(name, "INVALID_FEATURE_SHAPE", "Invalid feature shape", text, missing)
    presence = feature.presence
    if presence.HasField("min_count") and present < presence.min_count:
        text = f"The feature was present in fewer examples than expected: minimum = {presence.min_count}, "
        yield TfdvAnomaly(
            name, "FEATURE_TYPE_LOW_NUMBER_PRESENT", "Column dropped", f"{text}actual = {present}", missing
        )
    if presence.HasField("min_fraction") and present / len(series) < presence.min_fraction:
        text = "The feature was present in fewer examples than expected: minimum fraction = "
        text += f"{presence.min_fraction:.6f}, actual = {present / len(series):.6f}"
        yield TfdvAnomaly(name, "FEATURE_TYPE_LOW_FRACTION_PRESENT", "Column dropped", text, missing)


def _domain(present: pd.Series, actual: str, feature: Any, schema: Any) -> Iterator[TfdvAnomaly]:
    domain = feature.WhichOneof("domain_info")
    if domain in ("string_domain", "domain"):
        named = {item.name: item for item in schema.string_domain}
        values = feature.string_domain if domain == "string_domain" else named[feature.domain]
        yield from _strings(present, feature, list(values.value))
    elif domain == "int_domain" and actual != "FLOAT":
        yield from _integers(present, actual, feature)
    elif domain == "float_domain" and actual != "INT":
        yield from _floats(present, actual, feature)
    elif domain == "bool_domain":
        yield from _booleans(present, actual, feature)


def _strings(present: pd.Series, feature: Any, values: Sequence[str]) -> Iterator[TfdvAnomaly]:
    constraints = feature.distribution_constraints
    allowed = 1.0 - constraints.min_domain_mass if constraints.HasField("min_domain_mass") else 0.0
    outside = present[~present.astype("string").isin(list(values)).to_numpy()]
    if outside.empty or len(outside) / len(present) <= allowed:
        return
    counts = outside.astype("string").value_counts()
    listed = ", ".join(f"{str(value)[:40]} ({_percent(count, len(present))})" for value, count in counts.items())
    if len(counts) > MAX_VALUES:
        first = list(counts.items())[:MAX_VALUES]
        listed = ", ".join(f"{str(value)[:40]} ({_percent(count, len(present))})" for value, count in first)
        listed += f" and {len(counts) - MAX_VALUES} more"
    text = f"Examples contain values missing from the schema: {listed}."
    rows = tuple(map(int, outside.index))
    yield TfdvAnomaly(feature.name, "ENUM_TYPE_UNEXPECTED_STRING_VALUES", "Unexpected string values", text, rows)


def _integers(present: pd.Series, actual: str, feature: Any) -> Iterator[TfdvAnomaly]:
    domain = feature.int_domain
    numbers = _parsed(present, whole=True) if actual == "BYTES" else present
    if actual == "BYTES" and numbers.isna().any():
        text = "String values that were not ints were found."
        rows = tuple(map(int, numbers.index[numbers.isna().to_numpy()]))
        yield TfdvAnomaly(feature.name, "INT_TYPE_NOT_INT_STRING", "Invalid values", text, rows)
        return
    if domain.HasField("min") and (below := numbers[(numbers < domain.min).to_numpy()]).size:
        text = f"Unexpectedly small value: {int(below.min())}."
        yield _bound(feature, "INT_TYPE_SMALL_INT", text, below)
    if domain.HasField("max") and (above := numbers[(numbers > domain.max).to_numpy()]).size:
        text = f"Unexpectedly large value: {int(above.max())}."
        yield _bound(feature, "INT_TYPE_BIG_INT", text, above)


def _floats(present: pd.Series, actual: str, feature: Any) -> Iterator[TfdvAnomaly]:
    import numpy as np

    domain = feature.float_domain
    numbers = _parsed(present, whole=False) if actual == "BYTES" else present
    if actual == "BYTES" and numbers.isna().any():
        text = "String values that were not floats were found."
        rows = tuple(map(int, numbers.index[numbers.isna().to_numpy()]))
        yield TfdvAnomaly(feature.name, "FLOAT_TYPE_STRING_NOT_FLOAT", "Invalid values", text, rows)
        return
    single = numbers.astype(np.float32)  # TFDV compares in single precision
    if domain.HasField("min") and (below := single[(single < np.float32(domain.min)).to_numpy()]).size:
        text = f"Unexpectedly low values: {float(below.min()):.6g}<{domain.min:.6g}(upto six significant digits)"
        yield _bound(feature, "FLOAT_TYPE_SMALL_FLOAT", text, below)
    if domain.HasField("max") and (above := single[(single > np.float32(domain.max)).to_numpy()]).size:
        text = f"Unexpectedly high value: {float(above.max()):.6g}>{domain.max:.6g}(upto six significant digits)"
        yield _bound(feature, "FLOAT_TYPE_BIG_FLOAT", text, above)
    if domain.disallow_inf and (infinite := single[np.isinf(single.to_numpy())]).size:
        yield _bound(feature, "FLOAT_TYPE_HAS_INF", "Float feature has Inf values.", infinite, "Invalid values")


def _booleans(present: pd.Series, actual: str, feature: Any) -> Iterator[TfdvAnomaly]:
    if actual == "BYTES":
        domain = feature.bool_domain
        valid = [domain.true_value] * domain.HasField("true_value") + [domain.false_value] * domain.HasField(
            "false_value"
        )
        outside = present[~present.astype("string").isin(valid).to_numpy()]
        reason = "BOOL_TYPE_UNEXPECTED_STRING"
    else:
        outside = present[~present.isin([0, 1]).to_numpy()]
        small = actual == "INT" and not outside.empty and outside.min() < 0
        reason = "BOOL_TYPE_UNEXPECTED_FLOAT" if actual == "FLOAT" else f"BOOL_TYPE_{'SMALL' if small else 'BIG'}_INT"
    if not outside.empty:
        text = "Values that are neither true nor false were found."
        yield _bound(feature, reason, text, outside, "Non-boolean values")


def _bound(feature: Any, reason: str, text: str, rows: pd.Series, short: str = "Out-of-range values") -> TfdvAnomaly:
    return TfdvAnomaly(feature.name, reason, short, text, tuple(map(int, rows.index)))


def _unique(present: pd.Series, feature: Any) -> Iterator[TfdvAnomaly]:
    unique, limits = int(present.nunique()), feature.unique_constraints
    if unique < limits.min:
        text = f"Expected at least {limits.min} unique values but found only {unique}."
        yield TfdvAnomaly(feature.name, "FEATURE_TYPE_LOW_UNIQUE", "Low number of unique values", text)
    if unique > limits.max:
        text = f"Expected no more than {limits.max} unique values but found {unique}."
        yield TfdvAnomaly(feature.name, "FEATURE_TYPE_HIGH_UNIQUE", "High number of unique values", text)


def _compared(
    series: pd.Series, feature: Any, comparator: Any, other: ComparedTable, control: str
) -> Iterator[TfdvAnomaly]:
    name, theirs = feature.name, other.features.get(feature.name)
    if theirs is None or not _total(theirs):
        text = f"{control} data is missing."
        yield TfdvAnomaly(name, "COMPARATOR_CONTROL_DATA_MISSING", f"{control} data missing", text)
        return
    ours = _summary(series, categorical=is_categorical(feature))
    if isinstance(ours["counts"], Mapping) != isinstance(theirs["counts"], Mapping):
        if data_type(series) == type_name(feature):  # else its type is the anomaly
            text = f"{control} data is of another type."
            yield TfdvAnomaly(name, "COMPARATOR_CONTROL_DATA_MISSING", f"{control} data missing", text)
        return
    treatment = {"previous": "current", "serving": "training"}[control]
    measures: tuple[tuple[str, str, str, Callable[..., float]], ...] = (
        ("infinity_norm", "COMPARATOR_L_INFTY_HIGH", "Linfty distance", l_infinity),
        ("jensen_shannon_divergence", "COMPARATOR_JENSEN_SHANNON_DIVERGENCE_HIGH",
         "approximate Jensen-Shannon divergence", jensen_shannon),
    )  # fmt: skip
    for field, reason, words, measure in measures:
        if not getattr(comparator, field).HasField("threshold"):
            continue
        distance, threshold = measure(ours, theirs), getattr(comparator, field).threshold
        if distance > threshold:
            text = f"The {words} between {treatment} and {control} is {distance:.6g} (up to six significant digits), "
            text += f"above the threshold {threshold:.6g}."
            if measure is jensen_shannon:
                text += f" Without any change {_total(ours):,} and {_total(theirs):,} values give about "
                text += f"{_noise(ours, theirs):.2g}."
            yield TfdvAnomaly(name, reason, f"High {words} between {treatment} and {control}", text)


def l_infinity(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Largest difference of a value's share.

    >>> l_infinity({"counts": {"a": 3, "b": 1}}, {"counts": {"a": 1, "c": 1}})
    0.5
    """
    shares = [_shares(item) for item in (ours, theirs)]
    return max(abs(shares[0].get(key, 0) - shares[1].get(key, 0)) for key in {*shares[0], *shares[1]})


def jensen_shannon(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Jensen-Shannon divergence in bits, of counts by value or of two histograms.

    >>> jensen_shannon({"counts": {"a": 1}}, {"counts": {"b": 1}})
    1.0
    """
    first, second = _aligned(ours, theirs)
    total = 0.0
    for p, q in zip(first, second, strict=True):
        middle = (p + q) / 2
        total += (p * math.log2(p / middle) if p else 0.0) + (q * math.log2(q / middle) if q else 0.0)
    return min(total / 2, 1.0)


def _aligned(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Shares of the same values or bins of both; each bin's mass is spread evenly over its width, as in TFDV."""
    if isinstance(ours["counts"], Mapping):
        shares = [_shares(item) for item in (ours, theirs)]
        keys = sorted({*shares[0], *shares[1]})
        return [shares[0].get(key, 0.0) for key in keys], [shares[1].get(key, 0.0) for key in keys]
    import numpy as np

    edges = np.unique(np.concatenate([_edges(item) for item in (ours, theirs)]))
    points = sorted({item["low"] for item in (ours, theirs) if item["low"] == item["high"]})
    columns = []
    for item in (ours, theirs):
        total, counts = _total(item), np.asarray(item["counts"], dtype=float)
        point = item["low"] == item["high"]
        masses = [counts.sum() / total if point and item["low"] == value else 0.0 for value in points]
        spread = np.zeros(max(len(edges) - 1, 0))
        if not point and len(counts):
            cumulative = np.interp(edges, _edges(item), np.concatenate([[0.0], np.cumsum(counts)]))
            spread = np.diff(cumulative) / total
        columns.append([*spread.tolist(), *masses, item["infinite"] / total])
    return columns[0], columns[1]


def _edges(item: Mapping[str, Any]) -> Any:
    import numpy as np

    return np.linspace(item["low"], item["high"], BINS + 1) if item["low"] < item["high"] else np.array([])


def _shares(item: Mapping[str, Any]) -> dict[str, float]:
    total = sum(item["counts"].values())
    return {key: count / total for key, count in item["counts"].items()}


def _total(item: Mapping[str, Any]) -> int:
    counts = item["counts"]
    return int(sum(counts.values())) if isinstance(counts, Mapping) else int(sum(counts) + item["infinite"])


def _noise(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """What the divergence is about where nothing changed: (k - 1)(1/n + 1/m) / (8 ln 2) for k values or bins."""
    cells = sum(bool(p or q) for p, q in zip(*_aligned(ours, theirs), strict=True))
    return (cells - 1) * (1 / _total(ours) + 1 / _total(theirs)) / (8 * math.log(2))


def _parsed(present: pd.Series, *, whole: bool) -> pd.Series:
    import pandas as pd

    numbers = pd.to_numeric(present.astype("string"), errors="coerce")
    return numbers.where(numbers % 1 == 0) if whole else numbers


def _no_numbers(present: pd.Series) -> tuple[int, ...]:
    numbers = _parsed(present, whole=False)
    return tuple(map(int, numbers.index[numbers.isna().to_numpy()]))


def _percent(count: int, total: int) -> str:
    return f"~{math.floor(100 * count / total)}%" if 100 * count >= total else "<1%"
