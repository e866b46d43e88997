"""What earlier searches found out about a candidate, in the folder that the digest of all it depends on has.

A time of another day is not held against one of today, but a ratio is: both sides were measured in the same rounds. So
the samples of the float graph in those rounds are kept beside a candidate's own.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from mlflowkit.bench.measure import Samples
from mlflowkit.errors import StoreError
from mlflowkit.optimization.objective import Figures
from mlflowkit.ports import Built, Loaded
from mlflowkit.system.files import replace_file
from mlflowkit.values import Measurement


@dataclass(frozen=True, slots=True)
class Remembered:
    """A candidate that answered and was measured. ``drop`` is of its metric against the float graph, which has none."""

    built: Built
    loaded: Loaded
    metric: float
    drop: Measurement | None
    samples: Samples
    reference: Figures
    """Of the float graph, in the rounds in which the candidate was measured."""
    search: str
    """Which search measured it: the name of its scratch folder."""
    day: str = ""
    """When it was measured; today where it is left out."""


def write(folder: Path, asked: str, found: Remembered) -> None:
    """Keep what was found, for searches that ask the same; where the disk refuses it, they find it out again."""
    told = {
        "built": {**asdict(found.built), "files": [str(path) for path in found.built.files]},
        "loaded": asdict(found.loaded),
        "metric": found.metric,
        "drop": None if found.drop is None else asdict(found.drop),
        "samples": found.samples.to_json(),
        "reference": {
            **Samples(found.reference.microseconds, 0, settled=True).to_json(),
            "size_bytes": found.reference.size_bytes,
            "memory_bytes": found.reference.memory_bytes,
        },
        "search": found.search,
        "day": found.day or time.strftime("%Y-%m-%d"),
    }
    with contextlib.suppress(StoreError):
        replace_file(folder / _name(asked), json.dumps(told).encode(), durable=False)


def read(folder: Path, asked: str) -> Remembered | None:
    """What was kept; None where there is nothing, or nothing that can be read."""
    try:
        told = json.loads((folder / _name(asked)).read_bytes())
        built, reference = told["built"], told["reference"]
        return Remembered(
            built=Built(**{**built, "files": tuple(Path(path) for path in built["files"]), "cached": True}),
            loaded=Loaded(**told["loaded"]),
            metric=float(told["metric"]),
            drop=None if told["drop"] is None else Measurement(**told["drop"]),
            samples=Samples.from_json(told["samples"]),
            reference=Figures(
                Samples.from_json(reference).microseconds, reference["size_bytes"], reference["memory_bytes"]
            ),
            search=str(told["search"]),
            day=str(told["day"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _name(asked: str) -> str:
    return f"found-{asked[:16]}.json"
