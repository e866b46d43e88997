"""mlkit drift: numbers equal scipy's, error rates of its verdicts, odd columns, and what it says of correlated rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

import mlflowkit as mk
from mlflowkit import bundle
from mlflowkit.cli.app import main
from mlflowkit.errors import DataError, UsageError
from mlflowkit.features.reference_cells import column_reference
from mlflowkit.features.table_shift import TableValues, compare_with_reference
from mlflowkit.features.tensors import inputs_from_table
from mlflowkit.judging.shift.reference import EVIDENCE, Reference
from mlflowkit.judging.shift.sample_shift import SampleShift
from mlflowkit.values import Lineage
from tests.support import lending_bundle


def loans(rows: int, seed: int, shift: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    income = rng.lognormal(10, 0.5, rows) * (1 + shift)
    rate = np.round(rng.uniform(5, 30, rows), 2)
    rate[rng.random(rows) < 0.1] = np.nan
    return pd.DataFrame(
        {
            "income": income,
            "rate": rate,
            "term": rng.choice([36, 60], rows, p=[0.7, 0.3]),
            "state": rng.choice(["CA", "NY", "TX", None], rows, p=[0.5, 0.3, 0.15, 0.05]),
            "day": np.arange(rows) // 50,
        }
    )


def finding(report: Any, column: str, aspect: str = "distribution", segment: str = "") -> Any:
    (match,) = (
        item for item in report.findings if (item.column, item.aspect, item.segment) == (column, aspect, segment)
    )
    return match


def test_distances_are_those_of_scipy_on_the_raw_rows() -> None:
    first, second = loans(3000, 1), loans(2000, 2, shift=0.3)
    report = mk.drift(first, second)
    for column in ("income", "rate", "term", "day"):
        expected = ks_2samp(first[column].dropna(), second[column].dropna()).statistic
        assert finding(report, column).value == pytest.approx(expected, abs=1e-9)
    shares = [side["state"].value_counts(normalize=True) for side in (first, second)]
    expected = 0.5 * (shares[0] - shares[1]).abs().sum()
    assert finding(report, "state").value == pytest.approx(expected, abs=1e-9)
    missing = second["rate"].isna().mean() - first["rate"].isna().mean()
    assert finding(report, "rate", "missing").value == pytest.approx(missing)


def test_files_and_tables_in_memory_say_the_same(tmp_path: Path) -> None:
    first, second = loans(800, 1), loans(900, 2)
    first.to_csv(tmp_path / "a.csv", index=False)
    second.to_parquet(tmp_path / "b.parquet", index=False)
    from_files = mk.drift(tmp_path / "a.csv", tmp_path / "b.parquet").to_json()
    in_memory = mk.drift(first, second).to_json()
    assert from_files["columns"] == in_memory["columns"]


@pytest.mark.simulation
def test_equal_tables_fail_rarely_and_a_shift_of_the_margin_is_not_failed() -> None:
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(200):
        tables = [pd.DataFrame(rng.random((400, 10)), columns=list("abcdefghij")) for _ in range(2)]
        tables[1]["a"] = tables[1]["a"] * 0.9  # its distance is 0.1, the margin
        failed += any(item.outcome == "FAILED" for item in mk.drift(*tables).findings)
    assert failed <= 10


@pytest.mark.simulation
@pytest.mark.simulation
@pytest.mark.parametrize("rows", [(5, 4000), (40, 4000), (4000, 1), (4000, 5), (300, 300)])
def test_small_tables_of_one_distribution_fail_rarely(rows: tuple[int, int]) -> None:
    random, failed = np.random.default_rng(sum(rows)), 0
    for _ in range(100):
        tables = [
            pd.DataFrame({"x": random.normal(size=size), "who": [f"u{n}" for n in random.geometric(0.01, size=size)]})
            for size in rows
        ]
        failed += any(item.outcome == "FAILED" for item in mk.drift(*tables).findings)
    assert failed <= 10  # 5 expected at most; more than 10 of 100 by chance: 1 %


def test_rows_of_one_day_are_one_observation_where_the_unit_is_named() -> None:
    rng = np.random.default_rng(0)
    by_rows = by_days = covered = 0
    for _ in range(60):
        tables = []
        for _ in range(2):
            day = np.repeat(np.arange(30), 300)
            tables.append(pd.DataFrame({"day": day, "x": rng.normal(size=30)[day] + rng.normal(size=len(day))}))
        by_rows += finding(mk.drift(*tables, margin=0.05), "x").outcome == "FAILED"
        days = finding(mk.drift(*tables, unit="day", margin=0.05), "x")
        by_days += days.outcome == "FAILED"
        covered += days.low == 0.0
        assert days.effective_rows == 30
    assert by_rows > 15  # the rows are far from independent
    assert by_days == 0
    assert covered == 60


def test_new_values_missing_ones_and_values_out_of_range() -> None:
    first, second = loans(5000, 1), loans(5000, 2)
    second.loc[:499, "state"] = "XX"
    second.loc[:999, "income"] = np.nan
    second.loc[1000:1999, "rate"] = 99.0
    report = mk.drift(first, second)
    assert finding(report, "state", "new").value == pytest.approx(500 / second["state"].notna().sum())
    for column, aspect in (("state", "new"), ("income", "missing"), ("rate", "range")):
        assert finding(report, column, aspect).outcome == "FAILED"
    assert report.exit_code == 1


def test_segments_show_what_the_whole_hides() -> None:
    first, second = loans(8000, 1), loans(8000, 2)
    for value, factor in ((36, 1.0), (60, 5.0)):
        second.loc[second["term"] == value, "income"] *= factor
    report = mk.drift(first, second, by=["term"], margin=0.3)
    assert finding(report, "income", segment="term=60").outcome == "FAILED"
    assert finding(report, "income", segment="term=36").outcome == "PASSED"


ODD: dict[str, tuple[list[Any], list[Any]]] = {
    "all null": ([1.0, 2.0] * 50, [None] * 100),
    "all null on both sides": ([None] * 100, [None] * 100),
    "constant": ([1.0] * 100, [1.0] * 100),
    "all inf": ([1.0, 2.0] * 50, [np.inf] * 100),
    "one inf": ([1.0, 2.0] * 50, [np.inf, *([1.0, 2.0] * 49), 2.0]),
    "huge": ([1e308, -1e308] * 50, [1e308, 0.0] * 50),
    "empty texts": (["a", "b"] * 50, [""] * 100),
    "many texts": ([f"v{number}" for number in range(100)], [f"w{number}" for number in range(100)]),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_columns_have_findings_without_nan(name: str) -> None:
    first, second = ODD[name]
    ordinary = {"plain": [1.0, 2.0, 3.0, 4.0] * 25}
    tables = [pd.DataFrame({"odd": column, **ordinary}) for column in (first, second)]
    report = mk.drift(*tables)
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert {item["column"] for item in document["columns"]} == {"odd", "plain"}
    assert finding(report, "plain").value == 0.0
    assert all(item["message"] for item in document["columns"])


def test_columns_that_cannot_be_compared_are_named_and_the_others_judged() -> None:
    first = pd.DataFrame({"a": [1.0, 2.0] * 50, "b": ["x", "y"] * 50, "gone": [1.0, 2.0] * 50, "l": [[1]] * 100})
    second = pd.DataFrame({"a": ["1", "2"] * 50, "b": ["x", "y"] * 50, "more": [1.0, 2.0] * 50, "l": [[1]] * 100})
    report = mk.drift(first, second)
    problems = {item.column: item.message for item in report.shift.problems}
    assert problems["a"] == "holds numbers in the first table and texts in the second"
    assert problems["gone"] == "is not in the second table"
    assert problems["more"] == "is not in the first table"
    assert "neither number, time nor text" in problems["l"]
    assert {item.column for item in report.findings} == {"b"}
    assert report.exit_code == 1
    assert mk.drift(second, second.assign(extra=1)).outcome != "FAILED"


def test_a_float32_column_is_not_apart_from_itself_in_float64() -> None:
    first = loans(2000, 1)
    second = first.assign(rate=first["rate"].astype("float32"))
    assert finding(mk.drift(first, second), "rate").value == 0.0


def test_what_is_asked_wrongly_is_refused(tmp_path: Path) -> None:
    table = loans(100, 1)
    with pytest.raises(UsageError, match="no column 'dya'") as raised:
        mk.drift(table, table, unit="dya")
    assert raised.value.hint == "did you mean 'day'?"
    with pytest.raises(UsageError, match="there is no file"):
        mk.drift(tmp_path / "none.csv", table)
    with pytest.raises(DataError, match="has no rows"):
        mk.drift(table, table.head(0))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["drift", *arguments])
    return int(ended.value.code or 0), capsys.readouterr().out


def test_the_command_prints_exits_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed, shift in (("a", 1, 0.0), ("b", 2, 0.5)):
        loans(4000, seed, shift).to_csv(tmp_path / f"{name}.csv", index=False)
    a, b, page = (str(tmp_path / name) for name in ("a.csv", "b.csv", "page.html"))
    code, out = run(capsys, a, b, "--out", page)
    assert code == 1
    assert "FAILED        income: Kolmogorov-Smirnov distance" in out
    assert "income" in Path(page).read_text()
    code, out = run(capsys, a, a, "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["outcome"], document["problems"]) == ("PASSED", [])
    assert "rows are independent" in document["assumption"]
    loans(4000, 3).sample(20, random_state=1).to_csv(tmp_path / "few.csv", index=False)
    assert run(capsys, a, str(tmp_path / "few.csv"), "--json")[0] == 4


# ---- a table and a model


@pytest.fixture
def model(tmp_path: Path) -> bundle.Bundle:
    """A bundle of the lending graph, with the reference of these rows."""
    made = lending_bundle.make_bundle(tmp_path / "bundle")
    columns = inputs(made, requests(4000, 1))
    reference = Reference({name: column_reference(values) for name, values in columns.items()})
    (made.path / EVIDENCE).write_text(json.dumps(reference.to_json()))
    manifest = made.manifest
    lineage = Lineage(manifest.git_commit, manifest.git_dirty, manifest.data_version, manifest.recipe_digest)
    return bundle.write(
        made.path, name="lending", lineage=lineage, policy="policy1", run="run1", blessed=True, created=0.0
    )


def requests(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    numbers = {name: np.round(rng.uniform(5, 30, rows), 2) for name in lending_bundle.NUMERIC}
    texts = {name: rng.choice(list(values), rows) for name, values in lending_bundle.CATEGORIES.items()}
    return pd.DataFrame({**numbers, **texts})


def inputs(made: bundle.Bundle, table: pd.DataFrame) -> dict[str, np.ndarray]:
    tensors = inputs_from_table(made.signature, table)
    names = (
        (tensor.name, index, name) for tensor in made.signature.inputs for index, name in enumerate(tensor.columns)
    )
    return {name: tensors[tensor][:, index] for tensor, index, name in names}


def test_a_model_is_not_apart_from_its_own_rows_in_any_format(model: bundle.Bundle, tmp_path: Path) -> None:
    rows = requests(4000, 1)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    for table in (tmp_path / "rows.csv", rows, rows.assign(extra=1)):
        report = mk.drift(model, table)
        assert {item.value for item in report.findings} == {0.0}
        assert report.outcome == "PASSED"


def test_a_file_is_compared_with_a_model(model: bundle.Bundle, tmp_path: Path) -> None:
    shifted = requests(4000, 2)
    number, text = lending_bundle.NUMERIC[0], next(iter(lending_bundle.CATEGORIES))
    shifted[number] += 10
    shifted.loc[:399, text] = "never seen"
    report = mk.drift(model, shifted.drop(columns=lending_bundle.NUMERIC[1]))
    expected = ks_2samp(requests(4000, 1)[number], shifted[number]).statistic
    assert finding(report, number).value == pytest.approx(expected, abs=0.05)
    assert finding(report, number, "range").outcome == "FAILED"
    assert finding(report, text, "new").value == pytest.approx(0.1)
    assert [item.column for item in report.shift.problems] == [lending_bundle.NUMERIC[1]]


def test_a_bundle_without_a_reference_says_what_to_do(tmp_path: Path) -> None:
    old = lending_bundle.make_bundle(tmp_path / "old")
    if EVIDENCE in old.manifest.files:
        pytest.skip("the bundle has one")
    with pytest.raises(UsageError, match="holds no reference") as raised:
        mk.drift(old, requests(100, 1))
    assert raised.value.hint.startswith("mlkit run RECIPE")


def test_what_cells_do_not_tell_apart_is_no_pass() -> None:
    remarks = np.array([f"remark {number}" for number in range(4000)], object)
    reference = Reference({"remarks": column_reference(remarks)})
    values = TableValues({"remarks": remarks[::-1]}, 4000, np.ones(4000))
    (distance, missing) = compare_with_reference(reference, values, SampleShift()).findings
    assert (distance.value, distance.outcome) == (0.0, "INCONCLUSIVE")
    assert distance.high > 0.98
    assert "98.8 % of the values are beyond those that are kept, and are not told apart" in distance.message
    assert missing.outcome == "PASSED"


# ---- images as columns


def test_inverted_and_blurred_digits_are_apart_and_random_halves_are_not() -> None:
    from sklearn.datasets import load_digits

    images = load_digits().images
    order = np.random.default_rng(0).permutation(len(images))
    first, second = images[order[:900]], images[order[900:]]
    blurred = (np.roll(second, 1, 1) + np.roll(second, -1, 1) + np.roll(second, 1, 2) + np.roll(second, -1, 2)) / 4

    def outcomes(changed: np.ndarray) -> list[str]:
        tables = [pd.DataFrame(part.reshape(len(part), 64)).rename(columns=str) for part in (first, changed)]
        return [str(item.outcome) for item in mk.drift(*tables).findings if item.aspect == "distribution"]

    assert "FAILED" not in outcomes(second)
    assert outcomes(16 - second).count("FAILED") > 32
    assert outcomes(blurred).count("FAILED") > 32
