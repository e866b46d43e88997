"""What the stages of a run publish, made from scikit-learn's own data sets with scikit-learn: figures computed,
not invented. The tests of the report load this file; it writes the formats of mlflowkit.stages."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import datasets, metrics
from sklearn.linear_model import LinearRegression, SGDClassifier
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from mlflowkit import bundle
from mlflowkit.values import (
    STAGES,
    Lineage,
    Measurement,
    Outcome,
    RunRecord,
    StageResult,
    StepRecord,
    Verdict,
)

SEED = 7
EPOCHS = 12
LINEAGE = Lineage("0f3d9a" + "c" * 34, False, "d4" * 32, "5e" * 32)


@dataclass(frozen=True)
class Run:
    """A record and the folders that it published."""

    record: RunRecord
    folders: Mapping[str, Path]

    def until(self, stage: str, status: str = "done", error: str = "") -> Run:
        """The same run, had it stopped at ``stage`` with that step's status (done: it was asked to stop there)."""
        last = STAGES.index(stage)
        steps = []
        for step in self.record.steps:
            place = STAGES.index(step.stage)
            if place < last or (place == last and status == "done"):
                steps.append(step)
            elif place == last:
                steps.append(replace(step, status=status, error=error, digest="", result=None))
            elif status != "done":
                steps.append(replace(step, status="pending", seconds=0.0, digest="", result=None))
        kept = {name: folder for name, folder in self.folders.items() if STAGES.index(name) < last + (status == "done")}
        run_status = {"done": "done", "failed": "failed", "interrupted": "interrupted"}[status]
        record = replace(self.record, steps=tuple(steps), status=run_status, error=error, bundle="", endpoint="")
        return Run(record, kept)


def interval(name: str, statistic: Callable[..., float], *arrays: np.ndarray) -> Measurement:
    """A statistic of rows with its percentile bootstrap interval."""
    rng = np.random.default_rng(SEED)
    rows = len(arrays[0])
    draws = [statistic(*(one[pick] for one in arrays)) for pick in rng.integers(0, rows, (200, rows))]
    low, high = np.quantile(draws, [0.025, 0.975])
    value = float(statistic(*arrays))
    return Measurement(name, value, min(float(low), value), max(float(high), value), rows, method="bootstrap")


def binary(root: Path, names: Sequence[str] | None = None) -> Run:
    """breast_cancer: a classification of two classes, with a champion, slices and a gate of each outcome."""
    data = datasets.load_breast_cancer()
    columns = [str(name) for name in (names or data.feature_names)]
    parts = split(data.data, data.target)
    model, scaler, curves = fit(parts)
    x, y = parts["test"]
    scores = model.predict_proba(scaler.transform(x))[:, 1]
    older, older_scaler, _ = fit(parts, epochs=1)
    rivals = older.predict_proba(older_scaler.transform(x))[:, 1]
    radius = np.where(x[:, 0] > np.median(x[:, 0]), "large", "small")
    quality = {
        "roc_auc": interval("roc_auc", metrics.roc_auc_score, y, scores),
        "accuracy": interval("accuracy", lambda a, b: metrics.accuracy_score(a, b > 0.5), y, scores),
        "average_precision": interval("average_precision", metrics.average_precision_score, y, scores),
    }
    change = interval(
        "roc_auc", lambda a, b, c: metrics.roc_auc_score(a, b) - metrics.roc_auc_score(a, c), y, scores, rivals
    )
    change = replace(change, name="roc_auc minus champion")
    sliced = [
        (
            value,
            {
                "accuracy": interval(
                    "accuracy",
                    lambda a, b: metrics.accuracy_score(a, b > 0.5),
                    y[radius == value],
                    scores[radius == value],
                )
            },
        )
        for value in ("large", "small")
    ]
    fpr, tpr, _ = metrics.roc_curve(y, scores)
    precision, recall, _ = metrics.precision_recall_curve(y, scores)
    evaluation = {
        "task": "classification",
        "rows": len(y),
        "classes": [0, 1],
        "metrics": {name: asdict(one) for name, one in quality.items()},
        "confusion": {"labels": [0, 1], "counts": metrics.confusion_matrix(y, scores > 0.5).tolist()},
        "roc": {"fpr": fpr.tolist(), "tpr": tpr.tolist()},
        "pr": {"recall": recall.tolist(), "precision": precision.tolist()},
        "calibration": calibration(y, scores),
        "residuals": None,
        "slices": [
            {
                "column": "radius",
                "value": value,
                "rows": int((radius == value).sum()),
                "metrics": {k: asdict(m) for k, m in found.items()},
            }
            for value, found in sliced
        ],
        "champion": {
            "version": "ab12cd34ef56" + "0" * 52,
            "rows": len(y),
            "metrics": {
                "roc_auc": {
                    "champion": metrics.roc_auc_score(y, rivals),
                    "candidate": metrics.roc_auc_score(y, scores),
                    "difference": asdict(change),
                }
            },
        },
    }
    accuracy = quality["accuracy"]
    tight = accuracy.value  # an interval always straddles its own value
    verdicts = (
        Verdict(
            "roc_auc min 0.9",
            Outcome.PASSED,
            f"roc_auc {quality['roc_auc'].low:.3f} >= 0.9",
            "roc_auc",
            quality["roc_auc"],
            0.9,
        ),
        Verdict(
            "roc_auc against champion",
            Outcome.PASSED if change.low >= -0.02 else Outcome.INCONCLUSIVE,
            f"difference {change.value:.4f}",
            "roc_auc",
            change,
            -0.02,
            change=True,
        ),
        Verdict(
            f"accuracy min {tight:.4f}",
            Outcome.INCONCLUSIVE,
            "the threshold lies within the interval",
            "accuracy",
            accuracy,
            tight,
            blocking=False,
        ),
        Verdict(
            "accuracy min 0.9999",
            Outcome.FAILED if accuracy.high < 0.9999 else Outcome.INCONCLUSIVE,
            f"accuracy at most {accuracy.high:.4f}",
            "accuracy",
            accuracy,
            0.9999,
            blocking=False,
        ),
        *(
            Verdict(
                "accuracy min 0.8 by radius",
                Outcome.PASSED if found["accuracy"].low >= 0.8 else Outcome.INCONCLUSIVE,
                f"accuracy of {value} >= 0.8",
                "accuracy",
                found["accuracy"],
                0.8,
                slice=f"radius={value}",
            )
            for value, found in sliced
        ),
    )
    predictors = {"float64": model.coef_.astype(np.float64), "float32": model.coef_.astype(np.float32)}
    return publish(
        root, "breast-cancer", "classification", columns, parts, curves, evaluation, verdicts, predictors, [0, 1]
    )


def multiclass(root: Path) -> Run:
    """digits: ten classes, 64 columns of which some are constant."""
    data = datasets.load_digits()
    parts = split(data.data, data.target)
    model, scaler, curves = fit(parts)
    x, y = parts["test"]
    found = model.predict(scaler.transform(x))
    accuracy = interval("accuracy", metrics.accuracy_score, y, found)
    evaluation = {
        "task": "classification",
        "rows": len(y),
        "classes": list(range(10)),
        "metrics": {"accuracy": asdict(accuracy)},
        "confusion": {"labels": list(range(10)), "counts": metrics.confusion_matrix(y, found).tolist()},
        "roc": None,
        "pr": None,
        "calibration": None,
        "residuals": None,
        "slices": [],
        "champion": None,
    }
    verdicts = (Verdict("accuracy min 0.85", Outcome.PASSED, "accuracy >= 0.85", "accuracy", accuracy, 0.85),)
    predictors = {"float64": model.coef_, "float32": model.coef_.astype(np.float32)}
    names = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]
    return publish(
        root, "digits", "classification", names, parts, curves, evaluation, verdicts, predictors, list(range(10))
    )


def regression(root: Path) -> Run:
    """diabetes: a regression fitted at once, so without curves by epoch."""
    data = datasets.load_diabetes()
    parts = split(data.data, data.target, stratified=False)
    model = LinearRegression().fit(*parts["train"])
    x, y = parts["test"]
    found = model.predict(x)
    rmse = interval("rmse", metrics.root_mean_squared_error, y, found)
    evaluation = {
        "task": "regression",
        "rows": len(y),
        "classes": [],
        "metrics": {"rmse": asdict(rmse), "r2": asdict(interval("r2", metrics.r2_score, y, found))},
        "confusion": None,
        "roc": None,
        "pr": None,
        "calibration": None,
        "residuals": {"predicted": found.tolist(), "actual": y.tolist()},
        "slices": [],
        "champion": None,
    }
    verdicts = (Verdict("rmse max 80", Outcome.PASSED, "rmse <= 80", "rmse", rmse, 80.0, direction="max"),)
    names = [str(name) for name in data.feature_names]
    return publish(
        root, "diabetes", "regression", names, parts, {}, evaluation, verdicts, {"float64": model.coef_[None, :]}, []
    )


def split(x: np.ndarray, y: np.ndarray, stratified: bool = True) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """70 / 15 / 15."""
    rest_x, test_x, rest_y, test_y = train_test_split(
        x, y, test_size=0.15, random_state=SEED, stratify=y if stratified else None
    )
    train_x, val_x, train_y, val_y = train_test_split(rest_x, rest_y, test_size=0.18, random_state=SEED)
    return {"train": (train_x, train_y), "validation": (val_x, val_y), "test": (test_x, test_y)}


def fit(
    parts: Mapping[str, tuple[np.ndarray, np.ndarray]], epochs: int = EPOCHS
) -> tuple[Any, Any, dict[str, list[float]]]:
    """A linear model by stochastic gradient descent, one pass an epoch."""
    scaler = StandardScaler().fit(parts["train"][0])
    model = SGDClassifier(loss="log_loss", alpha=1e-3, random_state=SEED)
    curves: dict[str, list[float]] = {"epoch": [], "train_loss": [], "val_loss": [], "val_accuracy": []}
    classes = np.unique(parts["train"][1])
    for epoch in range(1, epochs + 1):
        x, y = parts["train"]
        model.partial_fit(scaler.transform(x), y, classes=classes)
        curves["epoch"].append(epoch)
        for part in ("train", "validation"):
            chances = model.predict_proba(scaler.transform(parts[part][0]))
            curves[f"{part[:5].replace('valid', 'val')}_loss"].append(
                float(metrics.log_loss(parts[part][1], chances, labels=classes))
            )
        curves["val_accuracy"].append(
            float(model.score(scaler.transform(parts["validation"][0]), parts["validation"][1]))
        )
    return model, scaler, curves


def calibration(y: np.ndarray, scores: np.ndarray, bins: int = 8) -> dict[str, Any]:
    """Equal-frequency bins with Wilson intervals."""
    rows, error = [], 0.0
    for pick in np.array_split(np.argsort(scores), bins):
        n, p, z = len(pick), float(y[pick].mean()), 1.96
        centre, half = (
            (p + z * z / (2 * n)) / (1 + z * z / n),
            z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n),
        )
        predicted = float(scores[pick].mean())
        rows.append(
            {
                "predicted": predicted,
                "observed": p,
                "observed_low": float(centre - half),
                "observed_high": float(centre + half),
                "count": n,
            }
        )
        error += n / len(y) * abs(p - predicted)
    return {"bins": rows, "ece": error}


def reference(names: Sequence[str], x: np.ndarray) -> dict[str, Any]:
    """A profile of the training rows."""
    columns = {}
    for name, values in zip(names, x.T, strict=True):
        counts, edges = np.histogram(values, bins=20)
        levels = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
        columns[name] = {
            "type": "numeric",
            "count": len(values),
            "missing": 0,
            "mean": float(values.mean()),
            "stddev": float(values.std()),
            "min": float(values.min()),
            "max": float(values.max()),
            "quantiles": {f"{q:g}": float(v) for q, v in zip(levels, np.quantile(values, levels), strict=True)},
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        }
    return {"rows": len(x), "columns": columns}


def latency(
    coefficients: Mapping[str, np.ndarray], row: np.ndarray, samples: int = 400
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Candidates and their samples: the time that a matrix product takes here, in microseconds."""
    candidates, taken = [], {}
    for place, (name, matrix) in enumerate(coefficients.items()):
        spans = []
        for _ in range(samples):
            start = time.perf_counter_ns()
            matrix @ row.astype(matrix.dtype)
            spans.append((time.perf_counter_ns() - start) / 1000)
        p50, p95, p99 = (float(v) for v in np.quantile(spans, [0.5, 0.95, 0.99]))
        taken[name] = {"samples_us": spans}
        first = place == 0
        made = {
            "samples": samples,
            "p50_us": p50,
            "p95_us": p95,
            "p99_us": p99,
            "interval": [0.9 * p99, 1.2 * p99],
            "throughput": 1e6 / float(np.mean(spans)),
            "reason": "first in the recipe's order" if first else "its interval does not lie below the first's",
            "metric": {"name": "accuracy", "value": 0.95 - 0.002 * place},
            "metric_drop": None if first else asdict(Measurement("accuracy", 0.002 * place, -0.001, 0.004, 80)),
            "picked": first,
            "size_bytes": matrix.nbytes,
            "memory_bytes": 4 * matrix.nbytes,
            "build_seconds": 0.02,
            "cold_start_ms": 1.5,
            "front": True,
        }
        candidates.append(candidate(name, "ok", **made))
    unable = {"reason": "no node of this graph can be quantised", "passes": [{"kind": "int8", "per_channel": False}]}
    candidates.append(candidate("onnx-int8", "unavailable", **unable))
    if len(coefficients) > 1:
        candidates += others(candidates[0])
    return candidates, taken


def others(best: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Candidates that did not make it, one for each way of that; figures are multiples of ``best``'s."""

    def times(factor: float) -> dict[str, Any]:
        scaled = {key: factor * best[key] for key in ("p50_us", "p95_us", "p99_us", "size_bytes", "memory_bytes")}
        return {
            **scaled,
            "interval": [factor * end for end in best["interval"]],
            "throughput": best["throughput"] / factor,
        }

    def loses(share: float, spread: float) -> dict[str, Any]:
        drop = Measurement("accuracy", share, share - spread, share + spread, 80)
        return {"metric": {"name": "accuracy", "value": best["metric"]["value"] - share}, "metric_drop": asdict(drop)}

    int8 = [{"kind": "int8", "calibration": "minmax", "per_channel": True, "rows": 512, "keep": 0}]
    return [
        candidate("int8(per_channel=true) ort-cpu", "rejected", **times(0.6), **loses(0.012, 0.004), passes=int8,
                  samples=400, reason="accuracy drops by 0.0120 (0.0080 to 0.0160, 80 rows): more than 0.005"),
        candidate("fp16 ort-cpu", "dominated", **times(1.7), **loses(0.001, 0.002), passes=[{"kind": "fp16"}],
                  samples=100, reason="stopped after 100 requests: surely slower and no better than float64",
                  notes=["p99 needs 368 samples for an interval; there are 100"]),
        candidate("torch", "baseline", **times(2.4), **loses(0.0, 0.0), samples=400, front=False,
                  reason="there to be compared with: a gateway cannot serve it", engine={"runtime": "torch"}),
        candidate("weight-only(bits=4) ort-cpu", "failed", passes=[{"kind": "weight-only", "bits": 4}],
                  reason="its process was ended by signal 11 (SIGSEGV) while it loaded the graph",
                  script="scripts/weight-only.py"),
    ]  # fmt: skip


def candidate(name: str, status: str, **told: Any) -> dict[str, Any]:
    """A row of candidates.json: what nobody told is null, as of a candidate that was not measured."""
    engine = {"runtime": "ort-cpu", "graph_level": "all", "threads": 1, "cuda_graph": False}
    unknown = ("p50_us", "p95_us", "p99_us", "interval", "throughput", "metric", "metric_drop", "size_bytes",
               "memory_bytes", "build_seconds", "cold_start_ms")  # fmt: skip
    common = {"name": name, "runtime": "ort-cpu", "batch": 1, "samples": 0, "status": status, "reason": ""}
    rest = {"picked": False, "front": False, "script": "", "notes": [], "passes": [], "engine": engine}
    return {**common, **dict.fromkeys(unknown), **rest, **told}


def write(folder: Path, name: str, value: Any) -> None:
    """One JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def publish(
    root: Path,
    name: str,
    task: str,
    columns: Sequence[str],
    parts: Mapping[str, tuple[np.ndarray, np.ndarray]],
    curves: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    verdicts: tuple[Verdict, ...],
    predictors: Mapping[str, np.ndarray],
    classes: Sequence[int],
) -> Run:
    """Write every stage's folder and the record of the run."""
    folders = {stage: root / stage for stage in STAGES}
    x = parts["train"][0]
    write(
        folders["data"],
        "table.json",
        {
            "task": task,
            "target": "target",
            "features": [{"name": c, "kind": "numeric"} for c in columns],
            "classes": list(classes),
            "rows": {part: len(pair[1]) for part, pair in parts.items()},
            "data_version": LINEAGE.data_version,
            "slice_columns": [],
        },
    )
    write(
        folders["validate"],
        "checks.json",
        [
            {
                "check": "schema",
                "column": "",
                "passed": True,
                "message": f"{len(columns) + 1} columns as frozen",
                "failures": [],
            },
            {
                "check": "range",
                "column": columns[0],
                "passed": True,
                "message": "all values within bounds",
                "failures": [],
            },
        ],
    )
    write(folders["validate"], "reference.json", reference(columns, x))
    write(folders["train"], "spec.json", {"task": task})
    write(folders["train"], "curves.json", curves)
    write(
        folders["export"],
        "parity.json",
        {"rows": 80, "max_abs_difference": 0.0, "label_mismatches": 0, "tolerance": 1e-4},
    )
    candidates, taken = latency(predictors, x[0])
    write(folders["optimize"], "candidates.json", candidates)
    write(folders["optimize"], "latency.json", taken)
    write(folders["evaluate"], "evaluation.json", evaluation)
    made = pack(folders["package"] / "bundle", name, task, columns, classes, predictors)
    write(
        folders["deploy"],
        "service.json",
        {"service": name, "endpoint": "http://127.0.0.1:8080", "version": made.manifest.version, "epoch": 3},
    )
    return Run(record_of(name, task, verdicts, made), folders)


def pack(
    folder: Path,
    name: str,
    task: str,
    columns: Sequence[str],
    classes: Sequence[int],
    predictors: Mapping[str, np.ndarray],
) -> bundle.Bundle:
    """A bundle whose digests verify; the report reads its manifest, not its graph."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"".join(one.tobytes() for one in predictors.values()))
    inputs = (bundle.TensorSpec(name="numeric", datatype="FP32", shape=(-1, len(columns)), columns=tuple(columns)),)
    outputs = (
        bundle.TensorSpec(
            name="label" if classes else "prediction", datatype="INT64" if classes else "FP32", shape=(-1,)
        ),
    )
    signature = bundle.Signature(task=task, inputs=inputs, outputs=outputs, classes=tuple(classes))
    (folder / "signature.json").write_text(signature.model_dump_json())
    return bundle.write(
        folder, name=name, lineage=LINEAGE, policy="9a" * 32, run="20261123-1", blessed=True, created=1.79e9
    )


def record_of(name: str, task: str, verdicts: tuple[Verdict, ...], made: bundle.Bundle) -> RunRecord:
    """The journal's record of such a run."""
    recipe = {
        "name": name,
        "task": task,
        "seed": SEED,
        "data": {"target": "target"},
        "model": {"kind": "sklearn", "module": "sklearn.linear_model:SGDClassifier", "args": {}},
        "optimize": {"objective": "latency_p99"},
        "serve": {"service": name},
    }
    spans = (0.21, 0.6, 1.9, 0.05, 0.4, 0.9, 0.02, 3.1)
    results = {
        "evaluate": StageResult(verdicts=verdicts),
        "train": StageResult(summary={"best_epoch": 9, "device": "cpu"}),
        "deploy": StageResult(summary={"curl": "curl -s http://127.0.0.1:8080/predict -d '{\"rows\": []}'"}),
    }
    steps = tuple(
        StepRecord(
            stage,
            "reuse" if stage == "data" else "run",
            "same fingerprint" if stage == "data" else "the seed changed",
            f"{place:x}" * 64,
            "done",
            0.0 if stage == "data" else spans[place],
            f"{place + 8:x}" * 64,
            results.get(stage, StageResult()),
        )
        for place, stage in enumerate(STAGES)
    )
    return RunRecord(
        "20261123-1",
        name,
        f"recipes/{name}.yaml",
        "done",
        1.79e9,
        1.79e9 + 7.4,
        LINEAGE,
        recipe,
        ("seed=7",),
        steps,
        made.manifest.identity,
        True,
        "http://127.0.0.1:8080",
    )
