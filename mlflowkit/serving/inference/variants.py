"""The version manager of a gateway: loads, verifies and warms bundles, then flips one pointer.

`load_table` does everything that can fail or take long, in whatever thread its caller likes; nothing answers
with what it returns until `Versions.activate` makes it the pointer's target. A request reads the pointer once and
keeps what it found, so it is answered by one version whatever happens meanwhile, and a version that nothing
refers to any more (no table, no request in flight) is freed by that: there is no moment at which it is unloaded
under a request.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit.bundle import Bundle, open_bundle
from mlflowkit.errors import BundleError, EngineError, MlkitError, ServiceError
from mlflowkit.service_state.records import read_json
from mlflowkit.serving.inference.circuit_breaker import Breaker
from mlflowkit.serving.inference.counters import Tallies, Tally
from mlflowkit.serving.inference.router import REDEPLOY, Router
from mlflowkit.serving.protocol.open_inference import Refusal, Schema, zeros
from mlflowkit.values import RoutingTable, Variant

if TYPE_CHECKING:
    import numpy as np

    from mlflowkit.ports import RemoteModels, RemoteSession, Runtime, Session

INLINE_SECONDS = 0.001
"""A request expected to take less than this is answered on the event loop; a longer one goes to a thread.

Handing work to a thread and back costs about 60 µs and a switch of the interpreter lock; a small graph takes 10.
"""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Model:
    """A loaded, verified and warm version."""

    variant: Variant
    bundle: Bundle
    schema: Schema
    session: Session
    inline_rows: int
    """Requests of at most this many rows are answered on the event loop."""
    threads: int
    breaker: Breaker = field(default_factory=Breaker)
    remote: RemoteSession | None = None
    """Where an isolated variant runs; ``session`` is then not asked."""
    stamp: tuple[tuple[bytes, bytes], ...] = ()
    """Reply headers that name the variant and the version."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A routing table with its models: what the pointer points at."""

    table: RoutingTable
    champion: Model
    by_version: Mapping[str, Model]
    by_name: Mapping[str, Model]
    router: Router
    tallies: dict[str, Tally]
    shadows: tuple[Model, ...] = ()
    affinity_header: bytes = b""
    """The request header that the affinity key is in, in lower case; empty when it is in none."""
    override_header: bytes = b""
    affinity_parameter: str = ""
    """The request parameter that the affinity key is in; "" when it is in none."""


class Versions:
    """The pointer. Written by one thread, read by the event loop; an attribute is read and written atomically."""

    def __init__(self) -> None:
        self.active: Loaded | None = None
        self.tallies = Tallies()

    @property
    def epoch(self) -> int:
        return 0 if self.active is None else self.active.table.epoch

    def activate(self, loaded: Loaded) -> None:
        """Answer with ``loaded`` from the next request on."""
        self.tallies.adopt(loaded.table, loaded.tallies)
        self.active = loaded


def check_table(table: RoutingTable) -> None:
    """Raise ServiceError unless the table has one champion, names that differ, and shares that fit."""
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
    reuse: Iterable[Model] = (),
    tallies: Tallies | None = None,
    *,
    remotes: RemoteModels | None = None,
    remote_seconds: float = 0.0,
) -> Loaded:
    """Load, verify and warm each variant of a table; a model of ``reuse`` that is the same is taken as it is.

    Isolated variants are reached through ``remotes``, which may wait for each for ``remote_seconds``. Raises
    BundleError (corrupted, tampered with, not blessed, not the bundle that the table means), EngineError
    (the graph does not load) or ServiceError (the table cannot be honoured, or a warm-up failed).
    """
    check_table(table)
    have = {_key(model.variant, model.threads): model for model in reuse}
    same = {(model.variant.name, *_key(model.variant, model.threads)): model for model in reuse}
    models: dict[str, Model] = {}
    for variant in table.variants:
        key = _key(variant, threads)
        old = same.get((variant.name, *key)) or have.get(key)
        if old is not None:
            models[variant.name] = _renamed(old, variant)
        elif variant.placement == "colocated":
            models[variant.name] = load_variant(variant, runtime, threads)
        else:
            models[variant.name] = reach_variant(table.service, variant, threads, remotes, remote_seconds)
    return Loaded(
        table=table,
        champion=models[table.champion.name],
        by_version={model.variant.version: model for model in reversed(models.values())},
        by_name=models,
        router=Router(table),
        tallies=(tallies or Tallies()).of(table),
        shadows=tuple(model for model in models.values() if model.variant.role == "shadow"),
        affinity_header=_affinity_header(table),
        override_header=table.override_header.lower().encode("latin-1"),
        affinity_parameter=table.affinity.name if table.affinity.kind == "parameter" else "",
    )


def _key(variant: Variant, threads: int) -> tuple[str, str, int]:
    return variant.digest, variant.placement, threads


def _affinity_header(table: RoutingTable) -> bytes:
    kind = table.affinity.kind
    return table.affinity.name.lower().encode("latin-1") if kind == "header" else b"cookie" if kind == "cookie" else b""


def load_variant(variant: Variant, runtime: Runtime, threads: int) -> Model:
    """Verify a bundle, load its graph on the engine that it asks for and warm it. Raises as `load_table` does.

    The engine has ``threads`` (``serve.threads``) at the least, and more where its bundle was measured with more.
    """
    bundle, schema = _verified(variant)
    session = runtime.load(bundle.model, threads=threads, engine=bundle.engine)
    inline_rows = warm(bundle, schema, session)
    return Model(variant, bundle, schema, session, inline_rows, threads, stamp=_stamp(variant))


def reach_variant(service: str, variant: Variant, threads: int, remotes: RemoteModels | None, seconds: float) -> Model:
    """Verify a bundle that runs in a process of its own, which loaded and warmed it. Raises as `load_table` does."""
    bundle, schema = _verified(variant)
    if remotes is None:
        raise ServiceError(
            f"{variant.name} {variant.version} of {service} is isolated, which this gateway cannot reach",
            hint="mlkit down, then mlkit up RECIPE starts gateways that can",
        )
    remote = remotes.connect(service, variant, seconds)
    return Model(variant, bundle, schema, _Elsewhere(), 0, threads, remote=remote, stamp=_stamp(variant))


class _Elsewhere:
    """The session of a variant that runs in another process."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        raise EngineError(f"{', '.join(inputs)}: this version runs in a process of its own", hint="mlkit status")


def _verified(variant: Variant) -> tuple[Bundle, Schema]:
    bundle = open_bundle(Path(variant.bundle), blessed=True)
    if bundle.manifest.identity != variant.digest:
        raise BundleError(
            f"{variant.bundle}: its identity is {bundle.manifest.identity[:12]}, the routing table asks for "
            f"{variant.digest[:12]}",
            hint=REDEPLOY,
        )
    return bundle, Schema(bundle.signature, known_categories(bundle.path))


def warm(bundle: Bundle, schema: Schema, session: Session) -> int:
    """Run the evidence's sample rows (zeros when there are none); return how many rows fit in INLINE_SECONDS.

    Raises ServiceError when the graph fails, or does not answer the sample rows as it did when it was packaged.
    """
    sample = read_json(bundle.path / "evidence" / "sample.json")
    try:
        inputs = schema.arrays(sample["rows"]) if sample is not None else zeros(bundle.signature, 1)
        answers = session.run(inputs)
        for name in schema.outputs:
            if name not in answers:
                raise ServiceError(f"the graph has no output {name}, which the signature promises")
            if sample is not None and not agree(sample["outputs"][name], answers[name]):
                raise ServiceError(f"output {name} of the sample rows is not what it was when they were packaged")
        one = _seconds(session, zeros(bundle.signature, 1))
        many = _seconds(session, zeros(bundle.signature, 65))
    except (Refusal, MlkitError) as error:
        raise ServiceError(
            f"version {bundle.manifest.version} fails its warm-up: {error}", hint="mlkit run RECIPE --force export"
        ) from error
    slope = max((many - one) / 64, 1e-9)
    return max(0, int(1 + (INLINE_SECONDS - one) / slope))


def agree(expected: Any, found: Any) -> bool:
    """Whether two answers are the same up to what another machine's arithmetic changes (0.1 %, or 0.0001).

    >>> agree([[0.25, 0.75]], [[0.25001, 0.74999]]), agree(["good"], ["bad"]), agree([1.0], [float("nan")])
    (True, False, False)
    """
    import numpy as np

    before, now = np.asarray(expected), np.asarray(found)
    if before.shape != now.shape:
        return False
    if now.dtype.kind == "f":
        return bool(np.allclose(before, now, rtol=1e-3, atol=1e-4))
    return bool(before.tolist() == now.tolist())


def known_categories(bundle: Path) -> dict[str, frozenset[str]]:
    """Values by column, where the reference profile lists every one that training saw.

    A profile keeps the frequent values only; a column with more distinct values than it lists is left out, because
    there a value that is not listed may have been seen.
    """
    profile: Any = read_json(bundle / "evidence" / "reference.json") or {}
    known = {}
    for column, summary in profile.get("columns", {}).items():
        frequent, unique = summary.get("frequent"), summary.get("unique")
        if summary.get("type") == "categorical" and frequent and unique is not None and round(unique) <= len(frequent):
            known[column] = frozenset(str(value) for value, _ in frequent)
    return known


def _seconds(session: Session, inputs: Mapping[str, np.ndarray], *, rounds: int = 20) -> float:
    """Median seconds of a run, after the first few."""
    clock: Callable[[], float] = time.perf_counter
    found = []
    for _ in range(rounds):
        begin = clock()
        session.run(inputs)
        found.append(clock() - begin)
    return sorted(found[rounds // 4 :])[len(found[rounds // 4 :]) // 2]


def _renamed(model: Model, variant: Variant) -> Model:
    if model.variant == variant:
        return model
    stays = model.variant.name == variant.name and model.variant.role == variant.role
    breaker = model.breaker if stays else Breaker()
    return dataclasses.replace(model, variant=variant, breaker=breaker, stamp=_stamp(variant))


def _stamp(variant: Variant) -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"content-type", b"application/json"),
        (b"x-mlkit-variant", variant.name.encode()),
        (b"x-mlkit-version", variant.version.encode()),
    )
