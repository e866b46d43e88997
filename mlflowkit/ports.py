"""Ports: the Protocols that stages call and adapters implement; `wiring` connects the two.

A stage module has ``Section`` (what the recipe says), ``Spec`` (exactly what its result depends on) and
``run(spec, context) -> StageResult``. It reads ``context.inputs``, fills ``context.out`` and touches nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from mlflowkit.features.cells import ReadingPlan
    from mlflowkit.features.text_columns import TableRead
    from mlflowkit.graphs.candidates import Candidate, Engine, Pass
    from mlflowkit.values import (
        Alias,
        CheckResult,
        DeliveryStatus,
        Event,
        HeldLease,
        Lineage,
        Owner,
        Published,
        RoutingTable,
        RunDelivery,
        RunEnd,
        RunRecord,
        ServiceStatus,
        StepLease,
        StepRecord,
        StepResult,
        Variant,
    )


class RunProgress(Protocol):
    """Receives the events of a run. Must not raise."""

    def __call__(self, event: Event) -> None: ...


class Tables(Protocol):
    """Reads and writes tables. Raises DataError with file and line for an unreadable file."""

    def read_csv(self, files: Sequence[Path], *, separator: str = ",", skip: Sequence[str] = ()) -> pa.Table:
        """All rows of CSV files with the same columns, in the order given, without the columns in ``skip``."""

    def read_parquet(self, files: Sequence[Path], *, skip: Sequence[str] = ()) -> pa.Table:
        """All rows of Parquet files with the same columns, in the order given, without the columns in ``skip``."""

    def read_csv_by_plan(
        self,
        files: Sequence[Path],
        plan: ReadingPlan,
        *,
        separator: str = ",",
        skip: Sequence[str] = (),
        folders: Sequence[Mapping[str, str | None]] = (),
    ) -> TableRead:
        """As `read_csv`, with what a recipe says of texts, and each file's columns from folder names."""

    def read_parquet_by_plan(
        self,
        files: Sequence[Path],
        plan: ReadingPlan,
        *,
        skip: Sequence[str] = (),
        folders: Sequence[Mapping[str, str | None]] = (),
    ) -> TableRead:
        """As `read_parquet`, with what a recipe says of texts, and each file's columns from folder names."""

    def from_pandas(self, holder: list[pd.DataFrame], source: str, *, skip: Sequence[str] = ()) -> pa.Table:
        """Convert the only frame in ``holder``, emptying ``holder`` so that columns are not held twice."""

    def on_disk(self, folder: Path) -> Tables:
        """The port whose `read_parquet_by_plan` keeps columns as files of ``folder``, with the same values.

        The table that it reads has those methods of pa.Table that the data stage uses.
        """

    def write_parquet(self, table: pa.Table, rows: np.ndarray, path: Path) -> None:
        """Write the rows where the mask ``rows`` is true. Deterministic: equal input gives equal bytes."""


class NamedColumns(Protocol):
    """Columns by name: a DataFrame, or columns that are read where they are asked for."""

    def items(self) -> Iterable[tuple[Any, pd.Series]]:
        """Names and columns, in order; each may be forgotten before the next."""


class Checker(Protocol):
    """Evaluates data checks on a table."""

    def check(
        self, table: pd.DataFrame, checks: Sequence[Any], schema: Mapping[str, Mapping[str, Any]]
    ) -> Sequence[CheckResult]:
        """Evaluate checks (stages.base.Check), in order; a schema check compares the table with ``schema``.

        Failures name rows by the table's index, whose labels must be unique integers.
        """

    def infer(self, table: NamedColumns) -> Mapping[str, Mapping[str, Any]]:
        """Infer ``{column: {dtype, nullable}}``; dtype is int, float, string, bool or datetime."""


class FileChecker(Protocol):
    """Evaluates one check whose rules stand in a file of another tool."""

    def check(
        self, table: pd.DataFrame, check: Any, folder: Path, evidence: Path, previous: Path | None = None
    ) -> Sequence[CheckResult]:
        """Evaluate a check (judging.file_checks.check_sections) on a table whose index are rows of the source.

        ``folder`` is the recipe's; the tool's own answer is written into ``evidence``, an empty folder, without cell
        values beyond those that the results show; ``previous`` is the parent of that folder in the last run. Rules that
        cannot be evaluated are results with ``error``, never passed. Raises DataError for a file that cannot be used,
        UserCodeError for code that raises.
        """


class Profiler(Protocol):
    """Summarises a table as a mergeable profile."""

    def profile(self, table: NamedColumns) -> bytes:
        """A serialised profile of the table's columns."""

    def summary(self, profile: bytes) -> Mapping[str, Any]:
        """JSON per column: type, counts, missing, mean, standard deviation, quantiles, frequent items."""


class MergingProfiler(Profiler, Protocol):
    """A profiler whose profiles can be merged, for live traffic."""

    def merge(self, profiles: Sequence[bytes]) -> bytes:
        """Merge one or more profiles."""


class Trainer(Protocol):
    """Fits preprocessing and model on the train split, selecting by the validation split. Layout: stages.train."""

    def fit(self, spec: Any, context: StageContext) -> Any:
        """Fit by ``spec`` (a stages.train.Spec), fill ``context.out`` and return a FitResult's fields."""


class Exporter(Protocol):
    """Exports a trained model with its preprocessing as one ONNX graph that takes raw columns."""

    def export(self, trained: Path, folder: Path, out: Path) -> None:
        """Read the train stage's folder ``trained``, write ``model.onnx`` and ``signature.json`` into ``out``."""

    def reference(self, trained: Path, folder: Path) -> ReferenceModel:
        """The trained Python model, which the graph must agree with."""


class ReferenceModel(Protocol):
    """A trained model in Python, with preprocessing: the reference for parity.

    ``inputs`` are by name as the graph's, with numbers in double precision; outputs are named as the graph's.
    """

    @property
    def kind(self) -> Literal["torch", "sklearn", "onnx"]: ...

    @property
    def name(self) -> str:
        """The class, or the file."""

    @property
    def remedy(self) -> str:
        """What to write instead where the graph does not agree."""

    def predict(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Predictions from the features that the model was fitted on, in its own precision."""

    def predict_double(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray] | None:
        """Predictions in double precision, from features that float32 moves by no more than rounding (a tree's answer
        jumps at its thresholds). None where there is no such model."""


class Session(Protocol):
    """A loaded graph. Thread-safe."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Outputs by name. Raises EngineError."""


class Runtime(Protocol):
    """Loads graphs. Raises EngineError when the requested provider is unavailable; never falls back silently."""

    def load(self, model: Path, *, threads: int = 1, engine: Engine | None = None) -> Session:
        """Open a session on ``engine`` (the bundle's), with the larger of ``threads`` and its own number of threads."""


class Passes(Protocol):
    """Rewrites graphs (see `candidates.Pass`)."""

    def apply(self, passes: Sequence[Pass], model: Path, out: Path, calibration: Mapping[str, np.ndarray]) -> str:
        """Apply all passes to ``model`` and write ``out``. Return "" on success, else why the passes do not apply.

        ``calibration`` holds training rows by input name. Deterministic: equal passes, graph and rows give equal
        bytes. Raises DataError when calibration rows do not match the graph's inputs, EngineError when a tool fails.
        """


class Engines(Protocol):
    """Loads graphs on the engine of a candidate."""

    def missing(self, engine: Engine) -> str:
        """Why this machine cannot run ``engine`` (no library, provider or GPU), or "". Imports little."""

    def load(self, model: Path, engine: Engine, *, store: Path | None = None) -> Session:
        """Open a session; never falls back to another provider silently. Raises EngineError.

        ``store`` is a cache folder for built engines, keyed by everything that they depend on (see `engine_key`).
        """


@dataclass(frozen=True, slots=True)
class TrialJob:
    """One candidate to build, load and measure.

    model      the float graph, with its external weight files
    rows       arrays (see `arrays`): ``calibration/NAME`` training rows, ``inputs/NAME`` rows to predict, by input name
    batch      rows per request
    requests   number of the rows to predict that requests are cut from
    scratch    folder for files exchanged between the processes, and for the log
    scripts    folder for the script that reproduces a failure
    seconds    timeout of building, loading and each call
    callers    concurrent threads while measuring
    """

    candidate: Candidate
    model: Path
    rows: Path
    batch: int
    requests: int
    scratch: Path
    scripts: Path
    seconds: float = 600.0
    callers: int = 1


@dataclass(frozen=True, slots=True)
class BuiltGraph:
    """A candidate's graph; ``reason`` says why there is none (all else is empty then).

    digest         of everything that the candidate's predictions and speed depend on
    files          the graph after all passes, with its external weight files
    size_bytes     total of ``files``
    build_seconds  time the passes took when the graph was built
    cached         whether an earlier search, or this one for another engine, had built the graph
    """

    digest: str
    reason: str = ""
    files: tuple[Path, ...] = ()
    size_bytes: int | None = None
    build_seconds: float | None = None
    cached: bool = False


@dataclass(frozen=True, slots=True)
class LoadedGraph:
    """Cost of loading a candidate.

    memory_bytes   peak resident memory after the first predictions, minus that of the process with the runtime
                   imported and nothing loaded; None where the system does not report it
    cold_start_ms  from the start of loading to the first prediction
    """

    memory_bytes: int | None
    cold_start_ms: float


class Trial(Protocol):
    """One candidate in its own process. Every method but `close` raises TrialError once that process has failed."""

    def build(self) -> BuiltGraph:
        """Wait until the graph is built or known to be impossible."""

    def load(self) -> LoadedGraph:
        """Load the graph and predict once."""

    def answers(self) -> Mapping[str, np.ndarray]:
        """Predictions for all rows, by output name."""

    def block(self, start: int, count: int) -> Sequence[int]:
        """Nanoseconds of each of the requests ``start`` to ``start + count - 1``, timed by the caller."""

    def offered(self, rate: float, count: int, seed: int) -> np.ndarray:
        """Measure an open loop: ``count`` requests, arrivals at ``rate`` per second drawn with ``seed``.

        Returns int64 [4, count], nanoseconds from the start: due, caller free, sent, answered.
        """

    def close(self) -> None:
        """End the process and its children. Never raises; idempotent."""


class Trials(Protocol):
    """Runs candidates in isolation: a crash affects one candidate only."""

    def folder(self, job: TrialJob) -> Path:
        """The cache folder of a candidate's results, keyed by everything they depend on. It need not exist."""

    def start(self, job: TrialJob) -> Trial:
        """Start building a candidate; returns at once. The trial's process never outlives this one."""


class Search(Protocol):
    """A search strategy (ask and tell): decides only by the results of its own suggestions."""

    def suggest(self, count: int) -> Sequence[Candidate]:
        """Up to ``count`` candidates not suggested before; none when the search is over."""

    def tell(self, results: Sequence[TrialResult]) -> None:
        """Record the results of suggested candidates."""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The result of a candidate, for a search.

    ``ratio`` is its objective relative to the float graph's (smaller is better); None when it was not measured.
    """

    candidate: Candidate
    ratio: float | None
    feasible: bool


class EngineBuilder(Protocol):
    """Builds engines ahead of time into a store that `Engines.load` reads."""

    def build(self, model: Path, runtime: str, target: str, store: Path) -> tuple[Path, bool]:
        """The engine file for compute capability ``target``, and whether it was built now (else it was in the store).

        Raises EngineError for a missing library, an unknown target, unsupported operators (named, with their nodes) or
        a dynamic dimension without a range, and StoreError when the engine cannot be written.
        """


class RemoteSession(Protocol):
    """A model in another process. Bound to one event loop."""

    async def run(self, inputs: Mapping[str, np.ndarray], rows: int) -> Mapping[str, np.ndarray]:
        """Outputs by name. Raises EngineError, also when the process dies during the call."""


class RemoteModels(Protocol):
    """Connects to models that run in their own processes."""

    def connect(self, service: str, variant: Variant, seconds: float = 0.0) -> RemoteSession:
        """Connect to an isolated variant. Raises ServiceError when it is not up within ``seconds``.

        With 0 seconds it does not wait: calls fail until the process is up.
        """


class ModelRegistry(Protocol):
    """Keeps blessed bundles by identity, for other machines to fetch."""

    def push(self, bundle: Path) -> str:
        """Store a blessed bundle; returns the reference by which `pull` fetches it. One identity is one version.

        Raises BundleError for a bundle that is not blessed, UsageError for refused credentials, ServiceError when the
        registry fails; nothing half-stored can be pulled.
        """

    def pull(self, reference: str, folder: Path) -> Path:
        """Fetch a bundle into a new folder, which appears whole, verified and blessed, or not at all.

        A folder with this very bundle is left as it is. Raises UsageError for a reference that names none, BundleError
        for a bundle that does not verify, is not blessed or is another than the reference names, ServiceError when the
        registry fails.
        """


class Tracker(Protocol):
    """Mirrors runs and blessed bundles into a tracking server and model registry. The journal is the truth."""

    def prewarm(self) -> None:
        """Start in the background what `record` needs; returns at once. Optional."""

    def record(self, run: RunRecord) -> None:
        """Record parameters, metrics and tags (``git_commit``, ``git_dirty``, ``data_version``) of a finished run."""

    def register(self, name: str, bundle: Path, run: RunRecord, alias: str) -> str:
        """Register a blessed bundle under ``name`` and point ``alias`` at it; returns the registry's version.

        Idempotent: an identity digest is registered once.
        """

    def unalias(self, name: str, identity: str, alias: str) -> None:
        """Take ``alias`` from the version of ``name`` with that identity, if it has it. Idempotent."""

    def describe_version(self, reference: str) -> Mapping[str, str]:
        """The tags of a registered version or a run: ``name``, ``identity``, ``run``, ``git_commit``, ...

        ``reference`` is models:/NAME/VERSION, models:/NAME@ALIAS or runs:/ID. Raises UsageError when there is none.
        """

    def download_bundle(self, reference: str, out: Path) -> Path | None:
        """The bundle of such a reference in the registry's artifacts, below ``out``; not verified. None without one."""

    def defer(self) -> bool:
        """Have the finished runs of the journal recorded by a process of its own, so that a command need not wait.

        False where the caller is to record them: a server may be down, and whoever waits is told so.
        """

    def close(self) -> None:
        """End what a call started. A later call starts it again."""


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that has ended, as targets are given it; ``folders`` has the published folder of each finished stage."""

    record: RunRecord
    folders: Mapping[str, Path]


class RunTarget(Protocol):
    """A system outside of the state folder to which finished runs are delivered: a tracker, a registry, a data store.

    What a run owes is written to the journal in the transaction that ends it, and delivered after that: by the run, and
    where that fails by later ones, until it succeeds, is refused, or was tried too often. So a system that is down
    costs no model. A process may be killed after the system took a delivery and before the journal knows: `deliver`
    asks the system, by the key, how far an earlier call came, and does the rest.

    A target is made by `wiring.Wiring.run_targets` from a recipe; it reads secrets inside `deliver`, and imports its
    vendor there.
    """

    @property
    def name(self) -> str:
        """Which system, and where in it (``lakefs lending/main``): unique in a recipe, stable, at most 200 characters,
        without secrets. The journal keeps it."""

    def key(self, run: RunRecord) -> str:
        """What of a run is delivered, such as the identity of its bundle; "" for nothing. Pure, and asks nobody.

        Equal keys are delivered once. At most 200 characters.
        """

    def deliver(self, run: FinishedRun) -> str:
        """Deliver a run, or what of it the system lacks; returns a receipt for people: a URL, a version, a commit.

        Raises DeliveryRefusedError for what a person must change first, any other WorldError for what may pass.
        """

    def defer(self) -> bool:
        """Have pending deliveries made by a process of its own, so that a command need not wait; most return False."""

    def close(self) -> None:
        """End what `deliver` started. A later call starts it again."""


class Platform(Protocol):
    """Starts, updates and stops gateways."""

    def prewarm(self, service: Any = None) -> None:
        """Start in the background what `ensure` needs; returns at once.

        Raises ServiceError when ``service`` (a stages.deploy.ServeSection) cannot listen on its address.
        """

    def ensure(self, service: Any, progress: Callable[[str], None] = ..., *, monitor: Any = None) -> str:
        """Start the gateway of a stages.deploy.ServeSection unless it is up; returns its endpoint URL.

        ``monitor`` is the MonitorSection whose windows and segments live rows are counted by.
        ``progress`` is told, in words, what a start that takes long waits for.
        """

    def publish(self, table: RoutingTable) -> None:
        """Send a table to every replica; returns once all have loaded, verified, warmed and activated it."""

    def status(self) -> Sequence[ServiceStatus]: ...

    def folder(self, service: str) -> Path:
        """The state folder of a service (see service_state.records)."""

    def down(self, service: str | None = None) -> Sequence[str]:
        """Stop one service, or all with the local Ray started for them; returns the names of those stopped."""


@dataclass(frozen=True, slots=True)
class ControlRecord:
    """A control record as it was read. ``version`` is opaque: it differs after every write."""

    value: bytes
    version: str


@dataclass(frozen=True, slots=True)
class RecordEntry:
    """A control record in a list. ``modified`` is the time of its last write, in seconds since the epoch."""

    key: str
    version: str
    modified: float


class ControlRecords(Protocol):
    """Small documents by which the processes of a service meet. Thread-safe, and safe between processes.

    A key is a relative POSIX path such as ``services/lending/rollout.json``; no part is empty, hidden (".x") or "..",
    or has a ``*``. A pattern is a key in which ``*`` matches any text within one part. A reader sees an old or a new
    value, never a part of one. Every method raises ServiceError when the storage fails, and for a key that is no key.
    """

    def get(self, key: str) -> ControlRecord | None:
        """Read a record; None when there is none."""

    def put(self, key: str, value: bytes, *, durable: bool = True, private: bool = False) -> str:
        """Write a record whatever there was, and return its version.

        Without ``durable`` it may be lost when the machine fails. A ``private`` record holds a secret: only the owner
        of the state can read it. A key that is written with `put_if` must not be written with `put` at the same time.
        """

    def put_if(self, key: str, value: bytes, version: str | None) -> str:
        """Write a record durably if it still has ``version`` (None: if there is none), and return its new version.

        Raises ConflictError otherwise: of several writers that read the same version, one succeeds.
        """

    def delete(self, key: str, *, version: str | None = None) -> None:
        """Remove a record, or all below a folder of keys; nothing when there is none.

        With ``version``, raises ConflictError when the record has another one.
        """

    def list(self, pattern: str) -> Sequence[RecordEntry]:
        """The records whose key matches a pattern, sorted by key."""

    def watch(self, patterns: Iterable[str], known: Mapping[str, str], timeout: float) -> Mapping[str, str]:
        """Wait until the versions of the matching records, by key, differ from ``known``, or for ``timeout`` seconds.

        Returns the versions: a key that is new was created, one that is missing was deleted. At once for timeout 0.
        """

    def lock(self, name: str) -> AbstractContextManager[None]:
        """An advisory lock, for sections that no single write covers; ``name`` is like a key. Not reentrant.

        It binds only callers that take it, and ends with the process that holds it.
        """

    def location(self, key: str) -> str:
        """Where a person finds a record, for messages."""


class RunHistory(Protocol):
    """Runs and their steps, as they happened."""

    def runs(self, limit: int | None = None, name: str = "") -> tuple[RunRecord, ...]:
        """Runs, newest first; of one recipe when it has a ``name``."""

    def run(self, name: str) -> RunRecord:
        """A run by its id, a unique prefix of it, or ``last``. Raises UsageError."""

    def finished_run(self, name: str, fingerprints: Sequence[str]) -> RunRecord | None:
        """The newest finished run whose steps published exactly these fingerprints."""

    def start_run(self, record: RunRecord, owner: Owner) -> None:
        """Insert a run and its pending steps."""

    def begin_step(self, run: str, stage: str, fingerprint: str = "") -> None:
        """Mark a step as running, with the fingerprint that it has now that its inputs are known."""

    def finish_step(self, run: str, step: StepRecord) -> None:
        """Update a step."""

    def set_lineage(self, run: str, lineage: Lineage) -> None:
        """Replace a run's lineage."""

    def finish_run(self, run: str, finish: RunEnd) -> None:
        """Update a run with its final state."""

    def sweep(self) -> tuple[str, ...]:
        """Mark runs whose process is dead as interrupted; returns their ids."""


class Outbox(Protocol):
    """What finished runs owe to systems outside of the state folder: rows that outlive a kill (see `RunTarget`)."""

    def deliveries(self, *statuses: DeliveryStatus) -> tuple[RunDelivery, ...]:
        """Deliveries of these statuses (of any, where none is named), oldest first."""

    def owe(self, deliveries: Sequence[RunDelivery], *, again: bool = False) -> None:
        """Insert deliveries, but those whose target and key are known; ``again`` makes these pending, as if new."""

    def save_delivery(self, delivery: RunDelivery) -> None:
        """Update a delivery, by its target and key, after an attempt."""


class StepResults(Protocol):
    """Results by fingerprint, published under a lease: one live owner per fingerprint, with a growing fence."""

    def result(self, fingerprint: str) -> StepResult | None:
        """The result of a fingerprint."""

    def latest(self, name: str, stage: str) -> StepResult | None:
        """The newest result of a stage of a recipe, of any fingerprint."""

    def finished_fingerprints(self, fingerprints: Sequence[str]) -> set[str]:
        """Those of the fingerprints that have a result."""

    def take_lease(
        self, fingerprint: str, owner: Owner, run: str, stage: str, *, over: HeldLease | None = None
    ) -> StepLease | HeldLease:
        """Take the lease if it is free or unchanged since ``over`` (whose owner is dead); else return the holder."""

    def renew_lease(self, lease: StepLease) -> None:
        """Increment the heartbeat of a lease."""

    def release_lease(self, lease: StepLease, stage: str = "") -> None:
        """Release a lease; its fence stays."""

    def held_lease(self, fingerprint: str) -> HeldLease | None:
        """The lease of a fingerprint, if it is held."""

    def live_fingerprints(self) -> set[str]:
        """Fingerprints whose lease has an owner not known to be dead."""

    def publish(self, result: StepResult, lease: StepLease, alias: Alias | None = None) -> None:
        """Insert a result and its alias together. Raises StoreError when the lease's fence is no longer current."""


class VersionAliases(Protocol):
    """Names for versions of a recipe's bundle, ``champion`` among them."""

    def alias(self, name: str, alias: str) -> Alias | None:
        """An alias of a recipe."""

    def put_alias(self, alias: Alias) -> None:
        """Insert or replace an alias. A replaced champion keeps its `candidate_alias`."""


class Journal(RunHistory, StepResults, VersionAliases, Outbox, AbstractContextManager["Journal"], Protocol):
    """What ran, with which result, under whose lease. Closed at the end of its context; raises StoreError."""

    @property
    def state(self) -> Path:
        """The state folder of this machine."""

    def file_digests(self, paths: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Cached (stat, digest) of files of this machine by path."""

    def save_file_digests(self, digests: Mapping[str, tuple[str, str]]) -> None:
        """Cache (stat, digest) of files by path."""

    def close(self) -> None:
        """Release connections. Idempotent."""


class ObjectStore(Protocol):
    """Published folders by digest: create-only, and checked when they are used. Raises StoreError."""

    def path(self, digest: str) -> Path:
        """The folder of a digest on this machine, which need not exist."""

    def intact(self, published: Published) -> bool:
        """Whether a folder has all its files at their sizes. Contents are not read."""

    def verified(self, published: Published) -> Path:
        """The path of a folder, after reading all of it. Raises StoreError unless its content has its digest."""

    def workspace(self, fingerprint: str, fence: int) -> Path:
        """Create an empty folder for the holder of a lease; removes those of earlier holders."""

    def publish(self, folder: Path, stage: str = "") -> Published:
        """Make a folder durable, read-only and visible under its digest.

        One of the same content is kept; it is replaced only when it was altered.
        """

    def discard(self, folder: Path) -> None:
        """Remove a workspace if it exists."""

    def scratch(self, fingerprint: str) -> Path:
        """The scratch folder of a fingerprint, which survives a kill."""

    def discard_scratch(self, fingerprint: str) -> None:
        """Remove the scratch folder of a fingerprint if it exists."""

    def sweep(self, live: Callable[[], Set[str]], finished: Callable[[Sequence[str]], Set[str]]) -> None:
        """Remove leftovers of killed runs: what belongs to no fingerprint with a live lease."""


class StatePorts(Protocol):
    """The storage of a state folder. Its control records are opened by `service_state.records.control_records`."""

    def open_journal(self, *, create: bool = True) -> Journal:
        """Open the journal. With ``create`` false a missing one reads as empty and is not created."""

    @property
    def objects(self) -> ObjectStore: ...


class LookupPorts(StatePorts, Protocol):
    """The ports by which a model is looked up."""

    def model_registry(self, section: Any, folder: Path, connections: Mapping[str, Any]) -> ModelRegistry:
        """The registry of a section (data_access.registry_sections); paths of secret files are relative to ``folder``.

        Raises UsageError for a connection that is missing, or of another kind.
        """


class Ports(Protocol):
    """The ports of a run. Each adapter is imported and made on first use."""

    @property
    def tables(self) -> Tables: ...
    @property
    def checker(self) -> Checker: ...
    @property
    def profiler(self) -> Profiler: ...

    def file_checker(self, kind: str) -> FileChecker:
        """The checker of a kind of files with rules (expectations, pandera, tfdv)."""

    @property
    def runtime(self) -> Runtime: ...
    @property
    def passes(self) -> Passes: ...
    @property
    def engines(self) -> Engines: ...
    @property
    def trials(self) -> Trials: ...
    @property
    def exporter(self) -> Exporter: ...
    @property
    def tracker(self) -> Tracker: ...
    @property
    def platform(self) -> Platform: ...

    def trainer(self, kind: str) -> Trainer:
        """The trainer of a model kind (torch, sklearn, onnx or bundle)."""

    def search(self, candidates: Sequence[Candidate], trials: int, seed: int) -> Search:
        """A model-based search over more candidates than ``trials``. Raises UsageError when Optuna is missing."""


class RunPorts(Ports, LookupPorts, Protocol):
    """The ports with which a recipe is run; its stages see `Ports` only."""

    def run_targets(self, recipe: Any, folder: Path) -> Sequence[RunTarget]:
        """The systems to which finished runs of a recipe (a recipe.schema.RecipeSchema) in ``folder`` are delivered."""


@dataclass(frozen=True, slots=True)
class StageContext:
    """The folders and ports of a running stage.

    inputs     published folder of each stage in values.STAGE_INPUTS, read-only
    out        empty folder to fill; published when run() returns
    scratch    folder of this fingerprint that survives a kill, for checkpoints
    folder     the recipe's folder: base of relative paths and Python references
    champion   bundle folder of the champion that gates compare with, or None
    champion_required  whether gates that compare with it are INCONCLUSIVE without one; else they pass
    class_required     whether limits in milliseconds are judged only where the gate names a class of machines
    previous   published folder of this stage in the last run of this recipe, or None (frozen schemas)
    recipe     the recipe's file, absolute; None for a bundle that is deployed without one
    overrides  those of the run
    fetch      fetches the planned version of a remote data source: its files by path; None for any other source
    failure    folder of the run, not made yet, for what a stage that refuses its input judged by; None outside a run
    fetch_model  fetches the bundle that is the recipe's model, verified and blessed; None for any other model
    """

    inputs: Mapping[str, Path]
    out: Path
    scratch: Path
    folder: Path
    seed: int
    lineage: Lineage
    run: str
    ports: Ports
    progress: RunProgress
    champion: Path | None = None
    champion_required: bool = False
    class_required: bool = False
    previous: Path | None = None
    recipe: Path | None = None
    overrides: tuple[str, ...] = ()
    fetch: Callable[[], Mapping[str, Path]] | None = None
    failure: Path | None = None
    fetch_model: Callable[[], Path] | None = None
