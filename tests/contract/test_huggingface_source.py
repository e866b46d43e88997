"""The Hugging Face source over a fake Hub: a whole snapshot of one commit, or an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.adapters.data_sources.huggingface_source import HuggingfaceSource
from mlflowkit.data_access.connections import CredentialReference, HuggingfaceConnection, OpenSecrets
from mlflowkit.data_access.head_probe import current_version
from mlflowkit.data_access.hub_repository import HUB, own_token
from mlflowkit.data_access.remote_source import RemoteAccess, fetch_remote, resolve_remote
from mlflowkit.errors import DataError
from mlflowkit.testing import RemoteSourceContract
from mlflowkit.testing.source_suites import HASTE
from tests.support.hub_fake import TOKEN, FakeHub, HubFault

FILES = {"data/a.csv": b"x,y\n1,2\n3,4\n", "data/b.csv": b"x,y\n5", "README.md": b"# Loans of 2025"}


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CANARY_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    made = FakeHub()
    made.commit(FILES)
    yield made
    made.close()


def source(**keys: Any) -> HuggingfaceSource:
    given = {"connection": "hub", "dataset": "org/loans", "files": "data", "format": "csv", **keys}
    return HuggingfaceSource(kind="huggingface", **given)


class TestHuggingfaceSource(RemoteSourceContract):
    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        self.hub = FakeHub(access="private", page=2)
        self.stopped = False
        yield
        if not self.stopped:
            self.hub.close()

    def source(self) -> HuggingfaceSource:
        return source()

    def connections(self) -> Mapping[str, Any]:
        return {"hub": connection(self.hub)}

    def put(self, files: Mapping[str, bytes]) -> None:
        self.hub.commit({f"data/{path}": content for path, content in files.items()})

    def damage(self, path: str) -> bool:
        self.hub.switch = lambda number, asked: HubFault(content=b"x,y\n1,8\n") if asked.endswith(path) else None
        return True

    def lose(self, path: str) -> bool:
        for files in self.hub.commits.values():
            files.pop(f"data/{path}", None)
        return True

    def stop(self) -> bool:
        self.stopped = True
        self.hub.close()
        return True

    def secrets(self) -> tuple[str, ...]:
        return (TOKEN,)


def connection(hub: FakeHub, *, token: str | None = "CANARY_TOKEN") -> HuggingfaceConnection:
    reference = None if token is None else CredentialReference(env=token)
    return HuggingfaceConnection(kind="huggingface", endpoint=hub.url, token=reference)


def access(hub: FakeHub, folder: Path, *, token: str | None = "CANARY_TOKEN", seconds: float = 30.0) -> RemoteAccess:
    connections = {"hub": connection(hub, token=token)}
    return RemoteAccess(folder, folder / "state", connections, limits=HASTE, resolve_seconds=seconds)


def read(hub: FakeHub, folder: Path, asked: HuggingfaceSource | None = None) -> dict[str, bytes]:
    asked, given = asked or source(), access(hub, folder)
    files = fetch_remote(asked, given, resolve_remote(asked, given))
    return {path: file.read_bytes() for path, file in files.items()}


def refused(call: Callable[[], object]) -> DataError:
    with pytest.raises(DataError) as caught:
        call()
    assert caught.value.hint
    assert TOKEN not in caught.value.message + caught.value.hint
    return caught.value


def test_large_files_come_from_the_content_network_which_gets_no_token(hub: FakeHub, tmp_path: Path) -> None:
    assert read(hub, tmp_path) == {"a.csv": FILES["data/a.csv"], "b.csv": FILES["data/b.csv"]}
    assert any(path.endswith("signature=canary-signature") for path in hub.requests)
    algorithms = {
        item.path: item.digest.split(":")[0] for item in resolve_remote(source(), access(hub, tmp_path)).objects
    }
    assert algorithms == {"a.csv": "sha256", "b.csv": "git-sha1"}


def test_a_branch_that_moves_while_files_are_read_changes_none_of_them(hub: FakeHub, tmp_path: Path) -> None:
    def move(number: int, path: str) -> HubFault | None:
        return HubFault(act=lambda: hub.commit({"data/a.csv": b"x,y\n9,9\n9,9\n"})) if number == 2 else None

    hub.switch = move
    first = hub.references["main"]
    assert read(hub, tmp_path)["a.csv"] == FILES["data/a.csv"]
    assert hub.references["main"] != first
    asked = source(revision=first)
    assert asked.is_pinned()
    assert read(hub, tmp_path / "pinned", asked)["a.csv"] == FILES["data/a.csv"]


def test_one_request_tells_whether_a_branch_moved(hub: FakeHub, tmp_path: Path) -> None:
    given = access(hub, tmp_path)
    snapshot = resolve_remote(source(), given)
    probe = source().head_probe(given, snapshot)
    assert probe is not None
    hub.requests.clear()
    assert current_version(probe, tmp_path) == snapshot.version
    assert len(hub.requests) == 1
    moved = hub.commit({"data/a.csv": b"x,y\n"})
    assert current_version(probe, tmp_path) == moved
    assert source(revision=moved).head_probe(given, replace(snapshot, version=moved)) is None


@pytest.mark.parametrize(
    ("state", "token", "message", "hint"),
    [
        ("gated", None, "is gated (401: Access to dataset org/loans is restricted)", "accept its terms on"),
        ("gated", "CANARY_TOKEN", "is gated (403", "with the account of the token"),
        ("private", None, "there is no such dataset, or it is private and there is no token", "token: {env: HF_TOKEN}"),
        ("private", "WRONG", "does not know the token (401", "mlkit explain RECIPE connections.hub"),
        ("public", "WRONG", "does not know the token (401", "mlkit explain RECIPE connections.hub"),
    ],
)
def test_who_may_not_read_is_told_what_to_do(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    token: str | None,
    message: str,
    hint: str,
) -> None:
    monkeypatch.setenv("WRONG", f"{TOKEN}x")
    hub.access = state
    error = refused(lambda: resolve_remote(source(), access(hub, tmp_path, token=token)))
    assert message in error.message
    assert hint in error.hint
    assert len(hub.requests) == 1, "another attempt changes nothing"


def test_a_token_that_is_not_set_is_named(hub: FakeHub, tmp_path: Path) -> None:
    error = refused(lambda: resolve_remote(source(), access(hub, tmp_path, token="NOT_SET")))
    assert "the environment variable NOT_SET is not set" in error.message
    assert not hub.requests


def test_a_revision_or_file_that_is_not_there_is_told_with_the_nearest(hub: FakeHub, tmp_path: Path) -> None:
    hub.commit(FILES, "v1.0")
    error = refused(lambda: read(hub, tmp_path, source(revision="v1.1")))
    assert "has no branch, tag or commit 'v1.1'" in error.message
    assert error.hint == "mlkit plan RECIPE data.source.revision=v1.0"
    error = refused(lambda: read(hub, tmp_path, source(files="data/aa.csv")))
    assert error.hint == "did you mean data/a.csv?"
    assert "has no data/x/ at main" in refused(lambda: read(hub, tmp_path, source(files="data/x/"))).message
    error = refused(lambda: read(hub, tmp_path, source(dataset="org/loan")))
    assert "there is no such dataset, or the token may not see it" in error.message


def test_a_deleted_revision_that_was_fetched_still_serves(hub: FakeHub, tmp_path: Path) -> None:
    commit = hub.references["main"]
    read(hub, tmp_path)
    hub.commits.clear()
    hub.references.clear()
    hub.requests.clear()
    assert read(hub, tmp_path, source(revision=commit))["b.csv"] == FILES["data/b.csv"]
    assert not hub.requests


def test_too_many_requests_are_waited_for(hub: FakeHub, tmp_path: Path) -> None:
    answers = [HubFault(429, {"RateLimit": '"api";r=0;t=1'}), HubFault(503), HubFault(500)]
    hub.switch = lambda number, path: answers.pop() if answers else None
    assert read(hub, tmp_path)["b.csv"] == FILES["data/b.csv"]
    hub.switch = lambda number, path: HubFault(429)
    error = refused(lambda: resolve_remote(source(), access(hub, tmp_path, seconds=0.5)))
    assert "the server answered 429" in error.message
    assert error.hint.startswith("mlkit run RECIPE data.source.revision=")


def test_a_file_that_fails_for_good_leaves_an_error_and_what_came_is_kept(hub: FakeHub, tmp_path: Path) -> None:
    """Never a part of the files: huggingface_hub has returned half a folder."""
    hub.commit({f"data/{number:02}.csv": b"x,y\n%08d\n" % number for number in range(20)})
    hub.switch = lambda number, path: HubFault(429) if path.endswith("/06.csv") else None
    error = refused(lambda: read(hub, tmp_path))
    assert "06.csv" in error.message
    hub.switch = None
    hub.requests.clear()
    assert len(read(hub, tmp_path)) == 20
    assert sum("resolve" in path for path in hub.requests) < 20


def test_a_cut_body_is_resumed(hub: FakeHub, tmp_path: Path) -> None:
    cuts = [3]
    hub.switch = lambda number, path: HubFault(cut=cuts.pop()) if cuts and path.endswith(SIGNED) else None
    assert read(hub, tmp_path)["a.csv"] == FILES["data/a.csv"]
    assert not cuts


SIGNED = "?signature=canary-signature"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"files": "data/*.csv", "format": "parquet"}, "write format: csv"),
        ({"files": "../x.csv"}, "expected files of the repository"),
        ({"revision": "main..x"}, "expected a branch"),
        ({"dataset": "a/b/c"}, "pattern"),
    ],
)
def test_keys_that_cannot_be_right(keys: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source(**keys)


def test_the_token_of_this_user_goes_to_its_hub_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert own_token(HUB) is None
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/token").write_text(TOKEN)
    assert own_token(HUB) == CredentialReference(file=str(tmp_path / "hf/token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert own_token(HUB) == CredentialReference(env="HF_TOKEN")
    assert own_token("https://hub.example") is None


def test_a_token_that_was_renewed_meanwhile_is_read_again(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.access = "private"
    monkeypatch.setenv("RENEWED", "expired")
    snapshot = resolve_remote(source(), access(hub, tmp_path / "other"))
    given, asked = access(hub, tmp_path, token="RENEWED"), len(hub.requests)
    read = OpenSecrets.read

    def renew(self: OpenSecrets, reference: CredentialReference) -> str:
        secret = read(self, reference)
        monkeypatch.setenv("RENEWED", TOKEN)
        return secret

    monkeypatch.setattr(OpenSecrets, "read", renew)
    files = fetch_remote(source(), given, snapshot)
    assert {path: file.read_bytes() for path, file in files.items()} == {
        "a.csv": FILES["data/a.csv"],
        "b.csv": FILES["data/b.csv"],
    }
    assert len(hub.requests) > asked + len(files)
