"""What a request's time was made of: copies and the run apart, by a device's clock, beside the time from end to end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mlflowkit.adapters.torch_runtime import TorchEngines
from mlflowkit.adapters.trials.child import TrialWorker
from mlflowkit.bench.measure import measure_blocks, requests_over
from mlflowkit.bench.timings import Timings, no_mark, split_timings
from mlflowkit.errors import UsageError
from mlflowkit.graphs.candidates import Candidate, Engine
from mlflowkit.system import arrays
from mlflowkit.wiring import Wiring, device_clock

pytestmark = pytest.mark.heavy

WIDE = 256


class HostClock:
    """Monotonic clock, for synchronous steps on the host."""

    def mark(self) -> int:
        return time.perf_counter_ns()

    def wait(self) -> None:
        return

    def nanoseconds(self, first: int, last: int) -> int:
        return last - first


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    weight = numpy_helper.from_array(np.eye(WIDE, dtype=np.float32), "weight")
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDE])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def session(model: Path) -> Any:
    return TorchEngines().load(model, Engine(runtime="torch"))


ROWS: Mapping[str, np.ndarray] = {"x": np.ones((64, WIDE), dtype=np.float32)}


def test_a_sessions_copies_and_its_run_are_timed_apart(session: Any) -> None:
    request = requests_over(session.run, ROWS, 64)
    samples = measure_blocks({"torch": split_timings(request, session, HostClock())}, 100, warm_up=4)["torch"]
    assert sorted(samples.parts) == ["copy_in", "copy_out", "device"]
    assert {part.shape for part in samples.parts.values()} == {samples.microseconds.shape}
    assert all((part > 0).all() for part in samples.parts.values())
    assert np.median(samples.parts["device"]) < np.median(samples.microseconds) * 1.5
    assert session.mark is no_mark, "nobody is told of the requests that follow"
    assert sorted(samples.to_json()["parts_us"]) == ["copy_in", "copy_out", "device"]


class Copying:
    """A session that sleeps for as long as its copies and its run are to take."""

    on_device = True

    def __init__(self, marks: int = 4) -> None:
        self.mark: Any = no_mark
        self.marks = marks

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for place in range(self.marks):
            self.mark()
            if place < 3:
                time.sleep((0.002, 0.008, 0.004)[place])
        return dict(inputs)


def test_each_part_is_the_time_between_two_marks_and_the_wall_knows_nothing_of_them() -> None:
    session = Copying()
    found = split_timings(lambda index: session.run({}), session, HostClock())(0, 3)
    for name, least in (("copy_in", 2e6), ("device", 8e6), ("copy_out", 4e6)):
        assert all(taken >= least for taken in found.parts[name]), name
    assert all(wall >= 14e6 for wall in found)
    assert session.mark is no_mark


def test_a_session_that_does_not_mark_is_refused_and_let_go() -> None:
    session = Copying(marks=2)
    with pytest.raises(UsageError, match="passed 2 marks"):
        split_timings(lambda index: session.run({}), session, HostClock())(0, 1)
    assert session.mark is no_mark


def test_parts_are_of_all_requests_or_of_none() -> None:
    with pytest.raises(UsageError, match="2 requests have 1 times of their part device"):
        Timings([1, 2], {"device": [1]})
    mixed = iter([Timings([1] * 55, {"device": [1] * 55}), [1] * 55])
    with pytest.raises(UsageError, match="some blocks have the part device and others do not"):
        measure_blocks({"a": lambda start, count: next(mixed)}, 100, warm_up=0)


class OnDevice:
    """Engines whose sessions say that they run on a device."""

    def missing(self, engine: Engine) -> str:
        return ""

    def load(self, model: Path, engine: Engine, *, store: Path | None = None) -> Any:
        found = TorchEngines().load(model, engine)
        found.on_device = True  # type: ignore[attr-defined]
        return found


def told(engines: Any, model: Path, folder: Path) -> dict[str, Any]:
    """What a trial's process answers when it is asked for a block."""
    arrays.write(folder / "rows.npz", {f"inputs/{name}": array for name, array in ROWS.items()})
    plan = {
        "candidate": Candidate(name="torch", engine=Engine(runtime="torch")).model_dump(mode="json"),
        "model": str(model), "rows": str(folder / "rows.npz"), "batch": 1, "requests": 64, "callers": 1,
        "digest": "0", "kept": str(folder), "made": str(folder),
    }  # fmt: skip
    passes = Wiring(folder).passes
    clock = HostClock if isinstance(engines, OnDevice) else device_clock
    child = TrialWorker(plan, lambda: passes, engines, lambda point, name: None, clock)
    child.build()
    child.load()
    found = child.block(0, 10)
    return {"times": list(found), "parts": found.parts if isinstance(found, Timings) else {}}


def test_a_trial_on_a_device_tells_its_parts_and_one_on_the_host_none(model: Path, tmp_path: Path) -> None:
    found = told(OnDevice(), model, tmp_path)
    assert sorted(found["parts"]) == ["copy_in", "copy_out", "device"]
    assert len(found["times"]) == 10
    assert bool(told(TorchEngines(), model, tmp_path)["parts"]) == torch.cuda.is_available()
