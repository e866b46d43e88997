"""Objects are fetched whole, checked, resumed and within bounds; what all kinds of remote sources share."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.data_access.cached_files import cached_files
from mlflowkit.data_access.object_cache import ObjectCache
from mlflowkit.data_access.remote_source import RemoteAccess, fetch_remote, resolve_remote
from mlflowkit.data_access.transfer import TransferLimits, TransientError
from mlflowkit.errors import DataError, MlkitError, StoreError, UsageError
from mlflowkit.testing import RemoteSourceContract
from tests.support.memory_source import STORES, MemorySource, MemoryStore

QUICK = TransferLimits(stall_seconds=2.0, first_wait=0.001, last_wait=0.01)
BIG = bytes(range(256)) * 20_000
SOURCE = MemorySource(kind="memory", store="s", format="csv")


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    STORES["s"] = MemoryStore({"a.csv": BIG})
    yield STORES["s"]
    del STORES["s"]


def access(folder: Path, limits: TransferLimits = QUICK) -> RemoteAccess:
    return RemoteAccess(folder, folder / "state", limits=limits, resolve_seconds=1.0)


def fetch(folder: Path, limits: TransferLimits = QUICK) -> bytes:
    asked = access(folder, limits)
    return fetch_remote(SOURCE, asked, resolve_remote(SOURCE, asked))["a.csv"].read_bytes()


class TestMemorySource(RemoteSourceContract):
    def source(self) -> MemorySource:
        return SOURCE

    def put(self, files: Mapping[str, bytes]) -> None:
        STORES["s"] = MemoryStore(dict(files), version="")

    def damage(self, path: str) -> bool:
        content = STORES["s"].objects[path]
        STORES["s"].objects[path] = content[:-2] + b"8\n"
        return True


def test_a_cut_body_is_resumed_from_the_byte_where_it_was_cut(tmp_path: Path, store: MemoryStore) -> None:
    cuts = [int(len(BIG) * 0.6)]

    def cut(path: str, start: int, content: bytes) -> Any:
        return (content[: cuts.pop()], TransientError("reset")) if cuts else content

    store.fault = cut
    assert fetch(tmp_path) == BIG
    assert store.opened == [("a.csv", 0), ("a.csv", int(len(BIG) * 0.6))]
    assert store.sent == len(BIG), "nothing was sent twice"


def test_a_body_that_ends_early_without_an_error_is_not_taken_for_the_object(
    tmp_path: Path, store: MemoryStore
) -> None:
    cuts = [100, 200]
    store.fault = lambda path, start, content: content[: cuts.pop(0)] if cuts else content
    assert fetch(tmp_path) == BIG
    assert [start for _, start in store.opened] == [0, 100, 300]


def test_a_server_that_ignores_the_range_is_read_from_the_beginning(tmp_path: Path, store: MemoryStore) -> None:
    source = MemorySource(kind="memory", store="s", format="csv")
    asked = access(tmp_path)
    snapshot = resolve_remote(source, asked)
    identity = asked.cache.identity(snapshot.uri, snapshot.objects[0])
    with asked.cache.part(identity) as part:
        assert part is not None
        part.write(BIG[:1000])
    assert fetch(tmp_path) == BIG
    assert store.opened == [("a.csv", 1000)], "what a killed run had received is used"


def test_a_part_that_a_killed_run_left_damaged_is_received_anew(tmp_path: Path, store: MemoryStore) -> None:
    asked = access(tmp_path)
    snapshot = resolve_remote(SOURCE, asked)
    with asked.cache.part(asked.cache.identity(snapshot.uri, snapshot.objects[0])) as part:
        assert part is not None
        part.write(b"\0" * 1000)
    assert fetch(tmp_path) == BIG
    assert [start for _, start in store.opened] == [1000, 0]


def test_wrong_bytes_of_the_right_size_are_refused_with_both_digests(tmp_path: Path, store: MemoryStore) -> None:
    wrong = b"\1" + BIG[1:]
    store.fault = lambda path, start, content: wrong[start:]
    with pytest.raises(DataError) as caught:
        fetch(tmp_path)
    assert "memory://s/a.csv" in caught.value.message
    assert hashlib.sha256(wrong).hexdigest() in caught.value.message
    assert hashlib.sha256(BIG).hexdigest() in caught.value.message
    assert not list((tmp_path / "state").rglob("objects/*"))
    store.fault = None
    assert fetch(tmp_path) == BIG, "what was wrong is not resumed"


def test_bytes_without_a_digest_are_held_against_their_first_download(tmp_path: Path, store: MemoryStore) -> None:
    store.algorithm = "etag"
    assert fetch(tmp_path) == BIG
    next((tmp_path / "state").rglob("objects/*")).unlink()
    wrong = b"\1" + BIG[1:]
    store.fault = lambda path, start, content: wrong[start:]
    with pytest.raises(DataError, match=f"had {hashlib.sha256(BIG).hexdigest()} when it was first fetched"):
        fetch(tmp_path)


def test_what_may_pass_is_tried_again_and_what_may_not_is_not(tmp_path: Path, store: MemoryStore) -> None:
    answers: list[Exception] = [TransientError("429"), TransientError("503"), TransientError("500")]
    store.fault = lambda path, start, content: answers.pop() if answers else content
    assert fetch(tmp_path) == BIG
    assert len(store.opened) == 4
    store.objects["a.csv"] = BIG[1:]
    store.opened.clear()
    store.fault = lambda path, start, content: DataError("403")
    with pytest.raises(DataError, match="403"):
        fetch(tmp_path)
    assert len(store.opened) == 1


def test_the_server_is_given_the_time_that_it_asks_for(tmp_path: Path, store: MemoryStore) -> None:
    answers = [TransientError("429", after=0.3)]
    times: list[float] = []
    clock = __import__("time").monotonic

    def fault(path: str, start: int, content: bytes) -> Any:
        times.append(clock())
        return answers.pop() if answers else content

    store.fault = fault
    fetch(tmp_path)
    assert times[1] - times[0] >= 0.3


def test_a_server_that_never_answers_ends_at_the_limit_and_what_was_received_is_kept(
    tmp_path: Path, store: MemoryStore
) -> None:
    store.fault = lambda path, start, content: (
        TransientError("429 Too Many Requests") if start else (content[:500], TransientError("reset"))
    )
    with pytest.raises(DataError, match=r"429 Too Many Requests; .* attempts, nothing received for") as caught:
        fetch(tmp_path, TransferLimits(stall_seconds=0.2, first_wait=0.01, last_wait=0.02))
    assert "resume" in caught.value.hint
    store.fault, store.opened = None, []
    assert fetch(tmp_path) == BIG
    assert store.opened == [("a.csv", 500)]


def test_two_fetches_of_one_object_receive_it_once(tmp_path: Path, store: MemoryStore) -> None:
    both = threading.Barrier(2, timeout=20)
    results: list[bytes] = []

    def run() -> None:
        both.wait()
        results.append(fetch(tmp_path))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == [BIG, BIG]
    assert store.sent == len(BIG)


def test_a_full_disk_is_told_before_anything_is_received(tmp_path: Path, store: MemoryStore) -> None:
    with pytest.raises(StoreError, match="are free under"):
        fetch(tmp_path, TransferLimits(room=1 << 60))
    assert not store.opened


def test_a_version_that_is_not_resolved_in_time_is_an_error(tmp_path: Path, store: MemoryStore) -> None:
    class Slow(MemorySource):
        def look_up(self, access: RemoteAccess) -> Any:
            threading.Event().wait(30)

    slow = Slow(kind="memory", store="s", format="csv")
    with pytest.raises(DataError, match="cannot be resolved: no answer"):
        resolve_remote(slow, RemoteAccess(tmp_path, tmp_path / "state", resolve_seconds=0.1))


def test_a_vendors_error_is_told_without_the_secrets_in_it(
    tmp_path: Path, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflowkit.data_access.connections import CredentialReference

    class Leaking(MemorySource):
        def look_up(self, access: RemoteAccess) -> Any:
            secret = access.secrets.read(CredentialReference(env="CANARY"))
            raise ValueError(f"GET https://me:{secret}@lake/?token={secret}")

    monkeypatch.setenv("CANARY", "hunter2-canary")
    with pytest.raises(DataError) as caught:
        resolve_remote(Leaking(kind="memory", store="s", format="csv"), access(tmp_path))
    assert "hunter2" not in caught.value.message + caught.value.hint
    assert "***" in caught.value.message
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["../x.csv", "a/../../x.csv", "/etc/x.csv", "./x.csv", "a//x.csv"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, store: MemoryStore, name: str) -> None:
    store.objects = {name: b"x"}
    source = MemorySource(kind="memory", store="s", format="csv", path="**/*.csv" if "/" in name else "")

    class Listing(MemorySource):
        def look_up(self, access: RemoteAccess) -> Any:
            from mlflowkit.values import DataObject, DataSnapshot

            return DataSnapshot("memory", "memory://s/", "", "1", (DataObject(name, 1, "etag:1", name),))

    with pytest.raises(DataError, match="which is no path below it"):
        resolve_remote(Listing(**source.model_dump()), access(tmp_path))


def test_the_cache_keeps_objects_inside_whatever_their_names(tmp_path: Path) -> None:
    from mlflowkit.values import DataObject

    cache = ObjectCache.of(tmp_path)
    item = DataObject("x" * 1024 + ".csv", 1, "etag:1")
    with cache.part(cache.identity("u", item)) as part:
        assert part is not None
        part.write(b"x")
        path = cache.publish(cache.identity("u", item), item, hashlib.sha256(b"x").hexdigest(), part)
    assert path.is_relative_to(tmp_path / "sources")
    assert path.suffix == ".csv"
    assert cache.find("u", item) == path


def test_an_unknown_connection_is_told_with_the_nearest(tmp_path: Path) -> None:
    from mlflowkit.data_access.connections import CredentialReference, LakefsConnection

    lake = LakefsConnection(
        kind="lakefs", url="http://h", access_key=CredentialReference(env="A"), secret=CredentialReference(env="B")
    )
    asked = RemoteAccess(tmp_path, tmp_path, {"lake": lake})
    assert asked.connection("lake", LakefsConnection) is lake
    with pytest.raises(UsageError) as caught:
        asked.connection("lak", LakefsConnection)
    assert caught.value.hint == "did you mean lake?"


def test_errors_of_mlflowkit_keep_their_kind() -> None:
    assert issubclass(StoreError, MlkitError)


def test_of_a_store_without_versions_the_last_fetch_is_needed(tmp_path: Path, store: MemoryStore) -> None:
    place = store_uri = ""
    for content in (b"a\n1\n", b"a\n2\n"):
        STORES["s"] = MemoryStore({"a.csv": content}, version="")
        asked = access(tmp_path)
        snapshot = resolve_remote(SOURCE, asked)
        place = fetch_remote(SOURCE, asked, snapshot)["a.csv"].name
        store_uri = snapshot.uri
    files = cached_files(tmp_path / "state")
    objects = {name: file.versions for name, file in files.items() if name.startswith("objects/")}
    assert objects.pop(f"objects/{place}") == {(store_uri, "")}
    assert list(objects.values()) == [frozenset()]


def test_a_link_among_the_sources_is_not_followed(tmp_path: Path) -> None:
    elsewhere, sources = tmp_path / "elsewhere", tmp_path / "state" / "sources"
    elsewhere.mkdir()
    (elsewhere / "a.csv").write_bytes(b"precious")
    sources.mkdir(parents=True)
    (sources / "objects").symlink_to(elsewhere)
    (sources / "parts").mkdir()
    (sources / "parts" / "a.part").symlink_to(elsewhere / "a.csv")
    assert cached_files(tmp_path / "state") == {}
