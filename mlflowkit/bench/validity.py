"""Whether samples can carry what is asked of them: enough of them, outliers, a machine that changed meanwhile. Pure.

Nothing here deletes a sample. What is found is said, in words that a result carries as its ``notes``.
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

    from mlflowkit.bench.environment import Moment
    from mlflowkit.bench.measure import Samples
    from mlflowkit.bench.nvml import Gpu

CONFIDENCE = 0.95
FENCE = 3.0
"""Interquartile ranges beyond the upper quartile from which on a request is an outlier ("far out": Tukey, 1977)."""
LEAST_SPREAD = 0.01
"""Share of the median that the interquartile range counts for at least: a clock of coarse ticks has none."""
MANY_OUTLIERS = 0.01
"""Share of requests from which on outliers are worth a note."""
SHIFT = 0.05
"""Change of the machine's pace that is worth a note, ..."""
SHIFT_LEVEL = 0.001
"""... where chance makes one as clear less often than this."""
MOST_LOAD = 0.5
"""Processes a core over the minute before, from which on the machine is called busy."""
MOST_STOLEN = 0.01
"""Share of the busy time that a hypervisor may take before it is worth a note."""
SLOWER_CLOCK = 0.05
"""Loss of clock between the two ends of a measurement that is worth a note."""


@dataclass(frozen=True, slots=True)
class Enough:
    """Whether ``samples`` bound a quantile on both sides; ``worth`` is how many independent ones they amount to."""

    quantile: float
    samples: int
    worth: float
    needed: int

    @property
    def holds(self) -> bool:
        return self.worth >= self.needed

    @property
    def words(self) -> str:
        """What is missing; "" where nothing is.

        >>> enough(300, 0.99).words
        'p99 needs 368 samples for an interval; there are 300'
        """
        if self.holds:
            return ""
        said = f"{percentile(self.quantile)} needs {self.needed:,} samples for an interval; there are {self.samples:,}"
        if self.samples < self.needed:
            return said
        return f"{said}, which come in bursts and are worth {self.worth:,.0f} independent ones"


def enough(samples: int | np.ndarray, q: float, *, confidence: float = CONFIDENCE) -> Enough:
    """Whether samples bound the q-quantile on both sides: a count, or the samples themselves [blocks, requests].

    A distribution-free interval of a quantile lies between two order statistics (Wilks, Annals of Mathematical
    Statistics 1942; David, Nagaraja, "Order Statistics", 2003, 7.1). The largest of n lies above the q-quantile but for
    a chance of q ** n, which must be at most (1 - confidence) / 2; for q below one half, the smallest decides. Samples
    of one block are not independent: given the samples, what they are worth is counted by Kish's design effect of the
    requests beyond the quantile. Raises UsageError unless 0 < q < 1.

    >>> enough(1, 0.5).needed, enough(1, 0.95).needed, enough(1, 0.99).needed, enough(1, 0.999).needed
    (6, 72, 368, 3688)
    """
    if not 0 < q < 1:
        raise UsageError(f"{q:g} is not a quantile", hint="give one above 0 and below 1: 0.99 for p99")
    needed = math.ceil(math.log((1 - confidence) / 2) / math.log(max(q, 1 - q)))
    if isinstance(samples, int):
        return Enough(q, samples, float(samples), needed)
    import numpy as np

    flat = samples.ravel()
    beyond = (flat > np.quantile(flat, q, method="inverted_cdf")).astype(np.float64)
    return Enough(q, flat.size, effective_samples(beyond, samples.shape[1]), needed)


def percentile(q: float) -> str:
    """The usual name of a quantile.

    >>> percentile(0.5), percentile(0.999)
    ('p50', 'p99.9')
    """
    return f"p{q * 100:.10g}"


@dataclass(frozen=True, slots=True)
class Outliers:
    """Requests far beyond the others. They stay in every figure: they are what a tail quantile is about."""

    share: float
    """Of the requests."""
    time_share: float
    """Of the time that all requests took together."""
    fence_us: float
    largest_us: float


def outliers(blocks: np.ndarray) -> Outliers:
    """Requests beyond Tukey's outer fence of microseconds [blocks, requests].

    >>> import numpy as np
    >>> outliers(np.array([[10.0, 11, 12, 13, 14] * 20 + [5000]])).largest_us
    5000.0
    """
    import numpy as np

    lower, median, upper = np.quantile(blocks, [0.25, 0.5, 0.75])
    fence = float(upper + FENCE * max(upper - lower, LEAST_SPREAD * median))
    beyond = blocks > fence
    total = float(blocks.sum())
    return Outliers(
        share=float(beyond.mean()),
        time_share=float(blocks[beyond].sum()) / total if total else 0.0,
        fence_us=fence,
        largest_us=float(blocks.max()),
    )


@dataclass(frozen=True, slots=True)
class Shift:
    """Where a series changes its level: ``ratio`` is the median from ``start`` on over the median before it."""

    start: int
    ratio: float
    chance: float
    """Probability that a series with no change looks as if it had one as clear."""

    @property
    def clear(self) -> bool:
        """Whether the change is large enough to matter and too clear to be chance."""
        return self.chance < SHIFT_LEVEL and not 1 / (1 + SHIFT) < self.ratio < 1 + SHIFT


def shift(series: Sequence[float] | np.ndarray) -> Shift:
    """The one most likely change of level in a series of positive figures (Pettitt, Applied Statistics 1979).

    A rank test: outliers do not move it. A drift is found too, as a change somewhere in its middle. Where the change
    is, the walk of ranks tells best over its standard deviation, which is least at the ends of the series.

    >>> found = shift([10, 11, 10, 11, 10, 11, 10, 11, 10, 11, 10, 14, 15, 14, 15, 14, 15, 14, 15, 14, 15, 14])
    >>> found.start, round(found.ratio, 2), found.clear
    (11, 1.4, True)
    """
    import numpy as np

    values = np.asarray(series, dtype=np.float64)
    count = len(values)
    if count < 2:
        return Shift(0, 1.0, 1.0)
    signs = np.sign(values[:, None] - values[None, :]).sum(axis=1)
    walk = np.abs(np.cumsum(signs))[:-1]
    places = np.arange(1, count)
    start = int((walk / np.sqrt(places * (count - places))).argmax()) + 1
    chance = min(1.0, 2 * math.exp(-6 * float(walk.max()) ** 2 / (count**3 + count**2)))
    return Shift(start, float(np.median(values[start:]) / np.median(values[:start])), chance)


def pace(samples: Mapping[str, np.ndarray]) -> np.ndarray:
    """How long requests took in each round, all candidates together: 1 is the usual, float64 [rounds].

    The geometric mean over candidates of a block's median over the candidate's median: what slows the machine slows
    all of them. Candidates with fewer rounds than the longest count while they last.
    """
    import numpy as np

    rounds = max(len(blocks) for blocks in samples.values())
    logs = np.full((len(samples), rounds), np.nan)
    for row, blocks in enumerate(samples.values()):
        medians = np.maximum(np.median(blocks, axis=1), 1e-3)
        logs[row, : len(blocks)] = np.log(medians / np.median(medians))
    return np.asarray(np.exp(np.nanmean(logs, axis=0)))


def throttling(samples: Mapping[str, np.ndarray]) -> str:
    """Whether the machine changed its pace while candidates were measured in turns, in words; "" where it did not.

    >>> import numpy as np
    >>> blocks = np.random.default_rng(0).gamma(900, 0.1, size=(40, 50))
    >>> throttling({"onnx": blocks})
    ''
    >>> blocks[25:] *= 1.3
    >>> throttling({"onnx": blocks})
    'throttled: from round 26 of 40 on, requests took 1.30 times as long as before'
    """
    series = pace(samples)
    found = shift(series)
    if not found.clear:
        return ""
    where = f"from round {found.start + 1} of {len(series)} on, requests took {found.ratio:.2f} times as long as before"
    return f"throttled: {where}" if found.ratio > 1 else f"unsteady: {where}"


def notes(samples: Samples, quantiles: Sequence[float] = (0.5, 0.95, 0.99)) -> list[str]:
    """What must be known to believe the quantiles of one candidate, in words; empty where all is well."""
    blocks = samples.microseconds
    said = [enough(blocks, q).words for q in quantiles]
    if not samples.settled:
        said.append(
            f"warm-up did not settle in {samples.warm_up} blocks: requests may still be getting faster or slower"
        )
    far = outliers(blocks)
    if far.share >= MANY_OUTLIERS:
        said.append(
            f"{far.share:.1%} of requests are outliers (beyond {far.fence_us:,.0f} µs, up to {far.largest_us:,.0f} µs) "
            f"and took {far.time_share:.0%} of the time; they are counted"
        )
    return [words for words in said if words]


def disturbances(moments: Sequence[Moment], cores: int) -> list[str]:
    """What the machine itself says disturbed a measurement, from moments before, in and after it, in words.

    ``cores`` is all that the machine has, whichever of them were used: its load is theirs.
    """
    before, after, said = moments[0], moments[-1], list[str]()
    if before.load is not None and before.load > MOST_LOAD * cores:
        said.append(f"busy: {before.load:.1f} processes ran on {cores} cores in the minute before")
    if before.mhz and after.mhz and after.mhz < before.mhz * (1 - SLOWER_CLOCK):
        said.append(f"throttled: the cores' clock fell from {before.mhz:,.0f} to {after.mhz:,.0f} MHz")
    if share := _stolen(before, after):
        said.append(f"the hypervisor gave {share:.1%} of the busy time to others")
    held = (after.throttled_seconds or 0.0) - (before.throttled_seconds or 0.0)
    if held > 0:
        said.append(f"throttled: the container was held at its limit of processor time for {held:.2f} s")
    return said + _gpu_disturbances([one.gpus.found or () for one in moments])


def _stolen(before: Moment, after: Moment) -> float:
    if None in (before.busy_ticks, after.busy_ticks, before.stolen_ticks, after.stolen_ticks):
        return 0.0
    busy = (after.busy_ticks or 0) - (before.busy_ticks or 0)
    share = ((after.stolen_ticks or 0) - (before.stolen_ticks or 0)) / busy if busy > 0 else 0.0
    return share if share > MOST_STOLEN else 0.0


def _gpu_disturbances(moments: Sequence[Sequence[Gpu]]) -> list[str]:
    """Each GPU that was held back at any moment, or whose clock fell while it had something to do."""
    said = []
    for seen in zip(*moments, strict=False):
        reasons = dict.fromkeys(reason for one in seen for reason in one.held_back)
        clocks = [one.clock_mhz for one in seen if one.clock_mhz and not one.idle]
        if reasons:
            said.append(f"throttled: GPU {seen[0].index} ({seen[0].name}) was held back: {', '.join(reasons)}")
        elif clocks and clocks[-1] < max(clocks) * (1 - SLOWER_CLOCK):
            said.append(f"throttled: the clock of GPU {seen[0].index} fell from {max(clocks)} to {clocks[-1]} MHz")
    return said
