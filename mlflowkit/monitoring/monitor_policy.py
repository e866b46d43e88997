"""What a monitor concludes from each window, and whom it tells. Pure: values in, a state and notifications out.

The state of a version is one word::

    LEARNING -> HEALTHY <-> SUSPECT -> DRIFTING (-> RETRAINING)      NO_DATA      BLIND

An *episode* begins with the window in which something was shown to be wrong, and ends when nothing of it is any more.
It is notified once when it begins and once when it is over, whatever happens in between. Windows without data change
nothing: they neither raise nor resolve. Something that goes and comes back soon must last longer each time before
anybody is told, and must be gone longer before it is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, cast

from mlflowkit.errors import UsageError, closest_match
from mlflowkit.judging.shift.findings import ColumnFinding
from mlflowkit.monitoring.monitor_alerts import (
    MEASURED,
    SEVERITIES,
    Alert,
    Severity,
    Symptom,
    alert_id,
    column_of,
    inhibitor,
    kind_of,
    symptoms,
)
from mlflowkit.monitoring.monitor_view import DecisionView, PerformanceView, StateWord
from mlflowkit.monitoring.retrain.retrain_policy import episode_id
from mlflowkit.system.text import format_count, limited
from mlflowkit.values import Json, Outcome

SUSPECT_EVIDENCE = 0.5
"""Evidence, as a share of what an alarm takes, from which a version is SUSPECT."""
MEMORY = 10
"""A new episode within this many times ``rearm`` windows after one of the same column is the same thing coming back."""
MAX_FLAPS = 3
PATIENCE = 4
"""Each time that the same thing comes back it must last, and be gone, this many times longer."""
MAX_JOINED = 7
"""Windows that are joined for want of rows, before there are no data."""
KEPT_ALERTS, KEPT_DECISIONS = 100, 200


@dataclass(frozen=True, slots=True)
class WindowFacts:
    """What is known after a window.

    judged      whether there were enough rows; the findings of a window that is not judged do not count
    learning    why the baseline is not made yet; "" when it is
    blind       why shifts of twice the margin cannot be seen; "" where they can
    refused     share of the requests that were refused
    rollout     a rollout that is running, in words; "" for none
    """

    start: float
    end: float
    judged: bool = True
    findings: Sequence[ColumnFinding] = ()
    performance: Sequence[PerformanceView] = ()
    importance: Mapping[str, float] = field(default_factory=dict)
    learning: str = ""
    blind: str = ""
    refused: float = 0.0
    rollout: str = ""
    message: str = ""
    """The window in words: its rows."""


@dataclass(frozen=True, slots=True)
class Notification:
    """An event for the receivers of alerts. ``key`` identifies it, so that it is sent once."""

    key: str
    event: Literal["firing", "resolved"]
    episode: str
    severity: Severity
    message: str
    time: float
    alerts: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Notification:
        """The notification whose `dataclasses.asdict` was written as JSON. Raises TypeError."""
        known = {item.name: value[item.name] for item in fields(cls) if item.name in value}
        return cls(**{**known, "alerts": tuple(known["alerts"]), "columns": tuple(known["columns"])})


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What is remembered of one version from window to window.

    since       start of the first window of ``word``
    episode     id of the open episode, "" for none; ``lasted``: its windows in which something was wrong, ``streak``
                those in a row; ``notified``: whether it was told
    healthy     HEALTHY windows in a row
    flaps       how often the same thing came back
    closed      number of the window in which the last episode ended; ``closed_about``: what it was about
    """

    service: str
    digest: str
    word: StateWord = "LEARNING"
    since: float = 0.0
    windows: int = 0
    episode: str = ""
    lasted: int = 0
    streak: int = 0
    notified: bool = False
    healthy: int = 0
    flaps: int = 0
    closed: int | None = None
    closed_about: tuple[str, ...] = ()
    alerts: tuple[Alert, ...] = ()
    decisions: tuple[DecisionView, ...] = ()

    @property
    def active(self) -> tuple[Alert, ...]:
        """Alerts of the open episode that are not resolved."""
        return tuple(alert for alert in self.alerts if alert.active)

    def to_json(self) -> Json:
        """The state as JSON."""
        value = {item.name: getattr(self, item.name) for item in fields(self)}
        alerts = [alert.to_json() for alert in self.alerts]
        decisions = [[decision.time, decision.text] for decision in self.decisions]
        return {**value, "closed_about": list(self.closed_about), "alerts": alerts, "decisions": decisions}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> PolicyState:
        """The state that `to_json` returned. Raises KeyError or TypeError for anything else."""
        known = {item.name: value[item.name] for item in fields(cls) if item.name in value}
        alerts = tuple(Alert.from_json(alert) for alert in value["alerts"])
        decisions = tuple(DecisionView(float(time), str(text)) for time, text in value["decisions"])
        columns = tuple(map(str, value["closed_about"]))
        return cls(**{**known, "alerts": alerts, "decisions": decisions, "closed_about": columns})


def advance(
    state: PolicyState, facts: WindowFacts, now: float, *, rearm: int = 2
) -> tuple[PolicyState, tuple[Notification, ...]]:
    """The state after a window, and whom to tell of it."""
    state, silent = _follow_silence(replace(state, windows=state.windows + 1), facts, now, rearm)
    present = _present(facts)
    state = _open_episode(state, present, rearm)
    if state.episode:
        needed = _patience(state, rearm)
        alerts = [_follow(alert, present, facts, needed, now) for alert in state.alerts]
        known = {alert.key for alert in alerts if alert.active}
        alerts += [_new_alert(state.episode, symptom) for key, symptom in present.items() if key not in known]
        lasted, streak = state.lasted + 1, state.streak + 1
        if not present:
            lasted, streak = state.lasted, 0 if facts.judged else state.streak
        state = replace(state, alerts=_inhibited(alerts, facts.rollout), lasted=lasted, streak=streak)
    state = _with_word(state, facts, now)
    state, notifications = _notify(state, facts, now, rearm)
    return _trimmed(state), (*silent, *notifications)


def expire(state: PolicyState, now: float) -> tuple[PolicyState, tuple[Notification, ...]]:
    """End acknowledgements and silences whose time is over: what still holds is told again, once."""
    ended = [alert for alert in state.active if alert.until is not None and alert.until <= now]
    if not ended:
        return state, ()
    firing = {alert.id: replace(alert, state="firing", until=None) for alert in ended}
    state = replace(state, alerts=tuple(firing.get(alert.id, alert) for alert in state.alerts))
    told = [alert for alert in firing.values() if alert.notifies]
    if not told:
        return state, ()
    until = max(alert.until or now for alert in ended)
    message = f"it still holds: {told[0].message}"
    notification = _notification(state, f"{state.episode}-again-{until:.0f}", "firing", told, message, now)
    return replace(_decided(state, now, message), notified=True), (notification,)


def acknowledge(
    state: PolicyState, target: str, kind: Literal["ack", "silence"], until: float, now: float
) -> tuple[PolicyState, str]:
    """Acknowledge or silence an alert, or all of an episode, until a time; returns a sentence. Raises UsageError."""
    chosen = [alert for alert in state.active if target in (alert.id, alert.episode)]
    if not chosen:
        ids = [alert.id for alert in state.active]
        near = closest_match(target, ids)
        hint = f"did you mean {near}?" if near else "mlkit monitor show"
        raise UsageError(f"no alert {target!r} is firing; there is {limited(ids) if ids else 'none'}", hint=hint)
    word: Literal["acked", "silenced"] = "acked" if kind == "ack" else "silenced"
    changed = {alert.id: replace(alert, state=word, until=until) for alert in chosen}
    state = replace(state, alerts=tuple(changed.get(alert.id, alert) for alert in state.alerts))
    names = limited(sorted({alert.column or alert.kind for alert in chosen}))
    sentence = f"{format_count(len(chosen), 'alert')} {'acknowledged' if kind == 'ack' else 'silenced'}: {names}"
    return _trimmed(_decided(state, now, sentence)), sentence


def note(state: PolicyState, text: str, now: float) -> PolicyState:
    """The state with a sentence in its log of decisions."""
    return _trimmed(_decided(state, now, text))


def _present(facts: WindowFacts) -> dict[tuple[str, str, str], Symptom]:
    """What is wrong in this window, by key; nothing that is known in a window without data."""
    present: dict[tuple[str, str, str], Symptom] = {}
    if facts.judged:
        for symptom in symptoms(facts.findings, facts.performance, facts.importance, facts.start):
            present.setdefault(symptom.key, symptom)
    return present


def _follow_silence(
    state: PolicyState, facts: WindowFacts, now: float, rearm: int
) -> tuple[PolicyState, tuple[Notification, ...]]:
    """The alert of windows without data: apart from episodes, which such windows neither begin nor end.

    One that comes back soon after the last is not told again.
    """
    silent = next((alert for alert in state.active if alert.kind == "no_data"), None)
    if facts.judged == (silent is None):
        return state, ()
    if silent is None:
        recent = (alert.resolved for alert in state.alerts if alert.kind == "no_data" and alert.resolved is not None)
        length = max(facts.end - facts.start, 1.0)
        told = facts.start - max(recent, default=float("-inf")) > MEMORY * rearm * length / MAX_JOINED
        episode = episode_id(state.service, state.digest, facts.start)
        text = facts.message or "no data"
        alert = Alert(
            alert_id(episode, "no_data", "", ""), "no_data", "", "", "warning", facts.start, text,
            episode=episode, told=told,
        )  # fmt: skip
        state = replace(state, alerts=(*state.alerts, alert))
        return state, (_silence_notification(alert, "firing", text, now),) if told else ()
    over = replace(silent, state="resolved", resolved=now, until=None)
    state = replace(state, alerts=tuple(over if alert.id == silent.id else alert for alert in state.alerts))
    muted = silent.state == "silenced" or not silent.told
    return state, () if muted else (_silence_notification(over, "resolved", "there are data again", now),)


def _silence_notification(alert: Alert, event: Literal["firing", "resolved"], text: str, now: float) -> Notification:
    return Notification(f"{alert.episode}-{event}", event, alert.episode, alert.severity, text, now, (alert.id,))


def _patience(state: PolicyState, rearm: int) -> int:
    """Windows in a row that something must last before it is told where it came back, and be gone before it is over."""
    return int(rearm * PATIENCE**state.flaps)


def _about(key: tuple[str, str, str]) -> str:
    """What a symptom or an alert is about, as one text."""
    return "\n".join(key)


def _open_episode(state: PolicyState, present: Mapping[tuple[str, str, str], Symptom], rearm: int) -> PolicyState:
    """Begin an episode with the first thing that is wrong; one that comes back soon is remembered as such."""
    if state.episode or not present:
        return state
    since = min(symptom.since for symptom in present.values())
    about = {_about(key) for key in present}
    recent = state.closed is not None and state.windows - state.closed <= MEMORY * rearm
    flaps = min(state.flaps + 1, MAX_FLAPS) if recent and about & set(state.closed_about) else 0
    return replace(
        state, episode=episode_id(state.service, state.digest, since), lasted=0, streak=0, notified=False, flaps=flaps
    )


def _follow(
    alert: Alert,
    present: Mapping[tuple[str, str, str], Symptom],
    facts: WindowFacts,
    needed: int,
    now: float,
) -> Alert:
    """An alert after the window: still there, quiet for another window, or resolved."""
    if not alert.active or alert.kind == "no_data":
        return alert
    symptom = present.get(alert.key)
    finding = _finding_of(alert, facts)
    if symptom is not None:
        severity = min(alert.severity, symptom.severity, key=SEVERITIES.index)
        inside = finding is not None and finding.high is not None and finding.high <= finding.margin
        quiet = alert.quiet + 1 if inside else 0
        return replace(alert, severity=severity, message=symptom.message, quiet=quiet)
    if not facts.judged or not _is_quiet(alert, finding, facts):
        return alert
    quiet = alert.quiet + 1
    if quiet < needed:
        return replace(alert, quiet=quiet)
    until = alert.until if alert.state == "silenced" else None
    return replace(alert, state="resolved", quiet=quiet, until=until, resolved=now, inhibited_by="")


def _finding_of(alert: Alert, facts: WindowFacts) -> ColumnFinding | None:
    """The window's finding about what an alert is about."""
    key = alert.key
    matching = (item for item in facts.findings if (kind_of(item), column_of(item), item.segment) == key)
    return next(matching, None)


def _is_quiet(alert: Alert, finding: ColumnFinding | None, facts: WindowFacts) -> bool:
    """Whether a judged window says that an alert's matter is in order: a value that is not known says nothing."""
    if alert.kind in MEASURED:
        return any(
            metric.metric == alert.column
            and metric.kind == alert.segment
            and metric.verdict != Outcome.FAILED
            and metric.value is not None
            for metric in facts.performance
        )
    if finding is None:
        return alert.kind == "schema"  # its reason is forgotten: nothing was refused for long
    return finding.value is not None and finding.evidence < SUSPECT_EVIDENCE


def _new_alert(episode: str, symptom: Symptom) -> Alert:
    return Alert(
        alert_id(episode, *symptom.key), symptom.kind, symptom.column, symptom.segment, symptom.severity, symptom.since,
        symptom.message, episode=episode,
    )  # fmt: skip


def _inhibited(alerts: Sequence[Alert], rollout: str) -> tuple[Alert, ...]:
    return tuple(
        replace(alert, inhibited_by=inhibitor(alert, alerts, rollout)) if alert.active else alert for alert in alerts
    )


def _with_word(state: PolicyState, facts: WindowFacts, now: float) -> PolicyState:
    """The state with its word; a change is a line in the log of decisions."""
    word, reason = _word(state, facts)
    healthy = state.healthy + 1 if word == "HEALTHY" else state.healthy if word == "NO_DATA" else 0
    state = replace(state, healthy=healthy)
    if word == state.word and state.since:
        return state
    state = replace(state, word=word, since=facts.start)
    return _decided(state, now, f"{word}: {reason}")


def _word(state: PolicyState, facts: WindowFacts) -> tuple[StateWord, str]:
    if not facts.judged:
        kept = [alert for alert in state.active if alert.kind != "no_data"]
        stay = f"; {format_count(len(kept), 'alert')} stay{'s' if len(kept) == 1 else ''}" if kept else ""
        return "NO_DATA", f"{facts.message or 'no data'}{stay}"
    wrong = [alert for alert in state.active if alert.kind != "no_data"]
    if wrong:
        worst = sorted(wrong, key=lambda alert: (bool(alert.inhibited_by), SEVERITIES.index(alert.severity)))
        more = f"; and {format_count(len(wrong) - 1, 'other alert')}" if len(wrong) > 1 else ""
        return "DRIFTING", f"{worst[0].message}{more}"
    if facts.refused >= 0.01:
        return "SUSPECT", f"{100 * facts.refused:.3g} % of the requests were refused"
    if facts.learning:
        return "LEARNING", facts.learning
    growing = max(facts.findings, key=lambda finding: finding.evidence, default=None)
    if growing is not None and growing.evidence >= SUSPECT_EVIDENCE:
        return "SUSPECT", growing.message
    if facts.blind:
        return "BLIND", facts.blind
    return "HEALTHY", facts.message or "everything is within its margin"


def _notify(
    state: PolicyState, facts: WindowFacts, now: float, rearm: int
) -> tuple[PolicyState, tuple[Notification, ...]]:
    """Tell that an episode began, or that it is over; each once."""
    if not state.episode:
        return state, ()
    own = [alert for alert in state.alerts if alert.episode == state.episode]
    if not any(alert.active for alert in own):
        sent: tuple[Notification, ...] = ()
        if state.notified and not all(alert.until is not None for alert in own):
            message = f"over after {format_count(state.lasted, 'window')}: {_columns_text(own)}"
            sent = (_notification(state, f"{state.episode}-resolved", "resolved", own, message, now),)
            state = _decided(state, now, message)
        about = tuple(sorted({_about(alert.key) for alert in own}))
        return replace(state, episode="", notified=False, closed=state.windows, closed_about=about), sent
    told = [alert for alert in own if alert.notifies]
    confirmed = not state.flaps or state.streak >= _patience(state, rearm)
    if state.notified or not told or not confirmed:
        return state, ()
    worst = min(told, key=lambda alert: SEVERITIES.index(alert.severity))
    more = f"; and {format_count(len(told) - 1, 'other alert')}" if len(told) > 1 else ""
    notification = _notification(state, f"{state.episode}-firing", "firing", told, f"{worst.message}{more}", now)
    return replace(_decided(state, now, f"alert raised: {worst.message}{more}"), notified=True), (notification,)


def _columns_text(alerts: Sequence[Alert]) -> str:
    return limited(sorted({alert.column or alert.kind for alert in alerts}))


def _notification(
    state: PolicyState, key: str, event: Literal["firing", "resolved"], alerts: Sequence[Alert], text: str, now: float
) -> Notification:
    severity = cast(Severity, min((alert.severity for alert in alerts), key=SEVERITIES.index, default="warning"))
    columns = tuple(sorted({alert.column for alert in alerts if alert.column}))
    return Notification(
        key, event, state.episode, severity, text, now, tuple(alert.id for alert in alerts), columns[:50]
    )


def _decided(state: PolicyState, now: float, text: str) -> PolicyState:
    return replace(state, decisions=(*state.decisions, DecisionView(now, text)))


def _trimmed(state: PolicyState) -> PolicyState:
    """The state with the newest decisions, and with resolved alerts up to a number."""
    alerts = state.alerts
    if len(alerts) > KEPT_ALERTS:
        past = [alert for alert in alerts if not alert.active][-KEPT_ALERTS:]
        alerts = (*past, *(alert for alert in alerts if alert.active))
    return replace(state, alerts=alerts, decisions=state.decisions[-KEPT_DECISIONS:])
