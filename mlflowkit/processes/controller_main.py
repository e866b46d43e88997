"""The rollout controller of a state folder: ``python -m mlflowkit.processes.controller_main STATE``, in the foreground.

It is kept running beside the services (see adapters.ray_serve), and may be run by hand: the second one waits until the
first is gone. It serves the admin page as well. It ends on SIGTERM, and when its state folder is removed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from mlflowkit.values import Variant

_log = logging.getLogger("mlflowkit.rollout")


def main(arguments: list[str]) -> int:
    """Control the rollouts of a state folder until told to stop; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m mlflowkit.processes.controller_main STATE\n")
        return 2
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    state = Path(arguments[0]).expanduser().resolve()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    follow(state, stop)
    return 0


def follow(state: Path, stop: threading.Event) -> None:
    """Control the rollouts of ``state`` and serve its admin page until ``stop`` is set."""
    from mlflowkit.report.rollout.rollout_page import listener
    from mlflowkit.rollout.controller import Controller, World
    from mlflowkit.system import failpoint
    from mlflowkit.wiring import Wiring

    wiring = Wiring(state)

    def promoted(service: str, champion: Variant, origin: Mapping[str, str]) -> None:
        """Move the aliases of the recipe that the champion came from; a bundle of no recipe has none."""
        if not origin.get("name"):
            _log.info("%s: version %s came from no recipe: there is no alias to move", service, champion.version)
            return
        from mlflowkit.pipeline.promotion import promote

        promote(state, wiring.tracker, origin["name"], champion.digest)

    with listener(state):
        Controller(state, World(wiring.platform, promoted, reach=failpoint.reach)).follow(stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
