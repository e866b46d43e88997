"""Makes the deliveries that are due. One process delivers to a target at a time; it may be killed anywhere."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlflowkit.data_access.redaction import redact
from mlflowkit.errors import DeliveryRefusedError, EngineError, InterruptedRunError, MlkitError
from mlflowkit.pipeline.outbox.delivery_schedule import after_failure, after_success, due_deliveries, troubled
from mlflowkit.ports import FinishedRun, Journal, RunPorts, RunTarget
from mlflowkit.recipe.schema import RecipeSchema
from mlflowkit.system.files import private_opener
from mlflowkit.system.text import first_line
from mlflowkit.values import TRACKING_TARGET, RunDelivery, RunRecord

_log = logging.getLogger("mlflowkit.deliveries")


@dataclass
class DeliveryRound:
    """One pass over the deliveries of a state folder.

    ``targets`` are those of the recipe at hand, if there is one: for its runs they come before what the recipe of a
    delivery's own run says, so that a corrected address or credential counts. Another recipe may name the same place on
    another server, or allow more to leave: its runs are delivered as it says. ``selected`` says which targets are
    delivered to, by name; with ``wait`` false, one that can defer is left to a process of its own.
    """

    ports: RunPorts
    journal: Journal
    targets: Sequence[RunTarget] = ()
    selected: Callable[[str], bool] = lambda name: True
    wait: bool = False
    recipe: str = ""
    """The name of the recipe at hand."""
    problems: list[str] = field(default_factory=list)
    """What went wrong, in words."""

    def deliver(self) -> str:
        """Make the deliveries that are due. Returns what went wrong, or ""."""
        due = due_deliveries(self.journal.deliveries("pending"), time.time())
        for name in dict.fromkeys(delivery.target for delivery in due):
            if self.selected(name):
                self._deliver_to(name, [delivery for delivery in due if delivery.target == name])
        return "; ".join(self.problems)

    def _deliver_to(self, name: str, due: Sequence[RunDelivery]) -> None:
        current = next((target for target in self.targets if target.name == name), None)
        if current is not None and not self.wait and current.defer():
            return
        opened: list[RunTarget] = []
        try:
            with target_lock(self.journal.state, name):
                for delivery in self._still_pending(due):
                    if not self._attempt(delivery, current, opened):
                        return
        finally:
            for target in opened:
                target.close()

    def _still_pending(self, due: Sequence[RunDelivery]) -> Iterator[RunDelivery]:
        """Those that no other process has delivered meanwhile."""
        pending = self.journal.deliveries("pending")
        return (delivery for delivery in due if delivery in pending)

    def _attempt(self, delivery: RunDelivery, current: RunTarget | None, opened: list[RunTarget]) -> bool:
        """Deliver, and record what came of it. Returns whether the target is there for the next one.

        What a target raises is a problem of this delivery, whatever it is: the results of its run are safe, and other
        targets and runs are no worse for it.
        """
        try:
            target, record = self._target(delivery, current)
            opened.append(target)
            receipt = target.deliver(FinishedRun(record, self._folders(record)))
        except InterruptedRunError:
            raise
        except Exception as error:  # noqa: BLE001 - also a vendor's, or that of a defect: kept with the delivery
            refused = isinstance(error, DeliveryRefusedError)
            saved = after_failure(delivery, _words(error), time.time(), refused=refused)
            self.journal.save_delivery(saved)
            given_up = f"; {GIVEN_UP}" if saved.status == "failed" else ""
            self.problems.append(f"{describe(saved)}{given_up}")
            return refused
        self.journal.save_delivery(after_success(delivery, receipt, time.time()))
        return True

    def _target(self, delivery: RunDelivery, current: RunTarget | None) -> tuple[RunTarget, RunRecord]:
        """The target of a delivery, and its run. Raises DeliveryRefusedError where no recipe names it any more."""
        record = self.journal.run(delivery.run)
        if current is not None and (delivery.target == TRACKING_TARGET or record.name == self.recipe):
            return current, record
        target = _own_target(self.ports, record, delivery.target)
        if target is None:
            raise _no_target(delivery.target)
        return target, record

    def _folders(self, record: RunRecord) -> Mapping[str, Path]:
        return {step.stage: self.ports.objects.path(step.digest) for step in record.steps if step.digest}


GIVEN_UP = "it is not tried again by itself: mlkit deliveries --retry"


def describe(delivery: RunDelivery) -> str:
    """A delivery that went wrong, in words."""
    if delivery.target == TRACKING_TARGET:
        return f"the tracker did not record run {delivery.run}: {delivery.error}"
    return f"run {delivery.run} was not delivered to {delivery.target}: {delivery.error}"


def retry_now(ports: RunPorts, journal: Journal, run: str | None = None) -> str:
    """Make the pending and failed deliveries of a run, or of all, at once. Returns what went wrong, or ""."""
    owed = [item for item in journal.deliveries("pending", "failed") if run in (None, item.run)]
    journal.owe(owed, again=True)
    names = {item.target for item in owed}
    return DeliveryRound(ports, journal, selected=names.__contains__, wait=True).deliver()


def give_up(journal: Journal, run: str | None = None) -> None:
    """Let no run try the pending deliveries of a run, or of all, again."""
    for item in journal.deliveries("pending"):
        if run in (None, item.run):
            journal.save_delivery(replace(item, status="failed", error=item.error or "given up before it was tried"))


def earlier_problems(journal: Journal) -> tuple[str, ...]:
    """What deliveries of earlier runs wait for, a line a target."""
    oldest: dict[str, RunDelivery] = {}
    for delivery in troubled(journal.deliveries("pending")):
        oldest.setdefault(delivery.target, delivery)
    named = {TRACKING_TARGET: "MLflow"}
    return tuple(f"earlier runs are not in {named.get(name, name)} yet: {describe(d)}" for name, d in oldest.items())


def deliver_deferred(ports: RunPorts, targets: Sequence[RunTarget]) -> str:
    """A pass for the targets alone, in a process of its own."""
    names = {target.name for target in targets}
    with ports.open_journal() as journal:
        problem = DeliveryRound(ports, journal, targets, names.__contains__, wait=True).deliver()
    if problem:
        _log.error("%s", problem)
    return problem


@contextmanager
def target_lock(state: Path, name: str) -> Iterator[None]:
    """Held by whoever delivers to a target."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    with open(state / f"deliveries-{digest}.lock", "w", opener=private_opener) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _own_target(ports: RunPorts, record: RunRecord, name: str) -> RunTarget | None:
    """The target that the recipe of a run names. None where it has none, or can no longer be read."""
    try:
        recipe = RecipeSchema.model_validate(record.recipe)
    except ValueError:
        return None
    targets = ports.run_targets(recipe, Path(record.recipe_path).parent)
    return next((target for target in targets if target.name == name), None)


def _no_target(name: str) -> MlkitError:
    if name == TRACKING_TARGET:
        return EngineError("MLflow is not installed", hint="pip install 'mlflowkit[track]'")
    return DeliveryRefusedError(f"the recipe of its run names no {name}, or is not one of this mlflowkit")


def _words(error: Exception) -> str:
    if isinstance(error, MlkitError):
        return f"{error.message} ({error.hint})" if error.hint else error.message
    _log.debug("a target raised", exc_info=error)
    return redact(f"{type(error).__name__}: {first_line(error)}", ())
