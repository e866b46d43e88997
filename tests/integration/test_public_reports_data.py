"""What others reported of their tools, tried here: what a file says is what model and service say.

Each case is a small file; a model is trained on it and answers the rows of the test part, as the service's code reads
them, with the texts of the file. The right values are those of pandas and scikit-learn in double precision on the same
rows.
"""

from __future__ import annotations

import bz2
import csv
import datetime
import decimal
import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflowkit.adapters.arrow import ArrowTables, csv_files
from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.bundle import Signature, TextRule
from mlflowkit.errors import DataError
from mlflowkit.features.cells import categorical_columns, number_of
from mlflowkit.recipe import column_rules, rules
from mlflowkit.recipe.reference_rules import problems
from mlflowkit.serving.protocol.input_schema import Schema
from mlflowkit.stages import data, export, train, validate
from mlflowkit.stages.base import read_signature, read_table_info
from mlflowkit.values import Event, StageResult
from tests.support.export_world import ExportWorld

pytestmark = pytest.mark.heavy

ROWS = 600
LOGISTIC = {"kind": "sklearn", "module": "sklearn.linear_model:LogisticRegression", "args": {"max_iter": 500}}
RIDGE = {"kind": "sklearn", "module": "sklearn.linear_model:Ridge", "args": {"alpha": 0.001}}
Row = dict[str, Any]


class Case:
    """A table in a folder, and what is said of it in a recipe."""

    def __init__(self, folder: Path, source: Mapping[str, Any], *, target: str = "y", task: str = "classification",
                 **section: Any) -> None:  # fmt: skip
        self.folder, self.target, self.task = folder, target, task
        self.source, self.section = dict(source), section
        self.events: list[Event] = []
        self.world = ExportWorld(folder, task)

    def read(self) -> StageResult:
        """The data stage."""
        split = {"kind": "random", "validation": 0.2, "test": 0.2}
        plain = {"task": self.task, "source": self.source, "target": self.target, "positive": None, "columns": {},
                 "drop": [], "split": split}  # fmt: skip
        context = replace(self.world.context("data", (), seed=3), progress=self.events.append)
        return data.run(data.Spec.model_validate(plain | self.section), context)

    @property
    def told(self) -> str:
        return "\n".join(event.message for event in self.events if event.kind == "warning")

    def refused(self) -> DataError:
        with pytest.raises(DataError) as caught:
            self.read()
        assert caught.value.hint
        return caught.value

    def serve(self, **preprocess: Any) -> Served:
        """Train, export, and answer as the service does."""
        self.read()
        model = LOGISTIC if self.task == "classification" else RIDGE
        spec = {"task": self.task, "model": model, "preprocess": preprocess, "train": {}}
        context = replace(self.world.context("train", ("data",)), progress=self.events.append)
        train.run(train.Spec.model_validate(spec), context)
        export.run(export.Spec.model_validate({"export": {}}), self.world.context("export", ("data", "train")))
        return Served(self)


class Served:
    """The exported graph behind the parser of requests."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.signature = read_signature(case.folder / "export")
        self.schema = Schema(self.signature)
        self.session = OnnxRuntime().load(case.folder / "export" / "model.onnx")

    def ask(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        parsed = self.schema.rows(json.loads(json.dumps({"rows": rows})), limit=10_000)
        return dict(self.session.run(parsed.inputs))

    def share(self, label: str | int, **row: Any) -> float:
        """The probability of a class for one row."""
        return float(self.ask([row])["probabilities"][0, self.signature.classes.index(label)])

    def rows_of(self, lines: Sequence[Mapping[str, str]]) -> list[Row]:
        """Rows of a file for `POST /predict`: texts of categories as they stand, numbers by the table's rule."""
        texts = set(categorical_columns(self.signature))
        names = [column for tensor in self.signature.inputs for column in tensor.columns]
        return [
            {name: line[name] if name in texts else number_of(line[name], self.signature.texts) for name in names}
            for line in lines
        ]

    def test_rows(self, lines: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
        parts = np.load(self.case.folder / "data" / "split.npy")
        return [line for line, part in zip(lines, parts, strict=True) if part == 2]


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[dict[str, str]]:
    """Write a file, and read it back as texts."""
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def two_texts(folder: Path, first: str, second: str, other: Sequence[str] = ()) -> list[dict[str, str]]:
    """A file whose column ``code`` decides: ``first`` is yes, everything else no."""
    draw = random.Random(1)
    codes = [draw.choice([first, second, *other]) for _ in range(ROWS)]
    rows = [[code, f"{draw.gauss(0, 1):.3f}", "yes" if code == first else "no"] for code in codes]
    return write_csv(folder / "data.csv", ["code", "amount", "y"], rows)


CSV = {"kind": "csv", "path": "data.csv"}
DECLARED = {"columns": {"code": "categorical"}}


# ----------------------------------------------------------------------------------- the text of a file is the category

NO_SURVIVORS = [
    ("02116", "2116"), ("00501", "10001"), ("NA", "DE"), ("null", "none"), ("nan", "NaN"), ("true", "True"),
    ("TRUE", "false"), ("1.0", "1"), ("1.50", "1.5"), ("1E5", "100000"), ("1e5", "1E5"),
    ("2024-01-31", "2024-01-31 00:00:00"),
    ("0x10", "16"), ("+1", "1"), ("-0", "0"), ("inf", "Infinity"), ("9007199254740993", "9007199254740992"),
    ("123456789012345678901", "123456789012345678902"), ("1,0", "1.0"), ("10:00", "10:00:00"), ("N/A", "n/a"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), NO_SURVIVORS)
def test_what_is_declared_categorical_is_its_text(tmp_path: Path, first: str, second: str) -> None:
    lines = two_texts(tmp_path, first, second)
    served = Case(tmp_path, CSV, **DECLARED).serve()
    rows = served.test_rows(lines)
    assert served.ask(served.rows_of(rows))["label"].tolist() == [row["y"] for row in rows]
    assert served.share("yes", code=first, amount=0) > 0.9
    assert served.share("yes", code=second, amount=0) < 0.1
    sample = pd.read_parquet(tmp_path / "data" / "test.parquet")
    assert set(sample["code"]) == {first, second}, "the sample row and the report show the text of the file"


def test_zip_codes_that_nobody_declared_keep_their_zeros_and_that_is_told(tmp_path: Path) -> None:
    lines = two_texts(tmp_path, "02116", "94105", ["00501"])
    case = Case(tmp_path, CSV)
    served = case.serve()
    assert "'code' is text" in case.told
    assert "begin with a zero" in case.told
    rows = served.test_rows(lines)
    assert served.ask(served.rows_of(rows))["label"].tolist() == [row["y"] for row in rows]
    assert served.share("yes", code="02116", amount=0) > 0.9
    assert served.share("yes", code="2116", amount=0) < 0.9


def test_a_zero_far_down_the_file_makes_the_column_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 256)
    write_csv(tmp_path / "data.csv", ["zip", "y"], [[10000 + n, n % 2] for n in range(100)] + [["02116", 1]] * 3)
    Case(tmp_path, CSV).read()
    kept = pd.concat(pd.read_parquet(tmp_path / "data" / f"{part}.parquet") for part in ("train", "validation", "test"))
    assert sorted(kept["zip"]) == sorted([*(str(10000 + n) for n in range(100)), *["02116"] * 3])


def test_codes_declared_numeric_are_numbers(tmp_path: Path) -> None:
    write_csv(tmp_path / "data.csv", ["n", "y"], [[f"{n:04d}", n * 2] for n in range(ROWS)])
    Case(tmp_path, CSV, task="regression", columns={"n": "numeric"}).read()
    assert read_table_info(tmp_path / "data").numeric == ("n",)


TYPED: dict[str, tuple[Sequence[Any], pa.DataType, Sequence[str]]] = {
    "whole": ([7, 2**53 + 1, None], pa.int64(), ["7", "9007199254740993"]),
    "unsigned": ([7, 2**64 - 1, None], pa.uint64(), ["7", "18446744073709551615"]),
    "bool": ([True, False, None], pa.bool_(), ["True", "False"]),
    "double": ([1.0, 2.5, None], pa.float64(), ["1", "2.5"]),
    "single": ([0.1, 3.0, None], pa.float32(), ["0.1", "3"]),
    "decimal": ([decimal.Decimal("1.50"), decimal.Decimal("20.00"), None], pa.decimal128(6, 2), ["1.5", "20"]),
    "date": ([datetime.date(2024, 1, 31), datetime.date(2024, 2, 1), None], pa.date32(), ["2024-01-31", "2024-02-01"]),
    "time": (
        [datetime.datetime(2024, 1, 31, 10), datetime.datetime(2024, 2, 1), None],
        pa.timestamp("us"),
        ["2024-01-31T10:00:00", "2024-02-01T00:00:00"],
    ),
    "text": (["02116", "NA", None], pa.string(), ["02116", "NA"]),
}


@pytest.mark.parametrize("kind", TYPED)
def test_a_typed_value_that_is_a_category_has_one_text(tmp_path: Path, kind: str) -> None:
    values, stored, texts = TYPED[kind]
    column = pa.array([values[n % 3] for n in range(ROWS)], stored)
    labels = ["yes" if n % 3 == 0 else "no" for n in range(ROWS)]
    parquet.write_table(pa.table({"code": column, "x": [0.0, 1.0] * (ROWS // 2), "y": labels}), tmp_path / "t.parquet")
    served = Case(tmp_path, {"kind": "parquet", "path": "t.parquet"}, **DECLARED).serve()
    assert set(pd.read_parquet(tmp_path / "data" / "train.parquet")["code"].dropna()) == set(texts)
    assert served.share("yes", code=texts[0], x=0) > 0.9
    assert max(served.share("yes", code=texts[1], x=0), served.share("yes", code=None, x=0)) < 0.1


# ------------------------------------------------------------------------------------------------- missing is declared


def test_na_that_nobody_declared_is_missing_in_file_and_service_alike_and_that_is_told(tmp_path: Path) -> None:
    lines = two_texts(tmp_path, "NA", "DE", ["FR"])
    case = Case(tmp_path, CSV)
    served = case.serve()
    assert "'NA' in" in case.told
    assert "code: categorical under data.columns" in case.told
    for text in ("NA", None, "", "null", "  "):
        assert served.share("yes", code=text, amount=0) > 0.9, text
    rows = served.test_rows(lines)
    assert served.ask(served.rows_of(rows))["label"].tolist() == [row["y"] for row in rows]


def test_na_in_a_declared_category_is_told_and_is_not_null(tmp_path: Path) -> None:
    two_texts(tmp_path, "NA", "DE", ["FR", ""])
    case = Case(tmp_path, CSV, **DECLARED)
    served = case.serve()
    assert "is declared categorical: 'NA' in" in case.told
    assert served.share("yes", code="NA", amount=0) > 0.9
    assert max(served.share("yes", code=text, amount=0) for text in (None, "", "DE")) < 0.1


def test_listed_texts_are_missing_in_declared_categories_too(tmp_path: Path) -> None:
    two_texts(tmp_path, "?", "DE", ["NA"])
    case = Case(tmp_path, {**CSV, "missing": ["?"]}, **DECLARED)
    served = case.serve()
    assert case.told == "", "the recipe says so"
    for text in ("?", None, ""):
        assert served.share("yes", code=text, amount=0) > 0.9, text
    assert served.share("yes", code="NA", amount=0) < 0.1
    assert case.read().summary["missing_texts"]["code"]["?"] > 100


def test_a_number_may_stand_for_a_missing_one(tmp_path: Path) -> None:
    rows = [[-999 if n % 10 == 0 else n, n] for n in range(ROWS)]
    write_csv(tmp_path / "data.csv", ["x", "y"], rows)
    Case(tmp_path, {**CSV, "missing": [-999]}, task="regression").read()
    kept = pd.read_parquet(tmp_path / "data" / "train.parquet")
    assert kept["x"].isna().sum() > 0
    assert kept["x"].min() > 0


def test_no_text_is_missing_where_the_recipe_says_none(tmp_path: Path) -> None:
    two_texts(tmp_path, "NA", "DE")
    Case(tmp_path, {**CSV, "missing": []}).read()
    assert set(pd.read_parquet(tmp_path / "data" / "train.parquet")["code"]) == {"NA", "DE"}


# ----------------------------------------------------------------- what is no number does not become a category unheard


def formats(number: float) -> dict[str, str]:
    """One number as people write it."""
    grouped = f"{number:,.2f}"
    swapped = grouped.replace(",", "_").replace(".", ",").replace("_", ".")
    return {
        "thousands": grouped,
        "continental": swapped,
        "decimal comma": f"{number:.3f}".replace(".", ","),
        "space": grouped.replace(",", " "),
        "narrow space": grouped.replace(",", "\N{NARROW NO-BREAK SPACE}"),
        "apostrophe": grouped.replace(",", "'"),
        "percent": f"{number:.1f}%",
        "percent apart": f"{number:.1f} %",
        "dollar": f"${number:.2f}",
        "euro after": f"{number:.2f} €",
        "currency and thousands": f"${grouped}",
        "code": f"USD {number:.2f}",
    }


KEYS: dict[str, dict[str, Any]] = {
    "thousands": {"thousands": ","},
    "continental": {"thousands": ".", "decimal": ","},
    "decimal comma": {"decimal": ","},
    "space": {"thousands": " "},
    "narrow space": {"thousands": "\N{NARROW NO-BREAK SPACE}"},
    "apostrophe": {"thousands": "'"},
    "percent": {"units": ["%"]},
    "percent apart": {"units": ["%"]},
    "dollar": {"units": ["$"]},
    "euro after": {"units": ["€"]},
    "currency and thousands": {"thousands": ",", "units": ["$"]},
    "code": {"units": ["USD"]},
}


def number_file(folder: Path, write: Callable[[float], str], gaps: Sequence[str] = ()) -> list[dict[str, str]]:
    """A file where ``income * 100`` is the target; every twentieth income is one of ``gaps``."""
    draw = random.Random(2)
    rows = []
    for number in range(ROWS):
        income = round(draw.uniform(1000, 900_000), 2)
        text = gaps[number // 20 % len(gaps)] if gaps and number % 20 == 0 else write(income)
        rows.append([text, draw.randint(18, 80), round(income * 100)])
    return write_csv(folder / "data.csv", ["income", "age", "y"], rows)


def double_r2(served: Served, lines: Sequence[Mapping[str, str]], number: Callable[[str], float]) -> float:
    """R² of scikit-learn in double precision on the same rows."""
    frame = pd.DataFrame({"income": [number(line["income"]) for line in lines]})
    frame["age"] = [float(line["age"]) for line in lines]
    target = np.array([float(line["y"]) for line in lines])
    parts = np.load(served.case.folder / "data" / "split.npy")
    frame["income"] = frame["income"].fillna(frame["income"][parts == 0].median())
    model = make_pipeline(StandardScaler(), Ridge(0.001)).fit(frame[parts == 0], target[parts == 0])
    return float(r2_score(target[parts == 2], model.predict(frame[parts == 2])))


def served_r2(served: Served, lines: Sequence[Mapping[str, str]]) -> float:
    rows = served.test_rows(lines)
    predicted = served.ask(served.rows_of(rows))["prediction"]
    return float(r2_score([float(row["y"]) for row in rows], predicted))


@pytest.mark.parametrize("form", KEYS)
def test_numbers_written_as_text_are_refused_with_the_line_to_write_and_right_with_it(
    tmp_path: Path, form: str
) -> None:
    lines = number_file(tmp_path, lambda number: formats(number)[form])
    error = Case(tmp_path, CSV, task="regression").refused()
    assert "'income'" in error.message
    assert "100.0%" in error.message
    for key, value in KEYS[form].items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        assert f"{key}: " in error.hint, error.hint
        assert shown in error.hint, error.hint
    served = Case(tmp_path, {**CSV, **KEYS[form]}, task="regression").serve()
    expected = double_r2(served, lines, lambda text: float(number_of(text, TextRule(**KEYS[form])) or np.nan))
    assert expected > 0.9999
    assert served_r2(served, lines) == pytest.approx(expected, abs=1e-4)
    plain = float(lines[0]["y"]) / 100
    assert number_of(lines[0]["income"], served.signature.texts) == pytest.approx(plain, abs=0.06)


@pytest.mark.parametrize("gap", ["?", "-", ".", "unknown", "missing", "--"])
def test_a_few_texts_among_numbers_are_refused_and_right_once_they_are_missing(tmp_path: Path, gap: str) -> None:
    lines = number_file(tmp_path, str, [gap])
    error = Case(tmp_path, CSV, task="regression").refused()
    assert "95.0%" in error.message
    assert repr(gap) in error.message
    assert "missing: [" in error.hint
    assert gap in error.hint
    case = Case(tmp_path, {**CSV, "missing": [gap]}, task="regression")
    served = case.serve()
    expected = double_r2(served, lines, lambda text: np.nan if text == gap else float(text))
    assert served_r2(served, lines) == pytest.approx(expected, abs=1e-3)
    assert case.read().summary["missing_texts"] == {"income": {gap: 30}}


@pytest.mark.parametrize("gap", ["", "   ", "NA", "n/a", " NaN "])
def test_blanks_and_the_default_texts_are_missing_in_numbers(tmp_path: Path, gap: str) -> None:
    lines = number_file(tmp_path, str, [gap])
    case = Case(tmp_path, CSV, task="regression")
    served = case.serve()
    expected = double_r2(served, lines, lambda text: np.nan if text == gap else float(text))
    assert served_r2(served, lines) == pytest.approx(expected, abs=1e-3)
    assert case.read().summary["missing_texts"] == ({"income": {gap: 30}} if gap else {})


def test_two_decimal_marks_in_one_file_are_refused_with_what_differs(tmp_path: Path) -> None:
    rows = [[f"{n}.25", f"{n},25"] for n in range(ROWS)]
    write_csv(tmp_path / "data.csv", ["x", "y"], rows)
    error = Case(tmp_path, {**CSV, "decimal": ","}, task="regression").refused()
    assert "data.source.decimal is ','" in error.hint


def test_a_declared_number_that_cannot_be_read_names_the_line(tmp_path: Path) -> None:
    number_file(tmp_path, lambda number: formats(number)["thousands"])
    error = Case(tmp_path, CSV, task="regression", columns={"income": "numeric"}).refused()
    assert "declared numeric" in error.message
    assert "thousands: ','" in error.hint


def test_a_target_written_as_text_names_the_line(tmp_path: Path) -> None:
    rows = [[n, formats(1000.5 + n)["thousands"]] for n in range(ROWS)]
    write_csv(tmp_path / "data.csv", ["x", "y"], rows)
    error = Case(tmp_path, CSV, task="regression").refused()
    assert "thousands: ','" in error.hint
    Case(tmp_path, {**CSV, "thousands": ","}, task="regression").read()
    assert pd.read_parquet(tmp_path / "data" / "train.parquet")["y"].max() > 1500


def test_a_text_column_of_parquet_is_refused_like_one_of_csv(tmp_path: Path) -> None:
    lines = number_file(tmp_path, lambda number: formats(number)["percent"])
    pd.DataFrame(lines).assign(y=[float(line["y"]) for line in lines]).to_parquet(tmp_path / "t.parquet")
    source = {"kind": "parquet", "path": "t.parquet"}
    error = Case(tmp_path, source, task="regression").refused()
    assert "units: ['%']" in error.hint
    assert "income: numeric under data.columns" in error.hint
    Case(
        tmp_path, {**source, "units": ["%"]}, task="regression", columns={"income": "numeric", "age": "numeric"}
    ).read()
    assert read_table_info(tmp_path / "data").numeric == ("income", "age")


@pytest.mark.parametrize(
    "texts",
    [["36 months", "60 months"], ["10%", "20%", "30%"], ["A", "B"], ["36", "38", "XL"], ["low", "high"], ["v1", "v2"]],
)
def test_few_different_texts_are_categories(tmp_path: Path, texts: list[str]) -> None:
    two_texts(tmp_path, texts[0], texts[1], texts[2:])
    Case(tmp_path, CSV).read()
    assert read_table_info(tmp_path / "data").categorical == ("code",)


def test_categories_that_are_nearly_all_different_are_told(tmp_path: Path) -> None:
    rows = [[f"customer {n}", n % 7, n % 2] for n in range(ROWS)]
    write_csv(tmp_path / "data.csv", ["name", "x", "y"], rows)
    case = Case(tmp_path, CSV)
    case.read()
    assert "600 different values in 600 rows" in case.told
    assert "drop: [name]" in case.told


@pytest.mark.parametrize("form", ["%d.%m.%Y", "%m/%d/%Y", "%d %b %Y"])
def test_dates_that_become_categories_are_told(tmp_path: Path, form: str) -> None:
    day = datetime.date(2024, 1, 1)
    rows = [[(day + datetime.timedelta(n % 90)).strftime(form), n % 7, n % 2] for n in range(ROWS)]
    write_csv(tmp_path / "data.csv", ["day", "x", "y"], rows)
    case = Case(tmp_path, CSV)
    case.read()
    assert "look like dates" in case.told


def test_decimals_beside_doubles_over_files_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    prices = [round(1 + n * 1.37, 2) for n in range(ROWS)]
    exact = pa.array([decimal.Decimal(f"{price:.2f}") for price in prices[::2]], pa.decimal128(10, 2))
    for name, price in (("a", exact), ("b", pa.array(prices[1::2]))):
        doubled = [2 * float(value) for value in price.to_pylist()]
        parquet.write_table(
            pa.table({"price": price, "q": [0.1, 0.2] * 150, "y": doubled}), tmp_path / "parts" / f"{name}.parquet"
        )
    served = Case(tmp_path, {"kind": "parquet", "path": "parts"}, task="regression").serve()
    assert read_table_info(tmp_path / "data").numeric == ("price", "q")
    assert served.ask([{"price": 100.0, "q": 0.1}])["prediction"][0] == pytest.approx(200, abs=0.5)


def test_categories_beyond_the_limit_are_told_with_share_and_override(tmp_path: Path) -> None:
    rows = [[f"v{n % 120}", n % 7, n % 120 % 2] for n in range(ROWS)]
    write_csv(tmp_path / "data.csv", ["cat", "x", "y"], rows)
    case = Case(tmp_path, CSV)
    case.serve()
    assert "'cat' has 120 different values and preprocess.max_categories is 50" in case.told
    assert "preprocess.max_categories=120" in case.told
    quiet = Case(tmp_path, CSV)
    served = quiet.serve(max_categories=120)
    assert "max_categories" not in quiet.told
    rows = [{"cat": f"v{number}", "x": 0} for number in range(120)]
    assert served.ask(rows)["label"].tolist() == [number % 2 for number in range(120)]


# ------------------------------------------------------------------------------------------------------ blanks, targets


def spaced(folder: Path) -> list[dict[str, str]]:
    draw = random.Random(4)
    rows = []
    for _ in range(ROWS):
        colour = draw.choice([" red", " red ", " blue", " Blue"])
        rows.append([f"{draw.gauss(0, 1):.3f}", colour, " yes" if "red" in colour else " no"])
    return write_csv(folder / "data.csv", ["a", " colour", " y"], rows)


def test_blanks_are_told(tmp_path: Path) -> None:
    spaced(tmp_path)
    case = Case(tmp_path, CSV, target=" y")
    served = case.serve()
    assert "' colour' has blanks around the text in 600 rows" in case.told
    assert "' colour' has blanks around its name" in case.told
    assert "' red'" in case.told
    assert "'Blue'" in case.told, "upper and lower case"
    assert "trim: true" in case.told
    assert served.signature.classes == (" no", " yes")


def test_blanks_are_removed_on_request_in_names_values_classes_and_requests(tmp_path: Path) -> None:
    lines = spaced(tmp_path)
    case = Case(tmp_path, {**CSV, "trim": True})
    served = case.serve()
    assert "blanks" not in case.told
    assert served.signature.classes == ("no", "yes")
    for colour in ("red", " red", "  red "):
        assert served.share("yes", colour=colour, a=0) > 0.9
    rows = [{name.strip(): text for name, text in line.items()} for line in served.test_rows(lines)]
    assert served.ask(served.rows_of(rows))["label"].tolist() == [row["y"].strip() for row in rows]


@pytest.mark.parametrize(("yes", "no"), [("True", "False"), ("true", "false"), ("TRUE", "FALSE")])
@pytest.mark.parametrize("positive", [True, None, "text"])
def test_a_target_of_true_and_false_keeps_the_text_of_the_file(
    tmp_path: Path, yes: str, no: str, positive: Any
) -> None:
    write_csv(tmp_path / "data.csv", ["x", "y"], [[n % 10, yes if n % 10 > 4 else no] for n in range(ROWS)])
    served = Case(tmp_path, CSV, positive=yes if positive == "text" else positive).serve()
    assert served.signature.classes == (no, yes)
    assert served.ask([{"x": 9}])["label"].tolist() == [yes]


@pytest.mark.parametrize(
    ("texts", "classes"),
    [
        (("0", "1"), (0, 1)),
        (("1.0", "2.0"), (1, 2)),
        (("01", "02"), ("01", "02")),
        (("-1", "1"), (-1, 1)),
        (("1E5", "2E5"), ("1E5", "2E5")),
    ],
)
def test_classes_are_whole_numbers_only_where_their_text_survives(tmp_path: Path, texts: Any, classes: Any) -> None:
    write_csv(tmp_path / "data.csv", ["x", "y"], [[n % 10, texts[n % 2]] for n in range(ROWS)])
    Case(tmp_path, CSV).read()
    assert read_table_info(tmp_path / "data").classes == classes


def test_rows_without_a_target_are_refused_or_dropped_and_told(tmp_path: Path) -> None:
    rows = [[n, "" if n % 6 == 0 else "NA" if n % 6 == 1 else "ab"[n % 2]] for n in range(ROWS)]
    lines = write_csv(tmp_path / "data.csv", ["x", "y"], rows)
    error = Case(tmp_path, CSV).refused()
    assert "missing in 200 rows" in error.message
    assert "data.missing_target: drop" in error.hint
    case = Case(tmp_path, CSV, missing_target="drop")
    result = case.read()
    assert sum(result.metrics.values()) == 400
    assert "is missing in 200 of 600 rows (33.3%), which are left out" in case.told
    parts = np.load(tmp_path / "data" / "split.npy")
    kept = [int(line["x"]) for line, part in zip(lines, parts, strict=True) if part == 2]
    assert pd.read_parquet(tmp_path / "data" / "test.parquet")["x"].tolist() == kept


CHECKS = [
    ({"kind": "schema", "columns": {"code": "int", "amount": "float", "y": "string"}}, True),
    ({"kind": "range", "column": "code", "min": 1, "max": 9}, True),
    ({"kind": "range", "column": "code", "min": 1, "max": 2}, False),
    ({"kind": "allowed", "column": "code", "values": [1, 2, 3]}, True),
    ({"kind": "allowed", "column": "code", "values": ["1", "2", "3"]}, True),
    ({"kind": "allowed", "column": "code", "values": [1, 2]}, False),
]


@pytest.mark.parametrize(("check", "passes"), CHECKS)
def test_checks_of_numbers_hold_for_a_category_of_whole_numbers(tmp_path: Path, check: Row, passes: bool) -> None:
    """As before categories were text: no recipe of whole numbers declared categorical needs a change."""
    two_texts(tmp_path, "1", "2", ["3"])
    case = Case(tmp_path, CSV, **DECLARED)
    case.read()
    context = case.world.context("validate", ("data",))
    spec = validate.Spec.model_validate({"checks": [check]})
    if passes:
        validate.run(spec, context)
    else:
        with pytest.raises(DataError, match="code"):
            validate.run(spec, context)


# ------------------------------------------------------------------------------------------------- folders, compression


def partitioned(folder: Path, kind: str, first: str = "north", second: str = "south") -> None:
    draw = np.random.default_rng(5)
    for region in (first, second):
        frame = pd.DataFrame({"x": draw.normal(size=ROWS // 2), "y": "yes" if region == first else "no"})
        place = folder / "data" / f"region={region}"
        place.mkdir(parents=True)
        frame.to_parquet(place / "0.parquet") if kind == "parquet" else frame.to_csv(place / "0.csv", index=False)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("path", ["data", "data/**/*.{kind}", "data/*/*.{kind}"])
def test_folders_that_name_a_value_are_a_column(tmp_path: Path, kind: str, path: str) -> None:
    partitioned(tmp_path, kind)
    served = Case(tmp_path, {"kind": kind, "path": path.format(kind=kind)}).serve()
    assert served.share("yes", region="north", x=0) > 0.9
    assert served.share("yes", region="south", x=0) < 0.1


@pytest.mark.parametrize("path", ["data", "data/*/*.parquet"])
def test_validate_knows_the_columns_of_folders_and_names_without_blanks(tmp_path: Path, path: str) -> None:
    partitioned(tmp_path, "parquet")
    spaced(tmp_path)
    folders = {"kind": "parquet", "path": path}
    assert column_rules.problems({"data": {"source": folders, "columns": {"region": "categorical"}}}, tmp_path) == []
    (problem,) = column_rules.problems({"data": {"source": folders, "columns": {"reg": "categorical"}}}, tmp_path)
    assert "'region'" in problem.hint
    trimmed = {"kind": "csv", "path": "data.csv", "trim": True}
    assert column_rules.problems({"data": {"source": trimmed, "target": "y"}}, tmp_path) == []


def test_values_in_names_of_folders_keep_their_text(tmp_path: Path) -> None:
    partitioned(tmp_path, "csv", "01", "a%2Fb")
    served = Case(tmp_path, {"kind": "csv", "path": "data"}).serve()
    assert served.share("yes", region="01", x=0) > 0.9
    assert served.share("yes", region="a/b", x=0) < 0.1


def test_files_in_folders_of_other_keys_are_refused(tmp_path: Path) -> None:
    partitioned(tmp_path, "csv")
    odd = tmp_path / "data" / "area=west"
    odd.mkdir()
    (odd / "0.csv").write_text("x,y\n1,yes\n")
    error = Case(tmp_path, {"kind": "csv", "path": "data"}).refused()
    assert "'area'" in error.message
    assert "'region'" in error.message


def test_a_column_of_folders_can_be_dropped(tmp_path: Path) -> None:
    partitioned(tmp_path, "parquet")
    Case(tmp_path, {"kind": "parquet", "path": "data"}, drop=["region"]).read()
    assert read_table_info(tmp_path / "data").categorical == ()


def arrow_compress(content: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return bytes(sink.getvalue())


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": lambda content: arrow_compress(content, "zstd"),
}


@pytest.mark.parametrize("end", COMPRESSIONS)
@pytest.mark.parametrize("path", ["data.csv.{end}", "folder"])
def test_compressed_files_are_read(tmp_path: Path, end: str, path: str) -> None:
    two_texts(tmp_path, "02116", "94105")
    content = COMPRESSIONS[end]((tmp_path / "data.csv").read_bytes())
    (tmp_path / "folder").mkdir()
    for place in (tmp_path, tmp_path / "folder"):
        (place / f"data.csv.{end}").write_bytes(content)
    result = Case(tmp_path, {"kind": "csv", "path": path.format(end=end)}, **DECLARED).read()
    assert sum(result.metrics.values()) == ROWS


def test_a_damaged_compressed_file_gets_no_advice_for_text(tmp_path: Path) -> None:
    (tmp_path / "data.csv.gz").write_bytes(gzip.compress(b"x,y\n" + b"1,a\n" * 5000)[:-40])
    error = Case(tmp_path, {"kind": "csv", "path": "data.csv.gz"}).refused()
    assert "damaged" in error.message
    assert "iconv" not in error.hint


def test_the_port_for_plugins_reads_files_without_a_recipe(tmp_path: Path) -> None:
    two_texts(tmp_path, "02116", "94105")
    assert set(ArrowTables().read_csv([tmp_path / "data.csv"])["code"].to_pylist()) == {"02116", "94105"}
    partitioned(tmp_path, "parquet")
    files = sorted((tmp_path / "data").rglob("*.parquet"))
    assert ArrowTables().read_parquet(files, skip=["x"]).column_names == ["y"]


def test_a_nul_byte_is_refused_by_row(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"x,y\n" + b"1,a\n2,b\n" * 20 + b"3,a\0b\n")
    error = Case(tmp_path, CSV).refused()
    assert "column 'y', row 40 has a NUL byte" in error.message


def test_a_pattern_over_the_disk_is_refused_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflowkit.system import file_patterns

    monkeypatch.setattr(file_patterns, "MAX_ENTRIES", 50)
    for folder in range(10):
        (tmp_path / str(folder)).mkdir()
        for file in range(10):
            (tmp_path / str(folder) / f"{file}.txt").touch()
    values = {"data": {"source": {"kind": "csv", "path": f"{tmp_path}/**/*.none"}}}
    (problem,) = [problem for problem in problems(values, tmp_path) if problem.path == ("data", "source", "path")]
    assert "more than 50 files and folders" in problem.message


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({"thousands": "."}, "thousands", "cannot separate thousands and be the decimal mark"),
        ({"thousands": ",", "decimal": ","}, "thousands", "cannot separate thousands"),
        ({"decimal": "1"}, "decimal", "part of numbers itself"),
        ({"thousands": "-"}, "thousands", "part of numbers itself"),
    ],
)
def test_marks_that_contradict_each_other_are_refused_before_anything_runs(keys: Row, key: str, words: str) -> None:
    violated = rules.problems({"data": {"source": {"kind": "csv", "path": "x.csv", **keys}}})
    (problem,) = [problem for problem in violated if problem.path == ("data", "source", key)]
    assert words in problem.message
    assert problem.hint


# ---------------------------------------------------------------------------------------------------------- old bundles


def test_a_signature_of_an_older_version_is_read_and_serves_as_before() -> None:
    old = {
        "task": "regression",
        "inputs": [{"name": "categorical", "datatype": "BYTES", "shape": [-1, 1], "columns": ["code"]}],
        "outputs": [{"name": "prediction", "datatype": "FP32", "shape": [-1], "columns": []}],
        "classes": [],
    }
    signature = Signature.model_validate_json(json.dumps(old))
    parsed = Schema(signature).rows({"rows": [{"code": text} for text in ("NA", " x ", None)]}, limit=5)
    assert parsed.inputs["categorical"].ravel().tolist() == ["NA", " x ", ""]
