"""Following a delivery.yaml: what is tried again, what is left alone, and what the record says."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest

from mlflowkit.bundle import Bundle
from mlflowkit.cli.commands.status import delivery_word
from mlflowkit.delivery.gitops.delivery_follower import MAX_DEPLOYMENTS, DeliveryFollower, FollowStatus, read_status
from mlflowkit.delivery.gitops.desired_delivery import DesiredCandidate, DesiredChampion, DesiredDelivery
from mlflowkit.errors import MlkitError, ServiceError
from mlflowkit.rollout.settings import Rollout
from mlflowkit.service_state import version_history
from mlflowkit.service_state.records import DELIVERY, ServiceFiles
from mlflowkit.values import RoutingTable, Variant
from tests.support.lending_bundle import make_bundle

REFERENCE = "ghcr.io/acme/lending-bundle@sha256:"


class FollowedWorld:
    """A service's records, a delivery file, bundles in a registry of folders, and deployments that may fail."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file, self.now = folder, folder / "delivery.yaml", 0.0
        self.files = ServiceFiles(folder / "state" / "services" / "lending")
        self.bundles: dict[str, Bundle] = {}
        self.deployed: list[tuple[str, str, bool]] = []
        self.fetched = 0
        self.failure: MlkitError | None = None
        self.follower = self.restarted()

    def restarted(self) -> DeliveryFollower:
        return DeliveryFollower(
            self.file, self.files, self._fetch, self._deploy, clock=lambda: self.now, elapsed=lambda: self.now
        )

    def bundle(self, seed: int) -> DesiredChampion:
        made = make_bundle(self.folder / f"made-{seed}", seed)
        assert made.blessing is not None
        reference = f"{REFERENCE}{seed:064d}"
        self.bundles[reference] = made
        return DesiredChampion(reference, made.manifest.identity, made.blessing.checksum)

    def serve(self, version: DesiredChampion, epoch: int = 1) -> None:
        champion = Variant("champion", "1", version.identity, str(self.folder))
        self.files.write_json("table.json", asdict(RoutingTable("lending", epoch, (champion,))))

    def write(self, desired: DesiredDelivery) -> None:
        self.file.write_text(desired.to_yaml())

    def look(self, seconds: float = 0.0) -> FollowStatus:
        self.now += seconds
        return self.follower.step()

    def _fetch(self, reference: str, folder: Path) -> Path:
        self.fetched += 1
        shutil.copytree(self.bundles[reference].path, folder)
        return folder

    def _deploy(self, folder: Path, rollout: Rollout | None, back: bool) -> None:
        assert (folder / "manifest.json").exists()
        if self.failure is not None:
            raise self.failure
        self.deployed.append((folder.name.lstrip("0"), "" if rollout is None else rollout.strategy, back))


@pytest.fixture
def world(tmp_path: Path) -> FollowedWorld:
    return FollowedWorld(tmp_path)


def candidate(version: DesiredChampion, **rollout: object) -> DesiredCandidate:
    return DesiredCandidate(version.bundle, version.identity, version.blessing, rollout)  # type: ignore[arg-type]


def test_a_candidate_is_deployed_with_its_rollout_and_its_download_is_removed(world: FollowedWorld) -> None:
    first, second = world.bundle(1), world.bundle(2)
    world.serve(first)
    world.write(DesiredDelivery("lending", first, candidate(second, strategy="canary")))
    status = world.look()
    assert (status.action, status.fault) == ("roll_out", "")
    assert world.deployed == [("2", "canary", False)]
    assert list((world.folder / "state" / "bundles").iterdir()) == []


def test_a_champion_of_git_is_swapped_in_and_one_that_served_before_is_a_way_back(world: FollowedWorld) -> None:
    first, second = world.bundle(1), world.bundle(2)
    world.serve(second)
    world.write(DesiredDelivery("lending", first))
    world.look()
    version_history.record_champion(world.files, Variant("champion", "1", first.identity, "x"), {}, 0.0)
    world.follower = world.restarted()
    world.look()
    assert world.deployed == [("1", "", False), ("1", "", True)]


def test_a_deployment_that_fails_is_tried_less_and_less_often_and_then_left_until_the_file_changes(
    world: FollowedWorld,
) -> None:
    first, second = world.bundle(1), world.bundle(2)
    world.serve(first)
    world.write(DesiredDelivery("lending", first, candidate(second)))
    world.failure = ServiceError("does not answer as it was packaged", hint="mlkit status")
    attempts = []
    for _ in range(2000):
        before = world.fetched
        status = world.look(1.0)
        assert "does not answer" in status.fault
        if world.fetched > before:
            attempts.append(world.now)
    assert [later - earlier for earlier, later in pairwise(attempts)] == [2.0, 4.0, 8.0, 16.0]
    assert len(attempts) == MAX_DEPLOYMENTS
    assert "tried again when delivery.yaml changes" in world.look().fault
    world.failure = None
    assert world.look(1000.0).fault != ""
    world.file.write_text(world.file.read_text() + "# again\n")
    assert world.look().fault == ""
    assert len(world.deployed) == 1


def test_a_registry_that_is_away_is_asked_for_ever_but_not_often(world: FollowedWorld) -> None:
    first, second = world.bundle(1), world.bundle(2)
    world.serve(first)
    world.write(DesiredDelivery("lending", first, candidate(second)))

    def refuse(reference: str, folder: Path) -> Path:
        world.fetched += 1
        raise ServiceError("the registry does not answer", hint="curl")

    follower = DeliveryFollower(
        world.file, world.files, refuse, world._deploy, clock=lambda: world.now, elapsed=lambda: world.now
    )
    for _ in range(7200):
        world.now += 1.0
        assert "does not answer" in follower.step().fault
    assert 100 < world.fetched < 140


@pytest.mark.parametrize("name", ["identity", "blessing"])
def test_a_bundle_that_is_not_the_one_of_the_file_is_never_deployed(world: FollowedWorld, name: str) -> None:
    first, second = world.bundle(1), world.bundle(2)
    world.serve(first)
    wrong = DesiredChampion(second.bundle, *(
        "e" * 64 if part == name else getattr(second, part) for part in ("identity", "blessing")
    ))  # fmt: skip
    world.write(DesiredDelivery("lending", first, candidate(wrong)))
    status = world.look()
    assert f"has the {name}" in status.fault
    assert world.deployed == []


def test_a_rollout_that_is_none_is_told_before_anything_is_fetched(world: FollowedWorld) -> None:
    first, second = world.bundle(1), world.bundle(2)
    world.serve(first)
    world.write(DesiredDelivery("lending", first, candidate(second, strategy="canray")))
    assert "candidate.rollout.strategy" in world.look().fault
    assert world.fetched == 0


def test_a_cooldown_is_waited_for_and_is_no_failed_deployment(world: FollowedWorld) -> None:
    first, second, bad = world.bundle(1), world.bundle(2), world.bundle(3)
    world.serve(first)
    rejection = version_history.RejectionRecord(bad.identity, "3", "drift", 0.0, "x", "rolled_back")
    version_history.record_rejection(world.files, rejection)
    world.write(DesiredDelivery("lending", first, candidate(second, strategy="canary", cooldown_seconds=600)))
    for _ in range(11):
        assert "cools down after a rollback" in world.look(50.0).fault
    assert world.look(100.0).fault == ""
    assert world.deployed == [("2", "canary", False)]


def test_the_record_survives_a_restart_and_a_damaged_one_is_written_anew(world: FollowedWorld) -> None:
    first = world.bundle(1)
    world.serve(first)
    world.write(DesiredDelivery("lending", first))
    world.look()
    status = read_status(world.files)
    assert status is not None
    assert (status.champion, status.reason) == (first.identity, "served as git says")
    assert delivery_word(world.folder / "state", "lending") == "served as git says"
    good = status.to_json()
    for damaged in (
        {"nonsense": 1}, [], {**good, "fault": 5}, {**good, "attempt": {"deployments": "many"}},
        {**good, "memory": [1]}, {**good, "memory": {"promoted": None}}, {**good, "attempt": {"surprise": 1}},
    ):  # fmt: skip
        world.files.write_json(DELIVERY, damaged)
        world.follower = world.restarted()
        assert world.look().reason == "served as git says", damaged
        assert read_status(world.files) is not None


def test_a_file_that_goes_away_is_a_fault_that_names_the_command(world: FollowedWorld) -> None:
    status = world.look()
    assert "cannot be read" in status.fault
    assert status.hint.startswith("ls -l")
    assert delivery_word(world.folder / "state", "lending").startswith("problem: ")


def test_a_file_that_is_cut_short_is_no_file(world: FollowedWorld) -> None:
    first, second = world.bundle(1), world.bundle(2)
    world.serve(first)
    text = DesiredDelivery("lending", first, candidate(second, strategy="canary")).to_yaml()
    for end in range(text.index("rejected:") + len("rejected")):
        world.file.write_text(text[:end])
        assert world.look().fault, text[:end]
    assert world.deployed == []


def test_what_is_served_is_told_while_the_file_is_wrong(world: FollowedWorld) -> None:
    first, second = world.bundle(1), world.bundle(2)
    world.serve(first)
    world.write(DesiredDelivery("lending", first))
    world.look()
    world.file.write_text("service: [")
    world.serve(second, 2)
    assert world.look().served["champion"] == second.identity


def test_the_record_says_when_the_file_was_looked_at(world: FollowedWorld) -> None:
    first = world.bundle(1)
    world.serve(first)
    world.write(DesiredDelivery("lending", first))
    for _ in range(12):
        world.look(5.0)
        status = read_status(world.files)
        assert status is not None
        assert world.now - status.looked < 15.0
    assert status.time == 5.0


def test_a_version_that_ends_the_process_is_deployed_five_times_in_all(world: FollowedWorld) -> None:
    first, second = world.bundle(1), world.bundle(2)
    world.serve(first)
    world.write(DesiredDelivery("lending", first, candidate(second)))
    deployments = 0

    class Killed(BaseException):
        pass

    def kill(folder: Path, rollout: Rollout | None, back: bool) -> None:
        nonlocal deployments
        deployments += 1
        raise Killed

    for _ in range(20):
        follower = DeliveryFollower(world.file, world.files, world._fetch, kill, clock=lambda: world.now)
        try:
            status = follower.step()
        except Killed:
            continue
        assert "tried 5 times" in status.fault
    assert deployments == MAX_DEPLOYMENTS


def test_a_rollout_that_ends_without_a_verdict_is_not_begun_again(world: FollowedWorld) -> None:
    """Such as one that keeps its shadow."""
    first, second = world.bundle(1), world.bundle(2)
    world.serve(first)
    world.write(DesiredDelivery("lending", first, candidate(second, strategy="shadow", promote="never")))
    for _ in range(10):
        status = world.look(30.0)
    assert len(world.deployed) == 1
    assert "ended without a verdict" in status.reason
    world.follower = world.restarted()
    world.look(30.0)
    assert len(world.deployed) == 1
    world.write(DesiredDelivery("lending", first))
    world.look(30.0)
    world.write(DesiredDelivery("lending", first, candidate(second, strategy="shadow", promote="never")))
    world.look(30.0)
    assert len(world.deployed) == 2


def test_any_error_of_a_deployment_is_recorded_and_tried_less_often(world: FollowedWorld) -> None:
    first, second = world.bundle(1), world.bundle(2)
    world.serve(first)
    world.write(DesiredDelivery("lending", first, candidate(second)))
    world.failure = RuntimeError("a bug")  # type: ignore[assignment]
    for _ in range(20):
        assert "RuntimeError: a bug" in world.look(0.5).fault
    assert world.fetched < 5
    assert list((world.folder / "state" / "bundles").iterdir()) == []
