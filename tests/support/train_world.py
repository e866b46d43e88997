"""A data stage's folder made from a table, and the train stage run on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlflowkit.features.preprocess import load_preprocess, open_table, transform
from mlflowkit.ports import StageContext
from mlflowkit.stages import train
from mlflowkit.stages.base import Column, TableInfo
from mlflowkit.values import Event, Lineage, StageResult
from mlflowkit.wiring import Wiring


@dataclass(frozen=True)
class Trained:
    """A train stage that ended: what it said and what it published."""

    result: StageResult
    out: Path
    data: Path
    folder: Path

    def read(self, name: str) -> Any:
        return json.loads((self.out / name).read_text())

    @property
    def curves(self) -> dict[str, list[float]]:
        return self.read("curves.json")

    @property
    def weights(self) -> bytes:
        return (self.out / "model.safetensors").read_bytes()

    def matrix(self, part: Any = "validation") -> tuple[np.ndarray, np.ndarray]:
        """Preprocessed rows and targets of one part."""
        rows = open_table(self.data).read(part)
        return transform(load_preprocess(self.out), rows.inputs), rows.target


def write_data(frame: pd.DataFrame, target: str, folder: Path, classes: tuple[Any, ...]) -> Path:
    """Publish a table as the data stage does: every seventh row tests, the one after validates."""
    folder.mkdir(parents=True, exist_ok=True)
    position = np.arange(len(frame)) % 7
    parts = {"test": frame[position == 0], "validation": frame[position == 1], "train": frame[position > 1]}
    for name, part in parts.items():
        part.to_parquet(folder / f"{name}.parquet", index=False)
    kinds = {name: "numeric" if pd.api.types.is_numeric_dtype(frame[name]) else "categorical" for name in frame}
    info = TableInfo(
        task="classification" if classes else "regression",
        target=target,
        features=tuple(Column(name=name, kind=kind) for name, kind in kinds.items() if name != target),
        classes=classes,
        rows={name: len(part) for name, part in parts.items()},
        data_version="0" * 64,
    )
    (folder / "table.json").write_text(info.model_dump_json())
    return folder


class TrainWorld:
    """A recipe's folder, data folders, and the train stage over them."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.folder = base / "recipe"
        self.folder.mkdir()
        self.count = 0

    def data(self, frame: pd.DataFrame, target: str = "y", classes: tuple[Any, ...] = ()) -> Path:
        self.count += 1
        return write_data(frame, target, self.base / f"data-{self.count}", classes)

    def module(self, source: str, name: str = "net") -> None:
        (self.folder / f"{name}.py").write_text(source)

    def context(self, data: Path, *, seed: int = 7, scratch: Path | None = None,
                progress: Callable[[Event], None] = lambda event: None) -> StageContext:  # fmt: skip
        self.count += 1
        out = self.base / f"out-{self.count}"
        out.mkdir()
        scratch = scratch or self.base / f"scratch-{self.count}"
        scratch.mkdir(exist_ok=True)
        return StageContext(
            inputs={"data": data},
            out=out,
            scratch=scratch,
            folder=self.folder,
            seed=seed,
            lineage=Lineage("", False, "0" * 64, "0" * 64),
            run="run",
            ports=Wiring(self.base / "state"),
            progress=progress,
        )

    def train(self, data: Path, model: Mapping[str, Any], train_: Mapping[str, Any] | None = None,
              preprocess: Mapping[str, Any] | None = None, **where: Any) -> Trained:  # fmt: skip
        task = json.loads((data / "table.json").read_text())["task"]
        fields = {"task": task, "model": model, "train": train_ or {}, "preprocess": preprocess or {}}
        context = self.context(data, **where)
        result = train.run(train.Spec.model_validate(fields), context)
        return Trained(result, context.out, data, self.folder)


def make_table(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    """Two noisy numbers with gaps, a string with gaps, and a class (``y``: one in five is "yes") or value (``v``)."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=rows), rng.normal(3, 10, size=rows)
    kind = rng.choice(["red", "green", "blue"], size=rows)
    score = 2 * a - b / 10 + 2 * (kind == "red") + rng.normal(0, 0.5, size=rows)
    frame = pd.DataFrame({"a": a, "b": b, "kind": kind})
    frame.loc[rng.random(rows) < 0.05, "b"] = np.nan
    frame.loc[rng.random(rows) < 0.05, "kind"] = None
    frame["y"] = np.where(score > np.quantile(score, 0.8), "yes", "no")
    frame["v"] = 1000 + 50 * score
    return frame
