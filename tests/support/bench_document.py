"""Results of `mlkit bench` as a document: what a page is drawn from, made of drawn samples, without measuring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlflowkit.bench import result_file
from mlflowkit.bench.environment import MachineInfo
from mlflowkit.bench.inputs import GraphInput, make_requests
from mlflowkit.bench.load.open_loop import open_load
from mlflowkit.bench.load.pattern import LoadPattern, LoadSamples
from mlflowkit.bench.measure import Samples
from mlflowkit.bench.nvml import GpuReadings
from mlflowkit.bench.pairwise import compare_all
from mlflowkit.bench.regression import compare
from mlflowkit.bench.result import BenchResult, BenchRow, BenchSettings
from mlflowkit.bench.target import BenchEntry, BenchTarget
from mlflowkit.graphs.candidates import Candidate, Engine
from mlflowkit.ports import BuiltGraph, LoadedGraph

MACHINE = MachineInfo(
    processor="AMD EPYC", architecture="x86_64", cores=2, affinity=(0, 1), governor=None, min_mhz=None, max_mhz=None,
    boost=None, smt=False, memory_bytes=25 * 2**30, memory_limit_bytes=None, cpu_limit=None, virtual=True,
    system="Linux", kernel="6.18", python="3.11.7", libraries={"onnxruntime": "1.32.0"},
    gpus=GpuReadings(None, "nvidia-ml-py is not installed"),
    unknown={"governor": "cpufreq is not there: the system hides it"},
)  # fmt: skip
MADE = "2026-11-20T12:00:00+00:00"


def result(
    names: Sequence[str] = ("lending", "lending onnx-int8"), settings: BenchSettings | None = None
) -> BenchResult:
    """Each name faster than the one before; one more lacks its runtime and one crashed."""
    settings = settings or BenchSettings(batches=(1, 8))
    subject = BenchTarget(
        "lending", "bundle", Path("bundles/lending"), Path("model.onnx"), Path("model.onnx"),
        make_requests([GraphInput("x", "float32", ("rows", 4))], 8), dict,
        notes=("not blessed: its gates did not pass",),
    )  # fmt: skip
    rows, comparisons = [], []
    for batch in settings.batches:
        measured = [_row(BenchEntry(name, subject, _candidate(name)), batch, place, settings) for place, name in
                    enumerate(names)]  # fmt: skip
        blocks = {row.entry.name: row.blocks for row in measured}
        comparisons += compare_all(blocks, settings.quantile, batch=batch, label=settings.label)
        rows += measured
    gpu = BenchEntry("lending on a GPU", subject, _candidate("lending on a GPU", "ort-cuda"))
    rows.append(
        BenchRow(gpu, 1, "unavailable", "onnxruntime has no CUDAExecutionProvider: it has CPUExecutionProvider")
    )
    crashed = BenchEntry("lending crashed", subject, _candidate("lending crashed"))
    rows.append(BenchRow(crashed, 1, "failed", "ended by SIGSEGV while loading", script="/tmp/reproduce-lending.py"))
    return BenchResult(
        settings, MACHINE, (1,), (subject,), tuple(rows), tuple(comparisons), ("busy: 3.0 processes ran",)
    )


def document(*, baseline: float | None = None, **arguments: Any) -> dict[str, Any]:
    """The results file; with ``baseline`` held against one whose samples took so many times as long."""
    value = result(**arguments)
    whole = result_file.document(value.to_json(), value.measured, MADE)
    if baseline is None:
        return whole
    before = {
        key: tuple(Samples(one.microseconds * baseline, one.warm_up, one.settled) for one in each)
        for key, each in value.measured.items()
    }
    earlier = result_file.parse(result_file.document(value.to_json(), before, MADE))
    return whole | {"baseline": compare(earlier, result_file.parse(whole), 0.05).to_json()}


def _candidate(name: str, runtime: Any = "ort-cpu") -> Candidate:
    return Candidate(name=name[:120], engine=Engine(runtime=runtime))


def _row(entry: BenchEntry, batch: int, place: int, settings: BenchSettings) -> BenchRow:
    built = BuiltGraph("d" * 64, files=(), size_bytes=40_000 // (place + 1), build_seconds=0.5)
    loaded = tuple(LoadedGraph(12_000_000, 9.0 + start) for start in range(settings.starts))
    taken = tuple(_taken(start, batch, place, settings) for start in range(settings.starts))
    return BenchRow(entry, batch, "ok", built=built, graph="e" * 64, loaded=loaded, measured=taken)


def _taken(start: int, batch: int, place: int, settings: BenchSettings) -> LoadSamples:
    draw = np.random.default_rng([start, batch, place])
    scale = (20 + 3 * batch) / (place + 1) * draw.normal(1, 0.01)
    us = scale * draw.gamma(400, 1 / 400, size=(8, 50)) + (draw.random((8, 50)) > 0.98) * scale * 2
    if settings.load.rate is None:
        parts = {"copy_in": us * 0.1, "device": us * 0.7, "copy_out": us * 0.1} if place else {}
        return LoadSamples(Samples(us, 5, True, parts))
    due = np.arange(400) * 1e9 / settings.load.rate
    done, free = np.zeros(400), np.zeros(400)
    for index, took in enumerate(us.ravel() * 1000):
        free[index] = done[index - 1] if index else 0.0
        done[index] = max(due[index], free[index]) + took
    marks = np.array([due, free, np.maximum(due, free), done]).astype(np.int64)
    stretch = open_load(marks, settings.load.callers)
    return LoadSamples(Samples(stretch.latency_us.reshape(8, 50), 5, True), (stretch,))


def open_settings() -> BenchSettings:
    """Of arrivals that are too many."""
    return BenchSettings(starts=3, load=LoadPattern(2, 60_000.0))
