"""The rollout controller of a state folder: ``python -m mlflowkit.processes.controller_main STATE``, in the foreground.

It is supervised beside the services (see adapters.ray_serve), and may be run by hand: a second one waits until the
first is gone. It also serves the admin page. It ends on SIGTERM, and when its state folder is removed.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlflowkit.system.files import use_private_umask
from mlflowkit.system.logs import configure_logging
from mlflowkit.values import Variant

if TYPE_CHECKING:
    from mlflowkit.monitoring.export.export_loop import ExportLoop
    from mlflowkit.service_state.controller_lease import ControllerLease
    from mlflowkit.service_state.records import ServiceFiles
    from mlflowkit.wiring import Wiring

_log = logging.getLogger("mlflowkit.rollout")


def main(arguments: list[str]) -> int:
    """Control the rollouts of a state folder until SIGTERM or SIGINT; returns the exit code."""
    use_private_umask()
    configure_logging()
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m mlflowkit.processes.controller_main STATE\n")
        return 2
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    state = Path(arguments[0]).expanduser().resolve()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    control(state, stop)
    return 0


def control(state: Path, stop: threading.Event) -> None:
    """Control the rollouts of ``state`` and serve its admin page until ``stop`` is set."""
    from mlflowkit.pipeline.requirements import is_tracked
    from mlflowkit.pipeline.storage.running_runs import describe_running_run
    from mlflowkit.report.rollout.rollout_page import admin_listener
    from mlflowkit.rollout.controller import ControllerDeps, RolloutController
    from mlflowkit.wiring import Wiring

    wiring = Wiring(state)

    def promoted(service: str, champion: Variant, origin: Mapping[str, str]) -> None:
        """Move the registry aliases of the recipe that the champion came from; a bundle without a recipe has none."""
        if not origin.get("name"):
            _log.info("%s: version %s has no recipe, so no alias to move", service, champion.version)
            return
        from mlflowkit.pipeline.promotion import promote

        try:
            promote(wiring, wiring.tracker, origin["name"], champion.digest)
        finally:
            wiring.tracker.close()  # it holds 230 MB, and the next promotion may be weeks away

    def rejected(service: str, version: Variant, origin: Mapping[str, str]) -> None:
        """Take the challenger's alias from a version that was rolled back."""
        if origin.get("name") and is_tracked():
            from mlflowkit.pipeline.promotion import reject

            reject(wiring.tracker, origin["name"], version.digest)

    watchers = {"monitor": partial(_monitor, lambda name: describe_running_run(wiring, name))}
    deps = ControllerDeps(wiring.platform, promoted, rejected, watchers=watchers)
    with admin_listener(state), _export_loop(state, wiring):
        RolloutController(state, deps).run(stop)


def _monitor(
    runs: Callable[[str], str],
    files: ServiceFiles,
    lease: ControllerLease,
    ending: threading.Event,
    lost: threading.Event,
) -> None:
    """Monitor a service for as long as this process controls it; ``runs`` tells the runs of a recipe under way."""
    from mlflowkit.monitoring.monitor_loop import MonitorDeps, MonitorLoop, pane_reader, performance_look, retrain_hook

    deps = MonitorDeps(pane_reader, performance_look, partial(retrain_hook, runs))
    MonitorLoop(files, lease, deps).run(ending, lost)


def _export_loop(state: Path, wiring: Wiring) -> ExportLoop:
    """The loop that sends what monitors see to other systems, while this process controls ``state``."""
    from mlflowkit.monitoring.export.alertmanager import AlertmanagerExporter
    from mlflowkit.monitoring.export.evidently_report import EvidentlyExporter
    from mlflowkit.monitoring.export.export_loop import ExportLoop
    from mlflowkit.monitoring.export.whylabs_upload import WhylabsExporter
    from mlflowkit.service_state.controller_lease import read_holder

    def leads() -> bool:
        holder = read_holder(state)
        return holder is not None and holder.pid == os.getpid() and holder.node == socket.gethostname()

    exporters = (
        AlertmanagerExporter(),
        WhylabsExporter(wiring.profile_uploads, lambda: wiring.live_profiler),  # it imports pandas
        EvidentlyExporter(wiring.sample_reports),
    )
    return ExportLoop(state, exporters, leads=leads)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
