"""Read the evidence records of an experiment and poll Prometheus: the inputs of the pure judges."""

from __future__ import annotations

import http.client
import json
import logging
import math
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping

from mlflowkit.errors import ServiceError
from mlflowkit.judging.online.evidence import Evidence, merge
from mlflowkit.rollout import outbound
from mlflowkit.rollout.settings import RolloutMetric
from mlflowkit.rollout.state import RolloutState
from mlflowkit.service_state.records import ServiceFiles

PROMETHEUS_SECONDS = 5.0
"""Interval between Prometheus polls."""
TIMEOUT_SECONDS = 3.0
"""Of one query in all."""
MAX_VALUES = 200
"""Values kept per query, newest last."""
_log = logging.getLogger("mlflowkit.rollout")


class EvidenceReader:
    """Reads the evidence of a service; each record again only after it was replaced."""

    def __init__(self, files: ServiceFiles) -> None:
        self._files = files
        self._versions: dict[str, str] = {}
        self._parts: dict[str, Evidence] = {}
        self.damaged: set[str] = set()

    def read(self, experiment: str) -> tuple[Evidence, bool]:
        """The merged evidence of an experiment, and whether anything changed since the last call.

        An unreadable record keeps its last readable content.
        """
        changed = False
        for entry in self._files.list("evidence/*.json"):
            name = entry.key
            if self._versions.get(name) == entry.version:
                continue
            try:
                document = self._files.read_json(name)
                if document is None:
                    continue
                self._parts[name] = Evidence.from_json(document)
            except (ServiceError, ValueError, KeyError, TypeError, AttributeError) as error:
                if name not in self.damaged:
                    _log.error("%s cannot be read: %r", self._files.location(name), error)
                self.damaged.add(name)
            else:
                self._versions[name] = entry.version
                self.damaged.discard(name)
                changed = True
        return merge(experiment, self._parts.values()), changed


class PrometheusPoller:
    """Evaluates the queries of a rollout every few seconds in a thread, so that a hanging server blocks nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._values: dict[int, list[float]] = {}
        self._experiment = ""
        self._due = 0.0
        self._thread: threading.Thread | None = None

    def values(self, state: RolloutState) -> tuple[tuple[float, ...], ...]:
        """Values of each query of the plan so far, newest last, NaN for a missing one. Does not block."""
        queries = [metric for metric in state.plan.metrics if metric.metric == "prometheus"]
        if not queries:
            return ()
        if state.experiment != self._experiment:
            self._experiment, self._values, self._due = state.experiment, {}, 0.0
        if self._clock() >= self._due and (self._thread is None or not self._thread.is_alive()):
            self._due = self._clock() + PROMETHEUS_SECONDS
            names = {"service": state.service, "variant": state.candidate.name, "version": state.candidate.version}
            values = self._values
            self._thread = threading.Thread(target=self._poll, args=(queries, names, values), daemon=True)
            self._thread.start()
        return tuple(tuple(self._values.get(number, ())) for number in range(len(queries)))

    @staticmethod
    def _poll(queries: list[RolloutMetric], names: Mapping[str, str], values: dict[int, list[float]]) -> None:
        for number, metric in enumerate(queries):
            value = query_instant(metric.url or "", fill_query(metric.query or "", names))
            values[number] = [*values.get(number, []), value][-MAX_VALUES:]


def fill_query(query: str, names: Mapping[str, str]) -> str:
    """Fill {service}, {variant} and {version} into a query; other braces are PromQL syntax.

    >>> fill_query('up{job="{service}"}', {"service": "lending"})
    'up{job="lending"}'
    """
    for name, value in names.items():
        query = query.replace("{" + name + "}", value)
    return query


def query_instant(url: str, query: str, timeout: float = TIMEOUT_SECONDS) -> float:
    """The value of an instant query with a single result; NaN, with a log line, for anything else.

    See https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries.
    """
    address = f"{url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        status, content = outbound.request("GET", address, None, {}, seconds=timeout, limit=1 << 20)
        if status != 200:
            raise ValueError(f"HTTP {status}" + (", a redirect, which is not followed" if 300 <= status < 400 else ""))
        document = json.loads(content)
        result = document["data"]["result"]
        if document["data"]["resultType"] == "scalar":
            return float(result[1])
        if len(result) == 1:
            return float(result[0]["value"][1])
        _log.warning("prometheus: %s gives %d series instead of 1", query, len(result))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, IndexError) as error:
        _log.warning("prometheus: %s: %s", query, error)
    return math.nan
