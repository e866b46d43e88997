"""A small world for the pipeline: a recipe over a csv, stages that write small files, ports that keep state in files.

The stages are real in what the pipeline sees of them (they read their inputs, fill a folder, report progress, leave
checkpoints) and derive every byte from their inputs, so that two runs can be compared digest by digest. As a program
it runs the recipe once and prints the run as JSON: ``python -m tests.support.pipeline_world FOLDER [--until STAGE]
[--hold]``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlflowkit.errors import MlkitError
from mlflowkit.pipeline.outbox.tracker_target import TrackerTarget
from mlflowkit.pipeline.run import execute, raise_for
from mlflowkit.pipeline.storage.journal import SqliteJournal
from mlflowkit.pipeline.storage.store import FolderStore
from mlflowkit.ports import Journal, ObjectStore, RunTarget, StageContext
from mlflowkit.recipe.schema import LoadedRecipe, RecipeSchema
from mlflowkit.values import Event, Outcome, RunRecord, ServiceStatus, StageResult, Variant, Verdict
from tests.support.waiting import wait_for

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "task": "classification",
    "seed": 7,
    "data": {
        "source": {"kind": "csv", "path": "rows.csv"},
        "target": "y",
        "split": {"kind": "random"},
    },
    "model": {"kind": "torch", "module": "net:Net", "args": {}},
    "train": {"epochs": 3},
    "gates": [{"metric": "accuracy", "min": 0.5}],
    "serve": {"service": "tiny", "port": 0},
}


def lay_out(folder: Path) -> None:
    """Write the recipe's folder: rows, a module and the helper that it imports."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.csv").write_text("x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(20)))
    (folder / "net.py").write_text("from helper import width\n\n\nclass Net:\n    hidden = width()\n")
    (folder / "helper.py").write_text("def width():\n    return 4\n")


def load(folder: Path, changes: Mapping[str, Any] | None = None) -> LoadedRecipe:
    """The recipe of a folder, with keys changed (dotted)."""
    plain = json.loads(json.dumps(RECIPE))
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        place = plain
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    recipe = RecipeSchema.model_validate(plain)
    return LoadedRecipe(recipe, folder / "recipe.yaml", (), recipe.model_dump(mode="json"))


def digest_of(*parts: object) -> str:
    """A digest of folders' contents and other values."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            for file in sorted(part.rglob("*")):
                if file.is_file():
                    digest.update(file.relative_to(part).as_posix().encode() + file.read_bytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


class PipelineWorld:
    """Stages and ports over one folder. ``calls`` in the folder gets a line each time that a stage runs."""

    def __init__(self, folder: Path, *, outcome: Outcome = Outcome.PASSED, hold: bool = False) -> None:
        self.folder = folder
        self.outcome = outcome
        self.hold = hold
        """Whether training waits after its first epoch, until `let_go`."""
        self.tracker_fails = False
        self.targets: tuple[RunTarget, ...] = ()
        """Those besides the tracker."""
        self.stages: dict[str, Callable[[Any, StageContext], StageResult]] = {
            "data": self.data,
            "validate": self.plain("validate"),
            "train": self.train,
            "export": self.plain("export"),
            "optimize": self.plain("optimize"),
            "evaluate": self.evaluate,
            "package": self.package,
            "deploy": self.deploy,
        }

    # storage

    def open_journal(self, *, create: bool = True) -> Journal:
        return SqliteJournal(self.folder / ".mlkit", create)

    @property
    def objects(self) -> ObjectStore:
        return FolderStore(self.folder / ".mlkit")

    # stages

    def data(self, spec: Any, context: StageContext) -> StageResult:
        self.called("data", context)
        text = (context.folder / getattr(spec.source, "path", "rows.csv")).read_text()
        (context.out / "rows.csv").write_text(text + str(context.seed))
        (context.out / "table.json").write_text(json.dumps({"data_version": digest_of(text)}))
        return StageResult(metrics={"rows": float(text.count("\n") - 1)})

    def train(self, spec: Any, context: StageContext) -> StageResult:
        self.called("train", context)
        resumed = len(list(context.scratch.glob("epoch-*")))
        for epoch in range(resumed, spec.train.epochs):
            (context.scratch / f"epoch-{epoch}").write_text(str(epoch))
            context.progress(Event("train", "progress", f"epoch {epoch + 1}", (epoch + 1) / spec.train.epochs))
            if self.hold:
                self.wait()
        code = [(context.folder / name).read_text() for name in ("net.py", "helper.py")]
        (context.out / "weights").mkdir()
        (context.out / "weights" / "model").write_text(digest_of(context.inputs["data"], spec, context.seed, code))
        (context.folder / "resumed").write_text(str(resumed))
        return StageResult(metrics={"loss": 0.5}, summary={"epochs": spec.train.epochs})

    def evaluate(self, spec: Any, context: StageContext) -> StageResult:
        self.called("evaluate", context)
        judged = digest_of(context.champion) if context.champion is not None else ""
        parts = [context.inputs[name] for name in sorted(context.inputs)]
        accuracy = {"name": "accuracy", "value": 0.8, "low": 0.7, "high": 0.9, "samples": 20}
        evaluation = {"metrics": {"accuracy": accuracy}, "of": digest_of(*parts, spec, judged)}
        (context.out / "evaluation.json").write_text(json.dumps(evaluation))
        verdict = Verdict("accuracy >= 0.5", self.outcome, "0.8 [0.7, 0.9]", "accuracy")
        return StageResult(metrics={"accuracy": 0.8}, verdicts=(verdict,))

    def package(self, spec: Any, context: StageContext) -> StageResult:
        self.called("package", context)
        bundle = context.out / "bundle"
        bundle.mkdir()
        identity = digest_of(context.inputs["optimize"])
        (bundle / "manifest.json").write_text(json.dumps({"identity": identity}))
        (bundle / "blessing.json").write_text(json.dumps({"data_version": context.lineage.data_version}))
        return StageResult(summary={"identity": identity})

    def deploy(self, spec: Any, context: StageContext) -> StageResult:
        self.called("deploy", context)
        manifest = json.loads((context.inputs["package"] / "bundle" / "manifest.json").read_text())
        (context.folder / "service").write_text(manifest["identity"])
        (context.out / "service.json").write_text(json.dumps({"endpoint": "http://127.0.0.1:1"}))
        return StageResult(summary={"endpoint": "http://127.0.0.1:1"})

    def plain(self, stage: str) -> Callable[[Any, StageContext], StageResult]:
        def run(spec: Any, context: StageContext) -> StageResult:
            self.called(stage, context)
            context.progress(Event(stage, "progress", "half way", 0.5))
            parts = [context.inputs[name] for name in sorted(context.inputs)]
            (context.out / "result").write_text(digest_of(*parts, spec))
            return StageResult()

        return run

    def wait(self, seconds: float = 60.0) -> None:
        wait_for((self.folder / "go").exists, seconds, "leave to go on with the training")

    def let_go(self) -> None:
        """Let training that is held in another process go on."""
        (self.folder / "go").touch()

    def called(self, stage: str, context: StageContext) -> None:
        with (self.folder / "calls").open("a") as stream:
            stream.write(f"{stage} {context.run}\n")

    def calls(self) -> list[str]:
        """Stages that ran so far, in order."""
        path = self.folder / "calls"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    # ports

    @property
    def platform(self) -> PipelineWorld:
        return self

    @property
    def tracker(self) -> PipelineWorld:
        return self

    def run_targets(self, recipe: Any, folder: Path) -> Sequence[RunTarget]:
        tracker: Any = self
        return (TrackerTarget(tracker, self), *self.targets)

    def prewarm(self, service: Any = None) -> None:
        """Of platform and tracker alike; the section is the platform's."""
        self.note("prewarmed", "service" if service is not None else "bare")

    def status(self) -> Sequence[ServiceStatus]:
        path = self.folder / "service"
        if not path.exists():
            return ()
        variant = Variant("champion", "1", path.read_text(), "")
        return (ServiceStatus("tiny", "http://127.0.0.1:1", 1, True, (variant,), 1),)

    def record(self, run: RunRecord) -> None:
        if self.tracker_fails:
            from mlflowkit.errors import ServiceError

            raise ServiceError("no answer from http://tracker")
        self.note("recorded", run.run)

    def defer(self) -> bool:
        """Whoever runs waits."""
        return False

    def close(self) -> None:
        """Of the tracker."""

    def register(self, name: str, bundle: Path, run: RunRecord, alias: str) -> str:
        self.note("registered", f"{name}@{alias}")
        return "1"

    def unalias(self, name: str, identity: str, alias: str) -> None:
        self.note("unaliased", f"{name}@{alias} {identity}")

    def note(self, kind: str, text: str) -> None:
        with (self.folder / kind).open("a") as stream:
            stream.write(text + "\n")

    def noted(self, kind: str) -> list[str]:
        path = self.folder / kind
        return path.read_text().splitlines() if path.exists() else []

    def run(
        self,
        changes: Mapping[str, Any] | None = None,
        *,
        until: str | None = None,
        force: Sequence[str] = (),
        reporter: Any = None,
        events: list[Event] | None = None,
    ) -> RunRecord:
        """Execute the recipe of this world's folder."""
        seen = [] if events is None else events
        ports: Any = self
        return execute(
            load(self.folder, changes),
            self.folder / ".mlkit",
            ports,
            seen.append,
            until=until,
            force=force,
            stages=self.stages,
            reporter=reporter,
        )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--until")
    parser.add_argument("--hold", action="store_true")
    arguments = parser.parse_args()
    events: list[Event] = []
    try:
        record = PipelineWorld(arguments.folder, hold=arguments.hold).run(until=arguments.until, events=events)
        raise_for(record)
    except MlkitError as error:
        sys.stdout.write(json.dumps({"error": error.to_json()}))
        return error.exit_code
    sys.stdout.write(json.dumps({**asdict(record), "messages": [event.message for event in events]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
