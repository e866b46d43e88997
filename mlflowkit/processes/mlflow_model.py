"""Loads a registered version for ``mlflow.pyfunc``: MLflow imports this module by the name in the version's MLmodel.

It needs mlflowkit with the extras ``serve`` and ``cpu`` (or ``gpu``) where the model is loaded, and answers as the
service does: rows are read by the signature's rules, and the same graph predicts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from mlflowkit.bundle import Bundle


class BundleModel:
    """A bundle behind ``predict``. Columns that the model does not take are ignored."""

    def __init__(self, bundle: Bundle) -> None:
        from mlflowkit.scoring.predictors import GraphPredictor
        from mlflowkit.serving.inference.variants import complete_categories
        from mlflowkit.wiring import Wiring

        self._categories = complete_categories(bundle.path)
        self.signature = bundle.signature
        self._predictor = GraphPredictor(bundle, Wiring(bundle.path).runtime)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Predict a DataFrame or a list of rows: ``prediction``, and ``probability_CLASS`` for each class.

        Raises DataError for a column that is missing or a value that is none of its column.
        """
        from mlflowkit.scoring.conversion import feature_frame, feature_names
        from mlflowkit.scoring.predictors import prediction_table

        table = _table(model_input, feature_names(self.signature))
        outputs = self._predictor.predict(feature_frame(table, self.signature, start=1, categories=self._categories))
        answers: pd.DataFrame = prediction_table(outputs, self.signature.classes, "").to_pandas()
        return answers


def _table(rows: Any, names: Sequence[str]) -> pa.Table:
    import pandas as pd
    import pyarrow as pa

    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows)
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise DataError(f"the rows have no column {', '.join(missing)}", hint=f"the model takes {', '.join(names)}")
    return pa.Table.from_pandas(frame[list(names)], preserve_index=False)


def _load_pyfunc(path: str) -> BundleModel:
    """What ``mlflow.pyfunc.load_model`` calls with the path of the bundle. Raises BundleError."""
    from mlflowkit.bundle import open_bundle

    return BundleModel(open_bundle(Path(path).resolve(), blessed=True))
