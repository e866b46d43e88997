"""What a monitor concludes from each window, as tables: words, episodes, whom it tells, and what keeps it quiet."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mlflowkit.errors import UsageError
from mlflowkit.judging.shift.findings import Aspect, ColumnFinding
from mlflowkit.monitoring import monitor_policy
from mlflowkit.monitoring.monitor_policy import Notification, PolicyState, WindowFacts
from mlflowkit.monitoring.monitor_view import PerformanceView
from mlflowkit.values import Outcome

DAY = 86_400.0
IMPORTANCE = {"age": 0.5, "pay": 0.05, "zip": 0.001}


def finding(
    column: str = "age", outcome: str = "PASSED", evidence: float | None = None, aspect: Aspect = "distribution",
    segment: str = "", value: float | None = 0.02, margin: float = 0.1,
) -> ColumnFinding:  # fmt: skip
    word = Outcome(outcome)
    if word is Outcome.FAILED and value == 0.02:
        value = 0.3
    evidence = (1.5 if word is Outcome.FAILED else 0.0) if evidence is None else evidence
    low, high = (None, None) if value is None else (value - 0.01, value + 0.01)
    message = f"{column} is {outcome}"
    return ColumnFinding(
        column, aspect, word, value, low, high, margin, evidence, 2000, 900.0, 0.1, None, segment, message
    )


class History:
    """A version's policy, window by window."""

    def __init__(self, rearm: int = 2) -> None:
        self.state = PolicyState("loans", "digest")
        self.rearm = rearm
        self.number = 0
        self.sent: list[Notification] = []

    def window(self, *findings: ColumnFinding, **facts: object) -> str:
        start = self.number * DAY
        self.number += 1
        given = WindowFacts(start, start + DAY, findings=findings or (finding(),), importance=IMPORTANCE, **facts)  # type: ignore[arg-type]
        # through JSON, as a monitor that is restarted after each window
        state = PolicyState.from_json(json.loads(json.dumps(self.state.to_json(), allow_nan=False)))
        assert state == self.state
        self.state, sent = monitor_policy.advance(state, given, start + DAY, rearm=self.rearm)
        self.sent += sent
        return self.state.word

    @property
    def events(self) -> list[str]:
        return [item.event for item in self.sent]


BAD = finding(outcome="FAILED")
OK = finding()


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"learning": "3 windows so far"}, "LEARNING"),
        ({}, "HEALTHY"),
        ({"blind": "nothing can be seen"}, "BLIND"),
        ({"judged": False}, "NO_DATA"),
        ({"refused": 0.02}, "SUSPECT"),
        ({"refused": 0.02, "learning": "x"}, "SUSPECT"),
        ({"refused": 0.009}, "HEALTHY"),
    ],
)
def test_the_word_of_a_window(facts: dict[str, object], word: str) -> None:
    assert History().window(**facts) == word


def test_evidence_makes_suspect_before_it_makes_an_alarm() -> None:
    history = History()
    words = [history.window(finding(outcome="INCONCLUSIVE", evidence=share)) for share in (0.0, 0.3, 0.5, 0.9, 0.2)]
    assert words == ["HEALTHY", "HEALTHY", "SUSPECT", "SUSPECT", "HEALTHY"]
    assert history.sent == []
    assert history.window(BAD) == "DRIFTING"


def test_an_episode_is_told_once_and_its_end_once() -> None:
    history = History()
    history.window()
    assert [history.window(BAD) for _ in range(10)] == ["DRIFTING"] * 10
    assert history.events == ["firing"]
    assert (history.window(), history.state.active[0].quiet, history.events) == ("DRIFTING", 1, ["firing"])
    assert history.window() == "HEALTHY"
    assert history.events == ["firing", "resolved"]
    assert [history.window() for _ in range(3)] == ["HEALTHY"] * 3
    assert history.state.healthy == 4
    assert len({item.key for item in history.sent}) == 2
    assert history.sent[0].episode == history.sent[1].episode
    assert history.state.alerts[0].state == "resolved"


def test_the_episode_is_the_same_whoever_computes_it_and_another_for_another_champion() -> None:
    first, second, other = History(), History(), History()
    other.state = replace(other.state, digest="another")
    for history in (first, second, other):
        history.window(BAD)
    assert first.sent == second.sent
    assert first.sent[0].episode != other.sent[0].episode


def test_more_columns_of_an_episode_are_not_told_again() -> None:
    history = History()
    history.window(BAD)
    history.window(BAD, finding("pay", "FAILED"), finding("zip", "FAILED"))
    assert [alert.severity for alert in history.state.active] == ["critical", "warning", "info"]
    history.window(OK, finding("pay", "FAILED"), finding("zip"))
    history.window(OK, finding("pay", "FAILED"), finding("zip"))
    assert [alert.column for alert in history.state.active] == ["pay"]
    assert history.events == ["firing"]  # the episode goes on with pay
    history.window(OK, finding("pay"), finding("zip"))
    history.window(OK, finding("pay"), finding("zip"))
    assert history.events == ["firing", "resolved"]


def test_no_data_never_resolves() -> None:
    history = History()
    history.window(BAD)
    assert [history.window(judged=False) for _ in range(20)] == ["NO_DATA"] * 20
    assert [alert.kind for alert in history.state.active] == ["drift", "no_data"]
    assert "1 alert stays" in history.state.decisions[-1].text
    assert [item.event for item in history.sent if item.columns] == ["firing"]
    history.window()
    history.window()
    assert history.state.active == ()
    assert [item.event for item in history.sent if item.columns] == ["firing", "resolved"]


def test_no_data_is_told_once_and_that_it_is_over_once() -> None:
    history = History()
    history.window()
    for _ in range(5):
        history.window(judged=False, message="0 rows")
    history.window()
    assert [(item.event, item.columns) for item in history.sent] == [("firing", ()), ("resolved", ())]
    history.window(judged=False)  # soon again: sparse traffic is no news
    history.window()
    assert len(history.sent) == 2


def test_a_drift_that_begins_while_there_were_no_data_is_told() -> None:
    history = History()
    history.window(judged=False)
    history.window(BAD)
    assert [item.event for item in history.sent] == ["firing", "resolved", "firing"]
    assert history.sent[-1].columns == ("age",)


def test_a_value_that_is_not_known_does_not_resolve() -> None:
    history = History()
    history.window(BAD)
    for _ in range(6):
        assert history.window(finding(outcome="INCONCLUSIVE", value=None)) == "DRIFTING"
    assert history.events == ["firing"]


def test_evidence_that_still_grows_does_not_resolve() -> None:
    history = History()
    history.window(BAD)
    for _ in range(6):
        history.window(finding(outcome="INCONCLUSIVE", evidence=0.8, value=0.09))
    assert history.events == ["firing"]


@pytest.mark.parametrize(
    "cause",
    [finding("age", "FAILED", aspect="missing"), finding("missing column age", "FAILED", aspect="type")],
)
def test_broken_rows_inhibit_the_drift_of_their_column(cause: ColumnFinding) -> None:
    history = History()
    history.window(BAD, cause, finding("pay", "FAILED"))
    drift, broken, pay = history.state.active
    assert (drift.kind, drift.column, drift.inhibited_by) == ("drift", "age", broken.id)
    assert (broken.inhibited_by, pay.inhibited_by) == ("", "")
    assert history.sent[0].alerts == (broken.id, pay.id)


def test_a_rollout_inhibits_the_drift_of_predictions_until_it_ends() -> None:
    history = History()
    score = finding("output.score", "FAILED")
    history.window(score, rollout="canary, step 1")
    history.window(score, rollout="canary, step 1")
    assert history.sent == []
    assert history.state.active[0].inhibited_by == "canary, step 1"
    history.window(score)
    assert history.events == ["firing"]
    assert history.state.active[0].kind == "predictions"


def test_refused_requests_are_an_alert_about_their_column_and_never_healthy() -> None:
    history = History()
    refused = finding("missing column age", "FAILED", aspect="type", value=0.5)
    assert history.window(refused, refused=0.5) == "DRIFTING"
    [alert] = history.state.active
    assert (alert.kind, alert.column, alert.severity) == ("schema", "age", "critical")
    assert history.window(finding("pay"), refused=0.5) != "HEALTHY"


def test_only_trusted_estimates_and_realised_metrics_are_alerts() -> None:
    def metric(kind: str, trust: str, verdict: str = "FAILED") -> PerformanceView:
        return PerformanceView("roc_auc", kind, 0.6, 0.5, 0.65, 0.7, verdict, trust, message="worse")

    for trust in ("UNKNOWN", "BIASED"):
        history = History()
        assert history.window(performance=(metric("estimated", trust),)) == "HEALTHY"
    for given in (metric("estimated", "TRUSTED"), metric("realised", "")):
        history = History()
        assert history.window(performance=(given,)) == "DRIFTING"
        assert (history.state.active[0].kind, history.state.active[0].severity) == ("performance", "critical")
        history.window()  # without a metric it is not known
        history.window()
        assert history.events == ["firing"]
        passed = replace(given, verdict="PASSED")
        history.window(performance=(passed,))
        history.window(performance=(passed,))
        assert history.events == ["firing", "resolved"]


@pytest.mark.parametrize("period", range(1, 13))
def test_flapping_for_50_windows_is_told_at_most_twice(period: int) -> None:
    """Bad for some windows, well for as many: up to a period of a quarter of the 50."""
    history = History()
    for number in range(50):
        history.window(BAD if number // period % 2 == 0 else OK)
    limit = 2 if period <= 7 else 4
    assert len(history.sent) <= limit, history.events


def test_a_thing_that_comes_back_late_or_another_thing_is_told_again() -> None:
    history = History()
    history.window(BAD)
    history.window()
    history.window()
    history.window(finding("pay", "FAILED"), OK)
    assert history.events == ["firing", "resolved", "firing"]
    history = History()
    history.window(BAD)
    for _ in range(30):
        history.window()
    history.window(BAD)
    assert history.events == ["firing", "resolved", "firing"]


def test_an_acknowledgement_ends_and_what_still_holds_is_told_again() -> None:
    history = History()
    history.window(BAD)
    [alert] = history.state.active
    state, sentence = monitor_policy.acknowledge(history.state, alert.id, "ack", 10 * DAY, DAY)
    assert sentence == "1 alert acknowledged: age"
    assert state.active[0].state == "acked"
    assert monitor_policy.expire(state, 9 * DAY) == (state, ())
    after, sent = monitor_policy.expire(state, 10 * DAY)
    assert [item.event for item in sent] == ["firing"]
    assert after.active[0].state == "firing"
    assert monitor_policy.expire(after, 11 * DAY) == (after, ())
    assert sent[0].key != history.sent[0].key


def test_the_end_of_an_acknowledged_alert_is_told_and_of_a_silenced_one_not() -> None:
    for kind, events in (("ack", ["firing", "resolved"]), ("silence", ["firing"])):
        history = History()
        history.window(BAD)
        history.state, _ = monitor_policy.acknowledge(history.state, history.state.episode, kind, 99 * DAY, DAY)  # type: ignore[arg-type]
        history.window(BAD)
        history.window()
        history.window()
        assert history.events == events
        assert history.state.episode == ""


def test_a_silenced_drift_is_told_when_something_else_joins() -> None:
    history = History()
    history.window(finding("output.score", "FAILED"), rollout="canary")
    history.state, _ = monitor_policy.acknowledge(history.state, history.state.episode, "silence", 99 * DAY, DAY)
    history.window(finding("output.score", "FAILED"), BAD, rollout="canary")
    assert [item.columns for item in history.sent] == [("age",)]


def test_what_is_not_firing_cannot_be_acknowledged() -> None:
    history = History()
    with pytest.raises(UsageError, match="no alert 'x' is firing; there is none"):
        monitor_policy.acknowledge(history.state, "x", "ack", DAY, 0.0)
    history.window(BAD)
    alert = history.state.active[0].id
    with pytest.raises(UsageError) as caught:
        monitor_policy.acknowledge(history.state, alert[:-1], "ack", DAY, 0.0)
    assert caught.value.hint == f"did you mean {alert}?"


def test_decisions_are_sentences_and_bounded() -> None:
    history = History()
    for number in range(600):
        history.window(BAD if number % 97 == 0 else OK, refused=0.5 if number % 2 else 0.0)
    texts = [decision.text for decision in history.state.decisions]
    assert len(texts) == monitor_policy.KEPT_DECISIONS
    assert all(": " in text or text.startswith("over after") for text in texts)
    assert len(history.state.alerts) <= monitor_policy.KEPT_ALERTS + 1
