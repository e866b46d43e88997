"""The graph of recipes/lending.yaml's blessed bundle, and real loans to ask it with."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.process import CACHE

if TYPE_CHECKING:
    from mlflowkit.bundle import Bundle

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "recipes" / "lending.yaml"
STATE = CACHE / "gpu_latency" / "state"


@lru_cache(maxsize=4)
def _digests(candidate: str = "onnx") -> Mapping[str, str]:
    """The stages of a run, which costs nothing where all of it can be reused."""
    import mlflowkit as mk

    recipe = mk.load(RECIPE, overrides=[f"optimize.candidates=[{candidate}]", "gates=[]"])  # it, whatever is fast
    return {step["stage"]: step["digest"] for step in mk.run(recipe, until="package", state=STATE).answer["steps"]}


def bundle(candidate: str = "onnx") -> Bundle:
    """The blessed bundle of recipes/lending.yaml, with a candidate by its name: the float graph."""
    from mlflowkit.bundle import open_bundle

    return open_bundle(STATE / "objects" / _digests(candidate)["package"] / "bundle", blessed=True)


@lru_cache(maxsize=1)
def folder() -> Path:
    """Where graph (model.onnx) and rows (rows.npz) are."""
    out = CACHE / "gpu_latency" / f"lending-{_digests()['package'][:12]}"
    if not out.exists():
        _keep(bundle(), STATE / "objects" / _digests()["data"], out)
    return out


def _keep(opened: Bundle, data: Path, out: Path) -> None:
    import pandas as pd

    from mlflowkit.features.tensors import inputs_from_table

    found = inputs_from_table(opened.signature, pd.read_parquet(data / "validation.parquet"))
    texts = {name: cells.astype(str) if cells.dtype == object else cells for name, cells in found.items()}
    made = Path(tempfile.mkdtemp(dir=out.parent))
    np.savez(made / "rows.npz", allow_pickle=False, **texts)
    shutil.copyfile(opened.model, made / "model.onnx")
    os.replace(made, out)


def rows(n: int) -> Mapping[str, np.ndarray]:
    """The first ``n`` loans of the validation part, from the first again where it ends."""
    with np.load(folder() / "rows.npz", allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    cells = {name: values.astype(object) if values.dtype.kind == "U" else values for name, values in found.items()}
    return {name: np.take(values, range(n), axis=0, mode="wrap") for name, values in cells.items()}
