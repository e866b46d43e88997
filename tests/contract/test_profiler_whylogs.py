"""The profiler port as whylogs fulfils it: true figures, reproducible bytes, whylogs' own profiles understood."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from mlflowkit.adapters.whylogs import WhylogsProfiler, _build_kll, _import_whylogs
from mlflowkit.errors import DataError
from mlflowkit.testing import PROFILED_ROWS, ProfilerContract, profiled_table

ROWS = PROFILED_ROWS


class TestWhylogsProfiler(ProfilerContract):
    def profiler(self) -> WhylogsProfiler:
        return WhylogsProfiler()


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return profiled_table()


@pytest.fixture(scope="module")
def summary(table: pd.DataFrame) -> dict:
    profiler = WhylogsProfiler()
    return dict(profiler.summary(profiler.profile(table)))


def test_agrees_with_whylogs_own_track(summary: dict, table: pd.DataFrame) -> None:
    core = _import_whylogs()
    tracked = core.DatasetProfile()
    tracked.track(table)
    theirs = WhylogsProfiler().summary(tracked.view().serialize())
    assert theirs["rows"] == summary["rows"]
    for name, column in theirs["columns"].items():
        ours = summary["columns"][name]
        assert set(ours) == set(column)
        for key in set(ours) - {"quantiles", "histogram"}:
            assert ours[key] == pytest.approx(column[key]) if key in ("mean", "stddev") else ours[key] == column[key]
        for share, value in column.get("quantiles", {}).items():
            ranks = [(table[name] < edge).sum() / table[name].count() for edge in (ours["quantiles"][share], value)]
            assert ranks[0] == pytest.approx(ranks[1], abs=0.01)


def test_equal_tables_give_equal_bytes_in_another_process(table: pd.DataFrame, tmp_path) -> None:
    table.to_parquet(tmp_path / "t.parquet")
    code = (
        "import sys, hashlib, pandas as pd; from mlflowkit.adapters.whylogs import WhylogsProfiler;"
        "print(hashlib.sha256(WhylogsProfiler().profile(pd.read_parquet(sys.argv[1]))).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "t.parquet")]
    digests = {
        subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("rows", [1025, 2048, 2049, 12345, 200_000])
def test_built_sketch_keeps_its_rank_bound_and_goes_on_as_a_sketch(rows: int) -> None:
    _import_whylogs()
    import whylogs_sketching

    numbers = np.random.default_rng(rows).lognormal(size=rows)
    updated = whylogs_sketching.kll_doubles_sketch(k=1024)
    updated.update(array=numbers)
    built = _build_kll(numbers, updated)
    ordered = np.sort(numbers)
    assert (built.get_n(), built.get_min_value(), built.get_max_value()) == (rows, ordered[0], ordered[-1])
    for value in ordered[:: rows // 100]:
        assert built.get_rank(float(value)) == pytest.approx(np.searchsorted(ordered, value) / rows, abs=1 / 1024)
    built.merge(updated)
    built.update(array=numbers)
    assert built.get_n() == 3 * rows
    again = type(built).deserialize(built.serialize())
    assert again.get_rank(float(ordered[rows // 2])) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "column", [pd.Series([True, False, None], dtype="boolean"), pd.Series([1, None, 3], dtype="Int64")]
)
def test_nullable_types_count_as_numbers(column: pd.Series) -> None:
    profiler = WhylogsProfiler()
    column_summary = profiler.summary(profiler.profile(pd.DataFrame({"x": column})))["columns"]["x"]
    assert (column_summary["type"], column_summary["missing"]) == ("numeric", 1)
    assert column_summary["mean"] == pytest.approx(column.astype("Float64").mean())


def test_mixed_objects_count_as_text() -> None:
    profiler = WhylogsProfiler()
    table = pd.DataFrame({"x": pd.Series(["a", 1, None], dtype=object)})
    summary = profiler.summary(profiler.profile(table))["columns"]["x"]
    assert (summary["type"], summary["missing"], dict(summary["frequent"])) == (
        "categorical",
        1,
        {"a": 1, "1": 1},
    )


@pytest.mark.parametrize("content", [b"", b"WHY", b"nonsense, not a profile", b"WHY1"])
def test_what_is_no_profile_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="not a whylogs profile"):
        WhylogsProfiler().summary(content)
