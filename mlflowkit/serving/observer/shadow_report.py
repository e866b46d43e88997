"""Reports of how shadows compare with the champion, published for people to look at.

::

    <service>/disagreements/<replica>/<shadow>.json   the report of one replica
    <service>/disagreements/<shadow>.json             the sum over all replicas
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from mlflowkit.bundle import Signature
from mlflowkit.errors import ServiceError
from mlflowkit.judging.online.evidence import VariantCounts
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.serving.observer import paired_answers, shadow_comparison
from mlflowkit.serving.observer.bundle_info import BundleInfo, bundle_info, find_variant
from mlflowkit.serving.observer.frames import Batch
from mlflowkit.serving.observer.shadow_comparison import RowComparison, ShadowComparison
from mlflowkit.system.log_once import LogOnce
from mlflowkit.values import Json, RoutingTable

_log = logging.getLogger("mlflowkit.observer")


class ShadowReports:
    """One replica's report on each shadow. ``attempt`` runs a write and returns whether it succeeded."""

    def __init__(self, files: ServiceFiles, replica: str, attempt: Callable[[Callable[[], None]], bool]) -> None:
        self._files = files
        self._replica = replica
        self._attempt = attempt
        self._reports: dict[str, ShadowComparison] = {}
        self._changed: set[str] = set()
        self._pairs: dict[tuple[str, int, str, str], paired_answers.PairCounter] = {}
        self._slices: dict[tuple[str, str], Mapping[str, frozenset[str]]] = {}
        self._errors = LogOnce(_log)

    def add(self, batch: Batch, table: RoutingTable, edges: tuple[float, ...]) -> VariantCounts:
        """Compare rows that champion and shadow answered; return the counts to add to the shadow's evidence."""
        header, answers, seconds = batch.header, batch.shadow, batch.shadow_seconds
        assert answers is not None
        assert seconds is not None  # a batch has both or neither
        champion, shadow = bundle_info(table.champion), bundle_info(find_variant(table, header.shadow))
        within = shadow_comparison.tolerance(edges) if edges else 0.0
        rows = shadow_comparison.compare(champion.signature, batch.answers, answers, shadow.signature, within)
        inputs = _input_columns(batch, champion.signature)
        slices = self._slice_values(champion, header.experiment)
        agreement = {"": shadow_comparison.moments(rows.agrees)}
        for column, values in slices.items():
            agreement |= shadow_comparison.slice_moments(rows.agrees, column, inputs[column], values)
        by_request = agreement
        if len(batch.ids) < batch.rows:
            by_request = {"": shadow_comparison.request_moments(rows.agrees, batch.request)}
            for column, values in slices.items():
                by_request |= shadow_comparison.request_slice_moments(
                    rows.agrees, batch.request, column, inputs[column], values
                )
        report = self._reports.get(header.shadow)
        if report is None or (report.experiment, report.version) != (header.experiment, header.shadow_version):
            report = ShadowComparison(header.shadow, header.shadow_version, header.experiment)
            self._reports[header.shadow] = report
        report.add(rows, agreement, seconds - batch.seconds)
        for row in np.flatnonzero(~rows.agrees):
            index = report.examples.next_index()
            if index is not None:
                names = [shadow_comparison.slice_name(name, inputs[name][row], slices[name]) for name in slices]
                item = {**example(batch, int(row), rows, inputs), "slices": names}
                report.examples.items[index : index + 1] = [item]
        self._changed.add(header.shadow)
        points = paired_answers.embed(champion.signature, batch.answers, answers, shadow.signature, rows, edges)
        means = paired_answers.request_means(batch.request, *points)
        key = (header.experiment, header.epoch, header.shadow, header.shadow_version)
        if key not in self._pairs:
            self._pairs = {other: kept for other, kept in self._pairs.items() if other[0] == header.experiment}
            self._pairs[key] = paired_answers.PairCounter()
        pairs = self._pairs[key].add(means)
        predictions = shadow_comparison.prediction_counts(shadow.signature, answers, edges)
        difference = shadow_comparison.moments(rows.difference)
        requests = shadow_comparison.request_prediction_counts(shadow.signature, answers, batch.request, edges)
        return VariantCounts(
            predictions=predictions, agreement=agreement, difference=difference, pairs=pairs,
            request_predictions=requests, request_agreement=by_request,
        )  # fmt: skip

    def publish(self) -> None:
        """Write the reports that changed; a failed write is repeated the next time."""
        self._changed = {name for name in self._changed if not self._attempt(partial(self._write, self._reports[name]))}

    def _slice_values(self, champion: BundleInfo, experiment: str) -> Mapping[str, frozenset[str]]:
        key = (champion.digest, experiment)
        if key not in self._slices:
            named: tuple[str, ...] = ()
            try:
                named = agreement_columns(self._files.read_json("rollout.json"), experiment)
            except (ServiceError, AttributeError, KeyError, TypeError) as error:
                _log.error("rollout.json is damaged; agreement is sliced by the default columns: %r", error)
            self._slices = {key: shadow_comparison.sliced_columns(champion.signature, champion.reference, named)}
        return self._slices[key]

    def _write(self, report: ShadowComparison) -> None:
        name = f"{report.shadow}.json"
        own = f"disagreements/{self._replica}/{name}"
        self._files.write_json(own, report.to_json(), durable=False)
        with self._files.lock("disagreements"):
            others = [entry.key for entry in self._files.list(f"disagreements/*/{name}") if entry.key != own]
            self._files.write_json(f"disagreements/{name}", self._merge(report, others), durable=False)

    def _merge(self, report: ShadowComparison, names: Iterable[str]) -> Json:
        """Add other replicas' reports to this one; a damaged file is left out."""
        total = report.to_json()
        for name in names:
            try:
                part = self._files.read_json(name)
                if part is not None and part["experiment"] == report.experiment:
                    total = shadow_comparison.merge_comparisons([total, part])
                self._errors.clear(name)
            except (ServiceError, AttributeError, KeyError, TypeError, ValueError) as error:
                place = self._files.location(name)
                self._errors.error(f"{place} is damaged and was left out: {error!r}", key=name)
        return total


def example(batch: Batch, row: int, rows: RowComparison, inputs: Mapping[str, np.ndarray]) -> Json:
    """One row on which the shadow disagreed: inputs by column and both answers."""
    assert batch.shadow is not None  # rows are compared only when the shadow answered
    request = int(batch.request[row])
    return {
        "time": float(batch.times[request]),
        "id": batch.ids[request],
        "row": int(batch.row[row]),
        "inputs": {name: _to_json(values[row]) for name, values in inputs.items()},
        "champion": {name: _to_json(array[row]) for name, array in batch.answers.items()},
        "shadow": {name: _to_json(array[row]) for name, array in batch.shadow.items()},
        "difference": _to_json(rows.difference[row]),
    }


def _to_json(value: Any) -> Json:
    """Convert a cell to JSON; NaN and infinities become null."""
    if isinstance(value, np.ndarray):
        return [_to_json(item) for item in value]
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not np.isfinite(plain) else plain


def agreement_columns(saved: Json, experiment: str) -> tuple[str, ...]:
    """The columns by which the rollout of an experiment judges agreement, from the content of ``rollout.json``.

    >>> plan = {"metrics": [{"metric": "agreement", "columns": ["term"]}]}
    >>> agreement_columns({"state": {"experiment": "e1", "plan": plan}}, "e1")
    ('term',)
    """
    state = saved["state"] if isinstance(saved, dict) else {}
    if state.get("experiment") != experiment:
        return ()
    metrics = [metric for metric in state["plan"]["metrics"] if metric["metric"] == "agreement"]
    return tuple(column for metric in metrics for column in metric["columns"])


def _input_columns(batch: Batch, signature: Signature) -> dict[str, np.ndarray]:
    return {
        column: batch.inputs[tensor.name].reshape(batch.rows, -1)[:, index]
        for tensor in signature.inputs
        for index, column in enumerate(tensor.columns)
    }
