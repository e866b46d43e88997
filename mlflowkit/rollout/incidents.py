"""The record of a rollback: what was seen, when, by which numbers, and where the version came from.

``<service>/incidents/<UTC time>-<experiment>.json``, with the same in Markdown beside it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflowkit.errors import ServiceError
from mlflowkit.judging.online.evidence import Evidence
from mlflowkit.rollout.state import RollBack, RolloutState
from mlflowkit.service_state.records import ServiceFiles, read_json, write_json
from mlflowkit.system.files import replace_file
from mlflowkit.values import Json, Variant

EXAMPLES = 20
"""Disagreements that an incident shows."""
_log = logging.getLogger("mlflowkit.rollout")


def record(files: ServiceFiles, state: RolloutState, action: RollBack, evidence: Evidence) -> Path:
    """Write the incident of a rollback; returns its path. The same rollback has the same path."""
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(action.time))}-{state.experiment}"
    path = files.folder / "incidents" / f"{name}.json"
    incident = describe(state, action, evidence, _lineage(state.candidate), _examples(files, state.candidate.name))
    write_json(path, incident)
    replace_file(path.with_suffix(".md"), markdown(incident).encode())
    return path


def describe(
    state: RolloutState, action: RollBack, evidence: Evidence, lineage: Json = None, examples: Sequence[Json] = ()
) -> dict[str, Json]:
    """An incident as JSON."""
    names = (state.champion.name, state.candidate.name)
    saved = state.to_json()
    whole = Evidence(state.experiment, {0: {name: evidence.of(name) for name in names}}).to_json()["epochs"]["0"]
    return {
        "experiment": state.experiment,
        "service": state.service,
        "time": action.time,
        "began": state.begun,
        "ending": state.ending,
        "by": state.by,
        "reason": action.reason,
        "strategy": state.strategy,
        "step": state.step + 1,
        "steps": [step.weight for step in state.steps],
        "champion": saved["champion"],
        "candidate": saved["candidate"],
        "findings": saved["findings"],
        "weights": [{"time": at, "weight": weight} for at, weight in weights(state)],
        "counts": whole,
        "plan": saved["plan"],
        "origin": dict(state.origin),
        "lineage": lineage,
        "disagreements": list(examples),
    }


def weights(state: RolloutState) -> list[tuple[float, float]]:
    """(time, the candidate's share of the traffic) whenever it changed."""
    found: list[tuple[float, float]] = []
    for look in state.history:
        if not found or found[-1][1] != look.weight:
            found.append((look.time, look.weight))
    return found


def markdown(incident: Mapping[str, Json]) -> str:
    """An incident for people."""
    candidate, champion = incident["candidate"]["version"], incident["champion"]["version"]
    ending = "was rolled back" if incident["ending"] == "rolled_back" else "was aborted"
    lines = [
        f"# {incident['service']}: version {candidate} {ending}",
        "",
        f"{_when(incident['time'])}, {incident['time'] - incident['began']:.0f} s after it began, at step "
        f"{incident['step']} of {len(incident['steps'])} ({incident['strategy']}), by "
        f"{'a person' if incident['by'] == 'person' else 'the policy'}. Version {champion} answers.",
        "",
        f"Reason: {incident['reason']}",
        "",
        "| metric | verdict | estimate | interval | champion n | challenger n | harm |",
        "|---|---|---|---|---|---|---|",
        *(_row(finding) for finding in incident["findings"]),
        "",
        "| variant | requests | errors | rows |",
        "|---|---|---|---|",
        *(
            f"| {name} | {counts.get('requests', 0)} | {counts.get('errors', 0)} | {counts.get('rows', 0)} |"
            for name, counts in incident["counts"].items()
        ),
        "",
        *(f"- {_when(one['time'])}: {one['weight']:.0%} of the traffic" for one in incident["weights"]),
    ]
    if incident["lineage"]:
        lines += ["", *(f"- {key}: `{value}`" for key, value in incident["lineage"].items())]
    return "\n".join(lines) + "\n"


def _row(finding: Mapping[str, Json]) -> str:
    verdict, (champion, challenger) = finding["verdict"], finding["samples"]
    measured = verdict["measurement"] or {}
    value, low, high = (_number(measured.get(name)) for name in ("value", "low", "high"))
    return (
        f"| {finding['name']} | {verdict['outcome']} | {value} | [{low}, {high}] | {champion} | {challenger} | "
        f"{_number(finding['harm'])} |"
    )


def _number(value: Json) -> str:
    return "–" if value is None else f"{value + 0.0:.4g}"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _lineage(candidate: Variant) -> Json:
    """Where the candidate's bundle says that it came from; None where it cannot be read."""
    try:
        manifest = json.loads((Path(candidate.bundle) / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    return {name: manifest.get(name) for name in ("git_commit", "git_dirty", "data_version", "recipe_digest")}


def _examples(files: ServiceFiles, name: str) -> list[Json]:
    """Disagreements that were kept of a candidate; none where nobody compared, or the file is damaged."""
    path = files.folder / "disagreements" / f"{name}.json"
    try:
        found = read_json(path)
        return [] if found is None else found["examples"][:EXAMPLES]
    except (ServiceError, KeyError, TypeError) as error:  # the rollback must not wait for it
        _log.error("%s is damaged and was left out: %r", path, error)
        return []
