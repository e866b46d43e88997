"""`mlkit init --csv FILE --target COLUMN`: what it sees in a table, and the recipe that it writes."""

from __future__ import annotations

import csv
import json
import random
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.adapters.arrow import ArrowTables
from mlflowkit.cli.app import main
from mlflowkit.recipe.check import load
from mlflowkit.recipe.schema import stage_specs
from mlflowkit.recipe.starter.recipe_text import scalar
from mlflowkit.stages import data
from mlflowkit.stages.sources import read_source
from mlflowkit.stages.tabular import class_target

ROWS = 240


def write(path: Path, columns: dict[str, list[Any]], separator: str = ",") -> Path:
    def field(value: Any) -> str:
        text = str(value)
        return f'"{text}"' if separator in text or '"' in text or "\n" in text else text

    lines = [separator.join(map(field, columns))]
    lines += [separator.join(map(field, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def used_cars(**changed: list[Any]) -> dict[str, list[Any]]:
    """A table with most of what goes wrong in tables."""
    draw = random.Random(3)
    sold = [draw.choice(["yes", "no", "no"]) for _ in range(ROWS)]
    columns: dict[str, list[Any]] = {
        "nr": list(range(1, ROWS + 1)),
        "vin": [f"W0L{draw.getrandbits(40):010X}" for _ in range(ROWS)],
        "zip": [draw.choice(["02116", "00501", "10001", "94105"]) for _ in range(ROWS)],
        "horsepower": [draw.randint(50, 300) if number % 20 else "?" for number in range(ROWS)],
        "fuel": [draw.choice(["petrol", "diesel", "electric"]) for _ in range(ROWS)],
        "seen": [date(2024, 1, 1) + timedelta(days=number) for number in range(ROWS)],
        "seats": [5] * ROWS,
        "note": [f"first owner, service book complete, number {draw.random()}" for _ in range(ROWS)],
        "paid": [int(value == "yes") for value in sold],
        "sold": sold,
    }
    return columns | changed


def init(folder: Path, csv: Path, target: str, *arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["init", str(folder), "--csv", str(csv), "--target", target, *arguments])
    return int(caught.value.code or 0)


def recipe_of(folder: Path) -> Any:
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def test_a_messy_table_becomes_a_recipe_without_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = write(tmp_path / "used cars.csv", used_cars())
    assert init(tmp_path / "new", csv, "sold") == 0
    recipe = load(tmp_path / "new" / "recipe.yaml").recipe
    written = recipe_of(tmp_path / "new")
    assert recipe.name == "used-cars"
    assert (recipe.task, recipe.data.target, recipe.data.positive) == ("classification", "sold", "yes")
    assert written["data"]["drop"] == ["nr", "vin", "seats", "note"]
    assert written["data"]["columns"] == {
        "zip": "categorical",
        "horsepower": "numeric",
        "fuel": "categorical",
        "seen": "time",
        "paid": "numeric",
    }
    assert written["data"]["source"]["missing"] == ["?"]
    assert written["data"]["split"] == {"kind": "time", "column": "seen", "validation": 0.15, "test": 0.15}
    text = (tmp_path / "new" / "recipe.yaml").read_text()
    assert "a row number" in text
    assert "codes with leading zeros, such as 0" in text
    printed = capsys.readouterr().out
    assert "warning: paid alone predicts the target (ROC AUC 1.000)" in printed
    assert "warning: fuel" not in printed


def test_numbers_with_separators_units_and_a_decimal_comma(tmp_path: Path) -> None:
    draw = random.Random(5)
    price = [f"{draw.randint(1, 99)}.{draw.randint(0, 999):03d},{draw.randint(0, 99):02d} €" for _ in range(ROWS)]
    csv = write(tmp_path / "t.csv", used_cars(price=price, share=[f"{n % 97},5 %" for n in range(ROWS)]), ";")
    assert init(tmp_path, csv, "sold") == 0
    source = recipe_of(tmp_path)["data"]["source"]
    assert (source["separator"], source["decimal"], source["thousands"]) == (";", ",", ".")
    assert sorted(source["units"]) == ["%", "€"]
    assert recipe_of(tmp_path)["data"]["columns"]["price"] == "numeric"
    assert recipe_of(tmp_path)["data"]["columns"]["share"] == "numeric"
    assert load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("rows", [600, 3000])
def test_a_few_amounts_above_999_are_numbers_and_no_missing_values(tmp_path: Path, rows: int) -> None:
    """However late in the file they come."""
    amounts = [f"{100 + 0.25 * row:.2f}" for row in range(rows)]
    amounts = [amount if float(amount) < 1000 else "17.25" for amount in amounts[:-2]] + ["1,048.59", "1,099.00"]
    columns = {"amount": amounts, "bad": ["no", "yes"] * (rows // 2)}
    assert init(tmp_path, write(tmp_path / "rows.csv", columns, separator=";"), "bad") == 0
    source = recipe_of(tmp_path)["data"]["source"]
    assert source["thousands"] == ","
    assert "missing" not in source


def test_a_number_written_in_another_way_is_no_missing_value(tmp_path: Path) -> None:
    amounts = [f"{row + 0.5}" for row in range(598)] + ["12,5", "?"]
    columns = {"amount": amounts, "bad": ["no", "yes"] * 300}
    assert init(tmp_path, write(tmp_path / "rows.csv", columns, separator=";"), "bad") == 0
    assert recipe_of(tmp_path)["data"]["source"]["missing"] == ["?"]


def test_a_table_without_a_feature_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns: dict[str, list[Any]] = {"nr": list(range(1, 201)), "bad": ["no", "yes"] * 100}
    assert init(tmp_path / "new", write(tmp_path / "rows.csv", columns), "bad") == 2
    assert "has no feature to predict 'bad' from (nr: a row number" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_blanks_missing_targets_and_rare_classes_are_told(tmp_path: Path) -> None:
    sold = ["" if number % 24 == 0 else "fraud" if number % 25 == 0 else "fine" for number in range(ROWS)]
    fuel = [" petrol", "petrol", "diesel "] * (ROWS // 3)
    csv = write(tmp_path / "t.csv", used_cars(sold=sold, fuel=fuel))
    assert init(tmp_path, csv, "sold") == 0
    recipe, text = recipe_of(tmp_path), (tmp_path / "recipe.yaml").read_text()
    assert recipe["data"]["missing_target"] == "drop"
    assert "10 rows (4.2%) have no target" in text
    assert recipe["data"]["source"]["trim"] is True
    assert recipe["data"]["positive"] == "fraud"
    assert [gate["metric"] for gate in recipe["gates"]][:2] == ["roc_auc", "average_precision"]


@pytest.mark.parametrize(
    ("target", "task", "metric"),
    [
        (["a", "b", "c"] * (ROWS // 3), "classification", "accuracy"),
        ([number % 4 for number in range(ROWS)], "classification", "accuracy"),
        ([number * 1.5 for number in range(ROWS)], "regression", "r2"),
        (["02116", "00501"] * (ROWS // 2), "classification", "roc_auc"),
    ],
)
def test_the_target_says_the_task(target: list[Any], task: str, metric: str, tmp_path: Path) -> None:
    assert init(tmp_path, write(tmp_path / "t.csv", used_cars(y=target)), "y") == 0
    recipe = recipe_of(tmp_path)
    assert (recipe["task"], recipe["gates"][0]["metric"]) == (task, metric)
    assert load(tmp_path / "recipe.yaml")


def test_more_categories_than_the_default_are_kept(tmp_path: Path) -> None:
    town = [f"town {number % 120}" for number in range(ROWS)]
    assert init(tmp_path, write(tmp_path / "t.csv", used_cars(town=town)), "sold") == 0
    assert recipe_of(tmp_path)["preprocess"]["max_categories"] == 120


def test_dates_are_features_but_the_one_that_orders_the_rows(tmp_path: Path) -> None:
    days = [date(1990, 1, 1) + timedelta(days=number * 37 % 9000) for number in range(ROWS)]
    mixed = [f"2024-01-0{1 + number % 9}T10:00:00{'Z' * (number % 2)}" for number in range(ROWS)]
    few = ["2024-01-31", "2024-02-29"] * (ROWS // 2)
    table = used_cars(built=days, checked=few, moved=mixed)
    assert init(tmp_path / "new", write(tmp_path / "t.csv", table), "sold") == 0
    recipe, text = load(tmp_path / "new" / "recipe.yaml").recipe, (tmp_path / "new" / "recipe.yaml").read_text()
    columns = recipe_of(tmp_path / "new")["data"]["columns"]
    assert (columns["seen"], columns["built"], columns["checked"]) == ("time", "date", "date")
    assert "built: date" in text
    assert "dates, such as 1990-01-01: year, month, day and weekday are features" in text
    assert "dates, such as 2024-01-01: kept for the split, no feature" in text
    assert "dates with and without an offset from UTC, such as 2024-01-01T10:00:00: write all with one, or none" in text
    assert "moved" in recipe.data.drop
    assert recipe.data.split.kind == "time"


def test_a_date_that_is_the_only_feature_is_one(tmp_path: Path) -> None:
    alone = {name: values for name, values in used_cars().items() if name in ("seen", "sold")}
    assert init(tmp_path / "new", write(tmp_path / "t.csv", alone), "sold") == 0
    written = recipe_of(tmp_path / "new")["data"]
    assert written["columns"] == {"seen": "date"}
    assert written["split"]["kind"] == "stratified"


def test_json_has_the_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = write(tmp_path / "t.csv", used_cars())
    assert init(tmp_path, csv, "sold", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    roles = {column["name"]: column["role"] for column in value["choices"]["columns"]}
    assert (roles["nr"], roles["zip"], roles["seen"]) == ("drop", "categorical", "time")


@pytest.mark.parametrize(
    ("content", "target", "reason"),
    [
        ("a,b\n1,2\n", "c", "has no column 'c'"),
        ("a,chrned\n1,2\n2,3\n", "churned", "--target chrned"),
        ("a,b\n1,2\n2,2\n", "b", "nothing to predict"),
        ("a,b\n", "b", "has no rows"),
        ("", "b", "does not look like a CSV"),
        ("a b\n1 2\n", "b", "does not look like a CSV"),
        ("a,a\n1,2\n2,3\n", "a", "occurs twice"),
    ],
)
def test_what_is_no_table_is_refused(
    content: str, target: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(content)
    assert init(tmp_path / "new", tmp_path / "t.csv", target) == 2
    printed = capsys.readouterr().err
    assert reason in printed
    assert "hint: " in printed
    assert not (tmp_path / "new").exists()


def test_an_existing_recipe_is_not_overwritten(tmp_path: Path) -> None:
    csv = write(tmp_path / "t.csv", used_cars())
    (tmp_path / "recipe.yaml").write_text("mine")
    assert init(tmp_path, csv, "sold") == 2
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    assert init(tmp_path, csv, "sold", "--force") == 0


@settings(max_examples=200)
@given(text=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12))
def test_a_scalar_is_read_back_as_the_same_text(text: str) -> None:
    assert yaml.safe_load(scalar(text)) == text


def test_texts_of_the_data_say_nothing_in_the_recipe(tmp_path: Path) -> None:
    """A text with a line end, of YAML or of Unicode, stays in its comment or in its quotation marks."""
    draw = random.Random(3)
    ends = ["\n", "\r\n", "\x85", "\u2028", "\u2029"]
    texts = [f"p{end}model: {{kind: sklearn, module: evil}}{end}zzz:" for end in ends]
    columns: dict[str, list[Any]] = {
        "size": [draw.random() for _ in range(ROWS)],
        "kind": [draw.choice([*texts, "q"]) for _ in range(ROWS)],
        "odd\u2028name": [draw.choice(["a", "b"]) for _ in range(ROWS)],
        "sold": [draw.choice([0, 1]) for _ in range(ROWS)],
    }
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([list(columns), *zip(*columns.values(), strict=True)])
    assert init(tmp_path / "out", tmp_path / "rows.csv", "sold") == 0
    recipe = recipe_of(tmp_path / "out")
    assert recipe["model"]["module"] == "sklearn.ensemble:HistGradientBoostingClassifier"
    assert list(recipe["data"]["columns"]) == ["size", "kind", "odd\u2028name"]
    assert "evil" not in json.dumps(recipe)


@pytest.mark.parametrize(
    ("labels", "positive", "missing"),
    [
        (["0.0", "1.0"], "1", False),
        (["${seed}", "b", "b"], "${seed}", False),
        (["yes", "no", "no", "NA"], "yes", True),
        (["yes ", "no", "no"], "yes", False),
        (["01", "02"], None, False),
    ],
)
def test_the_classes_are_those_that_the_data_stage_finds(
    labels: list[str], positive: str | None, missing: bool, tmp_path: Path
) -> None:
    draw = random.Random(5)
    sizes = [draw.random() for _ in range(ROWS)]
    table = write(tmp_path / "rows.csv", {"size": sizes, "y": [draw.choice(labels) for _ in range(ROWS)]})
    assert init(tmp_path / "out", table, "y") == 0
    recipe = load(tmp_path / "out" / "recipe.yaml").recipe
    assert positive is None or str(recipe.data.positive) == positive
    assert (recipe.data.missing_target == "drop") is missing
    spec = stage_specs(recipe)["data"]
    assert isinstance(spec, data.Spec)
    read = read_source(spec.source, tmp_path / "out", ArrowTables(), data.reading_plan(spec))
    kept = read.table.filter(read.table.column("y").is_valid())
    _, classes = class_target(kept, "y", spec.positive, parsed=True)
    assert len(classes) == 2
