"""One measurement of a group of candidates in turns, block by block, with early stopping."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlflowkit.bench.measure import LEAD_IN, Samples, measure_blocks
from mlflowkit.errors import StoreError, TrialError
from mlflowkit.optimization import early_stopping
from mlflowkit.optimization.objective import CandidateFigures
from mlflowkit.optimization.space import FLOAT, key_of
from mlflowkit.optimization.trial_outcome import TournamentSettings, TrialOutcome
from mlflowkit.ports import Trial
from mlflowkit.system import arrays

MAX_WARM_UP_BLOCKS = 8
"""A group has many candidates; one that has not settled by then gets a note."""


@dataclass
class InterleavedRun:
    """Measures the members of a group in turns, and records which failed or were stopped."""

    group: Mapping[str, TrialOutcome]
    eligible: Sequence[str]
    """Members that may be picked."""
    settings: TournamentSettings
    trials: Mapping[str, Trial]
    progress: Callable[[float, str], None]
    failed: dict[str, TrialError] = field(default_factory=dict)
    dominated: dict[str, str] = field(default_factory=dict)
    """Why a member is dominated."""
    not_pickable: dict[str, str] = field(default_factory=dict)
    """Why a member cannot be picked, though it may be on the Pareto front."""

    def measure(self, path: Path) -> dict[str, Samples]:
        """Samples of all members that did not fail, read from ``path`` where an interrupted run has completed them."""
        samples = self._read(path)
        if samples is not None:
            return samples
        measured = measure_blocks(
            {key: self._block_source(key) for key in self.group},
            self.settings.samples,
            size=self.settings.block,
            lead_in=min(LEAD_IN, -(-self.settings.block // 10)),
            warm_up=MAX_WARM_UP_BLOCKS,
            progress=self._report_progress,
            stop=self._members_to_stop,
        )
        samples = {key: taken for key, taken in measured.items() if key not in self.failed}
        if not self.failed:
            self._write(path, samples)
        return samples

    def _report_progress(self, done: float) -> None:
        if (done * 20).is_integer():
            self.progress(0.4 + 0.6 * done, f"measuring {len(self.group)} candidates")

    def _block_source(self, key: str) -> Callable[[int, int], Sequence[int]]:
        """Blocks of a trial; placeholders that are never used once it has failed, so that the others continue."""

        def block(start: int, count: int) -> Sequence[int]:
            if key not in self.failed:
                try:
                    return self.trials[key].block(start, count)
                except TrialError as error:
                    if key == key_of(FLOAT):
                        raise
                    self.failed[key] = error
            return [1] * count

        return block

    def _members_to_stop(self, blocks: Mapping[str, Sequence[Sequence[int]]]) -> list[str]:
        """Members that get no more turns: failed ones and, at a look, those that cannot be picked or are rejected."""
        settings = self.settings
        looks = early_stopping.looks(-(-settings.samples // settings.block))
        failed = [key for key in blocks if key in self.failed]
        if not settings.stop_early or len(next(iter(blocks.values()))) not in looks:
            return failed
        running = [key for key in blocks if key not in self.failed]
        eligible = [key for key in self.eligible if key in running]
        stopped = early_stopping.eliminate(
            {key: CandidateFigures(np.array(blocks[key]) / 1000) for key in eligible},
            {key: self.group[key].secondary_objectives(settings.max_metric_drop) for key in eligible},
            settings.objective,
            eligible=eligible,
            spared=[key_of(FLOAT)],
            looks=len(looks),
        )
        for decision in stopped:
            reasons = self.dominated if decision.dominated else self.not_pickable
            reasons[decision.name] = decision.reason.replace(decision.by, self.group[decision.by].name)
        rejected = [key for key in running if self.group[key].status == "rejected" and key != key_of(FLOAT)]
        return [*failed, *(decision.name for decision in stopped), *rejected]

    def _write(self, path: Path, samples: Mapping[str, Samples]) -> None:
        content: dict[str, np.ndarray] = {}
        for key, taken in samples.items():
            content[f"{key}/blocks"] = taken.microseconds
            content[f"{key}/warm"] = np.array([taken.warm_up, int(taken.settled)])
            reasons = [self.dominated.get(key, ""), self.not_pickable.get(key, "")]
            content[f"{key}/stopped"] = np.array(reasons, dtype=object)
        arrays.write(path, content)

    def _read(self, path: Path) -> dict[str, Samples] | None:
        if not path.exists():
            return None
        try:
            content = arrays.read(path)
        except StoreError:
            with contextlib.suppress(OSError):
                os.unlink(path)
            return None
        if {name.partition("/")[0] for name in content} != set(self.group):
            return None
        for index, reasons in enumerate((self.dominated, self.not_pickable)):
            reasons |= {key: content[f"{key}/stopped"][index] for key in self.group if content[f"{key}/stopped"][index]}
        return {
            key: Samples(content[f"{key}/blocks"], int(content[f"{key}/warm"][0]), bool(content[f"{key}/warm"][1]))
            for key in self.group
        }
