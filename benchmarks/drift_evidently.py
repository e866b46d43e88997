"""Judge windows by Evidently at its defaults: run by benchmarks.drift_peers in an environment of its own.

    python drift_evidently.py WINDOWS.npz   # arrays reference (rows, columns) and windows (windows, rows, columns)

Prints JSON: the number of columns that are called drifted in each window.
"""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
import pandas as pd


def drifted_columns(reference: pd.DataFrame, current: pd.DataFrame) -> int:
    import pandas.core.dtypes.common as dtypes

    if not hasattr(dtypes, "infer_dtype_from_object"):  # pandas 3 has none, and Evidently 0.7 imports it
        dtypes.infer_dtype_from_object = lambda dtype: np.dtype(dtype).type
    from evidently import Report
    from evidently.presets import DataDriftPreset

    snapshot = Report([DataDriftPreset()]).run(current, reference)
    for metric in snapshot.dict()["metrics"]:
        if "DriftedColumnsCount" in str(metric.get("metric_id") or metric.get("metric_name")):
            return int(metric["value"]["count"])
    raise RuntimeError("Evidently's report has no DriftedColumnsCount")


def main() -> None:
    warnings.simplefilter("ignore")
    with np.load(sys.argv[1]) as arrays:
        reference, windows = arrays["reference"], arrays["windows"]
    names = [f"x{index}" for index in range(reference.shape[1])]
    table = pd.DataFrame(reference, columns=names)
    print(json.dumps([drifted_columns(table, pd.DataFrame(window, columns=names)) for window in windows]))


if __name__ == "__main__":
    main()
