"""From the data stage's folder to the matrix a model is fitted on: read, impute, scale, one-hot encode.

Everything fitted here sees the training rows only. The preprocessor is a scikit-learn ``ColumnTransformer`` over a
table of the numeric columns (float32, NaN when missing) followed by the categorical ones (str, "" when missing)::

    numeric       Pipeline(SimpleImputer, StandardScaler or MinMaxScaler)   columns 0 .. k-1
    categorical   OneHotEncoder(explicit categories, unknown: all zero)     columns k .. k+m-1

so that skl2onnx converts it into a graph with the inputs ``numeric`` FLOAT [-1, k] and ``categorical`` STRING
[-1, m]. Its output is float32 [rows, width]: the numeric columns, then one column for each category.
Persisted with skops, never with pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlflowkit.errors import DataError, EngineError, StoreError, UsageError
from mlflowkit.tables import categorical_matrix, class_codes, numeric_matrix

if TYPE_CHECKING:
    import numpy as np

TRUSTED_ROOT = "sklearn."
TRUSTED_TYPES = ("numpy.dtype",)
"""Types that a .skops file may name, besides scikit-learn's own and those that skops itself trusts."""


@dataclass(frozen=True, slots=True)
class Features:
    """Names of the feature columns by kind, each in the order of the source."""

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the split: ``inputs`` by name (numeric float32 [n, k], categorical str [n, m]; absent when there
    are no such columns) and ``target``, the index of the class (int64 [n]) or the value (float64 [n])."""

    inputs: Mapping[str, np.ndarray]
    target: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.target)


@dataclass(frozen=True, slots=True)
class Table:
    """What training needs of ``table.json``."""

    folder: Path
    task: Literal["classification", "regression"]
    target: str
    features: Features
    classes: tuple[str | int, ...]

    def read(self, part: Literal["train", "validation", "test"]) -> Part:
        """Read one part. Raises DataError when it has no rows, an infinite number or an unusable target."""
        import pandas as pd

        names = [*self.features.numeric, *self.features.categorical]
        frame = pd.read_parquet(self.folder / f"{part}.parquet", columns=[*names, self.target])
        if frame.empty:
            raise DataError(f"the {part} part has no rows", hint="use more rows, or larger shares under data.split")
        inputs = {}
        if self.features.numeric:
            inputs["numeric"] = numeric_matrix(frame, self.features.numeric)
            _refuse_infinite(inputs["numeric"], self.features.numeric, part)
        if self.features.categorical:
            inputs["categorical"] = categorical_matrix(frame, self.features.categorical)
        return Part(inputs, self._target(frame[self.target], part))

    def _target(self, values: Any, part: str) -> np.ndarray:
        if self.task == "classification":
            return class_codes(values, self.classes)
        import numpy as np

        target: np.ndarray = numeric_matrix_target(values)
        bad = np.flatnonzero(~np.isfinite(target))
        if bad.size:
            raise DataError(
                f"row {int(bad[0])} of the {part} part: the target {self.target!r} is {target[bad[0]]}",
                hint="drop rows without a finite target before training",
            )
        return target


def numeric_matrix_target(values: Any) -> np.ndarray:
    """A regression target as float64 [rows]; NaN when missing."""
    import numpy as np

    result: np.ndarray = values.to_numpy(dtype=np.float64, na_value=np.nan)
    return result


def open_table(folder: Path) -> Table:
    """Read ``table.json`` of the data stage's folder."""
    info = json.loads((folder / "table.json").read_text())
    named = {
        kind: tuple(column["name"] for column in info["features"] if column["kind"] == kind)
        for kind in ("numeric", "categorical")
    }
    if not named["numeric"] and not named["categorical"]:
        raise DataError("the table has no feature columns", hint="see data.drop and data.columns in the recipe")
    return Table(
        folder=folder,
        task=info["task"],
        target=info["target"],
        features=Features(named["numeric"], named["categorical"]),
        classes=tuple(info["classes"]),
    )


def _refuse_infinite(matrix: np.ndarray, columns: Sequence[str], part: str) -> None:
    import numpy as np

    infinite = np.isinf(matrix)
    if infinite.any():
        row, column = (int(index) for index in np.argwhere(infinite)[0])
        name = columns[column]
        raise DataError(
            f"column {name!r} holds {int(infinite[:, column].sum())} infinite or float32-overflowing values in the "
            f"{part} part, the first in row {row}",
            hint=f"make them missing (NaN) or add a check: {{kind: range, column: {name}, max: ...}}",
        )


def fit_preprocess(inputs: Mapping[str, np.ndarray], features: Features, section: Any) -> Any:
    """Fit the ColumnTransformer on the training rows, as a stages.train.Preprocess says.

    A numeric column with no value at all in these rows becomes constant instead of vanishing.
    Raises DataError when nothing can be fitted.

    >>> from types import SimpleNamespace
    >>> import numpy as np
    >>> section = SimpleNamespace(impute="mean", scale="none", max_categories=1)
    >>> inputs = {"numeric": np.array([[1], [np.nan], [3]], np.float32),
    ...           "categorical": np.array([["b"], ["b"], ["a"]], object)}
    >>> fitted = fit_preprocess(inputs, Features(("x",), ("c",)), section)
    >>> transform(fitted, inputs).tolist()
    [[1.0, 1.0], [2.0, 1.0], [3.0, 0.0]]
    """
    import numpy as np
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import OneHotEncoder

    steps: list[tuple[str, Any, list[int]]] = []
    width = len(features.numeric)
    if features.numeric:
        steps.append(("numeric", _numeric_pipeline(section), list(range(width))))
    if features.categorical:
        texts = inputs["categorical"]
        categories = [_frequent(texts[:, index], section.max_categories) for index in range(texts.shape[1])]
        encoder = OneHotEncoder(categories=categories, handle_unknown="ignore", sparse_output=False, dtype=np.float32)
        steps.append(("categorical", encoder, list(range(width, width + len(features.categorical)))))
    transformer = ColumnTransformer(steps, remainder="drop", sparse_threshold=0.0)
    transformer.fit(_frame(inputs))
    return transformer


def _numeric_pipeline(section: Any) -> Any:
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    steps: list[tuple[str, Any]] = [("impute", SimpleImputer(strategy=section.impute, keep_empty_features=True))]
    scalers = {"standard": StandardScaler, "minmax": MinMaxScaler}
    if section.scale != "none":
        steps.append(("scale", scalers[section.scale]()))
    return Pipeline(steps)


def _frequent(values: np.ndarray, limit: int) -> np.ndarray:
    """The most frequent values (ties by value), sorted by value: an object array of str."""
    import numpy as np
    import pandas as pd

    codes, uniques = pd.factorize(values)
    counts = np.bincount(codes, minlength=len(uniques))
    order = sorted(range(len(uniques)), key=lambda code: (-counts[code], uniques[code]))[:limit]
    return np.array(sorted(str(uniques[code]) for code in order), dtype=object)


def _frame(inputs: Mapping[str, np.ndarray]) -> Any:
    """One table of both inputs, columns named by position so that names never clash."""
    import pandas as pd

    parts, start = [], 0
    for name in ("numeric", "categorical"):
        if name in inputs:
            matrix = inputs[name]
            columns = [f"c{index}" for index in range(start, start + matrix.shape[1])]
            parts.append(pd.DataFrame(matrix, columns=columns, dtype=matrix.dtype))
            start += matrix.shape[1]
    return parts[0] if len(parts) == 1 else pd.concat(parts, axis=1)


def transform(preprocess: Any, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The matrix a model takes: float32, C-contiguous [rows, width]."""
    import numpy as np

    return np.ascontiguousarray(preprocess.transform(_frame(inputs)), dtype=np.float32)


def save_sklearn(value: Any, path: Path) -> None:
    """Write a fitted scikit-learn object as skops. Raises StoreError when the disk refuses it."""
    import skops.io

    try:
        path.write_bytes(skops.io.dumps(value))
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}", hint="free some disk space") from error


def load_sklearn(path: Path) -> Any:
    """Read a skops file whose types all come from scikit-learn, NumPy or SciPy.

    Raises EngineError when it names any other type (nothing of it is then constructed) or cannot be read.
    """
    import skops.io

    try:
        unknown = skops.io.get_untrusted_types(file=path)
        foreign = [name for name in unknown if not name.startswith(TRUSTED_ROOT) and name not in TRUSTED_TYPES]
        if not foreign:
            return skops.io.load(path, trusted=unknown)
    except Exception as error:
        raise EngineError(f"{path} cannot be read: {error}", hint="mlkit run --force train") from error
    raise EngineError(f"{path} names untrusted types: {', '.join(foreign)}", hint="mlkit run --force train")


def class_weights(
    setting: Literal["balanced"] | Mapping[str, float] | None, classes: Sequence[str | int], codes: np.ndarray
) -> tuple[float, ...] | None:
    """Weight of each class in the loss: ``rows / (classes * rows of the class)`` when balanced, 1 where not named.

    Raises UsageError for a class that the table has not or a weight that is not positive.

    >>> import numpy as np
    >>> class_weights("balanced", ("no", "yes"), np.array([0, 0, 0, 1]))
    (0.6666666666666666, 2.0)
    """
    import numpy as np

    if setting is None:
        return None
    if setting == "balanced":
        counts = np.bincount(codes, minlength=len(classes))
        return tuple((len(codes) / (len(classes) * counts)).tolist())
    names = [str(label) for label in classes]
    for name, weight in setting.items():
        if name not in names:
            raise UsageError(
                f"train.class_weights names {name!r}, which is no class of the target",
                hint=f"the classes are {', '.join(names[:20])}",
            )
        if weight <= 0:
            raise UsageError(f"train.class_weights.{name} is {weight}", hint="a weight must be above 0")
    return tuple(float(setting.get(name, 1.0)) for name in names)


def check_target(table: Table, part: Part) -> None:
    """Raise DataError when the training rows lack a class, or hold a single value to regress on."""
    import numpy as np

    if table.task == "regression":
        if np.ptp(part.target) == 0:
            raise DataError(
                f"the target {table.target!r} is {part.target[0]} in every training row: there is nothing to learn",
                hint="is data.target the right column?",
            )
        return
    counts = np.bincount(part.target, minlength=len(table.classes))
    absent = [repr(label) for label, count in zip(table.classes, counts, strict=True) if count == 0]
    if absent or len(counts) < 2:
        what = f"no row of {', '.join(absent[:10])}" if absent else f"only the class {table.classes[0]!r}"
        raise DataError(
            f"the training part has {what} in {table.target!r}",
            hint="use data.split.kind: stratified, or drop classes with too few rows",
        )
