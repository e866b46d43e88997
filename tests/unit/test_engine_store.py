"""A store gives a key its own engine, whole, and builds it once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from mlflowkit.errors import EngineError, StoreError
from mlflowkit.graphs.engine_key import EngineKey
from mlflowkit.graphs.engine_store import EngineStore, default_store

KEY = EngineKey(graph="a" * 64, runtime="tensorrt-rtx", target="89", shapes={"x": ((1, 4), (8, 4), (32, 4))})


def never() -> bytes:
    raise AssertionError("built again")


def test_an_engine_is_built_once_by_whoever_comes_first(tmp_path: Path) -> None:
    built: list[int] = []

    def build(number: int) -> bytes:
        built.append(number)
        time.sleep(0.05)
        return b"plan of %d" % number

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda number: EngineStore(tmp_path).get_or_build(KEY, lambda: build(number)), range(8)))
    assert len(built) == 1
    assert {plan for plan, _ in got} == {b"plan of %d" % built[0]}
    assert sum(built for _, built in got) == 1
    assert EngineStore(tmp_path).get_or_build(KEY, never) == (b"plan of %d" % built[0], False)


def test_a_build_that_fails_leaves_nothing_and_the_next_one_builds(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise EngineError("no", hint="try")

    store = EngineStore(tmp_path)
    with pytest.raises(EngineError, match="no"):
        store.get_or_build(KEY, fail)
    assert store.get(KEY) is None
    assert not list(store.entries())
    assert store.get_or_build(KEY, lambda: b"plan") == (b"plan", True)


def test_a_builder_that_was_killed_holds_up_nobody(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from mlflowkit.graphs.engine_store import EngineStore\n"
        f"with EngineStore(Path(sys.argv[1])).lock({KEY.digest!r}):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    assert EngineStore(tmp_path).get_or_build(KEY, lambda: b"plan")[1]


def test_keys_do_not_meet(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    other = replace(KEY, graph="b" * 64)
    store.get_or_build(KEY, lambda: b"one")
    assert store.get(other) is None
    store.get_or_build(other, lambda: b"two")
    assert (store.get(KEY), store.get(other)) == (b"one", b"two")


def test_an_engine_in_anothers_folder_is_refused(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    other = replace(KEY, target="86")
    store.get_or_build(KEY, lambda: b"one")
    store.path(KEY).parent.rename(store.path(other).parent)
    with pytest.raises(EngineError, match="was built for something else: its target is 89, not 86") as caught:
        store.get(other)
    assert str(store.path(other).parent) in caught.value.hint
    (entry,) = store.entries()
    assert "another engine's" in entry.fault


def test_a_store_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("")
    with pytest.raises(StoreError, match="a file where a folder is needed"):
        EngineStore(place).get_or_build(KEY, lambda: b"plan")


def test_where_engines_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLKIT_ENGINES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_store() == tmp_path / "mlflowkit" / "engines"
    monkeypatch.setenv("MLKIT_ENGINES", str(tmp_path / "mine"))
    assert default_store() == tmp_path / "mine"
