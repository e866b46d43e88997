"""The requests of the last hours, from gateways' cumulative counts: what burn rates are computed from. Pure.

Gateways count from the moment a routing table arrived, each on its own, and never when. Whoever looks at regular times
knows when: each look adds what is new since the last one. Looks are merged as they age, so that six hours are a few
hundred numbers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mlflowkit.judging.online.evidence import Evidence
from mlflowkit.judging.performance.burn_rate import PAIRS, RequestCounts, merge_latency
from mlflowkit.values import Json

KEPT_SECONDS = max(long for _, long, _ in PAIRS)
FINE_SECONDS, COARSE_SECONDS = 15.0, 300.0
"""Shortest part of the last hour, and of the time before."""
FINE_AGE = 3600.0
_Cumulative = tuple[int, int, Mapping[int, int]]


@dataclass(frozen=True, slots=True)
class RequestHistory:
    """``parts`` in the order of time; ``last`` is what each counter stood at when it was looked at, at ``looked``."""

    parts: tuple[RequestCounts, ...] = ()
    last: Mapping[str, _Cumulative] = field(default_factory=dict)
    looked: float | None = None

    def to_json(self) -> Json:
        """The history as JSON."""
        return {
            "looked": self.looked,
            "last": {key: [requests, errors, _bins(bins)] for key, (requests, errors, bins) in self.last.items()},
            "parts": [[p.start, p.seconds, p.requests, p.errors, _bins(p.latency)] for p in self.parts],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> RequestHistory:
        """The history that `to_json` returned. Raises KeyError, TypeError or ValueError for anything else."""
        last = {
            str(key): (int(requests), int(errors), _histogram(bins))
            for key, (requests, errors, bins) in value["last"].items()
        }
        parts = tuple(
            RequestCounts(float(start), float(seconds), int(requests), int(errors), _histogram(bins))
            for start, seconds, requests, errors, bins in value["parts"]
        )
        looked = value["looked"]
        if any(not math.isfinite(part.start) or not part.seconds > 0 for part in parts):
            raise ValueError("a part of the request history has no time")
        return cls(parts, last, None if looked is None else float(looked))


def look(
    history: RequestHistory, evidence: Mapping[str, Evidence], variants: Collection[str], now: float
) -> RequestHistory:
    """The history after a look at the evidence of each writer; counts of other variants than these are left out.

    The first look only remembers where counters stand. A counter that went back began anew. After a step of the clock
    backwards nothing that lies ahead is kept.
    """
    if history.looked is not None and 0 <= now - history.looked < FINE_SECONDS:
        return history
    current = {
        f"{writer}|{part.experiment}|{epoch}|{name}": (counts.requests, counts.errors, counts.latency)
        for writer, part in evidence.items()
        for epoch, names in part.epochs.items()
        for name, counts in names.items()
        if name in variants and counts.requests
    }
    parts = history.parts
    if history.looked is not None and now > history.looked:
        news = [_news(history.last.get(key), counts) for key, counts in sorted(current.items())]
        added = RequestCounts(
            history.looked,
            now - history.looked,
            sum(part.requests for part in news),
            sum(part.errors for part in news),
            merge_latency(news),
        )
        parts = (*parts, added)
    parts = tuple(part for part in parts if now - KEPT_SECONDS < part.start + part.seconds and part.start < now)
    return RequestHistory(_merge_old(parts, now), current, now)


def _news(before: _Cumulative | None, now: _Cumulative) -> RequestCounts:
    requests, errors, latency = now
    if before is None or before[0] > requests or before[1] > errors:
        return RequestCounts(0, 1, requests, errors, latency)
    bins = {index: count - before[2].get(index, 0) for index, count in latency.items()}
    return RequestCounts(
        0, 1, requests - before[0], errors - before[1], {index: count for index, count in bins.items() if count > 0}
    )


def _merge_old(parts: Sequence[RequestCounts], now: float) -> tuple[RequestCounts, ...]:
    """Parts that are older than an hour, joined to `COARSE_SECONDS`."""
    merged: list[RequestCounts] = []
    for part in parts:
        last = merged[-1] if merged else None
        old = part.start + part.seconds < now - FINE_AGE
        if last is not None and old and part.start + part.seconds - last.start <= COARSE_SECONDS:
            seconds = part.start + part.seconds - last.start
            merged[-1] = replace(
                last,
                seconds=seconds,
                requests=last.requests + part.requests,
                errors=last.errors + part.errors,
                latency=merge_latency([last, part]),
            )
        else:
            merged.append(part)
    return tuple(merged)


def _bins(histogram: Mapping[int, int]) -> Json:
    return [[index, count] for index, count in sorted(histogram.items())]


def _histogram(bins: Json) -> dict[int, int]:
    return {int(index): int(count) for index, count in bins}
