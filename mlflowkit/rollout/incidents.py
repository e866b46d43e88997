"""The record of a rollback: findings, counts, traffic shares, lineage and example disagreements.

``<service>/incidents/<UTC time>-<experiment>.json``, and the same as Markdown (``.md``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflowkit.errors import ServiceError
from mlflowkit.judging.online.evidence import Evidence
from mlflowkit.judging.online.metric_results import possible_bounds
from mlflowkit.rollout.state import AUTHORS, RollBack, RolloutState
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.text import parse_json
from mlflowkit.values import Json, Variant

MAX_EXAMPLES = 20
"""Disagreements in an incident."""
_log = logging.getLogger("mlflowkit.rollout")


def record(files: ServiceFiles, state: RolloutState, action: RollBack, evidence: Evidence) -> str:
    """Write the incident of a rollback and return its location, which is the same when it is repeated."""
    name = f"incidents/{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(action.time))}-{state.experiment}"
    incident = build_incident(
        state, action, evidence, _lineage(state.candidate), _examples(files, state.candidate.name)
    )
    files.write_json(f"{name}.json", incident)
    files.write_bytes(f"{name}.md", markdown(incident).encode())
    return files.location(f"{name}.json")


def build_incident(
    state: RolloutState, action: RollBack, evidence: Evidence, lineage: Json = None, examples: Sequence[Json] = ()
) -> dict[str, Json]:
    """The JSON of an incident."""
    names = (state.champion.name, state.candidate.name)
    state_json = state.to_json()
    counts = Evidence(state.experiment, {0: {name: evidence.of(name) for name in names}}).to_json()["epochs"]["0"]
    return {
        "experiment": state.experiment,
        "service": state.service,
        "time": action.time,
        "began": state.begun,
        "ending": state.ending,
        "by": state.by,
        "reason": action.reason,
        "cause": action.cause,
        "strategy": state.strategy,
        "step": state.step + 1,
        "steps": [step.weight for step in state.steps],
        "champion": state_json["champion"],
        "candidate": state_json["candidate"],
        "findings": state_json["findings"],
        "weights": [{"time": at, "weight": weight} for at, weight in weight_changes(state)],
        "counts": counts,
        "plan": state_json["plan"],
        "origin": dict(state.origin),
        "lineage": lineage,
        "signature_changes": state_json["signature_changes"],
        "disagreements": list(examples),
    }


def weight_changes(state: RolloutState) -> list[tuple[float, float]]:
    """(time, the candidate's share of the traffic) at each change."""
    changes: list[tuple[float, float]] = []
    for observation in state.history:
        if not changes or changes[-1][1] != observation.weight:
            changes.append((observation.time, observation.weight))
    return changes


def markdown(incident: Mapping[str, Json]) -> str:
    """The Markdown of an incident."""
    candidate, champion = incident["candidate"]["version"], incident["champion"]["version"]
    ending = "was rolled back" if incident["ending"] == "rolled_back" else "was aborted"
    lines = [
        f"# {incident['service']}: version {candidate} {ending}",
        "",
        f"{_format_time(incident['time'])}, {incident['time'] - incident['began']:.0f} s after it began, at step "
        f"{incident['step']} of {len(incident['steps'])} ({incident['strategy']}), by "
        f"{AUTHORS.get(incident['by'], 'the policy')}. Version {champion} answers.",
        "",
        f"Reason: {incident['reason']}",
        "",
        "| metric | verdict | estimate | interval | champion n | challenger n | evidence worse |",
        "|---|---|---|---|---|---|---|",
        *(_finding_row(finding) for finding in incident["findings"]),
        "",
        "| variant | requests | errors | rows |",
        "|---|---|---|---|",
        *(
            f"| {name} | {counts.get('requests', 0)} | {counts.get('errors', 0)} | {counts.get('rows', 0)} |"
            for name, counts in incident["counts"].items()
        ),
        "",
        *(f"- {_format_time(change['time'])}: {change['weight']:.0%} of the traffic" for change in incident["weights"]),
    ]
    if incident.get("signature_changes"):
        lines += ["", "For clients of the champion:", ""]
        lines += [
            f"- {'breaking: ' if change['breaking'] else ''}{change['message']}"
            for change in incident["signature_changes"]
        ]
    if incident["lineage"]:
        lines += ["", *(f"- {key}: `{value}`" for key, value in incident["lineage"].items())]
    return "\n".join(lines) + "\n"


def _finding_row(finding: Mapping[str, Json]) -> str:
    verdict, (champion, challenger) = finding["verdict"], finding["samples"]
    measured = verdict["measurement"] or {}
    difference = verdict["change"] and measured.get("unit") != "x"
    possible = possible_bounds(verdict["metric"], difference, measured.get("low"), measured.get("high"))
    value, low, high = map(_format_number, (measured.get("value"), *(possible if measured else (None, None))))
    return (
        f"| {finding['name']} | {verdict['outcome']} | {value} | [{low}, {high}] | {champion} | {challenger} | "
        f"{_format_number(finding['harm'])} |"
    )


def _format_number(value: Json) -> str:
    return "–" if value is None else f"{value + 0.0:.4g}"


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _lineage(candidate: Variant) -> Json:
    """Lineage from the manifest of the candidate's bundle; None when it cannot be read."""
    try:
        manifest = parse_json((Path(candidate.bundle) / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    names = ("git_commit", "git_dirty", "data_version", "recipe_digest")
    added = ("git_tree", "data_source", "data_commit")
    known = {name: manifest[name] for name in added if manifest.get(name)}
    return {**{name: manifest.get(name) for name in names}, **known}


def _examples(files: ServiceFiles, name: str) -> list[Json]:
    """Recorded disagreements of a candidate; [] without a comparison or when the file is damaged."""
    record = f"disagreements/{name}.json"
    try:
        comparison = files.read_json(record)
        return [] if comparison is None else comparison["examples"][:MAX_EXAMPLES]
    except (ServiceError, KeyError, TypeError) as error:  # the rollback does not depend on it
        _log.error("%s is damaged and was left out: %r", files.location(record), error)
        return []
