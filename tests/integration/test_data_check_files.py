"""Data checks whose rules stand in files of other tools: real checkers on what the real data stage wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import mlflowkit as mk
from mlflowkit.cli.app import main
from mlflowkit.errors import DataError, EngineError, RecipeError, UserCodeError
from tests.integration.test_validate_stage import frame, prepare, read, run

SCHEMAS = """
import pandera.pandas as pa

Loans = pa.DataFrameSchema(
    {
        "x": pa.Column(float, pa.Check.between(-10, 10), nullable=True),
        "n": pa.Column(int, pa.Check.ge(0), coerce=True),
        "s": pa.Column(str, pa.Check.isin(["a", "b"])),
        "absent": pa.Column(int, required=False),
    },
    checks=pa.Check(lambda table: table["n"] < 100, name="n_below_100"),
)

class Model(pa.DataFrameModel):
    n: int = pa.Field(ge=0, le=5)
    s: str = pa.Field(isin=["a"])

    @pa.check("n")
    def raises(cls, column):
        return column / {}["nothing"]

Whole = pa.DataFrameSchema({"x": pa.Column(int)}, checks=pa.Check(lambda table: table["n"] != 3, name="n_is_not_3"),
                           strict=True)
Empty = pa.DataFrameSchema({})
Dropping = pa.DataFrameSchema({"n": pa.Column(int, pa.Check.lt(0))}, drop_invalid_rows=True)
Indexed = pa.DataFrameSchema({"n": pa.Column(int)}, index=pa.Index(int))
Warning = pa.DataFrameSchema({"n": pa.Column(int, pa.Check.lt(0, raise_warning=True))})
Number = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = frame(x=[None, *([0.5] * 199)])
    place = prepare(tmp_path_factory.mktemp("files"), table)
    (place / "schemas.py").write_text(SCHEMAS)
    return place


def check(folder: Path, **section: Any) -> list[dict[str, Any]]:
    """Run the validate stage anew with one check; what it publishes of its results."""
    out = folder / "validate"
    if out.exists():
        import shutil

        shutil.rmtree(out)
    run(folder, [section])
    return [item for item in read(folder, "checks.json") if item["check"] == section["kind"]]


def test_a_pandera_schema_of_code_beside_the_recipe(folder: Path) -> None:
    results = check(folder, kind="pandera", schema="schemas:Loans")
    assert [(item["column"], item["passed"]) for item in results] == [
        ("x", True), ("n", True), ("s", True), ("absent", True), ("", True),
    ]  # fmt: skip
    assert results[1]["message"] == "type int64, not missing, after coercion, greater_than_or_equal_to(0)"
    assert results[3]["message"] == "is not in the table, and not required"
    assert "n_below_100" in results[4]["message"]
    evidence = json.loads((folder / "validate" / "evidence" / "0-pandera" / "schema.json").read_text())
    assert evidence["columns"]["s"] == ["type string[pyarrow]", "not missing", "isin(['a', 'b'])"]


def test_failures_of_a_pandera_schema_name_rows_and_a_check_that_raises_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError) as refused:
        check(folder, kind="pandera", schema="schemas:Model")
    source = pd.read_parquet(folder / "t.parquet")
    text = refused.value.message
    above = source.index[source["n"] > 5]
    assert f"less_than_or_equal_to(5): {len(above)} rows: row {above[0]}: {source.at[above[0], 'n']}" in text
    assert f"and {len(above) - 10} more" in text
    assert "pandera n: ERROR: raises: KeyError" in text
    assert "isin(['a'])" in text
    assert not (folder / "validate" / "evidence").exists()


def test_checks_of_the_whole_table_list_rows_alone_and_other_columns_fail_by_name(folder: Path) -> None:
    with pytest.raises(DataError) as refused:
        check(folder, kind="pandera", schema="schemas:Whole")
    lines = refused.value.message.splitlines()
    whole = next(line for line in lines if "n_is_not_3" in line)
    source = pd.read_parquet(folder / "t.parquet")
    row = source.index[source["n"] == 3][0]
    assert f"rows: row {row}, row" in whole
    assert "column 'id' is not in the schema" in refused.value.message
    assert any("pandera x" in line and "int64" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Empty", "states nothing"),
        ("Dropping", "drops invalid rows"),
        ("Indexed", "has an index"),
        ("Number", "not a schema of a pandas table"),
    ],
)
def test_a_schema_that_cannot_judge_a_table_is_refused(folder: Path, name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        check(folder, kind="pandera", schema=f"schemas:{name}")


def test_pandera_switched_off_by_its_environment_judges_all_the_same(folder: Path) -> None:
    from pandera.config import config_context

    with config_context(validation_enabled=False), pytest.raises(DataError, match="less_than_or_equal_to"):
        check(folder, kind="pandera", schema="schemas:Model")


def test_a_check_that_only_warns_passes_and_is_told(folder: Path) -> None:
    results = check(folder, kind="pandera", schema="schemas:Warning")
    assert "warned of" in results[-1]["message"]


def test_code_that_raises_is_named_with_its_line(folder: Path) -> None:
    (folder / "broken.py").write_text("import pandera.pandas as pa\n\nSchema = pa.DataFrameSchema(1 / 0)\n")
    with pytest.raises(UserCodeError, match=r"broken.py:3: .*ZeroDivisionError"):
        check(folder, kind="pandera", schema="broken:Schema")


YAML = """schema_type: dataframe
columns:
  n:
    dtype: int64
    checks:
      greater_than_or_equal_to: {minimum}
  s:
    dtype: str
    nullable: false
    isin: [a, b]
"""


def test_a_pandera_schema_of_a_yaml_file(folder: Path) -> None:
    (folder / "loans.yaml").write_text(YAML.format(minimum=0))
    assert [item["column"] for item in check(folder, kind="pandera", schema="loans.yaml")] == ["n", "s", ""]
    (folder / "loans.yaml").write_text(YAML.format(minimum=5))
    with pytest.raises(DataError, match=r"greater_than_or_equal_to\(5\): \d+ rows: row \d+: [0-4], "):
        check(folder, kind="pandera", schema="loans.yaml")


RECIPE = """name: loans
task: classification
data:
  source: {kind: csv, path: loans.csv}
  target: y
  drop: [dropped]
  split: {kind: random}
  checks:
    - CHECK
model: {kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    frame(dropped=1).to_csv(tmp_path / "loans.csv", index=False)
    (tmp_path / "schemas.py").write_text(SCHEMAS)
    return tmp_path / "recipe.yaml"


def faults(recipe: Path, check: str) -> list[str]:
    """The faults of a recipe with a check: ``line:column message``."""
    recipe.write_text(RECIPE.replace("CHECK", check))
    try:
        mk.load(recipe)
    except RecipeError as error:
        return [f"{fault.line}:{fault.column} {fault.message} ({fault.hint})" for fault in error.faults]
    return []


def test_faults_of_a_pandera_file_are_told_without_data(recipe: Path) -> None:
    (recipe.parent / "ok.yaml").write_text(YAML.format(minimum=0))
    assert faults(recipe, "{kind: pandera, schema: ok.yaml}") == []
    text = YAML.format(minimum=0).replace("nullable", "nulable").replace("greater_than_or", "greter_than_or")
    (recipe.parent / "bad.yaml").write_text(text + "  dropped: {dtype: int64}\n  nn: {dtype: int64}\n")
    listed = faults(recipe, "{kind: pandera, schema: bad.yaml}")
    assert [item.partition(" ")[0] for item in listed] == ["9:31"] * 4
    assert (
        "bad.yaml:9:5: pandera knows no key 'nulable' here, and would leave it out (did you mean nullable?)"
        in listed[1]
    )
    assert "bad.yaml:6:7: pandera knows no key 'greter_than_or_equal_to'" in listed[0]
    assert "bad.yaml:11:3: column 'dropped' is dropped by the recipe (take it out of data.drop)" in listed[2]
    assert "bad.yaml:12:3: the table has no column 'nn' (did you mean 'n'?)" in listed[3]
    assert "no such file" in faults(recipe, "{kind: pandera, schema: none.yaml}")[0]
    (recipe.parent / "torn.yaml").write_text("columns: [\n  {")
    assert "torn.yaml:2:4: not YAML" in faults(recipe, "{kind: pandera, schema: torn.yaml}")[0]


def test_faults_of_a_reference_to_a_schema_are_told_without_running_it(recipe: Path) -> None:
    assert faults(recipe, '{kind: pandera, schema: "schemas:Loans"}') == []
    assert "did you mean schemas:Loans?" in faults(recipe, '{kind: pandera, schema: "schemas:Loan"}')[0]
    assert "there is no schema.py beside" in faults(recipe, '{kind: pandera, schema: "schema:Loans"}')[0]
    assert "FILE.yaml" in faults(recipe, "{kind: pandera, schema: schemas.json}")[0]


def test_a_changed_file_of_rules_runs_validate_again_and_nothing_before_it(recipe: Path) -> None:
    text = YAML.format(minimum=0)
    (recipe.parent / "ok.yaml").write_text(text)
    check = '{kind: pandera, schema: ok.yaml}\n    - {kind: pandera, schema: "schemas:Loans"}'
    assert faults(recipe, check) == []
    state = recipe.parent / "state"

    def actions() -> dict[str, str]:
        plan = mk.plan(mk.load(recipe), state=state, until="validate")
        return {step.stage: f"{step.action} {step.reason}" for step in plan.steps}

    mk.run(mk.load(recipe), state=state, until="validate")
    assert {action.partition(" ")[0] for action in actions().values()} == {"reuse"}
    (recipe.parent / "ok.yaml").write_text(text.replace("  s:\n", "  s:\n    required: true\n"))
    after = actions()
    assert after["data"].startswith("reuse")
    assert after["validate"] == "run data.checks: ok.yaml changed"
    mk.run(mk.load(recipe), state=state, until="validate")
    with (recipe.parent / "schemas.py").open("a") as file:
        file.write("# more\n")
    assert actions()["validate"] == "run code: schemas.py changed"


def test_what_ends_a_run_is_kept_with_it_and_shown(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "bad.yaml").write_text(YAML.format(minimum=5))
    checks = "{kind: nulls, column: s, max_share: 0}\n    - {kind: pandera, schema: bad.yaml}"
    assert faults(recipe, checks) == []
    state = recipe.parent / "state"
    with pytest.raises(DataError):
        mk.run(mk.load(recipe), state=state, until="validate")

    def mlkit(*words: str) -> str:
        with pytest.raises(SystemExit):
            main([*words, "--state", str(state)])
        return capsys.readouterr().out

    steps = {step["stage"]: step for step in json.loads(mlkit("show", "--json"))["steps"]}
    kept = Path(steps["validate"]["kept"])
    assert "kept" not in steps["data"]
    assert f"its results: {kept}" in mlkit("show")
    results = json.loads((kept / "checks.json").read_text())
    assert [result["passed"] for result in results if result["check"] == "nulls"] == [True]
    row, value = next(result for result in results if not result["passed"])["failures"][0]
    page = Path(mlkit("report").strip()).read_text()
    assert "Not reached: the table was not checked" not in page
    assert f"row {row}: {value}" in page
    (recipe.parent / "bad.yaml").write_text(YAML.format(minimum=0))
    mk.run(mk.load(recipe), state=state, until="validate")
    assert all("kept" not in step for step in json.loads(mlkit("show", "--json"))["steps"])


GX = pytest.mark.skipif(find_spec("great_expectations") is None, reason="pip install 'mlflowkit[gx]'")


def suite(*expectations: dict[str, Any], **keys: Any) -> str:
    return json.dumps({"name": "loans", "expectations": list(expectations), **keys}, indent=1)


def expect(kind: str, **kwargs: Any) -> dict[str, Any]:
    return {"type": f"expect_{kind}", "kwargs": kwargs}


@GX
def test_a_suite_is_evaluated_as_a_whole_in_its_order(folder: Path) -> None:
    listed = [
        expect("column_values_to_be_between", column="n", min_value=0, max_value=7, mostly=0.5),
        expect("column_values_to_be_in_set", column="s", value_set=["a", "b"]),
        expect("table_row_count_to_be_between", min_value={"$PARAMETER": "least"}),
        expect("column_values_to_be_in_set", column="s", value_set=["a", "b"]),
        expect("column_mean_to_be_between", column="x", min_value=0, max_value=1),
    ]
    (folder / "loans.json").write_text(suite(*listed))
    results = check(folder, kind="expectations", suite="loans.json", parameters={"least": 200})
    assert [item["message"].partition("(")[0] for item in results] == [item["type"] for item in listed]
    assert all(item["passed"] for item in results)
    source = pd.read_parquet(folder / "t.parquet")
    above = source.index[source["n"] > 7]
    assert (results[0]["failed"], results[0]["failures"]) == (len(above), [[row, 8] for row in above[:10]])
    assert f"{len(above)} of 200 rows unexpected" in results[0]["message"]
    assert "mostly 0.5" in results[0]["message"]
    assert "observed 200" in results[2]["message"]
    evidence = json.loads((folder / "validate" / "evidence" / "0-expectations" / "results.json").read_text())
    assert evidence["version"].startswith("1.")
    assert evidence["results"][0]["rows"] == results[0]["failures"]


@GX
def test_nothing_that_was_not_evaluated_passes(folder: Path) -> None:
    """A failure, what raises, what is refused: each is told by itself, beside one that holds."""
    listed = [
        expect("column_values_to_not_be_null", column="x"),
        expect("column_values_to_match_regex", column="n", regex="("),
        expect("nothing_of_the_kind", column="n"),
        expect("column_values_to_be_between", column="n", min_valeu=0),
        expect("table_row_count_to_equal", value=200),
        expect("table_row_count_to_equal", value={"$PARAMETER": "absent"}),
        expect("column_values_to_be_between", column="none", min_value=0),
    ]
    (folder / "bad.json").write_text(suite(*listed))
    with pytest.raises(DataError) as refused:
        check(folder, kind="expectations", suite="bad.json")
    lines = refused.value.message.splitlines()
    assert lines[0] == "6 checks of the data failed"
    source = pd.read_parquet(folder / "t.parquet")
    row = source.index[source["x"].isna()][0]
    assert lines[1].endswith(f"1 of 200 rows unexpected (0.50 %): row {row}: missing")
    errors = [line.partition("ERROR: ")[2].partition("(")[0] for line in lines[2:]]
    assert errors == [item["type"] for item in listed[1:] if item is not listed[4]]


@GX
def test_a_category_is_compared_by_its_number_where_the_suite_says_numbers(tmp_path: Path) -> None:
    place = prepare(tmp_path, frame(n=["36", "60"] * 100), columns={"id": "ignore", "n": "categorical"})
    (place / "terms.json").write_text(suite(expect("column_values_to_be_in_set", column="n", value_set=[36, 60])))
    assert check(place, kind="expectations", suite="terms.json")[0]["passed"]


def test_faults_of_a_suite_are_told_without_data(recipe: Path) -> None:
    def told(text: str, more: str = "") -> list[str]:
        (recipe.parent / "s.json").write_text(text)
        return [item.partition(" ")[2] for item in faults(recipe, f"{{kind: expectations, suite: s.json{more}}}")]

    between = expect("column_values_to_be_between", column="x", min_value={"$PARAMETER": "least"})
    assert told(suite(between), ", parameters: {least: 0}") == []
    assert (
        "s.json:4:3: expect_column_values_to_be_between: the parameter 'least' has no value" in told(suite(between))[0]
    )
    unused = told(suite(between), ", parameters: {least: 0, most: 3}")
    assert unused == ["s.json: no expectation uses the parameter 'most' (remove it)"]
    old = told(json.dumps({"expectation_suite_name": "a", "expectations": [{"expectation_type": "b", "kwargs": {}}]}))
    assert "a suite of Great Expectations 0.x" in old[0]
    assert "sed -i" in old[0]
    assert "always pass" in told(suite())[0]
    assert "s.json:1:2: not JSON" in told("{")[0]
    assert "no list of expectations" in told("[]")[0]
    assert "no column 'xx'" in told(suite(expect("column_to_exist", column="xx")))[0]
    assert "is dropped by the recipe" in told(suite(expect("column_to_exist", column="dropped")))[0]


def test_the_command_that_converts_a_suite_of_0_x_converts_it(recipe: Path) -> None:
    old = {"expectation_suite_name": "a", "expectations": [{"expectation_type": "expect_column_to_exist"}]}
    old["expectations"][0]["kwargs"] = {"column": "x"}  # type: ignore[index]
    path = recipe.parent / "old.json"
    path.write_text(json.dumps(old, indent=1))
    command = faults(recipe, "{kind: expectations, suite: old.json}")[0].partition("(sed")[2].removesuffix(")")
    subprocess.run(f"sed{command}", shell=True, check=True, cwd=recipe.parent)
    assert faults(recipe, "{kind: expectations, suite: old.json}") == []


@GX
def test_faults_of_a_suite_by_the_installed_great_expectations(recipe: Path) -> None:
    listed = [expect("column_values_to_be_betwen", column="x"), expect("column_values_to_be_between", colunm="x")]
    (recipe.parent / "s.json").write_text(suite(*listed))
    told = faults(recipe, "{kind: expectations, suite: s.json}")
    assert "s.json:4:3: there is no expectation 'expect_column_values_to_be_betwen' (did you mean" in told[0]
    assert (
        "s.json:10:3: expect_column_values_to_be_between takes no argument 'colunm' (did you mean column?)" in told[1]
    )
    assert "needs an argument 'column'" in told[2]


TFDV = pytest.mark.skipif(find_spec("tensorflow_metadata") is None, reason="pip install 'mlflowkit[tfdv]'")
SCHEMA = """feature {
  name: "x" type: FLOAT
  presence { min_fraction: LEAST }
}
feature { name: "n" type: INT int_domain { max: 7 } drift_comparator { jensen_shannon_divergence { threshold: 0.1 } } }
feature { name: "s" type: BYTES string_domain { value: "a" } drift_comparator { infinity_norm { threshold: 0.1 } } }
feature { name: "id" type: INT }
feature { name: "y" type: BYTES presence { min_count: 1 } not_in_environment: "SERVING" }
default_environment: "TRAINING"
default_environment: "SERVING"
"""


@TFDV
def test_anomalies_of_a_tfdv_schema_name_rows_and_are_kept_in_its_format(folder: Path) -> None:
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import anomalies_pb2

    (folder / "schema.pbtxt").write_text(SCHEMA.replace("LEAST", "1"))
    with pytest.raises(DataError) as refused:
        check(folder, kind="tfdv", schema="schema.pbtxt", environment="TRAINING")
    source = pd.read_parquet(folder / "t.parquet")
    lines = refused.value.message.splitlines()
    assert lines[0] == "3 checks of the data failed"
    missing, above = source.index[source["x"].isna()], source.index[source["n"] > 7]
    assert lines[1].startswith("  tfdv x: FEATURE_TYPE_LOW_FRACTION_PRESENT: ")
    assert lines[1].endswith(f"minimum fraction = 1.000000, actual = 0.995000: 1 row: row {missing[0]}: missing")
    assert f"INT_TYPE_BIG_INT: Unexpectedly large value: 8: {len(above)} rows: row {above[0]}: 8" in lines[2]
    assert "ENUM_TYPE_UNEXPECTED_STRING_VALUES" in lines[3]
    assert "(~" in lines[3]
    kept = folder / "scratch" / "evidence" / "0-tfdv" / "anomalies.pbtxt"
    answer = text_format.Parse(kept.read_text(), anomalies_pb2.Anomalies())
    assert set(answer.anomaly_info) == {"x", "n", "s"}
    assert [reason.type for reason in answer.anomaly_info["n"].reason] == [anomalies_pb2.AnomalyInfo.INT_TYPE_BIG_INT]


@TFDV
def test_drift_by_a_tfdv_schema_is_against_the_last_version_and_keeps_no_cell(tmp_path: Path) -> None:
    schema = SCHEMA.replace("LEAST", "0").replace("max: 7", "max: 99").replace('value: "a"', 'value: "a" value: "b"')
    section = {"kind": "tfdv", "schema": "schema.pbtxt"}
    first, second = (prepare(tmp_path / name, frame(**columns)) for name, columns in (
        ("first", {}), ("second", {"s": ["b", "b", "b", "a"] * 50, "n": range(200)}))
    )  # fmt: skip
    for place in (first, second):
        (place / "schema.pbtxt").write_text(schema)
    results = check(first, **section)
    notes = {item["column"]: item["message"] for item in results}
    assert notes["s"] == "no anomalies; its drift is not judged: there is no earlier version"
    kept = (first / "validate" / "evidence" / "0-tfdv" / "statistics.json").read_text()
    assert '"a"' not in kept
    with pytest.raises(DataError) as refused:
        run(second, [section], previous=first / "validate")
    words = refused.value.message
    assert "tfdv s: COMPARATOR_L_INFTY_HIGH: The Linfty distance between current and previous is 0.2" in words
    assert "tfdv n: COMPARATOR_JENSEN_SHANNON_DIVERGENCE_HIGH" in words
    assert "Without any change 200 and 200 values give about" in words


@TFDV
def test_skew_by_a_tfdv_schema_is_against_the_rows_that_were_served(folder: Path) -> None:
    schema = SCHEMA.replace("LEAST", "0").replace("max: 7", "max: 99").replace('value: "a"', 'value: "a" value: "b"')
    (folder / "skew.pbtxt").write_text(schema.replace("drift_comparator { inf", "skew_comparator { inf"))
    source = pd.read_parquet(folder / "t.parquet")
    source.to_parquet(folder / "served.parquet")
    assert all(item["passed"] for item in check(folder, kind="tfdv", schema="skew.pbtxt", serving="served.parquet"))
    source.assign(s="b").to_parquet(folder / "served.parquet")
    with pytest.raises(DataError, match="COMPARATOR_L_INFTY_HIGH: The Linfty distance between training and serving"):
        check(folder, kind="tfdv", schema="skew.pbtxt", serving="served.parquet")


@TFDV
def test_faults_of_a_tfdv_schema_are_told_with_their_lines(recipe: Path) -> None:
    def told(text: str, more: str = "") -> list[str]:
        (recipe.parent / "s.pbtxt").write_text(text)
        return [item.partition(" ")[2] for item in faults(recipe, f"{{kind: tfdv, schema: s.pbtxt{more}}}")]

    good = SCHEMA.replace("LEAST", "1")
    assert told(good, ", environment: TRAINING") == []
    assert told(good, ", environment: TRAIN") == [
        "s.pbtxt:1:1: the schema knows no environment 'TRAIN' (did you mean TRAINING?)"
    ]
    assert told(good.replace("presence {", "presense {")) == [
        's.pbtxt:3:3: Message type "tensorflow.metadata.v0.Feature" has no field named "presense". '
        "(did you mean presence?)"
    ]
    assert "s.pbtxt:2:19: Enum type" in told(good.replace("FLOAT", "FLOATS"))[0]
    language = told(good.replace("int_domain { max: 7 }", "natural_language_domain { vocabulary: 'v' }"))
    assert ["natural_language_domain is not judged" in item for item in language] == [True]
    assert language[0].startswith("s.pbtxt:5:31: ")
    twice = good + 'sparse_feature {\n  name: "z"\n}\nsparse_feature { name: "q" }\n'
    assert [item.partition(" is ")[0] for item in told(twice)] == [
        "s.pbtxt:11:1: sparse_feature",
        "s.pbtxt:14:1: sparse_feature",
    ]
    number = good.replace("jensen_shannon_divergence", "infinity_norm")
    assert "s.pbtxt:5:1: infinity_norm of 'n', a number, is 0 whatever the values are" in told(number)[0]
    skew = good.replace("drift_comparator { inf", "skew_comparator { inf")
    assert "s.pbtxt:6:62: skew_comparator compares with rows that were served" in told(skew)[0]
    assert "no file none.parquet" in told(skew, ", serving: none.parquet")[0]
    mixed = told(good.replace("type: FLOAT", "type: INT float_domain {}"))
    assert mixed == ["s.pbtxt:1:1: feature 'x' is INT and has a float_domain (a float_domain is for FLOAT or BYTES)"]
    absent = good + 'feature { name: "xx" type: INT presence { min_count: 1 } }\n'
    assert "s.pbtxt:11:1: the table has no column 'xx' (did you mean 'x'?)" in told(absent)[0]
    assert "always pass" in told("")[0]


@TFDV
def test_a_schema_that_is_not_judged_is_refused_by_the_stage_too(folder: Path) -> None:
    (folder / "mid.pbtxt").write_text('feature { name: "x" type: BYTES mid_domain {} }')
    with pytest.raises(DataError, match=r"mid\.pbtxt:1:33: mid_domain is not judged"):
        check(folder, kind="tfdv", schema="mid.pbtxt")


@TFDV
def test_a_type_that_changed_is_told_as_a_type_with_its_rows_and_not_as_drift(tmp_path: Path) -> None:
    schema = 'feature { name: "n" type: INT drift_comparator { jensen_shannon_divergence { threshold: 0.1 } } }\n'
    schema += "".join(f'feature {{ name: "{name}" type: {kind} }}\n' for name, kind in
                      (("x", "FLOAT"), ("s", "BYTES"), ("id", "INT"), ("y", "BYTES")))  # fmt: skip
    first = prepare(tmp_path / "first", frame())
    second = prepare(tmp_path / "second", frame(n=[" 36 months", "36"] * 100))
    for place in (first, second):
        (place / "schema.pbtxt").write_text(schema)
    section = {"kind": "tfdv", "schema": "schema.pbtxt"}
    assert all(item["passed"] for item in check(first, **section))
    with pytest.raises(DataError) as refused:
        run(second, [section], previous=first / "validate")
    lines = refused.value.message.splitlines()
    assert lines[0] == "1 check of the data failed"
    expected = "UNEXPECTED_DATA_TYPE: Expected data of type: INT but got STRING: 100 rows: row 0: ' 36 months', row 2:"
    assert expected in lines[1]


@GX
def test_an_expectation_without_a_result_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflowkit.adapters.data_checks.expectations import ExpectationSuites

    (folder / "two.json").write_text(suite(*(expect("column_to_exist", column=name) for name in "xn")))
    held = {"index": 0, "type": "expect_column_to_exist", "success": True, "error": "", "counts": {}, "rows": []}
    answer = {"version": "1.24", "results": [{**held, "observed": None}]}
    monkeypatch.setattr(ExpectationSuites, "_evaluate", lambda *_: answer)
    with pytest.raises(EngineError, match="evaluated 1 of 2 expectations"):
        check(folder, kind="expectations", suite="two.json")


@GX
def test_the_evidence_of_a_suite_has_no_cell_but_those_that_are_shown(folder: Path) -> None:
    listed = [
        expect("column_values_to_be_between", column="id", max_value=3, mostly=0.01),
        expect("column_distinct_values_to_be_in_set", column="id", value_set=list(range(200))),
    ]
    (folder / "ids.json").write_text(suite(*listed))
    check(folder, kind="expectations", suite="ids.json")
    evidence = json.loads((folder / "validate" / "evidence" / "0-expectations" / "results.json").read_text())
    first, second = evidence["results"]
    assert first["rows"] == [[row, row] for row in range(4, 14)]
    assert first["counts"]["unexpected_count"] == 196
    assert second["observed"] is None or len(second["observed"]) <= 10


@GX
def test_plan_and_validate_do_not_import_great_expectations(recipe: Path) -> None:
    (recipe.parent / "s.json").write_text(suite(expect("column_to_exist", column="x")))
    assert faults(recipe, "{kind: expectations, suite: s.json}") == []
    code = "import sys, mlflowkit as mk; mk.plan(sys.argv[1], state=sys.argv[2])"
    code += "; print('great_expectations' in sys.modules)"
    command = [sys.executable, "-c", code, str(recipe), str(recipe.parent / "state")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
