"""Concurrent writers, and the error that a call must raise: shared by the suites."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

E = TypeVar("E", bound=Exception)

WRITERS = 4
ROUNDS = 25
SECONDS = 60.0
"""Longest time that concurrent writers may take."""


def refusal(kind: type[E], call: Callable[[], object]) -> E:
    """Return the exception of type ``kind`` that a call raises. Raises AssertionError when it raises none."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


def in_threads(work: Sequence[Callable[[], object]]) -> None:
    """Run functions at the same time in threads, and raise the first exception of any."""
    errors: list[BaseException] = []

    def attempt(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=attempt, args=(function,), daemon=True) for function in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), f"a thread still runs after {SECONDS:g} s"
    if errors:
        raise errors[0]


def in_processes(work: Sequence[Callable[[], object]]) -> None:
    """Run functions at the same time in forked processes. Raises AssertionError when one fails."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=function, daemon=True) for function in work]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
        assert process.exitcode == 0, f"a process ended with {process.exitcode}"
