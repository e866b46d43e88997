"""The shift test of many streams at once: arrays in, arrays out. A stream is one aspect of one column in one segment.

The hypothesis of a stream is: in each window, the share of its set S of cells is at most the baseline's plus its
margin. The set is chosen on earlier windows, so that it cannot fit the noise of the window it is tested on; under a
distance of at most the margin, no set has a larger share than that, however it was chosen.

- *A window is the unit.* Rows of one day are more alike than rows of different days; so a share counts as one of
  n / phi rows. phi is the larger of Kish's design effect of the window's requests (Kish, Survey Sampling, 1965) and
  the design effect between windows that the baseline's windows show: the variance of their shares over the binomial
  one, at its upper confidence bound, since it is learned from few windows.
- *The evidence of a window* is the likelihood ratio of an alternative rate against the bound at the scaled counts
  (`judging.online.sequential.rate_bets`). For n / phi clusters of phi equal rows it is an e-value exactly, else
  asymptotically. It is cut, which leaves it an e-value.
- *Evidence over windows* is the e-CUSUM of Shin, Ramdas & Rinaldo (E-detectors, NEJSDS 2023): M = e * max(M, 1), for
  each alternative; their mean is an e-detector too. It bounds the mean time between false alarms (average run length):
  a stream whose share stays at the bound is expected to pass 1 / a after 1 / a windows or more. That is no bound on the
  probability of a false alarm within a given time; see docs/explanation/monitoring.md for simulated ones.
- *The baseline is one draw.* Its share enters by an upper confidence bound that holds for every set at once: the
  Dvoretzky-Kiefer-Wolfowitz inequality with Massart's constant for ordered cells, McDiarmid's inequality around the
  expected total variation for others, or Chernoff's bound over all sets, whichever is lower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflowkit.judging.online.sequential import _ODDS_ABOVE as ODDS
from mlflowkit.judging.online.sequential import scale_odds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Mask = NDArray[np.bool_]

FADE = 0.6
"""Weight of a window in the recent counts for each later one."""
EFFECT_LEVEL = 0.05
"""The chance that the upper bound of a column's design effect is too low."""


@dataclass(frozen=True, slots=True)
class Baselines:
    """Baselines of M streams: ``windows`` (M, W, K) counts, ``batches`` (M, W) design effects of their requests, and
    ``phase`` (M, W), the windows' places in the season; absent windows have no counts. ``same`` (M, W) marks those
    whose counts are the baseline of the current window. ``reference`` (M, K) replaces them where it is given.
    ``alike``: windows are taken to differ by no more than their requests do, so that no design effect is learned."""

    windows: Array
    batches: Array
    phase: Array
    same: Mask
    reference: Array | None = None
    alike: bool = False

    @property
    def counts(self) -> Array:
        """(M, K)."""
        return (self.windows * self.same[:, :, None]).sum(axis=1) if self.reference is None else self.reference


@dataclass(frozen=True, slots=True)
class Streams:
    """The current window of M streams: ``counts`` (M, K) and ``batches`` (M,), the design effect of its requests.

    ``ordered`` (M,): whether S is one end of the cells; ``fixed`` (K,) is S where it is not chosen. ``judged`` (M,): no
    evidence is taken where it is False. ``limit`` (M,): the margin.
    """

    counts: Array
    batches: Array
    ordered: Mask
    limit: Array
    judged: Mask
    fixed: Mask | None = None


@dataclass(frozen=True, slots=True)
class DetectorState:
    """What M streams remember: `AspectTrace.logs` (M, alternatives), support (M,), and the recent counts (M, K)."""

    logs: Array
    support: Array
    recent: Array
    recent_rows: Array


@dataclass(frozen=True, slots=True)
class Assessment:
    """Of M streams, each (M,): the distance or share in the window with its interval, its upper bound in recent
    windows, what is allowed of it, effective rows, the evidence's logarithm, what this window added to it, and the
    smallest distance or share that the coming windows could show."""

    value: Array
    low: Array
    high: Array
    recent_high: Array
    allowed: Array
    effective: Array
    evidence: Array
    gain: Array
    detectable: Array


def start(streams: int, cells: int) -> DetectorState:
    """The state of streams before their first window."""
    import numpy as np

    zeros = np.zeros(streams)
    return DetectorState(np.zeros((streams, len(ODDS))), zeros, np.zeros((streams, cells)), zeros)


def learned_effects(base: Baselines, sets: Mask, ordered: Mask) -> Array:
    """The design effect between windows of the share of each stream's set (M, K), at its upper confidence bound.

    The larger of the set's own and of the mean over all sets (ends of the order, or single cells). With d degrees of
    freedom, d phi' / phi is chi-squared with d where shares are normal.
    """
    import numpy as np
    from scipy.special import chdtri

    rows = base.windows.sum(axis=2)
    own = (base.windows * sets[:, None, :]).sum(axis=2)[:, :, None]
    family = np.where(ordered[:, None, None], np.cumsum(base.windows, axis=2), base.windows)
    freedom, effects = np.zeros(len(rows)), []
    for hits in (own, family):
        excess, expected, freedom = _between(hits, rows, base.phase)
        ratio = np.divide(excess, expected * np.maximum(freedom, 1), out=np.ones_like(excess), where=expected > 1e-12)
        effects.append(ratio)
    least = chdtri(np.maximum(freedom, 1), 1 - EFFECT_LEVEL)  # the argument is the upper tail
    upper: Array = np.where(
        freedom > 0, np.maximum(np.maximum(*effects) * np.maximum(freedom, 1) / least, 1.0), math.inf
    )
    return upper


def _between(hits: Array, rows: Array, phase: Array) -> tuple[Array, Array, Array]:
    """Sums over sets of the squared deviations of windows' shares in units of 1 / rows, and of p (1 - p); and the
    degrees of freedom. Deviations are from the mean of the windows of the same phase."""
    import numpy as np

    present = rows > 0
    excess, weight = np.zeros(len(rows)), np.zeros(len(rows))
    expected, freedom = np.zeros(len(rows)), np.zeros(len(rows))
    for place in np.unique(phase[present]) if present.any() else ():
        here = present & (phase == place)
        count = np.where(here, rows, 0.0)
        total = count.sum(axis=1)
        mean = (hits * here[:, :, None]).sum(axis=1) / np.maximum(total, 1e-300)[:, None]
        squares = np.divide(hits**2, count[:, :, None], out=np.zeros_like(hits), where=count[:, :, None] > 0)
        excess += (squares.sum(axis=1) - total[:, None] * mean**2).sum(axis=1)
        expected += total * (mean * (1 - mean)).sum(axis=1)
        weight += total
        freedom += np.maximum(here.sum(axis=1) - 1, 0)
    return np.maximum(excess, 0.0), expected / np.maximum(weight, 1e-300), freedom


def choose_sets(counts: Array, baseline: Array, ordered: Mask) -> tuple[Array, Mask]:
    """The distance of counts from the baseline, (M,), and the set that attains it, (M, K).

    Kolmogorov and Smirnov's distance over ends of the order where ``ordered``, else total variation.

    >>> import numpy as np
    >>> distance, sets = choose_sets(np.array([[70.0, 20, 10]]), np.array([[90.0, 10, 0]]), np.array([False]))
    >>> distance.round(9).tolist(), sets.tolist()
    ([0.2], [[False, True, True]])
    """
    import numpy as np

    difference = _shares(counts) - _shares(baseline)
    sums = np.cumsum(difference, axis=1)
    split = np.abs(sums).argmax(axis=1)
    furthest = np.take_along_axis(sums, split[:, None], axis=1)[:, 0]
    lower = np.arange(difference.shape[1])[None, :] <= split[:, None]
    ends = np.where((furthest > 0)[:, None], lower, ~lower)
    sets = np.where(ordered[:, None], ends, difference > 0)
    positive = np.where(difference > 0, difference, 0.0).sum(axis=1)
    return np.where(ordered, np.abs(furthest), positive), sets


def _shares(counts: Array) -> Array:
    import numpy as np

    shares: Array = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)
    return shares


def _doubt(baseline: Array, rows: Array, share: Array, ordered: Mask, level: float, fixed: bool) -> Array:
    """How far the true share of a set may lie above the baseline's ``share`` (M,), at 1 - ``level``, for every set."""
    import numpy as np

    used = (baseline > 0).sum(axis=1)
    family = 1.0 if fixed else np.where(ordered, 2.0 * np.maximum(used - 1, 1), 2.0 ** np.minimum(used, 1000))
    logs = np.log(2 * family / level) if not fixed else np.full(len(rows), math.log(1 / level))
    chernoff = np.sqrt(2 * share * logs / rows) + 2 * logs / rows
    if fixed:
        return chernoff
    return np.minimum(chernoff, _uniform(baseline, rows, ordered, level / 2))


def _uniform(counts: Array, rows: Array, ordered: Mask, level: float) -> Array:
    """A bound on the distance of a sample of ``rows`` effective rows from its own distribution."""
    import numpy as np

    shares = _shares(counts)
    massart = np.sqrt(math.log(2 / level) / (2 * rows))
    expected = 0.5 * np.sqrt(shares * (1 - shares) / rows[:, None]).sum(axis=1)
    return np.where(ordered, massart, expected + np.sqrt(math.log(1 / level) / (2 * rows)))


def bets(hits: Array, rows: Array, bound: Array) -> Array:
    """The first list of `rate_bets` for each stream, (M, alternatives). No share is evidence against a bound of 1."""
    import numpy as np

    possible = (bound < 1)[:, None]
    bound = np.clip(bound, 1e-9, 1 - 1e-9)[:, None]
    rates = scale_odds(bound, np.array(ODDS)[None, :])  # type: ignore[arg-type]
    gains: Array = hits[:, None] * np.log(rates / bound) + (rows - hits)[:, None] * np.log((1 - rates) / (1 - bound))
    return np.where(possible, gains, 0.0)


def log_mean(logs: Array) -> Array:
    """log(mean(exp(logs))) over the last axis."""
    import numpy as np

    top = logs.max(axis=-1)
    mean: Array = top + np.log(np.exp(logs - top[..., None]).mean(axis=-1))
    return mean


def advance_streams(
    state: DetectorState, streams: Streams, base: Baselines, level: float, threshold: float, sustained: int
) -> tuple[DetectorState, Assessment]:
    """The state after a window, and what it shows. ``threshold``: the log evidence of an alarm in a single stream."""
    import numpy as np

    baseline, ordered = base.counts, streams.ordered
    if streams.fixed is None:
        sets = choose_sets(state.recent, baseline, ordered)[1]
    else:
        sets = np.broadcast_to(streams.fixed, streams.counts.shape)
    rows, base_rows = streams.counts.sum(axis=1), baseline.sum(axis=1)
    effect, base_effective = _effects(streams, base, sets)
    effective = rows / effect
    share = np.where(sets, _shares(baseline), 0.0).sum(axis=1)
    fixed = streams.fixed is not None
    doubt = _doubt(baseline, base_effective, share, ordered, level, fixed)
    bound = np.minimum(share + doubt + streams.limit, 1.0)
    judged = streams.judged & (rows > 0) & (base_rows > 0)
    cut = (threshold + math.log(len(ODDS))) / sustained
    gains = np.minimum(bets((streams.counts * sets).sum(axis=1) / effect, effective, bound), cut)
    logs = np.where(judged[:, None], np.maximum(state.logs, 0.0) + gains, state.logs)
    evidence, gain = log_mean(logs), np.where(judged, log_mean(gains), 0.0)
    support = np.where(evidence > 0, state.support + (judged & (gain > 0)), 0)
    weight = np.where(rows > 0, 1 / streams.batches, 0.0)
    recent = FADE * state.recent + streams.counts * weight[:, None]
    recent_rows = FADE**2 * state.recent_rows + rows * weight
    after = DetectorState(logs, support, recent, recent_rows)
    recent_effective = recent.sum(axis=1) ** 2 / np.maximum(recent_rows, 1e-300) * streams.batches / effect
    aim = _rise(bound, (threshold + math.log(len(ODDS))) / (2 * sustained - 1), effective, fixed)
    if fixed:
        value, low, high = _share_interval(streams.counts[:, 1], rows, effective, level)
        recent_high = _share_interval(recent[:, 1], recent.sum(axis=1), recent_effective, level)[2]
        allowed, detectable = share + streams.limit, np.minimum(bound + aim, 1.0)
    else:
        spread = (streams.counts, effective, baseline, base_effective, ordered, level)
        value, low, high = _distance_interval(*spread)
        recent_high = _distance_interval(recent, recent_effective, *spread[2:])[2]
        allowed, detectable = streams.limit, np.minimum(streams.limit + doubt + aim, 1.0)
    return after, Assessment(value, low, high, recent_high, allowed, effective, evidence, gain, detectable)


def _effects(streams: Streams, base: Baselines, sets: Mask) -> tuple[Array, Array]:
    """The design effect of the current window, and the effective rows of the baseline, each (M,)."""
    import numpy as np

    window_rows = base.windows.sum(axis=2)
    present = window_rows > 0
    rows = streams.counts.sum(axis=1)
    learned = np.ones(len(rows)) if base.alike else learned_effects(base, sets, streams.ordered)
    usual = window_rows.sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    larger = np.maximum(rows / np.maximum(usual, 1.0), 1.0) if not base.alike else 1.0
    effect = np.maximum(streams.batches, np.where(np.isfinite(learned), learned * larger, np.maximum(rows, 1.0)))
    if base.reference is not None:
        total = base.reference.sum(axis=1)
        return effect, np.maximum(total / np.where(np.isfinite(learned), learned, np.maximum(total, 1.0)), 1e-9)
    same = window_rows * base.same
    own = (same / np.maximum(base.batches, 1.0)).sum(axis=1)
    total = same.sum(axis=1)
    return effect, np.maximum(np.minimum(own, total / learned), 1e-9)


def _distance_interval(
    counts: Array, rows: Array, baseline: Array, base_rows: Array, ordered: Mask, level: float
) -> tuple[Array, Array, Array]:
    """The distance with its interval at 1 - ``level``. A distance of samples is larger than the true one by up to the
    samples' own distances, and in expectation never smaller, as it is convex (Jensen): above, only McDiarmid's bound of
    its fluctuation is added."""
    import numpy as np

    value, _ = choose_sets(counts, baseline, ordered)
    some = np.maximum(rows, 1e-9)
    below = _uniform(counts, some, ordered, level / 4) + _uniform(baseline, base_rows, ordered, level / 4)
    above = np.sqrt(math.log(2 / level) / 2 * (1 / some + 1 / base_rows))
    return value, np.clip(value - below, 0.0, 1.0), np.clip(value + above, 0.0, 1.0)


def _share_interval(hits: Array, rows: Array, effective: Array, level: float) -> tuple[Array, Array, Array]:
    """A share with the interval of Clopper and Pearson for ``effective`` rows."""
    import numpy as np
    from scipy.special import betaincinv

    value = hits / np.maximum(rows, 1e-300)
    some = np.maximum(effective, 1e-9)
    counted = value * some
    low = np.where(counted > 0, betaincinv(np.maximum(counted, 1e-12), some - counted + 1, level / 2), 0.0)
    high = betaincinv(counted + 1, np.maximum(some - counted, 1e-12), 1 - level / 2)
    return value, low, np.where(counted < some, high, 1.0)


def _rise(bound: Array, gain: float, effective: Array, fixed: bool) -> Array:
    """How far beyond the bound a share must lie for an expected log evidence of ``gain`` in a window."""
    import numpy as np

    some = np.maximum(effective, 1e-9)
    if not fixed:  # Pinsker's inequality
        return np.sqrt(gain / (2 * some))
    return np.sqrt(2 * bound * (1 - bound) * gain / some) + 2 * gain / (3 * some)


def discoveries(evidence: Array, level: float) -> Mask:
    """The streams that e-BH rejects along the last axis, of log e-values (Wang & Ramdas, JRSS-B 2022).

    The k streams with the most evidence, for the largest k of which each has an e-value of m / (k level) or more. It
    holds under any dependence. Of e-detectors (e-d-BH; Dandapanthula & Ramdas, arXiv 2501.04130) it bounds the expected
    share of false alarms among alarms at a stopping time by ``level`` times that time in windows: with a finite average
    run length no bound that does not grow with time can hold.

    >>> import numpy as np
    >>> discoveries(np.log(np.array([50.0, 45.0, 3.0, 1.0])), 0.05).tolist()
    [True, True, False, False]
    """
    import numpy as np

    count = evidence.shape[-1]
    ranked = -np.sort(-evidence, axis=-1)
    needed = np.log(count / (np.arange(1, count + 1) * level))
    number = np.where(ranked >= needed - 1e-12, np.arange(1, count + 1), 0).max(axis=-1, initial=0)
    cut = np.log(count / (np.maximum(number, 1) * level))
    rejected: Mask = (evidence >= cut[..., None] - 1e-12) & (number > 0)[..., None]
    return rejected


def clear(state: DetectorState, streams: Mask) -> DetectorState:
    """The state with no evidence in the marked streams."""
    import numpy as np

    return replace(
        state,
        logs=np.where(streams[:, None], 0.0, state.logs),
        support=np.where(streams, 0, state.support),
    )
