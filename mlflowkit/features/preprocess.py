"""From the data stage's folder to the matrix a model is fitted on: read, impute, scale, one-hot encode.

Preprocessing is fitted on the training rows only and stored as JSON. Its arithmetic equals that of the ONNX operators
that repeat it in the graph, bit for bit in float32::

    numeric       x = fill where x is NaN; (x - center) / scale      [rows, k] -> [rows, k]
                  before that x = x - offset in double precision, where a column has an offset; and between the
                  two the curve of a column that has one (mlflowkit.features.numbers.number_curves)
    categorical   one column for each category, 1 where equal        [rows, m] -> [rows, categories of all columns]
                  of a column with an order, 1 where equal or above: its first column says that the value is known
                  of a column by frequency, one number for each category  [rows, 1]
    free text     one column for each bucket of its terms, by features.texts.text_hashing   [rows, features]
    dates         numbers by features.dates.date_parts, then as numeric  [rows, t] -> [rows, features of all dates]
    transformers  numbers of features.numbers.own_transforms, of numeric columns, then as numeric

The matrix has the numeric columns first, then the features of dates, then the numbers of transformers. A value that
is not among the categories of its column encodes to zeros.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from mlflowkit.errors import DataError, EngineError, StoreError, UsageError
from mlflowkit.features.dates.date_parts import DateFeature, date_features, plan_dates
from mlflowkit.features.dates.date_terms import Zone
from mlflowkit.features.numbers.column_fits import category_limits, fit_frequencies, fit_number, own_settings
from mlflowkit.features.numbers.number_curves import NumberCurve, apply_curves
from mlflowkit.features.numbers.own_transforms import OwnTransform, apply_transforms, fit_transforms, load_transforms
from mlflowkit.features.tensors import categorical_matrix, class_codes, numeric_matrix
from mlflowkit.features.texts.text_hashing import (
    TextHash,
    canonical_matrix,
    fit_hashes,
    hash_texts,
    require_memory,
)

TRUSTED_ROOT = "sklearn."
TRUSTED_TYPES = ("numpy.dtype",)
"""Types allowed in a .skops file, besides scikit-learn's own and those that skops trusts."""


@dataclass(frozen=True, slots=True)
class Features:
    """Names of the feature columns by kind, each in the order of the source; the offsets of the numeric ones, the
    orders of the categorical ones (() for a column without), and the zones of the dates."""

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    offsets: tuple[float, ...] = ()
    orders: tuple[tuple[str, ...], ...] = ()
    dates: tuple[str, ...] = ()
    zones: tuple[Zone, ...] = ()
    texts: tuple[str, ...] = ()
    """Those of the categorical ones that are free text."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the split.

    ``inputs`` by name: numeric float64 [n, k], dates float64 [n, t], categorical str [n, m]; absent without such
    columns. ``target``: class indices (int64 [n]) or values (float64 [n]).
    """

    inputs: Mapping[str, np.ndarray]
    target: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.target)


@dataclass(frozen=True, slots=True)
class Table:
    """The parts of ``table.json`` that training needs."""

    folder: Path
    task: Literal["classification", "regression"]
    target: str
    features: Features
    classes: tuple[str | int, ...]
    target_offset: float = 0.0
    tokens: Mapping[str, Any] = field(default_factory=dict)
    """Of the columns of free text: the rules (bundle.TokenRule) by which they are read."""

    @property
    def target_scale(self) -> dict[str, Any] | None:
        """The scaling of a target that has an offset: a stages.train.TargetScaling, or None without one."""
        return {"mean": self.target_offset, "scale": 1.0, "double": True} if self.target_offset else None

    def read(self, part: Literal["train", "validation", "test"]) -> Part:
        """Read one part. Raises DataError when it has no rows, an infinite number or an unusable target."""
        names = [*self.features.numeric, *self.features.dates, *self.features.categorical]
        frame = pd.read_parquet(self.folder / f"{part}.parquet", columns=[*names, self.target])
        if frame.empty:
            raise DataError(f"the {part} part has no rows", hint="use more rows, or larger shares under data.split")
        inputs = {}
        if self.features.numeric:
            inputs["numeric"] = numeric_matrix(frame, self.features.numeric, np.float64)
            _require_finite(inputs["numeric"], self.features.numeric, part)
        if self.features.dates:
            inputs["dates"] = numeric_matrix(frame, self.features.dates, np.float64)
        if self.features.categorical:
            texts = categorical_matrix(frame, self.features.categorical)
            inputs["categorical"] = canonical_matrix(texts, self.features.categorical, self.tokens)
        return Part(inputs, self._target(frame[self.target], part))

    def texts(self, part: Literal["train", "validation", "test"], name: str) -> list[str]:
        """A column of free text as it stands in a part, "" where missing."""
        frame = pd.read_parquet(self.folder / f"{part}.parquet", columns=[name])
        texts: list[str] = categorical_matrix(frame, [name])[:, 0].tolist()
        return texts

    def _target(self, values: Any, part: str) -> np.ndarray:
        if self.task == "classification":
            return class_codes(values, self.classes)
        target: np.ndarray = values.to_numpy(dtype=np.float64, na_value=np.nan)
        bad = np.flatnonzero(~np.isfinite(target))
        if bad.size:
            message = f"row {int(bad[0])} of the {part} part: the target {self.target!r} is {target[bad[0]]}"
            raise DataError(message, hint="drop rows without a finite target before training")
        return target


def open_table(folder: Path, section: Any = None) -> Table:
    """Read ``table.json`` of the data stage's folder. Free texts are read by a stages.train.PreprocessSettings, or stay
    as they are without one."""
    info = json.loads((folder / "table.json").read_text())
    columns = {
        kind: tuple(column["name"] for column in info["features"] if column["kind"] == kind)
        for kind in ("numeric", "categorical", "date", "text")
    }
    texts = columns.pop("text")
    columns["categorical"] = tuple(
        column["name"] for column in info["features"] if column["kind"] in ("categorical", "text")
    )
    if not any(columns.values()):
        raise DataError("the table has no feature columns", hint="mlkit explain RECIPE data.columns shows what is used")
    offsets = tuple(column.get("offset", 0.0) for column in info["features"] if column["kind"] == "numeric")
    orders = info.get("orders", {})
    ordered = tuple(tuple(orders.get(name, ())) for name in columns["categorical"]) if orders else ()
    dates = columns.pop("date")
    zones = tuple(info["texts"]["dates"][name] for name in dates)
    features = Features(**columns, offsets=offsets, orders=ordered, dates=dates, zones=zones, texts=texts)
    classes = tuple(info["classes"])
    tokens = {} if section is None else {name: section.text(name).rule for name in texts}
    return Table(folder, info["task"], info["target"], features, classes, info.get("target_offset", 0.0), tokens)


def _require_finite(matrix: np.ndarray, columns: Sequence[str], part: str) -> None:
    with np.errstate(over="ignore"):
        infinite = np.isinf(matrix.astype(np.float32))
    if infinite.any():
        row, column = (int(index) for index in np.argwhere(infinite)[0])
        count = f"{int(infinite[:, column].sum())} infinite or float32-overflowing values"
        message = f"column {columns[column]!r} holds {count} in the {part} part, the first in row {row}"
        hint = f"make them missing (NaN) or add a check: {{kind: range, column: {columns[column]}, max: ...}}"
        raise DataError(message, hint=hint)


@dataclass(frozen=True, slots=True)
class FittedPreprocessing:
    """Fitted parameters: ``fill``, ``center`` and ``scale`` float32 [k + d], of the k numeric columns and of the d
    features of ``dates``, ``categories`` of m columns, and which of those are ``ordered``, by the order of their
    categories.

    ``offset`` float64 [k] is subtracted in double precision before anything else (0 where float32 holds a column), so
    ``fill`` and ``center`` are relative to it.
    """

    fill: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    categories: tuple[tuple[str, ...], ...]
    offset: np.ndarray
    ordered: tuple[bool, ...] = ()
    dates: tuple[DateFeature, ...] = ()
    curves: tuple[NumberCurve, ...] = ()
    codes: tuple[tuple[float, ...], ...] = ()
    """Of the categorical columns: () for one-hot columns, else the number that stands for each category, and last that
    of all other values. Empty where all are one-hot."""
    hashes: tuple[TextHash | None, ...] = ()
    """Of the categorical columns: how free texts are hashed, None for categories. Empty where there is no free text."""
    transforms: tuple[OwnTransform, ...] = ()
    """Whose numbers follow those of dates in ``fill``, ``center`` and ``scale``."""

    @property
    def is_double(self) -> bool:
        """Whether numbers are taken in double precision."""
        return bool(self.offset.any())

    @property
    def width(self) -> int:
        """Columns of the matrix."""
        return len(self.fill) + sum(map(self.columns_of, range(len(self.categories))))

    def codes_of(self, index: int) -> tuple[float, ...]:
        """The numbers of a categorical column; () where it is one-hot."""
        return self.codes[index] if self.codes else ()

    def hash_of(self, index: int) -> TextHash | None:
        """How a categorical column is hashed; None for categories."""
        return self.hashes[index] if self.hashes else None

    def columns_of(self, index: int) -> int:
        """The columns of the matrix that a categorical column becomes."""
        if hashing := self.hash_of(index):
            return hashing.features
        return 1 if self.codes_of(index) else len(self.categories[index])


def fit_preprocess(
    inputs: Mapping[str, np.ndarray], section: Any, features: Features | None = None, folder: Path | None = None
) -> FittedPreprocessing:
    """Fit on the training rows by the settings of a stages.train.PreprocessSettings, with the offsets, orders and dates
    of ``features``; the categories of a column with an order are those of the order. ``folder``, the recipe's, has the
    code of its transformers.

    standard scales by mean and (population) standard deviation, minmax to [0, 1]. A constant column is only centred; a
    column without values becomes 0. Categories are the most frequent values (ties by value), sorted; a missing value
    counts as the category "".

    >>> from types import SimpleNamespace
    >>> section = SimpleNamespace(impute="mean", scale="minmax", max_categories=1)
    >>> inputs = {"numeric": np.array([[1], [np.nan], [3]], np.float32),
    ...           "categorical": np.array([["b"], ["b"], ["a"]], object)}
    >>> transform(fit_preprocess(inputs, section), inputs).tolist()
    [[0.0, 1.0], [0.5, 1.0], [1.0, 0.0]]
    """
    names = features or Features((), ())
    width = inputs["numeric"].shape[1] if "numeric" in inputs else 0
    offset = np.asarray(names.offsets or np.zeros(width), np.float64)
    dates = plan_dates(names.dates, names.zones, section.dates) if names.dates else ()
    transforms = fit_transforms(inputs.get("numeric", np.empty((0, 0))), section, names.numeric, names.offsets, folder)
    numbers = _numbers(inputs, offset, dates, transforms, np.float32)
    own = own_settings(section, names)
    fitted = [fit_number(index, numbers[:, index], section, own.get(index)) for index in range(numbers.shape[1])]
    fill, center, scale = np.array([item.parameters for item in fitted], dtype=np.float32).reshape(-1, 3).T
    curves = tuple(item.curve for item in fitted if item.curve is not None)
    texts = inputs.get("categorical", np.empty((0, 0), object))
    orders = names.orders or ((),) * texts.shape[1]
    limits = category_limits(section, names, texts.shape[1])
    hashes = fit_hashes(section, names)
    categories = tuple(
        () if hashes and hashes[index] else tuple(order) or _most_frequent(texts[:, index], limits[index])
        for index, order in enumerate(orders)
    )
    ordered = tuple(bool(order) for order in orders) if any(orders) else ()
    codes = fit_frequencies(texts, categories, section, names)
    fitted_all = FittedPreprocessing(
        fill.copy(),
        center.copy(),
        scale.copy(),
        categories,
        offset,
        ordered,
        dates,
        curves,
        codes,
        hashes,
        transforms,
    )
    require_memory(len(next(iter(inputs.values()), ())), fitted_all.width, hashes)
    return fitted_all


def order_matrix(categories: int) -> np.ndarray:
    """Turns one-hot columns of ordered categories into cumulative ones: 1 where the value is equal or above.

    >>> (np.eye(3)[[0, 2]] @ order_matrix(3)).tolist()
    [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    """
    return np.tril(np.ones((categories, categories), dtype=np.float32))


def _numbers(
    inputs: Mapping[str, np.ndarray], offset: np.ndarray, dates: Sequence[DateFeature],
    transforms: Sequence[OwnTransform], dtype: Any,
) -> np.ndarray:  # fmt: skip
    """Numbers minus their offset, subtracted in double precision, the features of dates and the numbers of
    transformers; [rows, k + d + u]."""
    parts = []
    if "numeric" in inputs:
        numeric = inputs["numeric"]
        parts.append((numeric.astype(np.float64) - offset if offset.any() else numeric).astype(dtype))
    if dates:
        parts.append(date_features(inputs["dates"], dates, dtype))
    if transforms:
        parts += apply_transforms(inputs["numeric"], transforms, dtype)
    return np.concatenate(parts, axis=1) if parts else np.empty((0, 0), dtype)


def _most_frequent(values: np.ndarray, limit: int) -> tuple[str, ...]:
    """The most frequent values (ties by value), sorted."""
    codes, uniques = pd.factorize(values)
    counts = np.bincount(codes, minlength=len(uniques))
    order = sorted(range(len(uniques)), key=lambda code: (-counts[code], uniques[code]))[:limit]
    return tuple(sorted(str(uniques[code]) for code in order))


def uncovered_categories(preprocess: FittedPreprocessing, inputs: Mapping[str, np.ndarray]) -> list[tuple[int, float]]:
    """For each categorical column its number of different values, and the share of rows whose value is not kept."""
    covered = []
    for index, categories in enumerate(preprocess.categories):
        if preprocess.hash_of(index):
            covered.append((0, 0.0))
            continue
        values = pd.Series(inputs["categorical"][:, index])
        if any(preprocess.ordered[index : index + 1]):
            values = values[values != ""]  # the data stage refuses other values that the order does not list
        covered.append((int(values.nunique()), float(1 - values.isin(categories).mean())))
    return covered


def transform(preprocess: FittedPreprocessing, inputs: Mapping[str, np.ndarray], dtype: Any = np.float32) -> np.ndarray:
    """The input matrix of a model, C-contiguous [rows, width]: in float32 as the graph computes it, or in float64."""
    rows = len(next(iter(inputs.values())))
    matrix = np.zeros((rows, preprocess.width), dtype=dtype)
    start = len(preprocess.fill)
    if start:
        numeric = _numbers(inputs, preprocess.offset, preprocess.dates, preprocess.transforms, dtype)
        filled = np.where(np.isnan(numeric), preprocess.fill.astype(dtype), numeric)
        filled = apply_curves(filled, preprocess.curves)
        matrix[:, :start] = (filled - preprocess.center.astype(dtype)) / preprocess.scale.astype(dtype)
    for index, categories in enumerate(preprocess.categories):
        if hashing := preprocess.hash_of(index):
            hash_texts(inputs["categorical"][:, index], hashing, matrix[:, start : start + hashing.features])
            start += hashing.features
            continue
        values = pd.Index(inputs["categorical"][:, index], dtype=object)
        codes = pd.Index(categories, dtype=object).get_indexer(values)
        if numbers := preprocess.codes_of(index):
            matrix[:, start] = np.array(numbers, dtype=np.float32).astype(dtype)[codes]  # -1, unknown, is the last
            start += 1
            continue
        rows_with_category = np.flatnonzero(codes >= 0)
        matrix[rows_with_category, start + codes[rows_with_category]] = 1.0
        if any(preprocess.ordered[index : index + 1]):
            encoded = matrix[:, start : start + len(categories)]
            encoded[:] = encoded @ order_matrix(len(categories)).astype(dtype)
        start += len(categories)
    return matrix


def save_preprocess(preprocess: FittedPreprocessing, trained: Path) -> None:
    """Write ``preprocess.json`` into the train stage's folder; JSON preserves float32 exactly."""
    content: dict[str, Any] = {name: getattr(preprocess, name).tolist() for name in ("fill", "center", "scale")}
    content["categories"] = preprocess.categories
    if preprocess.ordered:
        content["ordered"] = preprocess.ordered
    if preprocess.is_double:
        content["offset"] = preprocess.offset.tolist()
    if preprocess.curves:
        content["curves"] = [asdict(curve) for curve in preprocess.curves]
    if preprocess.codes:
        content["codes"] = preprocess.codes
    if preprocess.transforms:
        content["transforms"] = [asdict(transform) for transform in preprocess.transforms]
    if preprocess.hashes:
        content["hashes"] = [hashing and asdict(hashing) for hashing in preprocess.hashes]
    if preprocess.dates:
        content["dates"] = [asdict(feature) for feature in preprocess.dates]
    (trained / "preprocess.json").write_text(json.dumps(content, ensure_ascii=False, allow_nan=False))


def load_preprocess(trained: Path) -> FittedPreprocessing:
    """Read ``preprocess.json`` of the train stage's folder."""
    content = json.loads((trained / "preprocess.json").read_text())
    fill, center, scale = (np.array(content[name], dtype=np.float32) for name in ("fill", "center", "scale"))
    dates = tuple(DateFeature(**item) for item in content.get("dates", ()))
    transforms = load_transforms(content.get("transforms", ()))
    others = len(dates) + sum(transform.numbers for transform in transforms)
    offset = np.array(content.get("offset", [0.0] * (len(fill) - others)), dtype=np.float64)
    categories, ordered = tuple(map(tuple, content["categories"])), tuple(content.get("ordered", ()))
    curves = tuple(
        NumberCurve(item["column"], item["kind"], tuple(item["knots"]), tuple(item["levels"]))
        for item in content.get("curves", ())
    )
    codes = tuple(map(tuple, content.get("codes", ())))
    hashes = tuple(
        item and TextHash(item["features"], tuple(item["ngrams"]), item["analyzer"], item["norm"])
        for item in content.get("hashes", ())
    )
    return FittedPreprocessing(
        fill, center, scale, categories, offset, ordered, dates, curves, codes, hashes, transforms
    )


def save_sklearn(value: Any, path: Path) -> None:
    """Write a fitted scikit-learn object as skops. Raises StoreError when it cannot be written."""
    import skops.io

    try:
        path.write_bytes(skops.io.dumps(value))
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}",
            hint="make room on the disk (df shows how much there is), and run the same command again",
        ) from error


def load_sklearn(path: Path) -> Any:
    """Read a skops file whose types all come from scikit-learn, NumPy or SciPy.

    Raises EngineError when it names any other type (before constructing anything) or cannot be read.
    """
    import skops.io

    try:
        names = skops.io.get_untrusted_types(file=path)
        foreign = [name for name in names if not name.startswith(TRUSTED_ROOT) and name not in TRUSTED_TYPES]
        if not foreign:
            return skops.io.load(path, trusted=names)
    except Exception as error:
        raise EngineError(f"{path} cannot be read: {error}", hint="mlkit run RECIPE --force train") from error
    raise EngineError(
        f"{path} names untrusted types: {', '.join(foreign)}",
        hint="leave out the argument of model.args that holds them, or take another estimator under model.module; if "
        "the file was altered: mlkit run RECIPE --force train",
    )


def class_weights(
    setting: Literal["balanced"] | Mapping[str, float] | None, classes: Sequence[str | int], codes: np.ndarray
) -> tuple[float, ...] | None:
    """Weight of each class in the loss: ``rows / (classes * rows of the class)`` when balanced, else 1 by default.

    Raises UsageError for a regression, an unknown class, or a weight that is not positive.

    >>> class_weights("balanced", ("no", "yes"), np.array([0, 0, 0, 1]))
    (0.6666666666666666, 2.0)
    """
    if setting is None:
        return None
    if not classes:
        raise UsageError("train.class_weights is for a classification", hint="train.class_weights=null")
    if setting == "balanced":
        counts = np.bincount(codes, minlength=len(classes))
        return tuple((len(codes) / (len(classes) * counts)).tolist())
    names = [str(label) for label in classes]
    for name, weight in setting.items():
        if name not in names:
            message = f"train.class_weights names {name!r}, which is not a class of the target"
            raise UsageError(message, hint=f"the classes are {', '.join(names[:20])}")
        if weight <= 0:
            raise UsageError(f"train.class_weights.{name} is {weight}", hint="a weight must be above 0")
    return tuple(float(setting.get(name, 1.0)) for name in names)


def check_target(table: Table, part: Part) -> None:
    """Raise DataError when the training rows lack a class, or a regression target is constant."""
    if table.task == "regression":
        if np.ptp(part.target) == 0:
            message = (
                f"the target {table.target!r} is {part.target[0]} in every training row: there is nothing to learn"
            )
            raise DataError(message, hint="is data.target the right column?")
        return
    counts = np.bincount(part.target, minlength=len(table.classes))
    absent = [repr(label) for label, count in zip(table.classes, counts, strict=True) if count == 0]
    if absent or len(counts) < 2:
        problem = f"no row of {', '.join(absent[:10])}" if absent else f"only the class {table.classes[0]!r}"
        message = f"the training part has {problem} in {table.target!r}"
        raise DataError(message, hint="use data.split.kind: stratified, or drop classes with too few rows")
