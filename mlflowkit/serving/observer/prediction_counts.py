"""What one replica's observer has counted of the present experiment, by routing table and variant. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlflowkit.judging.online.evidence import Evidence, Moments, VariantCounts


@dataclass(slots=True)
class Counts:
    """What was counted of one variant under one table."""

    predictions: dict[str, int] = field(default_factory=dict)
    agreement: dict[str, Moments] = field(default_factory=dict)
    difference: Moments = field(default_factory=Moments)

    def predicted(self, counts: Mapping[str, int]) -> None:
        for key, count in counts.items():
            self.predictions[key] = self.predictions.get(key, 0) + count

    def compared(self, agreement: Mapping[str, Moments], difference: Moments) -> None:
        for key, value in agreement.items():
            self.agreement[key] = self.agreement.get(key, Moments()) + value
        self.difference += difference


class Counting:
    """Evidence of the present experiment, cumulative over restarts of the observer."""

    def __init__(self, evidence: Evidence | None = None) -> None:
        self.experiment = "" if evidence is None else evidence.experiment
        self.changed = False
        self._newest = max(evidence.epochs, default=-1) if evidence is not None else -1
        self._counts: dict[int, dict[str, Counts]] = {}
        for epoch, variants in () if evidence is None else evidence.epochs.items():
            for name, counts in variants.items():
                kept = Counts(dict(counts.predictions), dict(counts.agreement), counts.difference)
                self._counts.setdefault(epoch, {})[name] = kept

    def of(self, experiment: str, epoch: int, variant: str) -> Counts | None:
        """Where to count; None for records that came after their experiment was over. A new experiment begins at 0."""
        if experiment != self.experiment:
            if epoch < self._newest:
                return None
            self.experiment, self._counts = experiment, {}
        self._newest = max(self._newest, epoch)
        self.changed = True
        return self._counts.setdefault(epoch, {}).setdefault(variant, Counts())

    def evidence(self) -> Evidence:
        """Everything that was counted of the present experiment."""
        epochs = {
            epoch: {
                name: VariantCounts(
                    predictions=dict(counts.predictions), agreement=dict(counts.agreement), difference=counts.difference
                )
                for name, counts in variants.items()
            }
            for epoch, variants in self._counts.items()
        }
        return Evidence(self.experiment, epochs)
