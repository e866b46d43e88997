"""A candidate that crashes, hangs or finds the disk full costs only itself, and leaves a script that does it again."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlflowkit.adapters.trials import ProcessTrials
from mlflowkit.errors import TrialError
from mlflowkit.graphs.candidates import Candidate, Engine, Int8Dynamic, WeightOnly
from mlflowkit.ports import Trial, TrialJob
from mlflowkit.system import arrays
from tests.support import trial_processes
from tests.support.waiting import wait_for

FLOAT = Candidate(name="onnx")
DYNAMIC = Candidate(name="onnx-int8-dynamic", passes=[Int8Dynamic()])


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., TrialJob]:
    """A small graph with rows, and a job over them."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"], "network/product")],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [weight],
    )
    (tmp_path / "export").mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "export" / "model.onnx")
    values = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    arrays.write(tmp_path / "rows.npz", {"calibration/x": values, "inputs/x": values})

    def make(candidate: Candidate = FLOAT, seconds: float = 60.0) -> TrialJob:
        return TrialJob(
            candidate=candidate, model=tmp_path / "export" / "model.onnx", rows=tmp_path / "rows.npz", batch=1,
            requests=50, scratch=tmp_path / "scratch", scripts=tmp_path / "out" / "scripts", seconds=seconds,
        )  # fmt: skip

    return make


@pytest.fixture
def trials(tmp_path: Path) -> ProcessTrials:
    return ProcessTrials(tmp_path / "state")


@contextmanager
def failing(at: str) -> Iterator[None]:
    os.environ["MLKIT_FAILPOINT"] = at
    try:
        yield
    finally:
        del os.environ["MLKIT_FAILPOINT"]


def check_whole(trial: Trial) -> None:
    trial.build()
    trial.load()
    trial.answers()
    trial.block(0, 10)


def go(trials: ProcessTrials, job: TrialJob) -> TrialError:
    """Take a candidate all the way; it must fail. Nothing of it may be left running."""
    trial = trials.start(job)
    try:
        with pytest.raises(TrialError) as caught:
            check_whole(trial)
        with pytest.raises(TrialError):
            trial.block(0, 1)
    finally:
        trial.close()
        trial.close()
    assert not trial_processes.running()
    return caught.value


def test_a_candidate_is_built_asked_and_timed_in_a_process_of_its_own(
    trials: ProcessTrials, job: Callable[..., TrialJob]
) -> None:
    trial = trials.start(job(DYNAMIC))
    built, loaded = trial.build(), trial.load()
    assert (built.reason, built.cached) == ("", False)
    assert built.size_bytes == built.files[0].stat().st_size
    assert loaded.memory_bytes is not None
    assert 0 < loaded.memory_bytes < 200e6
    expected = arrays.read(job().rows, "inputs/")["x"]
    np.testing.assert_allclose(trial.answers()["y"], expected, atol=0.05)
    times = trial.block(3, 40)
    assert len(times) == 40
    assert all(isinstance(nanoseconds, int) and nanoseconds > 0 for nanoseconds in times)
    trial.close()
    assert not trial_processes.running()
    again = trials.start(job(DYNAMIC))
    assert again.build().cached
    again.close()


@pytest.mark.parametrize(
    ("at", "candidate", "message"),
    [
        ("segv:trial.passing", DYNAMIC, "ended by SIGSEGV while building"),
        ("segv:trial.loading", FLOAT, "ended by SIGSEGV while loading"),
        ("trial.answering", FLOAT, "ended by SIGKILL while answering, as when memory runs out"),
        ("segv:trial.measuring", FLOAT, "ended by SIGSEGV while being measured"),
        ("raise:trial.building", FLOAT, "RuntimeError: failpoint raise:trial.building"),
        ("enospc:trial.answering", FLOAT, "No space left on device"),
    ],
)
def test_a_crash_costs_the_candidate_and_leaves_a_script_that_does_it_again(
    at: str, candidate: Candidate, message: str, trials: ProcessTrials, job: Callable[..., TrialJob]
) -> None:
    with failing(at):
        error = go(trials, job(candidate))
        assert message in error.message
        assert not list(trials.state.rglob("work-*"))
        assert error.script is not None
        again = subprocess.run([sys.executable, error.script], capture_output=True, text=True, timeout=60, check=False)
    if at.startswith("segv"):
        assert again.returncode == -signal.SIGSEGV
    elif at.startswith("trial"):
        assert again.returncode == -signal.SIGKILL
    else:
        assert message.removeprefix("RuntimeError: ") in again.stderr
    mended = subprocess.run([sys.executable, error.script], capture_output=True, text=True, timeout=60, check=False)
    assert "answers; the median request takes" in mended.stdout, mended.stderr


def test_scripts_of_graphs_of_one_file_name_have_each_its_own(
    trials: ProcessTrials, job: Callable[..., TrialJob], tmp_path: Path
) -> None:
    other = tmp_path / "other" / "model.onnx"
    other.parent.mkdir()
    graph = onnx.load(job().model)
    onnx.save(graph, other, save_as_external_data=True, location="weight.bin", size_threshold=0)
    (other.parent / "below").mkdir()
    (other.parent / "weight.bin").rename(other.parent / "below" / "weight.bin")
    graph = onnx.load(other, load_external_data=False)
    next(
        entry for entry in graph.graph.initializer[0].external_data if entry.key == "location"
    ).value = "below/weight.bin"
    graph.graph.node[0].op_type = "NoSuchOperator"
    other.write_bytes(graph.SerializeToString())
    with failing("raise:trial.loading"):
        first = go(trials, job())
    second = go(trials, replace(job(), model=other))
    for error, output in ((first, "answers; the median request takes"), (second, "NoSuchOperator")):
        assert error.script is not None
        done = subprocess.run([sys.executable, error.script], capture_output=True, text=True, timeout=60, check=False)
        assert output in done.stdout + done.stderr
    assert second.script is not None
    assert list(Path(second.script).parent.glob("graph-*/below/weight.bin"))


def test_one_that_hangs_is_ended_at_its_deadline(trials: ProcessTrials, job: Callable[..., TrialJob]) -> None:
    with failing("hang:trial.loading"):
        assert go(trials, job(seconds=3.0)).message == "gave no answer within 3 s while loading"


def test_a_crash_of_one_candidate_is_not_that_of_another(trials: ProcessTrials, job: Callable[..., TrialJob]) -> None:
    with failing("segv:trial.passing@onnx-int8-dynamic"):
        go(trials, job(DYNAMIC))
        trial = trials.start(job(FLOAT))
        assert trial.build().reason == ""
        trial.close()


LIMITED = """
import resource, sys
from pathlib import Path
from mlflowkit.adapters.trials import ProcessTrials
from mlflowkit.graphs.candidates import Candidate, Int8Dynamic
from mlflowkit.errors import TrialError
from mlflowkit.ports import TrialJob
base = Path({base!r})
job = TrialJob(candidate=Candidate(name="onnx-int8-dynamic", passes=[Int8Dynamic()]), model=base / "export/model.onnx",
               rows=base / "rows.npz", batch=1, requests=50, scratch=base / "scratch", scripts=base / "out/scripts")
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
trial = ProcessTrials(base / "state").start(job)
resource.prlimit(trial._process.pid, resource.RLIMIT_FSIZE, (64, 64))
try:
    trial.build()
except TrialError as error:
    print("failed:", error.message)
trial.close()
"""


def test_a_disk_that_takes_no_more_costs_the_candidate(tmp_path: Path, job: Callable[..., TrialJob]) -> None:
    job()
    script = LIMITED.format(base=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "failed:" in done.stdout, done.stderr
    assert "File too large" in done.stdout
    assert not list((tmp_path / "state").rglob("work-*")), "what was half made takes no room"


@pytest.mark.parametrize("how", ["cut off", "changed", "away"])
def test_a_graph_that_was_damaged_where_it_is_kept_is_made_anew(
    how: str, trials: ProcessTrials, job: Callable[..., TrialJob]
) -> None:
    trial = trials.start(job(DYNAMIC))
    model = trial.build().files[0]
    trial.close()
    content = model.read_bytes()
    model.write_bytes({"cut off": content[: len(content) // 2], "changed": bytes(len(content)), "away": b""}[how])
    if how == "away":
        model.unlink()
    again = trials.start(job(DYNAMIC))
    try:
        assert not again.build().cached
        again.load()
    finally:
        again.close()
    assert model.read_bytes() == content


def test_the_peak_of_memory_is_the_graph_s_whatever_was_made_before_it(
    trials: ProcessTrials, job: Callable[..., TrialJob]
) -> None:
    """The one that makes the graph and the one that finds it made would differ by half, were what is freed kept."""
    large_job = job(Candidate(name="weights", passes=[WeightOnly(bits=8)], engine=Engine(graph_level="off")))
    weight = np.random.default_rng(0).normal(size=(1500, 1500)).astype(np.float32)
    proto = onnx.load(large_job.model)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "wide"], ["h"], "a"), helper.make_node("MatMul", ["h", "weight"], ["g"], "b"),
         helper.make_node("MatMul", ["g", "narrow"], ["y"], "c")],
        "larger", list(proto.graph.input), list(proto.graph.output),
        [numpy_helper.from_array(part, name) for name, part in
         (("wide", weight[:4]), ("weight", weight), ("narrow", weight[:, :4].copy()))],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), large_job.model)
    peaks = []
    for _ in range(2):
        trial = trials.start(large_job)
        trial.build()
        peaks.append(trial.load().memory_bytes or 0)
        trial.close()
    assert max(peaks) < 1.1 * min(peaks)


def test_engines_share_the_graph_that_passes_made(trials: ProcessTrials, job: Callable[..., TrialJob]) -> None:
    both = [trials.start(job(DYNAMIC.model_copy(update={"name": name, "engine": Engine(graph_level=level)})))
            for name, level in (("plain", "off"), ("basic", "basic"))]  # fmt: skip
    built = [trial.build() for trial in both]
    assert built[0].files == built[1].files
    assert sorted(graph.cached for graph in built) == [False, True], "they were begun at once, and graph waited"
    assert built[0].digest != built[1].digest
    for trial in both:
        trial.close()


def test_memory_that_runs_out_costs_the_candidate(trials: ProcessTrials, job: Callable[..., TrialJob]) -> None:
    """The graph wants 400 MB at once; its process may have 200 more than it has."""
    large_job = job(FLOAT)
    nodes = [
        helper.make_node("ConstantOfShape", ["many"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("Add", ["x", "zero"], ["y"]),
    ]
    graph = onnx.load(large_job.model).graph
    inputs, outputs = list(graph.input), list(graph.output)
    many = numpy_helper.from_array(np.array([100_000_000]), "many")
    large = helper.make_graph(nodes, "large", inputs, outputs, [many])
    onnx.save(helper.make_model(large, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), large_job.model)
    trial = trials.start(large_job)
    trial.build()
    most = psutil.Process(trial._process.pid).memory_info().vms + 200_000_000
    resource.prlimit(trial._process.pid, resource.RLIMIT_AS, (most, most))
    try:
        with pytest.raises(TrialError, match=r"[Mm]emory|alloc") as caught:
            trial.load()
    finally:
        trial.close()
    assert caught.value.script is not None
    mended = subprocess.run(
        [sys.executable, caught.value.script], capture_output=True, text=True, timeout=60, check=False
    )
    assert "answers; the median request takes" in mended.stdout, mended.stderr


PARENT = """
import sys, time
from pathlib import Path
from mlflowkit.adapters.trials import ProcessTrials
from mlflowkit.graphs.candidates import Candidate
from mlflowkit.ports import TrialJob
base = Path({base!r})
job = TrialJob(candidate=Candidate(name="onnx"), model=base / "export/model.onnx", rows=base / "rows.npz", batch=1,
               requests=50, scratch=base / "scratch", scripts=base / "out/scripts")
trial = ProcessTrials(base / "state").start(job)
trial.build()
print(trial._process.pid, flush=True)
time.sleep(60)
"""


def test_a_trial_ends_with_its_parent_however_that_ends(tmp_path: Path, job: Callable[..., TrialJob]) -> None:
    job()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(base=str(tmp_path))], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    wait_for(
        lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE, 10, "its end"
    )


def test_threads_of_a_candidate_are_those_of_its_engine(trials: ProcessTrials, job: Callable[..., TrialJob]) -> None:
    trial = trials.start(job(Candidate(name="two", engine=Engine(threads=2))))
    trial.build()
    environment = psutil.Process(trial._process.pid).environ()
    assert (environment["OMP_NUM_THREADS"], environment["MKL_NUM_THREADS"]) == ("2", "2")
    assert os.getpgid(trial._process.pid) != os.getpgid(0), "Ctrl-C at the keyboard does not reach it first"
    trial.close()
