"""What the benchmarks of a running service share: two bundles, a service on its own Ray, a steady client beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflowkit as mk
from benchmarks.infer import PATH, RECIPE, ROOT, await_answer, body_of
from mlflowkit.bundle import Bundle, open_bundle
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.stages.deploy import ServeSection
from mlflowkit.values import Affinity, RoutingTable, Variant
from mlflowkit.wiring import Wiring


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a steady client: when it was due (seconds since the epoch), how long it took, what came back."""

    due: float
    seconds: float
    status: int
    variant: str


class Service:
    """A service called lending, with a champion and a table that the benchmark changes."""

    def __init__(self, folder: Path, champion: Bundle, other: Bundle, **serve: Any) -> None:
        self.folder = folder
        self.champion, self.other = champion, other
        self.platform = Wiring(folder / "state").platform
        self.files = ServiceFiles(folder / "state" / "services" / "lending")
        section = {"service": "lending", "port": 0, "routing": {"affinity": "header", "name": "x-user"}, **serve}
        self.endpoint = self.platform.ensure(ServeSection.model_validate(section))
        self.url = f"{self.endpoint}{PATH}"
        self.body = folder / "body.json"
        self.body.write_bytes(body_of(champion))
        self.publish((self.variant(champion, "champion"),))
        await_answer(self.url, self.body.read_bytes())

    @property
    def epoch(self) -> int:
        """Of the table that is answered by; 0 before the first."""
        table = self.files.table()
        return 0 if table is None else table.epoch

    @staticmethod
    def variant(bundle: Bundle, name: str, **more: Any) -> Variant:
        return Variant(name, bundle.manifest.version, bundle.manifest.identity, str(bundle.path), **more)

    def publish(self, variants: Sequence[Variant]) -> float:
        """Put variants behind the service; the seconds until every replica answered by them."""
        present = self.files.table()
        table = RoutingTable(
            "lending", self.epoch + 1, tuple(variants), experiment="bench", salt="bench",
            affinity=Affinity("header", "x-user"), fence=0 if present is None else present.fence,
        )  # fmt: skip
        begin = time.perf_counter()
        self.platform.publish(table)
        return time.perf_counter() - begin

    def split(self, weight: float, **more: Any) -> float:
        """Give the other bundle a share of the traffic; 0 takes it all away but keeps the variant."""
        champion = self.variant(self.champion, "champion", weight=1.0 - weight)
        return self.publish(
            (champion, self.variant(self.other, "challenger", role="challenger", weight=weight, **more))
        )

    @contextmanager
    def steady(self, rate: float, seconds: float, *options: str) -> Iterator[Callable[[], list[Line]]]:
        """A steady client beside what the block does; the function waits for its end and gives its lines."""
        with tempfile.NamedTemporaryFile(suffix=".json") as out:
            command = [sys.executable, "-m", "benchmarks.steady", self.url, str(self.body), str(rate), str(seconds)]
            process = subprocess.Popen([*command, out.name, *options], cwd=ROOT)

            def lines() -> list[Line]:
                if process.wait():
                    raise RuntimeError("the steady client failed")
                found = json.loads(Path(out.name).read_bytes())
                return [Line(found["start"] + line[0], *line[1:]) for line in found["lines"]]

            try:
                yield lines
            finally:
                process.terminate()
                process.wait()


@contextmanager
def service(**serve: Any) -> Iterator[Service]:
    """A service with two real bundles of recipes/lending.yaml: its own, and one of another seed."""
    with tempfile.TemporaryDirectory(prefix="mlkit-bench-") as place:
        folder = Path(place)
        champion, other = (bundle(folder / "state", seed) for seed in (7, 8))
        made = None
        try:
            made = Service(folder, champion, other, **serve)
            yield made
        finally:
            (made.platform if made else Wiring(folder / "state").platform).down()


def bundle(state: Path, seed: int) -> Bundle:
    """The blessed bundle of recipes/lending.yaml with a seed of its own."""
    overrides = [f"seed={seed}", "train.epochs=3", "gates=[]"]
    answer = mk.run(mk.load(RECIPE, overrides=overrides), until="package", state=state).answer
    digest = next(step["digest"] for step in answer["steps"] if step["stage"] == "package")
    return open_bundle(state / "objects" / digest / "bundle", blessed=True)


def failed(lines: Sequence[Line]) -> list[Line]:
    """The requests that did not get an answer."""
    return [line for line in lines if line.status != 200]


def quantile(lines: Sequence[Line], share: float) -> float:
    """A quantile of the latencies, in milliseconds."""
    found = sorted(line.seconds for line in lines)
    return 1e3 * found[min(int(len(found) * share), len(found) - 1)] if found else float("nan")


def between(lines: Sequence[Line], begin: float, end: float) -> list[Line]:
    """The lines that were due in [begin, end), in seconds since the epoch."""
    return [line for line in lines if begin <= line.due < end]
