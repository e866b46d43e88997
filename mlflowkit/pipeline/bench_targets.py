"""Resolves the targets of `mlkit bench`: a bundle's folder, an ONNX file, or a recipe with a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlflowkit.bench.inputs import Fill, GraphInput, Requests, inputs_of, make_requests, read_requests
from mlflowkit.bench.target import BenchTarget, Tensors
from mlflowkit.bundle import Bundle, Signature, open_bundle, read_engine
from mlflowkit.errors import DataError, StoreError, UsageError, closest_match
from mlflowkit.features.tensors import inputs_from_table
from mlflowkit.graphs.candidates import NAMED
from mlflowkit.ports import ObjectStore, StatePorts
from mlflowkit.recipe.check import load
from mlflowkit.service_state.records import read_json
from mlflowkit.serving.protocol.http_error import RequestError
from mlflowkit.serving.protocol.input_schema import Schema
from mlflowkit.stages.base import read_signature, sample_rows
from mlflowkit.system.text import shell_word
from mlflowkit.values import RunRecord

OpenState = Callable[[Path], StatePorts]
GENERATED_ROWS = 256
"""Rows generated for a graph without rows of its own."""
REQUEST_ROWS = 1000
"""Most validation rows that requests are cut from."""
CALIBRATION_ROWS = 512
"""Most training rows for the calibration of a quantised graph."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The rows of requests for a target without its own: from a file, or generated."""

    file: Path | None = None
    fill: Fill = "random"
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Lengths of dynamic axes by name."""
    seed: int = 0


def resolve_target(
    target: Path, open_state: OpenState, state: Path | None = None, asking: InputSpec | None = None
) -> BenchTarget:
    """The benchmark target at a path. Raises UsageError when it is none of the three kinds, and errors of reading it.

    ``state`` is the state folder of a recipe, by default the one beside it; ``open_state`` opens one.
    """
    asking = asking or InputSpec()
    if not target.exists():
        raise UsageError(f"there is no {target}", hint="mlkit bench TARGET: a bundle, an ONNX file or a recipe")
    if target.is_dir():
        return of_bundle(target, asking)
    suffix = target.suffix if target.is_file() else ""  # reading a pipe would block
    if suffix in (".yaml", ".yml"):
        return of_recipe(target, open_state, state, asking)
    if suffix == ".onnx":
        return of_model(target, asking)
    kinds = "the folder of a bundle nor an ONNX file (.onnx) nor a recipe (.yaml)"
    raise UsageError(f"{target} is neither {kinds}", hint="mlkit bench TARGET")


def check_sizes(targets: Sequence[BenchTarget], asking: InputSpec) -> None:
    """Raise UsageError for the length of an axis that no graph has as a dynamic one."""
    if not asking.sizes:
        return
    sizes = [size for target in targets for graph_input in inputs_of(target.model) for size in graph_input.shape[1:]]
    axes = list(dict.fromkeys(size for size in sizes if isinstance(size, str) and size))
    for name in asking.sizes:
        if name not in axes:
            close = closest_match(name, axes)
            raise UsageError(
                f"--size: no graph has a dynamic axis {name} besides its rows; there are {', '.join(axes) or 'none'}",
                hint=f"did you mean --size {close}?" if close else "rows are the --batch of a request",
            )


def of_model(model: Path, asking: InputSpec) -> BenchTarget:
    """An ONNX file, with rows of its input types."""
    requests, notes = _rows(inputs_of(model), asking)
    return BenchTarget(model.stem, "onnx", model, model, model, requests, lambda: requests.arrays, notes=notes)


def of_bundle(folder: Path, asking: InputSpec) -> BenchTarget:
    """A verified bundle, blessed or not, with the sample rows of its evidence."""
    bundle = open_bundle(folder)
    notes = [] if bundle.blessing else ["not blessed: its gates did not pass, so it may be measured but not served"]
    requests = None if asking.file is not None else _sample(bundle)
    if requests is None:
        requests, row_notes = _rows(inputs_of(bundle.model), asking)
        notes += row_notes
    arrays = requests.arrays
    return BenchTarget(
        bundle.manifest.name, "bundle", folder, bundle.model, bundle.model, requests, lambda: arrays, bundle.engine,
        notes=tuple(notes), version=str(bundle.manifest.version),
    )  # fmt: skip


def of_recipe(path: Path, open_state: OpenState, state: Path | None, asking: InputSpec) -> BenchTarget:
    """The graph selected by a recipe's last run, with validation rows. Raises UsageError before the first run."""
    recipe = load(path).recipe
    folder = state or path.resolve().parent / ".mlkit"
    storage = open_state(folder)
    with storage.open_journal(create=False) as journal:
        record = next((run for run in journal.runs(name=recipe.name) if "optimize" in _published(run)), None)
    if record is None:
        raise UsageError(
            f"no run of {recipe.name} has built a graph yet (state folder {folder})",
            hint=f"mlkit run {shell_word(path)} --until optimize, or name another state folder with --state DIR",
        )
    folders = _stage_folders(record, storage.objects)
    signature = read_signature(folders["optimize"])

    def calibration() -> Tensors:
        rows = sample_rows(folders["data"] / "train.parquet", signature, CALIBRATION_ROWS, asking.seed)
        return inputs_from_table(signature, rows)

    notes = [f"picked by run {record.run}"]
    if asking.file is None:
        requests = _validation(folders["data"], signature)
    else:
        requests, row_notes = _rows(inputs_of(folders["optimize"] / "model.onnx"), asking)
        notes += row_notes
    return BenchTarget(
        recipe.name, "recipe", path, folders["optimize"] / "model.onnx", folders["export"] / "model.onnx", requests,
        calibration, read_engine(folders["optimize"]),
        tuple(NAMED[item] if isinstance(item, str) else item for item in recipe.optimize.candidates), tuple(notes),
    )  # fmt: skip


def _rows(inputs: Sequence[GraphInput], asking: InputSpec) -> tuple[Requests, tuple[str, ...]]:
    """Requests from the user's file, or generated, with notes on their origin."""
    if asking.file is not None:
        return read_requests(asking.file, inputs), ()
    requests = make_requests(inputs, GENERATED_ROWS, sizes=asking.sizes, fill=asking.fill, seed=asking.seed)
    numbers = "zeros" if asking.fill == "zeros" else "random numbers, whole ones 1"
    return requests, (f"its inputs are generated ({numbers}, strings empty); --inputs FILE.npz gives real ones",)


def _sample(bundle: Bundle) -> Requests | None:
    """The sample rows of the evidence as graph inputs; None for a bundle without them."""
    sample = read_json(bundle.path / "evidence" / "sample.json")
    if not sample or not sample.get("rows"):
        return None
    try:
        arrays = Schema(bundle.signature).arrays(sample["rows"])
    except RequestError as error:
        raise DataError(
            f"{bundle.path}: its sample rows do not fit its signature: {error}",
            hint="mlkit run RECIPE --force package, or --inputs FILE.npz",
        ) from error
    return Requests(arrays, len(sample["rows"]))


def _published(record: RunRecord) -> dict[str, str]:
    return {step.stage: step.digest for step in record.steps if step.digest}


def _stage_folders(record: RunRecord, store: ObjectStore) -> dict[str, Path]:
    """The published folder of each stage of a run. Raises StoreError when one was deleted."""
    folders = {stage: store.path(digest) for stage, digest in _published(record).items()}
    for stage in ("data", "export", "optimize"):
        if not folders[stage].is_dir():
            raise StoreError(
                f"run {record.run}: the output of {stage} is no longer in the store ({folders[stage]})",
                hint=f"mlkit run {shell_word(record.recipe_path)} --force {stage}",
            )
    return folders


def _validation(data: Path, signature: Signature) -> Requests:
    import pandas as pd

    columns = [column for tensor in signature.inputs for column in tensor.columns]
    rows = pd.read_parquet(data / "validation.parquet", columns=columns).head(REQUEST_ROWS)
    return Requests(inputs_from_table(signature, rows), len(rows))
