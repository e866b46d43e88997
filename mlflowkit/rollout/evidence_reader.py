"""Reads what was counted of an experiment, and asks Prometheus, both apart from the pure judgement."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from mlflowkit.judging.online.evidence import Evidence, merge
from mlflowkit.rollout.settings import Metric
from mlflowkit.rollout.state import RolloutState

PROMETHEUS_SECONDS = 5.0
"""Between two questions to Prometheus."""
TIMEOUT_SECONDS = 3.0
MEASURED = 200
"""Values of a query that are kept, newest last."""
_log = logging.getLogger("mlflowkit.rollout")


class EvidenceFolder:
    """The evidence files of a service; one is read again only when it was replaced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: dict[Path, tuple[tuple[int, int], Evidence]] = {}
        self.damaged: set[str] = set()

    def read(self, experiment: str) -> tuple[Evidence, bool]:
        """What all writers counted of an experiment, and whether anything changed since the last time.

        A file that cannot be read counts as it last could: what was seen stays seen.
        """
        changed = False
        for path in self._folder.glob("*.json") if self._folder.is_dir() else ():
            if path.name.startswith("."):
                continue
            try:
                found = path.stat()
                mark = (found.st_mtime_ns, found.st_ino)
                if path in self._parts and self._parts[path][0] == mark:
                    continue
                self._parts[path] = (mark, Evidence.from_json(json.loads(path.read_bytes())))
                self.damaged.discard(path.name)
                changed = True
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                if path.name not in self.damaged:
                    _log.error("%s cannot be read: %r", path, error)
                self.damaged.add(path.name)
        return merge(experiment, (part for _, part in self._parts.values())), changed


class Prometheus:
    """Asks the queries of a rollout every few seconds, in a thread: a server that hangs keeps nobody waiting."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._values: dict[int, list[float]] = {}
        self._experiment = ""
        self._due = 0.0
        self._asking: threading.Thread | None = None

    def values(self, state: RolloutState) -> tuple[tuple[float, ...], ...]:
        """Values of each query of the plan so far, newest last; NaN where there was none. Returns at once."""
        queries = [metric for metric in state.plan.metrics if metric.metric == "prometheus"]
        if not queries:
            return ()
        if state.experiment != self._experiment:
            self._experiment, self._values, self._due = state.experiment, {}, 0.0
        if self._clock() >= self._due and (self._asking is None or not self._asking.is_alive()):
            self._due = self._clock() + PROMETHEUS_SECONDS
            names = {"service": state.service, "variant": state.candidate.name, "version": state.candidate.version}
            values = self._values
            self._asking = threading.Thread(target=self._ask, args=(queries, names, values), daemon=True)
            self._asking.start()
        return tuple(tuple(self._values.get(number, ())) for number in range(len(queries)))

    @staticmethod
    def _ask(queries: list[Metric], names: Mapping[str, str], values: dict[int, list[float]]) -> None:
        for number, metric in enumerate(queries):
            found = instant(metric.url or "", fill(metric.query or "", names))
            values[number] = [*values.get(number, []), found][-MEASURED:]


def fill(query: str, names: Mapping[str, str]) -> str:
    """A query with {service}, {variant} and {version} filled in; other braces are PromQL's own.

    >>> fill('up{job="{service}"}', {"service": "lending"})
    'up{job="lending"}'
    """
    for name, value in names.items():
        query = query.replace("{" + name + "}", value)
    return query


def instant(url: str, query: str, timeout: float = TIMEOUT_SECONDS) -> float:
    """The value of an instant query that gives one number; NaN, with a line in the log, for anything else.

    See https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries.
    """
    address = f"{url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(address, timeout=timeout) as reply:
            document = json.loads(reply.read(1 << 20))
        result = document["data"]["result"]
        if document["data"]["resultType"] == "scalar":
            return float(result[1])
        if len(result) == 1:
            return float(result[0]["value"][1])
        _log.warning("prometheus: %s gives %d series, not one", query, len(result))
    except (OSError, ValueError, KeyError, TypeError, IndexError, urllib.error.URLError) as error:
        _log.warning("prometheus: %s: %s", query, error)
    return math.nan
