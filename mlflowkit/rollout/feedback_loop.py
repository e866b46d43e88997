"""Join a service's feedback with its answers while this process controls its rollouts."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from mlflowkit.errors import MlkitError
from mlflowkit.service_state.records import ServiceFiles

if TYPE_CHECKING:
    from mlflowkit.serving.feedback.join import FeedbackJoin

JOIN_SECONDS = 0.5
RETRY_SECONDS = 5.0
_log = logging.getLogger("mlflowkit.rollout")


def run(files: ServiceFiles, ending: threading.Event, lost: threading.Event) -> None:
    """Join until either event is set; errors are logged and retried.

    Without feedback this only lists a folder: the index is opened, and Arrow imported, with the first feedback. Where
    the recipe judges realised performance it is opened at once: labels may come after the log was swept.
    """
    join: FeedbackJoin | None = None
    last_error = ""
    try:
        while not ending.is_set() and not lost.is_set():
            wait = JOIN_SECONDS
            try:
                if join is None and (any((files.folder / "feedback").glob("*.jsonl")) or _expects_labels(files)):
                    from mlflowkit.serving.feedback.join import FeedbackJoin

                    join = FeedbackJoin(files.folder)
                if join is not None:
                    join.step()
                last_error = ""
            except MlkitError as error:
                if error.message != last_error:
                    _log.error("%s: feedback is not joined: %s (%s)", files.service, error.message, error.hint)
                last_error, wait = error.message, RETRY_SECONDS
            except Exception:  # noqa: BLE001 - a bug here must not end the thread
                _log.exception("%s: feedback is not joined", files.service)
                wait = RETRY_SECONDS
            ending.wait(wait)
    finally:
        if join is not None:
            join.close()


def _expects_labels(files: ServiceFiles) -> bool:
    """Whether the service's monitor judges realised performance."""
    settings = files.read_json("monitor/settings.json")
    try:
        return settings is not None and settings["monitor"]["performance"]["realised"] is not None
    except (KeyError, TypeError):
        return False
