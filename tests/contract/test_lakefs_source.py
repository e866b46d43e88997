"""lakeFS: what a plan resolved is what a run reads, byte for byte, whatever the server and its branches do."""

from __future__ import annotations

import hashlib
import random
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lakefs_client", reason="pip install 'mlflowkit[lakefs]'")

from mlflowkit.adapters.data_sources.lakefs_source import LakefsSource
from mlflowkit.data_access.connections import CredentialReference, LakefsConnection
from mlflowkit.data_access.remote_source import RemoteAccess, fetch_remote, resolve_remote
from mlflowkit.data_access.transfer import TransferLimits
from mlflowkit.errors import DataError, MlkitError
from mlflowkit.pipeline.lineage.data_snapshot import describe_snapshot
from mlflowkit.testing import RemoteSourceContract
from mlflowkit.values import DataSnapshot
from tests.support.lakefs_fake import KEY, SECRET, Asked, FakeLakefs, Switch

FILES = {f"loans/m={month}/{name}.csv": f"x,y\n{month},{name}\n".encode() for month in (1, 2) for name in "abc"}
OBJECT = "/refs/{ref}/objects"
LIMITS = TransferLimits(read_seconds=0.5, stall_seconds=2.0, first_wait=0.01, last_wait=0.05)


@pytest.fixture
def lake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLakefs]:
    monkeypatch.setenv("LAKE_KEY", KEY)
    monkeypatch.setenv("LAKE_SECRET", SECRET)
    fake = FakeLakefs()
    fake.repository()
    yield fake
    fake.close()


def source(**keys: Any) -> LakefsSource:
    plain = {"kind": "lakefs", "connection": "lake", "repository": "lending", "path": "loans/", "format": "csv"}
    return LakefsSource.model_validate({**plain, **keys})


def access(lake: FakeLakefs, folder: Path, limits: TransferLimits = LIMITS, seconds: float = 5.0) -> RemoteAccess:
    key, secret = CredentialReference(env="LAKE_KEY"), CredentialReference(env="LAKE_SECRET")
    connection = LakefsConnection(kind="lakefs", url=lake.url, access_key=key, secret=secret)
    return RemoteAccess(folder, folder / "state", {"lake": connection}, limits=limits, resolve_seconds=seconds)


def fetch(lake: FakeLakefs, folder: Path, snapshot: DataSnapshot, **keys: Any) -> dict[str, bytes]:
    files = fetch_remote(source(**keys), access(lake, folder), snapshot)
    return {path: file.read_bytes() for path, file in files.items()}


def below(files: Mapping[str, bytes], folder: str = "loans/") -> dict[str, bytes]:
    return {path.removeprefix(folder): content for path, content in files.items()}


def refused(lake: FakeLakefs, folder: Path, **keys: Any) -> MlkitError:
    with pytest.raises(MlkitError) as caught:
        resolve_remote(source(**keys), access(lake, folder))
    assert caught.value.hint
    assert not any(secret in f"{caught.value.message}{caught.value.hint}" for secret in (KEY, SECRET))
    return caught.value


class TestLakefsSource(RemoteSourceContract):
    @pytest.fixture(autouse=True)
    def _server(self, lake: FakeLakefs) -> None:
        self.lake = lake

    def source(self) -> LakefsSource:
        return source()

    def connections(self) -> Mapping[str, Any]:
        return access(self.lake, Path()).connections

    def put(self, files: Mapping[str, bytes]) -> None:
        repository = self.lake.repository()
        repository.put("main", f"other/{repository.clock}", b"unrelated")
        repository.replace_all("main", files, "loans/")

    def damage(self, path: str) -> bool:
        repository = self.lake.repository()
        entry = repository.tree("main")[f"loans/{path}"]
        repository.blobs[entry.address] = repository.blobs[entry.address][:-2] + b"8\n"
        return True

    def lose(self, path: str) -> bool:
        repository = self.lake.repository()
        repository.collect(f"loans/{path}", repository.branches["main"].head)
        return True

    def stop(self) -> bool:
        self.lake.stop()
        return True

    def secrets(self) -> tuple[str, ...]:
        return (KEY, SECRET)


def test_all_objects_are_of_the_planned_commit_though_the_branch_moves_between_two_of_them(
    lake: FakeLakefs, tmp_path: Path
) -> None:
    repository = lake.repository()
    commit = repository.replace_all("main", FILES)
    snapshot = resolve_remote(source(), access(lake, tmp_path))
    assert (snapshot.asked, snapshot.version, snapshot.uri) == ("main", commit, "lakefs://lending/loans/")
    seen: list[int] = []

    def move(number: int, asked: Asked) -> Switch | None:
        if asked.route.endswith(OBJECT):
            seen.append(number)
            if len(seen) == 3:
                return Switch(act=lambda: repository.replace_all("main", dict.fromkeys(FILES, b"x,y\n0,0\n")))
        return None

    lake.switch = move
    assert fetch(lake, tmp_path, snapshot) == below(FILES)
    assert not lake.moving_reads()


def test_what_is_staged_and_not_committed_is_not_read(lake: FakeLakefs, tmp_path: Path) -> None:
    repository = lake.repository()
    repository.replace_all("main", FILES)
    repository.put("main", "loans/m=1/a.csv", b"staged")
    assert repository.tree("main")["loans/m=1/a.csv"].size == 6, "which reading by the branch's name shows"
    snapshot = resolve_remote(source(), access(lake, tmp_path))
    assert fetch(lake, tmp_path, snapshot) == below(FILES)
    assert not lake.moving_reads()


def test_an_unrelated_commit_and_identical_bytes_are_the_same_tree(lake: FakeLakefs, tmp_path: Path) -> None:
    repository = lake.repository()
    repository.replace_all("main", FILES)
    first = resolve_remote(source(), access(lake, tmp_path))
    repository.put("main", "other/x", b"1")
    repository.commit("main")
    second = resolve_remote(source(), access(lake, tmp_path))
    assert second.version != first.version
    assert second.tree == first.tree
    repository.put("main", "loans/m=1/a.csv", FILES["loans/m=1/a.csv"])
    repository.put("main", "other/x", b"2")
    repository.commit("main")
    assert resolve_remote(source(), access(lake, tmp_path)).tree == first.tree
    repository.put("main", "loans/m=1/a.csv", FILES["loans/m=1/a.csv"], multipart=True)
    repository.commit("main")
    third = resolve_remote(source(), access(lake, tmp_path))
    assert third.tree != first.tree, "the server says another checksum"
    assert fetch(lake, tmp_path, third) == below(FILES)


def test_a_pinned_commit_asks_nothing_once_it_is_known(lake: FakeLakefs, tmp_path: Path) -> None:
    commit = lake.repository().replace_all("main", FILES)
    first = resolve_remote(source(ref=commit), access(lake, tmp_path))
    fetch(lake, tmp_path, first, ref=commit)
    lake.stop()
    again = resolve_remote(source(ref=commit), access(lake, tmp_path))
    assert again == first
    assert fetch(lake, tmp_path, again, ref=commit) == below(FILES)


def test_a_branch_that_was_not_moved_costs_one_request(lake: FakeLakefs, tmp_path: Path) -> None:
    lake.repository().replace_all("main", FILES)
    first = resolve_remote(source(), access(lake, tmp_path))
    count = len(lake.requests)
    assert resolve_remote(source(), access(lake, tmp_path)) == first
    assert len(lake.requests) == count + 1


def test_every_way_to_name_a_commit(lake: FakeLakefs, tmp_path: Path) -> None:
    repository = lake.repository()
    first = repository.replace_all("main", FILES)
    repository.create_tag("v1.0", "main")
    second = repository.replace_all("main", {**FILES, "loans/m=3/d.csv": b"x,y\n3,d\n"})
    repository.create_branch("dev", "main")
    expected = {"main": second, "dev": second, "v1.0": first, "main~1": first, first: first, first[:12]: first}
    for ref, commit in expected.items():
        assert resolve_remote(source(ref=ref), access(lake, tmp_path)).version == commit, ref
    assert not lake.moving_reads()


def test_a_branch_named_like_a_commit_is_the_branch(lake: FakeLakefs, tmp_path: Path) -> None:
    repository = lake.repository()
    commit = repository.replace_all("main", FILES)
    repository.create_branch("beef", "main")
    assert resolve_remote(source(ref="beef"), access(lake, tmp_path)).version == commit
    letters = next((commit[:size] for size in range(6, 12) if commit[:size].isalpha()), "")
    if letters:
        assert "may be a branch too" in refused(lake, tmp_path, ref=letters).message


def test_a_deleted_tag_is_told_with_the_nearest_name(lake: FakeLakefs, tmp_path: Path) -> None:
    repository = lake.repository()
    repository.replace_all("main", FILES)
    repository.create_tag("v1.1", "main")
    error = refused(lake, tmp_path, ref="v1.0")
    assert error.message.startswith("lending has no branch, tag or commit 'v1.0'")
    assert error.hint == "mlkit plan RECIPE data.source.ref=v1.1"


def test_a_missing_repository_and_an_empty_path_are_told(lake: FakeLakefs, tmp_path: Path) -> None:
    lake.repository().replace_all("main", FILES)
    assert "no repository 'lendin'" in refused(lake, tmp_path, repository="lendin").message
    assert "there is no object at lakefs://lending/main/loan/" in refused(lake, tmp_path, path="loan/").message
    error = refused(lake, tmp_path, format="parquet")
    assert "no parquet file" in error.message
    assert "path: loans/**/*.parquet" in error.hint


def test_a_collected_object_is_an_error_that_names_it(lake: FakeLakefs, tmp_path: Path) -> None:
    commit = lake.repository().replace_all("main", FILES)
    snapshot = resolve_remote(source(ref=commit), access(lake, tmp_path))
    lake.repository().collect("loans/m=2/b.csv", commit)
    with pytest.raises(DataError, match=r"loans/m=2/b\.csv was collected") as caught:
        fetch(lake, tmp_path, snapshot, ref=commit)
    assert caught.value.hint == "mlkit plan RECIPE data.source.ref=main"


@pytest.mark.parametrize("disposition", ["attachment", 'attachment; filename="../../x"', None])
def test_the_name_that_a_server_gives_a_download_is_not_used(
    lake: FakeLakefs, tmp_path: Path, disposition: str | None
) -> None:
    lake.disposition = disposition
    lake.repository().replace_all("main", FILES)
    work = tmp_path / "a" / "b" / "c"
    work.mkdir(parents=True)
    snapshot = resolve_remote(source(), access(lake, work))
    assert fetch(lake, work, snapshot) == below(FILES)
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(work / "state")]
    assert outside == []


def failing(*switches: Switch, route: str = OBJECT) -> Any:
    """Fail the first requests to a route, one switch each."""
    left = list(switches)

    def switch(number: int, asked: Asked) -> Switch | None:
        return left.pop(0) if left and asked.route.endswith(route) else None

    return switch


def test_a_busy_server_is_asked_again(lake: FakeLakefs, tmp_path: Path) -> None:
    lake.repository().replace_all("main", {"loans/a.csv": FILES["loans/m=1/a.csv"]})
    snapshot = resolve_remote(source(), access(lake, tmp_path))
    lake.switch = failing(Switch(429), Switch(429), Switch(503), Switch(500, "branch is currently locked"))
    assert fetch(lake, tmp_path, snapshot) == {"a.csv": FILES["loans/m=1/a.csv"]}
    assert len(lake.asked(OBJECT)) == 5


def test_a_server_that_says_how_long_to_wait_is_obeyed(lake: FakeLakefs, tmp_path: Path) -> None:
    lake.repository().replace_all("main", {"loans/a.csv": b"x\n1\n"})
    snapshot = resolve_remote(source(), access(lake, tmp_path))
    lake.switch = failing(Switch(429, retry_after="1"))
    started = time.monotonic()
    fetch(lake, tmp_path, snapshot)
    assert time.monotonic() - started >= 1.0


def test_a_server_that_stays_busy_ends_in_time(lake: FakeLakefs, tmp_path: Path) -> None:
    lake.repository().replace_all("main", FILES)
    first = resolve_remote(source(), access(lake, tmp_path))
    lake.switch = lambda number, asked: Switch(429, "too many requests")
    with pytest.raises(DataError, match=r"429 \(too many requests\).* attempts, nothing received for"):
        fetch(lake, tmp_path, first)
    with pytest.raises(DataError, match=r"429 \(too many requests\)") as caught:
        resolve_remote(source(), access(lake, tmp_path, seconds=0.5))
    assert caught.value.exit_code == 3
    assert caught.value.hint == f"mlkit run RECIPE data.source.ref={first.version} uses the version that it was last"


@pytest.mark.parametrize("lies", [False, True])
def test_a_cut_body_is_resumed(lake: FakeLakefs, tmp_path: Path, lies: bool) -> None:
    content = random.Random(1).randbytes(3_000_000)
    lake.repository().replace_all("main", {"loans/a.csv": content})
    snapshot = resolve_remote(source(), access(lake, tmp_path))
    lake.switch = failing(Switch(cut=1_800_000, lies_about_length=lies))
    assert fetch(lake, tmp_path, snapshot) == {"a.csv": content}
    assert lake.sent["loans/a.csv"] <= 1.1 * len(content)
    assert len(lake.asked(OBJECT)) == 2


def test_a_hang_ends_with_the_read_timeout(lake: FakeLakefs, tmp_path: Path) -> None:
    lake.repository().replace_all("main", {"loans/a.csv": b"x\n1\n"})
    snapshot = resolve_remote(source(), access(lake, tmp_path))
    lake.switch = failing(Switch(hang=True))
    assert fetch(lake, tmp_path, snapshot) == {"a.csv": b"x\n1\n"}
    assert len(lake.asked(OBJECT)) == 2


def test_wrong_bytes_of_the_right_size_and_etag_are_refused(lake: FakeLakefs, tmp_path: Path) -> None:
    content = b"x,y\n1,2\n"
    lake.repository().replace_all("main", {"loans/a.csv": content})
    snapshot = resolve_remote(source(), access(lake, tmp_path))
    lake.switch = failing(*[Switch(content=b"x,y\n1,9\n")] * 2)
    with pytest.raises(DataError) as caught:
        fetch(lake, tmp_path, snapshot)
    for part in ("lakefs://lending/loans/a.csv", hashlib.md5(content).hexdigest(), "the store says"):
        assert part in caught.value.message
    assert fetch(lake, tmp_path, snapshot) == {"a.csv": content}


def test_opaque_checksums_hold_objects_against_their_first_download(lake: FakeLakefs, tmp_path: Path) -> None:
    repository = lake.repository()
    repository.put("main", "loans/a.csv", b"x,y\n1,2\n", multipart=True)
    repository.commit("main")
    snapshot = resolve_remote(source(), access(lake, tmp_path))
    files = fetch_remote(source(), access(lake, tmp_path), snapshot)
    files["a.csv"].unlink()
    lake.switch = failing(*[Switch(content=b"x,y\n1,9\n")] * 2)
    with pytest.raises(DataError, match="when it was first fetched"):
        fetch(lake, tmp_path, snapshot)


@pytest.mark.parametrize("page", [100, 1000])
def test_long_lists_are_read_to_their_end(lake: FakeLakefs, tmp_path: Path, page: int) -> None:
    lake.page_limit = page
    names = [f"loans/{number:05}.csv" for number in range(2500)]
    lake.repository().replace_all("main", dict.fromkeys(names, b"x\n1\n"))
    snapshot = resolve_remote(source(), access(lake, tmp_path))
    assert [f"loans/{item.path}" for item in snapshot.objects] == names


@pytest.mark.parametrize("lie", ["repeated", "empty"])
def test_a_list_that_cannot_be_right_is_refused(lake: FakeLakefs, tmp_path: Path, lie: str) -> None:
    repository = lake.repository()
    repository.replace_all("main", {f"loans/{number}.csv": b"x\n1\n" for number in range(5)})
    lake.page_limit = 2

    from tests.support import lakefs_fake

    def page(self: Any, asked: Any, items: Any, key: str) -> Any:
        pagination = {"has_more": True, "next_offset": "loans/1.csv", "results": 2, "max_per_page": 1000}
        return {"pagination": pagination, "results": items[:2] if lie == "repeated" else []}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lakefs_fake._LakefsHandler, "_page", page)
        assert "list of objects is wrong" in refused(lake, tmp_path).message


def test_names_of_any_kind_are_read_exactly(lake: FakeLakefs, tmp_path: Path) -> None:
    names = ["loans/a b.csv", "loans/a+b.csv", "loans/100%.csv", "loans/ü ß.csv", "loans/" + "x" * 1000 + ".csv"]
    files = {name: f"x\n{number}\n".encode() for number, name in enumerate(names)}
    lake.repository().replace_all("main", files)
    snapshot = resolve_remote(source(), access(lake, tmp_path))
    assert fetch(lake, tmp_path, snapshot) == below(files)


def test_a_name_that_leads_out_of_the_folder_is_not_read(lake: FakeLakefs, tmp_path: Path) -> None:
    lake.repository().replace_all("main", {"loans/m=../a.csv": b"x\n1\n", "loans/../etc/b.csv": b"x\n2\n"})
    snapshot = resolve_remote(source(path="loans/**/*.csv"), access(lake, tmp_path))
    assert fetch(lake, tmp_path, snapshot, path="loans/**/*.csv") == {"m=../a.csv": b"x\n1\n"}
    lake.repository().put("main", "loans/a/../../b.csv", b"x\n3\n")
    lake.repository().commit("main")
    with pytest.raises(ValueError, match="expected a path below"):
        source(path="loans/a/../../b.csv")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("LAKE_SECRET", "wrong-canary", "does not know these credentials"),
        ("LAKE_SECRET", "", "the environment variable LAKE_SECRET is empty"),
        ("LAKE_KEY", None, "the environment variable LAKE_KEY is not set"),
    ],
)
def test_credentials_that_are_wrong_or_missing(
    lake: FakeLakefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None, message: str
) -> None:
    lake.repository().replace_all("main", FILES)
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    error = refused(lake, tmp_path)
    assert message in error.message
    assert "wrong-canary" not in error.message + error.hint
    assert len(lake.requests) <= 1, "it is not tried again"


@pytest.mark.simulation
def test_no_interleaving_of_commits_mixes_two_versions(lake: FakeLakefs, tmp_path: Path) -> None:
    """Of 80 fetches during which another thread commits as fast as it can, none differs from the commit it names."""
    repository = lake.repository()
    names = [f"loans/{number}.csv" for number in range(5)]
    contents: dict[str, dict[str, bytes]] = {}
    done = threading.Event()

    def commit_for_ever() -> None:
        number = 0
        while not done.is_set():
            number += 1
            files = {name: f"x\n{number}\n".encode() for name in names}
            with repository.lock:
                contents[repository.replace_all("main", files)] = below(files)
            done.wait(0.002)

    thread = threading.Thread(target=commit_for_ever)
    thread.start()
    try:
        while not contents:
            time.sleep(0.01)
        for number in range(80):
            snapshot = resolve_remote(source(), access(lake, tmp_path / str(number)))
            assert fetch(lake, tmp_path / str(number), snapshot) == contents[snapshot.version]
    finally:
        done.set()
        thread.join()
    assert not lake.moving_reads()


def renewed(folder: Path, secret: str) -> None:
    """Put another secret into the file, at once, as mounted secrets are replaced."""
    new = folder / secrets.token_hex(8)
    new.write_text(secret)
    new.chmod(0o600)
    new.replace(folder / "secret")


def held_in_files(lake: FakeLakefs, folder: Path) -> RemoteAccess:
    """Access by a key and a secret that are kept in files, which others renew."""
    for name, value in (("key", KEY), ("secret", "expired")):
        (folder / name).write_text(value)
        (folder / name).chmod(0o600)
    key, secret = CredentialReference(file="key"), CredentialReference(file="secret")
    connection = LakefsConnection(kind="lakefs", url=lake.url, access_key=key, secret=secret)
    return RemoteAccess(folder, folder / "state", {"lake": connection}, limits=LIMITS, resolve_seconds=5.0)


@pytest.mark.parametrize("stage", ["plan", "fetch"])
def test_credentials_that_were_renewed_meanwhile_are_read_again(lake: FakeLakefs, tmp_path: Path, stage: str) -> None:
    repository = lake.repository()
    repository.replace_all("main", {f"loans/{name}.csv": name.encode() for name in "abcdef"})
    planned = resolve_remote(source(), access(lake, tmp_path / "other"))
    given = held_in_files(lake, tmp_path)
    before = len(lake.requests)

    lake.switch = lambda number, asked: Switch(act=lambda: renewed(tmp_path, SECRET))
    if stage == "plan":
        assert resolve_remote(source(), given).version == planned.version
        assert len(lake.requests) == before + 3, "a commit and a page of objects, and the first of them twice"
    else:
        files = fetch_remote(source(), given, planned)
        assert {path: file.read_bytes() for path, file in files.items()} == {
            f"{name}.csv": name.encode() for name in "abcdef"
        }


def test_credentials_that_are_refused_again_are_told_after_one_more_call(lake: FakeLakefs, tmp_path: Path) -> None:
    given = held_in_files(lake, tmp_path)
    with pytest.raises(DataError, match="does not know these credentials"):
        resolve_remote(source(), given)
    assert len(lake.requests) == 1, "the same secret is not tried twice"
    lake.switch = lambda number, asked: Switch(act=lambda: renewed(tmp_path, f"expired {number}"))
    with pytest.raises(DataError, match="does not know these credentials"):
        resolve_remote(source(), given)
    assert len(lake.requests) == 3


def lakectl_file(folder: Path, endpoint: str, secret: str = SECRET) -> Path:
    path = folder / "lakectl.yaml"
    credentials = f"credentials:\n  access_key_id: {KEY}\n  secret_access_key: {secret}\n"
    path.write_text(f"{credentials}server:\n  endpoint_url: {endpoint}\n")
    return path


@pytest.fixture
def by_lakectl(lake: FakeLakefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteAccess:
    """Access by a connection without keys, where lakectl has them."""
    monkeypatch.setenv("LAKECTL_CONFIG_FILE", str(lakectl_file(tmp_path, f"{lake.url}/api/v1")))
    lake.repository().replace_all("main", {"loans/a.csv": b"x\n1\n"})
    connection = LakefsConnection(kind="lakefs", url=lake.url)
    return RemoteAccess(tmp_path, tmp_path / "state", {"lake": connection}, limits=LIMITS, resolve_seconds=5.0)


def test_a_connection_without_keys_has_those_of_lakectl_and_says_so(by_lakectl: RemoteAccess, tmp_path: Path) -> None:
    snapshot = resolve_remote(source(), by_lakectl)
    assert f"credentials of lakectl ({tmp_path / 'lakectl.yaml'})" in describe_snapshot(snapshot)
    assert fetch_remote(source(), by_lakectl, snapshot)["a.csv"].read_bytes() == b"x\n1\n"
    assert source().head_probe(by_lakectl, snapshot) is None
    left = [path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert not any(secret.encode() in content for content in left for secret in (KEY, SECRET))


def test_variables_of_lakectl_come_before_its_file(
    by_lakectl: RemoteAccess, lake: FakeLakefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lakectl_file(tmp_path, lake.url, "old")
    monkeypatch.setenv("LAKECTL_CREDENTIALS_SECRET_ACCESS_KEY", SECRET)
    assert resolve_remote(source(), by_lakectl).objects


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "lakectl has no server.endpoint_url"),
        ("credentials: [1]\nserver: {endpoint_url: URL}", "lakectl has no credentials.access_key_id"),
        (
            "server: {endpoint_url: 'https://other.example/api/v1'}\nKEYS",
            "are for other.example, and the connection is",
        ),
        ("server: {endpoint_url: 'http://127.0.0.1.other.example'}\nKEYS", "are for 127.0.0.1.other.example"),
        ("credentials: {access_key_id: [", "cannot be read"),
    ],
)
def test_credentials_of_lakectl_go_to_their_server_only(
    by_lakectl: RemoteAccess, lake: FakeLakefs, tmp_path: Path, content: str | None, message: str
) -> None:
    keys = f"credentials: {{access_key_id: {KEY}, secret_access_key: '{SECRET}'}}"
    path = tmp_path / "lakectl.yaml"
    path.unlink()
    if content is not None:
        path.write_text(content.replace("URL", lake.url).replace("KEYS", keys))
    with pytest.raises(DataError, match=message) as caught:
        resolve_remote(source(), by_lakectl)
    assert caught.value.hint
    assert not any(secret in f"{caught.value.message}{caught.value.hint}" for secret in (KEY, SECRET))
    assert not lake.requests


def test_one_key_of_two_is_a_fault() -> None:
    with pytest.raises(ValueError, match="name both access_key and secret"):
        LakefsConnection(kind="lakefs", url="https://lake.example", access_key=CredentialReference(env="LAKE_KEY"))
