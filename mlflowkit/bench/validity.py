"""Validity of samples: enough of them, outliers, a machine that changed during the measurement. Pure.

No sample is deleted; every finding is a sentence in the ``notes`` of a result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflowkit.errors import UsageError
from mlflowkit.judging.stats import effective_samples

if TYPE_CHECKING:
    import numpy as np

    from mlflowkit.bench.environment import MachineMoment
    from mlflowkit.bench.measure import Samples
    from mlflowkit.bench.nvml import GpuReading

CONFIDENCE = 0.95
FENCE = 3.0
"""Distance of Tukey's outer fence from the upper quartile, in interquartile ranges (Tukey, 1977)."""
MIN_SPREAD = 0.01
"""Lower limit of the interquartile range as a share of the median: a coarse clock has none."""
MAX_OUTLIERS = 0.01
"""Share of outliers that is noted."""
SHIFT = 0.05
"""Change of the machine's pace that is noted, ..."""
SHIFT_LEVEL = 0.001
"""... if its p-value is below this level."""
MAX_LOAD = 0.5
"""Load a core over the minute before that is noted."""
MAX_STOLEN = 0.01
"""Share of the busy time taken by the hypervisor that is noted."""
SLOWER_CLOCK = 0.05
"""Drop of a clock during a measurement that is noted."""


@dataclass(frozen=True, slots=True)
class SampleAdequacy:
    """Whether ``samples`` bound a quantile on both sides; ``effective`` is their number corrected for correlation."""

    quantile: float
    samples: int
    effective: float
    needed: int

    @property
    def sufficient(self) -> bool:
        return self.effective >= self.needed

    @property
    def message(self) -> str:
        """What is missing, or "".

        >>> check_adequacy(300, 0.99).message
        'p99 needs 368 samples for an interval; there are 300'
        """
        if self.sufficient:
            return ""
        text = f"{percentile(self.quantile)} needs {self.needed:,} samples for an interval; there are {self.samples:,}"
        if self.samples < self.needed:
            return text
        return f"{text}, which come in bursts and are worth {self.effective:,.0f} independent ones"


def check_adequacy(samples: int | np.ndarray, q: float, *, confidence: float = CONFIDENCE) -> SampleAdequacy:
    """Return whether samples bound the q-quantile on both sides; ``samples`` is a count or [blocks, requests].

    A distribution-free interval of a quantile lies between two order statistics (Wilks, Annals of Mathematical
    Statistics 1942; David, Nagaraja, "Order Statistics", 2003, 7.1). The largest of n samples is below the q-quantile
    with probability q ** n, which must be at most (1 - confidence) / 2; for q below one half, the smallest decides.
    Correlation within blocks is corrected by Kish's design effect of the requests beyond the quantile. Raises
    UsageError unless 0 < q < 1.

    >>> [check_adequacy(1, q).needed for q in (0.5, 0.95, 0.99, 0.999)]
    [6, 72, 368, 3688]
    """
    if not 0 < q < 1:
        raise UsageError(f"{q:g} is not a quantile", hint="give one above 0 and below 1: 0.99 for p99")
    needed = math.ceil(math.log((1 - confidence) / 2) / math.log(max(q, 1 - q)))
    if isinstance(samples, int):
        return SampleAdequacy(q, samples, float(samples), needed)
    import numpy as np

    flat = samples.ravel()
    exceeds = (flat > np.quantile(flat, q, method="inverted_cdf")).astype(np.float64)
    return SampleAdequacy(q, flat.size, effective_samples(exceeds, samples.shape[1]), needed)


def percentile(q: float) -> str:
    """Return the usual name of a quantile.

    >>> percentile(0.5), percentile(0.999)
    ('p50', 'p99.9')
    """
    return f"p{q * 100:.10g}"


@dataclass(frozen=True, slots=True)
class Outliers:
    """Share and size of outliers. They stay in every statistic: tail quantiles are about them."""

    share: float
    """Share of the requests."""
    time_share: float
    """Share of the total time."""
    fence_us: float
    largest_us: float


def find_outliers(blocks: np.ndarray) -> Outliers:
    """Find requests beyond Tukey's outer fence; ``blocks`` is microseconds [blocks, requests].

    >>> import numpy as np
    >>> find_outliers(np.array([[10.0, 11, 12, 13, 14] * 20 + [5000]])).largest_us
    5000.0
    """
    import numpy as np

    lower, median, upper = np.quantile(blocks, [0.25, 0.5, 0.75])
    fence = float(upper + FENCE * max(upper - lower, MIN_SPREAD * median))
    beyond = blocks > fence
    total = float(blocks.sum())
    time_share = float(blocks[beyond].sum()) / total if total else 0.0
    return Outliers(float(beyond.mean()), time_share, fence, float(blocks.max()))


@dataclass(frozen=True, slots=True)
class LevelShift:
    """Change of a series' level: ``ratio`` is the median from ``start`` on over the median before it."""

    start: int
    ratio: float
    p_value: float
    """Probability of such a change in a series without one."""

    @property
    def clear(self) -> bool:
        """Whether the change is both significant and larger than SHIFT."""
        return self.p_value < SHIFT_LEVEL and not 1 / (1 + SHIFT) < self.ratio < 1 + SHIFT


def detect_shift(series: Sequence[float] | np.ndarray) -> LevelShift:
    """Detect the most likely change of level in a series of positive numbers (Pettitt, Applied Statistics 1979).

    A rank test, so robust to outliers; a drift is detected as a change near its middle. The change point maximises the
    rank walk over its standard deviation, which is smallest at the ends of the series.

    >>> shift = detect_shift([10, 11, 10, 11, 10, 11, 10, 11, 10, 11, 10, 14, 15, 14, 15, 14, 15, 14, 15, 14, 15, 14])
    >>> shift.start, round(shift.ratio, 2), shift.clear
    (11, 1.4, True)
    """
    import numpy as np

    values = np.asarray(series, dtype=np.float64)
    count = len(values)
    if count < 2:
        return LevelShift(0, 1.0, 1.0)
    signs = np.sign(values[:, None] - values[None, :]).sum(axis=1)
    walk = np.abs(np.cumsum(signs))[:-1]
    positions = np.arange(1, count)
    start = int((walk / np.sqrt(positions * (count - positions))).argmax()) + 1
    p_value = min(1.0, 2 * math.exp(-6 * float(walk.max()) ** 2 / (count**3 + count**2)))
    return LevelShift(start, float(np.median(values[start:]) / np.median(values[:start])), p_value)


def pace(samples: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the relative time of requests in each round over all candidates (1 is usual), float64 [rounds].

    The geometric mean over candidates of a block's median over the candidate's median; candidates with fewer rounds
    count in the rounds that they have.
    """
    import numpy as np

    rounds = max(len(blocks) for blocks in samples.values())
    logs = np.full((len(samples), rounds), np.nan)
    for row, blocks in enumerate(samples.values()):
        medians = np.maximum(np.median(blocks, axis=1), 1e-3)
        logs[row, : len(blocks)] = np.log(medians / np.median(medians))
    return np.asarray(np.exp(np.nanmean(logs, axis=0)))


def throttling(samples: Mapping[str, np.ndarray]) -> str:
    """Return a sentence if the machine changed its pace while candidates were measured in turns, else "".

    >>> import numpy as np
    >>> blocks = np.random.default_rng(0).gamma(900, 0.1, size=(40, 50))
    >>> throttling({"onnx": blocks})
    ''
    >>> blocks[25:] *= 1.3
    >>> throttling({"onnx": blocks})
    'throttled: from round 26 of 40 on, requests took 1.30 times as long as before'
    """
    series = pace(samples)
    shift = detect_shift(series)
    if not shift.clear:
        return ""
    where = f"from round {shift.start + 1} of {len(series)} on, requests took {shift.ratio:.2f} times as long as before"
    return f"throttled: {where}" if shift.ratio > 1 else f"unsteady: {where}"


def notes(samples: Samples, quantiles: Sequence[float] = (0.5, 0.95, 0.99)) -> list[str]:
    """Return the caveats of one candidate's quantiles as sentences."""
    blocks = samples.microseconds
    messages = [check_adequacy(blocks, q).message for q in quantiles]
    if not samples.settled:
        effect = "requests may still be getting faster or slower"
        messages.append(f"warm-up did not settle in {samples.warm_up} blocks: {effect}")
    far = find_outliers(blocks)
    if far.share >= MAX_OUTLIERS:
        messages.append(
            f"{far.share:.1%} of requests are outliers (beyond {far.fence_us:,.0f} µs, up to {far.largest_us:,.0f} µs) "
            f"and took {far.time_share:.0%} of the time; they are counted"
        )
    return [message for message in messages if message]


def disturbances(moments: Sequence[MachineMoment], cores: int) -> list[str]:
    """Return the disturbances of a measurement as sentences, from machine states before, during and after it.

    ``cores`` is the number of all cores of the machine, since its load is over all of them.
    """
    before, after, messages = moments[0], moments[-1], list[str]()
    if before.load is not None and before.load > MAX_LOAD * cores:
        messages.append(f"busy: {before.load:.1f} processes ran on {cores} cores in the minute before")
    if before.mhz and after.mhz and after.mhz < before.mhz * (1 - SLOWER_CLOCK):
        messages.append(f"throttled: the cores' clock fell from {before.mhz:,.0f} to {after.mhz:,.0f} MHz")
    if share := _stolen(before, after):
        messages.append(f"the hypervisor gave {share:.1%} of the busy time to others")
    held = (after.throttled_seconds or 0.0) - (before.throttled_seconds or 0.0)
    if held > 0:
        messages.append(f"throttled: the container was held at its limit of processor time for {held:.2f} s")
    return messages + _gpu_disturbances([moment.gpus.readings or () for moment in moments])


def _stolen(before: MachineMoment, after: MachineMoment) -> float:
    if None in (before.busy_ticks, after.busy_ticks, before.stolen_ticks, after.stolen_ticks):
        return 0.0
    busy = (after.busy_ticks or 0) - (before.busy_ticks or 0)
    share = ((after.stolen_ticks or 0) - (before.stolen_ticks or 0)) / busy if busy > 0 else 0.0
    return share if share > MAX_STOLEN else 0.0


def _gpu_disturbances(moments: Sequence[Sequence[GpuReading]]) -> list[str]:
    """Return a sentence for each GPU that was held back at any moment, or whose clock fell under load."""
    messages = []
    for gpu, *later in zip(*moments, strict=False):
        reasons = dict.fromkeys(reason for reading in (gpu, *later) for reason in reading.held_back)
        clocks = [reading.clock_mhz for reading in (gpu, *later) if reading.clock_mhz and not reading.idle]
        if reasons:
            messages.append(f"throttled: GPU {gpu.index} ({gpu.name}) was held back: {', '.join(reasons)}")
        elif clocks and clocks[-1] < max(clocks) * (1 - SLOWER_CLOCK):
            messages.append(f"throttled: the clock of GPU {gpu.index} fell from {max(clocks)} to {clocks[-1]} MHz")
    return messages
