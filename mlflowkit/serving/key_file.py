"""Follows the file of API keys from a thread of its own, so that a revocation waits for nothing else.

A file that is missing rejects every key at once. A file that is damaged (an editor may be in the middle of it) keeps
the former keys for DAMAGED_SECONDS, then rejects every key, and at the start at once; either is told in ``warning``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mlflowkit.errors import ServiceError
from mlflowkit.serving.auth import Keyring, read_keys
from mlflowkit.system.files import file_stamp

POLL_SECONDS = 0.05
DAMAGED_SECONDS = 60.0
"""How long the former keys stay valid when the file cannot be read any more."""
_log = logging.getLogger("mlflowkit.serving")


class KeyFile:
    """Gives the keys of a file to ``apply``: at each `follow`, and whenever the file changes, until `stop`.

    None stands for no keys being asked for.
    """

    def __init__(self, apply: Callable[[Keyring | None], None]) -> None:
        self.warning = ""
        self._apply = apply
        self._path = ""
        self._stamp: object = None
        self._keys: Keyring | None = None
        self._damaged_at: float | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlkit-keys", daemon=True)

    def follow(self, path: str) -> None:
        """Apply the keys of a file, "" for no keys, and go on following it."""
        with self._lock:
            if path != self._path or not path:
                self._path, self._stamp, self._keys = path, None, None
            self._reload()
        if not self._thread.is_alive() and not self._stopping.is_set():
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            try:
                with self._lock:
                    self._reload()
            except Exception:  # noqa: BLE001 - a bug here must not end the thread, or no key could be revoked
                _log.exception("API keys cannot be followed")

    def _reload(self) -> None:
        if not self._path:
            self.warning, self._damaged_at = "", None
            self._apply(None)
            return
        try:
            stamp: object = (file_stamp(Path(self._path)),)
        except OSError as error:
            stamp = str(error)
        if stamp != self._stamp:
            self._stamp = stamp
            self._read(missing=stamp == (None,))
        elif self._damaged_at is not None and time.monotonic() - self._damaged_at > DAMAGED_SECONDS:
            self._damaged_at = None
            self._reject(self.warning.replace(_grace(), "every request is rejected"))

    def _read(self, *, missing: bool) -> None:
        try:
            self._keys = Keyring(read_keys(Path(self._path)))
        except ServiceError as error:
            kept = not missing and self._keys is not None and len(self._keys) > 0
            effect = _grace() if kept else "every request is rejected"
            warning = f"API keys: {error.message}; {effect}; {error.hint}"
            if not kept:
                self._damaged_at = None
                self._reject(warning)
                return
            self._damaged_at = time.monotonic() if self._damaged_at is None else self._damaged_at
            self._warn(warning)
        else:
            self.warning, self._damaged_at = "", None
            self._apply(self._keys)

    def _reject(self, warning: str) -> None:
        self._keys = Keyring(())
        self._apply(self._keys)
        self._warn(warning)

    def _warn(self, warning: str) -> None:
        self.warning = warning
        _log.error("%s", warning)


def _grace() -> str:
    return f"the previous keys stay valid for {DAMAGED_SECONDS:g} s"
