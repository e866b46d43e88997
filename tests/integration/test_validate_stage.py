"""The validate stage through real pandera and whylogs, on what the real data stage wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflowkit.errors import DataError, StoreError
from mlflowkit.ports import StageContext
from mlflowkit.stages import data, validate
from mlflowkit.stages.base import read_table_info
from mlflowkit.stages.validation.part_columns import PartColumns
from mlflowkit.values import Lineage, StageResult
from mlflowkit.wiring import Wiring

ROWS = 200


def context(folder: Path, name: str, previous: Path | None = None) -> StageContext:
    out = folder / name
    out.mkdir(parents=True)
    lineage = Lineage(git_commit="", git_dirty=False, data_version="", recipe_digest="")
    ports = Wiring(folder / "state")
    inputs = {} if name == "data" else {"data": folder / "data"}
    return StageContext(
        inputs, out, folder / "scratch", folder, 1, lineage, "run", ports, lambda event: None, previous=previous
    )


def frame(**columns: Any) -> pd.DataFrame:
    random = np.random.default_rng(0)
    plain = {
        "x": random.normal(size=ROWS),
        "n": random.integers(0, 9, ROWS),
        "s": random.choice(["a", "b"], ROWS),
        "id": range(ROWS),
        "y": ["no", "yes"] * (ROWS // 2),
    }
    return pd.DataFrame({name: values for name, values in (plain | columns).items() if values is not None})


def prepare(folder: Path, table: pd.DataFrame, **changes: Any) -> Path:
    """Put a table through the data stage; rows of every part count from the source."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "t.parquet")
    plain = {
        "task": "classification",
        "source": {"kind": "parquet", "path": "t.parquet"},
        "target": "y",
        "positive": None,
        "columns": {"id": "ignore"} if "id" in table else {},
        "drop": [],
        "split": {"kind": "random", "validation": 0.2, "test": 0.2},
    }
    data.run(data.Spec.model_validate(plain | changes), context(folder, "data"))
    return folder


def run(folder: Path, checks: list[dict[str, Any]], previous: Path | None = None) -> StageResult:
    spec = validate.Spec.model_validate({"checks": checks})
    return validate.run(spec, context(folder, "validate", previous))


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / "validate" / name).read_text())


def test_what_it_publishes(tmp_path: Path) -> None:
    table = frame(x=[None, *np.arange(ROWS - 1.0)], s=[None, *["a", "b"] * (ROWS // 2 - 1), "a"])
    prepare(tmp_path, table)
    result = run(tmp_path, [{"kind": "schema"}, {"kind": "range", "column": "n", "min": 0, "max": 8}])
    assert result.metrics == {"checks": 2.0, "checks_failed": 0.0}
    assert [check["passed"] for check in read(tmp_path, "checks.json")] == [True, True]
    assert read(tmp_path, "schema.json") == {
        "x": {"dtype": "float", "nullable": True},
        "n": {"dtype": "int", "nullable": False},
        "s": {"dtype": "string", "nullable": True},
        "id": {"dtype": "int", "nullable": False},
        "y": {"dtype": "string", "nullable": False},
    }
    assert (tmp_path / "validate" / "reference.whylogs").read_bytes().startswith(b"WHY1")


def test_reference_profile_is_of_the_training_features_only(tmp_path: Path) -> None:
    prepare(tmp_path, frame(n=pd.array([None, *range(ROWS - 1)], dtype="Int64")), columns={"id": "categorical"})
    run(tmp_path, [])
    train = pd.read_parquet(tmp_path / "data" / "train.parquet")
    reference = read(tmp_path, "reference.json")
    assert reference["rows"] == len(train) == read_table_info(tmp_path / "data").rows["train"]
    assert set(reference["columns"]) == {"x", "n", "s", "id"}
    assert reference["columns"]["x"]["mean"] == pytest.approx(train["x"].mean())
    assert reference["columns"]["n"]["missing"] == train["n"].isna().sum()
    assert dict(reference["columns"]["s"]["frequent"]) == train["s"].value_counts().to_dict()
    assert reference["columns"]["id"]["type"] == "categorical"
    assert reference["columns"]["id"]["frequent"][0][0].isdigit()


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        prepare(tmp_path / name, frame())
        run(tmp_path / name, [{"kind": "schema"}])
        found.append({file.name: file.read_bytes() for file in (tmp_path / name / "validate").iterdir()})
    assert found[0] == found[1]


PASSING: list[dict[str, Any]] = [
    {"kind": "range", "column": "n", "min": 0},
    {"kind": "range", "column": "gaps", "max": 1},
    {"kind": "nulls", "column": "x"},
    {"kind": "nulls", "column": "gaps", "max_share": 0.5},
    {"kind": "unique", "columns": ["id"]},
    {"kind": "unique", "columns": ["n", "id"]},
    {"kind": "allowed", "column": "s", "values": ["a", "b", "c"]},
    {"kind": "allowed", "column": "gaps", "values": [1]},
    {"kind": "schema", "columns": {"x": "float", "n": "float", "gaps": "float"}, "extra": "allow"},
    {
        "kind": "schema",
        "columns": {
            "x": "float",
            "n": "int",
            "s": "string",
            "id": "int",
            "y": "string",
            "gaps": "float",
            "flag": "bool",
            "when": "datetime",
        },
    },
]

FAILING: list[tuple[dict[str, Any], int, list[str]]] = [
    ({"kind": "range", "column": "n", "min": 5}, -1, ["outside [5, inf]", "more"]),
    ({"kind": "range", "column": "id", "min": 1, "max": 197}, 3, ["row 0: 0, row 198: 198, row 199: 199"]),
    ({"kind": "range", "column": "s", "min": 1}, ROWS, ["'s' holds string, not numbers"]),
    ({"kind": "nulls", "column": "gaps"}, 100, ["100 rows missing (50.00%", "row 1: missing", "and 90 more"]),
    ({"kind": "nulls", "column": "gaps", "max_share": 0.4}, 100, ["40.00% allowed", "row 1: missing"]),
    ({"kind": "unique", "columns": ["n", "s"]}, -1, ["alike in n, s"]),
    ({"kind": "unique", "columns": ["pair"]}, 4, ["row 0: 0, row 1: 0, row 2: 1, row 3: 1"]),
    ({"kind": "allowed", "column": "s", "values": ["a"]}, -1, ["not one of 'a'", ": 'b'"]),
    ({"kind": "allowed", "column": "when", "values": ["a"]}, ROWS, ["2024-01-01"]),
    ({"kind": "range", "column": "nix", "min": 0}, 1, ["'nix' is not in the table"]),
    ({"kind": "schema", "columns": {"x": "float"}}, 1, ["column 'n' is not in the schema"]),
    ({"kind": "schema", "columns": {"zz": "int"}, "extra": "allow"}, 1, ["column 'zz' is missing"]),
    (
        {"kind": "schema", "columns": {"x": "int"}, "extra": "allow"},
        ROWS,
        ["holds float; the schema says int", "row 0: "],
    ),
    ({"kind": "schema", "columns": {"s": "int"}, "extra": "allow"}, ROWS, ["holds string; the schema says int", "'"]),
    ({"kind": "schema", "columns": {"when": "string"}, "extra": "allow"}, 1, ["holds datetime"]),
]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    table = frame(
        gaps=[1.0, None] * (ROWS // 2),
        flag=[True, False] * (ROWS // 2),
        pair=[0, 0, 1, 1, *range(4, ROWS)],
        when=pd.Timestamp("2024-01-01"),
    )
    folder = prepare(tmp_path_factory.mktemp("wide"), table, columns={"id": "ignore", "when": "ignore"}, drop=[])
    return PartColumns(folder / "data").frame(), folder


@pytest.mark.parametrize("check", PASSING, ids=lambda check: f"{check['kind']}-{check.get('column', '')}")
def test_checks_that_pass(wide: tuple[pd.DataFrame, Path], check: dict[str, Any]) -> None:
    table = wide[0].drop(columns="pair")
    spec = validate.Spec.model_validate({"checks": [check]})
    checker = Wiring(wide[1]).checker
    results = checker.check(table, spec.checks, validate.expected_schema(spec.checks, checker.infer(table), None))
    assert [result.passed for result in results] == [True], results


@pytest.mark.parametrize(
    ("check", "failed", "words"), FAILING, ids=lambda value: value["kind"] if isinstance(value, dict) else ""
)
def test_checks_that_fail_name_rows_of_the_source_and_values(
    wide: tuple[pd.DataFrame, Path], check: dict[str, Any], failed: int, words: list[str]
) -> None:
    table, folder = wide
    spec = validate.Spec.model_validate({"checks": [check]})
    checker = Wiring(folder).checker
    expected = validate.expected_schema(spec.checks, checker.infer(table), None)
    results = checker.check(table, spec.checks, expected)
    assert results
    assert not any(result.passed for result in results)
    first = results[0]
    assert all(word in first.message for word in words), first.message
    assert failed in (-1, first.failed)
    assert len(first.failures) == min(first.failed, 10) or not first.failures
    source = pd.read_parquet(folder / "t.parquet")
    for row, value in first.failures:
        if check["kind"] == "range":
            assert source.at[row, check["column"]] == value


def test_all_failures_are_told_at_once_and_nothing_is_published(tmp_path: Path) -> None:
    prepare(tmp_path, frame())
    checks = [
        {"kind": "range", "column": "id", "max": 197},
        {"kind": "nulls", "column": "x"},
        {"kind": "allowed", "column": "y", "values": ["no"]},
        {"kind": "schema", "columns": {"x": "int"}, "extra": "allow"},
    ]
    with pytest.raises(DataError) as caught:
        run(tmp_path, checks)
    message = caught.value.message
    assert message.startswith("3 checks of the data failed")
    assert "range id: 2 rows outside [-inf, 197]: row 198: 198, row 199: 199" in message
    assert "allowed y: 100 rows not one of 'no'" in message
    assert "schema x: column 'x' holds float; the schema says int" in message
    assert "--force validate" in caught.value.hint
    assert not list((tmp_path / "validate").iterdir())


class TestFrozenSchema:
    @pytest.fixture
    def first(self, tmp_path: Path) -> Path:
        prepare(tmp_path / "first", frame())
        run(tmp_path / "first", [{"kind": "schema"}])
        return tmp_path / "first" / "validate"

    @pytest.mark.parametrize(
        ("columns", "words"),
        [
            ({"x": None}, "column 'x' is missing"),
            ({"new": 1}, "column 'new' is not in the schema"),
            ({"n": ["1"] * (ROWS - 1) + ["many"]}, "holds string; the schema says int: row 199: 'many'"),
            ({"n": [0.5] * ROWS}, "column 'n' holds float; the schema says int"),
            ({"x": [None] + [1.5] * (ROWS - 1)}, "1 row missing; the schema allows none: row 0: missing"),
        ],
        ids=["lost", "new", "text", "fractions", "gaps"],
    )
    def test_a_table_that_departs_from_it_is_refused(
        self, tmp_path: Path, first: Path, columns: dict[str, Any], words: str
    ) -> None:
        prepare(tmp_path / "second", frame(**columns))
        with pytest.raises(DataError) as caught:
            run(tmp_path / "second", [{"kind": "schema"}], previous=first)
        assert words in caught.value.message

    def test_it_is_carried_on_unchanged(self, tmp_path: Path, first: Path) -> None:
        prepare(tmp_path / "second", frame(x=np.arange(ROWS)))
        run(tmp_path / "second", [{"kind": "schema"}], previous=first)
        assert (tmp_path / "second" / "validate" / "schema.json").read_bytes() == (first / "schema.json").read_bytes()

    def test_a_column_that_the_recipe_has_come_to_drop_is_not_missed(self, tmp_path: Path, first: Path) -> None:
        prepare(tmp_path / "second", frame(), drop=["x"])
        run(tmp_path / "second", [{"kind": "schema"}], previous=first)
        assert set(read(tmp_path / "second", "schema.json")) == {"n", "s", "id", "y"}

    def test_without_a_schema_check_anything_goes(self, tmp_path: Path, first: Path) -> None:
        prepare(tmp_path / "second", frame(new=1))
        run(tmp_path / "second", [], previous=first)
        assert "new" in read(tmp_path / "second", "schema.json")

    def test_a_damaged_one_is_not_taken_for_none(self, tmp_path: Path, first: Path) -> None:
        (first / "schema.json").write_text("{")
        prepare(tmp_path / "second", frame())
        with pytest.raises(StoreError, match="frozen schema"):
            run(tmp_path / "second", [{"kind": "schema"}], previous=first)
