"""What runs in a trial's process: build, load, answer, and time requests. Every vendor is imported here, none above.

The graph is made in a fork of its own, so that what the passes leave in memory is not counted as the candidate's, and
so that the runtime is imported meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from mlflowkit.bench.timings import DeviceClock, Marking, Timings, apart
from mlflowkit.errors import MlkitError, TrialError
from mlflowkit.graphs.candidates import Candidate, FixedRows
from mlflowkit.system import arrays
from mlflowkit.system.digests import digest_file
from mlflowkit.system.files import replace_file

if TYPE_CHECKING:
    import numpy as np

    from mlflowkit.bench.measure import BlockSource, Request
    from mlflowkit.ports import Engines, Passes, Session

Reach = Callable[[str, str], None]
"""Passes a point where a test may make the process die: its name and the candidate's."""

CHUNK = 4096
"""Rows asked at a time."""
BUILT, MODEL, ANSWERS = "built.json", "model.onnx", "answers.npz"
"""What a folder of `Trials` keeps of a candidate; built.json is written last."""


class Child:
    """One candidate, in this process."""

    def __init__(
        self, plan: Mapping[str, Any], passes: Callable[[], Passes], engines: Engines, reach: Reach,
        clock: Callable[[], DeviceClock[Any]],
    ) -> None:  # fmt: skip
        """``clock`` makes that of the device, for sessions that run on one."""
        self.candidate = Candidate.model_validate(plan["candidate"])
        self.kept, self._made = Path(plan["kept"]), Path(plan["made"])
        self._plan = plan
        self._passes, self._engines = passes, engines
        self._reach, self._clock = reach, clock
        self._model: Path | None = None
        self._session: Session | None = None
        self._request: Request | None = None
        self._times: BlockSource | None = None

    def build(self) -> dict[str, Any]:
        """Make the graph; the fields of ports.Built but for its digest."""
        self._reach("trial.building", self.candidate.name)
        # The one runtime that every machine has is imported while the passes run, not before.
        late = self.candidate.engine.runtime == "ort-cpu"
        missing = "" if late else self._engines.missing(self.candidate.engine)
        made = {"reason": missing} if missing else self._make()
        if not made["reason"] and late:
            made["reason"] = self._engines.missing(self.candidate.engine)
        if made["reason"]:
            return {"reason": made["reason"]}
        self._model = Path(made["files"][0])
        return made

    def answers(self) -> Path:
        """Answer all rows and write what came out; returns the file."""
        self._reach("trial.answering", self.candidate.name)
        path = self.kept / ANSWERS
        if not path.exists():
            arrays.write(path, self._answer(arrays.read(Path(self._plan["rows"]), "inputs/")))
        return path

    def block(self, start: int, count: int) -> Sequence[int]:
        """Nanoseconds of requests, one after another, or of several callers that ask at once."""
        self._reach("trial.measuring", self.candidate.name)
        if self._times is None:
            raise TrialError("was to be measured before it was built")
        return self._times(start, count)

    def offered(self, rate: float, count: int, seed: int) -> np.ndarray:
        """Moments of requests that arrive when they will; see `bench.load.open_loop.marked`."""
        from mlflowkit.bench.load.open_loop import arrivals, marked

        self._reach("trial.measuring", self.candidate.name)
        if self._request is None:
            raise TrialError("was to be measured before it was built")
        return marked([self._request] * self._plan["callers"], arrivals(rate, count, seed=seed))

    # ---------------------------------------------------------------------------------------------------- the graph

    def _make(self) -> dict[str, Any]:
        exported = Path(self._plan["model"])
        if not self.candidate.passes:
            return {"reason": "", **_files(exported), "build_seconds": 0.0}
        fixed = next((one.rows for one in self.candidate.passes if isinstance(one, FixedRows)), self._plan["batch"])
        if fixed != self._plan["batch"]:
            return {"reason": f"a graph for {fixed} rows; requests have optimize.batch {self._plan['batch']}"}
        with _alone(self._made):  # another candidate may be making the same graph, to run it on another engine
            kept = self._kept()
            if kept is not None:
                return kept | {"cached": True}
            began = time.perf_counter()
            reason = self._applied(exported)
            if reason:
                return {"reason": reason}
            told = {"reason": "", **_files(self._made / MODEL), "build_seconds": time.perf_counter() - began}
            whole = {**told, "digests": _digests(told["files"])}
            replace_file(self._made / BUILT, json.dumps(whole).encode(), durable=False)
            return told

    def _kept(self) -> dict[str, Any] | None:
        """The graph where it was made before; None when nobody got so far, or what lies there is another."""
        try:
            told: dict[str, Any] = json.loads((self._made / BUILT).read_bytes())
            now = _files(self._made / MODEL)
        except (OSError, ValueError, MlkitError):
            return None
        return told | now if told.pop("digests", None) == _digests(now["files"]) else None

    def _applied(self, exported: Path) -> str:
        """Apply the passes and keep the graph; returns why there is none, or "".

        Whatever becomes of it, nothing half made is left: on a full disk the room is wanted by others.
        """
        for left in self._made.glob("work-*"):  # of one that was killed: who holds the folder is alone in it
            shutil.rmtree(left, ignore_errors=True)
        work = self._made / f"work-{os.getpid()}"
        work.mkdir()
        try:
            told, status = self._forked(exported, work)
            if "error" not in told and not told["reason"]:
                for path in work.iterdir():
                    path.replace(self._made / path.name)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        if os.WIFSIGNALED(status):
            os.kill(os.getpid(), os.WTERMSIG(status))  # die as it died: the parent sees how
        if "error" in told:
            raise TrialError(told["error"], hint=told.get("hint", ""))
        return str(told["reason"])

    def _forked(self, exported: Path, work: Path) -> tuple[dict[str, Any], int]:
        """Apply the passes in a fork; what it told, and the status that it ended with."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            self._apply_and_exit(exported, work, writing)
        os.close(writing)
        with contextlib.suppress(Exception):  # what cannot be imported is told when the graph is loaded
            self._engines.missing(self.candidate.engine)
            arrays.read(Path(self._plan["rows"]), "inputs/")
        with os.fdopen(reading, "rb") as stream:
            said = stream.read()
        _, status = os.waitpid(pid, 0)
        try:
            told: dict[str, Any] = json.loads(said)
        except ValueError:
            told = {"error": f"the passes ended with {os.waitstatus_to_exitcode(status)}"}
        return told, status

    def _apply_and_exit(self, exported: Path, work: Path, writing: int) -> NoReturn:
        """In the fork: apply the passes, tell the result, and end without the cleaning up of the process above."""
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        try:
            self._reach("trial.passing", self.candidate.name)
            calibration = arrays.read(Path(self._plan["rows"]), "calibration/")
            reason = self._passes().apply(self.candidate.passes, exported, work / MODEL, calibration)
            told: dict[str, Any] = {"reason": reason}
        except Exception as error:  # noqa: BLE001 - told to the process above, which tells it to the parent
            told = fault_of(error)
        with os.fdopen(writing, "wb") as stream:
            stream.write(json.dumps(told).encode())
        os._exit(0)

    # --------------------------------------------------------------------------------------------------- the session

    def load(self) -> dict[str, Any]:
        """Load the graph and answer once; the fields of ports.Loaded."""
        from mlflowkit.bench.measure import requests_over

        self._reach("trial.loading", self.candidate.name)
        if self._model is None:
            raise TrialError("was to be loaded before it was built")
        rows = arrays.read(Path(self._plan["rows"]), "inputs/")
        first = {name: array[: self._plan["requests"]] for name, array in rows.items()}
        before = _resident()
        began = perf_counter_ns()
        self._session = self._engines.load(self._model, self.candidate.engine, store=self.kept.parent / "engines")
        request = requests_over(self._session.run, first, self._plan["batch"])
        request(0)
        cold = (perf_counter_ns() - began) / 1e6
        self._request, self._times = request, self._source(request)
        self._times(1, 20)
        peak = _peak()
        memory = None if before is None or peak is None else max(0, peak - before)
        return {"cold_start_ms": cold, "memory_bytes": memory}

    def _source(self, request: Request) -> BlockSource:
        """Times requests: of one caller, of several at once, or with what a device tells of its part."""
        from mlflowkit.bench.load.closed_loop import Callers
        from mlflowkit.bench.measure import timed

        callers, session = self._plan.get("callers", 1), self._session
        if callers > 1:
            return Callers.of([request] * callers)
        if isinstance(session, Marking) and session.on_device:
            return apart(request, session, self._clock())
        return timed(request)

    def _answer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers to all rows, a chunk at a time; a graph for a fixed number of rows gets the last row repeated."""
        import numpy as np

        if self._session is None:
            raise TrialError("was asked before it was built")
        rows = len(next(iter(inputs.values())))
        fixed = next((one.rows for one in self.candidate.passes if isinstance(one, FixedRows)), None)
        parts: dict[str, list[np.ndarray]] = {}
        for start in range(0, rows, fixed or CHUNK):
            taken = np.arange(start, min(rows, start + (fixed or CHUNK)))
            asked = taken if fixed is None else np.minimum(np.arange(start, start + fixed), rows - 1)
            for name, found in self._session.run({key: array[asked] for key, array in inputs.items()}).items():
                parts.setdefault(name, []).append(np.asarray(found)[: len(taken)])
        return {name: np.concatenate(found) for name, found in parts.items()}


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes; a lock ends with the process that has it, however that ends."""
    with (folder / "lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def serve(child: Child, answers: BinaryIO) -> None:
    """Build, tell how it went, then answer questions from stdin until it is closed."""
    if not _tell(answers, child.build):
        return
    for line in sys.stdin.buffer:
        _tell(answers, partial(_answer, child, json.loads(line)))


def _answer(child: Child, asked: Mapping[str, Any]) -> dict[str, Any]:
    if asked["do"] == "load":
        return child.load()
    if asked["do"] == "answers":
        return {"path": str(child.answers())}
    if asked["do"] == "offered":
        return {"ns": child.offered(asked["rate"], asked["count"], asked["seed"]).tolist()}
    times = child.block(asked["start"], asked["count"])
    parts = times.parts if isinstance(times, Timings) else {}
    return {"ns": list(times), **({"parts": {name: list(part) for name, part in parts.items()}} if parts else {})}


def once(child: Child) -> str:
    """Build, answer all rows and time a block, without anything that was kept; returns in words how it went."""
    told = child.build()
    if told["reason"]:
        return f"there is no such candidate: {told['reason']}"
    child.load()
    child.answers()
    times = sorted(child.block(0, 50))
    return f"{child.candidate.name} answers; the median request takes {times[len(times) // 2] / 1000:.1f} µs"


def _tell(answers: BinaryIO, work: Callable[[], dict[str, Any]]) -> bool:
    """Write one line: what the work returned, or the error that it raised; returns whether it went well."""
    try:
        told = work()
    except Exception as error:  # noqa: BLE001 - the parent gets every error, in words
        told = fault_of(error)
    answers.write(json.dumps(told).encode() + b"\n")
    answers.flush()
    return "error" not in told


def fault_of(error: Exception) -> dict[str, Any]:
    """An error in words, as it passes between processes."""
    if isinstance(error, MlkitError):
        return {"error": error.message, "hint": error.hint}
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return {"error": f"{type(error).__name__}: {first}"}


def _files(model: Path) -> dict[str, Any]:
    """A graph's files, itself first, and their bytes together."""
    from mlflowkit.adapters.trials import graph_files

    files = graph_files(model)
    return {"files": [str(path) for path in files], "size_bytes": sum(path.stat().st_size for path in files)}


def _digests(files: Sequence[str]) -> list[str]:
    return [digest_file(Path(path)) for path in files]


def _resident() -> int | None:
    """Resident bytes now, the record of their peak begun anew; None where /proc does not tell them."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS:")
    except OSError:
        return None


def _peak() -> int | None:
    try:
        return _status("VmHWM:")
    except OSError:
        return None


def _status(name: str) -> int | None:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)
