"""Suites of the ports that hold state: control records, the journal, objects."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from mlflowkit.errors import ConflictError, MlkitError, ServiceError, StoreError, UsageError
from mlflowkit.ports import ControlRecords, Journal, ObjectStore
from mlflowkit.testing.concurrency import ROUNDS, WRITERS, in_processes, in_threads, refusal
from mlflowkit.values import (
    STAGES,
    Alias,
    HeldLease,
    Lineage,
    Owner,
    Published,
    RunDelivery,
    RunEnd,
    RunRecord,
    StageResult,
    StepLease,
    StepRecord,
    StepResult,
    candidate_alias,
)

# ---------------------------------------------------------------------------------------------------- control records


class ControlRecordsContract:
    """What every adapter of `ports.ControlRecords` must do."""

    def open(self, folder: Path) -> ControlRecords:
        """Open the records of a folder (or database); those of the same folder are the same, in any process."""
        raise NotImplementedError

    def test_a_record_reads_as_it_was_written(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        assert records.get("services/lending/table.json") is None
        version = records.put("services/lending/table.json", b'{"a": 1}\x00\xff')
        record = records.get("services/lending/table.json")
        assert record is not None
        assert (record.value, record.version) == (b'{"a": 1}\x00\xff', version)
        assert self.open(tmp_path).get("services/lending/table.json") == record
        records.put("empty", b"", durable=False)
        secret = records.put("services/lending/isolated/1.json", b"token", private=True)
        assert [records.get(key) for key in ("empty", "services/lending/isolated/1.json")] != [None, None]
        assert records.list("services/lending/isolated/*")[0].version == secret

    def test_every_write_has_a_version_of_its_own(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        versions = [records.put("a.json", b"same", durable=False) for _ in range(200)]
        for _ in range(50):
            versions.append(records.put_if("a.json", b"same", versions[-1]))
        assert len(set(versions)) == len(versions)

    def test_a_conditional_write_needs_the_version_that_was_read(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        refusal(ConflictError, lambda: records.put_if("a.json", b"1", "no version"))
        first = records.put_if("a.json", b"1", None)
        refusal(ConflictError, lambda: records.put_if("a.json", b"2", None))
        second = records.put_if("a.json", b"2", first)
        refusal(ConflictError, lambda: records.put_if("a.json", b"3", first))
        record = records.get("a.json")
        assert record is not None
        assert (record.value, record.version) == (b"2", second)

    def test_deleting_is_idempotent_and_may_be_conditional(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        records.delete("folder/a.json")
        records.delete("folder/a.json", version="any")
        first = records.put("folder/a.json", b"1")
        second = records.put("folder/a.json", b"2")
        refusal(ConflictError, lambda: records.delete("folder/a.json", version=first))
        assert records.get("folder/a.json") is not None
        records.delete("folder/a.json", version=second)
        records.delete("folder/a.json", version=second)
        assert records.get("folder/a.json") is None
        for key in ("folder/b.json", "folder/deep/c.json", "folders.json"):
            records.put(key, b"1")
        records.delete("folder")
        assert [entry.key for pattern in ("*", "*/*", "*/*/*") for entry in records.list(pattern)] == ["folders.json"]

    def test_a_list_is_sorted_and_has_what_matches(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        assert list(records.list("services/*/evidence/*.json")) == []
        before = time.time()
        keys = [f"services/{name}/evidence/{writer}.json" for name in ("b", "a", "a-b") for writer in ("r2", "r10")]
        versions = {key: records.put(key, b"{}") for key in keys}
        records.put("services/a/evidence/r1.prom", b"")
        records.put("services/a/evidence/deeper/r1.json", b"")
        records.put("services/a/table.json", b"")
        entries = records.list("services/*/evidence/*.json")
        assert [entry.key for entry in entries] == sorted(keys)
        assert {entry.key: entry.version for entry in entries} == versions
        assert all(before - 2 <= entry.modified <= time.time() + 2 for entry in entries)
        assert [entry.key for entry in records.list("services/a/table.json")] == ["services/a/table.json"]
        assert list(records.list("services/c/table.json")) == []

    def test_what_is_no_key_is_refused(self, tmp_path: Path) -> None:
        folder = tmp_path / "state"
        (tmp_path / "outside.json").write_text("mine")
        records = self.open(folder)
        for key in (
            "",
            "/etc/passwd",
            "../outside.json",
            "a/../../outside.json",
            "a//b",
            "a/",
            "a\0b",
            ".a",
            "a/.b",
            "*",
        ):
            for call in (records.get, records.delete, partial(records.put, value=b"1")):
                refusal(ServiceError, partial(call, key))
            refusal(ServiceError, partial(records.put_if, key, b"1", None))
        refusal(ServiceError, lambda: records.list("../*"))
        refusal(ServiceError, lambda: records.lock("../outside").__enter__())
        assert (tmp_path / "outside.json").read_text() == "mine"

    def test_a_watch_reports_a_creation_a_change_and_a_deletion(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        patterns = ("a/table.json", "a/evidence/*.json")
        assert records.watch(patterns, {}, 0.0) == {}
        changes: list[Callable[[], object]] = [
            lambda: records.put("a/table.json", b"1"),
            lambda: records.put("a/evidence/r1.json", b"1"),
            lambda: records.put("a/table.json", b"1"),
            lambda: records.delete("a/evidence/r1.json"),
            lambda: records.delete("a/table.json"),
        ]
        known = records.watch(patterns, {}, 0.0)
        for change in changes:
            timer = threading.Timer(0.05, change)
            timer.start()
            begin = time.monotonic()
            versions = records.watch(patterns, known, 20.0)
            assert versions != known
            assert time.monotonic() - begin < 10.0
            timer.join()
            entries = [entry for pattern in patterns for entry in records.list(pattern)]
            assert versions == {entry.key: entry.version for entry in entries}
            known = versions
        assert known == {}

    def test_a_watch_without_a_change_ends_at_its_timeout(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)
        records.put("a.json", b"1")
        known = records.watch(["a.json"], {}, 5.0)
        begin = time.monotonic()
        records.put("b.json", b"1")
        assert records.watch(["a.json"], known, 0.2) == known
        assert 0.19 <= time.monotonic() - begin < 5.0

    def test_of_concurrent_creators_one_wins(self, tmp_path: Path) -> None:
        for name, run in (("threads", in_threads), ("processes", in_processes)):
            run([partial(self._create, tmp_path, name, writer) for writer in range(WRITERS)])
            records = self.open(tmp_path)
            wins = [entry.key.split("/")[2] for entry in records.list(f"{name}/wins/*/*")]
            assert sorted(wins, key=int) == [str(number) for number in range(ROUNDS)]
            for entry in records.list(f"{name}/wins/*/*"):
                record = records.get(f"{name}/{entry.key.split('/')[2]}.json")
                assert record is not None
                assert record.value.decode() == entry.key.rpartition("/")[2]

    def _create(self, folder: Path, name: str, writer: int) -> None:
        records = self.open(folder)
        for number in range(ROUNDS):
            try:
                records.put_if(f"{name}/{number}.json", str(writer).encode(), None)
            except ConflictError:
                continue
            records.put(f"{name}/wins/{number}/{writer}", b"", durable=False)

    def test_no_concurrent_conditional_write_is_lost(self, tmp_path: Path) -> None:
        for name, run in (("threads", in_threads), ("processes", in_processes)):
            self.open(tmp_path).put(f"{name}.json", b"0")
            run([partial(self._increment, tmp_path, f"{name}.json")] * WRITERS)
            record = self.open(tmp_path).get(f"{name}.json")
            assert record is not None
            assert int(record.value) == WRITERS * ROUNDS

    def _increment(self, folder: Path, key: str) -> None:
        records, done = self.open(folder), 0
        while done < ROUNDS:
            record = records.get(key)
            assert record is not None
            try:
                records.put_if(key, str(int(record.value) + 1).encode(), record.version)
                done += 1
            except ConflictError:
                continue

    def test_a_reader_never_sees_a_part(self, tmp_path: Path) -> None:
        writing = [partial(self._overwrite, tmp_path, byte) for byte in (b"a", b"b", b"c")]
        self.open(tmp_path).put("a.json", b"a" * 50_000)
        in_threads([*writing, partial(self._read_whole, tmp_path)])
        in_processes([*writing, partial(self._read_whole, tmp_path)])

    def _overwrite(self, folder: Path, byte: bytes) -> None:
        records = self.open(folder)
        for number in range(4 * ROUNDS):
            records.put("a.json", byte * (50_000 + number), durable=False)

    def _read_whole(self, folder: Path) -> None:
        records = self.open(folder)
        for _ in range(4 * ROUNDS):
            record = records.get("a.json")
            assert record is not None
            assert len(record.value) >= 50_000
            assert len(set(record.value)) == 1
            assert [entry.key for entry in records.list("*")] == ["a.json"]

    def test_a_lock_excludes_threads_and_processes(self, tmp_path: Path) -> None:
        for name, run in (("threads", in_threads), ("processes", in_processes)):
            self.open(tmp_path).put(f"{name}.json", b"0")
            run([partial(self._locked_increment, tmp_path, f"{name}.json")] * WRITERS)
            record = self.open(tmp_path).get(f"{name}.json")
            assert record is not None
            assert int(record.value) == WRITERS * ROUNDS

    def _locked_increment(self, folder: Path, key: str) -> None:
        records = self.open(folder)
        for _ in range(ROUNDS):
            with records.lock("services/lending/counting"):
                record = records.get(key)
                assert record is not None
                records.put(key, str(int(record.value) + 1).encode(), durable=False)

    def test_a_lock_ends_with_an_exception(self, tmp_path: Path) -> None:
        records = self.open(tmp_path)

        def fail() -> None:
            with records.lock("a"):
                raise MlkitError("stop")

        refusal(MlkitError, fail)
        in_threads([lambda: records.lock("a").__enter__()])


# ------------------------------------------------------------------------------------------------------------ journal

ELSEWHERE = Owner("another-machine", 1, "0")
"""An owner of which nobody here knows whether it is alive."""


class JournalContract:
    """What every adapter of `ports.Journal` must do."""

    def open(self, folder: Path, *, create: bool = True) -> Journal:
        """Open the journal of a folder (or database); that of the same folder is the same, in any process."""
        raise NotImplementedError

    def this_owner(self) -> Owner:
        """The owner for which the journal finds this process alive."""
        raise NotImplementedError

    def test_a_missing_journal_reads_as_empty_and_is_not_created(self, tmp_path: Path) -> None:
        with self.open(tmp_path / "state", create=False) as journal:
            assert journal.runs() == ()
            assert journal.result("f" * 64) is None
            assert journal.alias("tiny", "champion") is None
            refusal(UsageError, lambda: journal.run("last"))
            journal.save_file_digests({"a.csv": ("1", "d")})
        assert not (tmp_path / "state").exists()

    def test_a_run_reads_as_it_was_recorded(self, tmp_path: Path) -> None:
        record = run_record("20260101-000000-aaaa", started=1.0)
        with self.open(tmp_path) as journal:
            journal.start_run(record, self.this_owner())
            assert journal.run("last") == record
            journal.begin_step(record.run, "data")
            assert [step.status for step in journal.run("last").steps] == ["running", "pending"]
            result = StageResult({"rows": 2.0})
            done = replace(record.steps[0], status="done", seconds=1.5, digest="d" * 64, result=result)
            journal.finish_step(record.run, done)
            lineage = Lineage("abc", git_dirty=True, data_version="v1", recipe_digest="r")
            journal.set_lineage(record.run, lineage)
            end = RunEnd("done", bundle="b" * 64, blessed=True, endpoint="http://x")
            journal.finish_run(record.run, end)
        with self.open(tmp_path) as journal:
            read = journal.run(record.run[:12])
            assert (read.status, read.bundle, read.blessed, read.endpoint) == ("done", "b" * 64, True, "http://x")
            assert (read.steps[0], read.lineage, read.recipe) == (done, lineage, record.recipe)
            assert read.finished is not None

    def test_what_a_run_owes_is_written_with_its_end_and_once(self, tmp_path: Path) -> None:
        first, second = (run_record(f"2026010{number}-000000-aaaa", started=float(number)) for number in (1, 2))
        owed = [RunDelivery(run.run, "mlflow", run.run, created=run.started) for run in (first, second)]
        shared = [RunDelivery(run.run, "hub org/m", "identity", created=run.started) for run in (first, second)]
        with self.open(tmp_path) as journal:
            for run, *deliveries in zip((first, second), owed, shared, strict=True):
                journal.start_run(run, self.this_owner())
                assert not [item for item in journal.deliveries() if item.run == run.run]
                journal.finish_run(run.run, RunEnd("done", deliveries=tuple(deliveries)))
            assert journal.deliveries() == (shared[0], owed[0], owed[1]), "one of one target and key"
            assert journal.run(first.run).deliveries == (shared[0], owed[0])
            tried = replace(owed[0], status="failed", attempts=2, error="bad \ud800 answer", receipt="", tried=7.0)
            journal.save_delivery(tried)
            (read,) = journal.deliveries("failed")
            assert read == replace(tried, error="bad \\ud800 answer")
            assert journal.deliveries("pending") == (shared[0], owed[1])
            journal.owe([owed[0], shared[1]])
            assert len(journal.deliveries()) == 3
            assert journal.deliveries("failed") == (read,), "what is known stays as it is"
            journal.owe([owed[0]], again=True)
            assert journal.deliveries("pending") == (shared[0], owed[0], owed[1])
            assert journal.deliveries("delivered") == ()

    def test_runs_are_listed_newest_first_and_found_by_what_they_published(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as journal:
            for number, name in enumerate(("tiny", "other", "tiny")):
                record = run_record(f"2026010{number}-000000-aaaa", name, started=float(number))
                journal.start_run(record, self.this_owner())
                for step in record.steps:
                    journal.finish_step(record.run, replace(step, status="done"))
                journal.finish_run(record.run, RunEnd("done"))
            ids = ["20260102-000000-aaaa", "20260101-000000-aaaa", "20260100-000000-aaaa"]
            assert [run.run for run in journal.runs()] == ids
            assert [run.run for run in journal.runs(1)] == ids[:1]
            assert [run.run for run in journal.runs(name="other")] == ids[1:2]
            refusal(UsageError, lambda: journal.run("2026010"))
            refusal(UsageError, lambda: journal.run("no such run"))
            fingerprints = [step.fingerprint for step in record.steps]
            found = journal.finished_run("tiny", fingerprints)
            assert found is not None
            assert found.run == ids[0]
            assert journal.finished_run("tiny", fingerprints[:1]) is None
            assert journal.finished_run("tiny", []) is None

    def test_a_run_of_a_dead_process_is_interrupted(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as journal:
            owner = self.this_owner()
            dead = replace(owner, started=owner.started + "9")
            journal.start_run(run_record("20260101-000000-aaaa", started=1.0), dead)
            journal.begin_step("20260101-000000-aaaa", "data")
            journal.start_run(run_record("20260102-000000-bbbb", started=2.0), owner)
            journal.start_run(run_record("20260103-000000-cccc", started=3.0), ELSEWHERE)
            assert journal.run("20260101").status == "interrupted"
            assert journal.sweep() == ("20260101-000000-aaaa",)
            assert journal.sweep() == ()
            assert [run.status for run in journal.runs()] == ["running", "running", "interrupted"]
            assert [step.status for step in journal.run("20260101").steps] == ["interrupted", "pending"]

    def test_a_result_is_published_under_the_current_lease_only(self, tmp_path: Path) -> None:
        result = step_result("first")
        with self.open(tmp_path) as journal:
            old = journal.take_lease(result.fingerprint, ELSEWHERE, "first", "train")
            assert isinstance(old, StepLease)
            held = journal.take_lease(result.fingerprint, self.this_owner(), "second", "train")
            assert held == journal.held_lease(result.fingerprint)
            assert isinstance(held, HeldLease)
            assert (held.owner, held.run, held.fence) == (ELSEWHERE, "first", old.fence)
            new = journal.take_lease(result.fingerprint, self.this_owner(), "second", "train", over=held)
            assert isinstance(new, StepLease)
            assert new.fence > old.fence
            refusal(StoreError, lambda: journal.publish(result, old, alias_of("champion", "1")))
            assert (journal.result(result.fingerprint), journal.alias("tiny", "champion")) == (None, None)
            journal.publish(step_result("second"), new, alias_of("champion", "1"))
            published = journal.result(result.fingerprint)
            assert published is not None
            assert replace(published, created=0.0) == step_result("second")
            assert journal.latest("tiny", "train") == published
            assert journal.latest("other", "train") is None
            assert journal.finished_fingerprints(["a" * 64, result.fingerprint]) == {result.fingerprint}

    def test_a_lease_that_was_renewed_is_not_taken_over(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as journal:
            lease = journal.take_lease("f" * 64, ELSEWHERE, "theirs", "train")
            assert isinstance(lease, StepLease)
            seen = journal.held_lease("f" * 64)
            journal.renew_lease(lease)
            held = journal.take_lease("f" * 64, self.this_owner(), "mine", "train", over=seen)
            assert isinstance(held, HeldLease)
            assert seen is not None
            assert held.heartbeat > seen.heartbeat
            assert journal.live_fingerprints() == {"f" * 64}
            journal.release_lease(lease)
            assert (journal.held_lease("f" * 64), journal.live_fingerprints()) == (None, set())
            refusal(StoreError, lambda: journal.publish(step_result("theirs"), lease))
            again = journal.take_lease("f" * 64, ELSEWHERE, "theirs", "train")
            assert isinstance(again, StepLease)
            assert again.fence > lease.fence

    def test_of_concurrent_takers_one_gets_the_lease(self, tmp_path: Path) -> None:
        with self.open(tmp_path):
            pass
        for name, run in (("threads", in_threads), ("processes", in_processes)):
            run([partial(self._take_leases, tmp_path, name, writer) for writer in range(WRITERS)])
            with self.open(tmp_path) as journal:
                for number in range(5):
                    taken = journal.file_digests([f"{name}-{number}-{writer}" for writer in range(WRITERS)])
                    held = journal.held_lease(f"{name}-{number}")
                    assert held is not None
                    assert list(taken) == [f"{name}-{number}-{held.run}"]

    def _take_leases(self, folder: Path, name: str, writer: int) -> None:
        with self.open(folder) as journal:
            for number in range(5):
                lease = journal.take_lease(f"{name}-{number}", ELSEWHERE, str(writer), "train")
                if isinstance(lease, StepLease):
                    journal.save_file_digests({f"{name}-{number}-{writer}": ("", "")})

    def test_a_replaced_champion_keeps_an_alias_of_its_own(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as journal:
            journal.put_alias(alias_of("champion", "1"))
            journal.put_alias(alias_of("champion", "1"))
            assert journal.alias("tiny", candidate_alias("1" * 64)) is None
            journal.put_alias(alias_of("champion", "2"))
            champion, before = journal.alias("tiny", "champion"), journal.alias("tiny", candidate_alias("1" * 64))
            assert champion is not None
            assert before is not None
            assert (champion.identity, before.identity) == ("2" * 64, "1" * 64)
            assert champion.created > 0
            assert journal.alias("other", "champion") is None

    def test_file_digests_are_cached_by_path(self, tmp_path: Path) -> None:
        with self.open(tmp_path) as journal:
            journal.save_file_digests({"/a.csv": ("1", "d1"), "/b.csv": ("2", "d2")})
            journal.save_file_digests({"/b.csv": ("3", "d3")})
            journal.save_file_digests({})
            assert journal.file_digests(["/a.csv", "/b.csv", "/c.csv"]) == {
                "/a.csv": ("1", "d1"),
                "/b.csv": ("3", "d3"),
            }


def run_record(run: str, name: str = "tiny", *, started: float) -> RunRecord:
    """A run that begins, of two steps."""
    steps = tuple(StepRecord(stage, "run", "no result", stage[0] * 64, "pending") for stage in STAGES[:2])
    lineage, recipe = Lineage("", git_dirty=False, data_version="", recipe_digest=""), {"name": name, "seed": 7}
    return RunRecord(
        run, name, "/recipe.yaml", "running", started, None, lineage, recipe, overrides=("seed=7",), steps=steps
    )


def step_result(run: str) -> StepResult:
    """A result of a train step, published by a run."""
    published = Published("d" * 64, {"model": 3})
    result = StageResult({"loss": 0.5}, {"epochs": 2})
    return StepResult("f" * 64, "train", "tiny", published, result, {"seed": "7"}, {"data": "e" * 64}, run, 1.5)


def alias_of(alias: str, digit: str) -> Alias:
    """An alias of a version whose digests repeat a digit."""
    return Alias("tiny", alias, digit * 64, digit * 64, "o" * 64, "", "", "20260101-000000-aaaa")


# ------------------------------------------------------------------------------------------------------------ objects


class ObjectStoreContract:
    """What every adapter of `ports.ObjectStore` must do."""

    def open(self, folder: Path) -> ObjectStore:
        """Open the store of a folder (or bucket); that of the same folder is the same, in any process."""
        raise NotImplementedError

    def test_a_published_folder_reads_as_it_was_written(self, tmp_path: Path) -> None:
        store = self.open(tmp_path)
        published = publish(store, {"model/weights.bin": b"\x00\xff", "table.json": b"{}", "empty": b""})
        assert dict(published.files) == {"model/weights.bin": 2, "table.json": 2, "empty": 0}
        again = self.open(tmp_path)
        assert again.intact(published)
        folder = again.verified(published)
        assert folder == again.path(published.digest)
        assert (folder / "model" / "weights.bin").read_bytes() == b"\x00\xff"
        assert all(file.stat().st_mode & 0o222 == 0 for file in folder.rglob("*") if file.is_file())

    def test_a_digest_is_that_of_names_and_contents(self, tmp_path: Path) -> None:
        store = self.open(tmp_path)
        contents = [{"a": b"1"}, {"a": b"2"}, {"b": b"1"}, {"x/a": b"1"}, {"a": b"1", "b": b""}, {}]
        digests = [publish(store, content).digest for content in contents]
        assert len(set(digests)) == len(contents)
        assert [publish(store, content).digest for content in contents] == digests

    def test_a_digest_is_created_once(self, tmp_path: Path) -> None:
        store = self.open(tmp_path)
        first = publish(store, {"a": b"1"})
        stamp = (store.path(first.digest) / "a").stat().st_mtime_ns
        assert publish(store, {"a": b"1"}) == first
        assert (store.path(first.digest) / "a").stat().st_mtime_ns == stamp

    def test_damage_is_found_when_it_is_read_and_mended_by_publishing_again(self, tmp_path: Path) -> None:
        store = self.open(tmp_path)
        assert not store.intact(Published("0" * 64, {"a": 1}))
        refusal(StoreError, lambda: store.verified(Published("0" * 64, {"a": 1})))
        published = publish(store, {"a": b"12", "b": b"3"})
        file = store.path(published.digest) / "a"
        for damage, noticed in ((b"1", True), (b"123", True), (b"21", False), (None, True)):
            file.unlink()
            if damage is not None:
                file.write_bytes(damage)
            refusal(StoreError, lambda: store.verified(published))
            assert not store.intact(published) or not noticed
            assert publish(store, {"a": b"12", "b": b"3"}) == published
            assert store.verified(published) == store.path(published.digest)
            assert file.read_bytes() == b"12"

    def test_only_plain_files_are_published(self, tmp_path: Path) -> None:
        store = self.open(tmp_path)
        out = store.workspace("f" * 64, 1)
        (out / "link").symlink_to("/etc/hostname")
        refusal(StoreError, lambda: store.publish(out))

    def test_a_workspace_is_empty_and_ends_those_of_earlier_holders(self, tmp_path: Path) -> None:
        store = self.open(tmp_path)
        first = store.workspace("f" * 64, 1)
        (first / "half").write_text("half")
        other, second = store.workspace("a" * 64, 1), store.workspace("f" * 64, 2)
        assert (list(second.iterdir()), first.exists(), other.exists()) == ([], False, True)
        store.discard(second)
        store.discard(second)
        assert not second.exists()

    def test_scratch_survives_until_it_is_discarded(self, tmp_path: Path) -> None:
        (self.open(tmp_path).scratch("f" * 64) / "epoch-1").write_text("1")
        store = self.open(tmp_path)
        assert (store.scratch("f" * 64) / "epoch-1").read_text() == "1"
        store.discard_scratch("f" * 64)
        store.discard_scratch("f" * 64)
        assert list(store.scratch("f" * 64).iterdir()) == []

    def test_a_sweep_removes_what_no_live_lease_holds(self, tmp_path: Path) -> None:
        store = self.open(tmp_path)
        published = publish(store, {"a": b"1"})
        live, dead, done = "a" * 64, "b" * 64, "c" * 64
        workspaces = [store.workspace(fingerprint, 1) for fingerprint in (live, dead)]
        for fingerprint in (live, dead, done):
            (store.scratch(fingerprint) / "epoch-1").write_text("1")
        store.sweep(lambda: {live}, lambda fingerprints: {live, done} & set(fingerprints))
        assert [folder.exists() for folder in workspaces] == [True, False]
        assert [len(list(store.scratch(name).iterdir())) for name in (live, dead, done)] == [1, 1, 0]
        assert store.intact(published)

    def test_concurrent_publishers_of_one_content_agree(self, tmp_path: Path) -> None:
        for run in (in_threads, in_processes):
            run([partial(self._publish_all, tmp_path, writer) for writer in range(WRITERS)])
            store = self.open(tmp_path)
            for number in range(5):
                assert store.intact(publish(store, {"a": str(number).encode()}, writer=WRITERS))

    def _publish_all(self, folder: Path, writer: int) -> None:
        store = self.open(folder)
        for number in range(5):
            published = publish(store, {"a": str(number).encode()}, writer=writer)
            assert store.verified(published).is_dir()


def publish(store: ObjectStore, files: Mapping[str, bytes], writer: int = 0) -> Published:
    """Publish files by name, from a workspace of a ``writer``'s own."""
    out = store.workspace(f"{writer:064d}"[::-1], 1)
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    try:
        return store.publish(out)
    finally:
        store.discard(out)
