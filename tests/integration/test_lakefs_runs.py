"""Runs over a lakeFS repository: planned once, read from that commit, reused by content, told in the lineage."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("lakefs_client", reason="pip install 'mlflowkit[lakefs]'")

from mlflowkit.cli.app import main
from mlflowkit.errors import DataError
from mlflowkit.pipeline import noop_cache
from mlflowkit.pipeline.lineage import data_snapshot as snapshots
from mlflowkit.pipeline.noop_cache import NoopKey, look_up, snapshot_inputs, write
from mlflowkit.pipeline.plan import ExecutionPlan, preview
from mlflowkit.pipeline.run import execute
from mlflowkit.pipeline.run_summary import summarize
from mlflowkit.pipeline.storage.collector import Collector
from mlflowkit.pipeline.storage.garbage import Keeping
from mlflowkit.pipeline.storage.step_lease import this_owner
from mlflowkit.recipe.check import load
from mlflowkit.values import Event, RunRecord
from mlflowkit.wiring import Wiring
from tests.support.lakefs_fake import KEY, SECRET, Asked, FakeLakefs, Switch
from tests.support.warm_commands import warm_command

RECIPE = """name: loans
task: classification
connections:
  lake: {{kind: lakefs, url: {url}, access_key: {{env: LAKE_KEY}}, secret: {{env: LAKE_SECRET}}}}
data:
  source: {{kind: lakefs, connection: lake, repository: lending, ref: main, path: loans/, format: csv}}
  target: bad
  split: {{kind: random}}
model: {{kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}}
"""
OBJECT = "/refs/{ref}/objects"


def rows(seed: int) -> bytes:
    return ("income,bad\n" + "".join(f"{index * seed % 97},{index % 2}\n" for index in range(60))).encode()


FILES = {f"loans/month={month}/a.csv": rows(month) for month in (1, 2, 3)}


class LakeWorld:
    """A recipe's folder, its state, and the server."""

    def __init__(self, folder: Path, lake: FakeLakefs) -> None:
        self.folder, self.lake, self.state = folder, lake, folder / ".mlkit"
        self.path = folder / "recipe.yaml"
        self.path.write_text(RECIPE.format(url=lake.url))
        self.events: list[Event] = []

    @property
    def repository(self) -> Any:
        return self.lake.repository()

    def plan(self, *overrides: str) -> ExecutionPlan:
        return preview(load(self.path, overrides), Wiring(self.state), until="data")

    def run(self, *overrides: str, until: str = "data") -> RunRecord:
        self.events = []
        loaded = load(self.path, overrides)
        return execute(loaded, self.state, Wiring(self.state), self.events.append, until=until)

    def table(self, record: RunRecord) -> dict[str, Any]:
        folder = Wiring(self.state).objects.path(record.steps[0].digest)
        value: dict[str, Any] = json.loads((folder / "table.json").read_text())
        return value

    def messages(self) -> str:
        return "\n".join(event.message for event in self.events)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LakeWorld]:
    monkeypatch.setenv("LAKE_KEY", KEY)
    monkeypatch.setenv("LAKE_SECRET", SECRET)
    monkeypatch.setattr(noop_cache, "SETTLED_NS", 0)
    lake = FakeLakefs()
    lake.repository().replace_all("main", FILES)
    yield LakeWorld(tmp_path, lake)
    lake.close()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert KEY.encode() not in content, path
            assert SECRET.encode() not in content, path


def test_a_run_reads_its_commit_and_names_it(world: LakeWorld) -> None:
    commit = world.repository.branches["main"].head
    record = world.run()
    assert (record.lineage.data_source, record.lineage.data_commit) == ("lakefs://lending/loans/", commit)
    table = world.table(record)
    assert {column["name"] for column in table["features"]} == {"income", "month"}
    assert sum(table["rows"].values()) == 180
    with Wiring(world.state).open_journal() as journal:
        assert journal.run("last").lineage == record.lineage
    assert not world.lake.moving_reads()


def test_a_branch_that_moves_between_plan_and_fetch_is_told_and_not_read(world: LakeWorld) -> None:
    planned = world.repository.branches["main"].head

    def move(number: int, asked: Asked) -> Switch | None:
        if asked.route.endswith(OBJECT) and not moved:
            moved.append(number)
            return Switch(act=lambda: world.repository.replace_all("main", {"loans/b.csv": rows(9)}))
        return None

    moved: list[int] = []
    world.lake.switch = move
    record = world.run()
    now = world.repository.branches["main"].head
    assert record.lineage.data_commit == planned != now
    assert sum(world.table(record)["rows"].values()) == 180
    assert f"main is now at {now[:8]}; this run uses {planned[:8]}, as planned" in world.messages()
    assert world.plan().steps[0].action == "run"


def test_an_unrelated_commit_reuses_and_a_changed_object_is_named(world: LakeWorld) -> None:
    first = world.run()
    world.repository.put("main", "other/readme", b"1")
    unrelated = world.repository.commit("main")
    step = world.plan().steps[0]
    assert step.action == "reuse"
    assert step.reason.endswith(f"commit {unrelated[:8]} has the same data as {first.lineage.data_commit[:8]}")
    assert world.run().run == first.run, "nothing ran"
    world.repository.put("main", "loans/month=2/a.csv", rows(5))
    now = world.repository.commit("main")
    step = world.plan().steps[0]
    moved = f"main moved from {first.lineage.data_commit[:8]} to {now[:8]}"
    assert (step.action, step.reason) == ("run", f"data.source: month=2/a.csv changed (1 of 3 files): {moved}")


def test_objects_of_other_bytes_but_the_same_rows_run_the_data_step_alone(world: LakeWorld) -> None:
    first = world.run(until="validate")
    world.repository.put("main", "loans/month=2/a.csv", FILES["loans/month=2/a.csv"] + b"\n")
    commit = world.repository.commit("main")
    record = world.run(until="validate")
    assert [step.action for step in record.steps] == ["run", "reuse"]
    assert record.steps[1].reason == "data was made anew with the same content"
    assert record.lineage.data_commit == commit != first.lineage.data_commit


def test_a_local_copy_of_the_objects_gives_the_same_table_and_repeats_nothing_after_it(world: LakeWorld) -> None:
    first = world.run(until="validate")
    for name, content in FILES.items():
        (world.folder / name).parent.mkdir(parents=True)
        (world.folder / name).write_bytes(content)
    source = re.sub("source: .*", "source: {kind: csv, path: loans}", world.path.read_text())
    world.path.write_text(source)
    record = world.run(until="validate")
    assert [step.action for step in record.steps] == ["run", "reuse"]
    assert record.lineage.data_version == first.lineage.data_version


def test_a_commit_named_in_place_of_its_branch_changes_nothing(world: LakeWorld) -> None:
    first = world.run()
    assert world.plan(f"data.source.ref={first.lineage.data_commit}").steps[0].action == "reuse"


def test_another_row_order_of_requests_gives_the_same_table(world: LakeWorld, tmp_path: Path) -> None:
    """The order of rows is that of the objects' names, whichever arrives first."""
    first = world.table(world.run())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = LakeWorld(elsewhere, world.lake)
    asked: list[Asked] = []

    def delay_first(number: int, request: Asked) -> Switch | None:
        if request.route.endswith(OBJECT):
            asked.append(request)
            if len(asked) == 1:
                return Switch(503)
        return None

    world.lake.switch = delay_first
    assert again.table(again.run())["data_version"] == first["data_version"]


def test_a_reused_result_needs_no_object(world: LakeWorld) -> None:
    record = world.run()
    for path in FILES:
        world.repository.collect(path, record.lineage.data_commit)
    count = len(world.lake.asked(OBJECT))
    assert world.run().run == record.run
    assert len(world.lake.asked(OBJECT)) == count


def test_a_collected_object_ends_the_run_before_training(world: LakeWorld) -> None:
    world.repository.collect("loans/month=2/a.csv", world.repository.branches["main"].head)
    with pytest.raises(DataError, match=r"loans/month=2/a\.csv was collected"):
        world.run()


def test_without_a_network_a_pinned_version_is_reused_and_a_branch_is_refused_with_it(
    world: LakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflowkit.data_access.remote_source.RESOLVE_SECONDS", 0.5)
    record = world.run()
    pin = f"data.source.ref={record.lineage.data_commit}"
    world.run(pin)
    world.lake.stop()
    assert world.plan(pin).steps[0].action == "reuse"
    assert world.run(pin).steps[0].action == "reuse"
    with pytest.raises(DataError, match="cannot be resolved") as caught:
        world.plan()
    assert pin in caught.value.hint
    assert caught.value.exit_code == 3


def test_a_plan_is_shown_in_one_line(world: LakeWorld) -> None:
    snapshot = world.plan().snapshot
    assert snapshot is not None
    now = float(snapshot.details["time"]) + 7300
    shown = snapshots.describe_snapshot(snapshot, now)
    size = sum(map(len, FILES.values()))
    expected = f"lakefs://lending/main/loans/ -> {snapshot.version[:8]} (3 objects, {size} B, 2 h ago by etl)"
    assert shown == expected


@pytest.mark.parametrize(("ref", "requests"), [("main", 1), ("pinned", 0)])
def test_a_run_with_nothing_to_do_asks_at_most_once_and_imports_no_client(
    world: LakeWorld, ref: str, requests: int
) -> None:
    overrides = () if ref == "main" else (f"data.source.ref={world.repository.branches['main'].head}",)
    beginning = snapshot_inputs(world.path)
    summary = summarize(world.run(*overrides), world.state)
    key = NoopKey(world.path, overrides, "data", world.state)
    assert write(key, beginning, load(world.path, overrides), summary)
    before = len(world.lake.requests)
    assert look_up(key, None) is not None
    assert len(world.lake.requests) == before + requests
    program = (
        "import sys; from pathlib import Path; from mlflowkit.pipeline.noop_cache import NoopKey, look_up;"
        f"key = NoopKey(Path({str(world.path)!r}), {overrides!r}, 'data', Path({str(world.state)!r}));"
        "vendors = [name for name in ('lakefs_client', 'pydantic', 'urllib3') if name in sys.modules];"
        "print(look_up(key, None) is not None, vendors)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    modules = answer.stdout.split(" ", 1)[1]
    assert modules.strip() == "[]"
    if ref == "main":
        world.repository.put("main", "other/x", b"1")
        world.repository.commit("main")
        assert look_up(key, None) is None, "the planner decides"
        summary = summarize(world.run(), world.state)
        assert write(key, beginning, load(world.path), summary), "the other commit has the same data"
        assert look_up(key, None) is not None
        world.lake.stop()
        assert look_up(key, None) is None


def mlkit(world: LakeWorld, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*warm_command("mlflowkit.cli"), *arguments, "--state", str(world.state)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=world.folder)


def test_the_commands_show_the_commit_and_no_secret(world: LakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = world.repository.branches["main"].head
    shown = mlkit(world, "plan", "recipe.yaml", "--until", "data")
    assert shown.stdout.startswith(f"lakefs://lending/main/loans/ -> {commit[:8]} (3 objects, ")
    world.run()
    planned = json.loads(mlkit(world, "plan", "recipe.yaml", "--until", "data", "--json").stdout)
    assert planned["data"]["commit"] == commit
    assert planned["steps"][0]["action"] == "reuse"
    monkeypatch.setenv("LAKE_SECRET", "wrong-canary")
    refused = mlkit(world, "run", "recipe.yaml", "--until", "data", "data.drop=[month]", "--json")
    assert refused.returncode == 3
    assert "does not know these credentials" in json.loads(refused.stdout)["error"]["message"]
    for text in (shown.stdout, shown.stderr, refused.stdout, refused.stderr):
        assert not any(secret in text for secret in (KEY, SECRET, "wrong-canary"))


def test_a_tag_that_was_moved_is_told_with_both_commits(world: LakeWorld) -> None:
    repository = world.repository
    before = repository.create_tag("v1", "main")
    world.run("data.source.ref=v1")
    repository.replace_all("main", {**FILES, "loans/month=3/a.csv": rows(7)})
    del repository.tags["v1"]
    after = repository.create_tag("v1", "main")
    step = world.plan("data.source.ref=v1").steps[0]
    moved = f"v1 moved from {before[:8]} to {after[:8]}"
    assert (step.action, step.reason) == ("run", f"data.source: month=3/a.csv changed (1 of 3 files): {moved}")
    del repository.tags["v1"]
    assert world.plan(f"data.source.ref={before}").steps[0].action == "reuse", "what was pinned needs no tag"


def test_no_command_tells_a_secret(
    world: LakeWorld, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of runs that end well and of runs that the server refuses; files of the state are searched by the fixture."""

    def mlkit(*words: str) -> str:
        with pytest.raises(SystemExit):
            main([*words, "--state", str(world.state)])
        return "".join(capfd.readouterr())

    recipe, wrong = str(world.path), "canary/wrong+secret=of_lake"
    told = [mlkit("run", recipe, "--until", "validate"), mlkit("run", recipe, "--until", "validate", "--json")]
    monkeypatch.setenv("LAKE_SECRET", wrong)
    told += [mlkit(command, recipe, *form) for command in ("plan", "run") for form in ((), ("--json",))]
    told += [mlkit("show", "--json"), mlkit("runs", "--json"), mlkit("report"), mlkit("gc", "--dry-run", "--json")]
    assert "does not know these credentials" in told[2]
    assert json.loads(told[3])["error"]["kind"] == "data"
    secrets = [KEY, SECRET, wrong]
    secrets += [base64.b64encode(f"{KEY}:{secret}".encode()).decode() for secret in secrets[1:]]
    contents = [*told, *(path.read_text(errors="replace") for path in world.state.rglob("*") if path.is_file())]
    forms = [form for secret in secrets for form in (secret, quote(secret), quote(secret, safe=""))]
    assert not [form for form in forms if any(form in content for content in contents)]


def test_collecting_removes_objects_that_no_kept_run_read(world: LakeWorld) -> None:
    repository, keeping = world.repository, Keeping(runs=1, since=float("inf"))
    world.run()
    repository.replace_all("main", {**FILES, "loans/month=3/a.csv": rows(7)})
    kept = world.run()
    repository.replace_all("main", {**FILES, "loans/month=3/a.csv": rows(7), "other/note.txt": b"x"})
    pinned = world.run(until="validate")  # reuses the table of the other commit: nothing was fetched for this one
    (sources := world.state / "sources").joinpath("parts").mkdir(exist_ok=True)
    (sources / "parts" / "cut.part").write_bytes(b"abc")
    with Wiring(world.state).open_journal() as journal:
        for delivery in journal.deliveries("pending"):
            journal.save_delivery(replace(delivery, status="delivered"))
    objects = {path.name: path.read_bytes() for path in (sources / "objects").iterdir()}
    assert sorted(objects.values()) == sorted([*FILES.values(), rows(7)])
    planned = Collector(world.state).plan(keeping)
    assert {path.name for path in (sources / "objects").iterdir()} == set(objects), "a plan changes nothing"
    (gone,) = (name for name, content in objects.items() if content == FILES["loans/month=3/a.csv"])
    removed = {item.name: item for item in planned.removed if item.kind == "source"}
    assert {name for name in removed if name.startswith(("objects/", "parts/"))} == {
        f"objects/{gone}",
        "parts/cut.part",
    }
    assert removed[f"objects/{gone}"].bytes == len(objects[gone])
    assert {item.reason for item in removed.values()} == {"remote data that no kept run read"}
    stays = next(item for item in planned.kept if item.name.startswith("objects/"))
    assert stays.reason == f"run {pinned.run} read it"
    assert Collector(world.state).collect(keeping) == planned
    assert {path.name for path in (sources / "objects").iterdir()} == set(objects) - {gone}
    known = [json.loads(path.read_bytes())["sha256"] for path in (sources / "known").iterdir()]
    assert sorted(known) == sorted(name.partition(".")[0] for name in set(objects) - {gone})
    assert not Collector(world.state).collect(keeping).removed, "all that went is gone at once"
    asked = len(world.lake.asked(OBJECT))
    again = world.run(f"data.source.ref={pinned.lineage.data_commit}", "data.split.test=0.3")
    assert again.steps[0].action == "run"
    assert len(world.lake.asked(OBJECT)) == asked, "what a kept run read is here"
    assert kept.lineage.data_commit != pinned.lineage.data_commit


def test_nothing_of_remote_data_goes_while_a_run_is_active_or_was_used_lately(world: LakeWorld) -> None:
    record = world.run()
    keeping = Keeping(runs=0, since=0.0)
    assert not [item for item in Collector(world.state).plan(keeping).removed if item.kind == "source"]
    with Wiring(world.state).open_journal() as journal:
        journal.start_run(replace(record, run="20990101-000000-aaaa", status="running"), this_owner())
    planned = Collector(world.state).plan(Keeping(runs=0, since=float("inf")))
    files = [item for item in planned.kept if item.kind == "source"]
    assert {item.reason for item in files} == {"a run is active, which may read it"}
    assert {path.name for path in (world.state / "sources" / "objects").iterdir()} <= {
        item.name.partition("/")[2] for item in files
    }
