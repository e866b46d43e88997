"""JSON encoding of values, for the journal and the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mlflowkit.values import Json, StageResult, Verdict


def dumps(value: Json) -> str:
    """Compact JSON; NaN and infinities survive a round trip through `loads`.

    >>> loads(dumps({"a": float("inf")}))
    {'a': inf}
    """
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def loads(text: str) -> Any:
    return json.loads(text)


def strict(value: Json) -> Json:
    """Replace NaN and infinities by null, as strict JSON requires.

    >>> strict({"loss": float("nan"), "curve": (1.0, 2.0)})
    {'loss': None, 'curve': [1.0, 2.0]}
    """
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def result_from(value: Mapping[str, Json] | None) -> StageResult | None:
    if value is None:
        return None
    verdicts = tuple(Verdict.from_json(verdict) for verdict in value["verdicts"])
    return StageResult(metrics=value["metrics"], summary=value["summary"], verdicts=verdicts)


def result_json(result: StageResult | None) -> Json:
    """A StageResult as JSON. Raises TypeError when its summary is no mapping."""
    if result is None:
        return None
    return {
        "metrics": {name: float(value) for name, value in result.metrics.items()},
        "summary": dict(result.summary),
        "verdicts": [asdict(verdict) for verdict in result.verdicts],
    }
