"""What a gateway counts, for Prometheus. One registry a gateway, nothing process-wide.

Children of labelled metrics are looked up once and kept, because a lookup costs more than the increment. Replicas
share a port, so a scrape reaches any one of them: each leaves its page where the others find it, and the page that
is answered has the samples of all, told apart by the label ``replica``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

import mlflowkit

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Telemetry:
    """Metrics of one gateway replica; every sample carries the labels ``service`` and ``replica``."""

    def __init__(self, service: str, replica: str) -> None:
        self.registry = CollectorRegistry()
        base = {"service": service, "replica": replica}
        names = tuple(base)
        self._base = base
        self._requests = Counter(
            "mlkit_requests", "Requests answered.", (*names, "door", "code"), registry=self.registry
        )
        self._seconds = Histogram(
            "mlkit_request_seconds",
            "Seconds from the request's headers to its reply.",
            (*names, "door"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._rows = Counter("mlkit_rows", "Rows answered.", (*names, "version"), registry=self.registry)
        self._unseen = Counter(
            "mlkit_unseen_categories",
            "Cells that hold a category which training never saw.",
            (*names, "column"),
            registry=self.registry,
        )
        self._refused = Counter(
            "mlkit_auth_refusals",
            "Requests without an API key that may do what they ask.",
            (*names, "code"),
            registry=self.registry,
        )
        self._swaps = Counter("mlkit_version_swaps", "Routing tables swapped in.", names, registry=self.registry)
        self._in_flight = Gauge("mlkit_requests_in_flight", "Requests being answered.", names, registry=self.registry)
        self._epoch = Gauge("mlkit_routing_epoch", "Epoch of the routing table.", names, registry=self.registry)
        self._version = Gauge(
            "mlkit_model_version", "1 for each version loaded.", (*names, "variant", "version", "role"),
            registry=self.registry,
        )  # fmt: skip
        build = Info("mlkit_build", "The gateway's build.", names, registry=self.registry)
        build.labels(**base).info({"version": mlflowkit.__version__})
        self._children: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._by_version: dict[str, Counter] = {}
        self._flight = self._in_flight.labels(**base)

    def answered(self, door: str, code: int, seconds: float) -> None:
        """One request was answered with ``code`` in ``seconds``; ``door`` is infer, predict, or other."""
        pair = self._children.get((door, code))
        if pair is None:
            pair = (
                self._requests.labels(**self._base, door=door, code=str(code)),
                self._seconds.labels(**self._base, door=door),
            )
            self._children[door, code] = pair
        pair[0].inc()
        pair[1].observe(seconds)

    def rows(self, version: str, rows: int, unseen: Mapping[str, int]) -> None:
        """``rows`` rows were answered by ``version``; ``unseen`` counts unseen categories by column."""
        child = self._by_version.get(version)
        if child is None:
            child = self._by_version[version] = self._rows.labels(**self._base, version=version)
        child.inc(rows)
        for column, count in unseen.items():
            self._unseen.labels(**self._base, column=column).inc(count)

    def refused(self, code: int) -> None:
        """A request had no API key that may do what it asks (401, 403)."""
        self._refused.labels(**self._base, code=str(code)).inc()

    def swapped(self, epoch: int, versions: tuple[tuple[str, str, str], ...]) -> None:
        """A routing table came in; ``versions`` lists (variant, version, role)."""
        self._version.clear()
        for variant, version, role in versions:
            self._version.labels(**self._base, variant=variant, version=version, role=role).set(1)
        self._epoch.labels(**self._base).set(epoch)
        self._swaps.labels(**self._base).inc()

    def page(self, in_flight: int) -> bytes:
        """This replica's page, in Prometheus's text format."""
        self._flight.set(in_flight)
        return bytes(generate_latest(self.registry))


def merge(pages: Iterable[str]) -> bytes:
    """Pages of several replicas as one: each metric is described once, followed by everybody's samples.

    >>> one, two = "# TYPE a gauge\\na 1\\n", "# TYPE a gauge\\na 5\\n"
    >>> merge(["# HELP a A.\\n" + one, "# HELP a A.\\n" + two]).decode().splitlines()
    ['# HELP a A.', '# TYPE a gauge', 'a 1', 'a 5']
    """
    described: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for page in pages:
        name, here = "", False
        for line in page.splitlines():
            if line.startswith("# "):
                if line.startswith("# HELP "):
                    name = line.split(" ", 3)[2]
                    here = name not in described
                    described.setdefault(name, [])
                if here:
                    described[name].append(line)
            else:
                samples.setdefault(name, []).append(line)
    lines = [line for name, head in described.items() for line in (*head, *samples.get(name, ()))]
    return "".join(f"{line}\n" for line in lines).encode()
