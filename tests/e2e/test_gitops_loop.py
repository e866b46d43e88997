"""Git says which version runs: promotions, rollbacks and reverts in git, and a gateway that follows the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import planted
from mlflowkit.bundle import Bundle
from tests.support.gitops_world import FollowingGateway, GitopsWorld, SteadyTraffic
from tests.support.lending_bundle import make_bundle
from tests.support.ports import free_port
from tests.support.registries import FakeRegistry, served_registry

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1500)]

ROLLOUT = (
    "{strategy: canary, steps: [20, 50], min_samples: 50, bake_seconds: 0, max_seconds: 900, cooldown_seconds: 0, "
    "metrics: [{metric: error_rate, margin: 0.05}, {metric: prediction_drift, max: 0.3}]}"
)
ENDLESS = ROLLOUT.replace("min_samples: 50", "min_samples: 100000000")


@pytest.fixture(scope="module")
def registry() -> Iterator[tuple[FakeRegistry, str]]:
    fake = FakeRegistry()
    with served_registry(fake) as host:
        yield fake, host


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, registry: tuple[FakeRegistry, str]) -> GitopsWorld:
    return GitopsWorld(tmp_path_factory.mktemp("gitops"), registry[1], ROLLOUT)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, world: GitopsWorld) -> dict[str, Bundle]:
    """Version first, three that answer the traffic as it does, and one that answers the other class."""
    root = tmp_path_factory.mktemp("versions")
    (root / "first").mkdir()
    first = make_bundle(root / "first" / "bundle", 1, policy=world.policy)
    made = {"first": first}
    for name, column, value in (
        ("second", "term", "60 months"), ("third", "purpose", "other"), ("fourth", "purpose", "home"), ("bad", "", ""),
    ):  # fmt: skip
        made[name] = planted.flip(first, root / name, column, value)
    return made


@pytest.fixture(scope="module")
def reports(world: GitopsWorld, bundles: dict[str, Bundle]) -> dict[str, Path]:
    return {name: world.judged(bundle, name) for name, bundle in bundles.items()}


@pytest.fixture(scope="module")
def identity(bundles: dict[str, Bundle]) -> dict[str, str]:
    return {name: bundle.manifest.identity for name, bundle in bundles.items()}


@pytest.fixture(scope="module")
def gateway(world: GitopsWorld, reports: dict[str, Path]) -> Iterator[FollowingGateway]:
    """A gateway that began with the first version, which git has settled as the champion."""
    assert world.promote(reports["first"]).action == "promoted"
    world.sync()
    running = FollowingGateway(world.mounted.file, free_port(), world.folder / "state")
    try:
        running.wait_ready()
        running.wait_record("the first look", action="none")
        assert world.settle(running.url).action == "settled"
        world.sync()
        yield running
    finally:
        running.stop()


def test_the_first_version_is_settled_as_champion(
    world: GitopsWorld, gateway: FollowingGateway, identity: dict[str, str]
) -> None:
    record = gateway.wait_record("the settled file", reason="served as git says", fault="")
    assert record["champion"] == record["served"]["champion"] == identity["first"]
    desired = world.desired()
    assert desired.champion is not None
    assert desired.champion.identity == identity["first"]


def test_a_promotion_is_rolled_out_in_the_gateway_and_recorded(
    world: GitopsWorld, gateway: FollowingGateway, reports: dict[str, Path], identity: dict[str, str]
) -> None:
    world.promote(reports["second"])
    world.sync()
    gateway.wait_record("the rollout", candidate=identity["second"], action="none", progress=lambda text: text)
    assert world.settle(gateway.url).action == "undecided"  # nothing is decided before anybody asks
    with SteadyTraffic(gateway.url) as traffic:
        gateway.wait_record("the promotion", 480, candidate=identity["second"], champion=lambda _: True,
                            reason=lambda text: "is promoted here" in text)  # fmt: skip
        assert world.settle(gateway.url).action == "settled"
        world.sync()
        gateway.wait_record("the settlement", reason="served as git says")
    assert traffic.failed == []
    assert traffic.answered > 100
    assert gateway.record()["served"]["champion"] == identity["second"]


def test_a_bad_version_is_rolled_back_recorded_and_never_tried_again(
    world: GitopsWorld, gateway: FollowingGateway, reports: dict[str, Path], identity: dict[str, str]
) -> None:
    before = world.head()
    world.promote(reports["bad"])
    promoted = world.head()
    world.sync()
    with SteadyTraffic(gateway.url) as traffic:
        gateway.wait_record("the rollback", 480, reason=lambda text: "was rolled back here" in text)
    assert traffic.failed == []
    settled = world.settle(gateway.url)
    assert settled.action == "settled"
    desired = world.desired()
    assert desired.candidate is None
    assert desired.rejection(identity["bad"]) is not None
    assert "prediction_drift" in desired.rejected[-1].incident
    experiments = {item["experiment"] for item in gateway.record()["served"]["rejections"]}
    for _ in range(3):  # a syncer that re-applies what was promoted before, again and again
        for commit in (promoted, before):
            world.sync(commit)
            gateway.wait_record("the old commit", candidate=identity["bad"] if commit == promoted else "",
                                action="none")  # fmt: skip
    served = gateway.record()["served"]
    assert served["champion"] == identity["second"]
    assert {item["experiment"] for item in served["rejections"]} == experiments
    world.sync()


def test_what_cannot_be_read_or_fetched_changes_nothing_and_is_told(
    world: GitopsWorld, gateway: FollowingGateway, registry: tuple[FakeRegistry, str], reports: dict[str, Path],
    identity: dict[str, str],
) -> None:  # fmt: skip
    settled = world.git("show", "main:deploy/overlays/staging/delivery.yaml")
    absent = settled.replace("candidate: null", f"candidate: {{bundle: '{registry[1]}/acme/lending-bundle@sha256:"
                             f"{'0' * 64}', identity: '{'1' * 64}'}}")  # fmt: skip
    faults = {
        "is not valid YAML": "service: [",
        "an unresolved merge conflict": f"<<<<<<< HEAD\n{settled}",
        "cannot be read": None,
        "is of the service other": settled.replace("service: lending", "service: other"),
        "is no key of this file": settled + "surprise: 1\n",
        "0000000": absent,
    }
    with SteadyTraffic(gateway.url) as traffic:
        for words, content in faults.items():
            world.mount(content)
            record = gateway.wait_record(words, fault=lambda text, words=words: words in text)
            assert record["served"]["champion"] == identity["second"]
            assert record["hint"]
        world.sync()
        gateway.wait_record("recovery", fault="", reason="served as git says")
        world.promote(reports["third"])
        registry[0].down = True
        world.sync()
        gateway.wait_record("refused credentials", fault=lambda text: "401" in text or "credentials" in text)
        registry[0].down = False
        gateway.wait_record("the rollout after it", 480, reason=lambda text: "is promoted here" in text, fault="")
    assert traffic.failed == []
    assert world.settle(gateway.url).action == "settled"
    world.sync()
    gateway.wait_record("the settlement", reason="served as git says")


def test_a_revert_aborts_and_a_revert_of_the_champion_swaps_at_once(
    world: GitopsWorld, gateway: FollowingGateway, reports: dict[str, Path], identity: dict[str, str]
) -> None:
    settled = world.head()
    world.recipe.write_text(world.recipe.read_text().replace(ROLLOUT, ENDLESS))
    world.promote(reports["fourth"])
    world.sync()
    gateway.wait_record("the rollout", candidate=identity["fourth"], progress=lambda text: "live" in text or text)
    world.revert(world.head())
    world.sync()
    record = gateway.wait_record("the abort", candidate="", action="none", reason="served as git says")
    assert record["served"] | {"rejections": []} == {
        "service": "lending", "champion": identity["third"], "candidate": "", "progress": "", "busy": False,
        "rejections": [],
    }  # fmt: skip
    world.recipe.write_text(world.recipe.read_text().replace(ENDLESS, ROLLOUT))
    world.promote(reports["fourth"])  # what git took back by itself is no judgement: it may be tried again
    world.sync()
    with SteadyTraffic(gateway.url) as traffic:
        gateway.wait_record("the second try", 480, reason=lambda text: "is promoted here" in text)
        assert world.settle(gateway.url).action == "settled"
        world.sync()
        gateway.wait_record("the settlement", reason="served as git says")
        world.mount(world.git("show", f"{settled}:deploy/overlays/staging/delivery.yaml"))
        gateway.wait_record("the swap", champion=identity["third"], action="none", reason="served as git says")
    assert traffic.failed == []


def test_a_restart_goes_on_with_what_was_served_and_does_not_swap(
    world: GitopsWorld, gateway: FollowingGateway, identity: dict[str, str]
) -> None:
    served = gateway.record()["served"]["champion"]
    assert gateway.stop() == 0
    world.mount("service: [")
    again = FollowingGateway(world.mounted.file, int(gateway.url.rpartition(":")[2]), gateway.state)
    try:
        again.wait_ready()
        record = again.wait_record("the fault", fault=lambda text: "is not valid YAML" in text)
        assert record["served"]["champion"] == served
    finally:
        assert again.stop() == 0
