"""Records finished runs in the tracker: ``python -m mlflowkit.processes.tracker_main STATE``.

A run starts it at its end. It ends when every run is recorded or one cannot be; the next run then says why, and starts
another.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlflowkit.system.files import use_private_umask
from mlflowkit.system.logs import configure_logging


def main(arguments: list[str]) -> int:
    """Record the runs of a state folder; returns the exit code."""
    use_private_umask()
    configure_logging()
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m mlflowkit.processes.tracker_main STATE\n")
        return 2
    from mlflowkit.pipeline.outbox.run_deliveries import deliver_deferred
    from mlflowkit.wiring import Wiring

    wiring = Wiring(Path(arguments[0]))
    return 1 if deliver_deferred(wiring, [wiring.tracker_target]) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
