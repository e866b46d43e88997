"""What becomes of the observer costs the gateway nothing: killed, hung, broken, or with a disk that is full."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from file_limit import failing_writes
from mlflowkit.judging.online.evidence import Evidence
from mlflowkit.service_state.records import read_json
from mlflowkit.serving.feedback.intake import Feedback, Intake, read_since
from mlflowkit.serving.observer import observer_client as taps
from mlflowkit.serving.observer.observer_client import ObserverTap, command
from mlflowkit.serving.observer.prediction_log import read_log
from mlflowkit.serving.protocol.http_error import Refusal
from mlflowkit.values import RoutingTable, Variant
from observing import SIGNATURE, classified, mirrored, record

DEADLINE = 30.0


def wait_for(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE
    while not (value := found()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "signature.json").write_text(SIGNATURE.model_dump_json())
    made = tmp_path / "services" / "lending"
    made.mkdir(parents=True)
    return made


def table(folder: Path) -> RoutingTable:
    bundles = folder.parent.parent
    champion = Variant("champion", "v1", "d1", str(bundles / "one"))
    shadow = Variant("candidate", "v2", "d2", str(bundles / "two"), role="shadow", weight=0.0)
    return RoutingTable("lending", 3, (champion, shadow), experiment="e1")


@pytest.fixture
def start() -> Iterator[Callable[..., ObserverTap]]:
    running: list[ObserverTap] = []

    def make(argv: list[str], **options: Any) -> ObserverTap:
        running.append(ObserverTap(argv, **options))
        return running[-1]

    yield make
    for tap in running:
        if tap.pid is not None:
            os.kill(tap.pid, signal.SIGCONT)
        tap.stop()


def counted(folder: Path) -> int:
    found = read_json(folder / "evidence" / "r1.observer.json")
    return 0 if found is None else sum(Evidence.from_json(found).of("champion").predictions.values()) // 2


def logged(folder: Path) -> int:
    return sum(rows.num_rows for rows in read_log(folder / "predictions"))


def test_a_hung_observer_costs_what_it_would_have_seen(folder: Path, start: Callable[..., ObserverTap]) -> None:
    tap = start(command(folder, "r1", ""), backlog_bytes=200_000)
    tap.follow(table(folder))
    tap.answered(record("first", [0.7]))
    wait_for(lambda: counted(folder) == 1)
    assert tap.pid is not None
    os.kill(tap.pid, signal.SIGSTOP)

    def dropped() -> float:
        for number in range(1000):
            tap.answered(record(f"r{number}", [0.7, 0.2]))
        return tap.counters()["dropped"]

    wait_for(dropped)
    assert tap.counters()["backlog_bytes"] < 200_000 + 32_768 * 200  # one turn's records at most beyond the limit
    os.kill(tap.pid, signal.SIGCONT)
    wait_for(lambda: tap.counters()["backlog_bytes"] == tap.counters()["queued"] == 0)
    before = counted(folder)
    tap.answered(record("last", [0.7]))
    wait_for(lambda: counted(folder) > before)
    assert tap.counters()["restarts"] == 0


def test_an_observer_that_reads_nothing_any_more_is_replaced(
    folder: Path, start: Callable[..., ObserverTap], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taps, "STALL_SECONDS", 1.0)
    tap = start(command(folder, "r1", ""))
    tap.follow(table(folder))
    tap.answered(record("first", [0.7]))
    wait_for(lambda: counted(folder) == 1)
    stuck = tap.pid
    assert stuck is not None
    os.kill(stuck, signal.SIGSTOP)

    def replaced() -> bool:
        for number in range(1000):
            tap.answered(record(f"r{number}", [0.7]))
        return tap.pid not in (None, stuck)

    wait_for(replaced)
    monkeypatch.setattr(taps, "STALL_SECONDS", 30.0)  # the new one may take its time to start
    wait_for(lambda: counted(folder) > 1)
    assert tap.counters()["stalls"] == 1
    assert tap.counters()["restarts"] == 1


def test_an_observer_that_ends_at_once_is_started_less_and_less_often(start: Callable[..., ObserverTap]) -> None:
    tap = start([sys.executable, "-S", "-c", "raise SystemExit(3)"], backlog_bytes=100_000)

    def restarts() -> float:
        for number in range(100):
            tap.answered(record(f"r{number}", [0.7]))
        return tap.counters()["restarts"]

    wait_for(lambda: restarts() >= 2)
    begin = tap.counters()["restarts"]
    wait_for(lambda: tap.counters()["dropped"] > 0 or not restarts())
    assert tap.counters()["restarts"] <= begin + 1
    assert tap.counters()["backlog_bytes"] < 10_000_000


def test_one_that_cannot_be_started_is_no_reason_to_fail(start: Callable[..., ObserverTap]) -> None:
    tap = start(["/nonexistent/observer"])
    tap.answered(record("a", [0.7]))
    wait_for(lambda: tap.counters()["backlog_bytes"] > 0)
    assert tap.pid is None


def test_records_that_do_not_fit_together_are_left_out(folder: Path, start: Callable[..., ObserverTap]) -> None:
    tap = start(command(folder, "r1", ""))
    tap.follow(table(folder))
    odd = record("odd", [0.7], epoch=4)
    odd.inputs = {"numeric": odd.inputs["numeric"], "categorical": object()}  # type: ignore[dict-item]
    tap.answered(odd)
    tap.answered(record("unknown-table", [0.7], epoch=99))
    tap.answered(record("fine", [0.7]))
    wait_for(lambda: counted(folder) == 1)
    assert tap.counters()["unencodable"] == 1
    wait_for(lambda: tap.counters().get("observer_refused") == 1)


def test_a_full_disk_drops_and_counts_and_recovers(folder: Path, start: Callable[..., ObserverTap]) -> None:
    """No file of the observer may grow beyond 100 bytes for a while, as on a disk that is full."""
    tap = start(command(folder, "r1", ""))
    tap.follow(table(folder))
    tap.answered(record("first", [0.7]))
    wait_for(lambda: counted(folder) == 1 and logged(folder) == 1)
    assert tap.pid is not None
    _, hard = resource.prlimit(tap.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    pairs = [record(f"full-{number}", [0.7]) for number in range(100)]
    for one in pairs:
        tap.answered(one)
        tap.compared(mirrored(one, classified([0.2])))
    wait_for(lambda: tap.counters().get("observer_log_dropped", 0) >= 200)
    assert tap.counters()["observer_write_failures"] > 0
    assert counted(folder) == 1
    assert not list((folder / "predictions").glob(".*"))  # nothing half-written is left to fill the disk
    resource.prlimit(tap.pid, resource.RLIMIT_FSIZE, (hard, hard))
    wait_for(lambda: counted(folder) == 101)  # evidence that could not be written was kept
    tap.answered(record("last", [0.7]))
    wait_for(lambda: logged(folder) == 2)
    assert read_json(folder / "disagreements" / "candidate.json")["disagreements"] == 100
    assert tap.counters()["restarts"] == 0


def test_feedback_that_the_disk_does_not_take_is_not_acknowledged(tmp_path: Path) -> None:
    async def say() -> None:
        intake = Intake(tmp_path, "r1", days=1)
        long = [Feedback(f"lost-{number}", "label", ("x",)) for number in range(100)]
        await intake.accept([Feedback("first", "label", ("x",))])
        with failing_writes(), pytest.raises(Refusal, match="cannot be kept now") as caught:
            await intake.accept(long)
        assert caught.value.status == 503
        assert any(name == b"retry-after" for name, _ in caught.value.headers)
        await intake.accept([Feedback("last", "label", ("x",))])
        intake.stop()

    asyncio.run(say())
    found = [Feedback.from_line(line)[0].id for _, _, lines in read_since(tmp_path, {}) for line in lines]
    assert found[0] == "first"
    assert found[-1] == "last"


def test_an_index_that_is_damaged_is_made_anew(tmp_path: Path) -> None:
    from mlflowkit.serving.feedback.join import FeedbackJoin

    asyncio.run(_said(tmp_path / "feedback"))
    join = FeedbackJoin(tmp_path)
    join.step("e1")
    assert join.counters()["pending"] == 1
    join.close()
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"join.sqlite{suffix}").unlink(missing_ok=True)
    (tmp_path / "join.sqlite").write_bytes(b"something else entirely" * 500)
    join = FeedbackJoin(tmp_path)
    join.step("e1")
    assert join.counters()["pending"] == 1
    join.close()


async def _said(folder: Path) -> None:
    intake = Intake(folder, "r1", days=1)
    await intake.accept([Feedback("a", "label", ("x",))])
    intake.stop()
