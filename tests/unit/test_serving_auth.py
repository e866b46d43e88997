"""API keys at rest: what a file may hold, who reads it, and what the command prints once."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.cli.app import main
from mlflowkit.errors import ServiceError, UsageError
from mlflowkit.serving import auth
from mlflowkit.serving.protocol.http_error import RequestError


def status(ring: auth.Keyring, token: str, scope: auth.Scope | None = "infer") -> int:
    try:
        ring.check(token.encode(), scope)
    except RequestError as refusal:
        return refusal.status
    return 200


def test_a_key_opens_what_its_scopes_say_and_nothing_like_it_opens_anything() -> None:
    key, token = auth.make_key(["feedback", "infer"])
    other, foreign = auth.make_key(["infer", "admin"])
    ring = auth.Keyring([key])
    assert key.scopes == ("infer", "feedback")
    assert [status(ring, token, scope) for scope in ("infer", "feedback", "admin", None)] == [200, 200, 403, 200]
    crossed = f"mlk_{key.id}_{foreign.split('_', 2)[2]}"
    near = token[:-1] + ("A" if token[-1] != "A" else "B")
    for wrong in (
        "",
        "x",
        foreign,
        crossed,
        near,
        token[:-1],
        token + "A",
        token.upper(),
        f" {token}",
        f"mlk_{key.id}_",
    ):
        assert status(ring, wrong) == 401, wrong
    assert status(auth.Keyring([key, other]), foreign, "admin") == 200
    assert status(auth.Keyring([]), token) == 401


def test_no_token_is_kept_and_only_the_owner_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys.json"
    with auth.edit_keys(path) as keys:
        key, token = auth.make_key(["infer"], "web")
        keys.append(key)
    text = path.read_text()
    secret = token.split("_", 2)[2]
    assert secret not in text
    assert hashlib.sha256(secret.encode()).hexdigest() in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert auth.read_keys(path) == (key,)
    path.chmod(0o644)
    with auth.edit_keys(path) as keys:
        keys.append(auth.make_key(["admin"])[0])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_writers_at_once_lose_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"

    def add(_: int) -> str:
        with auth.edit_keys(path) as keys:
            keys.append(auth.make_key(["infer"])[0])
            return keys[-1].id

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(add, range(24)))
    assert sorted(key.id for key in auth.read_keys(path)) == sorted(made)


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    auth.write_keys(path, [auth.make_key(["infer"])[0]])
    before = path.read_bytes()

    def fail() -> None:
        with auth.edit_keys(path) as keys:
            keys.clear()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == before


GOOD = {"id": "0123abcd", "sha256": "0" * 64, "scopes": ["infer"], "created": 1.0, "note": ""}


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ("{", "not JSON"),
        ("[]", "expected"),
        ({"keys": {}}, "expected"),
        ({"keys": [1]}, "keys[0]"),
        ({"keys": [{**GOOD, "id": "../../etc"}]}, "hexadecimal"),
        ({"keys": [{**GOOD, "sha256": "short"}]}, "64"),
        ({"keys": [{**GOOD, "scopes": []}]}, "scopes"),
        ({"keys": [{**GOOD, "scopes": ["root"]}]}, "scopes"),
        ({"keys": [{**GOOD, "scopes": "infer"}]}, "scopes"),
        ({"keys": [{**GOOD, "created": True}]}, "created"),
        ({"keys": [GOOD, GOOD]}, "twice"),
    ],
)
def test_a_file_that_is_none_is_refused_in_words_without_its_hashes(tmp_path: Path, document: Any, word: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(ServiceError, match=r"keys\.json") as caught:
        auth.read_keys(path)
    assert word in caught.value.message
    assert GOOD["sha256"] not in caught.value.message
    assert caught.value.hint


def test_a_listener_beyond_loopback_needs_keys() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        auth.check_exposed(host, "")
    for host in ("0.0.0.0", "::", "10.0.0.1", "gpu-7"):
        auth.check_exposed(host, "keys.json")
        with pytest.raises(ServiceError, match="no API keys") as caught:
            auth.check_exposed(host, "")
        assert "mlkit key create" in caught.value.hint


@pytest.fixture
def mlkit(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line; returns the exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        found = capsys.readouterr()
        return int(ended.value.code or 0), found.out, found.err

    return run


def test_the_command_makes_lists_and_revokes(tmp_path: Path, mlkit: Callable[..., tuple[int, str, str]]) -> None:
    path = str(tmp_path / "keys.json")
    code, token, told = mlkit("key", "create", "--keys", path, "--scope", "admin", "--note", "for the pager")
    assert (code, token.count("\n")) == (0, 1)
    assert "shown only once" in told
    assert status(auth.Keyring(auth.read_keys(Path(path))), token.strip(), "admin") == 200
    made = json.loads(mlkit("key", "create", "--keys", path, "--json")[1])
    assert made["scopes"] == ["infer"]
    code, listed, _ = mlkit("key", "list", "--keys", path)
    assert (code, "for the pager" in listed, made["id"] in listed) == (0, True, True)
    rows = json.loads(mlkit("key", "list", "--keys", path, "--json")[1])["keys"]
    assert [set(row) for row in rows] == [{"id", "scopes", "created", "note"}] * 2
    assert mlkit("key", "revoke", made["id"], "--keys", path)[0] == 0
    assert status(auth.Keyring(auth.read_keys(Path(path))), made["token"]) == 401
    for text in (listed, token, json.dumps(rows)):
        assert auth.read_keys(Path(path))[0].sha256 not in text


def test_the_command_says_what_is_wrong(tmp_path: Path, mlkit: Callable[..., tuple[int, str, str]]) -> None:
    path = str(tmp_path / "keys.json")
    assert mlkit("key", "list", "--keys", path)[0] == 3
    assert not (tmp_path / "keys.json").exists()
    code, _, told = mlkit("key", "create", "--keys", path, "--scope", "root")
    assert (code, "infer, feedback, admin" in told) == (2, True)
    mlkit("key", "create", "--keys", path)
    code, _, told = mlkit("key", "revoke", "ffffffff", "--keys", path)
    assert (code, "mlkit key" in told) == (2, True)
    with pytest.raises(UsageError, match="needs a scope"):
        auth.make_key([])
