"""Judge windows by NannyML at its defaults: run by benchmarks.drift_peers in an environment of its own.

    python drift_nannyml.py WINDOWS.npz   # arrays reference (rows, columns) and windows (windows, rows, columns)

Prints JSON: the number of columns with an alert in each window. Chunks are windows, in the reference too.
"""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
import pandas as pd


def main() -> None:
    from nannyml import UnivariateDriftCalculator

    warnings.simplefilter("ignore")
    with np.load(sys.argv[1]) as arrays:
        reference, windows = arrays["reference"], arrays["windows"]
    names = [f"x{index}" for index in range(reference.shape[1])]
    calculator = UnivariateDriftCalculator(column_names=names, chunk_size=windows.shape[1])
    calculator.fit(pd.DataFrame(reference, columns=names))
    rows = windows.reshape(-1, windows.shape[2])
    table = calculator.calculate(pd.DataFrame(rows, columns=names)).filter(period="analysis").to_df()
    alerts = table[[column for column in table.columns if column[-1] == "alert"]]
    print(json.dumps([int(number) for number in alerts.fillna(False).to_numpy().astype(bool).sum(axis=1)]))


if __name__ == "__main__":
    main()
