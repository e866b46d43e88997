"""Columns of dates: from the file to the graph, and the same from a request."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

import mlflowkit as mk
from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.bundle import Bundle, open_bundle
from mlflowkit.errors import DataError, RecipeError
from mlflowkit.features.tensors import inputs_from_table
from mlflowkit.service_state.records import Desired, GatewaySettings, ServiceFiles
from mlflowkit.serving.protocol.csv_rows import csv_rows
from mlflowkit.serving.protocol.http_error import RequestError
from mlflowkit.serving.protocol.input_schema import Schema
from mlflowkit.values import RoutingTable, Variant
from tests.support import ROOT
from tests.support.processes import free_port
from tests.support.waiting import wait_for

RECIPE = """\
name: rents
task: regression
data:
  source: {{kind: {kind}, path: rows.{kind}}}
  target: price
  columns: {{signed: date, born: date}}
  split: {{kind: random, validation: 0.2, test: 0.2}}
preprocess:
  dates:
    signed: {{parts: [year, weekday], cycles: [month], age: {{since: born, unit: years}}}}
    born: {{parts: [], age: {{since: "1970-01-01"}}}}
model: {{kind: sklearn, module: "sklearn.ensemble:HistGradientBoostingRegressor", args: {{max_iter: 40}}}}
optimize: {{candidates: [onnx]}}
"""


def rows(count: int = 1200) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    born = pd.Timestamp("1940-01-01") + pd.to_timedelta(rng.integers(0, 20_000, count), "D")
    signed = pd.Timestamp("2015-01-01") + pd.to_timedelta(rng.integers(0, 3_000, count), "D")
    age = (signed - born).days / 365.2425
    price = 10 * (signed.weekday >= 5) + 20 * signed.month.isin([11, 12, 1]) + 0.5 * age + rng.normal(size=count) * 0.1
    return pd.DataFrame({"signed": signed, "born": born, "rooms": rng.integers(1, 5, count), "price": price})


def write(folder: Path, table: pd.DataFrame, *, kind: str = "csv", recipe: str = RECIPE) -> Path:
    if kind == "csv":
        table.to_csv(folder / "rows.csv", index=False)
    else:
        table.to_parquet(folder / "rows.parquet")
    (folder / "recipe.yaml").write_text(recipe.format(kind=kind))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    table = rows().astype({"signed": str, "born": str})
    table.loc[100:109, "signed"] = "soon"
    table.loc[110:119, "born"] = ""
    run = mk.run(write(tmp_path_factory.mktemp("dates"), table), until="package").raise_for_status()
    assert run.metrics["r2"] > 0.95
    told = [item for step in run.answer["steps"] for item in step.get("findings", ())]
    assert [item["column"] for item in told if "no dates" in item["message"]] == ["signed"]
    assert run.bundle is not None
    parity = json.loads((run.bundle / "evidence" / "parity.json").read_text())
    assert parity["max_abs_difference"] < 1e-5
    return open_bundle(run.bundle)


def answers(bundle: Bundle, inputs: Any) -> list[float]:
    values: list[float] = OnnxRuntime().load(bundle.model).run(inputs)["prediction"].ravel().tolist()
    return values


def test_the_signature_says_what_a_date_is(bundle: Bundle) -> None:
    assert [(tensor.name, tensor.datatype, tensor.columns) for tensor in bundle.signature.inputs] == [
        ("numeric", "FP32", ("rooms",)),
        ("dates", "FP64", ("signed", "born")),
    ]
    assert bundle.signature.texts.dates == {"signed": "naive", "born": "naive"}
    sample = json.loads((bundle.path / "evidence" / "sample.json").read_text())
    texts = [row["signed"] for row in sample["rows"] if row["signed"] is not None]
    assert texts
    assert all(len(text) == len("2015-01-31") for text in texts)


def test_every_form_of_a_request_is_answered_alike(bundle: Bundle) -> None:
    schema = Schema(bundle.signature)
    day, birth = "2018-12-15", "1960-05-01"
    seconds = [float(pd.Timestamp(text).timestamp()) for text in (day, birth)]
    table = pd.DataFrame({"rooms": [3.0], "signed": [seconds[0]], "born": [seconds[1]]})
    expected = answers(bundle, inputs_from_table(bundle.signature, table))
    row = {"rooms": 3, "signed": day, "born": birth}
    csv = csv_rows(f"signed,rooms,born\n{day},3,{birth}\n".encode(), bundle.signature, header=True, limit=9)
    columns = [
        {"name": "rooms", "datatype": "INT64", "shape": [1], "data": [3]},
        {"name": "signed", "datatype": "BYTES", "shape": [1], "data": [day]},
        {"name": "born", "datatype": "INT64", "shape": [1], "data": [int(seconds[1])]},
    ]
    numeric = {"name": "numeric", "datatype": "FP32", "shape": [1, 1], "data": [3]}
    forms = [
        schema.rows({"rows": [row]}, limit=9),
        schema.rows({"rows": [{**row, "signed": f"{day}T00:00:00.000"}]}, limit=9),
        schema.rows({"rows": [{**row, "born": seconds[1]}]}, limit=9),
        schema.rows({"rows": csv}, limit=9),
        schema.infer({"inputs": columns}, limit=9),
        schema.infer({"inputs": [numeric, dates("FP64", seconds)]}, limit=9),
        schema.infer({"inputs": [numeric, dates("BYTES", [day, birth])]}, limit=9),
    ]
    assert [answers(bundle, form.inputs) for form in forms] == [expected] * len(forms)
    assert not any(form.notes for form in forms)


@pytest.fixture(scope="module")
def gateway(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A gateway in a process of its own."""
    files = ServiceFiles(tmp_path_factory.mktemp("state") / "services" / "rents")
    files.write_desired(Desired(1, True, GatewaySettings("rents", port=(port := free_port()), log=False)))
    champion = Variant("champion", bundle.manifest.version, bundle.manifest.identity, str(bundle.path))
    files.write_table(RoutingTable("rents", 1, (champion,)))
    command = [sys.executable, "-m", "tests.support.replica_process", str(files.folder), "r1", ""]
    process = subprocess.Popen(command, cwd=ROOT)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

        def is_ready() -> bool:
            assert process.poll() is None, "the gateway has ended"
            with contextlib.suppress(httpx.TransportError):
                return client.get("/v2/health/ready").status_code == 200
            return False

        try:
            wait_for(is_ready, 120, "the gateway", poll=0.1)
            yield client
        finally:
            process.kill()
            process.wait()


def assert_same_predictions(reply: httpx.Response, expected: np.ndarray) -> None:
    """A reply writes a number with as many digits as tell FP32 numbers apart."""
    answered = np.array([row["prediction"] for row in reply.json()["predictions"]], dtype=np.float32)
    np.testing.assert_array_equal(answered, expected)


def test_a_gateway_process_answers_the_texts_of_the_file_as_the_run_did(bundle: Bundle, gateway: httpx.Client) -> None:
    """The test rows of the source, as they are written there, against what the run predicted for them."""
    state = bundle.path.parents[2]
    source = pd.read_csv(state.parent / "rows.csv", dtype={"signed": str, "born": str}, keep_default_na=False)
    (split,), (predicted,) = state.glob("objects/*/split.npy"), state.glob("objects/*/predictions.parquet")
    test = source.iloc[np.flatnonzero(np.load(split) == 2)]
    unreadable, missing = int((test["signed"] == "soon").sum()), int((test["born"] == "").sum())
    assert min(unreadable, missing) > 0
    expected = pd.read_parquet(predicted)["prediction"].to_numpy(np.float32)
    assert len(set(expected.tolist())) > 100
    rows = test.drop(columns="price").to_dict(orient="records")
    reply = gateway.post("/predict", json={"rows": rows})
    assert reply.status_code == 200, reply.text
    assert_same_predictions(reply, expected)
    assert reply.json()["notes"] == {"unreadable_dates": {"signed": unreadable}}
    body = test.drop(columns="price").to_csv(index=False)
    reply = gateway.post("/invocations", content=body, headers={"Content-Type": "text/csv"})
    assert reply.status_code == 200, reply.text
    assert_same_predictions(reply, expected)
    refused = gateway.post("/predict", json={"rows": [{**rows[0], "born": "1960-05-01T00:00:00Z"}]})
    assert refused.status_code == 400
    assert "row 0, column born" in refused.text


def dates(datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": "dates", "datatype": datatype, "shape": [1, 2], "data": data}


@pytest.mark.parametrize("value", ["soon", "2018-02-30", "0000-01-01", "x" * 9000, 1e300, -1e12, "2018-12-15T25:00"])
def test_what_is_no_date_is_missing_and_the_client_is_told(bundle: Bundle, value: Any) -> None:
    schema = Schema(bundle.signature)
    row = {"rooms": 3, "signed": "2018-12-15", "born": value}
    query = schema.rows({"rows": [row]}, limit=9)
    assert query.notes == {"unreadable_dates": {"born": 1}}
    missing = schema.rows({"rows": [{**row, "born": None}]}, limit=9)
    assert not missing.notes
    assert answers(bundle, query.inputs) == answers(bundle, missing.inputs)
    if isinstance(value, float):  # a tensor goes to the graph as it is
        inputs = [{"name": "numeric", "datatype": "FP32", "shape": [1, 1], "data": [3]}]
        given = schema.infer({"inputs": [*inputs, dates("FP64", [1544832000, value])]}, limit=9)
        assert given.notes == query.notes
        assert answers(bundle, given.inputs) == answers(bundle, missing.inputs)


@pytest.mark.parametrize("value", ["2018-12-15T10:00:00Z", "2018-12-15T10:00+02:00", True, [1], {"a": 1}])
def test_another_clock_or_another_type_is_refused(bundle: Bundle, value: Any) -> None:
    with pytest.raises(RequestError, match="row 0, column born") as caught:
        Schema(bundle.signature).rows({"rows": [{"rooms": 3, "signed": "2018-12-15", "born": value}]}, limit=9)
    assert caught.value.status == 400


def test_monitoring_judges_missing_dates_and_not_that_time_goes_by(bundle: Bundle) -> None:
    reference = json.loads((bundle.path / "evidence" / "monitor.json").read_text())["columns"]
    assert len(reference["rooms"]["cells"]["edges"]) > 2
    assert len(reference["signed"]["cells"]["edges"]) == 2
    below, all_dates, above, missing = reference["signed"]["counts"]
    assert below == above == 0
    assert all_dates > 500
    assert 0 < missing <= 10


def test_typed_times_and_texts_give_the_same_table(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("csv", "parquet")]
    versions = []
    for folder in folders:
        folder.mkdir()
        mk.run(write(folder, rows(200), kind=folder.name), until="data").raise_for_status()
        (described,) = folder.rglob("table.json")
        versions.append(json.loads(described.read_text())["data_version"])
    assert versions[0] == versions[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: "2020-01-01T00:00:00Z"}, "mixes dates with and without an offset from UTC: 1 of 200"),
        (dict.fromkeys(range(150), "31/01/2020"), "150 of 200 values"),
        ({row: str(20200101 + row % 28) for row in range(200)}, "days written as one number"),
    ],
)
def test_dates_that_cannot_be_right_are_refused(change: dict[int, str], message: str, tmp_path: Path) -> None:
    table = rows(200).astype({"signed": str, "born": str})
    for row, text in change.items():
        table.loc[row, "signed"] = text
    with pytest.raises(DataError, match=message):
        mk.run(write(tmp_path, table), until="data")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("signed: date, born: date", "signed: date", "'born' is not declared a date"),
        ("since: born", "since: bornn", "is no date and no column"),
        ("since: born", "since: signed", "since itself"),
        ("parts: [year, weekday]", "parts: [year, year]", "listed twice"),
        ('parts: [], age: {{since: "1970-01-01"}}', "parts: []", "nothing is left"),
        ("    signed: {{parts", "    singed: {{parts", "no column 'singed'"),
    ],
)
def test_faults_of_the_recipe(before: str, after: str, message: str, tmp_path: Path) -> None:
    assert before in RECIPE
    with pytest.raises(RecipeError) as caught:
        mk.load(write(tmp_path, rows(50), recipe=RECIPE.replace(before, after)))
    assert any(message in fault.message for fault in caught.value.faults), caught.value
