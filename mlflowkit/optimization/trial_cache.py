"""Cache of candidates' trials, in the folder named by the digest of all that a trial depends on.

Times of different days are not comparable, but ratios are, since both sides were measured in the same rounds. So the
float graph's samples of those rounds are cached beside a candidate's own.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from mlflowkit.bench.measure import Samples
from mlflowkit.errors import StoreError
from mlflowkit.optimization.objective import CandidateFigures
from mlflowkit.ports import BuiltGraph, LoadedGraph
from mlflowkit.system.files import replace_file
from mlflowkit.system.text import parse_json
from mlflowkit.values import Measurement


@dataclass(frozen=True, slots=True)
class CachedTrial:
    """A candidate that was judged and measured. ``drop`` is against the float graph, which itself has none."""

    built: BuiltGraph
    loaded: LoadedGraph
    metric: float
    drop: Measurement | None
    samples: Samples
    reference: CandidateFigures
    """Of the float graph, in the same rounds."""
    search: str
    """The search that measured it: the name of its scratch folder."""
    day: str = ""
    """Day of the measurement; today by default."""


def write(folder: Path, settings_digest: str, trial: CachedTrial) -> None:
    """Cache a trial for searches with the same settings; a disk that refuses it only costs a repetition."""
    reference = {
        **Samples(trial.reference.microseconds, 0, settled=True).to_json(),
        "size_bytes": trial.reference.size_bytes,
        "memory_bytes": trial.reference.memory_bytes,
    }
    content = {
        "built": {**asdict(trial.built), "files": [str(path) for path in trial.built.files]},
        "loaded": asdict(trial.loaded),
        "metric": trial.metric,
        "drop": None if trial.drop is None else asdict(trial.drop),
        "samples": trial.samples.to_json(),
        "reference": reference,
        "search": trial.search,
        "day": trial.day or time.strftime("%Y-%m-%d"),
    }
    with contextlib.suppress(StoreError):
        replace_file(folder / _file_name(settings_digest), json.dumps(content).encode(), durable=False)


def read(folder: Path, settings_digest: str) -> CachedTrial | None:
    """The cached trial; None where there is none or it cannot be read."""
    try:
        content = parse_json((folder / _file_name(settings_digest)).read_bytes())
        built, reference = content["built"], content["reference"]
        microseconds = Samples.from_json(reference).microseconds
        return CachedTrial(
            built=BuiltGraph(**{**built, "files": tuple(Path(path) for path in built["files"]), "cached": True}),
            loaded=LoadedGraph(**content["loaded"]),
            metric=float(content["metric"]),
            drop=None if content["drop"] is None else Measurement(**content["drop"]),
            samples=Samples.from_json(content["samples"]),
            reference=CandidateFigures(microseconds, reference["size_bytes"], reference["memory_bytes"]),
            search=str(content["search"]),
            day=str(content["day"]),
        )
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None


def _file_name(settings_digest: str) -> str:
    return f"found-{settings_digest[:16]}.json"
