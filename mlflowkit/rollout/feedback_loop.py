"""Keeps a service's feedback joined with what was answered, while this process controls its rollouts."""

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


def follow(files: ServiceFiles, ending: threading.Event, lost: threading.Event) -> None:
    """Join until either event is set. What the disk refuses is logged and tried again.

    A service that nobody gave feedback costs a look at its folder: only then is anything indexed, or Arrow imported.
    """
    join: FeedbackJoin | None = None
    complaint = ""
    try:
        while not ending.is_set() and not lost.is_set():
            wait = JOIN_SECONDS
            try:
                if join is None and any((files.folder / "feedback").glob("*.jsonl")):
                    from mlflowkit.serving.feedback.join import FeedbackJoin

                    join = FeedbackJoin(files.folder)
                if join is not None:
                    join.step()
                complaint = ""
            except MlkitError as error:
                if error.message != complaint:
                    _log.error("%s: feedback is not joined: %s (%s)", files.service, error.message, error.hint)
                complaint, wait = error.message, RETRY_SECONDS
            except Exception:  # noqa: BLE001 - a fault of ours here must not end the thread; told with its traceback
                _log.exception("%s: feedback is not joined", files.service)
                wait = RETRY_SECONDS
            ending.wait(wait)
    finally:
        if join is not None:
            join.close()
