"""The profiler port as whylogs fulfils it: true figures, reproducible bytes, whylogs' own profiles understood."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from mlflowkit.adapters.whylogs import WhylogsProfiler, _kll, _whylogs
from mlflowkit.errors import DataError

ROWS = 5000


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    random = np.random.default_rng(3)
    gaps = random.lognormal(3, 1, ROWS)
    gaps[::10] = np.nan
    return pd.DataFrame(
        {
            "float": random.normal(10, 2, ROWS),
            "gaps": gaps,
            "int": random.integers(0, 1000, ROWS),
            "text": pd.Series(random.choice(["a", "b", "c"], ROWS, p=[0.7, 0.2, 0.1]), dtype="str").mask(
                random.random(ROWS) < 0.05
            ),
            "constant": np.full(ROWS, 4.0),
            "few": np.r_[np.full(ROWS - 2, 1.0), 2.0, 2.0],
        }
    )


@pytest.fixture(scope="module")
def summary(table: pd.DataFrame) -> dict:
    profiler = WhylogsProfiler()
    return dict(profiler.summary(profiler.profile(table)))


def test_summary_is_json_with_the_agreed_keys(summary: dict) -> None:
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["rows"] == ROWS
    numeric = {"type", "count", "missing", "unique", "mean", "stddev", "min", "max", "quantiles", "histogram"}
    assert set(summary["columns"]["float"]) == numeric
    assert set(summary["columns"]["text"]) == {"type", "count", "missing", "unique", "frequent"}


@pytest.mark.parametrize("name", ["float", "gaps", "int", "constant", "few"])
def test_figures_of_numbers_agree_with_the_rows(summary: dict, table: pd.DataFrame, name: str) -> None:
    column, values = summary["columns"][name], table[name].dropna()
    assert (column["type"], column["count"], column["missing"]) == ("numeric", ROWS, ROWS - len(values))
    assert column["mean"] == pytest.approx(values.mean())
    assert column["stddev"] == pytest.approx(values.std(), abs=1e-12)
    assert (column["min"], column["max"]) == (values.min(), values.max())
    assert column["unique"] == pytest.approx(values.nunique(), rel=0.05)
    for share, value in column["quantiles"].items():
        assert (values < value).mean() - 0.003 <= float(share) <= (values <= value).mean() + 0.003
    edges, counts = column["histogram"]["edges"], column["histogram"]["counts"]
    assert sum(counts) == len(values)
    exact = np.histogram(values, edges)[0] if len(edges) > 2 else [len(values)]
    assert np.abs(np.array(counts) - exact).max() <= 0.004 * ROWS


def test_figures_of_text_are_exact(summary: dict, table: pd.DataFrame) -> None:
    column = summary["columns"]["text"]
    assert (column["type"], column["unique"]) == ("categorical", 3)
    assert column["missing"] == table["text"].isna().sum()
    assert dict(column["frequent"]) == table["text"].value_counts().to_dict()


def test_agrees_with_whylogs_own_track(summary: dict, table: pd.DataFrame) -> None:
    core = _whylogs()
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


def test_profiles_merge(table: pd.DataFrame, summary: dict) -> None:
    core, profiler = _whylogs(), WhylogsProfiler()
    halves = [
        core.DatasetProfileView.deserialize(profiler.profile(half)) for half in (table[: ROWS // 2], table[ROWS // 2 :])
    ]
    merged = profiler.summary(halves[0].merge(halves[1]).serialize())
    assert merged["rows"] == ROWS
    assert merged["columns"]["float"]["mean"] == pytest.approx(summary["columns"]["float"]["mean"])
    assert merged["columns"]["text"] == summary["columns"]["text"]
    median = merged["columns"]["gaps"]["quantiles"]["0.5"]
    assert (table["gaps"] < median).sum() / table["gaps"].count() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("rows", [1025, 2048, 2049, 12345, 200_000])
def test_built_sketch_keeps_its_rank_bound_and_goes_on_as_a_sketch(rows: int) -> None:
    _whylogs()
    import whylogs_sketching

    numbers = np.random.default_rng(rows).lognormal(size=rows)
    updated = whylogs_sketching.kll_doubles_sketch(k=1024)
    updated.update(array=numbers)
    built = _kll(numbers, updated)
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
    found = profiler.summary(profiler.profile(pd.DataFrame({"x": column})))["columns"]["x"]
    assert (found["type"], found["missing"]) == ("numeric", 1)
    assert found["mean"] == pytest.approx(column.astype("Float64").mean())


def test_mixed_objects_count_as_text() -> None:
    profiler = WhylogsProfiler()
    table = pd.DataFrame({"x": pd.Series(["a", 1, None], dtype=object)})
    found = profiler.summary(profiler.profile(table))["columns"]["x"]
    assert (found["type"], found["missing"], dict(found["frequent"])) == ("categorical", 1, {"a": 1, "1": 1})


@pytest.mark.parametrize("content", [b"", b"WHY", b"nonsense, not a profile", b"WHY1"])
def test_what_is_no_profile_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="not a whylogs profile"):
        WhylogsProfiler().summary(content)
