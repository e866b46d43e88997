"""A failed observer costs the gateway nothing: killed, hung, broken, or with a full disk."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.judging.online.evidence import Evidence
from mlflowkit.service_state.records import read_json
from mlflowkit.serving.feedback.intake import Feedback, Intake, read_since
from mlflowkit.serving.observer import observer_client
from mlflowkit.serving.observer.observer_client import ObserverClient, observer_command
from mlflowkit.serving.observer.prediction_log import read_log
from mlflowkit.serving.protocol.http_error import RequestError
from mlflowkit.values import RoutingTable, Variant
from tests.support.file_limit import failing_writes
from tests.support.observing import SIGNATURE, classified, mirrored, record
from tests.support.waiting import wait_for

DEADLINE = 30.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "signature.json").write_text(SIGNATURE.model_dump_json())
    service = tmp_path / "services" / "lending"
    service.mkdir(parents=True)
    return service


def table(folder: Path) -> RoutingTable:
    bundles = folder.parent.parent
    champion = Variant("champion", "v1", "d1", str(bundles / "one"))
    shadow = Variant("candidate", "v2", "d2", str(bundles / "two"), role="shadow", weight=0.0)
    return RoutingTable("lending", 3, (champion, shadow), experiment="e1")


@pytest.fixture
def start() -> Iterator[Callable[..., ObserverClient]]:
    running: list[ObserverClient] = []

    def make(argv: list[str], **options: Any) -> ObserverClient:
        running.append(ObserverClient(argv, **options))
        return running[-1]

    yield make
    for client in running:
        if client.pid is not None:
            os.kill(client.pid, signal.SIGCONT)
        client.stop()


def counted(folder: Path) -> int:
    document = read_json(folder / "evidence" / "r1.observer.json")
    return 0 if document is None else sum(Evidence.from_json(document).of("champion").predictions.values()) // 2


def logged(folder: Path) -> int:
    return sum(rows.num_rows for rows in read_log(folder / "predictions"))


def test_a_hung_observer_costs_what_it_would_have_seen(folder: Path, start: Callable[..., ObserverClient]) -> None:
    client = start(observer_command(folder, "r1", ""), backlog_bytes=200_000)
    client.send_table(table(folder))
    client.answered(record("first", [0.7]))
    wait_for(lambda: counted(folder) == 1)
    assert client.pid is not None
    os.kill(client.pid, signal.SIGSTOP)

    def dropped() -> float:
        for number in range(1000):
            client.answered(record(f"r{number}", [0.7, 0.2]))
        return client.counters()["dropped"]

    wait_for(dropped)
    assert client.counters()["backlog_bytes"] < 200_000 + 32_768 * 200  # at most one flush of records beyond the limit
    os.kill(client.pid, signal.SIGCONT)
    wait_for(lambda: client.counters()["backlog_bytes"] == client.counters()["queued"] == 0)
    before = counted(folder)
    client.answered(record("last", [0.7]))
    wait_for(lambda: counted(folder) > before)
    assert client.counters()["restarts"] == 0


def test_an_observer_that_reads_nothing_any_more_is_replaced(
    folder: Path, start: Callable[..., ObserverClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observer_client, "STALL_SECONDS", 1.0)
    client = start(observer_command(folder, "r1", ""))
    client.send_table(table(folder))
    client.answered(record("first", [0.7]))
    wait_for(lambda: counted(folder) == 1)
    stuck = client.pid
    assert stuck is not None
    os.kill(stuck, signal.SIGSTOP)

    def replaced() -> bool:
        for number in range(1000):
            client.answered(record(f"r{number}", [0.7]))
        return client.pid not in (None, stuck)

    wait_for(replaced)
    monkeypatch.setattr(observer_client, "STALL_SECONDS", 30.0)  # the new one may take its time to start
    wait_for(lambda: counted(folder) > 1)
    assert client.counters()["stalls"] == 1
    assert client.counters()["restarts"] == 1


def test_an_observer_that_ends_at_once_is_started_less_and_less_often(start: Callable[..., ObserverClient]) -> None:
    client = start([sys.executable, "-S", "-c", "raise SystemExit(3)"], backlog_bytes=100_000)

    def restarts() -> float:
        for number in range(100):
            client.answered(record(f"r{number}", [0.7]))
        return client.counters()["restarts"]

    wait_for(lambda: restarts() >= 2)
    begin = client.counters()["restarts"]
    wait_for(lambda: client.counters()["dropped"] > 0 or not restarts())
    assert client.counters()["restarts"] <= begin + 1
    assert client.counters()["backlog_bytes"] < 10_000_000


def test_an_observer_that_cannot_be_started_does_not_stop_the_gateway(start: Callable[..., ObserverClient]) -> None:
    client = start(["/nonexistent/observer"])
    client.answered(record("a", [0.7]))
    wait_for(lambda: client.counters()["backlog_bytes"] > 0)
    assert client.pid is None


def test_records_that_do_not_fit_together_are_left_out(folder: Path, start: Callable[..., ObserverClient]) -> None:
    client = start(observer_command(folder, "r1", ""))
    client.send_table(table(folder))
    odd = record("odd", [0.7], epoch=4)
    odd.inputs = {"numeric": odd.inputs["numeric"], "categorical": object()}  # type: ignore[dict-item]
    client.answered(odd)
    client.answered(record("unknown-table", [0.7], epoch=99))
    client.answered(record("fine", [0.7]))
    wait_for(lambda: counted(folder) == 1)
    assert client.counters()["unencodable"] == 1
    wait_for(lambda: client.counters().get("observer_refused") == 1)


def test_a_full_disk_drops_and_counts_and_recovers(folder: Path, start: Callable[..., ObserverClient]) -> None:
    """No file of the observer may grow beyond 100 bytes for a while, as on a disk that is full."""
    client = start(observer_command(folder, "r1", ""))
    client.send_table(table(folder))
    client.answered(record("first", [0.7]))
    wait_for(lambda: counted(folder) == 1 and logged(folder) == 1)
    assert client.pid is not None
    _, hard = resource.prlimit(client.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    records = [record(f"full-{number}", [0.7]) for number in range(100)]
    for answer in records:
        client.answered(answer)
        client.compared(mirrored(answer, classified([0.2])))
    wait_for(lambda: client.counters().get("observer_log_dropped", 0) >= 200)
    assert client.counters()["observer_write_failures"] > 0
    assert counted(folder) == 1
    assert not list((folder / "predictions").glob(".*"))  # nothing half-written is left to fill the disk
    resource.prlimit(client.pid, resource.RLIMIT_FSIZE, (hard, hard))
    wait_for(lambda: counted(folder) == 101)  # evidence that could not be written was kept
    client.answered(record("last", [0.7]))
    wait_for(lambda: logged(folder) == 2)
    assert read_json(folder / "disagreements" / "candidate.json")["disagreements"] == 100
    assert client.counters()["restarts"] == 0


def test_feedback_that_the_disk_does_not_take_is_not_acknowledged(tmp_path: Path) -> None:
    async def send() -> None:
        intake = Intake(tmp_path, "r1", days=1)
        long = [Feedback(f"lost-{number}", "label", ("x",)) for number in range(100)]
        await intake.accept([Feedback("first", "label", ("x",))])
        with failing_writes(), pytest.raises(RequestError, match="cannot be stored now") as caught:
            await intake.accept(long)
        assert caught.value.status == 503
        assert any(name == b"retry-after" for name, _ in caught.value.headers)
        await intake.accept([Feedback("last", "label", ("x",))])
        intake.stop()

    asyncio.run(send())
    ids = [Feedback.from_line(line)[0].id for _, _, lines in read_since(tmp_path, {}) for line in lines]
    assert ids[0] == "first"
    assert ids[-1] == "last"


def test_an_index_that_is_damaged_is_rebuilt(tmp_path: Path) -> None:
    from mlflowkit.serving.feedback.join import FeedbackJoin

    asyncio.run(_send_feedback(tmp_path / "feedback"))
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


async def _send_feedback(folder: Path) -> None:
    intake = Intake(folder, "r1", days=1)
    await intake.accept([Feedback("a", "label", ("x",))])
    intake.stop()
