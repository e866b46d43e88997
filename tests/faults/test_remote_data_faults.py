"""Interrupted, killed and full while remote data is fetched: what was received is kept, and nothing counts before it is
checked."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

pytest.importorskip("lakefs_client", reason="pip install 'mlflowkit[lakefs]'")

from mlflowkit.data_access.object_cache import ObjectCache
from mlflowkit.errors import StoreError
from mlflowkit.recipe.check import load
from mlflowkit.wiring import Wiring
from tests.support.lakefs_fake import KEY, SECRET, Asked, FakeLakefs, Switch
from tests.support.waiting import wait_for

RECIPE = """name: loans
task: classification
connections:
  lake: {{kind: lakefs, url: {url}, access_key: {{env: LAKE_KEY}}, secret: {{env: LAKE_SECRET}}}}
data:
  source: {{kind: lakefs, connection: lake, repository: lending, path: loans.csv, format: csv}}
  target: bad
  split: {{kind: random}}
model: {{kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}}
"""
ROWS = ("income,bad\n" + "".join(f"{index * 7919 % 10_007},{index % 2}\n" for index in range(60_000))).encode()
PROGRAM = """
import sys
from pathlib import Path
from mlflowkit.errors import MlkitError
from mlflowkit.pipeline.run import execute
from mlflowkit.recipe.check import load
from mlflowkit.wiring import Wiring
folder = Path(sys.argv[1])
try:
    state = folder / ".mlkit"
    execute(load(folder / "recipe.yaml"), state, Wiring(state), lambda event: None, until="data")
except MlkitError as error:
    print(error.message, error.hint)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLakefs]:
    monkeypatch.setenv("LAKE_KEY", KEY)
    monkeypatch.setenv("LAKE_SECRET", SECRET)
    fake = FakeLakefs()
    fake.repository().replace_all("main", {"loans.csv": ROWS})
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(url=fake.url))
    yield fake
    fake.close()


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(folder: Path) -> None:
    from mlflowkit.pipeline.run import execute

    state = folder / ".mlkit"
    execute(load(folder / "recipe.yaml"), state, Wiring(state), lambda event: None, until="data")


def cut_then_hang(lake: FakeLakefs) -> None:
    """The first answer is cut after two thirds, and no further one is given."""
    answers = [Switch(cut=len(ROWS) * 2 // 3)]

    def switch(number: int, asked: Asked) -> Switch | None:
        if not asked.route.endswith("/refs/{ref}/objects"):
            return None
        return answers.pop() if answers else Switch(hang=True)

    lake.switch = switch


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_a_fetch_that_was_ended_goes_on_where_it_was(lake: FakeLakefs, tmp_path: Path, ending: signal.Signals) -> None:
    cut_then_hang(lake)
    process = start(tmp_path)
    wait_for(lambda: len(lake.asked("/refs/{ref}/objects")) >= 2, 60, "a second request of the object")
    process.send_signal(ending)
    output, _ = process.communicate(timeout=20)  # the server would hang for longer
    assert process.returncode == (130 if ending == signal.SIGINT else -signal.SIGKILL)
    assert SECRET not in output
    assert not list((tmp_path / ".mlkit").glob("sources/objects/*")), "nothing counts before it is checked"
    lake.switch = None
    lake.sent.clear()
    run(tmp_path)
    assert lake.sent["loans.csv"] == len(ROWS) - len(ROWS) * 2 // 3
    assert lake.asked("/refs/{ref}/objects")[-1].headers["Range"] == f"bytes={len(ROWS) * 2 // 3}-"


def test_a_full_disk_is_told_and_the_next_run_goes_on(
    lake: FakeLakefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = [len(ROWS) * 99 // 100]

    class FullDisk:
        """A file on a disk that has room for some bytes."""

        def __init__(self, stream: BinaryIO) -> None:
            self._stream = stream

        def write(self, chunk: bytes) -> int:
            if len(chunk) > room[0]:
                self._stream.write(chunk[: room[0]])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            room[0] -= len(chunk)
            return self._stream.write(chunk)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    original = ObjectCache.part

    @contextmanager
    def part(cache: ObjectCache, identity: str) -> Iterator[Any]:
        with original(cache, identity) as stream:
            yield None if stream is None else FullDisk(stream)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectCache, "part", part)
        with pytest.raises(StoreError, match="the disk is full"):
            run(tmp_path)
    assert not list((tmp_path / ".mlkit").glob("sources/objects/*"))
    lake.sent.clear()
    run(tmp_path)
    assert lake.sent["loans.csv"] <= len(ROWS) - len(ROWS) * 98 // 100
