"""From a table to the tensors that a graph takes: the one place that training, optimisation and evaluation share.

What a cell becomes does not depend on the dtype that pandas happened to choose for its column: a whole number that
is categorical is ``"3"``, also where a gap elsewhere in the column made pandas keep it as ``3.0``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlflowkit.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from mlflowkit.bundle import Signature


def category_text(value: object) -> str:
    """The text that a categorical cell is to a graph: "" for a missing value (None, NaN, NaT, NA).

    >>> [category_text(value) for value in ("rent", 3, 3.0, 2.5, True, None, float("nan"))]
    ['rent', '3', '3', '2.5', 'True', '', '']
    """
    if isinstance(value, str):
        return str(value)
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
        return ""
    if not isinstance(value, bool) and hasattr(value, "is_integer"):
        number = float(value)  # type: ignore[arg-type]  # numbers alone have is_integer
        if math.isfinite(number) and number.is_integer() and abs(number) < 2**53:
            return str(int(number))
    return str(value)


def numeric_matrix(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Columns as float32 [rows, columns]; a missing value is NaN, booleans are 0 and 1.

    Raises DataError when a column is absent or holds something that is not a number.

    >>> import pandas as pd
    >>> numeric_matrix(pd.DataFrame({"a": [1, None], "b": [True, False]}), ["b", "a"]).tolist()
    [[1.0, 1.0], [0.0, nan]]
    """
    import numpy as np

    _require(table, columns)
    matrix = np.empty((len(table), len(columns)), dtype=np.float32)
    with np.errstate(over="ignore"):
        for index, name in enumerate(columns):
            matrix[:, index] = _numbers(table[name])
    return matrix


def categorical_matrix(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Columns as an object array of str [rows, columns], by `category_text`; a missing value is "".

    Raises DataError when a column is absent.

    >>> import pandas as pd
    >>> categorical_matrix(pd.DataFrame({"a": ["x", None], "b": [1.0, None]}), ["a", "b"]).tolist()
    [['x', '1'], ['', '']]
    """
    import numpy as np

    _require(table, columns)
    matrix = np.empty((len(table), len(columns)), dtype=object)
    for index, name in enumerate(columns):
        matrix[:, index] = _texts(table[name])
    return matrix


def inputs_from_table(signature: Signature, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """The inputs of a graph by name: FP32 inputs by `numeric_matrix`, BYTES inputs by `categorical_matrix`.

    Columns of the table that the signature does not name are left alone. Raises DataError when it lacks one.
    """
    matrices = {"FP32": numeric_matrix, "BYTES": categorical_matrix}
    inputs = {}
    for tensor in signature.inputs:
        if tensor.datatype not in matrices:
            raise DataError(
                f"input {tensor.name} of the graph is {tensor.datatype}; a table gives FP32 and BYTES inputs",
                hint="export the model again with this version of mlflowkit",
            )
        inputs[tensor.name] = matrices[tensor.datatype](table, tensor.columns)
    return inputs


def class_codes(values: pd.Series, classes: Sequence[str | int]) -> np.ndarray:
    """Index into ``classes`` of each label, int64 [rows]. Booleans count as 0 and 1.

    Raises DataError when a label is missing or is none of the classes.

    >>> import pandas as pd
    >>> class_codes(pd.Series(["no", "yes", "no"]), ["no", "yes"]).tolist()
    [0, 1, 0]
    """
    import numpy as np
    import pandas as pd

    position = {category_text(_plain(label)): code for code, label in enumerate(classes)}
    codes, uniques = pd.factorize(values, use_na_sentinel=False)
    table = np.array([position.get(category_text(_plain(value)), -1) for value in uniques], dtype=np.int64)
    result = table[codes] if len(values) else np.empty(0, dtype=np.int64)
    if (result < 0).any():
        row = int(np.flatnonzero(result < 0)[0])
        raise DataError(
            f"row {row} of column {values.name!r} is {values.iloc[row]!r}, none of the classes "
            f"{', '.join(map(repr, list(classes)[:10]))}",
            hint="was the model trained on another table? `mlkit run --force data` reads it again",
        )
    return result


def _plain(value: object) -> object:
    """Booleans (NumPy's too) as 0 and 1, the rest as it is."""
    return int(bool(value)) if type(value).__name__ in ("bool", "bool_") else value


def _require(table: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(
            f"the table has no column {', '.join(map(repr, missing))}",
            hint=f"it has {', '.join(map(str, list(table.columns)[:12]))}",
        )


def _numbers(series: pd.Series) -> np.ndarray:
    import numpy as np
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        raise DataError(
            f"column {series.name!r} holds times, not numbers",
            hint=f"declare data.columns.{series.name}: time, or drop it",
        )
    try:
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"column {series.name!r} holds something that is not a number: {error}",
            hint=f"declare data.columns.{series.name}: categorical",
        ) from error


def _texts(series: pd.Series) -> np.ndarray:
    import numpy as np
    import pandas as pd

    if series.dtype == object and pd.api.types.infer_dtype(series, skipna=True).startswith("mixed"):
        # 0 == False and 1 == True: telling distinct values apart by equality would give one the other's text.
        return np.array([category_text(value) for value in series], dtype=object)
    codes, uniques = pd.factorize(series, use_na_sentinel=False)
    texts = np.array([category_text(value) for value in uniques], dtype=object)
    return texts[codes] if len(series) else np.empty(0, dtype=object)
