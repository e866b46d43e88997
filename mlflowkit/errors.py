"""The exception tree. Every error has a message, a hint (the next command or edit) and an exit code.

::

    MlkitError                 exit code
    ├── UsageError                   2   the command or the recipe is wrong
    │   └── RecipeError              2   one or more located faults in a recipe
    ├── GateFailedError              1   a gate FAILED
    ├── GateInconclusiveError        4   a blocking gate is INCONCLUSIVE
    ├── WorldError                   3   the environment failed
    │   ├── DataError                3   a source, a table or a check
    │   ├── UserCodeError            3   code named by the recipe raised or has the wrong type
    │   ├── EngineError              3   training, conversion, a runtime or Ray
    │   │   └── TrialError           3   one candidate crashed, hung or raised
    │   ├── StoreError               3   the store, the journal, the disk
    │   ├── BundleError              3   a bundle is corrupt, altered or not blessed
    │   ├── DeliveryRefusedError     3   another system refused a finished run, and will again
    │   └── ServiceError             3   the gateway, a port, the network
    │       └── ConflictError        3   a control record changed since it was read
    └── InterruptedRunError        130   Ctrl-C or SIGTERM; the state is resumable

Adapters translate vendor exceptions where they occur: ``raise EngineError(...) from error``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar


class MlkitError(Exception):
    """Base class of mlflowkit's exceptions.

    >>> str(DataError("table loans.csv has no rows", hint="check data.source.path"))
    'table loans.csv has no rows'
    """

    exit_code: ClassVar[int] = 3
    kind: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_json(self) -> dict[str, object]:
        """The value under ``error`` in the output of every command with ``--json``."""
        return {"code": self.exit_code, "kind": self.kind, "message": self.message, "hint": self.hint}


def closest_match(name: str, names: Iterable[str]) -> str:
    """The most similar of ``names``, ignoring case, for a "did you mean" hint; "" when none is similar.

    >>> closest_match("epocs", ["epochs", "batch_size"]), closest_match("class", ["rownames", "Class"])
    ('epochs', 'Class')
    >>> closest_match("x", ["epochs"])
    ''
    """
    from difflib import get_close_matches

    folded = {other.lower(): other for other in reversed(list(names))}
    close = get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else ""


class UsageError(MlkitError):
    exit_code = 2
    kind = "usage"


@dataclass(frozen=True, slots=True)
class Fault:
    """One located fault of a recipe. Lines and columns count from 1; overrides have file ``<override>``."""

    file: str
    line: int
    column: int
    key: str
    found: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}"
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


class RecipeError(UsageError):
    """All faults of a recipe, in the order of their locations."""

    kind = "recipe"

    def __init__(self, faults: Sequence[Fault], *, hint: str = "", sources: Mapping[str, str] | None = None) -> None:
        self.faults = tuple(faults)
        self.sources = dict(sources or {})
        """Text of the files that faults are in, by name; ``<override>`` holds one override per line."""
        count = len(self.faults)
        lines = [f"{count} error{'s' if count != 1 else ''} in the recipe"]
        for fault in self.faults:
            lines.append(f"  {fault}")
            if fault.hint:
                lines.append(f"      {fault.hint}")
        super().__init__("\n".join(lines), hint=hint)

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "errors": [asdict(fault) for fault in self.faults]}


class GateFailedError(MlkitError):
    exit_code = 1
    kind = "gate-failed"


class GateInconclusiveError(MlkitError):
    exit_code = 4
    kind = "gate-inconclusive"


class WorldError(MlkitError):
    kind = "world"


class DataError(WorldError):
    kind = "data"


class UserCodeError(WorldError):
    kind = "user-code"


class EngineError(WorldError):
    kind = "engine"


class TrialError(EngineError):
    """A candidate failed in its own process. ``script`` reproduces it; None when it could not be written."""

    kind = "trial"

    def __init__(self, message: str, *, hint: str = "", script: Path | None = None) -> None:
        super().__init__(message, hint=hint)
        self.script = script


class StoreError(WorldError):
    kind = "store"


class BundleError(WorldError):
    kind = "bundle"


class DeliveryRefusedError(WorldError):
    """A system refused what a finished run delivers to it, and will until a person has changed something."""

    kind = "delivery-refused"


class ServiceError(WorldError):
    kind = "service"


class ConflictError(ServiceError):
    """A conditional write was refused: the record is not at the expected version."""


class InterruptedRunError(MlkitError):
    exit_code = 130
    kind = "interrupted"
