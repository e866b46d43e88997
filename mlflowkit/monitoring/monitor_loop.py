"""Watch a service: judge its closed windows, persist what follows, then act on it.

One thread a service in the process that controls the rollouts, while that holds the lease. What a window leads to is
durable before anybody is told of it, and telling is idempotent: a monitor that is killed at any point counts no row
twice and sends nothing twice. An error is told once, in the log and in the record that readers see; the loop goes on.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

from mlflowkit.errors import MlkitError, ServiceError, UsageError
from mlflowkit.judging.shift.counts import WindowCounts
from mlflowkit.judging.shift.reference import EVIDENCE, Reference
from mlflowkit.monitoring import alert_commands, monitor_policy, monitor_state
from mlflowkit.monitoring.alert_commands import AlertCommand
from mlflowkit.monitoring.monitor_policy import Notification
from mlflowkit.monitoring.monitor_settings import SETTINGS, MonitorSettings, read_settings
from mlflowkit.monitoring.monitor_state import MonitorState
from mlflowkit.monitoring.monitor_view import VIEW, MonitorView, PerformanceView, RetrainView
from mlflowkit.monitoring.monitor_windows import ReadWindows, WindowSource
from mlflowkit.monitoring.view_builder import build_view, utc
from mlflowkit.monitoring.window_step import StepInputs, step
from mlflowkit.rollout import commands, policy, webhooks
from mlflowkit.rollout.commands import CommandReply
from mlflowkit.rollout.webhooks import OutgoingEvent
from mlflowkit.service_state.controller_lease import ControllerLease, LeaseLostError
from mlflowkit.service_state.records import ServiceFiles, read_json
from mlflowkit.system import failpoint
from mlflowkit.values import Variant

POLL_SECONDS = 0.5
"""Interval between looks at the clock, the settings and commands."""
RETRY_SECONDS = 2.0
VIEW_SECONDS = 10.0
"""Longest time between two writes of the record for readers, who tell by it that the monitor is at work."""
RETRAIN_SECONDS = 2.0
"""Interval between looks at what retraining came to."""
LOOK_SECONDS = 5.0
"""Interval between counts of requests for burn rates."""
DEFAULT_REARM = 2
FOREIGN = "no retraining: the state folder was copied or moved here; mlkit run RECIPE allows it"
"""A recipe that another folder's record names is not run."""
_log = logging.getLogger("mlflowkit.monitoring")


@dataclass(frozen=True, slots=True)
class RetrainStep:
    """What retraining came to in a tick: its view, and sentences for the log of decisions; ``asks_person`` tells why a
    person has to look, "" otherwise."""

    view: RetrainView
    sentences: tuple[str, ...] = ()
    asks_person: str = ""


RunningRuns = Callable[[str], str]
"""The runs of a recipe, by its name, that are under way, in words; "" for none."""


class RetrainHook(Protocol):
    """Retraining of one service, called after each tick of its monitor. May raise MlkitError."""

    def __call__(self, view: MonitorView, live: WindowCounts | None) -> RetrainStep: ...


class PerformanceLook(Protocol):
    """What is known of a version's performance; called in each tick, which counts requests. Does not raise MlkitError.

    ``windows`` are None between windows: then only requests are counted and judged.
    """

    def __call__(
        self, settings: MonitorSettings, version: Variant, windows: Sequence[WindowCounts] | None, now: float
    ) -> Sequence[PerformanceView]: ...


@dataclass(frozen=True, slots=True)
class MonitorDeps:
    """A monitor's effects on the outside, replaceable in tests.

    read         the reader of a service's panes
    performance  makes the look at the performance of a service's versions
    retrain      makes the hook of a service, given what prevents that another controller takes over meanwhile
    receivers    are given each new view: they push alerts and copies elsewhere, and do not raise
    """

    read: Callable[[ServiceFiles], ReadWindows]
    performance: Callable[[ServiceFiles], PerformanceLook] | None = None
    retrain: Callable[[ServiceFiles, MonitorSettings, ControllerLease], RetrainHook | None] = (
        lambda files, settings, lease: None
    )
    receivers: Sequence[Callable[[ServiceFiles, MonitorSettings, MonitorView], None]] = ()
    clock: Callable[[], float] = time.time


def pane_reader(files: ServiceFiles) -> ReadWindows:
    """The reader of the panes that a service's observers write."""
    from mlflowkit.serving.observer.panes import read_windows

    folder = files.folder / "profiles"
    return lambda version, since, until: read_windows(folder, version, since, until)


@dataclass
class MonitorLoop:
    """Monitors one service. `tick` is one round; it may raise MlkitError and can then be called again."""

    files: ServiceFiles
    lease: ControllerLease
    deps: MonitorDeps
    _settings: MonitorSettings | None = None
    _settings_version: str | None = None
    _retrain: RetrainHook | None = None
    _state: MonitorState | None = None
    _reference: Reference = field(default_factory=Reference)
    _view: MonitorView | None = None
    _retrain_view: RetrainView = field(default_factory=RetrainView)
    _performance: Sequence[PerformanceView] = ()
    _look: PerformanceLook | None = None
    _written: float = 0.0
    _looked: float = 0.0
    _fault: str = ""

    def run(self, ending: threading.Event, lost: threading.Event) -> None:
        """Repeat `tick` until either event is set; an error is told once and retried."""
        while not ending.is_set() and not lost.is_set():
            ending.wait(self._tick_logged(lost))

    def _tick_logged(self, lost: threading.Event) -> float:
        """Run `tick`, log a new error, and return the seconds until the next one."""
        try:
            self.tick()
        except LeaseLostError as error:
            _log.warning("%s", error.message)
            lost.set()
        except MlkitError as error:
            self._tell_fault(error.message)
        except Exception as error:  # noqa: BLE001 - a bug here must not end the thread
            if self._fault != f"{type(error).__name__}: {error}":
                _log.exception("%s: the monitor failed and continues", self.files.service)
            self._tell_fault(f"{type(error).__name__}: {error}", logged=True)
        else:
            self._fault = ""
            return POLL_SECONDS
        return RETRY_SECONDS

    def _tell_fault(self, message: str, *, logged: bool = False) -> None:
        """Tell an error once, in the log and in the record for readers."""
        if message == self._fault:
            return
        if not logged:
            _log.error("%s: %s", self.files.service, message)
        self._fault = message
        try:
            view = self._view
            if view is not None:
                self._write_view(replace(view, fault=message, updated=self.deps.clock()))
        except MlkitError:  # of the same full disk
            pass

    # --------------------------------------------------------------------------------------------------- one round

    def tick(self) -> None:
        """Take changed settings, carry out commands, close what windows are due, and act on what follows."""
        table = self.files.table()
        settings = self._current_settings()
        if settings is None or table is None:
            return
        now, champion = self.deps.clock(), table.champion
        state = self._current_state(settings, champion)
        before = state
        if state.todo:  # decided before this process was killed, or before the disk was full
            state = self._act(state)
        state, notifications = _expired(state, now)
        if notifications:
            state = self._act(self._save(replace(state, todo=(*state.todo, *notifications))))
        state = self._take_commands(state, now)
        state = self._close_windows(state, settings, champion, now)
        period = VIEW_SECONDS if self._retrain is None else RETRAIN_SECONDS
        if state is not before or self._view is None or not 0 <= now - self._written < period:
            state = self._follow_up(state, settings, now)
        self._state = state

    def _current_settings(self) -> MonitorSettings | None:
        """The service's settings, read when they changed."""
        version = next((entry.version for entry in self.files.list(SETTINGS)), None)
        if version != self._settings_version:
            self._settings = read_settings(self.files)
            self._settings_version, self._state, self._view = version, None, None
            if self._settings is not None:
                self._retrain = self.deps.retrain(self.files, self._settings, self.lease)
        return self._settings

    def _current_state(self, settings: MonitorSettings, champion: Variant) -> MonitorState:
        """The state of the champion; that of another version is read when it becomes champion."""
        state = self._state
        if state is None or state.version != champion.version or state.policy.digest != champion.digest:
            state = monitor_state.read_state(self.files, champion, settings.monitor)
            self._reference = read_reference(Path(champion.bundle))
            self._performance, self._view = (), None
            monitor_state.sweep_states(self.files, champion.version)
            self._state = state
        return state

    def _inputs(self, settings: MonitorSettings) -> StepInputs:
        running = commands.running_rollout(self.files)
        rollout = "" if running is None else f"a rollout runs ({policy.describe(running)})"
        rearm = DEFAULT_REARM if settings.retrain is None else settings.retrain.rearm
        return StepInputs(settings.monitor, self._reference, rearm, self._performance, rollout)

    def _close_windows(
        self, state: MonitorState, settings: MonitorSettings, champion: Variant, now: float
    ) -> MonitorState:
        """The state after all windows that are due, each saved before its notifications are queued."""
        section = settings.monitor
        source = WindowSource(
            self.deps.read(self.files), champion.version, section.window_seconds, section.grace_seconds
        )
        cursor = source.begin(state.cursor)
        if cursor is not state.cursor:
            state = replace(state, cursor=cursor)
        if self._look is None and self.deps.performance is not None:
            self._look = self.deps.performance(self.files)
        if self._look is not None and now - self._looked >= LOOK_SECONDS:
            looked_before, self._looked = self._looked, now
            seen = self._look(settings, champion, None if looked_before else state.outputs, now)
            self._performance = replace_kinds(self._performance, seen)
        closed = False
        for counts in source.windows(state.cursor, now):
            self.lease.check()
            if not closed:
                if self._look is not None:
                    self._performance = tuple(self._look(settings, champion, state.outputs, now))
                state, closed = replace(state, windows=source.recounted(state.windows)), True
            state = self._save(step(state, counts, self._inputs(settings), now))
            state = self._act(state)
        return state

    def _save(self, state: MonitorState) -> MonitorState:
        """Persist a state and what is to be done."""
        failpoint.hit("monitor.decided")
        with self.lease.guard():
            monitor_state.write_state(self.files, state)
        failpoint.hit("monitor.saved")
        self._state = state
        return state

    def _act(self, state: MonitorState) -> MonitorState:
        """Queue the notifications of a saved state, and persist that they are."""
        if not state.todo:
            return state
        for notification in state.todo:
            _log.info("%s: %s: %s", self.files.service, notification.event, notification.message)
            with self.lease.guard():
                webhooks.enqueue_event(self.files, event_of(self.files.service, state.version, notification))
            failpoint.hit("monitor.acted")
        with self.lease.guard():
            state = replace(state, todo=())
            monitor_state.write_state(self.files, state)
        failpoint.hit("monitor.cleared")
        self._state = state
        return state

    def _take_commands(self, state: MonitorState, now: float) -> MonitorState:
        """Carry acknowledgements and silences out, and reply."""
        for command in alert_commands.pending(self.files):
            state, reply = _carry_out(state, command, now)
            if reply.ok:
                state = self._save(state)
            with self.lease.guard():
                commands.write_reply(self.files, reply)
                alert_commands.remove(self.files, command)
        return state

    def _follow_up(self, state: MonitorState, settings: MonitorSettings, now: float) -> MonitorState:
        """Write the record for readers, and give it to retraining and to receivers."""
        view = self._build(state, settings, now)
        if self._retrain is not None:
            outcome = self._retrain(view, state.live)
            self._retrain_view = outcome.view
            after = _with_outcome(state, outcome, now)
            if after is not state:
                state = self._act(self._save(after))
            view = self._build(state, settings, now)
        self._write_view(view)
        for receive in self.deps.receivers:
            receive(self.files, settings, view)
        return state

    def _build(self, state: MonitorState, settings: MonitorSettings, now: float) -> MonitorView:
        late = "" if state.cursor.next is None or state.cursor.next <= now + settings.monitor.window_seconds else (
            f"the clock was set back: windows up to {utc(state.cursor.next)} were judged before"
        )  # fmt: skip
        return build_view(
            state,
            self._inputs(settings),
            now,
            service=self.files.service,
            retrain=self._retrain_view,
            performance=self._performance,
            fault=late,
        )

    def _write_view(self, view: MonitorView) -> None:
        with self.lease.guard():
            content = json.dumps(view.to_json(), separators=(",", ":"), allow_nan=False)
            self.files.write_bytes(VIEW, content.encode(), durable=False)
        self._view, self._written = view, view.updated


def _expired(state: MonitorState, now: float) -> tuple[MonitorState, tuple[Notification, ...]]:
    after, notifications = monitor_policy.expire(state.policy, now)
    return (state, ()) if after is state.policy else (replace(state, policy=after), notifications)


def _with_outcome(state: MonitorState, outcome: RetrainStep, now: float) -> MonitorState:
    """The state with what retraining came to; a person is asked once an episode."""
    for sentence in outcome.sentences:
        state = replace(state, policy=monitor_policy.note(state.policy, sentence, now))
    episode = outcome.view.episode
    if not outcome.asks_person or state.asked == episode:
        return state
    key, message = f"{episode}-person", f"a person has to look at retraining: {outcome.asks_person}"
    return replace(
        state,
        asked=episode,
        todo=(*state.todo, Notification(key, "firing", episode, "critical", message, now)),
        policy=monitor_policy.note(state.policy, message, now),
    )


def _carry_out(state: MonitorState, command: AlertCommand, now: float) -> tuple[MonitorState, CommandReply]:
    """The state after a command, and the reply to it."""
    try:
        after, sentence = monitor_policy.acknowledge(state.policy, command.target, command.kind, command.until, now)
    except UsageError as error:
        return state, CommandReply(command.id, False, error.message, error.hint, now)
    message = f"{sentence}, until {utc(command.until)}"
    return replace(state, policy=after), CommandReply(command.id, True, message, time=now)


def event_of(service: str, version: str, notification: Notification) -> OutgoingEvent:
    """A notification as an event for the webhooks of the recipe's ``monitor.alerts``."""
    word = "RESOLVED" if notification.event == "resolved" else notification.severity.upper()
    body = {
        **asdict(notification),
        "service": service,
        "version": version,
        "text": f"[{word}] {service}: {notification.message}",
    }
    del body["key"]
    return OutgoingEvent(
        notification.key, f"alert.{notification.event}", notification.time, body, SETTINGS,
        ("monitor", "alerts", "webhooks"),
    )  # fmt: skip


def replace_kinds(known: Sequence[PerformanceView], seen: Sequence[PerformanceView]) -> tuple[PerformanceView, ...]:
    """What is known of performance, with what was seen now in the place of its kinds."""
    kinds = {item.kind for item in seen}
    return (*(item for item in known if item.kind not in kinds), *seen)


def performance_look(files: ServiceFiles) -> PerformanceLook:
    """The look at a service's performance by its bundle, its labels and its gateways' counts."""
    from mlflowkit.monitoring.monitor_performance import PerformanceMonitoring

    monitoring = PerformanceMonitoring(files)

    def look(
        settings: MonitorSettings, version: Variant, windows: Sequence[WindowCounts] | None, now: float
    ) -> Sequence[PerformanceView]:
        section = settings.monitor
        if section.latency is not None:
            monitoring.look_at_requests(version.version, now)
        if windows is None:
            findings = monitoring.assess_requests(section, version.version, now)
        else:
            findings = monitoring.assess(section, version.version, Path(version.bundle), windows, now)
        return [
            PerformanceView(
                item.metric,
                item.kind,
                item.value,
                item.low,
                item.high,
                item.bound,
                str(item.outcome),
                item.trust,
                item.labelled_share,
                item.message,
                item.since if item.since is not None else item.start,
                item.reference,
            )
            for item in findings
        ]

    return look


def retrain_hook(
    runs: RunningRuns, files: ServiceFiles, settings: MonitorSettings, lease: ControllerLease
) -> RetrainHook | None:
    """Retraining and probation of a service; None where its recipe asks for neither."""
    if settings.retrain is None and settings.monitor.rollback is None:
        return None
    from mlflowkit.monitoring.retrain.service_retrain import ServiceRetrain

    trusted = settings.retrain is None or settings.written_in(files.state)
    own = settings if trusted else replace(settings, retrain=None)
    retrain = ServiceRetrain(files, own, guard=lease.guard, runs=lambda: runs(settings.name))

    def hook(view: MonitorView, live: WindowCounts | None) -> RetrainStep:
        outcome = retrain.tick(view, live)
        retrained = outcome.view if trusted else replace(outcome.view, reason=FOREIGN)
        return RetrainStep(retrained, outcome.sentences, outcome.asks_person)

    return hook


def read_reference(bundle: Path) -> Reference:
    """The monitoring reference of a bundle; an empty one where an earlier release packaged it, or it cannot be read."""
    path = bundle / EVIDENCE
    try:
        value = read_json(path)
        return Reference() if value is None else Reference.from_json(value)
    except (ServiceError, KeyError, TypeError, ValueError, AttributeError) as error:
        _log.error("%s cannot be read, so that no column is judged: %s", path, error)
        return Reference()
