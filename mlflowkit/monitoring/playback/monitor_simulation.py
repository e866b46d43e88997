"""How often a recipe's monitor alarms on clean traffic, and how soon it sees a shift: the real monitor, simulated.

Each run is one version's life: the windows of its baseline, then as many again as are asked for. In a shifted run one
column moves right after the baseline, for good; its exposure is the rows that were answered until the alarm.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from mlflowkit.judging.shift.shift_settings import LEARN
from mlflowkit.monitoring.monitor_settings import LiveBaseline, MonitorSection, RetrainSection
from mlflowkit.monitoring.playback.monitor_playback import play_monitor
from mlflowkit.monitoring.playback.synthetic_windows import (
    SHIFTED,
    SyntheticVersion,
    synthetic_reference,
    synthetic_windows,
)
from mlflowkit.values import Variant

CHAMPION = Variant("champion", "1", "1", "")
FACTORS = (1.5, 2.0, 3.0, 4.0)
"""Distances that are simulated, in multiples of the margin."""
Done = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class SimulatedMonitor:
    """One run: windows from the onset to the alarm about the column that shifted (None: none), and the rows answered
    in them; whether any other column alarmed, and whether a retraining was asked for."""

    delay: int | None
    exposure: int
    false_alarm: bool
    asked: bool


@dataclass(frozen=True, slots=True)
class MonitorSummary:
    """All runs of one scenario. Delays in windows, exposure in rows: medians of the runs that alarmed."""

    name: str
    distance: float
    runs: int
    alarmed: int
    false_alarms: int
    asked: int
    delay: float | None
    longest_delay: int | None
    exposure: float | None

    @property
    def sentence(self) -> str:
        """The scenario's result in a sentence."""
        if not self.distance:
            return (
                f"{self.name}: {self.false_alarms} of {self.runs} lives with an alarm, {self.asked} with a retraining"
            )
        found = f"{self.name}: found in {self.alarmed} of {self.runs}"
        if self.delay is None or self.exposure is None:
            return found
        return (
            f"{found}, after {self.delay:g} windows ({self.longest_delay} at most), {self.exposure:,.0f} rows answered "
            f"until then; a retraining asked for in {self.asked}"
        )


def scenarios_of(section: MonitorSection, traffic: SyntheticVersion) -> tuple[tuple[str, SyntheticVersion], ...]:
    """Clean traffic, and shifts of multiples of the margin right after the baseline."""
    learned = max(section.baseline.windows, LEARN) if isinstance(section.baseline, LiveBaseline) else LEARN
    traffic = replace(traffic, windows=learned + traffic.windows, onset=learned)
    distances = sorted({round(min(factor * (section.margin or 0.05), 0.5), 3) for factor in FACTORS})
    shifted = [(f"shift of {distance:g}", replace(traffic, distance=distance)) for distance in distances]
    return (("clean", traffic), *shifted)


def simulate_monitor(
    section: MonitorSection, retrain: RetrainSection | None, traffic: SyntheticVersion, runs: int, seed: int, done: Done
) -> Iterator[SimulatedMonitor]:
    """Lives of a version under the same traffic."""
    for number in range(runs):
        reference = synthetic_reference(traffic.columns, seed + number)
        windows = synthetic_windows(traffic, seed + number)
        first, false_alarm, asked = None, False, False
        for index, played in enumerate(play_monitor("simulated", CHAMPION, section, retrain, reference, windows)):
            columns = {alert.column for alert in played.alerts if alert.kind not in ("no_data", "blind")}
            shifted = traffic.distance > 0 and index >= traffic.onset
            if shifted and SHIFTED in columns and first is None:
                first = index
            false_alarm = false_alarm or bool(columns - ({SHIFTED} if shifted else set()))
            asked = asked or played.asks
            if first is not None and (asked or retrain is None):
                break
        delay = None if first is None else first - traffic.onset + 1
        yield SimulatedMonitor(delay, (delay or 0) * traffic.rows, false_alarm, asked)
        done(number + 1)


def summarise_monitor(name: str, distance: float, runs: Sequence[SimulatedMonitor]) -> MonitorSummary:
    """The summary of a scenario."""
    alarmed = [run for run in runs if run.delay is not None]
    delays = [run.delay for run in alarmed if run.delay is not None]
    return MonitorSummary(
        name, distance, len(runs), len(alarmed), sum(run.false_alarm for run in runs), sum(run.asked for run in runs),
        statistics.median(delays) if delays else None, max(delays, default=None),
        statistics.median(run.exposure for run in alarmed) if alarmed else None,
    )  # fmt: skip
