"""Results written back to lakeFS: one branch, one commit and one merge for each, wherever a process is killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lakefs_client", reason="pip install 'mlflowkit[lakefs]'")

from mlflowkit.adapters.data_sources.lakefs_answers import read_answer
from mlflowkit.cli.app import main
from mlflowkit.errors import DeliveryRefusedError, MlkitError, RecipeError, ServiceError
from mlflowkit.pipeline.run import execute
from mlflowkit.ports import FinishedRun, RunTarget
from mlflowkit.recipe.check import load
from mlflowkit.system.failpoint import WRITE_BACK_POINTS
from mlflowkit.values import Lineage, RunRecord, StepRecord
from mlflowkit.wiring import Wiring
from tests.support.lakefs_fake import KEY, SECRET, Asked, FakeLakefs, Switch
from tests.support.lakefs_state import FakeCommit, FakeRepository

RECIPE = """name: lending
task: classification
connections:
  lake: {{kind: lakefs, url: {url}, access_key: {{env: LAKE_KEY}}, secret: {{env: LAKE_SECRET}}}}
data:
  source: {{kind: lakefs, connection: lake, repository: lending, ref: main, path: loans/, format: csv}}
  target: bad
  split: {{kind: random}}
  write_back: {{to: main, path: _mlkit/lending/}}
model: {{kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}}
optimize: {{candidates: [onnx]}}
gates: [{{metric: roc_auc, min: 0.1, on_inconclusive: allow}}]
"""
ROWS = "income,bad\n" + "".join(f"{index % 41},{int(index % 41 > 20)}\n" for index in range(400))
FINGERPRINT = "3f2a9c41d07e" + "0" * 52
BRANCH = "mlkit-lending-3f2a9c41d07e"
FILES = {
    "data": ("train.parquet", "test.parquet", "split.npy", "table.json"),
    "validate": ("reference.json", "reference.whylogs", "schema.json", "checks.json"),
    "evaluate": ("predictions.parquet",),
}


@dataclass
class BackWorld:
    """A recipe beside its state, a server, and a finished run."""

    folder: Path
    lake: FakeLakefs
    folders: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "recipe.yaml").write_text(RECIPE.format(url=self.lake.url))
        for stage, names in FILES.items():
            self.folders[stage] = self.folder / stage
            self.folders[stage].mkdir()
            for name in names:
                (self.folders[stage] / name).write_text(f"{stage} {name}")
        self.folders["package"] = self.folder / "package"
        (self.folders["package"] / "bundle").mkdir(parents=True)
        (self.folders["package"] / "bundle" / "blessing.json").write_text('{"policy": "9c"}')
        self.start = self.repository.branches["main"].head

    @property
    def repository(self) -> FakeRepository:
        return self.lake.repository()

    def target(self, *overrides: str) -> RunTarget:
        loaded = load(self.folder / "recipe.yaml", overrides)
        targets = Wiring(self.folder / ".mlkit").run_targets(loaded.recipe, loaded.folder)
        return next(target for target in targets if target.name.startswith("lakefs "))

    def run(self, *, blessed: bool = True, run: str = "20261130-120000-aaaa") -> FinishedRun:
        lineage = Lineage("ab" * 20, False, "d" * 64, "e" * 64, data_commit=self.start)
        evaluate = StepRecord("evaluate", "run", "first run", FINGERPRINT, "done")
        record = RunRecord(
            run, "lending", "recipe.yaml", "done" if blessed else "gate-failed", 1.0, 2.0, lineage, {},
            steps=(evaluate,), bundle="b" * 64 if blessed else "", blessed=blessed,
        )  # fmt: skip
        return FinishedRun(record, self.folders)

    def log(self, reference: str) -> list[FakeCommit]:
        """The commits of a reference after the one that was read."""
        return [
            commit
            for commit in self.repository.history(self.repository.resolve(reference)[0])
            if commit.generation > self.repository.commits[self.start].generation
        ]

    def written(self) -> list[str]:
        return sorted(path for path in self.repository.tree("main") if path.startswith("_mlkit/"))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BackWorld]:
    monkeypatch.setenv("LAKE_KEY", KEY)
    monkeypatch.setenv("LAKE_SECRET", SECRET)
    lake = FakeLakefs()
    lake.repository().replace_all("main", {"loans/a.csv": ROWS.encode()})
    yield BackWorld(tmp_path, lake)
    lake.close()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert KEY.encode() not in content, path
            assert SECRET.encode() not in content, path


def refusal(world: BackWorld, kind: type[MlkitError] = DeliveryRefusedError) -> str:
    with pytest.raises(MlkitError) as raised:
        world.target().deliver(world.run())
    assert type(raised.value) is kind, raised.value
    assert SECRET not in raised.value.message + raised.value.hint
    return raised.value.message


def is_whole(world: BackWorld) -> bool:
    """One branch with one commit, merged once, with every file and fact."""
    (commit,) = world.log(BRANCH)
    merge, same = world.log("main")
    assert same == commit
    assert commit.parents == (world.start,)
    assert commit.metadata == {
        "mlkit.run": "20261130-120000-aaaa", "mlkit.fingerprint": FINGERPRINT,
        "mlkit.version": commit.metadata["mlkit.version"], "git_commit": "ab" * 20, "git_dirty": "false",
        "recipe_digest": "e" * 64, "data_commit": world.start, "data_version": "d" * 64,
    }  # fmt: skip
    assert (merge.metadata["mlkit.bundle"], merge.metadata["mlkit.verdict"]) == ("b" * 64, "PASSED")
    assert merge.metadata["mlkit.policy"] == "9c"
    folder = "_mlkit/lending/3f2a9c41d07e"
    assert world.written() == sorted(
        f"{folder}/{part}/{name}"
        for part, stage, names in (
            ("split", "data", FILES["data"]),
            ("profile", "validate", FILES["validate"][:3]),
            ("checks", "validate", FILES["validate"][3:]),
            ("predictions", "evaluate", FILES["evaluate"]),
        )
        for name in names
    )
    entry = world.repository.tree("main")[f"{folder}/predictions/predictions.parquet"]
    assert world.repository.blobs[entry.address] == b"evaluate predictions.parquet"
    assert set(world.repository.branches) == {"main", BRANCH}
    return True


def test_a_blessed_result_is_committed_and_merged_once(world: BackWorld) -> None:
    receipt = world.target().deliver(world.run())
    assert receipt.startswith(f"lakefs://lending/{BRANCH} commit ")
    assert receipt.endswith("merged into main")
    assert is_whole(world)
    requests = len(world.lake.requests)
    assert world.target().deliver(world.run()) == receipt
    assert is_whole(world)
    writes = [asked for asked in world.lake.requests[requests:] if asked.method == "POST"]
    assert [asked.route.rpartition("/")[2] for asked in writes] == ["branches"]


@pytest.mark.parametrize("point", [*WRITE_BACK_POINTS, "writeback.uploaded:5"])
def test_a_process_that_is_killed_leaves_what_the_next_one_completes(
    world: BackWorld, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    target, run = world.target(), world.run()
    child = os.fork()
    if child == 0:
        os.environ["MLKIT_FAILPOINT"] = point
        target.deliver(run)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    world.target().deliver(run)
    assert is_whole(world)


def test_an_unblessed_result_stays_on_its_branch_until_it_is_blessed(world: BackWorld) -> None:
    target = world.target()
    unblessed, blessed = world.run(blessed=False), world.run()
    assert target.deliver(unblessed).endswith("not merged")
    assert world.repository.branches["main"].head == world.start
    assert target.key(unblessed.record) != target.key(blessed.record)
    target.deliver(blessed)
    assert is_whole(world)


def test_a_plan_names_where_results_go(world: BackWorld, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["plan", str(world.folder / "recipe.yaml"), "--until", "data"])
    assert "written back to lakefs lending/main _mlkit/lending/" in capsys.readouterr().out


def test_never_merges_nothing(world: BackWorld) -> None:
    assert world.target("data.write_back.merge=never").deliver(world.run()).endswith("not merged")
    assert world.repository.branches["main"].head == world.start
    assert len(world.log(BRANCH)) == 1


def test_results_from_one_commit_do_not_conflict(world: BackWorld) -> None:
    world.target().deliver(world.run())
    second = world.run(run="20261130-130000-bbbb")
    steps = (replace(second.record.steps[0], fingerprint="c" * 64),)
    world.target().deliver(replace(second, record=replace(second.record, steps=steps)))
    assert len({path.split("/")[2] for path in world.written()}) == 2


def test_what_others_commit_on_the_branch_is_not_merged(world: BackWorld) -> None:
    world.target("data.write_back.merge=never").deliver(world.run())
    world.repository.put(BRANCH, "loans/evil.csv", b"income,bad\n")
    world.repository.commit(BRANCH)
    world.target().deliver(world.run())
    assert "loans/evil.csv" not in world.repository.tree("main")


def test_a_branch_of_that_name_from_elsewhere_is_refused(world: BackWorld) -> None:
    world.repository.put("main", "other/b.csv", b"x")
    world.repository.create_branch(BRANCH, world.repository.commits[world.start].parents[0])
    assert "does not begin at commit" in refusal(world)
    assert world.written() == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [(412, DeliveryRefusedError), (403, DeliveryRefusedError), (500, ServiceError)],
)
def test_a_merge_that_is_refused_says_why_and_merges_nothing(
    world: BackWorld, status: int, kind: type[MlkitError]
) -> None:
    def refuse(number: int, asked: Asked) -> Switch | None:
        is_merge = asked.method == "POST" and "/merge/" in asked.route
        return Switch(status=status, message="the words of the server") if is_merge else None

    world.lake.switch = refuse
    assert f"the server answered {status} (the words of the server)" in refusal(world, kind)
    assert world.repository.branches["main"].head == world.start
    world.lake.switch = None
    world.target().deliver(world.run())
    assert is_whole(world)


def test_a_conflict_is_left_to_people(world: BackWorld) -> None:
    world.repository.put("main", "_mlkit/lending/3f2a9c41d07e/checks/checks.json", b"by hand")
    head = world.repository.commit("main")
    assert "the server answered 409" in refusal(world)
    assert world.repository.branches["main"].head == head


def test_a_target_with_staged_changes_is_tried_again_later(world: BackWorld) -> None:
    world.repository.put("main", "other/c.csv", b"x")
    assert "uncommitted changes" in refusal(world, ServiceError)
    assert world.written() == []


def test_a_busy_server_is_asked_again(world: BackWorld) -> None:
    def busy(number: int, asked: Asked) -> Switch | None:
        return Switch(status=(429, 503)[number % 2], retry_after="0") if number % 3 else None

    world.lake.switch = busy
    world.target().deliver(world.run())
    assert is_whole(world)


def test_a_server_that_is_gone_and_one_that_hides_are_no_surprise(world: BackWorld) -> None:
    os.environ["LAKE_SECRET"] = "wrong"
    assert "the server answered 401" in refusal(world)
    os.environ["LAKE_SECRET"] = SECRET
    world.lake.stop()
    assert "no answer" in refusal(world, ServiceError)


@pytest.mark.parametrize("page", [b"<html>sign in</html>", b"{}", b'{"results": [{"id": "\\u001b[2J"}], "id": 1}'])
@pytest.mark.parametrize(
    "route",
    ["POST /branches", "POST /objects", "POST /commits", "GET /{destinationBranch}", "POST /{destinationBranch}"],
)
def test_what_a_proxy_answers_is_no_delivery_and_made_up_for(world: BackWorld, route: str, page: bytes) -> None:
    method, end = route.split()
    asked: list[str] = []

    def answer(number: int, request: Asked) -> Switch | None:
        asked.append(request.route)
        return Switch(page=page) if request.method == method and request.route.endswith(end) else None

    world.lake.switch = answer
    assert "the answer is none of lakeFS" in refusal(world, ServiceError)
    assert asked[-1].endswith(end)
    world.lake.switch = None
    world.target().deliver(world.run())
    assert is_whole(world)


@pytest.mark.parametrize("end", ["/branches/{branch}", "/commits"])
def test_a_page_in_place_of_what_was_made_before_is_no_refusal(world: BackWorld, end: str) -> None:
    world.target().deliver(world.run())

    def answer(number: int, request: Asked) -> Switch | None:
        return Switch(page=b"{}") if request.method == "GET" and request.route.endswith(end) else None

    world.lake.switch = answer
    assert "the answer is none of lakeFS" in refusal(world, ServiceError)


def test_a_result_that_the_state_folder_has_lost_is_not_delivered_in_part(world: BackWorld) -> None:
    shutil.rmtree(world.folders["validate"])
    assert "what validate made for run 20261130-120000-aaaa is not in the state folder" in refusal(world)
    assert world.written() == []


class _Flood(BaseHTTPRequestHandler):
    """Answers each request with an error whose body has 64 MiB."""

    sent = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(412)
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(64):
                self.wfile.write(b"x" * (1 << 20))
                _Flood.sent += 1

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def test_the_body_of_an_error_is_read_within_bounds(world: BackWorld) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Flood)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"connections.lake.url=http://127.0.0.1:{server.server_port}"
    try:
        with pytest.raises(DeliveryRefusedError, match=r"answered 412 \(Precondition Failed\)"):
            world.target(address).deliver(world.run())
    finally:
        server.shutdown()
        server.server_close()
    assert _Flood.sent < 32


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.write_back.path=loans/results/"], "results would become data"),
        (["data.source.path=''"], "the whole repository, which the source reads"),
        (["data.source.path=_mlkit/lending/old/x.csv"], "results would become data"),
        (["data.write_back.path=results"], "expected a folder of the repository"),
        (["data.write_back.path=/a/../b/"], "expected a folder of the repository"),
        (["data.write_back.to=a/b"], "data.write_back.to"),
        (["~data.source", "+data.source={kind: csv, path: a.csv}"], "a source of kind csv has no branches"),
    ],
)
def test_a_write_back_that_cannot_be_right_is_a_fault_of_the_recipe(
    world: BackWorld, overrides: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        load(world.folder / "recipe.yaml", overrides)


def test_five_runs_over_a_branch_that_their_own_merges_move_train_once(world: BackWorld) -> None:
    """The head moves by the merge, the table's folder does not."""
    trained: list[Any] = []
    for _ in range(5):
        loaded = load(world.folder / "recipe.yaml", ())
        state = world.folder / ".mlkit"
        record = execute(loaded, state, Wiring(state), lambda event: None, until="package")
        assert (record.status, record.error) == ("done", "")
        trained += [step for step in record.steps if (step.stage, step.action) == ("train", "run")]
    assert len(trained) == 1
    assert len(world.log("main")) == 2
    (delivery,) = [item for item in record.deliveries if item.target.startswith("lakefs ")]
    assert (delivery.status, delivery.attempts) == ("delivered", 1)
    names = {path.split("/")[3] for path in world.written()}
    assert names == {"split", "profile", "checks", "predictions"}
    table = next(path for path in world.written() if path.endswith("split/table.json"))
    content = world.repository.blobs[world.repository.tree("main")[table].address]
    assert json.loads(content)["data_version"] == record.lineage.data_version


def test_an_answer_that_comes_byte_by_byte_has_an_end() -> None:
    class Dripping:
        def read1(self, amount: int) -> bytes:
            return b"x"

    with pytest.raises(TimeoutError, match="was not whole after 0 s"):
        read_answer(Dripping(), 1 << 30, 0.0)
    assert read_answer(Dripping(), 3, 60.0) == b"xxx"
