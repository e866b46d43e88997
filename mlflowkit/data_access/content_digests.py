"""The digests of what is received: SHA-256, and the one that the store tells, of large objects beside the transfer."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

COMPUTABLE = ("sha256", "md5", "sha1", "git-sha1")
"""Algorithms of digests that the content can be held against."""
LARGE_BYTES = 8 << 20
"""Size from which digests are computed in threads of their own: hashlib lets others run meanwhile."""


class ContentDigests:
    """Digests of bytes that come in pieces. ``stated`` is the store's ``algorithm:value``."""

    def __init__(self, stated: str, size: int) -> None:
        self._algorithm, _, self._stated = stated.partition(":")
        self._size = size
        self._pools = [ThreadPoolExecutor(1, "mlkit-digest") for _ in range(2)] if size >= LARGE_BYTES else []
        self._pending: list[Future[None]] = []
        self.restart()

    def restart(self) -> None:
        """Forget all bytes."""
        self._settle()
        self._sha256 = hashlib.sha256()
        self._hashes: list[Any] = [self._sha256]
        if self._algorithm in COMPUTABLE and self._algorithm != "sha256":
            name = "md5" if self._algorithm == "md5" else "sha1"
            other = hashlib.new(name, usedforsecurity=False)
            if self._algorithm == "git-sha1":
                other.update(b"blob %d\0" % self._size)
            self._hashes.append(other)

    def update(self, chunk: bytes) -> None:
        """Add bytes; at most one piece is waited for."""
        if not self._pools:
            for item in self._hashes:
                item.update(chunk)
            return
        self._settle()
        self._pending = [pool.submit(item.update, chunk) for pool, item in zip(self._pools, self._hashes, strict=False)]

    @property
    def sha256(self) -> str:
        self._settle()
        return self._sha256.hexdigest()

    def mismatch(self) -> str:
        """How the content differs from what the store tells; "" if it does not, or tells what cannot be computed."""
        self._settle()
        if self._algorithm in COMPUTABLE and (digest := self._hashes[-1].hexdigest()) != self._stated.lower():
            return f"the content has {self._algorithm} {digest}, and the store says {self._stated}"
        return ""

    def close(self) -> None:
        """End the threads."""
        for pool in self._pools:
            pool.shutdown(wait=False)

    def _settle(self) -> None:
        for future in self._pending:
            future.result()
        self._pending = []
