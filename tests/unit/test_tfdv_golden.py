"""Anomalies of a schema.pbtxt against those that TFDV 1.16.1 itself recorded (benchmarks/tfdv_anomalies.py)."""

from __future__ import annotations

import json
import math
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.tfdv_anomalies import columns
from mlflowkit.judging.file_checks import tfdv_judge
from mlflowkit.judging.file_checks.file_problem import FileProblem
from mlflowkit.judging.file_checks.tfdv_schema import parse_schema, read_schema

FOLDER = Path(__file__).parents[1] / "data" / "tfdv"
DOCUMENT = json.loads((FOLDER / "cases.json").read_text())
RECORDED = json.loads((FOLDER / "anomalies.json").read_text())["answers"]
CASES = {case["name"]: case for case in DOCUMENT["cases"]}

pytestmark = pytest.mark.skipif(find_spec("tensorflow_metadata") is None, reason="pip install 'mlflowkit[tfdv]'")


@cache
def table(name: str) -> pd.DataFrame:
    kinds = {int: "Int64", float: "float64", str: "str"}
    plain = columns(DOCUMENT["tables"], name)
    made = {}
    for key, values in plain.items():
        kind = kinds[next((type(item) for item in values if item is not None), str)]
        made[key] = pd.Series(values, dtype=kind)
    return pd.DataFrame(made)


def compared(name: str | None, schema: Any) -> tfdv_judge.ComparedTable | None:
    if name is None:
        return None
    other = table(name)
    return tfdv_judge.ComparedTable(len(other), tfdv_judge.count_values(other, schema))


def anomalies(case: dict[str, Any]) -> list[tfdv_judge.TfdvAnomaly]:
    schema = parse_schema(case["schema"])
    assert not isinstance(schema, FileProblem)
    others = compared(case["previous"], schema), compared(case["serving"], schema)
    return tfdv_judge.judge_table(table(case["table"]), schema, case["environment"], *others)


REFUSED = {"no_control": "the check names none"}
"""Cases whose schema `read_schema` refuses before any data are read, and words of why."""


STRICTER = {"bool_domain_int": ["n", "BOOL_TYPE_BIG_INT"], "examples_high_alone": ["", "DATASET_HIGH_NUM_EXAMPLES"]}
"""What TFDV leaves out: it counts integers with a bool_domain as texts and looks at their minimum and maximum, which
are 0 then; and it reads max_examples_count only beside min_examples_count."""


@pytest.mark.parametrize("name", CASES)
def test_anomalies_are_those_of_tfdv(name: str) -> None:
    case, recorded = CASES[name], RECORDED[name]
    problems = read_schema(case["schema"], environment=case["environment"], serving=case["serving"] or "").problems
    if name in REFUSED:
        assert [REFUSED[name] in problem.message for problem in problems] == [True], problems
        return
    assert problems == ()
    ours = sorted([item.feature, item.reason] for item in anomalies(case))
    theirs = sorted([feature, reason] for feature, reason, _ in recorded["reasons"])
    if name in STRICTER:
        assert ours == [STRICTER[name]]
        assert theirs == []
    else:
        assert ours == theirs


@pytest.mark.parametrize("name", [name for name, answer in RECORDED.items() if answer["measured"]])
def test_distances_are_those_of_tfdv(name: str) -> None:
    """Of texts to the last digit; of numbers nearly, since TFDV's histograms come from a sketch of the quantiles."""
    case = CASES[name]
    schema: Any = parse_schema(case["schema"])
    ours, theirs = (compared(case[key], schema) for key in ("table", "previous" if case["previous"] else "serving"))
    assert ours is not None
    assert theirs is not None
    feature, recorded = RECORDED[name]["measured"][0]
    measure = tfdv_judge.l_infinity if name.startswith("linf") else tfdv_judge.jensen_shannon
    distance = measure(ours.features[feature], theirs.features[feature])
    assert math.isclose(distance, recorded, abs_tol=0.01 if "number" in name or "int_skew" in name else 1e-9)
