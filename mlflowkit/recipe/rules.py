"""Rules of a recipe: keys that contradict each other. Pure functions of plain values, all evaluated.

A rule takes a `RecipeView`, which returns None for values of a wrong type, so that rules work on faulty recipes too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from pydantic import ValidationError

from mlflowkit.errors import closest_match
from mlflowkit.graphs.candidates import NAMED, Candidate, Engine
from mlflowkit.graphs.imported_graph import ROLES
from mlflowkit.judging import metrics
from mlflowkit.judging.fairness import ONLY_FAIR
from mlflowkit.optimization.space import MAX_COMBINATIONS, Space, candidates_of, key_of, reason_impossible
from mlflowkit.recipe.rule import Problem, RecipeView, Rule
from mlflowkit.recipe.yaml_tree import KeyPath, format_value
from mlflowkit.system import entry_points
from mlflowkit.system.entry_points import METRICS
from mlflowkit.values import Json

TORCH_ONLY = ("epochs", "batch_size", "optimizer", "schedule", "early_stopping", "clip_norm", "precision",
              "shards", "workers", "max_failures", "checkpoint_every")  # fmt: skip
"""Keys of train that scikit-learn ignores."""
OUTPUT_ROLES = tuple(role for roles in ROLES.values() for role in roles)
"""Output roles of imported graphs, of any task."""
MAX_EXHAUSTIVE = 1000
"""Most candidates of an exhaustive search."""
DECISION_WAYS = ("threshold", "maximize", "costs", "rate")
"""Keys of decision, of which there is one."""
KIND_OF_TYPE = {"string": ("categorical",), "datetime": ("time",), "float": ("numeric",)}
"""Column kinds of a declared type besides group and ignore; other types can have any kind."""


def problems(values: Json) -> list[Problem]:
    """All violated rules.

    >>> violated = problems({"task": "regression", "data": {"split": {"kind": "stratified"}}})
    >>> violated[0].path, violated[0].message
    (('data', 'split', 'kind'), 'a stratified split needs classes; a regression has none')
    """
    from mlflowkit.recipe.section_rules import (
        check_rules,
        delivery_rules,
        fairness_rules,
        monitor_rules,
        preprocess_rules,
        rollout_rules,
        source_rules,
    )

    view = RecipeView(values)
    modules = (
        check_rules,
        fairness_rules,
        preprocess_rules,
        rollout_rules,
        monitor_rules,
        delivery_rules,
        source_rules,
    )
    sections = [rule for module in modules for rule in module.RULES]
    return [problem for rule in (*RULES, *sections) for problem in rule(view)]


RATIOS = dict(zip(metrics.LATENCY, metrics.LATENCY_RATIOS, strict=True))
"""The ratio in place of each latency in milliseconds."""


def metrics_of(task: str) -> tuple[str, ...]:
    """The metrics of a task; all metrics for an unknown task."""
    if task == "regression":
        return (*metrics.REGRESSION, *metrics.TIMES)
    if task == "classification":
        return (*metrics.BINARY, *metrics.CLASSIFICATION, *metrics.TIMES)
    return (*metrics.BINARY, *metrics.CLASSIFICATION, *metrics.REGRESSION, *metrics.TIMES)


def _metric(view: RecipeView, path: KeyPath, allowed: Sequence[str]) -> Iterator[Problem]:
    """A metric that the task does not have."""
    metric = view.text(*path)
    if not metric or metric in allowed:
        return
    if not metrics.is_built_in(metric) and entry_points.find(METRICS, metric) is not None:
        if view.task in ("classification", "regression") and not metrics.is_defined(metric, view.task):
            yield Problem(path, f"a {view.task} has no metric {metric!r}", f"write {allowed[0]}")
        return
    close = closest_match(metric, allowed)
    elsewhere = metric in metrics_of("")
    message = f"a {view.task} has no metric {metric!r}" if elsewhere and view.task else f"unknown metric {metric!r}"
    hint = f"did you mean {close}?" if close and not elsewhere else f"write {allowed[0]}"
    if not closest_match(metric, metrics_of("")):
        hint = f"{hint}, or {entry_points.install_hint(METRICS, metric)}"
    yield Problem(path, f"{message}; there are {', '.join(allowed)}", hint)


def _gates(view: RecipeView) -> Iterator[Problem]:
    allowed = metrics_of(view.task)
    for index, gate in enumerate(view.items("gates")):
        if not isinstance(gate, dict):
            continue
        path = ("gates", index)
        if gate.get("fair") is not None or gate.get("metric") in ONLY_FAIR:
            continue  # fairness_rules
        yield from _metric(view, (*path, "metric"), allowed)
        yield from _gate_form(view, path, gate)
        yield from _gate_reach(view, path, gate)
        earlier = [other for other in range(index) if view.get("gates", other) == gate]
        if earlier:
            yield Problem(path, f"the same gate as gates.{earlier[0]}", "remove one of them")


def _gate_form(view: RecipeView, path: KeyPath, gate: Mapping[str, Any]) -> Iterator[Problem]:
    """A value threshold has min or max, a change threshold has against and margin, a ratio max; nothing else."""
    bounds = [name for name in ("min", "max") if gate.get(name) is not None]
    against = gate.get("against") is not None
    if str(gate.get("metric")) in metrics.LATENCY_RATIOS:
        yield from _ratio_form(path, gate)
        return
    if not bounds and not against:
        better = "max" if metrics.lower_is_better(str(gate.get("metric"))) else "min"
        message = "a gate needs min or max (a value threshold), or against (a change threshold)"
        yield Problem(path, message, f"add {better}: to it, or against: champion")
    metric = gate.get("metric")
    may_be_ratio = not isinstance(metric, str) or not (
        metrics.is_built_in(metric) or entry_points.find(METRICS, metric)
    )
    if bounds and against and not may_be_ratio:
        message = f"against and {bounds[0]} in one gate: a gate is a change threshold or a value threshold"
        yield Problem((*path, "against"), message, "make two gates of it")
    elif gate.get("against") == "float":
        yield Problem((*path, "against"), "only a latency ratio is against the float graph", "write champion")
    if "margin" in gate and not against:
        yield Problem((*path, "margin"), "margin belongs to against", "add against: champion, or drop margin")
    low, high = view.number(*path, "min"), view.number(*path, "max")
    if low is not None and high is not None and low > high:
        message = f"max {format_value(high)} is below min {format_value(low)}: no value passes"
        yield Problem((*path, "max"), message, "swap them")


def _ratio_form(path: KeyPath, gate: Mapping[str, Any]) -> Iterator[Problem]:
    """A latency ratio has max, against and nothing else."""
    if gate.get("max") is None:
        message = f"{gate['metric']} needs max: how many times the other graph's latency is allowed"
        yield Problem(path, message, "add max: 1.5")
    for name in ("min", "margin", "slice"):
        if gate.get(name) is not None:
            message = f"{gate['metric']} has no {name}: it is judged by max alone, for all rows"
            yield Problem((*path, name), message, f"drop {name}")


def _gate_reach(view: RecipeView, path: KeyPath, gate: Mapping[str, Any]) -> Iterator[Problem]:
    """Thresholds that no value meets; latency by slice or as a difference; machine where it means nothing."""
    metric = str(gate.get("metric"))
    low, high = view.number(*path, "min"), view.number(*path, "max")
    floor, ceiling = metrics.limits(metric)
    if low is not None and low > ceiling == 1:
        hint = f"as a share: {format_value(low / 100)}" if 1 < low <= 100 else "write a number up to 1"
        yield Problem((*path, "min"), f"{metric} is at most 1: min {format_value(low)} never passes", hint)
    if high is not None and high < floor == 0:
        message = f"{metric} is at least 0: max {format_value(high)} never passes"
        yield Problem((*path, "max"), message, "write a number above 0")
    if metric in metrics.LATENCY:
        if gate.get("slice") is not None:
            message = "a latency gate has no slice: latency is measured on the machine of the run, for all rows"
            yield Problem((*path, "slice"), message, "give it max: MILLISECONDS only")
        if gate.get("against") is not None:
            message = f"{metric} has no against: milliseconds of different moments do not compare"
            hint = f"compare in the same rounds: metric: {RATIOS[metric]}, against: champion, max: 1.5"
            yield Problem((*path, "against"), message, hint)
    elif gate.get("machine") is not None:
        yield Problem((*path, "machine"), f"{metric} does not depend on a machine's class", "drop machine")


def _slices(view: RecipeView) -> Iterator[Problem]:
    """Slices and groups by an undeclared or dropped column or by the target."""
    if not view.mapping("data"):
        return
    columns = view.mapping("data", "columns")
    declared = dict.fromkeys(columns)
    for _, check in view.checks("schema"):
        declared.update(dict.fromkeys(check["columns"]) if isinstance(check.get("columns"), dict) else {})
    if column := view.text("data", "split", "column"):
        declared[column] = None
    for index, part in product(range(len(view.items("gates"))), ("slice", "fair")):
        path = ("gates", index, part, "column")
        column = view.text(*path)
        if not column:
            continue
        if column == view.text("data", "target"):
            yield Problem(path, f"{column!r} is the target: a slice is made by a feature", "name another column")
        elif column in view.items("data", "drop"):
            message = f"{column!r} is dropped: there is nothing to slice by"
            hint = f"take it out of data.drop; data.columns: {{{column}: ignore}} keeps it out of the model"
            yield Problem(path, message, hint)
        elif column not in declared:
            close = closest_match(column, list(declared))
            hint = f"did you mean {close}?" if close else f"declare it: data.columns: {{{column}: categorical}}"
            message = f"column {column!r} is declared neither in data.columns nor in a schema check"
            yield Problem(path, message, hint)


def _split(view: RecipeView) -> Iterator[Problem]:
    if view.regression and view.text("data", "split", "kind") == "stratified":
        message = "a stratified split needs classes; a regression has none"
        yield Problem(("data", "split", "kind"), message, "write kind: random")
    shares = {name: view.number("data", "split", name) for name in ("validation", "test")}
    if not view.mapping("data", "split"):
        return
    total = sum(0.15 if share is None else share for share in shares.values())
    if total >= 1 and all(share is None or 0 < share < 1 for share in shares.values()):
        name = "test" if shares["test"] is not None else "validation"
        message = f"validation and test take {total:g} of the rows: none are left to train on"
        yield Problem(("data", "split", name), message, "they sum to less than 1, such as 0.15 and 0.15")


def _target(view: RecipeView) -> Iterator[Problem]:
    """Keys that conflict with the target column."""
    target = view.text("data", "target")
    if view.regression and view.get("data", "positive") is not None:
        message = "a positive class belongs to a classification; this is a regression"
        yield Problem(("data", "positive"), message, "remove data.positive")
    if not target:
        return
    for index, column in enumerate(view.items("data", "drop")):
        if column == target:
            yield Problem(("data", "drop", index), f"{target!r} is the target: it cannot be dropped", "take it out")
    if target in view.mapping("data", "columns"):
        message = f"{target!r} is the target: it is no feature and has no kind"
        yield Problem(("data", "columns", target), message, "remove it from data.columns", at_key=True)
    if view.text("data", "split", "column") == target:
        message = f"{target!r} is the target: rows are not split by it"
        yield Problem(("data", "split", "column"), message, "name another")


def _orders(view: RecipeView) -> Iterator[Problem]:
    """Ordered columns that are declared to be another kind, dropped or the target, and values listed twice."""
    columns, drop = view.mapping("data", "columns"), view.items("data", "drop")
    for name, order in view.mapping("data", "orders").items():
        path = ("data", "orders", name)
        if columns.get(name, "categorical") != "categorical":
            message = f"{name!r} has an order and is declared {columns[name]} in data.columns"
            yield Problem(path, message, "a column with an order is categorical", at_key=True)
        if name in drop or name == view.text("data", "target"):
            what = "dropped" if name in drop else "the target"
            yield Problem(path, f"{name!r} has an order and is {what}", "remove one of them", at_key=True)
        texts = [str(value) for value in order] if isinstance(order, list) else []
        repeated = sorted({text for text in texts if texts.count(text) > 1})
        if repeated:
            yield Problem(path, f"{repeated[0]!r} is listed twice", "list each value once", at_key=True)


def _columns(view: RecipeView) -> Iterator[Problem]:
    """Columns named twice or for two purposes."""
    columns, drop = view.mapping("data", "columns"), view.items("data", "drop")
    for index, column in enumerate(drop):
        if column in drop[:index]:
            yield Problem(("data", "drop", index), f"{column!r} is listed twice", "remove one")
        elif isinstance(column, str) and columns.get(column, "ignore") != "ignore":
            message = f"{column!r} is dropped here and declared {columns[column]} in data.columns"
            yield Problem(("data", "drop", index), message, "remove it from one of them")
    column, kind = view.text("data", "split", "column"), view.text("data", "split", "kind")
    if not column:
        return
    if column in drop:
        path = ("data", "drop", drop.index(column))
        yield Problem(path, f"the split needs {column!r}, which is no feature anyway", "take it out of data.drop")
    if columns.get(column, kind) != kind and kind in ("group", "time"):
        message = f"{column!r} makes the {kind} split: it is no feature, and declared {columns[column]}"
        yield Problem(("data", "columns", column), message, f"write {column}: {kind}, or leave it out")


def _checks(view: RecipeView) -> Iterator[Problem]:
    for index, _ in view.checks("range"):
        path = ("data", "checks", index)
        low, high = view.number(*path, "min"), view.number(*path, "max")
        if view.get(*path, "min") is None and view.get(*path, "max") is None:
            yield Problem(path, "a range check needs min or max", "add min: or max:")
        elif low is not None and high is not None and low > high:
            message = f"max {format_value(high)} is below min {format_value(low)}: no value is in range"
            yield Problem((*path, "max"), message, "swap them")
        if view.mapping("data", "columns").get(view.text(*path, "column")) == "categorical":
            message = f"{view.text(*path, 'column')!r} is declared categorical: a range is of numbers"
            yield Problem((*path, "column"), message, "use a check of kind allowed")
    for index, _ in view.checks("unique"):
        names = view.items("data", "checks", index, "columns")
        for at, name in enumerate(names):
            if name in names[:at]:
                yield Problem(("data", "checks", index, "columns", at), f"{name!r} is listed twice", "remove one")
    yield from _repeated_checks(view)


def _repeated_checks(view: RecipeView) -> Iterator[Problem]:
    """A second check of the same kind and column."""
    first: dict[tuple[str, str], int] = {}
    for index, check in enumerate(view.items("data", "checks")):
        kind = check.get("kind") if isinstance(check, dict) else None
        if kind not in ("schema", "range", "nulls", "allowed"):
            continue
        key = (kind, str(check.get("column")))
        if key in first:
            label = "schema check" if kind == "schema" else f"{kind} check of {key[1]!r}"
            message = f"a second {label}: the first is data.checks.{first[key]}"
            yield Problem(("data", "checks", index), message, "make one of the two")
        first.setdefault(key, index)


def _schema_check(view: RecipeView) -> Iterator[Problem]:
    """Columns missing in a closed schema check, and column kinds that contradict its types."""
    schema = view.schema
    if schema is None:
        return
    for path, column in _named_columns(view):
        if column not in schema:
            close = closest_match(column, list(schema))
            message = f"column {column!r} is not among the columns of the schema check"
            hint = f"did you mean {close}?" if close else "declare it there, or write extra: allow"
            yield Problem(path, message, hint, at_key=path[1] == "columns")
    for column, kind in view.mapping("data", "columns").items():
        allowed = KIND_OF_TYPE.get(str(schema.get(column)))
        if allowed and kind in ("numeric", "categorical", "time") and kind not in allowed:
            message = f"{column!r} is declared {schema[column]} in the schema check: it cannot be {kind}"
            yield Problem(("data", "columns", column), message, f"write {column}: {allowed[0]}")


def _named_columns(view: RecipeView) -> Iterator[tuple[KeyPath, str]]:
    """Columns named outside the schema check, with their key paths."""
    for name in ("target", "split"):
        path: KeyPath = ("data", name) if name == "target" else ("data", "split", "column")
        if view.text(*path):
            yield path, view.text(*path)
    for column in view.mapping("data", "columns"):
        yield ("data", "columns", column), column
    for index, column in enumerate(view.items("data", "drop")):
        if isinstance(column, str):
            yield ("data", "drop", index), column
    for column in view.mapping("monitor", "columns"):
        yield ("monitor", "columns", column), column
    for index, column in enumerate(view.items("monitor", "segments")):
        if isinstance(column, str):
            yield ("monitor", "segments", index), column
    for index, check in enumerate(view.items("data", "checks")):
        if not isinstance(check, dict):
            continue
        if isinstance(check.get("column"), str):
            yield ("data", "checks", index, "column"), check["column"]
        for at, column in enumerate(view.items("data", "checks", index, "columns")):
            if isinstance(column, str):
                yield ("data", "checks", index, "columns", at), column


def _train(view: RecipeView) -> Iterator[Problem]:
    weights = view.get("train", "class_weights")
    if view.regression and weights is not None:
        message = "class weights belong to a classification; this is a regression"
        yield Problem(("train", "class_weights"), message, "remove train.class_weights")
    elif isinstance(weights, dict):
        for name in weights:
            weight = view.number("train", "class_weights", name)
            if weight is not None and weight <= 0:
                path = ("train", "class_weights", name)
                yield Problem(path, f"expected a weight > 0, found {format_value(weight)}", "write a number above 0")
    if view.text("model", "kind") in ("onnx", "bundle"):
        yield from _unused_training(view)
        return
    if view.text("model", "kind") == "sklearn":
        hint = "remove it; settings of an estimator go to model.args"
        for name in TORCH_ONLY:
            if view.get("train", name) not in (None, 0):
                message = f"scikit-learn has no use for train.{name}: it would be ignored"
                yield Problem(("train", name), message, hint, at_key=True)
        return
    yield from _ignored_settings(view)
    yield from _division_of_batches(view)


def _division_of_batches(view: RecipeView) -> Iterator[Problem]:
    """More shards than rows of a batch, or more workers than shards."""
    batch, workers = view.number("train", "batch_size"), view.number("train", "workers")
    shards = view.number("train", "shards")
    parts, unit = (workers, "workers") if shards is None else (shards, "shards")
    if batch is not None and parts is not None and batch < parts:
        message = f"{format_value(parts)} {unit} share batches of {format_value(batch)} rows: some get none"
        yield Problem(("train", "batch_size"), message, f"write {format_value(parts)} or more")
    if shards is not None and workers is not None and workers > shards:
        message = f"{format_value(workers)} workers share {format_value(shards)} shards of each batch: some get none"
        yield Problem(("train", "workers"), message, f"write {format_value(shards)} or fewer, or raise train.shards")


def _unused_training(view: RecipeView) -> Iterator[Problem]:
    """Settings of training and preprocessing for an imported graph."""
    for section in ("preprocess", "train"):
        for name in view.mapping(section):
            if view.get(section, name) not in (None, 0):
                message = f"an imported graph is not trained here: {section}.{name} would be ignored"
                yield Problem((section, name), message, "remove it; what the graph needs must be in it", at_key=True)


def _ignored_settings(view: RecipeView) -> Iterator[Problem]:
    """Settings that the chosen optimizer or schedule does not have."""
    optimizer = view.text("train", "optimizer", "name", default="adamw")
    if optimizer in ("adam", "adamw") and view.has("train", "optimizer", "momentum"):
        message = f"momentum belongs to sgd; {optimizer} ignores it"
        yield Problem(("train", "optimizer", "momentum"), message, "write name: sgd, or remove momentum", at_key=True)
    schedule = view.text("train", "schedule", "name", default="none")
    owners = {"step_epochs": ("step",), "gamma": ("step",), "warmup_epochs": ("step", "cosine")}
    if schedule not in ("none", "cosine", "step", "onecycle"):
        return
    for name, schedules in owners.items():
        set_to = view.number("train", "schedule", name)
        if schedule not in schedules and set_to is not None and (name, set_to) != ("warmup_epochs", 0):
            message = f"{name} belongs to {' and '.join(schedules)}; {schedule} ignores it"
            hint = f"write name: {schedules[0]}, or remove {name}"
            yield Problem(("train", "schedule", name), message, hint, at_key=True)
    warmup, epochs = view.number("train", "schedule", "warmup_epochs"), view.number("train", "epochs") or 20
    if schedule in owners["warmup_epochs"] and warmup is not None and warmup >= epochs >= 1:
        warmup_text, epochs_text = format_value(warmup), format_value(epochs)
        message = f"{warmup_text} epochs of warm-up in a training of {epochs_text}: the schedule never starts"
        yield Problem(("train", "schedule", "warmup_epochs"), message, f"write less than {format_value(epochs)}")


def _model(view: RecipeView) -> Iterator[Problem]:
    """A model of another kind or for another task."""
    kind, reference = view.text("model", "kind"), view.text("model", "module")
    module, _, name = reference.partition(":")
    path = ("model", "module")
    if kind == "torch" and module.partition(".")[0] == "sklearn":
        yield Problem(path, f"{reference} is a scikit-learn estimator, and model.kind is torch", "write kind: sklearn")
    elif kind == "sklearn" and module == "mlflowkit.models":
        yield Problem(path, f"{reference} is a torch module, and model.kind is sklearn", "write kind: torch")
    elif kind == "sklearn" and module.startswith("sklearn"):
        wrong, right = ("Classifier", "Regressor") if view.regression else ("Regressor", "Classifier")
        if view.task in ("classification", "regression") and name.endswith(wrong):
            other = name.removesuffix(wrong) + right
            yield Problem(path, f"{name} does not do {view.task}", f"did you mean {module}:{other}?")


def _imported_graph(view: RecipeView) -> Iterator[Problem]:
    """Output roles and classes of an imported graph that do not suit the task."""
    if view.text("model", "kind") != "onnx":
        return
    outputs = view.mapping("model", "outputs")
    for role in outputs:
        if role in OUTPUT_ROLES and view.task in ROLES and role not in ROLES[view.task]:
            message = f"a {view.task} has no {role}"
            hint = f"name {' or '.join(ROLES[view.task])}"
            yield Problem(("model", "outputs", role), message, hint, at_key=True)
    if outputs.get("probabilities") is not None and outputs.get("logits") is not None:
        message = "probabilities come from one output: the graph's probabilities or its logits"
        yield Problem(("model", "outputs", "logits"), message, "remove one of them", at_key=True)
    if view.regression and view.get("model", "classes") is not None:
        message = "classes belong to a classification; this is a regression"
        yield Problem(("model", "classes"), message, "remove model.classes", at_key=True)
    classes = view.items("model", "classes")
    for index, label in enumerate(classes):
        if label in classes[:index]:
            yield Problem(("model", "classes", index), f"{label!r} is listed twice", "remove one")
    yield from _imported_columns(view)


def _imported_columns(view: RecipeView) -> Iterator[Problem]:
    """Inputs of an imported graph from dropped columns or from the target."""
    target, drop = view.text("data", "target"), view.items("data", "drop")
    for name, columns in view.mapping("model", "inputs").items():
        for index, column in enumerate(columns if isinstance(columns, list) else []):
            path = ("model", "inputs", name, index)
            if column == target:
                yield Problem(path, f"{column!r} is the target: it cannot be an input", "name a feature")
            elif column in drop:
                yield Problem(path, f"{column!r} is dropped in data.drop", "take it out of one of them")


def _optimize(view: RecipeView) -> Iterator[Problem]:
    allowed = [metric for metric in metrics_of(view.task) if metric not in metrics.TIMES]
    yield from _metric(view, ("optimize", "metric"), allowed)
    if view.text("optimize", "objective") == "cost" and not view.has("optimize", "cost_per_hour"):
        message = "the cost of an answer follows from what an hour of the machine costs, and that is not given"
        yield Problem(("optimize", "objective"), message, "add cost_per_hour: 0.50")


def _candidates(view: RecipeView) -> Iterator[Problem]:
    """Duplicate candidates, by name or by passes and engine, and impossible ones."""
    names: dict[str, int] = {}
    kinds: dict[str, int] = {}
    for index, item in enumerate(view.items("optimize", "candidates")):
        path = ("optimize", "candidates", index)
        candidate = _parse_candidate(item)
        name = item if isinstance(item, str) else item.get("name") if isinstance(item, dict) else None
        if isinstance(name, str) and name in names:
            yield Problem(path, f"{name!r} is listed twice", "remove one")
        elif candidate is not None and key_of(candidate) in kinds:
            same = view.get("optimize", "candidates", kinds[key_of(candidate)])
            same = same if isinstance(same, str) else same["name"]
            yield Problem(path, f"{candidate.name!r} is the same as {same!r}: same passes, same engine", "remove one")
        elif candidate is not None and (reason := reason_impossible(candidate.passes, candidate.engine)):
            yield Problem(path, f"{candidate.name!r} cannot be: {reason}", "change its passes or its engine")
        elif isinstance(item, dict) and candidate is not None and candidate.name in NAMED:
            message = f"{candidate.name!r} is one of mlflowkit's own candidates"
            yield Problem((*path, "name"), message, "give it a name of its own")
        if isinstance(name, str):
            names.setdefault(name, index)
        if candidate is not None:
            kinds.setdefault(key_of(candidate), index)


def _parse_candidate(item: Json) -> Candidate | None:
    """The candidate of a list item, or None for an invalid item."""
    if isinstance(item, str):
        return NAMED.get(item)
    try:
        return Candidate.model_validate(item)
    except ValidationError:  # reported by the schema
        return None


def _search(view: RecipeView) -> Iterator[Problem]:
    """A search without a space, with too large a space, or with duplicate values in a dimension."""
    path = ("optimize", "search")
    space, method = view.mapping(*path, "space"), view.text(*path, "method")
    if not space:
        for key in ("method", "trials", "seconds"):
            if view.has(*path, key):
                message = f"{key} is about searching a space, and there is none"
                yield Problem((*path, key), message, "add optimize.search.space: {graph_level: [basic, all]}")
        return
    has_duplicates = False
    for dimension in space:
        items = view.items(*path, "space", dimension)
        for index, item in enumerate(items):
            if item in items[:index]:
                has_duplicates = True
                yield Problem((*path, "space", dimension, index), f"{format_value(item)} is listed twice", "remove one")
    try:
        parsed = Space.model_validate(space)
    except ValidationError:  # reported by the schema
        return
    if parsed.size > MAX_COMBINATIONS:
        message = f"it has {parsed.size:,} combinations; {MAX_COMBINATIONS:,} are the most"
        yield Problem((*path, "space"), message, "leave some out")
    elif not has_duplicates and not candidates_of(parsed):
        passes = parsed.passes[0]
        reason = reason_impossible(passes, Engine(runtime=parsed.runtime[0]))
        yield Problem((*path, "space"), f"none of its candidates can be: {reason}", "add a way of passes: []")
    elif method == "exhaustive" and len(candidates_of(parsed)) > MAX_EXHAUSTIVE:
        message = f"it has {len(candidates_of(parsed)):,} candidates, which are too many to try all"
        yield Problem((*path, "method"), message, "write method: optuna")


def _exposure(view: RecipeView) -> Iterator[Problem]:
    """A listener reachable from other machines without API keys; two sources of keys."""
    host, auth = view.text("serve", "host"), ("serve", "auth")
    keys = [name for name in ("keys", "keys_env") if view.get(*auth, name)]
    if len(keys) == 2:
        message = "API keys come from a file or from the environment, not from both"
        yield Problem((*auth, "keys_env"), message, "remove one of keys and keys_env")
    if host and not keys:
        from mlflowkit.serving.auth import is_loopback

        if not is_loopback(host):
            message = f"{format_value(host)} is reached from other machines, and no API keys are asked for"
            hint = "mlkit key create --keys keys.json, and write auth: {keys: keys.json}; or host: 127.0.0.1"
            yield Problem(("serve", "host"), message, hint)


def _affinity(view: RecipeView) -> Iterator[Problem]:
    """An affinity whose name is missing, or a name that it does not use."""
    routing = ("serve", "routing")
    kind, name = view.text(*routing, "affinity", default="request_id"), view.text(*routing, "name")
    if kind in ("header", "cookie", "parameter") and not name:
        yield Problem((*routing, "affinity"), f"which {kind} is the key in?", f"add name: the {kind}'s name")
    elif kind == "request_id" and name:
        message = f"requests are dealt by their id, and name {format_value(name)} is not looked at"
        yield Problem((*routing, "name"), message, "write affinity: header, cookie or parameter")


def _decision(view: RecipeView) -> Iterator[Problem]:
    """A decision rule has one way to choose, for the positive class of two."""
    section = view.mapping("decision")
    if not view.has("decision") or view.get("decision") is None:
        return
    ways = [name for name in DECISION_WAYS if section.get(name) is not None]
    if len(ways) != 1:
        named = f"{' and '.join(ways)} at once" if ways else "no way to choose"
        message = f"decision has {named}; it needs one of {', '.join(DECISION_WAYS)}"
        yield Problem(("decision",), message, "write decision: {maximize: f1}", at_key=True)
    if view.regression:
        yield Problem(("decision",), "a regression has no classes to decide between", "remove it", at_key=True)
    elif view.mapping("data") and view.get("data", "positive") is None:
        message = "decision needs data.positive: the class that is answered from the threshold on"
        yield Problem(("decision",), message, "add positive: CLASS under data", at_key=True)
    if {view.number("decision", "costs", name) for name in ("false_positive", "false_negative")} == {0}:
        yield Problem(("decision", "costs"), "mistakes that cost nothing decide nothing", "write one above 0")


def _texts(view: RecipeView) -> Iterator[Problem]:
    """Marks of numbers that contradict each other."""
    path = ("data", "source", "thousands")
    decimal, thousands = view.text("data", "source", "decimal", default="."), view.text(*path)
    if thousands and thousands == decimal:
        hint = "write decimal: ',' and thousands: '.'" if thousands == "." else "remove one of them"
        yield Problem(path, f"{thousands!r} cannot separate thousands and be the decimal mark", hint)
    for key, mark in (("decimal", decimal), ("thousands", thousands)):
        if mark.isalnum() or mark in ("-", "+"):
            yield Problem(
                ("data", "source", key), f"{mark!r} is part of numbers itself", "write '.', ',', ' ' or \"'\""
            )


RULES: tuple[Rule, ...] = (
    _decision,
    _orders,
    _split,
    _texts,
    _target,
    _columns,
    _checks,
    _schema_check,
    _model,
    _imported_graph,
    _train,
    _optimize,
    _candidates,
    _search,
    _gates,
    _slices,
    _exposure,
    _affinity,
)
"""All rules, in the order of a recipe's sections."""
