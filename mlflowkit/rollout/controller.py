"""Carries rollouts out: looks at what was counted, lets the policy decide, writes that down, then does it.

One process controls the services of a state folder (see `mlflowkit.service_state.controller_lease`), each in a thread
of its own, so
that a version that takes minutes to load keeps no other service waiting. Whatever is decided is durable before it is
done, together with what is still to do, and everything that is done can be done again: a controller that was killed
anywhere goes on where it was.
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

from mlflowkit.errors import MlkitError, ServiceError, StoreError
from mlflowkit.judging.online import judge as online
from mlflowkit.judging.online.judge import Finding
from mlflowkit.rollout import commands, feedback_loop, incidents, policy, requests, webhooks
from mlflowkit.rollout import state as states
from mlflowkit.rollout.commands import Answer, Told
from mlflowkit.rollout.evidence_reader import EvidenceFolder, Prometheus
from mlflowkit.rollout.policy import Command
from mlflowkit.rollout.state import Action, Promote, Request, RollBack, RolloutState, Saved, SetTable, Tell
from mlflowkit.service_state import controller_lease as lease
from mlflowkit.service_state import version_history
from mlflowkit.service_state.controller_lease import Lease, LeaseLostError
from mlflowkit.service_state.records import ServiceFiles, read_json
from mlflowkit.values import Json, RoutingTable, Variant

LOOK_SECONDS = 0.2
"""Between looks at a rollout that runs."""
IDLE_SECONDS = 0.2
"""Between looks for a request or a command."""
SAVE_SECONDS = 1.0
"""Between writes of a state in which nothing was decided."""
RETRY_SECONDS = 1.0
SERVICES_SECONDS = 0.5
_log = logging.getLogger("mlflowkit.rollout")

Promoted = Callable[[str, Variant, Mapping[str, str]], None]
"""Told (service, new champion, its origin) after the table has changed; may be told twice. It moves the aliases."""
Judge = Callable[..., tuple[tuple[Finding, ...], Mapping[str, Json]]]


class OvertakenError(ServiceError):
    """Somebody else published a table while one of this controller's was on its way."""


class Publisher(Protocol):
    """The verb of a Platform that a controller needs."""

    def publish(self, table: RoutingTable) -> None: ...


def _nowhere(point: str) -> None:
    """Pass a point at which tests cut the controller."""


@dataclass(frozen=True, slots=True)
class World:
    """What a controller does things with. ``reach`` is told each point between two effects."""

    platform: Publisher
    promoted: Promoted
    judge: Judge = online.judge
    clock: Callable[[], float] = time.time
    reach: Callable[[str], None] = _nowhere


class Controller:
    """Controls the rollouts of the services in ``state`` while it holds the lease."""

    def __init__(self, state: Path, world: World) -> None:
        self._state = state
        self._world = world

    def follow(self, stop: threading.Event) -> None:
        """Take the lease when it is free and control until ``stop`` is set or another controller took over."""
        while not stop.is_set() and self._state.is_dir():
            held = lease.take(self._state, self._world.clock)
            if held is None:
                stop.wait(SERVICES_SECONDS)
                continue
            _log.info("controlling the rollouts of %s under fence %d", self._state, held.fence)
            lost = threading.Event()
            try:
                with webhooks.Courier(self._state, self._world.clock), _beating(held, lost):
                    self._control(held, stop, lost)
            finally:
                with contextlib.suppress(StoreError):  # a full disk: others follow when this process is gone
                    held.release()

    def _control(self, held: Lease, stop: threading.Event, lost: threading.Event) -> None:
        """A thread for each service, as services come, until told to stop."""
        ending = threading.Event()
        threads: dict[str, threading.Thread] = {}
        try:
            while not stop.is_set() and not lost.is_set() and self._state.is_dir():
                for files in ServiceFiles.all(self._state):
                    if files.service not in threads or not threads[files.service].is_alive():
                        one = ServiceController(files, held, self._world)
                        thread = threading.Thread(
                            target=one.follow, args=(ending, lost), name=f"rollout-{files.service}", daemon=True
                        )
                        threads[files.service] = thread
                        thread.start()
                    name = f"feedback-{files.service}"
                    if name not in threads or not threads[name].is_alive():
                        threads[name] = threading.Thread(
                            target=feedback_loop.follow, args=(files, ending, lost), name=name, daemon=True
                        )
                        threads[name].start()
                stop.wait(SERVICES_SECONDS)
        finally:
            ending.set()
            for thread in threads.values():
                thread.join(10.0)


@dataclass
class ServiceController:
    """Controls one service. `step` is one round; it raises MlkitError when the world fails, and can be called again."""

    files: ServiceFiles
    lease: Lease
    world: World
    saved: Saved | None = None
    _read: bool = False
    _evidence: EvidenceFolder = field(init=False)
    _prometheus: Prometheus = field(default_factory=Prometheus)
    _written: float = 0.0
    _measured: tuple[tuple[float, ...], ...] = ()
    _due: bool = False
    """Whether something was counted or measured of which no judgement was saved."""
    _complaint: str = ""

    def __post_init__(self) -> None:
        self._evidence = EvidenceFolder(self.files.folder / "evidence")

    def follow(self, ending: threading.Event, lost: threading.Event) -> None:
        """`step` again and again until either event is set; what the world does wrong is logged and tried again."""
        while not ending.is_set() and not lost.is_set():
            ending.wait(self._round(lost))

    def _round(self, lost: threading.Event) -> float:
        """One `step`; seconds until the next."""
        try:
            running = self.step()
        except LeaseLostError as error:
            _log.warning("%s", error.message)
            lost.set()
        except MlkitError as error:
            if error.message != self._complaint:
                _log.error("%s: %s (%s)", self.files.service, error.message, error.hint)
            self._complaint = error.message
        except Exception:  # noqa: BLE001 - a fault of ours in one service must not end the others'
            _log.exception("%s: the controller failed; it goes on", self.files.service)
        else:
            self._complaint = ""
            return LOOK_SECONDS if running else IDLE_SECONDS
        return RETRY_SECONDS

    def step(self) -> bool:
        """One round: what is left to do, a request, a command, a look. Returns whether a rollout is running."""
        if not self._read:
            self.saved, self._read = states.read(self._path), True
        self.lease.check()
        if self.saved is None:
            self._settle()
        elif self.saved.todo:
            self._carry_out()
        self._take_request()
        state = self._state()
        told = self._told(state)
        if state is None:
            if told is not None:
                self._command_without(told)
            return self._state() is not None
        self._look(state, told)
        return True

    def _told(self, state: RolloutState | None) -> Told | None:
        """The next command, if it can be followed now. One that was said to a rollout that has ended is answered."""
        told = next(iter(commands.pending(self.files)), None)
        if told is None or (told.variant and state is None):
            return told
        if not told.variant and told.experiment != ("" if state is None else state.experiment):
            ended = "" if self.saved is None else f": {policy.where(self.saved.state)}"
            message = f"the rollout that this was said to is over{ended}" if told.experiment else "a rollout began"
            commands.answer(self.files, Answer(told.id, False, message, "mlkit rollout status", self.world.clock()))
            return None
        early = state is not None and state.phase in ("pending", "preparing")
        waits = state is not None and state.phase not in states.LIVE
        return None if waits and not (early and told.command in ("abort", "rollback")) else told

    def _settle(self) -> None:
        """Give all traffic to the champion where the record of a rollout is lost: nobody judges its challenger."""
        table = self.files.table()
        if table is None or not table.fence or all(one.role != "challenger" for one in table.variants):
            return  # a table that no controller made is not of a rollout
        _log.error("%s: nothing is known of rollout %s: the champion answers", self.files.service, table.experiment)
        shadows = tuple(one for one in table.variants if one.role == "shadow")
        champion = replace(table.champion, weight=1.0)
        self._publish(replace(table, epoch=table.epoch + 1, variants=(champion, *shadows), experiment="", salt=""))

    # ------------------------------------------------------------------------------------------------------- looking

    def _look(self, state: RolloutState, told: Told | None) -> None:
        """Advance a running rollout by one look, and carry out what was decided."""
        now = self.world.clock()
        command = None if told is None else _command(told)
        table = self.files.table()
        if table is not None and table.epoch >= state.epoch and table.experiment != state.experiment and state.epochs:
            command = Command("overtaken", f"{state.service} was given table {table.epoch} by somebody else")
        if state.phase in states.LIVE:
            state, findings, counts = self._judged(state)
            state, actions = policy.advance(state, findings, counts, command, now)
        else:
            state, actions = policy.advance(state, command=command, now=now)
        self._save(state, actions)
        self._due = False
        if told is not None:
            message = policy.where(state) + (f": {state.reason}" if state.reason else "")
            commands.answer(self.files, Answer(told.id, True, message, time=now))
        self._carry_out()

    def _judged(self, state: RolloutState) -> tuple[RolloutState, Sequence[Finding], states.Counts]:
        """The state with what the judges remember, their findings, and the counts of the step."""
        evidence, changed = self._evidence.read(state.experiment)
        measured = self._prometheus.values(state)
        self._due = self._due or changed or measured != self._measured
        self._measured = measured
        if self._due or not state.findings:
            findings, traces = self.world.judge(
                policy.questions(state, measured),
                evidence,
                champion=state.champion.name,
                challenger=state.candidate.name,
                epochs=state.epochs,
                level=state.plan.level,
                traces=state.traces,
            )
            state = replace(state, traces=traces)
        else:
            findings = state.findings
        return state, findings, policy.count(state, evidence)

    # -------------------------------------------------------------------------------------------------- what is asked

    def _take_request(self) -> None:
        """Begin the rollout that was asked for, or say why not."""
        path = self.files.folder / "request.json"
        if not path.exists():
            return
        with self.files.lock("request"):
            try:
                value = read_json(path)
                request = None if value is None else Request.from_json(value)
            except (ServiceError, KeyError, TypeError, ValueError) as error:
                _log.error("%s is damaged and was removed: %s", path, error)
                path.unlink(missing_ok=True)
                return
            if request is not None and self._begun(request):
                path.unlink(missing_ok=True)

    def _begun(self, request: Request) -> bool:
        """Begin a rollout or refuse it, and say so; False while the service is being set up."""
        now = self.world.clock()
        answer = Answer(request.id, True, f"{request.plan.strategy} of version {request.candidate.version} begins")
        if self.saved is None or self.saved.state.experiment != request.id:
            try:
                refused = requests.refusal(self.files, request, now)
            except ServiceError as error:
                refused = Answer(request.id, False, error.message, error.hint)
            table = self.files.table()
            if refused is None and table is None:
                return False
            if refused is None and table is not None:
                self._forget_evidence(table)
                self._save(policy.begin(request, table, now=now, fence=self.lease.fence), ())
                self.world.reach("rollout.begun")
            answer = refused or answer
        commands.answer(self.files, replace(answer, time=now))
        return True

    def _command_without(self, told: Told) -> None:
        """A command where no rollout is running: back to an earlier champion, or a lasting shadow's end."""
        now, table = self.world.clock(), self.files.table()
        if table is not None and told.variant and any(one.name == told.variant for one in table.variants):
            self._publish(_without(table, told.variant))
            commands.answer(self.files, Answer(told.id, True, f"{told.variant} is gone", time=now))
            return
        before = None if table is None else version_history.previous(self.files, table.champion.digest)
        if told.command != "rollback" or table is None or before is None:
            message = "no rollout is running" if told.command != "rollback" else "no earlier version is known"
            commands.answer(self.files, Answer(told.id, False, message, "mlkit rollout status", now))
            return
        state, actions = policy.go_back(
            table, before.variant, id=f"back-{told.id}", reason=told.reason, now=now, origin=before.origin
        )
        self._save(state, actions)
        message = f"back to version {before.variant.version}"
        commands.answer(self.files, Answer(told.id, True, message, time=now))
        self._carry_out()

    # ---------------------------------------------------------------------------------------------------------- doing

    def _carry_out(self) -> None:
        """Do what was decided, in order, and write down that it is done."""
        while self.saved is not None and self.saved.todo:
            state, (action, *rest) = self.saved.state, self.saved.todo
            self.world.reach("rollout.acting")
            try:
                self._do(state, action)
            except LeaseLostError:
                raise
            except OvertakenError as error:  # the other table holds; what the candidate did is recorded all the same
                command, blame = Command("overtaken", error.message), [one for one in rest if isinstance(one, RollBack)]
                state, told = policy.advance(state, command=command, now=self.world.clock())
                self._save(state, (*blame, *told))
                continue
            except MlkitError as error:
                refused = isinstance(action, SetTable) and state.phase != "rolling_back" and self.files.reports()
                if not refused:  # it must be done, or no gateway is up to do it: it is tried again in the next round
                    raise
                _log.error("%s: %s", self.files.service, error.message)
                now, command = self.world.clock(), Command("failed", error.message)
                self._save(*policy.advance(state, command=command, now=now))
                continue
            self.world.reach("rollout.acted")
            self._save(state, tuple(rest))
            if not rest and state.phase in ("preparing", "promoting", "rolling_back"):
                self._save(*policy.advance(state, now=self.world.clock()))

    def _do(self, state: RolloutState, action: Action) -> None:
        match action:
            case SetTable(table):
                self._publish(table)
            case Promote(candidate, champion):
                self._promote(state, candidate, champion)
            case RollBack(blamed, reason, at):
                evidence, _ = self._evidence.read(state.experiment)
                with self.lease.guard():
                    failure = version_history.Failure(
                        blamed.digest, blamed.version, reason, at, state.experiment, state.ending
                    )
                    version_history.blame(self.files, failure)
                    path = incidents.record(self.files, state, action, evidence)
                _log.warning("%s: version %s: %s (%s)", state.service, blamed.version, reason, path)
            case Tell():
                _log.info("%s: %s: %s", state.service, action.event, action.message)
                with self.lease.guard():
                    webhooks.enqueue(self.files, state, action)

    def _publish(self, table: RoutingTable) -> None:
        """Have every replica answer by a table, under this controller's fence. One that is there already is not new."""
        if self._answers_by(table):
            return
        self.lease.check()
        try:
            self.world.platform.publish(replace(table, fence=self.lease.fence))
        except MlkitError as error:
            if not self._answers_by(table):
                raise
            _log.warning("%s: table %d is live, but %s", table.service, table.epoch, error.message)

    def _answers_by(self, table: RoutingTable) -> bool:
        """Whether a table is the present one. Raises OvertakenError when another one took its epoch, or a later."""
        current = self.files.table()
        if current is None or current.epoch < table.epoch:
            return False
        if (current.experiment, current.variants) == (table.experiment, table.variants):
            return True
        raise OvertakenError(
            f"{table.service} was given table {current.epoch} by somebody else",
            hint=f"mlkit rollout status {table.service}",
        )

    def _promote(self, state: RolloutState, candidate: Variant, champion: Variant) -> None:
        now = self.world.clock()
        with self.lease.guard():
            version_history.crown(self.files, candidate, state.origin, now, before=champion)
        self.world.promoted(state.service, candidate, state.origin)

    # ----------------------------------------------------------------------------------------------------- small things

    @property
    def _path(self) -> Path:
        return self.files.folder / "rollout.json"

    def _state(self) -> RolloutState | None:
        """The rollout that is running; None when there is none."""
        return None if self.saved is None or self.saved.state.ended else self.saved.state

    def _save(self, state: RolloutState, todo: Sequence[Action]) -> None:
        """Write a state down before anything is done about it; where nothing was decided, about once a second."""
        before, now = self.saved, time.monotonic()
        saved = Saved(replace(state, fence=self.lease.fence), tuple(todo))
        decided = before is None or before.todo != saved.todo or _mark(before.state) != _mark(state)
        if decided or now - self._written >= SAVE_SECONDS:
            self.world.reach("rollout.decided")
            with self.lease.guard():
                states.write(self._path, saved, durable=decided)
            self._written = now
            self.world.reach("rollout.saved")
        self.saved = saved

    def _forget_evidence(self, table: RoutingTable) -> None:
        """Remove what was counted of experiments that are over; writers of living ones write again."""
        folder = self.files.folder / "evidence"
        with self.lease.guard():
            for path in folder.glob("*.json") if folder.is_dir() else ():
                try:
                    value = read_json(path)
                except ServiceError as error:
                    _log.error("%s", error.message)
                    value = None
                if not isinstance(value, dict) or value.get("experiment") != table.experiment:
                    path.unlink(missing_ok=True)


def _command(told: Told) -> Command:
    if told.variant:
        return Command("remove", told.reason, variant=told.variant)
    return Command(told.command, told.reason, told.full)


def _without(table: RoutingTable, shadow: str) -> RoutingTable:
    variants = tuple(variant for variant in table.variants if variant.name != shadow)
    return replace(table, epoch=table.epoch + 1, variants=variants)


def _mark(state: RolloutState) -> tuple[object, ...]:
    """What makes a state another one that must be durable."""
    return (state.experiment, state.phase, state.step, state.epoch, state.reason, state.fence)


@contextlib.contextmanager
def _beating(held: Lease, lost: threading.Event) -> Iterator[None]:
    """Say again and again that the holder is alive; sets ``lost`` when somebody took over."""
    ending = threading.Event()

    def beat() -> None:
        while not ending.wait(lease.BEAT_SECONDS):
            try:
                held.beat()
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
