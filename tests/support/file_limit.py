"""A stand-in for a disk that is nearly full."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def failing_writes(size: int = 1000) -> Iterator[None]:
    """Files of this process may not grow beyond ``size`` bytes; keep it to the call under test, since the test runner's
    own output may be such a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
