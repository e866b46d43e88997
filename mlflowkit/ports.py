"""What stages ask of the world: Protocols of a few verbs, fulfilled by adapters, handed in by wiring.

A stage module has ``Section`` (what the recipe says), ``Spec`` (exactly what its result depends on) and
``run(spec, context) -> StageResult``. It reads ``context.inputs``, fills ``context.out`` and touches nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from mlflowkit.graphs.candidates import Candidate, Engine, Pass
    from mlflowkit.values import CheckResult, Event, Lineage, RoutingTable, RunRecord, ServiceStatus, Variant


class Progress(Protocol):
    """Takes events of a run; must not raise."""

    def __call__(self, event: Event) -> None: ...


class Tables(Protocol):
    """Reads and writes tables. Faults of files are DataErrors that name the file and the place."""

    def read_csv(self, files: Sequence[Path], *, separator: str = ",", skip: Sequence[str] = ()) -> pa.Table:
        """All rows of CSV files with the same columns, in the order given, without the columns in ``skip``."""

    def read_parquet(self, files: Sequence[Path], *, skip: Sequence[str] = ()) -> pa.Table:
        """All rows of Parquet files with the same columns, in the order given, without the columns in ``skip``."""

    def from_pandas(self, holder: list[pd.DataFrame], source: str, *, skip: Sequence[str] = ()) -> pa.Table:
        """The only frame in ``holder``, which is emptied, so that its columns are not held twice."""

    def write_parquet(self, table: pa.Table, rows: np.ndarray, path: Path) -> None:
        """Write the rows where the boolean mask is true; equal input gives equal bytes."""


class Checker(Protocol):
    """Holds a table against checks."""

    def check(
        self, table: pd.DataFrame, checks: Sequence[Any], schema: Mapping[str, Mapping[str, Any]]
    ) -> Sequence[CheckResult]:
        """Results of checks (stages.base.Check) in their order; ``schema`` is what a schema check holds the table to.

        Rows in failures are labels of the table's index, which must be whole numbers, each once.
        """

    def infer(self, table: pd.DataFrame) -> Mapping[str, Mapping[str, Any]]:
        """The table's schema, ``{column: {dtype, nullable}}``; dtype is int, float, string, bool or datetime."""


class Profiler(Protocol):
    """Summarises a table as a mergeable profile."""

    def profile(self, table: pd.DataFrame) -> bytes:
        """A serialised profile of the table's columns."""

    def summary(self, profile: bytes) -> Mapping[str, Any]:
        """JSON: for each column its type, counts, missing, mean, standard deviation, quantiles, frequent items."""


class MergingProfiler(Profiler, Protocol):
    """A profiler of live traffic, which comes in parts."""

    def merge(self, profiles: Sequence[bytes]) -> bytes:
        """The profile of all rows that went into ``profiles``, of which there is at least one."""


class Trainer(Protocol):
    """Fits preprocessing and model on ``train``, choosing by ``validation``. See stages.train for the layout."""

    def fit(self, spec: Any, context: StageContext) -> Any:
        """Fit as ``spec`` (a stages.train.Spec) says, write ``context.out``, return the fields of a FitResult."""


class Exporter(Protocol):
    """Turns what a Trainer wrote into one ONNX graph that takes raw columns."""

    def export(self, trained: Path, folder: Path, out: Path) -> None:
        """Read the train stage's folder, write ``model.onnx`` and ``signature.json`` into ``out``."""

    def predict(self, trained: Path, folder: Path, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Answers of the Python model (not the graph) for the same inputs: what parity is measured against."""


class Session(Protocol):
    """A loaded graph. Thread-safe."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Answers by output name. Raises EngineError."""


class Runtime(Protocol):
    """Loads graphs. Raises EngineError when the provider asked for cannot be had (never a silent fallback)."""

    def load(self, model: Path, *, threads: int = 1, engine: Engine | None = None) -> Session:
        """A session over a graph. ``engine`` is what its bundle asks for; the larger number of threads counts."""


class Passes(Protocol):
    """Rewrites graphs (see `candidates.Pass`)."""

    def apply(self, passes: Sequence[Pass], model: Path, out: Path, calibration: Mapping[str, np.ndarray]) -> str:
        """Write ``model`` after all passes to ``out``; returns "" or the reason why this graph cannot be had so.

        ``calibration`` has training rows by input name. The same passes over the same graph and rows give the same
        bytes. Raises DataError for calibration rows that are not the graph's inputs, EngineError when a tool fails.
        """


class Engines(Protocol):
    """Loads graphs the way a candidate says."""

    def missing(self, engine: Engine) -> str:
        """Why this machine cannot run an engine (a library, a provider, a GPU), or "". Loads no vendor it needs not."""

    def load(self, model: Path, engine: Engine, *, store: Path | None = None) -> Session:
        """A session; never a silent fallback to another provider. Raises EngineError.

        ``store`` is a folder for built engines, keyed by everything that they depend on (see `engines`).
        """


@dataclass(frozen=True, slots=True)
class TrialJob:
    """One candidate that is to be tried.

    model      the float graph; files beside it that it reads its weights from count as part of it
    rows       arrays (see `arrays`): ``calibration/NAME`` training rows, ``inputs/NAME`` rows to answer, by input name
    batch      rows of a request
    requests   how many of the rows to answer requests are cut from
    scratch    a folder for what passes between the processes, and for the log
    scripts    where a script goes that does it again, should the candidate fail
    seconds    how long building, loading, or one answer to a question may take
    callers    how many threads ask at once while it is measured
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
class Built:
    """What building a candidate told. ``reason`` says why there is no graph, and the rest is then empty.

    digest         of everything that the candidate's answers and speed depend on
    files          the graph after all passes, and those that it reads its weights from
    size_bytes     of all of them
    build_seconds  what the passes took (of a cached graph: when it was made)
    cached         whether the graph was there: an earlier search made it, or this one for another engine
    """

    digest: str
    reason: str = ""
    files: tuple[Path, ...] = ()
    size_bytes: int | None = None
    build_seconds: float | None = None
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading a candidate told.

    memory_bytes   peak resident memory of the process beyond what it had with the runtime imported and nothing loaded,
                   after the first answers; None where the system does not tell it
    cold_start_ms  from the beginning of loading to the first answer
    """

    memory_bytes: int | None
    cold_start_ms: float


class Trial(Protocol):
    """One candidate in a process of its own. All but `close` raise TrialError once that process has failed."""

    def build(self) -> Built:
        """Wait until its graph is made, or is known to be impossible."""

    def load(self) -> Loaded:
        """Load the graph and answer once."""

    def answers(self) -> Mapping[str, np.ndarray]:
        """Its answers to all rows, by output name."""

    def block(self, start: int, count: int) -> Sequence[int]:
        """Nanoseconds of requests ``start`` to ``start + count - 1``, timed where they are asked."""

    def offered(self, rate: float, count: int, seed: int) -> np.ndarray:
        """Ask ``count`` requests that arrive at ``rate`` a second and wait for nobody; ``seed`` draws the moments.

        Returns int64 [4, count], nanoseconds from the start: when each was due, a caller was free, asked, was answered.
        """

    def close(self) -> None:
        """End the process and all that it started. Never raises; may be called again."""


class Trials(Protocol):
    """Tries candidates, each where a crash costs nobody else."""

    def folder(self, job: TrialJob) -> Path:
        """Where what is found out about a candidate is kept: by the digest of all that its graph, its answers and its
        speed depend on. It need not exist."""

    def start(self, job: TrialJob) -> Trial:
        """Begin to build a candidate; returns at once. The trial ends with this process, however that ends."""


class Search(Protocol):
    """What to try next. Told everything that it suggested; decides by nothing else."""

    def suggest(self, count: int) -> Sequence[Candidate]:
        """Up to ``count`` candidates that were not suggested before; none when the search is over."""

    def told(self, results: Sequence[TrialResult]) -> None:
        """Take up what became of candidates that were suggested."""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What became of a candidate, for a search.

    ``ratio`` is the objective relative to the float graph's, smaller is better; None when it could not be measured.
    """

    candidate: Candidate
    ratio: float | None
    feasible: bool


class EngineBuilder(Protocol):
    """Builds engines ahead of time, for a store that `Engines.load` takes them from."""

    def build(self, model: Path, runtime: str, target: str, store: Path) -> tuple[Path, bool]:
        """The file of the engine for compute capability ``target``, and whether it was built now or was there.

        Raises EngineError: no library, a target that it does not know, operators that it lacks (named, with their
        nodes), a dynamic dimension with no range. Raises StoreError when the disk refuses the engine.
        """


class RemoteSession(Protocol):
    """A model that runs in a process of its own. Lives on one event loop."""

    async def run(self, inputs: Mapping[str, np.ndarray], rows: int) -> Mapping[str, np.ndarray]:
        """Answers by output name. Raises EngineError, also when the process died under the call."""


class RemoteModels(Protocol):
    """Reaches models that run in processes of their own."""

    def connect(self, service: str, variant: Variant, seconds: float = 0.0) -> RemoteSession:
        """A session with an isolated variant. Raises ServiceError when it is not up within ``seconds``.

        With 0 seconds nothing is waited for: calls fail until a process is there.
        """


class Tracker(Protocol):
    """Mirrors runs and blessed bundles into a tracking server and model registry. The journal is the truth."""

    def prewarm(self) -> None:
        """Begin starting what `record` will need, in the background; returns at once. Needless, and cheap."""

    def record(self, run: RunRecord) -> None:
        """Parameters, metrics, tags (``git_commit``, ``git_dirty``, ``data_version``) of a finished run."""

    def register(self, name: str, bundle: Path, run: RunRecord, alias: str) -> str:
        """Register a blessed bundle under ``name`` and point ``alias`` at it; returns the registry's version.

        Idempotent: the same identity digest is registered once.
        """


class Platform(Protocol):
    """Keeps gateways running."""

    def prewarm(self, service: Any = None) -> None:
        """Begin starting what `ensure` will need, in the background; returns at once.

        Raises ServiceError when ``service`` (a stages.deploy.ServeSection) could not listen where it should.
        """

    def ensure(self, service: Any) -> str:
        """Start the gateway of a stages.deploy.ServeSection if it is not up; returns its endpoint URL."""

    def publish(self, table: RoutingTable) -> None:
        """Hand a table to every replica; returns once all have loaded, verified, warmed and swapped to it."""

    def status(self) -> Sequence[ServiceStatus]: ...

    def folder(self, service: str) -> Path:
        """Where the files of a service are (see service_state.records)."""

    def down(self, service: str | None = None) -> Sequence[str]:
        """Stop one service, or all and the local Ray that was started for them; returns the names stopped."""


class Ports(Protocol):
    """What wiring hands to stages. Each is made on first use, so that nothing is imported before it is needed."""

    @property
    def tables(self) -> Tables: ...
    @property
    def checker(self) -> Checker: ...
    @property
    def profiler(self) -> Profiler: ...
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
        """The trainer for a model kind ("torch" or "sklearn")."""

    def search(self, candidates: Sequence[Candidate], trials: int, seed: int) -> Search:
        """A search by model among more candidates than are to be tried. Raises UsageError where Optuna is missing."""


@dataclass(frozen=True, slots=True)
class StageContext:
    """Where a stage reads and writes.

    inputs     published folder of each stage in values.STAGE_INPUTS, read-only
    out        an empty folder to fill; published when run() returns
    scratch    a folder of this fingerprint that survives a kill: checkpoints go here
    folder     the recipe's folder: relative paths and python references start here
    champion   folder of the bundle that serves now, or None
    previous   published folder of this stage in the last run of this recipe, or None (frozen schemas)
    """

    inputs: Mapping[str, Path]
    out: Path
    scratch: Path
    folder: Path
    seed: int
    lineage: Lineage
    run: str
    ports: Ports
    progress: Progress
    champion: Path | None = None
    previous: Path | None = None
