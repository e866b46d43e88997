"""Static INT8 against float on a CPU: a transformer over sentences, our pass beside ONNX Runtime's own tool.

The graph is that of recipes/sentences.yaml (MiniLM-L6, head trained by the recipe), at 32 and at 128 tokens. Peers, in
the same run, on the same calibration rows: ``onnxruntime.quantization.quantize_static`` as it comes, and in both of its
formats with the types that its documentation gives for x86 (U8 activations, S8 weights), per channel or not, over the
graph as exported and after ``onnxruntime.transformers.optimizer``; and the settings of Optimum's
``AutoQuantizationConfig.avx512_vnni(is_static=True)``: Q/DQ, U8S8, weights per channel, MatMul and Add, MinMax.

What each loses is the ROC AUC against the float graph on the recipe's validation rows (DeLong, paired); within the
margin is what surely loses no more than ``--margin``. Everything is measured in turns, on one thread. At the
first of the lengths all are timed, at the others float and, of ours and of the peers, the fastest and the fastest
within the margin.

    python -m benchmarks.int8 --lengths 32,128 --batches 1,8
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import mlflowkit as mk
from benchmarks.process import arguments, report
from mlflowkit import usercode
from mlflowkit.adapters.onnx_exporter import graph_parts as graph
from mlflowkit.adapters.onnx_exporter import read_trained, signature_of
from mlflowkit.adapters.onnx_exporter.preprocessing_graph import preprocessing
from mlflowkit.adapters.onnx_passes import OnnxPasses
from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.bench import analysis
from mlflowkit.bench.measure import Samples, measure_blocks, requests_over, timed_source
from mlflowkit.features.preprocess import FittedPreprocessing
from mlflowkit.graphs.candidates import Int8
from mlflowkit.judging import metrics, paired_metrics
from mlflowkit.models import load_trained
from mlflowkit.values import Measurement

RECIPE = Path(__file__).parent.parent / "recipes" / "sentences.yaml"
CALIBRATION = 128
"""Training rows that fix the ranges, for us and for the peers."""
CHUNK = 61
"""Rows asked at a time when the metric is taken."""
SIZE = 5
"""Requests of one candidate before the next has its turn: they take milliseconds each."""
OBJECTIVE = "latency_p50"
OURS = "ours"
FUSED = ("ORT: Q/DQ U8S8 per channel", "Optimum's avx512_vnni")
"""Peers that are tried over the fused graph, too: all take half as long again there, and QOperator cannot be made."""


@dataclass(frozen=True)
class Task:
    """The float graph at one length, and rows: numeric float32 [n, tokens], outcome int64 [n]."""

    tokens: int
    graph: Path
    calibration: np.ndarray
    validation: np.ndarray
    actual: np.ndarray


@dataclass(frozen=True)
class Candidate:
    """A quantised graph (or the float one), what it loses and whether that is surely within the margin."""

    name: str
    path: Path
    auc: float = 0.0
    drop: Measurement | None = None
    within: bool = True

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)


def task_of(tokens: int, work: Path) -> Task:
    """Train the recipe's head once and write the graph for ``tokens`` tokens."""
    answer = mk.run(RECIPE, until="export", state=work / "state").answer
    folders = {step["stage"]: work / "state" / "objects" / step["digest"] for step in answer["steps"]}
    strikes: pd.DataFrame = usercode.load("sentences:strikes", RECIPE.parent)()
    tokenise = usercode.load("minilm:tokenise", RECIPE.parent)
    found = tokenise(strikes["remark"].tolist(), length=tokens)
    rows = (found["input_ids"] * found["attention_mask"]).astype(np.float32)
    part = np.load(folders["data"] / "split.npy")
    path = work / f"float-{tokens}.onnx"
    path.write_bytes(graph_of(folders["train"], tokens))
    actual = (strikes["affected"] == "yes").to_numpy(np.int64)[part == 1]
    return Task(tokens, path, rows[part == 0][:CALIBRATION], rows[part == 1], actual)


def graph_of(trained: Path, tokens: int) -> bytes:
    """The recipe's graph as it would be with another number of tokens: its weights do not depend on it."""
    from onnx import TensorProto, helper

    piece = graph.network(load_trained(trained, RECIPE.parent), tokens)
    model = read_trained(trained)
    graph.add_class_outputs(piece, model.classes, scores="network/scores")
    zeros, ones = np.zeros(tokens, np.float32), np.ones(tokens, np.float32)
    before = preprocessing(FittedPreprocessing(zeros, zeros, ones, ()))
    kinds = {"FP32": TensorProto.FLOAT, "BYTES": TensorProto.STRING}
    outputs = [
        helper.make_tensor_value_info(one.name, kinds[one.datatype], ["rows", *one.shape[1:]])
        for one in signature_of(model).outputs
    ]
    numeric = helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["rows", tokens])
    return graph.assemble("sentences", [before, piece], [numeric], outputs, width=tokens)


# --------------------------------------------------------------------------------------------------------- candidates


def ours(task: Task, settings: Int8, out: Path) -> None:
    reason = OnnxPasses().apply([settings], task.graph, out, {"numeric": task.calibration})
    if reason:
        raise RuntimeError(reason)


class Reader:
    """Calibration rows as the peer reads them."""

    def __init__(self, rows: np.ndarray) -> None:
        self.batches = iter([{"numeric": rows[start : start + 32]} for start in range(0, len(rows), 32)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def theirs(task: Task, settings: Mapping[str, Any], fused: bool, out: Path) -> None:
    """``quantize_static`` after its own preparation, over the graph as exported or fused beforehand."""
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, prepared = task.graph, out.with_suffix(".prepared")
    if fused:
        from onnxruntime.transformers.optimizer import optimize_model

        source = out.with_suffix(".fused")
        model = optimize_model(str(task.graph), "bert", num_heads=12, hidden_size=384, opt_level=0)
        model.save_model_to_file(str(source))
    quant_pre_process(str(source), str(prepared), skip_optimization=True, skip_symbolic_shape=True)
    quantize_static(str(prepared), str(out), Reader(task.calibration), **settings)


def makers() -> Iterator[tuple[str, Callable[[Task, Path], None]]]:
    """Every candidate but float, with how it is made."""
    from onnxruntime.quantization import QuantFormat, QuantType

    for channel in (False, True):
        words = "per channel" if channel else "per tensor"
        yield f"{OURS}: int8 cpu, {words}", partial(_ours, Int8(form="cpu", per_channel=channel, rows=CALIBRATION))
    yield f"{OURS}: int8 tensorrt form", partial(_ours, Int8(rows=CALIBRATION))
    u8s8 = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    channels = {**u8s8, "per_channel": True}
    variants: dict[str, dict[str, Any]] = {
        "ORT: Q/DQ as it comes": {},
        "ORT: Q/DQ U8S8": u8s8,
        "ORT: Q/DQ U8S8 per channel": channels,
        "ORT: QOperator U8S8 per channel": {**channels, "quant_format": QuantFormat.QOperator},
        "ORT: Q/DQ U8S8 per channel, MatMul": {**channels, "op_types_to_quantize": ["MatMul"]},
        "ORT: Q/DQ U8S8 per channel, MatMul by constants": {
            **channels,
            "op_types_to_quantize": ["MatMul"],
            "extra_options": {"MatMulConstBOnly": True},
        },
        "Optimum's avx512_vnni": {**channels, "op_types_to_quantize": ["MatMul", "Add"]},
    }
    for name, settings in variants.items():
        yield name, partial(_theirs, settings, False)
        if name in FUSED:
            yield f"{name}, fused", partial(_theirs, settings, True)


def _ours(settings: Int8, task: Task, out: Path) -> None:
    ours(task, settings, out)


def _theirs(settings: Mapping[str, Any], fused: bool, task: Task, out: Path) -> None:
    theirs(task, settings, fused, out)


def made(task: Task, work: Path, wanted: Callable[[str], bool]) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates that can be made, float first, and why the others cannot."""
    found, failed = [Candidate("float", task.graph)], {}
    for index, (name, make) in enumerate(makers()):
        if not wanted(name):
            continue
        path = work / f"{task.tokens}-{index}.onnx"
        try:
            make(task, path)
            OnnxRuntime().load(path)
        except Exception as error:  # noqa: BLE001  # a peer's tool may fail in any way; the table says how
            failed[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
            continue
        found.append(Candidate(name, path))
    return found, failed


# ----------------------------------------------------------------------------------------------------------- measuring


def answers_of(task: Task, path: Path) -> metrics.LabelledPredictions:
    session = OnnxRuntime().load(path)
    parts = [
        np.asarray(session.run({"numeric": task.validation[start : start + CHUNK]})["probabilities"])
        for start in range(0, len(task.validation), CHUNK)
    ]
    scores = np.concatenate(parts).astype(np.float64)
    return metrics.LabelledPredictions("classification", task.actual, scores.argmax(axis=1), scores)


def judged(task: Task, candidates: list[Candidate], margin: float) -> list[Candidate]:
    """Each candidate with its ROC AUC and what it loses of the float graph's."""
    reference = answers_of(task, candidates[0].path)
    found = [Candidate("float", task.graph, metrics.estimate("roc_auc", reference).value)]
    for one in candidates[1:]:
        answers = answers_of(task, one.path)
        change = paired_metrics.difference("roc_auc", answers, reference).at(analysis.CONFIDENCE)
        drop = Measurement("roc_auc", -change.value, -change.high, -change.low, samples=change.samples)
        auc = metrics.estimate("roc_auc", answers).value
        found.append(Candidate(one.name, one.path, auc, drop, analysis.accepts(drop, margin)[0]))
    return found


def timings(task: Task, candidates: list[Candidate], batch: int, rounds: int) -> dict[str, Samples]:
    rows = {"numeric": task.validation[:64]}
    runtime = OnnxRuntime()
    sources = {one.name: timed_source(requests_over(runtime.load(one.path).run, rows, batch)) for one in candidates}
    return measure_blocks(sources, rounds * SIZE, size=SIZE, lead_in=1, warm_up=6)


def rows_of(task: Task, candidates: list[Candidate], batch: int, taken: Mapping[str, Samples]) -> list[dict[str, Any]]:
    best = fastest([one for one in candidates if one.is_ours and one.within] or candidates[:1], taken)
    rows = []
    for one in candidates:
        found = analysis.summarise(taken[one.name].microseconds, batch, OBJECTIVE)
        rows.append(
            {
                "tokens": task.tokens,
                "batch": batch,
                "candidate": one.name,
                "p50 ms": round(found.p50_us / 1000, 2),
                "p95 ms": round(found.p95_us / 1000, 2),
                "x float": _ratio(taken["float"], taken[one.name]),
                "time of our best / its": _ratio(taken[best.name], taken[one.name]),
                "roc_auc": round(one.auc, 4),
                "drop": "" if one.drop is None else f"{one.drop.value:.4f} ({one.drop.low:.4f} to {one.drop.high:.4f})",
                "within": one.within,
                "MB": round(one.path.stat().st_size / 1e6, 1),
                "samples": found.samples,
            }
        )
    return rows


def _ratio(later: Samples, earlier: Samples) -> str:
    """Interval of the ratio of medians, later / earlier."""
    low, high = analysis.ratio_interval(later.microseconds, earlier.microseconds, 0.5)
    return f"{low:.2f} to {high:.2f}"


def fastest(candidates: list[Candidate], taken: Mapping[str, Samples]) -> Candidate:
    return min(candidates, key=lambda one: float(np.median(taken[one.name].microseconds)))


def shortlist(candidates: list[Candidate], taken: Mapping[str, Samples]) -> set[str]:
    """Of ours and of the peers each the fastest and the fastest within the margin."""
    sides = [[one for one in candidates[1:] if one.is_ours == mine] for mine in (True, False)]
    groups = [*sides, *([one for one in side if one.within] for side in sides)]
    return {fastest(group, taken).name for group in groups if group}


def main() -> None:
    parser = arguments(__doc__ or "", rounds=32)
    parser.add_argument("--lengths", default="32,128", help="tokens of a sentence, comma-separated")
    parser.add_argument("--batches", default="1,8", help="rows a request, comma-separated")
    parser.add_argument("--margin", type=float, default=0.01, help="ROC AUC that may be lost")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # the peers' tools comment on every node
    rows: list[dict[str, Any]] = []
    chosen: set[str] | None = None
    with tempfile.TemporaryDirectory(prefix="mlkit-int8-") as folder:
        for tokens in map(int, options.lengths.split(",")):
            task = task_of(tokens, Path(folder))
            wanted = chosen
            found, failed = made(task, Path(folder), lambda name, wanted=wanted: wanted is None or name in wanted)
            candidates = judged(task, found, options.margin)
            for batch in map(int, options.batches.split(",")):
                taken = timings(task, candidates, batch, max(4, options.rounds // batch))
                rows += rows_of(task, candidates, batch, taken)
                chosen = chosen or shortlist(candidates, taken)
            for name, reason in failed.items():
                print(f"{tokens} tokens: {name} failed: {reason}")
            report("INT8 on a CPU: MiniLM over sentences", rows, options.out)  # so far: a run that is cut keeps it


if __name__ == "__main__":
    main()
