"""`mlkit predict --model` and `--out`: files of rows in, the same rows with their predictions out."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.bundle import TextRule, open_bundle
from mlflowkit.errors import DataError
from mlflowkit.scoring.conversion import feature_frame
from mlflowkit.scoring.predictors import GraphPredictor
from mlflowkit.scoring.reading import RowFile, rows_of_json
from mlflowkit.scoring.score import ScoringOptions, score
from mlflowkit.serving.protocol.input_schema import Schema
from tests.support.lending_bundle import CATEGORIES, NUMERIC, expected, make_bundle
from tests.support.warm_commands import warm_command

ROWS: list[dict[str, Any]] = [
    {"id": 70 + number, "age": age, "income": income, "debt": debt, "term": term, "purpose": purpose, "paid": "good"}
    for number, (age, income, debt, term, purpose) in enumerate(
        [
            (41.0, 52000.0, None, "36 months", "car"),
            (23.0, 18000.0, 900.0, "60 months", None),
            (None, 0.5, 1e6, "36 months", "boat"),
            (67.25, 31000.0, 12.0, "36 months", "home"),
        ]
    )
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("models") / "bundle", rows=[features(row) for row in ROWS]).path


def features(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in (*NUMERIC, *CATEGORIES)}


def predict(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*warm_command("mlflowkit.cli"), "predict", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False)


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    frame.to_csv(path, index=False)


def write_jsonl(path: Path, frame: pd.DataFrame) -> None:
    frame.to_json(path, orient="records", lines=True)


def write_json(path: Path, frame: pd.DataFrame) -> None:
    frame.to_json(path, orient="records")


WRITERS: dict[str, Callable[[Path, pd.DataFrame], None]] = {
    "rows.csv": write_csv,
    "rows.csv.gz": write_csv,
    "rows.tsv": lambda path, frame: frame.to_csv(path, index=False, sep="\t"),
    "rows.parquet": lambda path, frame: frame.to_parquet(path, index=False),
    "rows.jsonl": write_jsonl,
    "rows.json": write_json,
}
READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    "csv": lambda path: pd.read_csv(path, keep_default_na=False),
    "parquet": pd.read_parquet,
    "jsonl": lambda path: pd.read_json(path, lines=True),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("out", READERS)
def test_each_format_keeps_every_row_and_column_and_adds_the_graphs_predictions(
    name: str, out: str, bundle: Path, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path / name, pd.DataFrame(ROWS))
    done = predict("--model", bundle, "--file", tmp_path / name, "--out", tmp_path / f"scored.{out}")
    assert done.returncode == 0, done.stderr
    scored = READERS[out](tmp_path / f"scored.{out}")
    answers = expected(bundle, [features(row) for row in ROWS])
    assert scored["id"].astype(int).tolist() == [row["id"] for row in ROWS]
    assert scored["paid"].tolist() == ["good"] * 4
    assert scored["prediction"].tolist() == answers["label"]
    for index, label in enumerate(("bad", "good")):
        assert scored[f"probability_{label}"].tolist() == pytest.approx(
            [row[index] for row in answers["probabilities"]]
        )
    assert "ignored, because the model does not take them: 'id', 'paid'" in done.stderr
    assert "purpose: 1 rows (25.0%) have a category that training never saw" in done.stderr


def test_json_reports_what_was_ignored_and_unseen(bundle: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", pd.DataFrame(ROWS))
    arguments = ("--model", bundle, "--file", tmp_path / "rows.csv", "--out", tmp_path / "out.csv", "--keep", "id")
    value = json.loads(predict(*arguments, "--json").stdout)
    assert (value["rows"], value["ignored"], value["unseen"]) == (4, ["id", "paid"], {"purpose": 1})
    assert (tmp_path / "out.csv").read_text().splitlines()[
        0
    ] == '"id","prediction","probability_bad","probability_good"'


def test_rows_are_predicted_on_the_terminal_too(bundle: Path) -> None:
    rows = json.dumps([features(row) for row in ROWS])
    done = predict("--model", bundle, "--rows", rows, "--json")
    labels = [row["prediction"] for row in json.loads(done.stdout)["predictions"]]
    assert labels == expected(bundle, [features(row) for row in ROWS])["label"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("id,age,income,debt,term\n1,2,3,4,x\n", "lacks the column 'purpose'"),
        ("id,age,income,debt,term,purpos\n1,2,3,4,x,y\n", "did you mean 'purpos'?"),
        ("age,income,debt,term,purpose\nold,1,1,x,y\n", "row 0: age: 'old' is not a number"),
        ("age,income,debt,term,purpose\n1,1,1,x,y\n1,inf,1,x,y\n", "row 1: income: infinity"),
        ("age,income,debt,term,purpose\n1,1,1,x,y,z\n", "rows.csv:2: 6 fields; the header has 5"),
        ("age,age,debt,term,purpose\n1,1,1,x,y\n", "column 'age' occurs twice"),
        ("age,income,debt,term,purpose,prediction\n1,1,1,x,y,z\n", "--prefix"),
        ("age,income,debt,term,purpose\n", "has no rows"),
        ("", "is empty"),
    ],
)
def test_what_cannot_be_scored_is_refused_and_leaves_no_file(
    text: str, reason: str, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text(text)
    (tmp_path / "out.csv").write_text("older")
    done = predict("--model", bundle, "--file", tmp_path / "rows.csv", "--out", tmp_path / "out.csv")
    assert done.returncode in (2, 3), done.stderr
    assert reason in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out.csv").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "rows.csv"]


def test_a_missing_column_may_be_declared_missing(bundle: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS).drop(columns="debt")
    write_csv(tmp_path / "rows.csv", frame)
    out = tmp_path / "out.jsonl"
    done = predict("--model", bundle, "--file", tmp_path / "rows.csv", "--out", out, "--missing-columns", "null")
    assert done.returncode == 0, done.stderr
    assert "missing in all rows, because the file lacks them: 'debt'" in done.stderr
    answers = expected(bundle, [features(row) | {"debt": None} for row in ROWS])
    shares = [json.loads(line)["probability_good"] for line in out.read_text().splitlines()]
    assert shares == pytest.approx([row[1] for row in answers["probabilities"]])


def test_a_row_without_a_finite_answer_is_null_and_reported(bundle: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", pd.DataFrame([features(ROWS[0]), features(ROWS[0]) | {"age": -5}]))
    done = predict("--model", bundle, "--file", tmp_path / "rows.csv", "--out", tmp_path / "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert "1 rows have no finite prediction" in done.stderr
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["probability_good"] is None
    assert json.loads(lines[0])["probability_good"] is not None


def test_a_bundle_that_was_altered_predicts_nothing(bundle: Path, tmp_path: Path) -> None:
    copy = make_bundle(tmp_path / "copy", seed=2).path
    (copy / "signature.json").write_text((copy / "signature.json").read_text() + " ")
    write_csv(tmp_path / "rows.csv", pd.DataFrame(ROWS))
    done = predict("--model", copy, "--file", tmp_path / "rows.csv", "--out", tmp_path / "out.csv")
    assert done.returncode == 3
    assert "altered" in done.stderr


@pytest.mark.parametrize(("missing", "reason"), [((), "'NA' is not a number"), (("NA",), "")])
def test_a_list_of_no_missing_texts_is_meant(
    missing: tuple[str, ...], reason: str, bundle: Path, tmp_path: Path
) -> None:
    """``data.source.missing: []`` is in the signature; the default texts are for bundles that say nothing."""
    opened = open_bundle(bundle)
    signature = opened.signature.model_copy(update={"texts": TextRule(missing=missing)})
    table = rows_of_json(Path("rows.json"), json.dumps([{**features(ROWS[0]), "age": "NA"}])).batches
    signature = type(signature).model_validate(signature.model_dump())
    if reason:
        with pytest.raises(DataError, match=reason):
            feature_frame(next(table), signature, start=0, categories={})
    else:
        assert np.isnan(feature_frame(next(table), signature, start=0, categories={})["age"].iloc[0])


class _Collect:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, table: Any) -> None:
        self.rows += table.to_pylist()


numbers = st.none() | st.floats(0, 1e6, width=32)
rows = st.lists(
    st.fixed_dictionaries(
        dict.fromkeys(NUMERIC, numbers)
        | {name: st.sampled_from([*CATEGORIES[name], None, "new"]) for name in CATEGORIES}
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=40)
@given(rows=rows)
def test_a_file_and_a_request_give_the_graph_the_same_inputs(rows: list[dict[str, Any]], bundle: Path) -> None:
    opened = open_bundle(bundle)
    arrays = Schema(opened.signature).arrays(rows)
    answers = OnnxRuntime().load(opened.model).run(arrays)
    sink = _Collect()
    score(_file(rows), GraphPredictor(opened, OnnxRuntime()), sink, ScoringOptions(keep=()), lambda _: None)
    assert [row["probability_good"] for row in sink.rows] == pytest.approx(answers["probabilities"][:, 1].tolist())


def _file(rows: list[dict[str, Any]]) -> RowFile:
    return rows_of_json(Path("rows.json"), json.dumps(rows))
