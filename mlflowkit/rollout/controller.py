"""Execute rollouts: collect evidence, let the policy decide, persist the decision, then act on it.

One process controls the services of a state folder (see `mlflowkit.service_state.controller_lease`), each in its own
thread, so that a version that takes minutes to load delays no other service. A decision and its pending actions are
durable before any of them is executed, and every action is idempotent: a controller that was killed at any point
resumes where it stopped.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.judging.online import judge as online
from mlflowkit.judging.online.judge import MetricResult
from mlflowkit.rollout import commands, conditions, feedback_loop, incidents, policy, requests, webhooks
from mlflowkit.rollout import state as states
from mlflowkit.rollout.commands import CommandReply, OperatorCommand
from mlflowkit.rollout.evidence_reader import EvidenceReader, PrometheusPoller
from mlflowkit.rollout.policy import PolicyCommand
from mlflowkit.rollout.requests import REQUEST
from mlflowkit.rollout.state import Action, Notify, Promote, Request, RollBack, RolloutState, SavedRollout, SetTable
from mlflowkit.service_state import controller_lease, version_history
from mlflowkit.service_state.controller_lease import ControllerLease, LeaseLostError
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system import failpoint
from mlflowkit.values import Json, RoutingTable, Variant

ANALYSIS_SECONDS = 0.2
"""Interval between observations of a running rollout."""
IDLE_SECONDS = 0.2
"""Interval between polls for a request or a command."""
SAVE_SECONDS = 1.0
"""Interval between writes of a state without a new decision."""
RETRY_SECONDS = 1.0
SERVICES_SECONDS = 0.5
_log = logging.getLogger("mlflowkit.rollout")

PromotedCallback = Callable[[str, Variant, Mapping[str, str]], None]
"""Called with (service, new champion, its origin) after the table changed, perhaps twice; moves the aliases."""
RejectedCallback = Callable[[str, Variant, Mapping[str, str]], None]
"""Called with (service, rejected version, origin) after a rollback, perhaps twice; takes its alias."""
ServiceWatcher = Callable[[ServiceFiles, ControllerLease, threading.Event, threading.Event], None]
"""Called with (files, lease, ending, lost); runs until either event is set, sets ``lost`` when the lease is."""
Judge = Callable[..., tuple[tuple[MetricResult, ...], Mapping[str, Json]]]


class OvertakenError(ServiceError):
    """Another writer published a table while this controller was publishing one."""


class Publisher(Protocol):
    """The part of a Platform that the controller uses."""

    def publish(self, table: RoutingTable) -> None: ...


@dataclass(frozen=True, slots=True)
class ControllerDeps:
    """The controller's effects on the outside, replaceable in tests."""

    platform: Publisher
    promoted: PromotedCallback
    rejected: RejectedCallback = lambda service, version, origin: None
    judge: Judge = online.judge
    clock: Callable[[], float] = time.time
    watchers: Mapping[str, ServiceWatcher] = field(default_factory=dict)
    """By name; each runs in a thread of its own for every service, besides that of its rollouts."""


class RolloutController:
    """Controls the rollouts of all services in ``state`` while it holds the lease."""

    def __init__(self, state: Path, deps: ControllerDeps) -> None:
        self._state = state
        self._deps = deps

    def run(self, stop: threading.Event) -> None:
        """Acquire the lease when it is free and control until ``stop`` is set or another controller takes over."""
        while not stop.is_set() and self._state.is_dir():
            lease = controller_lease.acquire(self._state, self._deps.clock)
            if lease is None:
                stop.wait(SERVICES_SECONDS)
                continue
            _log.info("controlling the rollouts of %s under fence %d", self._state, lease.fence)
            lost = threading.Event()
            try:
                with webhooks.WebhookSender(self._state, self._deps.clock), _heartbeat(lease, lost):
                    self._control(lease, stop, lost)
            finally:
                with contextlib.suppress(ServiceError):  # full disk: the lease frees itself when this process ends
                    lease.release()

    def _control(self, lease: ControllerLease, stop: threading.Event, lost: threading.Event) -> None:
        """Run two threads per service, also for services that appear later, until stopped."""
        ending = threading.Event()
        threads: dict[str, threading.Thread] = {}

        def ensure_running(name: str, target: Callable[[], None]) -> None:
            if name not in threads or not threads[name].is_alive():
                threads[name] = threading.Thread(target=target, name=name, daemon=True)
                threads[name].start()

        try:
            while not stop.is_set() and not lost.is_set() and self._state.is_dir():
                for files in ServiceFiles.all(self._state):
                    controller = ServiceController(files, lease, self._deps)
                    ensure_running(f"rollout-{files.service}", lambda c=controller: c.run(ending, lost))  # type: ignore[misc]
                    ensure_running(
                        f"feedback-{files.service}",
                        lambda f=files: feedback_loop.run(f, ending, lost),  # type: ignore[misc]
                    )
                    for name, watch in self._deps.watchers.items():
                        ensure_running(
                            f"{name}-{files.service}",
                            lambda w=watch, f=files: w(f, lease, ending, lost),  # type: ignore[misc]
                        )
                stop.wait(SERVICES_SECONDS)
        finally:
            ending.set()
            for thread in threads.values():
                thread.join(10.0)


@dataclass
class ServiceController:
    """Controls one service. `step` is one round; it may raise MlkitError and can then be called again."""

    files: ServiceFiles
    lease: ControllerLease
    deps: ControllerDeps
    saved: SavedRollout | None = None
    _loaded: bool = False
    _evidence: EvidenceReader = field(init=False)
    _prometheus: PrometheusPoller = field(default_factory=PrometheusPoller)
    _written: float = 0.0
    _measured: tuple[tuple[float, ...], ...] = ()
    _due: bool = False
    """Whether there is new evidence whose verdicts were not saved yet."""
    _last_error: str = ""

    def __post_init__(self) -> None:
        self._evidence = EvidenceReader(self.files)

    def run(self, ending: threading.Event, lost: threading.Event) -> None:
        """Repeat `step` until either event is set; errors are logged and retried."""
        while not ending.is_set() and not lost.is_set():
            ending.wait(self._step_logged(lost))

    def _step_logged(self, lost: threading.Event) -> float:
        """Run `step`, log its errors, and return the seconds until the next one."""
        try:
            running = self.step()
        except LeaseLostError as error:
            _log.warning("%s", error.message)
            lost.set()
        except MlkitError as error:
            if error.message != self._last_error:
                _log.error("%s: %s (%s)", self.files.service, error.message, error.hint)
            self._last_error = error.message
        except Exception:  # noqa: BLE001 - a bug in one service must not stop the others
            _log.exception("%s: the controller failed and continues", self.files.service)
        else:
            self._last_error = ""
            return ANALYSIS_SECONDS if running else IDLE_SECONDS
        return RETRY_SECONDS

    def step(self) -> bool:
        """Process pending actions, a request, a command and an observation. Returns whether a rollout is running."""
        if not self._loaded:
            self.saved, self._loaded = states.read(self.files), True
        self.lease.check()
        if self.saved is None:
            self._recover_champion()
        elif self.saved.todo:
            self._execute_pending()
        self._take_request()
        state = self._running_state()
        command = self._next_command(state)
        if state is None:
            if command is not None:
                self._handle_idle_command(command)
            return self._running_state() is not None
        self._observe(state, command)
        return True

    def _next_command(self, state: RolloutState | None) -> OperatorCommand | None:
        """The next command that can be executed now. A command for an ended rollout is rejected."""
        command = next(iter(commands.pending(self.files)), None)
        if command is None or (command.variant and state is None):
            return command
        if command.command == "shadow" and state is not None:
            self._reply(command.id, False, f"a rollout is running: {policy.describe(state)}", "mlkit rollout status")
            return None
        if not command.variant and command.experiment != ("" if state is None else state.experiment):
            ended = "" if self.saved is None else f": {policy.describe(self.saved.state)}"
            message = f"the rollout of this command is over{ended}" if command.experiment else "a rollout began"
            self._reply(command.id, False, message, "mlkit rollout status")
            return None
        early = state is not None and state.phase in ("pending", "preparing")
        waits = state is not None and state.phase not in states.LIVE_PHASES
        return None if waits and not (early and command.command in ("abort", "rollback")) else command

    def _recover_champion(self) -> None:
        """Route all traffic to the champion if a table has a challenger but no rollout record exists to judge it."""
        table = self.files.table()
        if table is None or not table.fence or all(variant.role != "challenger" for variant in table.variants):
            return  # a table without a fence was not published by a controller
        _log.error("%s: rollout %s has no record: all traffic to the champion", self.files.service, table.experiment)
        shadows = tuple(variant for variant in table.variants if variant.role == "shadow")
        champion = replace(table.champion, weight=1.0)
        self._publish(replace(table, epoch=table.epoch + 1, variants=(champion, *shadows), experiment="", salt=""))

    # ------------------------------------------------------------------------------------------------- observation

    def _observe(self, state: RolloutState, operator: OperatorCommand | None) -> None:
        """Advance a running rollout by one observation, and execute the decision."""
        now = self.deps.clock()
        command = None
        if operator is not None and operator.variant:
            command = PolicyCommand("remove", operator.reason, variant=operator.variant)
        elif operator is not None and operator.command != "shadow":  # those wait, see _next_command
            command = PolicyCommand(operator.command, operator.reason, operator.full)
        table = self.files.table()
        if table is not None and table.epoch >= state.epoch and table.experiment != state.experiment and state.epochs:
            command = PolicyCommand("overtaken", f"table {table.epoch} of {state.service} was published elsewhere")
        if state.phase in states.LIVE_PHASES:
            state, findings, counts = self._judge(state)
            state, actions = policy.advance(state, findings, counts, command, now)
        else:
            state, actions = policy.advance(state, command=command, now=now)
        self._save(state, actions)
        self._due = False
        if operator is not None:
            message = policy.describe(state) + (f": {state.reason}" if state.reason else "")
            self._reply(operator.id, True, message)
        self._execute_pending()

    def _judge(self, state: RolloutState) -> tuple[RolloutState, Sequence[MetricResult], states.StepCounts]:
        """The state with the judges' traces, their results, and the counts of the step."""
        evidence, changed = self._evidence.read(state.experiment)
        measured = self._prometheus.values(state)
        self._due = self._due or changed or measured != self._measured
        self._measured = measured
        findings: Sequence[MetricResult] = state.findings
        if self._due or not findings:
            findings, traces = self.deps.judge(
                conditions.metric_specs(state, measured),
                evidence,
                champion=state.champion.name,
                challenger=state.candidate.name,
                epochs=state.epochs,
                level=state.plan.level,
                traces=state.traces,
            )
            state = replace(state, traces=traces)
        return state, findings, policy.count_requests(state, evidence)

    # ---------------------------------------------------------------------------------------- requests and commands

    def _take_request(self) -> None:
        """Begin the requested rollout or reject the request."""
        if not self.files.exists(REQUEST):
            return
        with self.files.lock("request"):
            try:
                value = self.files.read_json(REQUEST)
                request = None if value is None else Request.from_json(value)
            except (ServiceError, KeyError, TypeError, ValueError) as error:
                _log.error("%s is damaged and was removed: %s", self.files.location(REQUEST), error)
                self.files.delete(REQUEST)
                return
            if request is not None and self._begin(request):
                self.files.delete(REQUEST)

    def _begin(self, request: Request) -> bool:
        """Begin a rollout or reject it, and reply; False while the service has no table yet."""
        now = self.deps.clock()
        reply = CommandReply(request.id, True, f"{request.plan.strategy} of version {request.candidate.version} begins")
        if self.saved is None or self.saved.state.experiment != request.id:
            try:
                rejection = requests.reason_to_reject(self.files, request, now)
            except ServiceError as error:
                rejection = CommandReply(request.id, False, error.message, error.hint)
            table = self.files.table()
            if rejection is None and table is None:
                return False
            if rejection is None and table is not None:
                self._remove_old_evidence(table)
                self._save(policy.begin(request, table, now=now, fence=self.lease.fence), ())
                failpoint.hit("rollout.begun")
            reply = rejection or reply
        commands.write_reply(self.files, replace(reply, time=now))
        return True

    def _handle_idle_command(self, command: OperatorCommand) -> None:
        """Without a running rollout: roll back to the previous champion, add a lasting shadow, or remove one."""
        now, table = self.deps.clock(), self.files.table()
        if self.saved is not None and self.saved.state.experiment == f"back-{command.id}":
            self._reply(command.id, True, f"back to version {self.saved.state.champion.version}")
            return  # executed, and killed before the reply
        if command.command == "shadow":
            self._add_shadow(command, table)
            return
        if table is not None and command.variant in {variant.name for variant in table.variants}:
            variants = tuple(variant for variant in table.variants if variant.name != command.variant)
            self._publish(replace(table, epoch=table.epoch + 1, variants=variants))
            self._reply(command.id, True, f"{command.variant} is gone")
            return
        previous = None if table is None else version_history.previous_champion(self.files, table.champion.digest)
        if command.command != "rollback" or table is None or previous is None:
            message = "no rollout is running" if command.command != "rollback" else "no earlier version is known"
            self._reply(command.id, False, message, "mlkit rollout status")
            return
        state, actions = policy.roll_back_to(
            table, previous.variant, id=f"back-{command.id}", reason=command.reason, now=now, origin=previous.origin,
            by=command.by, cause=command.cause,
        )  # fmt: skip
        self._save(state, actions)
        self._reply(command.id, True, f"back to version {previous.variant.version}")
        self._execute_pending()

    def _add_shadow(self, command: OperatorCommand, table: RoutingTable | None) -> None:
        """Publish the table with one more lasting shadow, unless it has this version already."""
        try:
            shadow = replace(Variant(**(command.shadow or {})), role="shadow", weight=0.0, start=0.0)
        except TypeError:
            self._reply(command.id, False, "the command names no version")
            return
        if table is None or shadow.digest == table.champion.digest:
            self._reply(
                command.id, False, f"version {shadow.version} is the champion" if table else "nothing serves yet"
            )
            return
        if all(variant.digest != shadow.digest and variant.name != shadow.name for variant in table.variants):
            self._publish(replace(table, epoch=table.epoch + 1, variants=(*table.variants, shadow)))
        self._reply(command.id, True, f"{shadow.name} answers mirrored requests")

    def _reply(self, id: str, ok: bool, message: str, hint: str = "") -> None:
        commands.write_reply(self.files, CommandReply(id, ok, message, hint, self.deps.clock()))

    # ----------------------------------------------------------------------------------------------------- execution

    def _execute_pending(self) -> None:
        """Execute the pending actions in order, and persist the completion of each."""
        while self.saved is not None and self.saved.todo:
            state, (action, *rest) = self.saved.state, self.saved.todo
            failpoint.hit("rollout.acting")
            try:
                self._execute(state, action)
            except LeaseLostError:
                raise
            except OvertakenError as error:  # the other table stays; the candidate's rejection is still recorded
                rejections = [pending for pending in rest if isinstance(pending, RollBack)]
                command = PolicyCommand("overtaken", error.message)
                state, actions = policy.advance(state, command=command, now=self.deps.clock())
                self._save(state, (*rejections, *actions))
                continue
            except MlkitError as error:
                rejected = isinstance(action, SetTable) and state.phase != "rolling_back" and self.files.reports()
                if not rejected:  # a mandatory action, or no gateway is up: retry in the next round
                    raise
                _log.error("%s: %s", self.files.service, error.message)
                command = PolicyCommand("failed", error.message)
                self._save(*policy.advance(state, command=command, now=self.deps.clock()))
                continue
            failpoint.hit("rollout.acted")
            self._save(state, tuple(rest))
            if not rest and state.phase in ("preparing", "promoting", "rolling_back"):
                self._save(*policy.advance(state, now=self.deps.clock()))

    def _execute(self, state: RolloutState, action: Action) -> None:
        match action:
            case SetTable(table):
                self._publish(table)
            case Promote(candidate, champion):
                now = self.deps.clock()
                with self.lease.guard():
                    version_history.record_champion(self.files, candidate, state.origin, now, before=champion)
                self.deps.promoted(state.service, candidate, state.origin)
            case RollBack(blamed, reason, at):
                evidence, _ = self._evidence.read(state.experiment)
                with self.lease.guard():
                    rejection = version_history.RejectionRecord(
                        blamed.digest, blamed.version, reason, at, state.experiment, state.ending
                    )
                    if action.blocks:
                        version_history.record_rejection(self.files, rejection)
                    path = incidents.record(self.files, state, action, evidence)
                _log.warning("%s: version %s: %s (%s)", state.service, blamed.version, reason, path)
                self.deps.rejected(state.service, blamed, state.origin)
            case Notify():
                _log.info("%s: %s: %s", state.service, action.event, action.message)
                with self.lease.guard():
                    webhooks.enqueue(self.files, state, action)

    def _publish(self, table: RoutingTable) -> None:
        """Publish a table to every replica under this controller's fence, unless it is live already."""
        if self._is_live(table):
            return
        self.lease.check()
        try:
            self.deps.platform.publish(replace(table, fence=self.lease.fence))
        except MlkitError as error:
            if not self._is_live(table):
                raise
            _log.warning("%s: table %d is live, but %s", table.service, table.epoch, error.message)

    def _is_live(self, table: RoutingTable) -> bool:
        """Whether a table is the present one. Raises OvertakenError if another one has its epoch or a later one."""
        current = self.files.table()
        if current is None or current.epoch < table.epoch:
            return False
        if (current.experiment, current.variants) == (table.experiment, table.variants):
            return True
        raise OvertakenError(
            f"table {current.epoch} of {table.service} was published elsewhere",
            hint=f"mlkit rollout status {table.service}",
        )

    # ------------------------------------------------------------------------------------------------------- storage

    def _running_state(self) -> RolloutState | None:
        return None if self.saved is None or self.saved.state.ended else self.saved.state

    def _save(self, state: RolloutState, todo: Sequence[Action]) -> None:
        """Persist a state and its actions before they are executed; without a decision, about once a second."""
        before, now = self.saved, time.monotonic()
        saved = SavedRollout(replace(state, fence=self.lease.fence), tuple(todo))
        decided = before is None or before.todo != saved.todo or _durable_key(before.state) != _durable_key(state)
        if decided or now - self._written >= SAVE_SECONDS:
            failpoint.hit("rollout.decided")
            with self.lease.guard():
                states.write(self.files, saved, durable=decided)
            self._written = now
            failpoint.hit("rollout.saved")
        self.saved = saved

    def _remove_old_evidence(self, table: RoutingTable) -> None:
        """Remove evidence of other experiments; writers of live ones write theirs again."""
        with self.lease.guard():
            for entry in self.files.list("evidence/*.json"):
                try:
                    value = self.files.read_json(entry.key)
                except ServiceError as error:
                    _log.error("%s", error.message)
                    value = None
                if not isinstance(value, dict) or value.get("experiment") != table.experiment:
                    self.files.delete(entry.key)


def _durable_key(state: RolloutState) -> tuple[object, ...]:
    """The fields whose change must be durable."""
    return (state.experiment, state.phase, state.step, state.epoch, state.reason, state.fence)


@contextlib.contextmanager
def _heartbeat(lease: ControllerLease, lost: threading.Event) -> Iterator[None]:
    """Renew the lease in a thread; sets ``lost`` when another controller took over."""
    ending = threading.Event()

    def beat() -> None:
        while not ending.wait(controller_lease.BEAT_SECONDS):
            try:
                lease.renew()
            except LeaseLostError as error:
                _log.warning("%s", error.message)
                lost.set()
                return
            except MlkitError as error:
                _log.warning("the lease was not renewed: %s", error.message)

    thread = threading.Thread(target=beat, name="mlkit-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(5.0)
