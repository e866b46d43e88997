"""Optional dependencies: which distributions an extra of mlflowkit adds, and which of them are not installed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec

from mlflowkit.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_EXTRA = re.compile(r"extra == ['\"]([\w-]+)['\"]")
_NESTED = re.compile(r"mlflowkit\[([\w,-]+)\]")


def missing_distributions(extra: str, *, ignore: Collection[str] = ()) -> tuple[str, ...]:
    """Distributions of an extra that are not installed, sorted; versions are pip's concern.

    Empty where mlflowkit itself runs from a folder that was not installed, since nothing is declared there.

    >>> missing_distributions("no-such-extra")
    ()
    """
    return tuple(sorted(name for name in set(_distributions(extra)) - set(ignore) if not _installed(name)))


def require_extra(module: str, extra: str, key: str) -> None:
    """Raise UsageError, with the command that installs it, where the module that a recipe's key needs is missing."""
    if find_spec(module) is None:
        raise UsageError(f"{key} needs {module}, which is not installed", hint=f"pip install 'mlflowkit[{extra}]'")


@lru_cache(maxsize=32)
def _distributions(extra: str) -> tuple[str, ...]:
    try:
        requirements = tuple(metadata.requires("mlflowkit") or ())
    except metadata.PackageNotFoundError:
        return ()
    return tuple(_walk(extra, requirements, frozenset()))


def _walk(extra: str, requirements: Sequence[str], visited: frozenset[str]) -> Iterator[str]:
    """Requirements of an extra; those of the extras that it names (``mlflowkit[profile]``) are followed."""
    for line in requirements:
        requirement, _, marker = line.partition(";")
        if extra not in _EXTRA.findall(marker):
            continue
        nested = _NESTED.match(requirement)
        if nested is None:
            name = _NAME.match(requirement)
            if name is not None:
                yield name[0]
            continue
        for other in nested[1].split(","):
            if other not in visited:
                yield from _walk(other, requirements, visited | {extra})


def _installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
