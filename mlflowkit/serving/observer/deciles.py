"""The tenths of a champion's predictions, by which a regression's predictions are counted.

They are told from the first EDGE_ROWS that the champion answers, by whichever replica has them first, and kept beside
the evidence: all replicas, and all that come later, count by the same ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlflowkit.service_state.records import ServiceFiles, read_json, write_json
from mlflowkit.serving.observer import shadow_comparison
from mlflowkit.serving.observer.bundle_info import known
from mlflowkit.serving.observer.frames import Batch
from mlflowkit.values import Json, RoutingTable


class Tenths:
    """The edges of tenths by champion."""

    def __init__(self, files: ServiceFiles) -> None:
        self._files = files
        self._edges: dict[str, tuple[float, ...]] = {}
        self._samples: dict[str, list[np.ndarray]] = {}

    @property
    def found(self) -> int:
        """Of how many champions they are known."""
        return len(self._edges)

    def of(self, table: RoutingTable, batch: Batch | None) -> tuple[float, ...] | None:
        """The champion's; () for a classification, None while they are not known. ``batch`` is what it answered."""
        champion = table.champion
        if known(champion).signature.task != "regression":
            return ()
        if champion.digest not in self._edges:
            path = self._files.folder / "tenths" / f"{champion.digest[:32]}.json"
            found = read_json(path)
            if found is None and batch is not None and batch.head.variant == champion.name:
                found = self._told(champion.digest, batch, path)
            if found is None:
                return None
            self._edges[champion.digest] = tuple(found)
        return self._edges[champion.digest]

    def _told(self, digest: str, batch: Batch, path: Path) -> Json:
        """The tenths, once enough was answered: the first to be written are everybody's."""
        sample = self._samples.setdefault(digest, [])
        sample.append(np.array(batch.answers["prediction"]).reshape(-1))
        if sum(map(len, sample)) < shadow_comparison.EDGE_ROWS:
            return None
        edges = shadow_comparison.tenths(np.concatenate(self._samples.pop(digest)))
        with self._files.lock("tenths"):
            found = read_json(path)
            if found is None:
                write_json(path, edges)
        return edges if found is None else found
