"""One attempt of a retraining: ``python -m mlflowkit.processes.retrain_main STATE SERVICE EPISODE ATTEMPT``.

It is started by the monitor of a service. Of several processes for one attempt the first does the work.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlflowkit.system.files import use_private_umask
from mlflowkit.system.logs import configure_logging


def main(arguments: list[str]) -> int:
    """Make the attempt; returns the exit code: 0, also where another process makes it."""
    use_private_umask()
    configure_logging()
    if len(arguments) != 4:
        sys.stderr.write("usage: python -m mlflowkit.processes.retrain_main STATE SERVICE EPISODE ATTEMPT\n")
        return 2
    from mlflowkit.monitoring.retrain.attempt_work import make_attempt
    from mlflowkit.service_state.records import ServiceFiles

    state, service, episode, attempt = arguments
    make_attempt(ServiceFiles(Path(state) / "services" / service), episode, attempt)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
