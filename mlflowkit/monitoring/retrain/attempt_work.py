"""The work of one attempt, in a process of its own: claim it, run ``mlkit run``, write what came of it.

The process is started by `runner`, outlives the controller that started it, and is SIGKILLed together with its
``mlkit run``. A run that is cut is made again by the next attempt: ``mlkit run`` resumes at the step that was cut.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from mlflowkit.errors import DataError, InterruptedRunError, MlkitError, ServiceError
from mlflowkit.judging.shift.reference import EVIDENCE, Reference
from mlflowkit.monitoring.monitor_settings import read_settings
from mlflowkit.monitoring.retrain import episodes
from mlflowkit.monitoring.retrain.bounded_log import BoundedLog, sweep_logs
from mlflowkit.monitoring.retrain.episodes import AttemptResult, Episode
from mlflowkit.service_state.records import ServiceFiles, read_json
from mlflowkit.system import failpoint
from mlflowkit.system.child_process import die_with_parent_command, python_path
from mlflowkit.system.text import shell_word
from mlflowkit.values import Json

if TYPE_CHECKING:
    import numpy as np

QUANTILES = (0.25, 0.5, 0.75)
"""Quantiles of the new training rows by which a change of units shows."""
_log = logging.getLogger("mlflowkit.monitoring")


class RunsRecipe(Protocol):
    """Runs an episode's recipe."""

    @property
    def objects(self) -> Path:
        """The folder of published results."""

    def run(self, *options: str) -> tuple[int, Mapping[str, Json]]:
        """Run it with options; returns the exit code and the JSON that it printed ({} for none)."""


def make_attempt(
    files: ServiceFiles,
    id: str,
    attempt: str,
    prepare: Callable[[ServiceFiles, Episode, str], RunsRecipe] | None = None,
) -> bool:
    """Make an attempt unless another process has claimed it; returns whether this process made it.

    Every failure is written as a result: the controller must never wait for one.
    """
    episode = episodes.read_episode(files, id)
    current = None if episode is None else episode.current
    if episode is None or current is None or current.name != attempt:
        _log.info("%s: attempt %s of episode %s is over", files.service, attempt, id)
        return False
    if not episodes.claim_attempt(files, id, attempt):
        _log.info("%s: attempt %s of episode %s is another process's", files.service, attempt, id)
        return False
    failpoint.hit("retrain.claimed")
    command = (prepare or RecipeCommand)(files, episode, attempt)
    try:
        result = _look(command, episode) if current.task == "look" else _train(command)
    except MlkitError as error:
        result = AttemptResult(error.exit_code, message=error.message)
    except Exception as error:  # noqa: BLE001 - the controller waits for a result
        _log.exception("%s: attempt %s of episode %s", files.service, attempt, id)
        result = AttemptResult(MlkitError.exit_code, message=f"{type(error).__name__}: {error}")
    failpoint.hit("retrain.worked")
    episodes.write_result(files, id, attempt, result)
    failpoint.hit("retrain.ended")
    return True


class RecipeCommand:
    """``mlkit run`` of an episode's recipe, with its log in ``services/<service>/monitor/logs``."""

    def __init__(self, files: ServiceFiles, episode: Episode, attempt: str) -> None:
        self._files = files
        self._episode = episode
        self._log = files.folder / "monitor" / "logs" / f"{episode.id}.{attempt}.log"
        self.objects = files.state / "objects"

    def run(self, *options: str) -> tuple[int, Mapping[str, Json]]:
        """Run the recipe; returns the exit code and the JSON that it printed ({} for none).

        The environment is this process's, so that a recipe's secrets are found by their names. Raises
        InterruptedRunError when this process is told to end.
        """
        _require_own_recipe(self._files, self._episode)
        episode, recipe = self._episode, Path(self._episode.recipe)
        words = ["run", str(recipe), *episode.overrides, *options, "--state", str(self._files.state), "--json"]
        failpoint.hit("retrain.working")
        child = subprocess.Popen(
            die_with_parent_command("mlflowkit.cli", *words),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=recipe.parent if recipe.parent.is_dir() else None, env={**os.environ, **python_path()},
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stderr is not None
        log = BoundedLog(self._log, child.stderr)
        with _forwarded_sigterm(child):
            output = child.stdout.read()
            code = child.wait()
        last = log.wait()
        sweep_logs(self._log.parent)
        try:
            value = json.loads(output)
        except ValueError:
            value = {}
        if code != 0 and not value:  # a crash: not the verdict of a gate
            value = {"error": {"message": last or f"the run ended with code {code}"}}
        return code, value if isinstance(value, dict) else {}


def _require_own_recipe(files: ServiceFiles, episode: Episode) -> None:
    """Raise ServiceError unless a run on this machine, in this state folder, deployed the episode's recipe."""
    settings = read_settings(files)
    if settings is None or settings.recipe != episode.recipe or not settings.written_in(files.state):
        raise ServiceError(
            f"{episode.recipe} is not run: it is not the recipe that was deployed to {files.service} from here",
            hint=f"mlkit run {shell_word(episode.recipe)}",
        )


def _train(command: RunsRecipe) -> AttemptResult:
    return read_summary(*command.run())


def _look(command: RunsRecipe, episode: Episode) -> AttemptResult:
    """Resolve the data version; of another one than the champion's, check the data and count its training rows."""
    code, summary = command.run("--until", "data")
    result = read_summary(code, summary)
    if code != 0 or result.data_version == episode.champion_data:
        return result
    code, summary = command.run("--until", "validate")
    result = read_summary(code, summary)
    folder = _data_folder(command, summary)
    reference = read_reference(Path(episode.bundle))
    if code != 0 or folder is None or reference is None:
        return result
    counts, quantiles = count_training_rows(folder, reference)
    return AttemptResult(
        0, result.run, data_version=result.data_version, counts=counts, quantiles=quantiles, message=result.message
    )


def read_summary(code: int, summary: Mapping[str, Json]) -> AttemptResult:
    """The result of ``mlkit run --json``. Without a run in it, no exit code is that of a gate.

    >>> read_summary(1, {}).code, read_summary(1, {"run": "r1"}).code
    (3, 1)
    """
    steps = summary.get("steps") or ()
    error = summary.get("error") or {}
    judged = bool(summary.get("run"))
    return AttemptResult(
        code if judged or code not in (0, 1, 4) else MlkitError.exit_code,
        str(summary.get("run") or ""),
        str(summary.get("identity") or ""),
        str(summary.get("version") or ""),
        str(summary.get("experiment") or ""),
        str((summary.get("lineage") or {}).get("data_version") or ""),
        message=str(error.get("message") or summary.get("rollout") or ""),
        trained=any(step.get("stage") == "train" and step.get("action") == "run" for step in steps),
    )


def read_reference(bundle: Path) -> Reference | None:
    """The monitoring reference of a bundle; None for a bundle without one, or with one that cannot be read."""
    try:
        value = read_json(bundle / EVIDENCE)
        return None if value is None else Reference.from_json(value)
    except (MlkitError, KeyError, TypeError, ValueError, AttributeError) as error:
        _log.error("%s cannot be read: %s", bundle / EVIDENCE, error)
        return None


def count_training_rows(
    folder: Path, reference: Reference
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[float, ...]]]:
    """The training rows of a data stage's folder in the cells of a reference, and quantiles of the numbers, by column.

    Columns that the new data lack are left out.
    """
    import numpy as np
    import pyarrow.parquet as parquet

    from mlflowkit.features.cell_counts import count_cells
    from mlflowkit.features.tensors import categorical_matrix, numeric_matrix

    file = parquet.ParquetFile(folder / "train.parquet")
    counts, quantiles = {}, {}
    for name in file.schema_arrow.names:
        column = reference.columns.get(name)
        if column is None:
            continue
        frame = file.read(columns=[name]).to_pandas()
        number = column.cells.kind == "number"
        edges = np.array(column.cells.edges)
        dtype = np.float32 if np.array_equal(edges, edges.astype(np.float32)) else np.float64
        try:
            values = (numeric_matrix(frame, [name], dtype) if number else categorical_matrix(frame, [name]))[:, 0]
            counts[name] = count_cells(column.cells, values)
        except (DataError, TypeError, ValueError) as error:  # a column that changed its type cannot be compared
            _log.warning("column %s of the new data cannot be counted: %s", name, error)
            continue
        if number:
            quantiles[name] = number_quantiles(values)
    return counts, {name: row for name, row in quantiles.items() if row}


def number_quantiles(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """`QUANTILES` of the finite values of an array; () for none.

    >>> number_quantiles([1.0, 2.0, float("nan"), 3.0])
    (1.5, 2.0, 2.5)
    """
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    finite = array[np.isfinite(array)]
    return tuple(float(value) for value in np.quantile(finite, QUANTILES)) if len(finite) else ()


def _data_folder(command: RunsRecipe, summary: Mapping[str, Json]) -> Path | None:
    """The published folder of the data stage of a run; None when it did not get so far."""
    digests = [step.get("digest") for step in summary.get("steps") or () if step.get("stage") == "data"]
    folder = command.objects / str(digests[0]) if digests and digests[0] else None
    return folder if folder is not None and folder.is_dir() else None


@contextlib.contextmanager
def _forwarded_sigterm(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Forward SIGTERM to the run, which stops resumable, and raise InterruptedRunError."""
    signals: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        child.terminate()

    before = signal.signal(signal.SIGTERM, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    if signals:
        raise InterruptedRunError("the run was interrupted")
