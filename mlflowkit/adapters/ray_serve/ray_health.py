"""Whether the Ray that this process started still works: its processes by their ids, its controller by an answer."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from mlflowkit.system.machine import is_stopped

RAY_ENDED = 76
"""Exit code of a reconciler whose Ray has ended or hangs: the supervisor starts both again."""
POLL_SECONDS = 0.25
STOPPED_SECONDS = 10.0
"""How long one of Ray's processes may be stopped (SIGSTOP)."""
PING_SECONDS = 5.0
HUNG_SECONDS = 60.0
"""How long Serve's controller may give no answer; Ray itself starts a controller that died again, within seconds."""
PROCESSES = ("gcs_server", "raylet")
_log = logging.getLogger("mlflowkit.reconciler")


class RayWatch:
    """Judges what is seen of Ray: a reason to start it again, or "".

    >>> watch = RayWatch(now=0.0)
    >>> watch.judge(dead=[], stopped=["raylet"], now=5.0), watch.judge(dead=[], stopped=[], now=6.0)
    ('', '')
    >>> watch.judge(dead=["gcs_server"], stopped=[], now=7.0)
    'gcs_server has ended'
    """

    def __init__(self, now: float) -> None:
        self._answered = now
        self._stopped_since: dict[str, float] = {}

    def answer(self, now: float) -> None:
        """Note that the controller answered."""
        self._answered = now

    def judge(self, dead: Iterable[str], stopped: Iterable[str], now: float) -> str:
        """Why Ray has to be started again; "" while it need not."""
        if ended := ", ".join(dead):
            return f"{ended} has ended"
        self._stopped_since = {name: self._stopped_since.get(name, now) for name in stopped}
        for name, since in self._stopped_since.items():
            if now - since > STOPPED_SECONDS:
                return f"{name} has been stopped for {now - since:.0f} s"
        if now - self._answered > HUNG_SECONDS:
            return f"Serve's controller has not answered for {now - self._answered:.0f} s"
        return ""


def watch_ray(end: Callable[[int], Any] = os._exit) -> None:
    """Watch the Ray of this process from background threads, and ``end`` the process when it no longer works.

    The main thread may wait for a Ray that is gone; the kernel ends what is left of it with this process.
    """
    from ray._private import worker

    node, watch = worker._global_node, RayWatch(time.monotonic())
    if node is None:
        return

    def poll() -> None:
        while True:
            time.sleep(POLL_SECONDS)
            dead = [str(name) for name, _ in node.dead_processes() if name in PROCESSES]
            alive = [(str(name), process.pid) for name, process in node.live_processes() if name in PROCESSES]
            reason = watch.judge(dead, [name for name, pid in alive if is_stopped(pid)], time.monotonic())
            if reason:
                _log.error("%s: Ray is started again", reason)
                end(RAY_ENDED)
                return

    threading.Thread(target=poll, name="mlkit-ray-watch", daemon=True).start()
    threading.Thread(target=_ping, args=(watch,), name="mlkit-ray-ping", daemon=True).start()


def _ping(watch: RayWatch) -> None:
    from ray import serve

    while True:
        try:
            serve.status()
        except Exception as error:  # noqa: BLE001 - Ray may raise anything; no answer is what counts
            _log.warning("Serve's controller does not answer: %s", error)
        else:
            watch.answer(time.monotonic())
        time.sleep(PING_SECONDS)
