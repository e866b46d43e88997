"""What a replica's observer compares of the champion and its shadows, and publishes for people to look at.

::

    <service>/disagreements/<replica>/<shadow>.json   what one replica saw
    <service>/disagreements/<shadow>.json             what all of them saw
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlflowkit.bundle import Signature
from mlflowkit.errors import ServiceError
from mlflowkit.service_state.records import ServiceFiles, read_json, write_json
from mlflowkit.serving.observer import frames, shadow_comparison
from mlflowkit.serving.observer.bundle_info import Known, known, variant_of
from mlflowkit.serving.observer.frames import Batch
from mlflowkit.serving.observer.prediction_counts import Counts
from mlflowkit.values import Json, RoutingTable

_log = logging.getLogger("mlflowkit.observer")


class Disagreements:
    """What one replica saw of each shadow. ``attempt`` does a write and says whether the disk took it."""

    def __init__(self, files: ServiceFiles, replica: str, attempt: Callable[[Callable[[], None]], bool]) -> None:
        self._files = files
        self._replica = replica
        self._attempt = attempt
        self._comparisons: dict[str, shadow_comparison.Comparison] = {}
        self._touched: set[str] = set()
        self._slices: dict[tuple[str, str], Mapping[str, frozenset[str]]] = {}
        self._damaged: set[Path] = set()

    def add(self, batch: Batch, table: RoutingTable, edges: tuple[float, ...], counts: Counts) -> None:
        """Compare rows that champion and shadow answered, and count them."""
        head, answers, seconds = batch.head, batch.shadow, batch.shadow_seconds
        assert answers is not None  # rows are compared where there is an answer
        assert seconds is not None  # there where a shadow is
        champion, shadow = known(table.champion), known(variant_of(table, head.shadow))
        within = shadow_comparison.tolerance(edges) if edges else 0.0
        found = shadow_comparison.compare(champion.signature, batch.answers, answers, shadow.signature, within)
        texts = _texts(batch, champion.signature)
        sliced = self._sliced(champion, head.experiment)
        agreement = {"": shadow_comparison.moments(found.agrees)}
        for column, values in sliced.items():
            agreement |= shadow_comparison.slice_moments(found.agrees, column, texts[column], values)
        counts.compared(agreement, shadow_comparison.moments(found.difference))
        counts.predicted(shadow_comparison.prediction_counts(shadow.signature, answers, edges))
        seen = self._comparison(head)
        seen.add(found, agreement, seconds - batch.seconds)
        for row in np.flatnonzero(~found.agrees):
            place = seen.examples.place()
            if place is not None:
                slices = [
                    shadow_comparison.slice_name(name, texts[name][row], values) for name, values in sliced.items()
                ]
                one = {**example(batch, int(row), found, champion.signature), "slices": slices}
                seen.examples.items[place : place + 1] = [one]
        self._touched.add(head.shadow)

    def publish(self) -> None:
        """Write what changed; what the disk does not take is tried again the next time."""
        self._touched = {shadow for shadow in self._touched if not self._publish(self._comparisons[shadow])}

    def _comparison(self, head: frames.Head) -> shadow_comparison.Comparison:
        seen = self._comparisons.get(head.shadow)
        if seen is None or (seen.experiment, seen.version) != (head.experiment, head.shadow_version):
            seen = shadow_comparison.Comparison(head.shadow, head.shadow_version, head.experiment)
            self._comparisons[head.shadow] = seen
        return seen

    def _sliced(self, champion: Known, experiment: str) -> Mapping[str, frozenset[str]]:
        key = (champion.digest, experiment)
        if key not in self._slices:
            named: tuple[str, ...] = ()
            try:
                named = agreement_columns(read_json(self._files.folder / "rollout.json"), experiment)
            except (ServiceError, AttributeError, KeyError, TypeError) as error:
                _log.error("rollout.json is damaged, agreement is told by columns of few values: %r", error)
            self._slices = {key: shadow_comparison.sliced_columns(champion.signature, champion.reference, named)}
        return self._slices[key]

    def _publish(self, seen: shadow_comparison.Comparison) -> bool:
        """Write what this replica saw of a shadow, and beside it what all replicas saw."""
        folder, name = self._files.folder / "disagreements", f"{seen.shadow}.json"

        def write() -> None:
            own = folder / self._replica / name
            write_json(own, seen.to_json(), durable=False)
            with self._files.lock("disagreements"):
                others = (path for path in sorted(folder.glob(f"*/{name}")) if path != own)
                write_json(folder / name, self._with_others(seen, others), durable=False)

        return self._attempt(write)

    def _with_others(self, seen: shadow_comparison.Comparison, paths: Iterable[Path]) -> Json:
        """What this replica saw of a shadow together with what others did; a file that is damaged is left out."""
        whole = seen.to_json()
        for path in paths:
            try:
                part = read_json(path)
                if part is not None and part["experiment"] == seen.experiment:
                    whole = shadow_comparison.merged([whole, part])
                self._damaged.discard(path)
            except (ServiceError, AttributeError, KeyError, TypeError, ValueError) as error:
                if path not in self._damaged:
                    _log.error("%s is damaged and was left out: %r", path, error)
                self._damaged.add(path)
        return whole


def example(batch: Batch, row: int, found: shadow_comparison.Compared, signature: Signature) -> Json:
    """One row on which a shadow disagreed: inputs by column and both answers."""
    assert batch.shadow is not None  # rows are compared where there is an answer
    inputs = {
        column: _plain(batch.inputs[tensor.name].reshape(batch.rows, -1)[row, place])
        for tensor in signature.inputs
        for place, column in enumerate(tensor.columns)
    }
    request = int(batch.request[row])
    return {
        "time": float(batch.times[request]),
        "id": batch.ids[request],
        "row": int(batch.row[row]),
        "inputs": inputs,
        "champion": {name: _plain(array[row]) for name, array in batch.answers.items()},
        "shadow": {name: _plain(array[row]) for name, array in batch.shadow.items()},
        "difference": _plain(found.difference[row]),
    }


def _plain(value: Any) -> Json:
    """A cell as JSON; a number that is none is null."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value]
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not np.isfinite(plain) else plain


def agreement_columns(saved: Json, experiment: str) -> tuple[str, ...]:
    """The columns by whose values the rollout of an experiment judges agreement, from ``rollout.json``.

    >>> plan = {"metrics": [{"metric": "agreement", "columns": ["term"]}]}
    >>> agreement_columns({"state": {"experiment": "e1", "plan": plan}}, "e1")
    ('term',)
    """
    state = saved["state"] if isinstance(saved, dict) else {}
    if state.get("experiment") != experiment:
        return ()
    metrics = [metric for metric in state["plan"]["metrics"] if metric["metric"] == "agreement"]
    return tuple(column for metric in metrics for column in metric["columns"])


def _texts(batch: Batch, signature: Signature) -> dict[str, np.ndarray]:
    """Text columns by name."""
    return {
        column: batch.inputs[tensor.name].reshape(batch.rows, -1)[:, place]
        for tensor in signature.inputs
        if tensor.datatype == "BYTES" and tensor.name in batch.inputs
        for place, column in enumerate(tensor.columns)
    }
