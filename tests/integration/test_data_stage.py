"""The data stage through its real adapters: sources, kinds, targets, splits, and every bad table by name."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflowkit.errors import DataError, MlkitError, UserCodeError
from mlflowkit.ports import StageContext
from mlflowkit.stages import data
from mlflowkit.stages.base import PARTS, read_table_info
from mlflowkit.values import Event, Lineage, StageResult
from mlflowkit.wiring import Wiring

ROWS = 60


def context(folder: Path, seed: int = 1) -> StageContext:
    events: list[Event] = []
    out = folder / "out"
    out.mkdir(exist_ok=True)
    lineage = Lineage(git_commit="", git_dirty=False, data_version="", recipe_digest="")
    ports = Wiring(folder / "state")
    return StageContext({}, out, folder / "scratch", folder, seed, lineage, "run", ports, events.append)


def spec(source: dict[str, Any], **changes: Any) -> data.Spec:
    plain = {
        "task": "classification",
        "source": source,
        "target": "y",
        "positive": None,
        "columns": {},
        "drop": [],
        "split": {"kind": "random", "validation": 0.2, "test": 0.2},
    }
    return data.Spec.model_validate(plain | changes)


def table(**columns: Any) -> pd.DataFrame:
    """Sixty rows: x a number, s text, y two classes by turns; columns given replace or join them, None removes."""
    random = np.random.default_rng(0)
    plain = {
        "x": random.normal(size=ROWS).round(3),
        "s": random.choice(["a", "b", "c"], ROWS),
        "y": ["no", "yes"] * (ROWS // 2),
    }
    return pd.DataFrame({name: values for name, values in (plain | columns).items() if values is not None})


def run(folder: Path, frame: pd.DataFrame | None = None, seed: int = 1, **changes: Any) -> StageResult:
    """Run the stage on a frame, by way of a CSV file."""
    if frame is not None:
        frame.to_csv(folder / "t.csv", index=False)
    return data.run(spec({"kind": "csv", "path": "t.csv"}, **changes), context(folder, seed))


def parts(folder: Path) -> dict[str, pd.DataFrame]:
    return {part: pd.read_parquet(folder / "out" / f"{part}.parquet") for part in PARTS}


# ------------------------------------------------------------------------------------------------------ what it writes


def test_parts_hold_each_row_once_in_source_order(tmp_path: Path) -> None:
    frame = table()
    result = run(tmp_path, frame)
    codes = np.load(tmp_path / "out" / "split.npy")
    for code, (part, found) in enumerate(parts(tmp_path).items()):
        expected = frame[codes == code].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, expected, check_dtype=False)
        assert result.metrics[f"rows_{part}"] == len(found)


def test_table_json_names_kinds_classes_and_rows(tmp_path: Path) -> None:
    frame = table(i=range(ROWS), b=[True, False] * 30, t="2024-01-01", g=[1, 2, 3] * 20)
    run(tmp_path, frame, columns={"g": "categorical", "t": "ignore"}, positive="no")
    info = read_table_info(tmp_path / "out")
    assert info.numeric == ("x", "i", "b")
    assert info.categorical == ("s", "g")
    assert info.classes == ("yes", "no")
    assert info.rows == {"train": 36, "validation": 12, "test": 12}
    assert info.slice_columns == ("t",)
    assert list(parts(tmp_path)["test"].columns) == ["x", "s", "y", "i", "b", "t", "g"]


def test_summary_is_json_for_the_report(tmp_path: Path) -> None:
    gaps = [None, *range(ROWS - 1)]
    summary = dict(run(tmp_path, table(x=gaps), split={"kind": "stratified"}).summary)
    assert json.loads(json.dumps(summary)) == summary
    columns = {column["name"]: column for column in summary["columns"]}
    assert columns["x"]["missing"] == pytest.approx(1 / ROWS)
    assert columns["s"]["distinct"] == 3
    assert sum(counts["yes"] for counts in summary["classes"].values()) == 30


def test_same_input_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    def digests(name: str, seed: int) -> dict[str, bytes]:
        folder = tmp_path / name
        folder.mkdir()
        run(folder, table(), seed=seed)
        return {file.name: file.read_bytes() for file in (folder / "out").iterdir()}

    first, same, other = digests("a", 1), digests("b", 1), digests("c", 2)
    assert first == same
    assert first["train.parquet"] != other["train.parquet"]
    assert first["table.json"] == other["table.json"]


def test_data_version_is_of_the_content_not_of_the_file(tmp_path: Path) -> None:
    frame = table(i=range(ROWS), gaps=[None, 1.5] * 30)
    versions = []
    for number, write in enumerate(
        [
            lambda path: frame.to_parquet(path),
            lambda path: frame.to_parquet(path, compression="gzip", row_group_size=7),
            lambda path: frame.convert_dtypes().assign(gaps=frame["gaps"]).to_parquet(path),
            lambda path: frame.iloc[::-1].to_parquet(path),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder / "t.parquet")
        data.run(spec({"kind": "parquet", "path": "t.parquet"}), context(folder))
        versions.append(read_table_info(folder / "out").data_version)
    run(tmp_path, frame)
    versions.append(read_table_info(tmp_path / "out").data_version)
    assert versions[0] == versions[1] == versions[2] == versions[4]
    assert versions[3] != versions[0]


@pytest.mark.parametrize(
    "change", [{"x": 9.0}, {"x": None}, {"s": "z"}, {"y": "yes"}], ids=["number", "gap", "text", "label"]
)
def test_data_version_sees_one_changed_cell(tmp_path: Path, change: dict[str, Any]) -> None:
    run(tmp_path, table())
    before = read_table_info(tmp_path / "out").data_version
    frame = table()
    for name, value in change.items():
        frame.loc[4, name] = value
    run(tmp_path, frame)
    assert read_table_info(tmp_path / "out").data_version != before


# ------------------------------------------------------------------------------------------------------------- sources


def test_folder_and_glob_are_read_in_order_with_types_that_hold_all(tmp_path: Path) -> None:
    frame = table(i=range(ROWS))
    (tmp_path / "many").mkdir()
    frame[:20].to_csv(tmp_path / "many" / "1.csv", index=False)
    frame[20:40].assign(i=0.5, s=7).to_csv(tmp_path / "many" / "2.csv", index=False)
    frame[40:].drop(columns="x").assign(x="").to_csv(tmp_path / "many" / "3.csv", index=False)
    for path in ("many", "many/*.csv", "**/*.csv"):
        data.run(spec({"kind": "csv", "path": path}), context(tmp_path))
        codes = np.load(tmp_path / "out" / "split.npy")
        train = parts(tmp_path)["train"]
        i = np.r_[np.arange(20), np.full(20, 0.5), np.arange(40, 60)]
        assert train["i"].tolist() == i[codes == 0].tolist()
        assert set(train["s"]) == {"a", "b", "c", "7"}
        assert read_table_info(tmp_path / "out").numeric == ("x", "i")


def test_parquet_categories_dates_and_small_types(tmp_path: Path) -> None:
    frame = table(
        c=pd.Categorical(["3", "4"] * 30),
        f=np.ones(ROWS, dtype="float32"),
        u=np.ones(ROWS, dtype="uint8"),
        d=pd.Timestamp(0),
    )
    frame.to_parquet(tmp_path / "t.parquet")
    data.run(spec({"kind": "parquet", "path": "t.parquet"}, drop=["d"]), context(tmp_path))
    info = read_table_info(tmp_path / "out")
    assert (info.numeric, info.categorical) == (("x", "f", "u"), ("s", "c"))


def test_unsigned_numbers_beyond_the_exact_range_of_a_float_are_read(tmp_path: Path) -> None:
    frame = table(x=np.arange(ROWS, dtype=np.uint64) + np.uint64(2**63))
    frame.to_parquet(tmp_path / "t.parquet")
    data.run(spec({"kind": "parquet", "path": "t.parquet"}), context(tmp_path))
    assert parts(tmp_path)["train"]["x"].between(2.0**63, 2.0**63 + 4096).all()


def python_source(folder: Path, body: str, **args: Any) -> dict[str, Any]:
    (folder / "source.py").write_text("import pandas as pd\n" + textwrap.dedent(body))
    return {"kind": "python", "function": "source:f", "args": args}


def test_python_source_with_arguments(tmp_path: Path) -> None:
    body = """
        def f(rows, label):
            return pd.DataFrame({"x": range(rows), "y": [label, "other"] * (rows // 2)})
    """
    result = data.run(spec(python_source(tmp_path, body, rows=40, label="one")), context(tmp_path))
    assert sum(result.metrics.values()) == 40
    assert read_table_info(tmp_path / "out").classes == ("one", "other")


def test_categories_of_a_python_source_are_categorical_whatever_they_hold(tmp_path: Path) -> None:
    body = """
        def f():
            return pd.DataFrame({"c": pd.Categorical([3, 4] * 20), "x": range(40), "y": ["a", "b"] * 20})
    """
    data.run(spec(python_source(tmp_path, body)), context(tmp_path))
    assert read_table_info(tmp_path / "out").categorical == ("c",)


def test_python_source_is_left_as_it_was(tmp_path: Path) -> None:
    body = """
        TABLE = pd.DataFrame({"x": range(40), "junk": 0, "y": ["a", "b"] * 20})
        def f():
            assert list(TABLE.columns) == ["x", "junk", "y"], "the table was changed"
            return TABLE
    """
    source = python_source(tmp_path, body)
    for _ in range(2):
        data.run(spec(source, drop=["junk"]), context(tmp_path))


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ("def f():\n    return 1 / 0\n", UserCodeError, ["source.py:3", "ZeroDivisionError"]),
        ("def f():\n    return [1]\n", UserCodeError, ["returned list", "pandas.DataFrame"]),
        ("def f():\n    return None\n", UserCodeError, ["returned NoneType"]),
        ("def f(needed):\n    return needed\n", UserCodeError, ["TypeError", "needed"]),
        ("f = 3\n", UserCodeError, ["not a function"]),
        ("g = 3\n", UserCodeError, ["no 'f'"]),
        ("def f(:\n", UserCodeError, ["source.py:2"]),
        ("def f():\n    return pd.DataFrame({1: [1]})\n", DataError, ["column name 1 is not text"]),
        (
            "def f():\n    return pd.DataFrame([[1, 2]], columns=['a', 'a'])\n",
            DataError,
            ["more than one column", "'a'"],
        ),
        ("def f():\n    return pd.DataFrame({'y': [1, 'a', 2.5]})\n", DataError, ["'y' mixes float, int, str"]),
        ("def f():\n    return pd.DataFrame({'y': []})\n", DataError, ["source:f() has no rows"]),
    ],
)
def test_bad_python_sources(tmp_path: Path, body: str, kind: type[MlkitError], words: list[str]) -> None:
    with pytest.raises(kind) as caught:
        data.run(spec(python_source(tmp_path, body)), context(tmp_path))
    assert all(word in caught.value.message for word in words), caught.value.message
    assert caught.value.hint


# ----------------------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x,y\n1,a\n2\n3,b\n", ["t.csv:3", "1 fields where the header has 2"]),
        (b"x,y\n1,a\n2,b,c\n", ["t.csv:3", "3 fields", "2,b,c"]),
        (b'x,y\n1,"a\nb"\n2,b,c\n', ["t.csv:4"]),
        ("x,y\né,a\n".encode("latin1"), ["not UTF-8", "column 'x', row 0"]),
        ("x,é\n1,a\n".encode("latin1"), ["not UTF-8", "first line"]),
        ("x,y\n1,a\n".encode("utf-16"), ["not UTF-8"]),
        (b"", ["empty"]),
        (b"x,y\n", ["t.csv has no rows"]),
        (b"x,x,y\n1,2,a\n", ["more than one column named 'x'"]),
        (b",x,y\n0,1,a\n", ["column 1 has no name"]),
    ],
    ids=["short", "long", "quoted", "latin1", "latin1-header", "utf16", "empty", "header-only", "twice", "index"],
)
def test_bad_csv_files(tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        run(tmp_path)
    assert all(word in caught.value.message for word in words), caught.value.message
    assert caught.value.hint
    assert not list((tmp_path / "out").iterdir())


def test_utf8_mark_other_separators_and_quoted_newlines_are_read(tmp_path: Path) -> None:
    frame = table(s=["a;\nb"] * ROWS)
    frame.to_csv(tmp_path / "t.csv", index=False, sep=";", encoding="utf-8-sig")
    data.run(spec({"kind": "csv", "path": "t.csv", "separator": ";"}), context(tmp_path))
    assert set(parts(tmp_path)["train"]["s"]) == {"a;\nb"}


def test_missing_file_suggests_the_nearest(tmp_path: Path) -> None:
    table().to_csv(tmp_path / "loans.csv")
    with pytest.raises(DataError, match="no file") as caught:
        data.run(spec({"kind": "csv", "path": "laons.csv"}), context(tmp_path))
    assert caught.value.hint == "did you mean 'loans.csv'?"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \*\.csv"):
        data.run(spec({"kind": "csv", "path": "empty"}), context(tmp_path))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all, whatever its name"])
def test_bad_parquet_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        data.run(spec({"kind": "parquet", "path": "t.parquet"}), context(tmp_path))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_files_with_other_columns_are_named(tmp_path: Path, kind: str) -> None:
    for number, frame in enumerate([table(), table(s=None, extra=1)]):
        getattr(frame, f"to_{kind}")(tmp_path / f"{number}.{kind}", index=False)
    with pytest.raises(DataError, match=rf"1\.{kind} lacks 's' and has 'extra' besides"):
        data.run(spec({"kind": kind, "path": f"*.{kind}"}), context(tmp_path))


# ---------------------------------------------------------------------------------------------------------- bad tables

INF = float("inf")
BAD_TABLES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str], str]] = {
    "target": ({}, {"target": "YY"}, ["data.target names column 'YY'"], "did you mean 'y'"),
    "kind-column": ({}, {"columns": {"xx": "numeric"}}, ["data.columns names column 'xx'"], "'x'"),
    "drop-column": ({}, {"drop": ["ss"]}, ["no column 'ss' to drop"], "'s'"),
    "split-column": ({}, {"split": {"kind": "group", "column": "g"}}, ["data.split.column"], "columns are"),
    "target-dropped": ({}, {"drop": ["y"]}, ["data.target names column 'y'"], ""),
    "target-role": ({}, {"columns": {"y": "time"}}, ["also a time column"], "one role"),
    "no-features": ({"x": None, "s": None}, {}, ["no column is left"], "data.drop"),
    "all-null": ({"n": None, "x": "", "z": ""}, {}, ["columns 'x', 'z' have no value"], "data.drop: [x, z]"),
    "inf": ({"x": [1.0] * 58 + [INF, -INF]}, {}, ["'x' in 2 rows (row 58: inf, row 59: -inf)"], "missing values"),
    "huge": ({"x": [1.0] * 59 + [1e39]}, {}, ["beyond float32", "row 59: 1e+39"], ""),
    "dates": ({"d": "2024-01-01"}, {}, ["column 'd' has times"], "data.columns: {d: date}"),
    "not-numbers": (
        {"s": ["1"] * 58 + ["many", "?"]},
        {"columns": {"s": "numeric"}},
        ["'many' (row 58)"],
        "categorical",
    ),
    "constant": ({"y": "no"}, {}, ["'no' in all 60 rows"], "data.target"),
    "one-row": ({"y": ["a"] * 30 + ["b"] * 29 + ["c"]}, {}, ["class 'c' (1 row)"], "merge or drop"),
    "numbers-as-classes": ({"y": range(ROWS)}, {}, ["too few rows of class 0 (1 row)"[:19]], "task: regression"),
    "fractions": ({"y": [0.5, 1.5] * 30}, {}, ["fractions"], "task: regression"),
    "missing-target": (
        {"y": [None, "a", "b"] * 20},
        {},
        ["missing in 20 rows (0, 3, 6, 9, 12, …)"],
        "leave these rows out",
    ),
    "positive": ({}, {"positive": "yess"}, ["data.positive is 'yess'"], "did you mean 'yes'"),
    "positive-of-three": ({"y": ["a", "b", "c"] * 20}, {"positive": "a"}, ["has 3"], "remove"),
    "regression-text": ({}, {"task": "regression"}, ["holds text, not numbers"], "classification"),
    "regression-constant": ({"y": 2.5}, {"task": "regression"}, ["2.5 in all 60 rows"], ""),
    "regression-inf": ({"y": [INF] + [1.0, 2.0] * 29 + [3]}, {"task": "regression"}, ["1 row (0)"], "correct"),
    "regression-missing": ({"y": [None, 1.0] * 30}, {"task": "regression"}, ["missing in 30 rows"], ""),
    "stratified-regression": (
        {"y": range(ROWS)},
        {"task": "regression", "split": {"kind": "stratified"}},
        ["needs classes"],
        "random",
    ),
    "one-group": ({"g": 1}, {"split": {"kind": "group", "column": "g"}}, ["leaves none for"], "data.split"),
    "missing-group": ({"g": [None, "a"] * 30}, {"split": {"kind": "group", "column": "g"}}, ["missing in 30 rows"], ""),
    "missing-time": ({"t": [None, 1.0] * 30}, {"split": {"kind": "time", "column": "t"}}, ["missing in 30 rows"], ""),
    "text-time": ({"t": "Mar-2018"}, {"split": {"kind": "time", "column": "t"}}, ["no ISO 8601 time"], "2024-01-31"),
    "one-time": ({"t": 5}, {"split": {"kind": "time", "column": "t"}}, ["leaves none for"], "data.split"),
    "class-by-time": (
        {"t": range(ROWS), "y": ["a"] * 50 + ["b"] * 10},
        {"split": {"kind": "time", "column": "t"}},
        ["leaves train without class 'b'"],
        "stratified",
    ),
    "yes-unquoted": ({}, {"positive": True}, ["data.positive is True"], "write the class in quotes"),
    "null-in-train": (
        {"t": range(ROWS), "x": [None] * 50 + [1.0] * 10},
        {"split": {"kind": "time", "column": "t"}},
        ["'x': no value in any of the training rows"],
        "data.drop: [x]",
    ),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_say_what_and_where(tmp_path: Path, name: str) -> None:
    columns, changes, words, hint = BAD_TABLES[name]
    with pytest.raises(DataError) as caught:
        run(tmp_path, table(**columns), **changes)
    assert all(word in caught.value.message for word in words), caught.value.message
    assert hint in caught.value.hint, caught.value.hint
    assert caught.value.hint
    assert len(caught.value.message) < 600
    assert not list((tmp_path / "out").glob("*.json"))


# -------------------------------------------------------------------------------------------------- targets and splits


@pytest.mark.parametrize(
    ("values", "positive", "classes"),
    [
        ([True, False], None, (0, 1)),
        ([True, False], False, (1, 0)),
        ([1, 0], 1, (0, 1)),
        ([1.0, 2.0], "1", (2, 1)),
        (["b", "a"], None, ("a", "b")),
        ([3, 10, 2], None, (2, 3, 10)),
    ],
)
def test_classes_are_sorted_with_the_positive_one_last(
    tmp_path: Path, values: list[Any], positive: Any, classes: tuple[Any, ...]
) -> None:
    frame = table(y=values * (ROWS // len(values)))
    frame.to_parquet(tmp_path / "t.parquet")
    data.run(spec({"kind": "parquet", "path": "t.parquet"}, positive=positive), context(tmp_path))
    assert read_table_info(tmp_path / "out").classes == classes
    assert set(parts(tmp_path)["train"]["y"]) <= set(classes)


def test_a_regression_has_no_classes(tmp_path: Path) -> None:
    result = run(tmp_path, table(y=range(ROWS)), task="regression")
    assert (read_table_info(tmp_path / "out").classes, result.summary["classes"]) == ((), {})


def test_groups_stay_together(tmp_path: Path) -> None:
    run(tmp_path, table(g=np.repeat(range(12), 5)), split={"kind": "group", "column": "g"})
    groups = [set(part["g"]) for part in parts(tmp_path).values()]
    assert sum(map(len, groups)) == 12
    assert "g" not in read_table_info(tmp_path / "out").numeric


@pytest.mark.parametrize("form", ["text", "number"])
def test_time_runs_from_train_to_test(tmp_path: Path, form: str) -> None:
    days = np.random.default_rng(0).permutation(ROWS)
    times = pd.Timestamp("2024-01-01") + pd.to_timedelta(days, "D") if form == "text" else days
    run(tmp_path, table(t=times), split={"kind": "time", "column": "t"})
    found = [part["t"] for part in parts(tmp_path).values()]
    assert found[0].max() < found[1].min()
    assert found[1].max() < found[2].min()


def test_progress_is_told(tmp_path: Path) -> None:
    events: list[Event] = []
    table().to_csv(tmp_path / "t.csv", index=False)
    data.run(spec({"kind": "csv", "path": "t.csv"}), dataclasses.replace(context(tmp_path), progress=events.append))
    assert events[0].message == "60 rows, 3 columns"
    assert all(event.stage == "data" and event.kind == "progress" for event in events)
