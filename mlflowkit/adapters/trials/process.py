"""The parent's end of a trial: a process that is asked by lines of JSON, with a deadline for every answer."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflowkit.bench.timings import Timings
from mlflowkit.errors import TrialError
from mlflowkit.ports import Built, Loaded, TrialJob
from mlflowkit.system import arrays
from mlflowkit.system.files import disk_error

if TYPE_CHECKING:
    import numpy as np

ENTRY = "mlflowkit.processes.trial_main"
STOP_SECONDS = 2.0
"""How long a process may take to end by itself when it is told to."""
TAIL_BYTES = 4000
"""Of what a process wrote to stderr, the end that is looked at for a reason."""
LARGE_BYTES = 1 << 20
"""What is as large goes back to the system when it is freed. Left to itself, glibc learns to keep it, and a peak of
memory tells what was freed before: 29, 33 or 45 MB for one graph, which takes 18 (within 2 %) like this."""
DIE_WITH_PARENT = """\
import ctypes, os, runpy, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(0)
module = sys.argv[2]
sys.argv = sys.argv[2:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""Asks for SIGKILL at the parent's death (PR_SET_PDEATHSIG), then becomes the module. The kernel means the thread that
started the process: a trial is started by a thread that outlives it."""

WriteScript = Callable[[TrialJob, Mapping[str, Any], str], Path | None]


class ProcessTrial:
    """One candidate's process. It begins to build when it is made; all verbs but `close` raise TrialError.

    Once it has failed, every verb raises the same error again.
    """

    def __init__(self, job: TrialJob, plan: Mapping[str, Any], write_script: WriteScript) -> None:
        self._job, self._plan, self._write_script = job, plan, write_script
        self._fault: TrialError | None = None
        self._received = b""
        self._kept = Path(plan["kept"])
        self._log = job.scratch / f"{plan['digest'][:16]}.log"
        self._process = self._spawn()
        self._deadline = time.monotonic() + job.seconds

    def build(self) -> Built:
        """Wait until the candidate's graph is made, or is known to be impossible. Raises TrialError."""
        told = self._answer("building", self._deadline)
        files = tuple(Path(path) for path in told.pop("files", ()))
        return Built(digest=self._plan["digest"], files=files, **told)

    def load(self) -> Loaded:
        """Load the graph and answer once. Raises TrialError."""
        return Loaded(**self._ask("loading", {"do": "load"}))

    def answers(self) -> dict[str, np.ndarray]:
        """Answers to all rows, by output name. Raises TrialError."""
        told = self._ask("answering", {"do": "answers"})
        return arrays.read(Path(told["path"]))

    def block(self, start: int, count: int) -> Sequence[int]:
        """Nanoseconds of requests, timed in the process, with what a device told of them. Raises TrialError."""
        told = self._ask("measured", {"do": "block", "start": start, "count": count})
        return Timings(told["ns"], told["parts"]) if told.get("parts") else list(told["ns"])

    def offered(self, rate: float, count: int, seed: int) -> np.ndarray:
        """Requests that wait for nobody, as `ports.Trial` has them. Raises TrialError."""
        import numpy as np

        question = {"do": "offered", "rate": rate, "count": count, "seed": seed}
        return np.array(self._ask("measured", question, more=count / rate)["ns"], dtype=np.int64)

    def close(self) -> None:
        """End the process and all that it started."""
        process = self._process
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._fault is None:
                process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    # ------------------------------------------------------------------------------------------------- the process

    def _spawn(self) -> subprocess.Popen[bytes]:
        threads = str(self._job.candidate.engine.threads)
        environment = {
            **os.environ,
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads),
            "PYDANTIC_DISABLE_PLUGINS": "__all__",
            "PYTHONUNBUFFERED": "1",
            "MALLOC_MMAP_THRESHOLD_": str(LARGE_BYTES),
        }
        command = [sys.executable, "-c", DIE_WITH_PARENT, str(os.getpid()), ENTRY, json.dumps(self._plan)]
        try:
            with self._log.open("wb") as log:
                return subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment,
                    process_group=0,
                )  # fmt: skip
        except OSError as error:
            raise disk_error(error, self._log) from error

    def _ask(self, doing: str, question: Mapping[str, Any], *, more: float = 0.0) -> dict[str, Any]:
        """The answer to a question, which may take ``more`` seconds than others."""
        if self._fault is not None:
            raise self._fault
        stdin = self._process.stdin
        if stdin is None:
            raise self._failed("its process is closed")
        with contextlib.suppress(BrokenPipeError):  # it has ended: what follows says how
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
        return self._answer(doing, time.monotonic() + self._job.seconds + more)

    def _answer(self, doing: str, deadline: float) -> dict[str, Any]:
        if self._fault is not None:
            raise self._fault
        line = self._line(doing, deadline)
        try:
            told: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise self._failed(f"its process wrote something else than an answer while {doing}") from error
        if "error" in told:
            raise self._failed(told["error"], told.get("hint", ""))
        return told

    def _line(self, doing: str, deadline: float) -> bytes:
        stdout = self._process.stdout
        if stdout is None:
            raise self._failed("its process is closed")
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stdout], [], [], left)[0]:
                raise self._failed(f"gave no answer within {self._job.seconds:g} s while {_phrase(doing)}")
            part = os.read(stdout.fileno(), 1 << 16)
            if not part:
                raise self._failed(self._end(doing))
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _end(self, doing: str) -> str:
        """How the process ended, in words."""
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
            more = ", as when memory runs out" if name == "SIGKILL" else ""
            return f"ended by {name} while {_phrase(doing)}{more}"
        said = self._said()
        return f"its process ended with {code} while {_phrase(doing)}{': ' + said if said else ''}"

    def _said(self) -> str:
        """The last line of what the process wrote to stderr."""
        try:
            lines = self._log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]

    def _failed(self, reason: str, hint: str = "") -> TrialError:
        """Note the failure, end what is left of the process, and leave the script."""
        if self._fault is None:
            self._fault = TrialError(reason, hint=hint)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._fault.script = self._write_script(self._job, self._plan, reason)
        return self._fault


def _phrase(doing: str) -> str:
    """
    >>> _phrase("measured"), _phrase("building")
    ('being measured', 'building')
    """
    return f"being {doing}" if doing == "measured" else doing
