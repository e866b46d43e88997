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

from mlflowkit.judging.online.sequential import ODDS_ABOVE, scale_odds
from mlflowkit.judging.shift.design_effects import Baselines, effective_sizes
from mlflowkit.judging.shift.distances import (
    baseline_doubt,
    cell_shares,
    choose_sets,
    distance_interval,
    share_interval,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Mask = NDArray[np.bool_]

FADE = 0.6
"""Weight of a window in the recent counts for each later one."""


@dataclass(frozen=True, slots=True)
class Streams:
    """The current window of M streams: ``counts`` (M, K) and ``batches`` (M,), the design effect of its requests.

    ``ordered`` (M,): whether S is one end of the cells; ``fixed`` (K,) is S where it is not chosen. ``judged`` (M,): no
    evidence is taken where it is False. ``limit`` (M,): the margin, or where ``absolute`` (M,) what is allowed of the
    share whatever the baseline's is.
    """

    counts: Array
    batches: Array
    ordered: Mask
    limit: Array
    judged: Mask
    fixed: Mask | None = None
    absolute: Mask | None = None


@dataclass(frozen=True, slots=True)
class DetectorState:
    """What M streams remember: `AspectTrace` with ``logs`` (M, alternatives), and the recent counts (M, K)."""

    logs: Array
    support: Array
    recent: Array
    recent_rows: Array
    failed: Mask
    inside: Array


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
    logs, recent = np.zeros((streams, len(ODDS_ABOVE))), np.zeros((streams, cells))
    return DetectorState(logs, zeros, recent, zeros, np.zeros(streams, dtype=bool), zeros)


def bets(hits: Array, rows: Array, bound: Array) -> Array:
    """The first list of `rate_bets` for each stream, (M, alternatives). No share is evidence against a bound of 1."""
    import numpy as np

    possible = (bound < 1)[:, None]
    bound = np.clip(bound, 1e-9, 1 - 1e-9)[:, None]
    rates = scale_odds(bound, np.array(ODDS_ABOVE)[None, :])  # type: ignore[arg-type]
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
    effect, base_effective = effective_sizes(streams.counts, streams.batches, ordered, base, sets)
    effective = rows / effect
    share = np.where(sets, cell_shares(baseline), 0.0).sum(axis=1)
    fixed = streams.fixed is not None
    doubt = baseline_doubt(baseline, base_effective, share, ordered, level, fixed)
    if streams.absolute is not None:
        share, doubt = (np.where(streams.absolute, 0.0, part) for part in (share, doubt))
    bound = np.minimum(share + doubt + streams.limit, 1.0)
    judged = streams.judged & (rows > 0) & (base_rows > 0)
    cut = (threshold + math.log(len(ODDS_ABOVE))) / sustained
    gains = np.minimum(bets((streams.counts * sets).sum(axis=1) / effect, effective, bound), cut)
    logs = np.where(judged[:, None], np.maximum(state.logs, 0.0) + gains, state.logs)
    evidence, gain = log_mean(logs), np.where(judged, log_mean(gains), 0.0)
    support = np.where(evidence > 0, state.support + (judged & (gain > 0)), 0)
    weight = np.where(rows > 0, 1 / streams.batches, 0.0)
    recent = FADE * state.recent + streams.counts * weight[:, None]
    recent_rows = FADE**2 * state.recent_rows + rows * weight
    after = replace(state, logs=logs, support=support, recent=recent, recent_rows=recent_rows)
    recent_effective = recent.sum(axis=1) ** 2 / np.maximum(recent_rows, 1e-300) * streams.batches / effect
    aim = _rise(bound, (threshold + math.log(len(ODDS_ABOVE))) / (2 * sustained - 1), effective, fixed)
    if fixed:
        value, low, high = share_interval(streams.counts[:, 1], rows, effective, level)
        recent_high = share_interval(recent[:, 1], recent.sum(axis=1), recent_effective, level)[2]
        allowed, detectable = share + streams.limit, np.minimum(bound + aim, 1.0)
    else:
        spread = (streams.counts, effective, baseline, base_effective, ordered, level)
        value, low, high = distance_interval(*spread)
        recent_high = distance_interval(recent, recent_effective, *spread[2:])[2]
        allowed, detectable = streams.limit, np.minimum(streams.limit + doubt + aim, 1.0)
    return after, Assessment(value, low, high, recent_high, allowed, effective, evidence, gain, detectable)


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


def lasting(evidence: Array, state: DetectorState, sustained: int) -> Array:
    """The evidence where it comes from ``sustained`` windows or more, else none. An e-value that is lowered is one."""
    import numpy as np

    return np.where(state.support >= sustained, evidence, -math.inf)


def conclude(
    state: DetectorState, assessment: Assessment, judged: Mask, alarms: Mask, rearm: int
) -> tuple[DetectorState, Mask]:
    """The state after alarms were raised and ended, and the streams that lie within their margin now.

    A stream is within where the interval of this window is, or that of recent windows together while this one takes
    evidence away. An alarm ends after ``rearm`` such windows; what was held against the stream is forgotten then.
    """
    import numpy as np

    allowed = assessment.allowed
    calm = (assessment.recent_high <= allowed) & (assessment.gain < 0)
    within = judged & ((assessment.high <= allowed) | calm)
    inside = np.where(within, state.inside + 1, np.where(judged, 0, state.inside))
    resolved = state.failed & (inside >= rearm)
    after = replace(
        state,
        logs=np.where(resolved[:, None], 0.0, state.logs),
        support=np.where(resolved, 0, state.support),
        failed=(state.failed | alarms) & ~resolved,
        inside=np.where(state.failed & ~resolved, inside, 0),
    )
    return after, within


def suspects(assessment: Assessment, judged: Mask) -> Mask:
    """The streams whose current window must not join their baseline: there is evidence, or it is surely beyond."""
    suspected: Mask = (assessment.evidence > 0) | (judged & (assessment.low > assessment.allowed))
    return suspected
