"""Checks of a table as a whole, through the real data and validate stages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflowkit.errors import DataError, StoreError
from mlflowkit.stages import validate
from mlflowkit.values import Event, StageResult
from tests.integration.test_validate_stage import ROWS, context, frame, prepare

LEAKAGE = {"kind": "leakage"}
DRIFT = {"kind": "drift"}


def plain(rows: int = 2000, seed: int = 0, shift: float = 0.0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    x = random.normal(shift, 1, rows)
    return pd.DataFrame(
        {
            "x": x,
            "s": random.choice(["a", "b", "c"], rows),
            "y": np.where(random.random(rows) < 1 / (1 + np.exp(-x)), "yes", "no"),
        }
    )


def checked(
    folder: Path, checks: list[dict[str, Any]], previous: Path | None = None
) -> tuple[StageResult, list[dict[str, Any]], list[str]]:
    """The result, what checks.json holds, and the warnings of a run."""
    events: list[Event] = []
    spec = validate.Spec.model_validate({"checks": checks})
    result = validate.run(spec, replace(context(folder, "validate", previous), progress=events.append))
    written = json.loads((folder / "validate" / "checks.json").read_text())
    return result, written, [event.message for event in events if event.kind == "warning"]


def refused(folder: Path, checks: list[dict[str, Any]], previous: Path | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        checked(folder, checks, previous)
    return caught.value


# ---- leakage


def test_rows_that_several_parts_share_are_counted_and_listed(tmp_path: Path) -> None:
    table = plain()
    doubled = pd.concat([table, table.iloc[:300]], ignore_index=True)
    prepare(tmp_path, doubled)
    parts = {part: pd.read_parquet(tmp_path / "data" / f"{part}.parquet") for part in ("train", "validation", "test")}
    rows = {part: set(map(tuple, part_table.itertuples(index=False))) for part, part_table in parts.items()}
    copies = [tuple(row) in rows["train"] for row in parts["validation"].itertuples(index=False)]
    later = [tuple(row) in rows["train"] | rows["validation"] for row in parts["test"].itertuples(index=False)]
    assert sum(copies) > 10
    error = refused(tmp_path, [LEAKAGE])
    assert f"{sum(copies):,} of {len(copies):,} validation rows and {sum(later):,} of {len(later):,} test rows" in str(
        error
    )
    assert f"and {sum(copies) + sum(later) - 10:,} more" in str(error)
    named = str(error).partition("allowed): row ")[2].split(":")[0]
    assert (doubled == doubled.loc[int(named)]).all(axis=1).sum() == 2


def test_copies_that_are_allowed_pass_and_are_told(tmp_path: Path) -> None:
    table = plain()
    prepare(tmp_path, pd.concat([table, table.iloc[:20]], ignore_index=True))
    _, written, _ = checked(tmp_path, [{**LEAKAGE, "duplicates": 20}])
    assert written[0]["passed"]
    assert "are copies of a row of an earlier part" in written[0]["message"]


def test_rows_alike_but_for_the_target_are_no_copies(tmp_path: Path) -> None:
    table = plain(400)
    other = table.assign(y=np.where(table["y"] == "yes", "no", "yes"))
    prepare(tmp_path, pd.concat([table, other], ignore_index=True))
    _, written, _ = checked(tmp_path, [{**LEAKAGE, "single_feature": None}])
    assert [result["passed"] for result in written] == [True]


@pytest.mark.parametrize("missing", [0.0, 0.02])
def test_the_target_under_another_name_is_told(tmp_path: Path, missing: float) -> None:
    table = plain()
    outcome = np.where(table["y"] == "yes", "charged off", "paid").astype(object)
    outcome[np.random.default_rng(1).random(len(table)) < missing] = None
    prepare(tmp_path, table.assign(outcome=outcome))
    message = str(refused(tmp_path, [LEAKAGE]))
    assert "leakage outcome: " in message
    assert ("a copy under another name" if not missing else "it alone tells the target: ROC AUC 0.99") in message
    assert "add it to data.drop" in message


def test_a_number_that_tells_the_target_is_found_and_an_honest_one_is_not(tmp_path: Path) -> None:
    table = plain()
    recovered = np.where(table["y"] == "yes", np.random.default_rng(2).uniform(1, 9, len(table)), 0.0)
    prepare(tmp_path, table.assign(recovered=recovered))
    message = str(refused(tmp_path, [LEAKAGE]))
    assert "leakage recovered" in message
    assert "leakage x" not in message
    _, written, _ = checked(prepare(tmp_path / "honest", table), [LEAKAGE])
    assert "the best, x, 0." in written[1]["message"]


def test_a_table_too_small_to_score_says_so(tmp_path: Path) -> None:
    prepare(tmp_path, frame().head(40))
    _, written, warnings = checked(tmp_path, [{**LEAKAGE, "duplicates": None}])
    assert (written[0]["passed"], written[0]["inconclusive"]) == (True, True)
    assert "it takes 50 rows" in written[0]["message"]
    assert any("INCONCLUSIVE" in warning for warning in warnings)


def test_a_random_split_of_times_overlaps_and_a_time_split_does_not(tmp_path: Path) -> None:
    table = plain(ROWS).assign(when=pd.date_range("2024-01-01", periods=ROWS, freq="D"))
    check = {"kind": "leakage", "time": "when", "single_feature": None, "duplicates": None}
    error = refused(prepare(tmp_path, table, columns={"when": "time"}), [check])
    assert "no later than one of an earlier part" in str(error)
    assert "write data.split: {kind: time, column: when}" in str(error)
    split = {"kind": "time", "column": "when", "validation": 0.2, "test": 0.2}
    _, written, _ = checked(prepare(tmp_path / "by-time", table, columns={}, split=split), [check])
    assert written[0]["passed"]


# ---- the version before


def version(folder: Path, table: pd.DataFrame, previous: Path | None = None, *checks: dict[str, Any]) -> Path:
    checked(prepare(folder, table), list(checks), previous)
    return folder / "validate"


def test_rows_are_compared_with_the_last_version(tmp_path: Path) -> None:
    check = {"kind": "rows", "min_ratio": 0.5, "max_ratio": 2}
    first, written, warnings = checked(prepare(tmp_path / "1", plain(1000)), [check])
    assert written[0]["inconclusive"]
    assert first.summary["checks"][0]["inconclusive"]
    assert "there is no earlier version" in warnings[0]
    before = tmp_path / "1" / "validate"
    _, written, _ = checked(prepare(tmp_path / "2", plain(1900)), [check], before)
    assert written[0]["message"] == "1,900 rows, 1.9 times the 1,000 of the last version"
    few = refused(prepare(tmp_path / "3", plain(400)), [check], before)
    assert "400 rows, 0.4 times the 1,000 of the last version; at least 0.5 times are allowed (500)" in str(few)
    assert few.hint.startswith("mlkit run RECIPE --force validate")
    many = refused(prepare(tmp_path / "4", plain(2100)), [check], before)
    assert "at most 2 times are allowed (2,000)" in str(many)


def test_a_version_without_drift_passes_and_one_with_it_is_refused(tmp_path: Path) -> None:
    first = version(tmp_path / "1", plain(4000, seed=1), None, DRIFT)
    _, written, _ = checked(prepare(tmp_path / "2", plain(4000, seed=2)), [DRIFT], first)
    assert (written[0]["passed"], written[0]["inconclusive"]) == (True, False)
    assert "3 columns of 4,000 rows against 4,000 of the last version" in written[0]["message"]
    error = refused(prepare(tmp_path / "3", plain(4000, seed=3, shift=0.6)), [DRIFT], first)
    assert "drift x: Kolmogorov-Smirnov distance" in str(error)
    assert "drift s:" not in str(error)


def test_drift_that_only_warns_is_told(tmp_path: Path) -> None:
    first = version(tmp_path / "1", plain(4000, seed=1), None, DRIFT)
    result, written, warnings = checked(
        prepare(tmp_path / "2", plain(4000, seed=3, shift=0.6)), [{**DRIFT, "on": "warn"}], first
    )
    assert [row["column"] for row in written if not row["passed"]] == ["x"]
    assert result.metrics["checks_failed"] == 1.0
    assert any(warning.startswith("drift x: ") for warning in warnings)


def test_ten_rows_decide_nothing(tmp_path: Path) -> None:
    first = version(tmp_path / "1", plain(4000, seed=1), None, DRIFT)
    few = prepare(tmp_path / "2", plain(40, seed=2))
    _, written, warnings = checked(few, [DRIFT], first)
    assert (written[0]["passed"], written[0]["inconclusive"]) == (True, True)
    assert "too few rows to tell for 'x', 's'" in written[0]["message"]
    assert "INCONCLUSIVE" in warnings[0]
    again = prepare(tmp_path / "3", plain(40, seed=2))
    assert "too few rows" in str(refused(again, [{**DRIFT, "on_inconclusive": "block"}], first))


def test_a_column_of_another_type_is_told_as_that(tmp_path: Path) -> None:
    first = version(tmp_path / "1", plain(1000, seed=1).assign(term=36), None, DRIFT)
    later = plain(1000, seed=2).assign(term=" 36 months")
    assert "numbers in the last version and texts in this one" in str(
        refused(prepare(tmp_path / "2", later), [DRIFT], first)
    )


def test_a_run_that_kept_no_rows_is_said_to(tmp_path: Path) -> None:
    first = version(tmp_path / "1", plain(1000, seed=1))
    second = prepare(tmp_path / "2", plain(1000, seed=2))
    _, written, _ = checked(second, [{**DRIFT, "on_inconclusive": "block"}], first)
    assert "the last run had no drift check and kept no rows" in written[0]["message"]
    assert (tmp_path / "2" / "validate" / "sample.parquet").exists()
    assert not (first / "sample.parquet").exists()


def test_the_same_data_is_not_compared(tmp_path: Path) -> None:
    first = version(tmp_path / "1", plain(1000, seed=1), None, DRIFT)
    _, written, _ = checked(prepare(tmp_path / "2", plain(1000, seed=1)), [DRIFT], first)
    assert written[0]["message"].startswith("the data is that of the last version (")


def test_only_the_columns_that_are_named_are_compared(tmp_path: Path) -> None:
    first = version(tmp_path / "1", plain(4000, seed=1), None, DRIFT)
    shifted = prepare(tmp_path / "2", plain(4000, seed=3, shift=0.6))
    _, written, _ = checked(shifted, [{**DRIFT, "columns": ["s"]}], first)
    assert written[0]["passed"]
    third = prepare(tmp_path / "3", plain(4000, seed=3))
    assert "'z' is neither a feature nor the target" in str(refused(third, [{**DRIFT, "columns": ["z"]}], first))


@pytest.mark.parametrize("name", ["version.json", "sample.parquet"])
def test_a_damaged_record_is_an_error_with_a_remedy(tmp_path: Path, name: str) -> None:
    first = version(tmp_path / "1", plain(500, seed=1), None, DRIFT)
    (first / name).write_bytes(b"{")
    prepare(tmp_path / "2", plain(500, seed=2))
    with pytest.raises(StoreError, match=name) as caught:
        checked(tmp_path / "2", [DRIFT], first)
    assert caught.value.hint == "mlkit run RECIPE --force validate"
