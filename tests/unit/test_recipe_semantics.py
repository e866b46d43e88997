"""Keys that contradict each other, and names of things that are not there: each pair refused, at one of the two."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlflowkit.errors import RecipeError
from mlflowkit.recipe.check import examine, load
from mlflowkit.recipe.rules import problems

RECIPE = """\
name: loans
task: classification
data:
  source: {kind: csv, path: loans.csv}
  target: bad
  positive: 1
  columns: {grade: categorical, term: categorical, when: time}
  drop: [id]
  split: {kind: stratified, validation: 0.15, test: 0.15}
  checks:
    - {kind: range, column: rate, min: 0, max: 40}
    - {kind: nulls, column: rate}
    - {kind: unique, columns: [id]}
model:
  kind: torch
  module: mlflowkit.models:TabularMLP
train:
  epochs: 10
  optimizer: {name: sgd, momentum: 0.8}
  schedule: {name: step, step_epochs: 3}
  class_weights: balanced
optimize: {candidates: [onnx, onnx-int8], metric: roc_auc}
gates:
  - {metric: roc_auc, min: 0.7}
  - {metric: roc_auc, against: champion, margin: 0.01}
  - {metric: f1, min: 0.1, slice: {column: grade}}
  - {metric: latency_p99_ms, max: 5}
"""

CODE = """\
import numpy as np
LIMIT = 3
def load(): ...
def some(path, *, rows=3): ...
def any(**options): ...
class Net: ...
class Wide:
    def __init__(self, features: int, outputs: int, width: int, depth: int = 2) -> None: ...
if LIMIT:
    def late(): ...
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("semantics")
    (folder / "loans.csv").write_text("id,rate,bad,grade,term,when\n1,2,0,A,36,2024-01-31\n")
    (folder / "empty").mkdir()
    (folder / "code.py").write_text(CODE)
    (folder / "broken.py").write_text("def load(:\n")
    return folder


def test_the_recipe_has_no_contradiction(folder: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE)
    assert load(path).recipe.name == "loans"


SOURCE = "kind: csv, path: loans.csv"

# (what is replaced, by what, where the fault is: the text that starts there, the key, a word of the message or hint)
CASES = [
    # gates
    ("{metric: roc_auc, min: 0.7}", "{metric: rmse, min: 0.7}", "rmse, min", "gates.0.metric", "classification has no"),
    ("{metric: roc_auc, min: 0.7}", "{metric: roc_acu, min: 0.7}", "roc_acu", "gates.0.metric", "did you mean roc_auc"),
    ("{metric: roc_auc, min: 0.7}", "{metric: roc_auc}", "{metric: roc_auc}", "gates.0", "min or max"),
    ("min: 0.7", "min: 70", "70", "gates.0.min", "0.7"),
    ("min: 0.7", "min: 0.7, max: 0.6", "0.6", "gates.0.max", "below min"),
    ("min: 0.7", "max: -1", "-1", "gates.0.max", "never passes"),
    ("min: 0.7", "min: 0.7, margin: 0.1", "0.1}", "gates.0.margin", "belongs to against"),
    ("margin: 0.01", "margin: 0.01, min: 0.5", "champion", "gates.1.against", "two gates"),
    ("max: 5}", "against: champion}", "champion}\n", "gates.3.against", "latency"),
    ("max: 5}", "max: 5, slice: {column: grade}}", "{column: grade}}\n", "gates.3.slice", "latency"),
    (
        "{metric: latency_p99_ms, max: 5}",
        "{metric: roc_auc, min: 0.7}",
        "{metric: roc_auc, min: 0.7}\n",
        "gates.3",
        "same",
    ),
    # slices
    ("slice: {column: grade}", "slice: {column: grad}", "grad}", "gates.2.slice.column", "did you mean grade"),
    ("slice: {column: grade}", "slice: {column: region}", "region", "gates.2.slice.column", "data.columns"),
    ("slice: {column: grade}", "slice: {column: bad}", "bad}", "gates.2.slice.column", "target"),
    ("slice: {column: grade}", "slice: {column: id}", "id}", "gates.2.slice.column", "dropped"),
    # a column that is kept out of the model is kept for gates
    ("grade: categorical, term", "grade: ignore, term", None, "", ""),
    # checks of the whole table
    ("- {kind: nulls, column: rate}", "- {kind: rows}", "{kind: rows}", "data.checks.1", "min_ratio: 0.5"),
    ("- {kind: nulls, column: rate}", "- {kind: leakage, time: true}", "true}", "data.checks.1.time", "time: COLUMN"),
    ("- {kind: nulls, column: rate}", "- {kind: leakage, time: id}", "id}", "data.checks.1.time", "dropped"),
    (
        "- {kind: nulls, column: rate}",
        "- {kind: leakage, duplicates: null, single_feature: null}",
        "{kind: leakage",
        "data.checks.1",
        "for nothing",
    ),
    (
        "- {kind: nulls, column: rate}",
        "- {kind: drift, columns: [when]}",
        "when]}",
        "data.checks.1.columns.0",
        "no feature",
    ),
    (
        "- {kind: nulls, column: rate}",
        "- {kind: drift}\n    - {kind: drift, max: 0.2}",
        "{kind: drift, max",
        "data.checks.2",
        "a second drift check",
    ),
    (
        "- {kind: nulls, column: rate}",
        "- {kind: leakage}\n    - {kind: drift}\n    - {kind: rows, max_ratio: 2}",
        None,
        "",
        "",
    ),
    # fairness
    (
        "{metric: roc_auc, min: 0.7}",
        "{metric: roc_auc, fair: {column: grade, min_ratio: 0.8}}",
        "roc_auc, fair",
        "gates.0.metric",
        "write recall",
    ),
    (
        "{metric: roc_auc, min: 0.7}",
        "{metric: equal_opportunity, fair: {column: grade, min_ratio: 0.8}}",
        "equal_opportunity",
        "gates.0.metric",
        "did you mean recall",
    ),
    (
        "{metric: roc_auc, min: 0.7}",
        "{metric: recall, fair: {column: grade}}",
        "{column: grade}}\n  - {metric: roc_auc",
        "gates.0.fair",
        "max_difference or min_ratio",
    ),
    (
        "{metric: roc_auc, min: 0.7}",
        "{metric: recall, fair: {column: grade, min_ratio: 0.8, max_difference: 0.1}}",
        "{column: grade, min",
        "gates.0.fair",
        "two gates",
    ),
    (
        "{metric: roc_auc, min: 0.7}",
        "{metric: recall, max: 0.3, fair: {column: grade, min_ratio: 0.8}}",
        "0.3, fair",
        "gates.0.max",
        "drop max",
    ),
    (
        "{metric: roc_auc, min: 0.7}",
        "{metric: selection_rate, max: 0.3}",
        "{metric: selection_rate",
        "gates.0",
        "add fair",
    ),
    (
        "{metric: roc_auc, min: 0.7}",
        "{metric: recall, fair: {column: grad, min_ratio: 0.8}}",
        "grad, min",
        "gates.0.fair.column",
        "did you mean grade",
    ),
    (
        "{metric: roc_auc, min: 0.7}",
        "{metric: recall, fair: {column: id, min_ratio: 0.8}}",
        "id, min_ratio",
        "gates.0.fair.column",
        "ignore",
    ),
    (
        "{metric: roc_auc, min: 0.7}",
        "{metric: recall, fair: {column: grade, min_ratio: 0.8, groups: [A, B, A]}}",
        "A]}}",
        "gates.0.fair.groups.2",
        "twice",
    ),
    # split
    ("test: 0.15", "test: 0.9", "0.9", "data.split.test", "1.05"),
    ("kind: stratified,", "kind: group, column: bad,", "bad,", "data.split.column", "target"),
    ("kind: stratified,", "kind: time, column: grade,", "categorical, term", "data.columns.grade", "time split"),
    ("kind: stratified,", "kind: group, column: id,", "id]\n  split", "data.drop.0", "no feature anyway"),
    # columns
    ("drop: [id]", "drop: [id, bad]", "bad]", "data.drop.1", "target"),
    ("drop: [id]", "drop: [id, id]", "id]\n  split", "data.drop.1", "twice"),
    ("drop: [id]", "drop: [id, term]", "term]", "data.drop.1", "declared categorical"),
    ("when: time", "bad: numeric", "bad: numeric", "data.columns.bad", "target"),
    # checks
    (", min: 0, max: 40", "", "{kind: range", "data.checks.0", "min or max"),
    ("max: 40", "max: -40", "-40", "data.checks.0.max", "swap"),
    ("column: rate, min", "column: grade, min", "grade, min", "data.checks.0.column", "allowed"),
    ("columns: [id]", "columns: [id, id]", "id]}", "data.checks.2.columns.1", "twice"),
    (
        "{kind: unique, columns: [id]}",
        "{kind: nulls, column: rate}",
        "{kind: nulls, column: rate}\nmodel",
        "data.checks.2",
        "second",
    ),
    # train
    ("momentum: 0.8", "weight_decay: 0, momentum: 0.8", None, "", ""),
    ("{name: sgd, momentum: 0.8}", "{name: adam, momentum: 0.8}", "momentum", "train.optimizer.momentum", "sgd"),
    ("{name: sgd, momentum: 0.8}", "{momentum: 0.8}", "momentum", "train.optimizer.momentum", "adamw"),
    ("{name: step, step_epochs: 3}", "{name: cosine, gamma: 0.5}", "gamma", "train.schedule.gamma", "step"),
    ("{name: step, step_epochs: 3}", "{warmup_epochs: 3}", "warmup", "train.schedule.warmup_epochs", "none ignores"),
    (
        "{name: step, step_epochs: 3}",
        "{name: cosine, warmup_epochs: 10}",
        "10}",
        "train.schedule.warmup_epochs",
        "less",
    ),
    ("class_weights: balanced", "class_weights: {0: 1.0, 1: -2}", "-2", "train.class_weights.1", "> 0"),
    ("class_weights: balanced", "class_weights: {0: 1.0, 1: 0}", "0}", "train.class_weights.1", "above 0"),
    ("epochs: 10", "epochs: 10\n  batch_size: 2\n  workers: 4", "2\n", "train.batch_size", "4 workers"),
    # optimize
    ("[onnx, onnx-int8]", "[onnx, onnx]", "onnx],", "optimize.candidates.1", "twice"),
    ("metric: roc_auc}\n", "metric: latency_p99_ms}\n", "latency_p99_ms}\n", "optimize.metric", "no metric"),
    ("metric: roc_auc}\n", "metric: mae}\n", "mae", "optimize.metric", "classification has no"),
    # serve
    ("name: loans\n", "name: loans\nserve: {service: a, host: 0.0.0.0}\n", "0.0.0.0", "serve.host", "mlkit key create"),
    ("name: loans\n", "name: loans\nserve: {service: a, host: '::1'}\n", None, "", ""),
    ("name: loans\n", "name: loans\nserve: {service: a, host: '::', auth: {keys_env: K}}\n", None, "", ""),
    (
        "name: loans\n",
        "name: loans\nserve: {service: a, auth: {keys: k.json, keys_env: K}}\n",
        "K}}",
        "serve.auth.keys_env",
        "remove one",
    ),
    (
        "name: loans\n",
        "name: loans\nserve: {service: a, routing: {affinity: cookie}}\n",
        "cookie}",
        "serve.routing.affinity",
        "the cookie's name",
    ),
    (
        "name: loans\n",
        "name: loans\nserve: {service: a, routing: {name: user}}\n",
        "user}",
        "serve.routing.name",
        "affinity: header",
    ),
    # model and what it names
    ("mlflowkit.models:TabularMLP", "sklearn.svm:SVC", "sklearn.svm", "model.module", "kind: sklearn"),
    ("mlflowkit.models:TabularMLP", "mlflowkit.models:TabularMPL", "mlflowkit", "model.module", "models:TabularMLP"),
    ("mlflowkit.models:TabularMLP", "os.path:join", "os.path", "model.module", "neither beside"),
    ("mlflowkit.models:TabularMLP", "coed:Net", "coed", "model.module", "did you mean code:Net"),
    ("mlflowkit.models:TabularMLP", "code:Nett", "code:Nett", "model.module", "did you mean code:Net"),
    ("mlflowkit.models:TabularMLP", "code:Net", None, "", ""),
    ("mlflowkit.models:TabularMLP", "broken:Net", "broken", "model.module", "broken.py:1"),
    ("TabularMLP", "TabularMLP\n  args: {hiden: [3]}", "hiden", "model.args.hiden", "did you mean hidden"),
    ("mlflowkit.models:TabularMLP", "code:Wide", "code:Wide", "model.module", "add model.args: {width: ...}"),
    ("mlflowkit.models:TabularMLP", "code:Wide\n  args: {width: 3}", None, "", ""),
    (
        "mlflowkit.models:TabularMLP",
        "code:Wide\n  args: {width: 3, features: 2}",
        "features",
        "model.args.features",
        "no",
    ),
    # sources
    ("path: loans.csv", "path: loan.csv", "loan.csv", "data.source.path", "loans.csv"),
    ("path: loans.csv", "path: empty", "empty", "data.source.path", "*.csv"),
    ("path: loans.csv", "path: '*.csv'", None, "", ""),
    ("path: loans.csv", "path: '*.tsv'", "'*.tsv'", "data.source.path", "shows what there is for"),
    ("kind: csv, path: loans.csv", "kind: python, function: 'code:load'", None, "", ""),
    ("kind: csv, path: loans.csv", "kind: python, function: 'code:late'", None, "", ""),
    (SOURCE, "kind: python, function: 'code:any', args: {x: 1}", None, "", ""),
    (SOURCE, "kind: python, function: 'code:some', args: {path: x}", None, "", ""),
    (SOURCE, "kind: python, function: 'code:some', args: {row: 1, path: x}", "row:", "data.source.args.row", "rows"),
    (SOURCE, "kind: python, function: 'code:some', args: {rows: 1}", "'code:some'", "data.source.function", "'path'"),
    (SOURCE, "kind: python, function: 'code:load', files: [loans.csv, '*.csv', .]", None, "", ""),
    (SOURCE, "kind: python, function: 'code:load', files: [loan.csv]", "loan.csv", "data.source.files.0", "loans.csv"),
    (SOURCE, "kind: python, function: 'code:load', files: [., '*.tsv']", "'*.tsv'", "data.source.files.1", "no file"),
    (SOURCE, "kind: python, function: 'code:load', files: [empty]", "empty", "data.source.files.0", "no file in"),
    ("kind: csv, path: loans.csv", "kind: python, function: 'code:laod'", "'code", "data.source.function", "code:load"),
    (
        "kind: csv, path: loans.csv",
        "kind: python, function: 'os:getcwd'",
        "'os",
        "data.source.function",
        "os.py beside",
    ),
    (
        "kind: csv, path: loans.csv",
        "kind: python, function: 'broken:load'",
        "'broken",
        "data.source.function",
        "not Python",
    ),
]


@pytest.mark.parametrize(
    ("old", "new", "start", "key", "word"), CASES, ids=[f"{i}-{c[1][:40]}" for i, c in enumerate(CASES)]
)
def test_contradiction(old: str, new: str, start: str | None, key: str, word: str, folder: Path) -> None:
    path = folder / "case.yaml"
    assert RECIPE.count(old) >= 1
    text = RECIPE.replace(old, new) if old.startswith("metric") else RECIPE.replace(old, new, 1)
    path.write_text(text)
    if start is None:
        assert load(path)
        return
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert [fault.key for fault in caught.value.faults] == [key], [str(fault) for fault in caught.value.faults]
    fault = caught.value.faults[0]
    offset = sum(len(line) + 1 for line in text.splitlines()[: fault.line - 1]) + fault.column - 1
    assert text[offset:].startswith(start), (text[offset : offset + 20], str(fault))
    assert re.search(re.escape(word), f"{fault.message} | {fault.hint}"), f"{fault.message} | {fault.hint}"
    assert fault.hint


REGRESSION = [
    ("data.split.kind", "random"),
    ("data.positive", "remove"),
    ("train.class_weights", "remove"),
    ("optimize.metric", "write rmse"),
    ("gates.0.metric", "write rmse"),
    ("gates.1.metric", "write rmse"),
    ("gates.2.metric", "write rmse"),
]


def test_everything_that_a_regression_has_not_is_reported_at_once(folder: Path) -> None:
    path = folder / "regression.yaml"
    path.write_text(RECIPE.replace("task: classification", "task: regression"))
    with pytest.raises(RecipeError) as caught:
        load(path)
    hints = {fault.key: fault.hint for fault in caught.value.faults}
    assert set(hints) == {key for key, _ in REGRESSION}
    for key, hint in REGRESSION:
        assert hint in hints[key]


@pytest.mark.parametrize(
    "name", ["epochs", "batch_size", "optimizer", "schedule", "early_stopping", "clip_norm", "workers"]
)
def test_scikit_learn_ignores_nothing_silently(name: str) -> None:
    values = {
        "model": {"kind": "sklearn", "module": "sklearn.svm:SVC"},
        "train": {name: 3, "class_weights": "balanced"},
    }
    violated = problems(values)
    assert [problem.path for problem in violated] == [("train", name)]
    assert "model.args" in violated[0].hint


@pytest.mark.parametrize(
    "module", ["sklearn.ensemble:RandomForestClassifier", "sklearn.linear_model:LogisticRegression"]
)
def test_arguments_of_estimators_are_read_without_importing_them(module: str, folder: Path) -> None:
    path = folder / "estimator.yaml"
    model = f"model:\n  kind: sklearn\n  module: {module}\n  args: {{random_state: 1, max_iters: 3}}\n"
    text = RECIPE[: RECIPE.index("model:")] + model + RECIPE[RECIPE.index("optimize:") :]
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert [fault.key for fault in caught.value.faults] == ["model.args.max_iters"]


def test_an_estimator_for_the_other_task_is_refused_with_its_counterpart() -> None:
    model = {"kind": "sklearn", "module": "sklearn.ensemble:RandomForestRegressor"}
    violated = problems({"task": "classification", "model": model})
    assert violated[0].path == ("model", "module")
    assert "sklearn.ensemble:RandomForestClassifier" in violated[0].hint


def test_a_closed_schema_check_knows_every_column(folder: Path) -> None:
    closed = "    - {kind: schema, columns: {rate: float, bad: int, grade: string, term: float, when: datetime}}\n"
    path = folder / "closed.yaml"
    path.write_text(RECIPE.replace("  checks:\n", "  checks:\n" + closed))
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert {fault.key for fault in caught.value.faults} == {
        "data.drop.0",
        "data.checks.3.columns.0",
        "data.columns.term",
    }
    path.write_text(RECIPE.replace("  checks:\n", "  checks:\n" + closed.replace("}}", "}, extra: allow}")))
    assert load(path)


def test_judgement_needs_no_well_formed_recipe() -> None:
    broken = {
        "task": 3,
        "data": {"split": [], "checks": [1, {"kind": []}], "columns": 3, "drop": {}},
        "gates": [None, {}, {"slice": 3}],
    }
    assert {problem.path for problem in problems(broken)} == {("gates", 1), ("gates", 2)}
    assert problems(None) == []


OPTIMIZE = "optimize: {candidates: [onnx, onnx-int8], metric: roc_auc}"
OPTIMIZE_FAULTS = [
    ("{candidates: [onnx, {name: same, passes: []}]}", "optimize.candidates.1", "same passes, same engine"),
    ("{candidates: [{name: onnx, passes: [{kind: int8}]}]}", "optimize.candidates.0.name", "mlflowkit's own"),
    (
        "{candidates: [onnx, {name: a, passes: [{kind: int8-dynamic}], engine: {runtime: tensorrt}}]}",
        "optimize.candidates.1",
        "TensorRT takes no dynamic quantisation",
    ),
    ("{candidates: [onnx, onyx]}", "optimize.candidates.1", "did you mean onnx?"),
    ("{candidates: [{name: a, engine: {thread: 2}}]}", "optimize.candidates.0.engine.thread", "did you mean threads?"),
    ("{candidates: [{name: a, passes: [{kind: int9}]}]}", "optimize.candidates.0.passes.0.kind", "did you mean int8?"),
    ("{objective: cost}", "optimize.objective", "add cost_per_hour"),
    ("{objective: latency_p90}", "optimize.objective", "did you mean latency_p99?"),
    ("{search: {method: optuna}}", "optimize.search.method", "there is none"),
    ("{search: {space: {threads: [1, 2, 1]}}}", "optimize.search.space.threads.2", "listed twice"),
    ("{search: {space: {threads: [0]}}}", "optimize.search.space.threads.0", "an integer >= 1"),
    ("{search: {space: {passes: []}}}", "optimize.search.space.passes", "at least one item"),
    (
        "{search: {space: {passes: [[{kind: int8-dynamic}]], runtime: [tensorrt]}}}",
        "optimize.search.space",
        "none of its candidates can be",
    ),
]


@pytest.mark.parametrize(("section", "key", "text_part"), OPTIMIZE_FAULTS)
def test_what_is_wrong_with_candidates_and_their_search_is_said_at_its_place(
    section: str, key: str, text_part: str, tmp_path: Path
) -> None:
    text = RECIPE.replace(OPTIMIZE, f"optimize: {section}")
    assert text != RECIPE
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    faults = [fault for fault in examine(path).faults if fault.key.startswith("optimize")]
    assert [fault.key for fault in faults] == [key]
    assert text_part in f"{faults[0].message} {faults[0].hint}"
    assert faults[0].line == 1 + text[: text.index("optimize:")].count("\n")
