"""The version manager of a gateway: loads, verifies and warms bundles, then swaps one pointer.

`load_table` does everything that can fail or take long, in any thread; its result serves no request until
`Versions.activate` makes it the pointer's target. A request reads the pointer once and keeps that table, so it is
answered by one version whatever happens meanwhile; a version without references (no table, no request in flight) is
freed by reference counting: nothing is ever unloaded under a request.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlflowkit.bundle import Bundle, open_bundle
from mlflowkit.errors import BundleError, EngineError, MlkitError, ServiceError
from mlflowkit.ports import RemoteModels, RemoteSession, Runtime, Session
from mlflowkit.service_state.records import read_json
from mlflowkit.serving.inference.circuit_breaker import CircuitBreaker
from mlflowkit.serving.inference.counters import VariantCounter, VariantCounters
from mlflowkit.serving.inference.router import REDEPLOY, Router
from mlflowkit.serving.protocol.http_error import RequestError
from mlflowkit.serving.protocol.input_schema import Schema, zeros
from mlflowkit.values import RoutingTable, Variant

INLINE_SECONDS = 0.001
"""A request expected to take less than this runs on the event loop, a longer one in a thread.

A round trip to a thread costs about 60 µs and a switch of the interpreter lock; a small graph takes 10 µs.
"""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class LoadedModel:
    """A loaded, verified and warm version.

    inline_rows       requests of at most this many rows run on the event loop
    remote            where an isolated variant runs; ``session`` is unused then
    response_headers  reply headers that name the variant and the version
    """

    variant: Variant
    bundle: Bundle
    schema: Schema
    session: Session
    inline_rows: int
    threads: int
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    remote: RemoteSession | None = None
    response_headers: tuple[tuple[bytes, bytes], ...] = field(init=False)

    def __post_init__(self) -> None:
        names = (b"x-mlkit-variant", self.variant.name.encode()), (b"x-mlkit-version", self.variant.version.encode())
        object.__setattr__(self, "response_headers", ((b"content-type", b"application/json"), *names))


@dataclass(frozen=True, slots=True)
class ActiveTable:
    """A routing table with its models. The affinity header is in lower case; unused fields are empty."""

    table: RoutingTable
    champion: LoadedModel
    by_version: Mapping[str, LoadedModel]
    by_name: Mapping[str, LoadedModel]
    router: Router
    counters: dict[str, VariantCounter]
    shadows: tuple[LoadedModel, ...] = ()
    affinity_header: bytes = b""
    override_header: bytes = b""
    affinity_parameter: str = ""


class Versions:
    """The pointer to the active table. Written by one thread, read by the event loop; both are atomic."""

    def __init__(self) -> None:
        self.active: ActiveTable | None = None
        self.counters = VariantCounters()

    @property
    def epoch(self) -> int:
        return 0 if self.active is None else self.active.table.epoch

    def activate(self, active: ActiveTable) -> None:
        """Serve with a table from the next request on."""
        self.counters.adopt(active.table, active.counters)
        self.active = active


def check_table(table: RoutingTable) -> None:
    """Raise ServiceError unless the table has one champion, distinct names, and disjoint shares."""
    champions = [variant for variant in table.variants if variant.role == "champion"]
    where = f"routing table {table.epoch} of {table.service}"
    if len(champions) != 1:
        raise ServiceError(f"{where} has {len(champions)} champions; one is needed", hint=REDEPLOY)
    names = [variant.name for variant in table.variants]
    if len(set(names)) != len(names):
        raise ServiceError(f"{where} has two variants of one name: {', '.join(names)}", hint=REDEPLOY)
    Router(table)


def load_table(
    table: RoutingTable,
    runtime: Runtime,
    threads: int,
    reuse: Collection[LoadedModel] = (),
    counters: VariantCounters | None = None,
    *,
    remotes: RemoteModels | None = None,
    remote_seconds: float = 0.0,
) -> ActiveTable:
    """Load, verify and warm each variant of a table; a model of ``reuse`` that is the same is kept.

    Isolated variants are reached through ``remotes``, which may wait ``remote_seconds`` for each. Raises
    BundleError (corrupted, tampered with, not blessed, not the bundle that the table names), EngineError
    (the graph does not load) or ServiceError (an invalid table, or a failed warm-up).
    """
    check_table(table)
    models: dict[str, LoadedModel] = {}
    for variant in table.variants:
        key = (variant.digest, variant.placement, threads)
        same = [model for model in reuse if (model.variant.digest, model.variant.placement, model.threads) == key]
        previous = next((model for model in same if model.variant.name == variant.name), same[-1] if same else None)
        if previous is not None:
            models[variant.name] = _as_variant(previous, variant)
        elif variant.placement == "colocated":
            models[variant.name] = load_variant(variant, runtime, threads)
        else:
            models[variant.name] = connect_variant(table.service, variant, threads, remotes, remote_seconds)
    affinity = table.affinity
    affinity_header = {"header": affinity.name.lower(), "cookie": "cookie"}.get(affinity.kind, "")
    return ActiveTable(
        table=table,
        champion=models[table.champion.name],
        by_version={model.variant.version: model for model in reversed(models.values())},
        by_name=models,
        router=Router(table),
        counters=(counters or VariantCounters()).for_table(table),
        shadows=tuple(model for model in models.values() if model.variant.role == "shadow"),
        affinity_header=affinity_header.encode("latin-1"),
        override_header=table.override_header.lower().encode("latin-1"),
        affinity_parameter=affinity.name if affinity.kind == "parameter" else "",
    )


def load_variant(variant: Variant, runtime: Runtime, threads: int) -> LoadedModel:
    """Verify a bundle, load its graph on the engine it names and warm it. Raises as `load_table` does.

    The engine has at least ``threads`` (``serve.threads``), more where its bundle was measured with more.
    """
    bundle, schema = _open_verified(variant)
    session = runtime.load(bundle.model, threads=threads, engine=bundle.engine)
    inline_rows = warm(bundle, schema, session)
    return LoadedModel(variant, bundle, schema, session, inline_rows, threads)


def connect_variant(
    service: str, variant: Variant, threads: int, remotes: RemoteModels | None, seconds: float
) -> LoadedModel:
    """Verify a bundle that another process loaded and warmed, and connect to it. Raises as `load_table` does."""
    bundle, schema = _open_verified(variant)
    if remotes is None:
        problem = f"{variant.name} {variant.version} of {service} is isolated, which this gateway cannot reach"
        raise ServiceError(problem, hint="mlkit down, then mlkit up RECIPE starts gateways that can")
    remote = remotes.connect(service, variant, seconds)
    return LoadedModel(variant, bundle, schema, RemoteOnlySession(), 0, threads, remote=remote)


class RemoteOnlySession:
    """The local session of a variant that runs in another process: it always raises."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        raise EngineError(f"{', '.join(inputs)}: this version runs in a process of its own", hint="mlkit status")


def _open_verified(variant: Variant) -> tuple[Bundle, Schema]:
    bundle = open_bundle(Path(variant.bundle), blessed=True)
    identity = bundle.manifest.identity
    if identity != variant.digest:
        problem = f"its identity is {identity[:12]}, the routing table asks for {variant.digest[:12]}"
        raise BundleError(f"{variant.bundle}: {problem}", hint=REDEPLOY)
    return bundle, Schema(bundle.signature, complete_categories(bundle.path))


def warm(bundle: Bundle, schema: Schema, session: Session) -> int:
    """Run the evidence's sample rows (zeros when there are none); return how many rows fit in INLINE_SECONDS.

    Raises ServiceError when the graph fails, or its outputs for the sample rows differ from the packaged ones.
    """
    sample = read_json(bundle.path / "evidence" / "sample.json")
    try:
        inputs = schema.arrays(sample["rows"]) if sample is not None else zeros(bundle.signature, 1)
        outputs = session.run(inputs)
        for name in schema.outputs:
            if name not in outputs:
                raise ServiceError(f"the graph has no output {name}, which the signature promises")
            if sample is not None and not outputs_agree(sample["outputs"][name], outputs[name]):
                raise ServiceError(f"output {name} of the sample rows is not what it was when they were packaged")
        first = _median_seconds(session, zeros(bundle.signature, 1))
        batch = _median_seconds(session, zeros(bundle.signature, 65))
    except (RequestError, MlkitError) as error:
        problem = f"version {bundle.manifest.version} fails its warm-up: {error}"
        raise ServiceError(problem, hint="mlkit run RECIPE --force export") from error
    slope = max((batch - first) / 64, 1e-9)
    return max(0, int(1 + (INLINE_SECONDS - first) / slope))


def outputs_agree(expected: Any, actual: Any) -> bool:
    """Whether outputs are equal up to another machine's arithmetic (0.1 %, or 0.0001).

    >>> outputs_agree([[0.25, 0.75]], [[0.25001, 0.74999]]), outputs_agree(["good"], ["bad"])
    (True, False)
    >>> outputs_agree([1.0], [float("nan")])
    False
    """
    before, now = np.asarray(expected), np.asarray(actual)
    if before.shape != now.shape:
        return False
    if now.dtype.kind == "f":
        return bool(np.allclose(before, now, rtol=1e-3, atol=1e-4))
    return bool(before.tolist() == now.tolist())


def complete_categories(bundle: Path) -> dict[str, frozenset[str]]:
    """Values by column, where the reference profile lists every value of the training data.

    A profile lists frequent values only; a column with more distinct values than listed is left out, because there an
    unlisted value may have been in the training data.
    """
    profile: Any = read_json(bundle / "evidence" / "reference.json") or {}
    categories = {}
    for column, summary in profile.get("columns", {}).items():
        frequent, unique = summary.get("frequent"), summary.get("unique")
        if summary.get("type") == "categorical" and frequent and unique is not None and round(unique) <= len(frequent):
            categories[column] = frozenset(str(value) for value, _ in frequent)
    return categories


def _median_seconds(session: Session, inputs: Mapping[str, np.ndarray]) -> float:
    """Median duration of 15 runs after a lead-in of five, in seconds."""
    seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        session.run(inputs)
        seconds.append(time.perf_counter() - begin)
    return sorted(seconds[5:])[7]


def _as_variant(model: LoadedModel, variant: Variant) -> LoadedModel:
    """The same loaded version under another name, role or weight; a new name or role resets the circuit."""
    if model.variant == variant:
        return model
    unchanged = model.variant.name == variant.name and model.variant.role == variant.role
    return dataclasses.replace(model, variant=variant, breaker=model.breaker if unchanged else CircuitBreaker())
