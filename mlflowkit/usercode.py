"""Python that a recipe names: ``module:attr`` beside the recipe. Located and digested without being executed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Closure:
    """The files beside the recipe that a reference runs, and the libraries that they import.

    ``files`` are relative to the recipe's folder and sorted; ``digest`` is of their names and content;
    ``distributions`` maps the installed distributions imported from outside to their versions.
    """

    files: tuple[str, ...]
    digest: str
    distributions: tuple[tuple[str, str], ...]


def closure(reference: str, folder: Path) -> Closure:
    """Follow imports statically (ast; nothing is executed) from the module of ``reference``.

    A reference outside ``folder`` (mlflowkit, sklearn) has no files; its distribution and version are listed.
    Raises UserCodeError when the module is not found or does not parse (file:line given).
    """
    raise NotImplementedError


def load(reference: str, folder: Path, *, libraries: Sequence[str] = ()) -> Any:
    """Import the object of ``reference`` from ``folder``, mlflowkit.models or one of ``libraries``.

    Raises UserCodeError when it is not there (the nearest name is suggested) or its import raises.
    """
    raise NotImplementedError
