"""Whatever windows bring, the monitor's policy keeps its promises."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.judging.shift.findings import ColumnFinding
from mlflowkit.monitoring import monitor_policy
from mlflowkit.monitoring.monitor_policy import PolicyState, WindowFacts
from mlflowkit.values import Outcome

OUTCOMES = st.sampled_from(["PASSED", "FAILED", "INCONCLUSIVE", "unknown", "absent"])
WINDOWS = st.lists(st.tuples(st.booleans(), st.booleans(), st.lists(OUTCOMES, min_size=3, max_size=3)), max_size=60)
COLUMNS = (("age", "distribution"), ("age", "missing"), ("output.score", "distribution"))


def _findings(outcomes: list[str]) -> tuple[ColumnFinding, ...]:
    findings = []
    for (column, aspect), word in zip(COLUMNS, outcomes, strict=True):
        if word == "absent":
            continue
        outcome = Outcome("INCONCLUSIVE" if word == "unknown" else word)
        value = None if word == "unknown" else 0.3 if word == "FAILED" else 0.01
        high = None if value is None else value + 0.01
        evidence = 1.2 if word == "FAILED" else 0.0
        findings.append(ColumnFinding(column, aspect, outcome, value, value, high, 0.1, evidence, 9, 9.0))  # type: ignore[arg-type]
    return tuple(findings)


@given(WINDOWS, st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_the_policy_keeps_its_promises(windows: list[tuple[bool, bool, list[str]]], rearm: int) -> None:
    state, sent = PolicyState("loans", "digest"), []
    for number, (judged, rollout, outcomes) in enumerate(windows):
        findings = _findings(outcomes) if judged else ()
        facts = WindowFacts(
            60.0 * number, 60.0 * number + 60, judged=judged, findings=findings, rollout="canary" if rollout else ""
        )
        before = state
        state, notifications = monitor_policy.advance(state, facts, 60.0 * number + 60, rearm=rearm)
        sent += notifications
        failed = any(finding.outcome is Outcome.FAILED for finding in findings)
        assert (state.word == "NO_DATA") == (not judged)
        if failed:
            assert state.word == "DRIFTING"
        if not judged:  # no data: nothing of an episode begins, ends or is told
            assert state.episode == before.episode
            kept = [(alert.id, alert.state, alert.quiet) for alert in state.active if alert.kind != "no_data"]
            assert kept == [(alert.id, alert.state, alert.quiet) for alert in before.active if alert.kind != "no_data"]
        for alert in state.active:
            if alert.kind == "predictions" and rollout:
                assert alert.inhibited_by == "canary"
        assert PolicyState.from_json(json.loads(json.dumps(state.to_json(), allow_nan=False))) == state
    keys = Counter(item.key for item in sent)
    assert not keys or max(keys.values()) == 1
    by_episode: dict[str, list[str]] = {}
    for item in sent:
        by_episode.setdefault(item.episode, []).append(item.event)
    assert all(events in (["firing"], ["firing", "resolved"]) for events in by_episode.values())
