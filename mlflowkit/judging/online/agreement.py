"""A shadow's agreement with the champion on the same rows, as a whole and by slice."""

from __future__ import annotations

import math
from dataclasses import replace

from mlflowkit.judging.online.clusters import mirrored_clusters
from mlflowkit.judging.online.evidence import Moments
from mlflowkit.judging.online.questions import Limit, Reading, Task
from mlflowkit.judging.online.rates import Counted, missed, reading_of
from mlflowkit.judging.online.sequential import Share
from mlflowkit.values import Json


def agreement(task: Task) -> Reading:
    """A shadow's agreement with the champion on the same rows: of all rows, and of each slice of the columns asked for.

    The whole is tested with half of the level, the i-th slice to appear with 1 / (i (i + 1)) of the other half. Slices
    guard: each may fail, but only the whole must be shown to hold, as a rare slice might never be.
    """
    limit = Limit("min", 1 - task.limit.value) if task.limit.kind == "margin" else task.limit
    inner, columns = replace(task, limit=limit), task.question.columns
    names = list(task.trace.get("slices", ()))
    for _, _, second in task.arms:
        names += sorted(name for name in second.agreement if name.partition("=")[0] in columns and name not in names)
    traces: dict[str, Json] = {}
    found = []
    for index, name in enumerate(["", *names]):
        strata = [
            Counted(epoch, Share(), missed(second.agreement.get(name, Moments())), (1.0, mirrored_clusters(second)))
            for epoch, _, second in task.arms
        ]
        reading = reading_of(inner, strata, task.trace.get("of", {}).get(name, {}))
        traces[name] = reading.trace
        part = 0.0 if not columns else -math.log(2) - (math.log(index * (index + 1)) if index else 0.0)
        found.append(replace(reading, harm=max(reading.harm + part, 0.0), slice=name))
    worst = max(found, key=lambda reading: reading.harm)
    shown = worst if worst.harm >= -math.log(task.harm_level) else found[0]
    return replace(shown, harm=worst.harm, proof=found[0].proof, trace={"slices": names, "of": traces})
