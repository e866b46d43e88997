"""Probation: a former champion comes back only where it is shown better on the same rows, once, whoever dies."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random

import pytest

from mlflowkit.judging.online.evidence import Evidence, Moments, VariantCounts
from mlflowkit.monitoring.retrain import probation as probations
from mlflowkit.monitoring.retrain.probation import Probation, judge_probation
from mlflowkit.monitoring.retrain.steady_clock import Moment, this_moment
from mlflowkit.rollout import commands
from mlflowkit.rollout import state as states
from mlflowkit.rollout.controller import ServiceController
from mlflowkit.service_state import controller_lease, version_history
from mlflowkit.service_state.records import Desired, GatewaySettings, ServiceFiles
from mlflowkit.serving.feedback import join
from mlflowkit.values import Outcome, RoutingTable, Variant
from tests.support import rollout_drill as drill
from tests.support.chance import most

OLD, NEW = Variant("champion", "1", "d1", "/bundles/1"), Variant("champion", "2", "d2", "/bundles/2")
WEEK = 7 * 86_400.0


def moments(values: list[float]) -> Moments:
    return Moments(len(values), sum(values), sum(value * value for value in values))


@pytest.mark.parametrize(
    ("metric", "value", "outcome"),
    [
        ("accuracy", -0.2, Outcome.FAILED),
        ("accuracy", 0.2, Outcome.PASSED),
        ("log_loss", 0.2, Outcome.FAILED),
        ("log_loss", -0.2, Outcome.PASSED),
        ("squared_error", 0.2, Outcome.FAILED),
        ("absolute_error", 0.0, Outcome.INCONCLUSIVE),
    ],
)
def test_each_metric_has_its_direction(metric: str, value: float, outcome: Outcome) -> None:
    random = Random(1)
    finding, _ = judge_probation({metric: moments([value + random.gauss(0, 0.5) for _ in range(600)])})
    assert finding.outcome is outcome
    assert finding.low is not None
    assert finding.low < value < (finding.high or 0)


def test_a_failure_stays_and_few_pairs_decide_nothing() -> None:
    bad = moments([-1.0, 0.0] * 49)
    assert judge_probation({"accuracy": bad})[0].outcome is Outcome.INCONCLUSIVE
    failed, worst = judge_probation({"accuracy": moments([-1.0, 0.0] * 100)})
    assert failed.outcome is Outcome.FAILED
    later, kept = judge_probation({"accuracy": moments([1.0, -1.0] * 1000)}, worst)
    assert (later.outcome, kept) == (Outcome.FAILED, worst)
    assert judge_probation({"accuracy": moments([0.0] * 500)})[0].outcome is Outcome.PASSED
    assert (
        judge_probation({"accuracy": moments([-1.0] * 500)})[0].outcome is Outcome.INCONCLUSIVE
    )  # no variance to go by


def test_versions_that_are_alike_are_rarely_rolled_back() -> None:
    """At most LEVEL over all looks; the test fails by chance with probability 1e-6."""
    random, runs, failed = Random(3), 400, 0
    for _ in range(runs):
        values: list[float] = []
        worst = 0.0
        for _ in range(20):  # looks
            values += [random.choice((-1.0, 0.0, 0.0, 0.0, 1.0)) for _ in range(50)]
            _, worst = judge_probation({"accuracy": moments(values)}, worst)
        failed += worst >= math.log(1 / probations.LEVEL)
    assert failed <= most(runs, probations.LEVEL)


class Service:
    """A service with two champions in its history, its real controller, and a clock that is moved by hand."""

    def __init__(self, state: Path, champion: Variant = NEW) -> None:
        self.files = ServiceFiles(state / "services" / "lending")
        self.files.write_desired(Desired(1, True, GatewaySettings("lending", port=1)))
        self.files.write_table(RoutingTable("lending", 4, (champion,), experiment="e1"))
        now = this_moment()
        version_history.record_champion(self.files, OLD, {"name": "lending"}, now.wall - 99)
        version_history.record_champion(self.files, NEW, {"name": "lending"}, now.wall)
        lease = controller_lease.acquire(state)
        assert lease is not None
        self.lease = lease
        self.passed = 0.0
        self._start = now
        self.restart()

    def restart(self) -> None:
        """As after a kill: nothing of the memory is left."""
        self.probation = Probation(self.files, WEEK, guard=self.lease.guard, clock=self.clock)
        self.controller: ServiceController = drill.controller(self.files, self.lease)

    def clock(self) -> Moment:
        return Moment(self._start.wall + self.passed, self._start.uptime + self.passed, self._start.boot)

    def begin(self) -> None:
        """Let the former champion shadow."""
        assert self.probation.tick().phase == "beginning"
        self.controller.step()
        report = self.probation.tick()
        assert report.phase == "running"

    def say(self, differences: list[float]) -> None:
        """Feedback about rows that both versions answered: champion minus former, in accuracy."""
        table = self.table
        counts = VariantCounts(quality={"accuracy": moments(differences)})
        evidence = Evidence(table.experiment, {table.epoch: {f"{join.PAIRED}former-1": counts}})
        self.files.write_json("evidence/feedback.json", json.loads(json.dumps(evidence.to_json())))

    @property
    def table(self) -> RoutingTable:
        table = self.files.table()
        assert table is not None
        return table

    def go_back(self, cause: str = "performance") -> None:
        for _ in range(3):  # decided once, however often it is asked for
            self.probation.go_back("worse on the same rows", cause)
        self.restart()
        for _ in range(3):
            self.controller.step()


def test_the_former_champion_shadows_a_share_for_a_time(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.begin()
    champion, shadow = service.table.variants
    assert (champion.digest, shadow.digest, shadow.role) == ("d2", "d1", "shadow")
    assert (shadow.sampling, shadow.weight) == (probations.SAMPLING, 0.0)
    assert shadow.name == "former-1"
    service.restart()
    assert service.probation.tick().phase == "running"
    service.passed = WEEK + 1
    assert service.probation.tick().phase == "ended"
    service.controller.step()
    assert [variant.digest for variant in service.table.variants] == ["d2"]
    assert service.probation.tick().phase == ""


def test_it_comes_back_on_paired_evidence_only(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.begin()
    finding = service.probation.tick().finding
    assert finding is not None
    assert finding.outcome is Outcome.INCONCLUSIVE
    service.say([1.0, -1.0] * 300)  # both alike, however bad: it stays
    finding = service.probation.tick().finding
    assert finding is not None
    assert finding.outcome is Outcome.INCONCLUSIVE
    service.say([-1.0, 0.0] * 300)
    report = service.probation.tick()
    assert report.finding is not None
    assert report.finding.outcome is Outcome.FAILED
    service.go_back()
    assert [variant.digest for variant in service.table.variants] == ["d1"]
    saved = states.read(service.files)
    assert saved is not None
    assert (saved.state.phase, saved.state.by) == ("rolled_back", "monitor")
    assert list(version_history.rejections(service.files)) == ["d2"]
    assert len(service.files.list("incidents/*.json")) == 1
    assert service.probation.tick().phase == ""  # the one that came back is in no probation


def test_drift_blocks_no_version(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.begin()
    service.go_back(cause="drift")
    assert service.table.champion.digest == "d1"
    assert not version_history.rejections(service.files)


def test_a_rollback_that_was_cut_before_its_reply_goes_no_further_back(tmp_path: Path) -> None:
    """A command whose execution is on record is answered, not executed again on the version that came back."""
    service = Service(tmp_path)
    service.begin()
    service.go_back(cause="drift")
    saved = states.read(service.files)
    assert saved is not None
    id = saved.state.experiment.removeprefix("back-")
    service.files.delete(f"answers/{id}.json")
    commands.submit_rollback(service.files, id, "worse on the same rows", "drift")
    service.restart()
    service.controller.step()
    reply = commands.read_reply(service.files, id)
    assert reply is not None
    assert reply.ok
    assert service.table.champion.digest == "d1"


def test_another_champion_ends_the_probation(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.begin()
    third = Variant("champion", "3", "d3", "/bundles/3")
    service.files.write_table(RoutingTable("lending", 9, (third, service.table.variants[1]), experiment="e2"))
    version_history.record_champion(service.files, third, {}, service.clock().wall)
    report = service.probation.tick()
    service.controller.step()
    service.controller.step()
    assert report.phase == "beginning"
    service.probation.tick()
    assert [variant.digest for variant in service.table.variants] == ["d3", "d2"]


def test_no_probation_without_a_former_champion_or_long_after_the_promotion(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.passed = WEEK + 1
    assert service.probation.tick().phase == ""
    service.passed = 0.0
    version_history.record_rejection(service.files, version_history.RejectionRecord("d1", "1", "", 0.0, "e", "aborted"))
    assert service.probation.tick().phase == ""
    assert [variant.digest for variant in service.table.variants] == ["d2"]


def test_a_shadow_that_a_person_removes_ends_it(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.begin()
    commands.submit(service.files, "abort", variant="former-1")
    service.controller.step()
    assert service.probation.tick().phase == "ended"
    service.controller.step()
    assert [variant.digest for variant in service.table.variants] == ["d2"]


def test_names_of_pairs_agree() -> None:
    assert probations.PAIRED == join.PAIRED
