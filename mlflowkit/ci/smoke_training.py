"""A training run of a few rows, which shows that data, model and export of a recipe work together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.ports import RunProgress
from mlflowkit.recipe.schema import LoadedRecipe, stage_specs
from mlflowkit.stages import data as data_stage
from mlflowkit.stages.sources import ParquetSource, read_source

if TYPE_CHECKING:
    import pyarrow as pa

LAST_STAGE = "export"
"""The graph is exported and held against the model on real rows; gates and engines are not for so few rows."""
EACH_CLASS = 0.5
"""Share of the rows that is drawn evenly over the classes, so that a rare one is learnt at all."""


def smoke_train(loaded: LoadedRecipe, rows: int, folder: Path, progress: RunProgress) -> str:
    """Train and export a recipe on a sample of its rows, in an empty folder; returns what was done.

    Raises a stage's MlkitError.
    """
    from mlflowkit.pipeline.lineage.data_snapshot import data_snapshot, fetcher
    from mlflowkit.pipeline.run import execute, raise_for
    from mlflowkit.wiring import Wiring

    state = folder / "state"
    wiring = Wiring(state)
    spec = data_stage.Spec.model_validate(stage_specs(loaded.recipe)["data"].model_dump())
    fetch = fetcher(loaded, state, data_snapshot(loaded, state), progress)
    plan = data_stage.reading_plan(spec)
    read = read_source(spec.source, loaded.folder, wiring.tables, plan, skip=spec.drop, fetch=fetch)
    table = sample(read.table, spec.target if spec.task == "classification" else "", rows, loaded.recipe.seed)
    file = folder / "rows.parquet"
    _write(table, file)
    record = execute(_smaller(loaded, file), state, wiring, progress, until=LAST_STAGE)
    raise_for(record, [])
    return f"trained and exported on {table.num_rows:,} of {read.table.num_rows:,} rows"


def sample(table: pa.Table, target: str, rows: int, seed: int) -> pa.Table:
    """Up to ``rows`` rows in their order: half of them drawn evenly over the classes of ``target``, if there is one."""
    import numpy as np

    if table.num_rows <= rows:
        return table
    generator = np.random.default_rng(seed)
    chosen = np.zeros(table.num_rows, dtype=bool)
    if target and target in table.column_names:
        codes = table.column(target).combine_chunks().dictionary_encode()
        indices = codes.indices.to_numpy(zero_copy_only=False)
        classes = max(len(codes.dictionary), 1)
        for code in range(classes):
            members = np.flatnonzero(indices == code)
            size = min(len(members), max(2, int(rows * EACH_CLASS) // classes))
            chosen[generator.choice(members, size, replace=False)] = True
    others = np.flatnonzero(~chosen)
    missing = max(0, min(rows - int(chosen.sum()), len(others)))
    chosen[generator.choice(others, missing, replace=False)] = True
    return table.take(np.flatnonzero(chosen))


def _write(table: pa.Table, file: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, file)


def _smaller(loaded: LoadedRecipe, file: Path) -> LoadedRecipe:
    """The recipe on the sample: one epoch, no search, no checks of the whole table, nothing served."""
    recipe = loaded.recipe
    data = recipe.data.model_copy(
        update={"source": ParquetSource(kind="parquet", path=str(file)), "checks": [], "drop": []}
    )
    train = recipe.train.model_copy(update={"epochs": min(recipe.train.epochs, 1), "tune": None, "workers": 0})
    small = recipe.model_copy(
        update={"data": data, "train": train, "gates": [], "serve": None, "monitor": None, "retrain": None}
    )
    return replace(loaded, recipe=small, composed=small.model_dump(mode="json"))
