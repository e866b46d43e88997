"""Ask a graph many rows, a chunk at a time, for answers that are to be judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mlflowkit.bundle import Signature
from mlflowkit.errors import DataError, EngineError
from mlflowkit.features.tensors import class_codes
from mlflowkit.judging.metrics import Answers

if TYPE_CHECKING:
    import numpy as np

    from mlflowkit.ports import Session

CHUNK = 4096
"""Rows asked of a graph at a time."""


def ask(
    session: Session,
    signature: Signature,
    inputs: Callable[[slice], Mapping[str, np.ndarray]],
    actual: np.ndarray,
) -> Answers:
    """A graph's answers on all rows, beside what was to be answered.

    ``inputs`` makes the graph's inputs for some of the rows; ``actual`` is class codes int64 [rows] in the order of
    ``signature.classes``, or values float64 [rows]. Raises DataError when there are no rows or a label is none of the
    classes, EngineError when the graph lacks an output.
    """
    import numpy as np

    rows = len(actual)
    if not rows:
        raise DataError("there are no rows to ask the model", hint="enlarge data.split")
    parts: dict[str, list[np.ndarray]] = {tensor.name: [] for tensor in signature.outputs}
    for start in range(0, rows, CHUNK):
        outputs = session.run(inputs(slice(start, start + CHUNK)))
        for name, found in parts.items():
            if name not in outputs:
                raise EngineError(f"the graph has no output {name}", hint="mlkit run --force export")
            found.append(np.asarray(outputs[name]))
    return judged({name: np.concatenate(found) for name, found in parts.items()}, signature, actual)


def judged(outputs: Mapping[str, np.ndarray], signature: Signature, actual: np.ndarray) -> Answers:
    """A graph's outputs on all rows, beside what was to be answered; see `ask`. Raises EngineError for one lacking."""
    import numpy as np
    import pandas as pd

    lacking = [tensor.name for tensor in signature.outputs if tensor.name not in outputs]
    if lacking:
        raise EngineError(f"the graph has no output {', '.join(lacking)}", hint="mlkit run --force export")
    if signature.task == "regression":
        return Answers("regression", actual, outputs["prediction"].astype(np.float64).reshape(-1))
    predicted = class_codes(pd.Series(outputs["label"].reshape(-1), name="label"), signature.classes)
    return Answers("classification", actual, predicted, outputs["probabilities"].astype(np.float64))
