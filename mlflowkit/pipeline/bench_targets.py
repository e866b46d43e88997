"""What `mlkit bench` may be given: a bundle's folder, an ONNX file, or a recipe whose run made a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.bench import inputs as asked
from mlflowkit.bench.inputs import Fill, GraphInput, Requests
from mlflowkit.bench.target import Subject, Tensors
from mlflowkit.errors import DataError, StoreError, UsageError, nearest

if TYPE_CHECKING:
    from mlflowkit.bundle import Bundle, Signature
    from mlflowkit.graphs.candidates import Candidate
    from mlflowkit.pipeline.store import Store
    from mlflowkit.values import RunRecord

MADE_ROWS = 256
"""Rows made for a graph that brings none."""
REQUEST_ROWS = 1000
"""Validation rows that requests are cut from."""
CALIBRATION_ROWS = 512
"""Training rows that fix the ranges of a quantised graph, where there are so many."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How requests are made where a subject brings no rows: a file, or made-up rows."""

    file: Path | None = None
    fill: Fill = "random"
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Length of an open axis, by its name."""
    seed: int = 0


def subject(target: Path, state: Path | None = None, asking: Asking | None = None) -> Subject:
    """What a path names. Raises UsageError for a path that is none of the three, and what reading it raises.

    ``state`` is the state folder of a recipe; without it that beside the recipe.
    """
    asking = asking or Asking()
    if not target.exists():
        raise UsageError(
            f"there is no {target}", hint="mlkit bench BUNDLE, MODEL.onnx or RECIPE; `mlkit show` has a run's bundle"
        )
    if target.is_dir():
        return of_bundle(target, asking)
    suffix = target.suffix if target.is_file() else ""  # a pipe would be waited for
    if suffix in (".yaml", ".yml"):
        return of_recipe(target, state, asking)
    if suffix == ".onnx":
        return of_model(target, asking)
    raise UsageError(
        f"{target} is neither the folder of a bundle nor an ONNX file (.onnx) nor a recipe (.yaml)",
        hint="mlkit bench BUNDLE|MODEL.onnx|RECIPE",
    )


def refuse_unknown_sizes(subjects: Sequence[Subject], asking: Asking) -> None:
    """Raises UsageError for the length of an axis that no graph leaves open: a slip, which would go unnoticed."""
    if not asking.sizes:
        return
    inputs = [one for subject in subjects for one in asked.inputs_of(subject.model)]
    axes = list(dict.fromkeys(size for one in inputs for size in one.shape[1:] if isinstance(size, str) and size))
    for name in asking.sizes:
        if name not in axes:
            close = nearest(name, axes)
            raise UsageError(
                f"--size: no graph leaves an axis {name} open besides its rows; there are {', '.join(axes) or 'none'}",
                hint=f"did you mean --size {close}?" if close else "rows are the --batch of a request",
            )


def of_model(model: Path, asking: Asking) -> Subject:
    """An ONNX file, asked rows of its own input types."""
    takes = asked.inputs_of(model)
    requests, notes = _rows(takes, asking)
    return Subject(model.stem, "onnx", model, model, model, requests, lambda: requests.arrays, notes=notes)


def of_bundle(folder: Path, asking: Asking) -> Subject:
    """A verified bundle, asked the rows that it keeps as evidence. One that is not blessed may be measured."""
    from mlflowkit.bundle import open_bundle

    bundle = open_bundle(folder)
    notes = [] if bundle.blessing else ["not blessed: its gates did not pass, so it may be measured but not served"]
    requests = None if asking.file is not None else _sample(bundle)
    if requests is None:
        requests, said = _rows(asked.inputs_of(bundle.model), asking)
        notes += said
    arrays = requests.arrays
    return Subject(
        bundle.manifest.name, "bundle", folder, bundle.model, bundle.model, requests, lambda: arrays, bundle.engine,
        notes=tuple(notes), version=str(bundle.manifest.version),
    )  # fmt: skip


def of_recipe(path: Path, state: Path | None, asking: Asking) -> Subject:
    """The graph that the last run of a recipe picked, asked validation rows. Raises UsageError before its first run."""
    from mlflowkit.bundle import read_engine
    from mlflowkit.pipeline.journal import Journal
    from mlflowkit.pipeline.store import Store
    from mlflowkit.recipe.check import load
    from mlflowkit.stages.base import read_signature

    recipe = load(path).recipe
    folder = state or path.resolve().parent / ".mlkit"
    with Journal(folder, create=False) as journal:
        record = next((one for one in journal.runs(name=recipe.name) if "optimize" in _published(one)), None)
    if record is None:
        raise UsageError(
            f"no run of {recipe.name} has made a graph yet (looked in {folder})",
            hint=f"mlkit run {path} --until optimize, or --state DIR",
        )
    places = _places(record, Store(folder))
    signature = read_signature(places["optimize"])
    notes = [f"picked by run {record.run}"]
    if asking.file is None:
        requests = _validation(places["data"], signature)
    else:
        requests, said = _rows(asked.inputs_of(places["optimize"] / "model.onnx"), asking)
        notes += said
    return Subject(
        recipe.name, "recipe", path, places["optimize"] / "model.onnx", places["export"] / "model.onnx", requests,
        lambda: _training(places["data"], signature, asking.seed), read_engine(places["optimize"]),
        _listed(recipe.optimize.candidates), tuple(notes),
    )  # fmt: skip


def _rows(takes: Sequence[GraphInput], asking: Asking) -> tuple[Requests, tuple[str, ...]]:
    """Requests from the file that was given, or made up."""
    if asking.file is not None:
        return asked.read(asking.file, takes), ()
    requests = asked.made(takes, MADE_ROWS, sizes=asking.sizes, fill=asking.fill, seed=asking.seed)
    numbers = "zeros" if asking.fill == "zeros" else "random numbers, whole ones 1"
    return requests, (f"its inputs are made up ({numbers}, strings empty); --inputs FILE.npz gives real ones",)


def _sample(bundle: Bundle) -> Requests | None:
    """The rows of the evidence as the graph's inputs; None for a bundle without."""
    from mlflowkit.service_state.records import read_json
    from mlflowkit.serving.protocol.http_error import Refusal
    from mlflowkit.serving.protocol.input_schema import Schema

    sample = read_json(bundle.path / "evidence" / "sample.json")
    if not sample or not sample.get("rows"):
        return None
    try:
        arrays = Schema(bundle.signature).arrays(sample["rows"])
    except Refusal as error:
        raise DataError(
            f"{bundle.path}: its sample rows do not fit its signature: {error}",
            hint="mlkit run RECIPE --force package, or --inputs FILE.npz",
        ) from error
    return Requests(arrays, len(sample["rows"]))


def _published(record: RunRecord) -> dict[str, str]:
    return {step.stage: step.digest for step in record.steps if step.digest}


def _places(record: RunRecord, store: Store) -> dict[str, Path]:
    """Folder of each stage that a run published or reused. Raises StoreError for one that is gone."""
    places = {stage: store.path(digest) for stage, digest in _published(record).items()}
    for stage in ("data", "export", "optimize"):
        if not places[stage].is_dir():
            raise StoreError(
                f"run {record.run}: what {stage} published is no longer in the store ({places[stage]})",
                hint=f"make it again: mlkit run {record.recipe_path} --force {stage}",
            )
    return places


def _validation(data: Path, signature: Signature) -> Requests:
    import pandas as pd

    from mlflowkit.features.tensors import inputs_from_table

    columns = [column for tensor in signature.inputs for column in tensor.columns]
    rows = pd.read_parquet(data / "validation.parquet", columns=columns).head(REQUEST_ROWS)
    return Requests(inputs_from_table(signature, rows), len(rows))


def _training(data: Path, signature: Signature, seed: int) -> Tensors:
    from mlflowkit.features.tensors import inputs_from_table
    from mlflowkit.stages.base import sample_rows

    return inputs_from_table(signature, sample_rows(data / "train.parquet", signature, CALIBRATION_ROWS, seed))


def _listed(written: Sequence[str | Candidate]) -> tuple[Candidate, ...]:
    """The recipe's candidates, those that it names in a word looked up."""
    from mlflowkit.graphs.candidates import NAMED

    return tuple(NAMED[one] if isinstance(one, str) else one for one in written)
