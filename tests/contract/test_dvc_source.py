"""The DVC source: the bytes of a commit, whatever the working tree, the cache and the remote hold."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from mlflowkit.adapters.data_sources.dvc_source import DvcSource
from mlflowkit.data_access.remote_source import RemoteAccess, fetch_remote, resolve_remote
from mlflowkit.errors import DataError
from mlflowkit.pipeline.lineage.data_snapshot import describe_snapshot
from mlflowkit.testing import RemoteSourceContract
from mlflowkit.testing.source_suites import HASTE
from mlflowkit.values import DataSnapshot
from tests.support.dvc_repository import DvcFixture

FIRST, SECOND = b"x,y\n1,2\n", b"x,y\n3,4\n"
CANARY = "hunter2-canary"


@pytest.fixture(autouse=True)
def _no_configuration_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))


class TestDvcSource(RemoteSourceContract):
    """A folder that DVC tracks."""

    @pytest.fixture(autouse=True)
    def _repository(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.repository = DvcFixture.create(tmp_path_factory.mktemp("dvc") / "loans")

    def source(self) -> DvcSource:
        return DvcSource(kind="dvc", repository=str(self.repository.root), rev="main", path="data", format="csv")

    def put(self, files: Mapping[str, bytes]) -> None:
        shutil.rmtree(self.repository.root / "data", ignore_errors=True)
        self.repository.add_folder("data", files)
        self.repository.commit("data")

    def damage(self, path: str) -> bool:
        for file in self._stored(path):
            file.write_bytes(file.read_bytes()[:-2] + b"8\n")
        return True

    def lose(self, path: str) -> bool:
        for file in self._stored(path):
            file.unlink()
        return True

    def _stored(self, path: str) -> list[Path]:
        content = (self.repository.root / "data" / path).read_bytes()
        return self.repository.stored(hashlib.md5(content).hexdigest())


class TestWorkspace(RemoteSourceContract):
    """The working tree, which has no versions."""

    @pytest.fixture(autouse=True)
    def _repository(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.root = tmp_path_factory.mktemp("dvc")

    def source(self) -> DvcSource:
        return DvcSource(kind="dvc", repository=str(self.root), rev="workspace", path="data", format="csv")

    def put(self, files: Mapping[str, bytes]) -> None:
        shutil.rmtree(self.root / "data", ignore_errors=True)
        for path, content in files.items():
            (self.root / "data" / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / "data" / path).write_bytes(content)

    def damage(self, path: str) -> bool:
        file = self.root / "data" / path
        file.write_bytes(file.read_bytes()[:-2] + b"8\n")
        return True

    def lose(self, path: str) -> bool:
        (self.root / "data" / path).unlink()
        return True


@pytest.fixture
def repository(tmp_path: Path) -> DvcFixture:
    made = DvcFixture.create(tmp_path / "loans")
    made.add_file("data/loans.csv", FIRST)
    made.commit("first")
    made.git("tag", "-a", "v1.2", "-m", "release")
    return made


def source(repository: DvcFixture, rev: str = "v1.2", path: str = "data/loans.csv") -> DvcSource:
    return DvcSource(kind="dvc", repository=str(repository.root), rev=rev, path=path, format="csv")


def access(repository: DvcFixture, state: str = "state") -> RemoteAccess:
    return RemoteAccess(repository.root, repository.root.parent / state, limits=HASTE)


def read(repository: DvcFixture, asked: DvcSource | None = None, state: str = "state") -> dict[str, bytes]:
    asked = asked or source(repository)
    snapshot = resolve_remote(asked, access(repository, state))
    return {path: file.read_bytes() for path, file in fetch_remote(asked, access(repository, state), snapshot).items()}


def refused(repository: DvcFixture, asked: DvcSource | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        read(repository, asked)
    return caught.value


def resolve(repository: DvcFixture, asked: DvcSource) -> DataSnapshot:
    return resolve_remote(asked, access(repository))


def test_a_tag_is_read_at_its_commit_though_the_tree_and_the_branch_moved(repository: DvcFixture) -> None:
    commit = repository.git("rev-parse", "v1.2^{commit}")
    repository.add_file("data/loans.csv", SECOND)
    repository.commit("second")
    (repository.root / "data/loans.csv").write_bytes(b"dirty")
    snapshot = resolve(repository, source(repository))
    assert (snapshot.version, snapshot.uri) == (commit, "dvc://loans/data/")
    assert snapshot.objects[0].digest == f"md5:{hashlib.md5(FIRST).hexdigest()}"
    assert read(repository) == {"loans.csv": FIRST}
    assert read(repository, source(repository, "main")) == {"loans.csv": SECOND}
    assert read(repository, source(repository, "main~1")) == {"loans.csv": FIRST}
    shown = describe_snapshot(snapshot, float(snapshot.details["time"]) + 7200)
    assert shown == f"dvc:data/loans.csv@v1.2 -> {commit[:8]} (1 object, 8 B, 2 h ago by etl)"


def test_the_working_tree_says_that_it_is_no_version(repository: DvcFixture) -> None:
    committed = resolve(repository, source(repository))
    snapshot = resolve(repository, source(repository, "workspace"))
    assert snapshot.version == ""
    assert snapshot.tree == committed.tree, "the same bytes are reused"
    assert "the working tree, which is no version" in describe_snapshot(snapshot)
    (repository.root / "data/loans.csv").write_bytes(b"x,y\n9,9\n")
    assert read(repository, source(repository, "workspace")) == {"loans.csv": b"x,y\n9,9\n"}
    (repository.root / "data/loans.csv").unlink()
    assert refused(repository, source(repository, "workspace")).hint.startswith("dvc checkout data/loans.csv")


def test_bytes_that_were_not_pushed_are_named_and_read_once_they_are_there(repository: DvcFixture) -> None:
    md5 = repository.add_file("data/loans.csv", SECOND, push=False)
    repository.commit("second")
    shutil.rmtree(repository.cache)  # another machine's checkout
    error = refused(repository, source(repository, "main"))
    assert f"md5 {md5} of data/loans.csv is neither in the cache of DVC" in error.message
    assert f"nor on remote storage ({'../../loans-storage'})" in error.message
    assert error.hint == "dvc push -r storage data/loans.csv where the file was made"
    repository.add_file("data/loans.csv", SECOND)
    shutil.rmtree(repository.cache)
    assert read(repository, source(repository, "main")) == {"loans.csv": SECOND}


def test_a_damaged_cache_is_passed_over_for_the_remote(repository: DvcFixture) -> None:
    cached, remote = repository.stored(hashlib.md5(FIRST).hexdigest())
    cached.write_bytes(b"x,y\n1,8\n")
    assert read(repository) == {"loans.csv": FIRST}
    remote.write_bytes(b"x,y\n1,9\n")
    shutil.rmtree(repository.root.parent / "state")
    error = refused(repository)
    assert f"the store says {hashlib.md5(FIRST).hexdigest()}" in error.message
    assert not list(repository.root.parent.rglob("state/sources/objects/*"))


def test_a_folder_lacks_its_list_or_has_a_damaged_one(repository: DvcFixture) -> None:
    md5 = repository.add_folder("parts", {"a.csv": FIRST, "m=1/b.csv": SECOND})
    repository.commit("parts")
    asked = source(repository, "main", "parts")
    lists = repository.stored(md5, ".dir")
    for file in lists:
        file.write_bytes(b"[]")
    assert f"has not the MD5 {md5} of parts.dvc" in refused(repository, asked).message
    for file in lists:
        file.unlink()
    error = refused(repository, asked)
    assert f"md5 {md5}.dir of folder parts is neither" in error.message
    repository.add_folder("parts", {"a.csv": FIRST, "m=1/b.csv": SECOND})
    assert read(repository, asked) == {"a.csv": FIRST, "m=1/b.csv": SECOND}
    assert read(repository, source(repository, "main", "parts/m=1/b.csv")) == {"b.csv": SECOND}


def test_outputs_of_a_pipeline_are_read_from_its_lock(repository: DvcFixture) -> None:
    md5 = repository.add_file("steps/out/table.csv", SECOND)
    (repository.root / "steps/out/table.csv.dvc").unlink()
    (repository.root / "steps/dvc.yaml").write_text(
        "stages:\n  make:\n    cmd: make\n    wdir: out\n    outs: [table.csv]\n"
    )
    (repository.root / "steps/dvc.lock").write_text(
        f"schema: '2.0'\nstages:\n  make:\n    cmd: make\n    outs:\n"
        f"    - {{path: table.csv, hash: md5, md5: {md5}, size: {len(SECOND)}}}\n"
    )
    (repository.root / "steps/out/table.csv").unlink()
    repository.commit("pipeline")
    assert read(repository, source(repository, "main", "steps/out/table.csv")) == {"table.csv": SECOND}


def test_files_that_git_itself_holds_are_read_with_those_of_dvc(repository: DvcFixture) -> None:
    (repository.root / "data/more.csv").write_bytes(SECOND)
    repository.commit("more")
    asked = source(repository, "main", "data")
    assert read(repository, asked) == {"loans.csv": FIRST, "more.csv": SECOND}
    assert read(repository, source(repository, "main", "data/*"), "other") == {"loans.csv": FIRST, "more.csv": SECOND}
    digests = [item.digest.partition(":")[0] for item in resolve(repository, asked).objects]
    assert digests == ["md5", "git-sha1"]
    (repository.root / "data/more.csv").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:3f\n")
    repository.commit("lfs")
    assert "is kept by Git LFS" in refused(repository, asked).message


def test_a_digest_of_dvc_2_is_that_of_the_text_with_other_line_ends(repository: DvcFixture) -> None:
    content = b"x,y\r\n1,2\r\n"
    md5 = repository.add_text_of_dvc2("data/old.csv", content)
    repository.commit("old")
    asked = source(repository, "main", "data/old.csv")
    assert read(repository, asked) == {"old.csv": content}
    shutil.rmtree(repository.root.parent / "state")
    for folder in (repository.cache, repository.remote):
        (folder / md5[:2] / md5[2:]).write_bytes(b"x,y\r\n1,8\r\n")
    assert f"have not the MD5 {md5}" in refused(repository, asked).message


def test_an_unknown_name_is_told_with_the_nearest(repository: DvcFixture) -> None:
    error = refused(repository, source(repository, "v1.1"))
    assert "has no branch, tag or commit 'v1.1'" in error.message
    assert error.hint.startswith("did you mean v1.2?")
    error = refused(repository, source(repository, path="data/loan.csv"))
    assert "there is no csv file data/loan.csv at v1.2" in error.message
    assert error.hint == "did you mean data/loans.csv?"


def test_a_name_of_a_branch_and_a_tag_is_no_version(repository: DvcFixture) -> None:
    repository.git("branch", "v1.2")
    assert read(repository) == {"loans.csv": FIRST}, "both are the same commit"
    repository.commit("more")
    repository.git("branch", "-f", "v1.2", "main")
    error = refused(repository)
    assert "is a branch" in error.message
    assert error.hint == "name heads/v1.2 or tags/v1.2"
    assert read(repository, source(repository, "tags/v1.2")) == {"loans.csv": FIRST}


def test_a_store_that_is_no_folder_is_named_with_the_command_that_fetches(repository: DvcFixture) -> None:
    repository.add_file("data/loans.csv", SECOND)
    (repository.root / ".dvc/config").write_text(
        "[core]\nremote = cloud\n['remote \"cloud\"']\nurl = s3://bucket/dvc\n"
    )
    repository.commit("cloud")
    (repository.root / ".dvc/config.local").write_text(
        f"['remote \"cloud\"']\n    url = https://me:{CANARY}@host/dvc?token={CANARY}\n    password = {CANARY}\n"
    )
    assert read(repository, source(repository, "main")) == {"loans.csv": SECOND}, "the cache has it"
    shutil.rmtree(repository.cache)
    shutil.rmtree(repository.root.parent / "state")
    error = refused(repository, source(repository, "main"))
    assert error.hint == "dvc fetch -r cloud --all-commits data/loans.csv"
    assert "remote cloud (https://***@host/dvc) is read by DVC" in error.message
    assert CANARY not in error.message + error.hint
    left = [path for path in repository.root.parent.rglob("state/**/*") if path.is_file()]
    assert not any(CANARY.encode() in path.read_bytes() for path in left)


def test_a_configuration_that_cannot_be_read_is_not_quoted(repository: DvcFixture) -> None:
    (repository.root / ".dvc/config.local").write_text(f"['remote \"m\"']\n{CANARY}\n")
    error = refused(repository)
    assert "cannot be read" in error.message
    assert CANARY not in error.message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"outs:\n- md5: ../../../etc/passwd\n  path: loans.csv\n", "no MD5"),
        (b"outs: {}\n", "is none"),
        (b"[1, 2\n", "no YAML"),
        (b"- 1\n", "no mapping"),
        (b"outs:\n- path: loans.csv\n  hash: md5\n", "has no digest"),
    ],
)
def test_files_of_dvc_that_lie_are_refused(repository: DvcFixture, content: bytes, reason: str) -> None:
    (repository.root / "data/loans.csv.dvc").write_bytes(content)
    repository.commit("lie")
    error = refused(repository, source(repository, "main"))
    assert reason in error.message
    assert error.hint


def test_the_list_of_a_folder_leads_nowhere_else(repository: DvcFixture) -> None:
    repository.add_folder("parts", {"../../out.csv": FIRST})
    repository.commit("lie")
    assert "has the path '../../out.csv'" in refused(repository, source(repository, "main", "parts")).message


def test_a_pinned_commit_that_was_fetched_needs_neither_git_nor_dvc(repository: DvcFixture) -> None:
    commit = repository.git("rev-parse", "HEAD")
    asked = source(repository, commit)
    assert asked.is_pinned()
    assert read(repository, asked) == {"loans.csv": FIRST}
    shutil.rmtree(repository.root)
    assert read(repository, asked) == {"loans.csv": FIRST}


def test_a_folder_without_git_or_dvc_is_told(tmp_path: Path, repository: DvcFixture) -> None:
    shutil.rmtree(repository.root / ".dvc")
    assert "is in no repository of DVC" in refused(repository).message
    shutil.rmtree(repository.root / ".git")
    assert "is in no git repository" in refused(repository).message
