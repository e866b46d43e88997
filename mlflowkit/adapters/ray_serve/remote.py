"""How a gateway asks isolated variants: connections of its own to their processes, with adaptive batching.

A session never waits for a process that is not there: what is asked meanwhile fails at once, and goes to the champion.
A process that does not answer in time loses its connection and is tried again later and later.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.adapters.ray_serve import wire
from mlflowkit.adapters.ray_serve.isolated import Report, listening, read_reports
from mlflowkit.errors import EngineError, ServiceError
from mlflowkit.service_state.records import ServiceFiles, Settings
from mlflowkit.serving.inference.batching import Batcher, LostError
from mlflowkit.values import Variant

if TYPE_CHECKING:
    import numpy as np

LOOK_SECONDS = 1.0
"""How often a session looks for new processes; sooner when it has none."""
HASTY_SECONDS = 0.2
CONNECT_SECONDS = 2.0
MAX_BACKOFF = 30.0
CALL_SHARE = 0.5
"""Share of a request's time that one call may take: as much as a challenger has before the champion is asked."""


class RayRemoteModels:
    """ports.RemoteModels over the reports in a service's folder."""

    def __init__(self, folder: Path) -> None:
        self._files = ServiceFiles(folder)

    def connect(self, service: str, variant: Variant, seconds: float = 0.0) -> IsolatedSession:
        """A session with an isolated variant. Raises ServiceError when no process answers within ``seconds``.

        With 0 seconds nothing is waited for: what is asked before a process is there fails.
        """
        desired = self._files.desired()
        settings = Settings(service) if desired is None else desired.settings
        deadline = time.monotonic() + seconds
        why = "no process has started"
        while seconds:
            for report in read_reports(self._files.folder, variant.digest).values():
                why = listening(report, variant.digest)
                if not why:
                    return IsolatedSession(self._files.folder, variant, settings)
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{variant.name} {variant.version} of {service} is not up in its own process: {why}",
                    hint="mlkit status; serve.isolated.cpus may be more than this machine has left",
                )
            time.sleep(0.1)
        return IsolatedSession(self._files.folder, variant, settings)


class IsolatedSession:
    """ports.RemoteSession with one isolated variant. Its connections close when nothing refers to it any more."""

    def __init__(self, folder: Path, variant: Variant, settings: Settings) -> None:
        seconds = settings.timeout_seconds * CALL_SHARE
        self._lines = _Lines(folder, variant, settings.isolated_max_batch, seconds)

    async def run(self, inputs: Mapping[str, np.ndarray], rows: int) -> Mapping[str, np.ndarray]:
        """Answers by output name. Raises EngineError (LostError when there is no process that answers in time)."""
        lines = self._lines
        if lines.keeper is None:
            lines.keeper = asyncio.get_running_loop().create_task(_keep(weakref.ref(self), lines))
        if not lines.looked.is_set():
            await lines.looked.wait()
        if not lines.open:
            raise lines.none()
        return await lines.batcher.run(inputs, rows)


async def _keep(session: weakref.ref[IsolatedSession], lines: _Lines) -> None:
    """Look after the connections for as long as someone has the session."""
    try:
        while session() is not None:
            await lines.look()
            lines.looked.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(lines.lost.wait(), LOOK_SECONDS if lines.open else HASTY_SECONDS)
            lines.lost.clear()
    finally:
        lines.close()


class _Lines:
    """Connections to a variant's processes; each has one call in flight at most."""

    def __init__(self, folder: Path, variant: Variant, max_batch: int, call_seconds: float) -> None:
        self.open: dict[str, _Line] = {}
        self.looked = asyncio.Event()
        self.lost = asyncio.Event()
        self.keeper: asyncio.Task[None] | None = None
        self.batcher = Batcher(self._ask, max_rows=max_batch, lanes=0)
        self._folder = folder
        self._variant = variant
        self._seconds = call_seconds
        self._idle: list[_Line] = []
        self._trouble: dict[str, tuple[int, float]] = {}
        """By process: calls or connections in a row that failed, and when it may be tried again."""
        self._why = "no process has started"

    def none(self) -> LostError:
        """What is said while there is no connection."""
        return LostError(f"{self._variant.name} {self._variant.version} has no process that answers: {self._why}")

    async def look(self) -> None:
        """Connect to processes that are new, or due to be tried again."""
        try:
            reports = await asyncio.to_thread(read_reports, self._folder, self._variant.digest)
        except ServiceError as error:
            self._why = error.message
            return
        for line in [line for line in self._idle if line.ended]:
            self._idle.remove(line)
            self._drop(line, "it died")
        now = time.monotonic()
        self._trouble = {name: trouble for name, trouble in self._trouble.items() if name in reports}
        for name, report in reports.items():
            if name not in self.open and self._trouble.get(name, (0, 0.0))[1] <= now:
                await self._connect(name, report)

    async def _connect(self, name: str, report: Report) -> None:
        line = _Line(name)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await line.connect(report, self._variant.digest)
        except (OSError, EngineError, TimeoutError, asyncio.IncompleteReadError) as error:
            line.close()
            self._fault(name, str(error) or "it does not accept connections")
            return
        self.open[name] = line
        self._idle.append(line)
        self.batcher.lanes = len(self.open)
        self.batcher.pump()

    async def _ask(self, inputs: Mapping[str, np.ndarray], rows: int) -> Mapping[str, np.ndarray]:
        if not self._idle:
            raise self.none()
        line = self._idle.pop()
        try:
            async with asyncio.timeout(self._seconds):
                head, answers = await line.ask(inputs, rows)
        except BaseException as error:
            self._drop(line, f"no answer within {self._seconds:g} s" if isinstance(error, TimeoutError) else "it died")
            if isinstance(error, OSError | TimeoutError | asyncio.IncompleteReadError):
                raise self.none() from error
            raise
        self._idle.append(line)
        self._trouble.pop(line.name, None)
        if "error" in head:
            raise EngineError(str(head["error"]))
        return answers

    def _drop(self, line: _Line, why: str) -> None:
        """Close a connection in an unknown state; without any left, what waits has nothing to wait for."""
        line.close()
        self.open.pop(line.name, None)
        self._fault(line.name, why)
        self.batcher.lanes = len(self.open)
        if not self.open:
            self.batcher.fail(self.none())
        self.lost.set()

    def _fault(self, name: str, why: str) -> None:
        self._why = why
        count = self._trouble.get(name, (0, 0.0))[0] + 1
        self._trouble[name] = count, time.monotonic() + min(MAX_BACKOFF, 0.5 * 2**count)

    def close(self) -> None:
        for line in self.open.values():
            line.close()
        self.open.clear()
        self.batcher.lanes = 0
        self.batcher.fail(self.none())


class _Line:
    """One connection to one process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def ended(self) -> bool:
        """Whether the other side has closed it."""
        return self._reader is not None and self._reader.at_eof()

    async def connect(self, report: Report, digest: str) -> None:
        """Open the connection. Raises OSError, IncompleteReadError or EngineError."""
        self._reader, self._writer = await asyncio.open_connection(report.host, report.port, limit=1 << 20)
        self._writer.write(wire.pack({"token": report.token}))
        head, _ = await self._frame()
        if head.get("digest") != digest:
            raise EngineError("another version answers there")

    async def ask(self, inputs: Mapping[str, np.ndarray], rows: int) -> tuple[dict[str, object], dict[str, np.ndarray]]:
        """Head and tensors of the answer. Raises OSError, IncompleteReadError or EngineError."""
        if self._writer is None:
            raise ConnectionError("the connection is closed")
        self._writer.write(wire.pack({"rows": rows}, inputs))
        await self._writer.drain()
        return await self._frame()

    async def _frame(self) -> tuple[dict[str, object], dict[str, np.ndarray]]:
        if self._reader is None:
            raise ConnectionError("the connection is closed")
        head, body = wire.sizes(await self._reader.readexactly(wire.PREFIX.size))
        first = await self._reader.readexactly(head)
        return wire.unpack(first, await self._reader.readexactly(body) if body else b"")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
