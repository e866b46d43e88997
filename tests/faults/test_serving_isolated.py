"""A version in a process of its own that crashes, hangs, raises or eats memory, on a real local Ray under load.

No request of a client fails, whatever it does, as challenger and as shadow; and it is asked again once it is well.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlflowkit.adapters.ray_serve import RayServePlatform
from mlflowkit.adapters.ray_serve.isolated import read_addresses
from mlflowkit.bundle import Bundle
from mlflowkit.judging.online.evidence import Evidence, VariantCounts, merge
from mlflowkit.service_state.records import ServiceFiles, read_json
from mlflowkit.stages.deploy import ServeSection
from mlflowkit.values import RoutingTable, Variant
from tests.support import ROOT
from tests.support.lending_bundle import ROWS, make_bundle
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class IsolatedService:
    """A service whose champion is well and whose other version does what a file says."""

    def __init__(self, folder: Path) -> None:
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.good = make_bundle(folder / "good" / "bundle", 1)
        self.bad = make_bundle(folder / "bad" / "bundle", 2)
        self.platform = RayServePlatform(folder / ".mlkit", "tests.support.serving_faults:FaultyRuntime")
        self.files = ServiceFiles(folder / ".mlkit" / "services" / "lending")

    def start(self) -> None:
        isolated = {"cpus": 0.1, "memory_mb": 256}
        self.url = self.platform.ensure(
            ServeSection(service="lending", port=0, timeout_seconds=2.0, isolated=isolated)  # type: ignore[arg-type]
        )
        self.publish(variant("champion", self.good))

    def publish(self, *variants: Variant) -> int:
        table = self.files.table()
        epoch = 1 if table is None else table.epoch + 1
        self.platform.publish(RoutingTable("lending", epoch, variants, experiment="faults", salt="faults"))
        return epoch

    def plant(self, word: str) -> None:
        temporary = self.faults / ".next"
        temporary.write_text(word)
        temporary.rename(self.faults / "bad")

    def pids(self) -> set[int]:
        return {report.pid for report in read_addresses(self.files, self.bad.manifest.identity).values()}

    def counts(self, name: str, epoch: int) -> VariantCounts:
        parts = [Evidence.from_json(read_json(path)) for path in (self.files.folder / "evidence").glob("*.json")]
        return merge("faults", parts).of(name, (epoch,))


def variant(name: str, made: Bundle, **more: Any) -> Variant:
    return Variant(name, made.manifest.version, made.manifest.identity, str(made.path), **more)


class Load:
    """Clients that ask without pause until the end of the block."""

    def __init__(self, url: str, clients: int = 3) -> None:
        self.seen: list[tuple[int, str, str]] = []
        self._url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=20) as session:
            while not self._stop.is_set():
                reply = session.post("/predict", json={"rows": ROWS})
                heads = reply.headers
                self.seen.append(
                    (reply.status_code, heads.get("x-mlkit-variant", ""), heads.get("x-mlkit-fallback-from", ""))
                )

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def until(self, found: Callable[[list[tuple[int, str, str]]], Any], seconds: float = 240.0) -> None:
        """Wait until what was seen from now on is as ``found`` says."""
        begin = len(self.seen)
        wait_for(lambda: found(self.seen[begin:]), seconds)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IsolatedService]:
    made = IsolatedService(tmp_path_factory.mktemp("isolated"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLKIT_TEST_FAULTS", str(made.faults))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        try:
            made.start()
            yield made
        finally:
            made.platform.down()


@pytest.mark.parametrize("word", ["raise", "segfault", "hang", "eat"])
def test_a_challenger_in_trouble_fails_no_request_and_is_asked_again_when_it_is_well(
    world: IsolatedService, word: str
) -> None:
    challenger = variant("challenger", world.bad, role="challenger", weight=0.5, placement="isolated")
    champion = variant("champion", world.good, weight=0.5)
    epoch = world.publish(champion, challenger)
    world.plant("")
    with Load(world.url) as load:
        load.until(lambda seen: sum(name == "challenger" for _, name, _ in seen) > 20)
        pids = world.pids()
        assert pids
        world.plant(word)
        load.until(lambda seen: sum(before == "challenger" for *_, before in seen) > 20)
        load.until(lambda seen: len(seen) > 100)
        world.plant("")
        load.until(lambda seen: sum(name == "challenger" for _, name, _ in seen) > 20)
    assert Counter(status for status, *_ in load.seen) == {200: len(load.seen)}
    if word in ("segfault", "eat"):
        wait_for(lambda: world.pids() and not world.pids() & pids)  # the process is replaced
    wait_for(lambda: world.counts("challenger", epoch).errors > 20)
    assert world.counts("champion", epoch).errors == 0
    world.publish(champion_of(champion))


@pytest.mark.parametrize("word", ["raise", "hang", "segfault", "wedge"])
def test_a_shadow_in_trouble_costs_its_own_answers_only(world: IsolatedService, word: str) -> None:
    shadow = variant("shadow", world.bad, role="shadow", weight=0.0, placement="isolated")
    epoch = world.publish(champion_of(variant("champion", world.good)), shadow)
    world.plant("")
    with Load(world.url) as load:
        wait_for(lambda: answered(world.counts("shadow", epoch)) > 50)  # the process before it may have been replaced
        errors = world.counts("shadow", epoch).errors
        world.plant(word)
        wait_for(lambda: world.counts("shadow", epoch).errors > errors + 20)
        load.until(lambda seen: len(seen) > 200)
    world.plant("")
    assert {(status, name) for status, name, _ in load.seen} == {(200, "champion")}
    wait_for(lambda: world.counts("champion", epoch).requests == len(load.seen))
    assert world.counts("shadow", epoch).mirrored == len(load.seen)
    assert world.counts("champion", epoch).errors == 0


def answered(counts: VariantCounts) -> int:
    return counts.requests - counts.errors


def champion_of(champion: Variant) -> Variant:
    return replace(champion, weight=1.0)
