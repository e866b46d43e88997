"""The latency suite: its networks are what they are called, its graphs answer as they do, and its rows say what ran."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu_latency import __main__ as command
from benchmarks.gpu_latency import ahead, exports, measure, networks, page, results, summary, tables
from benchmarks.gpu_latency.children import Child, ChildError, Served
from benchmarks.gpu_latency.models import MODELS
from benchmarks.gpu_latency.plan import PRECISIONS, RUNTIMES, Effort, cells, sampling
from mlflowkit.adapters.onnxruntime import OnnxRuntime
from mlflowkit.bench.environment import machine_info
from mlflowkit.errors import DataError
from mlflowkit.system.machine import cores
from recipes import minilm

POOLERS = {"minilm": 384 * 384 + 384, "bert-base": 768 * 768 + 768}


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet18", 11.69), ("resnet50", 25.56), ("minilm", 22.7), ("bert-base", 109.5)]
)
def test_a_network_has_as_many_parameters_as_was_published(name: str, millions: float) -> None:
    found = networks.parameters(name)
    assert found == MODELS[name].parameters
    assert (found + POOLERS.get(name, 0)) / 1e6 == pytest.approx(millions, rel=1e-3)  # with the pooler, as published


@pytest.mark.parametrize(("name", "width"), [("mlp", 2), ("resnet18", 1000), ("resnet50", 1000), ("bert-base", 768)])
def test_a_network_answers_a_row_a_row(name: str, width: int) -> None:
    rows = [torch.from_numpy(cells).to("meta") for cells in MODELS[name].rows(3).values()]
    assert networks.shape(name)(*rows).shape == (3, width)


def test_operations_are_those_of_the_published_networks() -> None:
    images = MODELS["resnet50"].rows(1)
    assert networks.operations("resnet50", images) / 2 == pytest.approx(4.09e9, rel=0.01)  # multiply-adds, torchvision
    assert networks.operations("mlp", MODELS["mlp"].rows(1)) == 2 * (30 * 256 + 256 * 256 + 256 * 2)


@pytest.fixture(scope="module")
def encoder() -> minilm.Encoder:
    return minilm.load()


def embed(encoder: minilm.Encoder, sentences: list[str], length: int = 32) -> np.ndarray:
    inputs = minilm.tokenise(sentences, length)
    with torch.inference_mode():
        found: np.ndarray = encoder(**{name: torch.from_numpy(cells) for name, cells in inputs.items()}).numpy()
    return found


def test_a_paraphrase_is_nearer_than_another_subject(encoder: minilm.Encoder) -> None:
    found = embed(
        encoder,
        ["How do I reset my password?", "I forgot my password, what should I do?",
         "The stock market fell sharply today.", "Shares dropped steeply on Wall Street."],
    )  # fmt: skip
    nearness = found @ found.T
    assert np.allclose(np.diag(nearness), 1.0, atol=1e-5)
    assert min(nearness[0, 1], nearness[2, 3]) > nearness[:2, 2:].max() + 0.3


def test_padding_and_neighbours_do_not_change_an_embedding(encoder: minilm.Encoder) -> None:
    sentence = "A goose was hit during the approach."
    alone, longer = embed(encoder, [sentence]), embed(encoder, ["x", sentence], length=128)
    assert np.allclose(alone[0], longer[1], atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "resnet18", "minilm"])
def test_a_graph_answers_as_its_network_for_any_number_of_rows(name: str) -> None:
    model, session = MODELS[name], OnnxRuntime().load(exports.exported(MODELS[name]).path)
    network = networks.make(name)
    for count in (1, 3):
        rows = model.rows(count)
        with torch.inference_mode():
            expected = network(*(torch.from_numpy(cells) for cells in rows.values())).numpy()
        found = session.run(rows)[model.output]
        assert np.abs(found - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def test_a_graph_is_made_once_and_a_reason_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "KEPT", tmp_path)

    class Port:
        calls = 0

        def apply(self, passes: Any, model: Path, out: Path, calibration: Any) -> str:
            Port.calls += 1
            if Port.calls == 1:
                return "not today"
            out.write_bytes(model.read_bytes())
            return ""

    passes = PRECISIONS["fp16"]
    first, *later = (exports.rewritten(MODELS["mlp"], passes, Port()) for _ in range(3))
    assert (first.reason, first.path.exists(), Port.calls) == ("not today", True, 2)
    assert {(one.reason, one.path) for one in later} == {("", first.path)}
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {"mlp"}  # nothing half-made is left


def test_every_runtime_and_precision_has_a_candidate_of_its_own() -> None:
    listed = cells(12, RUNTIMES, list(PRECISIONS), 2)
    names = [cell.candidate.name for cell in listed]
    assert len(names) == len(set(names))
    static = {(cell.runtime, cell.precision) for cell in listed}
    torch_int8 = {("torch", "int8"), ("torch-compile", "int8")}
    assert static == {(runtime, precision) for runtime in RUNTIMES for precision in PRECISIONS} - torch_int8
    assert [cell.candidate.engine.threads for cell in listed] == [2] * len(listed)
    assert not any("fused" in cell.candidate.name for cell in cells(0, RUNTIMES, list(PRECISIONS), 2))


@given(st.lists(st.floats(1e-6, 2.5), min_size=1, max_size=8), st.floats(0.5, 30))
def test_sampling_keeps_to_its_time_where_requests_let_it(requests: list[float], seconds: float) -> None:
    effort = Effort(seconds=seconds)
    found = sampling(requests, effort)
    assert effort.fewest <= found.samples <= effort.most
    assert -(-found.samples // found.size) >= 8  # blocks to draw for an interval
    rounds = -(-found.samples // found.size)
    measured = sum(requests) * rounds * (found.size + found.lead_in)
    warming = sum(requests) * found.warm_up * (found.size + found.lead_in)
    fewest = sum(requests) * (effort.fewest + 2 + 2)
    assert measured + warming <= max(3 * seconds, 2 * fewest)


def settings(effort: Effort) -> dict[str, Any]:
    return {"machine": machine_info().to_json(), "threads": cores(), "effort": asdict(effort)}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("quick")
    arguments = "--quick --models mlp --batches 1 --runtimes ort-cpu,ort-cuda,torch-compile --precisions fp32,int8"
    out, drawn = folder / "o.json", folder / "p.html"
    before = settings(command.QUICK) | {"engines": list(ahead.rows(MODELS["mlp"], ["fp32"], (), "none", 1))}
    out.write_text(json.dumps(before))
    said = [*arguments.split(), "--parts", "latency", "--json", "--out", str(out), "--page", str(drawn)]
    assert command.main(said) == 0
    return {"document": json.loads(out.read_bytes()), "page": drawn.read_text()}


def rows_of(quick: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in quick["document"]["rows"]}


def test_a_quick_run_gives_figures_with_intervals(quick: dict[str, Any]) -> None:
    for name in ("ort-cpu fp32", "ort-cpu int8"):
        row = rows_of(quick)[name]
        assert (row["status"], row["reason"], row["batch"]) == ("ok", "", 1)
        assert 0 < row["p50_us"] <= row["p95_us"] <= row["p99_us"]
        low, high = row["intervals"]["p50_us"]
        assert low <= row["p50_us"] <= high
        assert row["interval"] == row["intervals"]["p50_us"]
        assert row["samples"] >= Effort().fewest
        assert 0 < row["cold_start_ms"] < row["start_ms"]
        assert row["memory_bytes"] > 0
        assert row["size_bytes"] > 0
    assert rows_of(quick)["ort-cpu fp32"]["difference"] == 0
    assert 0 < rows_of(quick)["ort-cpu int8"]["difference"] < 0.2


def test_what_does_not_run_says_why_and_has_no_figures(quick: dict[str, Any]) -> None:
    found = rows_of(quick)
    assert set(found) == {
        "ort-cpu fp32", "ort-cpu int8", "ort-cuda fp32", "ort-cuda int8", "torch-compile fp32"
    }  # fmt: skip
    if not measure.cuda_device.missing():
        pytest.skip("there is a GPU: its rows have figures")
    for name in ("ort-cuda fp32", "ort-cuda int8"):
        assert found[name]["status"] == "unavailable"
        assert "CUDAExecutionProvider" in found[name]["reason"]
        assert found[name]["p50_us"] is None
    assert (found["torch-compile fp32"]["status"], found["torch-compile fp32"]["p50_us"]) == ("skipped", None)
    assert "--quick" in found["torch-compile fp32"]["reason"]


def test_the_document_keeps_other_parts_and_says_what_the_best_is(quick: dict[str, Any]) -> None:
    document = quick["document"]
    assert [row["reason"] for row in document["engines"]] == ["none"]
    assert document["machine"]["cores"] >= 1
    assert document["peaks"]["fp32"]["operations_per_second"] > 1e9
    best = document["best"][0]
    figures = {row["name"]: row["p50_us"] for row in document["rows"] if row["status"] == "ok"}
    assert best["p50_us"] == min(figures.values())
    assert 0 < best["peak_share"] < 1.5
    assert best["ratios"]["torch-compile"]["shown"] == "not run"
    assert "--quick" in best["ratios"]["torch-compile"]["reason"]


def test_tables_and_page_show_every_candidate(quick: dict[str, Any]) -> None:
    document = {**quick["document"], "engines": [], "serving": []}
    text = tables.text(document)
    for row in document["rows"]:
        assert row["name"] in text
        assert row["name"] in quick["page"]
    assert json.loads(tables.lines(document)) == document
    assert tables.readme(document).splitlines()[2].startswith("| MLP 30-256-256-2 | ort-cpu ")
    assert "<script" not in page.html({**document, "gpu": "<script>"})


def test_a_graph_that_does_not_load_costs_its_own_row_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prepared = MODELS["mlp"], measure._prepared
    torn = tmp_path / "torn.onnx"
    torn.write_bytes(exports.exported(model).path.read_bytes()[:999])

    def tear(model: Any, cell: Any, suite: Any) -> dict[str, Any]:
        found = prepared(model, cell, suite)
        return found | {"path": str(torn)} if cell.precision == "int8" else found

    monkeypatch.setattr(measure, "_prepared", tear)
    suite = measure.Suite([2], ["ort-cpu"], ["fp32", "int8"], 1, command.QUICK)
    (group,) = measure.measured(model, suite)
    good, bad = group.rows
    assert (good["status"], bad["status"]) == ("ok", "failed")
    assert "torn.onnx" in bad["reason"]
    assert set(group.samples) == {"ort-cpu fp32"}


def test_a_killed_child_is_a_reason(tmp_path: Path) -> None:
    job = {
        "do": "serve", "model": "mlp", "candidate": cells(0, ["ort-cpu"], ["fp32"], 1)[0].candidate.model_dump(),
        "precision": "fp32", "batch": 1, "path": str(exports.exported(MODELS["mlp"]).path), "store": str(tmp_path),
        "answers": str(tmp_path / "a.npz"), "gpu": False,
    }  # fmt: skip
    with Child(job, {}) as child:
        served = Served(child, 60)
        assert len(served.block(-3, 10)) == 10
        os.kill(child._process.pid, signal.SIGKILL)
        with pytest.raises(ChildError, match="SIGKILL"):
            served.block(0, 1)


def test_a_candidate_lost_between_rounds_leaves_the_others_measured() -> None:
    class Steady:
        def block(self, start: int, count: int) -> list[int]:
            return [1000] * count

    class Failing(Steady):
        def block(self, start: int, count: int) -> list[int]:
            if start > 100:
                raise ChildError("ended by SIGSEGV")
            return [1000] * count

    standing = [
        measure.Standing(cell, measure.blank(MODELS["mlp"], cell, 1), served, request=1e-3)  # type: ignore[arg-type]
        for cell, served in zip(cells(0, ["ort-cpu"], ["fp32", "int8"], 1), (Steady(), Failing()), strict=True)
    ]
    taken = measure._in_turns(standing, Effort())
    assert set(taken) == {"ort-cpu fp32"}
    assert (standing[1].row["status"], standing[1].row["reason"]) == ("failed", "ended by SIGSEGV")


def test_a_candidate_too_slow_for_larger_batches_is_not_started() -> None:
    cell = cells(0, ["ort-cpu"], ["fp32"], 1)[0]
    one = measure.Standing(cell, measure.blank(MODELS["resnet50"], cell, 128))
    name = cell.candidate.name
    graphs = {name: {"reason": "", "size": 1, "seconds": 1.0, "failed": False}}
    measure._before(one, {name: ""}, graphs, {name: 0.1}, 128, Effort(longest=2.5))
    assert one.row["status"] == "skipped"
    assert "12.8 s" in one.row["reason"]


def planted(
    name: str, p50: float, passes: Sequence[Any] = (), device: str = "cuda", status: str = "ok"
) -> dict[str, Any]:
    runtime, precision = name.split(" ")
    return {
        "model": "mlp", "batch": 128, "name": name, "runtime": runtime, "precision": precision, "device": device,
        **dict.fromkeys(("p50_us", "p95_us", "p99_us"), p50), "interval": None,
        "intervals": dict.fromkeys(("p50_us", "p95_us", "p99_us")), "notes": [],
        "throughput": 128e6 / p50, "status": status, "reason": "" if status == "ok" else "there is no such library",
        "passes": list(passes), "engine": {"cuda_graph": False},
        **dict.fromkeys(("cold_start_ms", "build_seconds", "memory_bytes", "difference")),
    }  # fmt: skip


PEAKS = {
    precision: {"device": "cuda", "operations_per_second": rate, "reason": "" if rate else "no kernel"}
    for precision, rate in {"fp16": 2.56e15, "fp32": 5e14, "int8": None}.items()
}


def best_of(rows: Sequence[dict[str, Any]], operations: int | None = 10**9) -> dict[str, Any]:
    samples = {one["name"]: np.full((20, 10), one["p50_us"]) for one in rows if one["status"] == "ok"}
    found = summary.best(rows, samples, operations)
    assert found is not None
    return summary.shared(found, PEAKS)


COMPILED, PLAIN = planted("torch-compile fp16", 200.0), planted("ort-cuda fp32", 400.0)


def test_the_best_is_held_against_compiled_torch_and_the_plain_graph() -> None:
    quicker = planted("ort-cuda fp16", 300.0, [{}])
    found = best_of([PLAIN, quicker, planted("tensorrt fp16", 100.0, [{}]), COMPILED])
    assert found["name"] == "tensorrt fp16"
    against = {
        rival: (one["name"], one["ratio"], one["interval"], one["shown"]) for rival, one in found["ratios"].items()
    }
    assert against == {
        "torch-compile": ("torch-compile fp16", 0.5, [0.5, 0.5], "faster"),
        "ort-cuda": ("ort-cuda fp32", 0.25, [0.25, 0.25], "faster"),
        "ort-cpu": (None, None, None, "not run"),
        "torch": (None, None, None, "not run"),
    }
    assert found["peak_share"] == 0.5  # 1e9 operations a row, 1.28e6 rows a second, of 2.56e15


def test_the_best_is_one_that_can_be_served_and_may_be_slower_than_compiled_torch() -> None:
    found = best_of([PLAIN, planted("tensorrt fp16", 250.0, [{}]), COMPILED])
    assert (found["name"], found["ratios"]["torch-compile"]["shown"]) == ("tensorrt fp16", "slower")
    plain = best_of([PLAIN, planted("tensorrt fp16", 900.0, [{}]), COMPILED])
    assert (plain["name"], plain["ratios"]["ort-cuda"]["shown"]) == ("ort-cuda fp32", "itself")
    assert summary.best([COMPILED], {}, None) is None
    wrong = planted("tensorrt int8", 1.0, [{}]) | {"difference": 0.26}
    assert best_of([PLAIN, wrong, COMPILED])["name"] == "ort-cuda fp32"  # quick, and not the same model any more


@pytest.mark.parametrize(
    ("row", "operations", "said"),
    [
        (planted("ort-cuda int8", 9.0), 10**9, "no peak of int8 products: no kernel"),
        (planted("ort-cpu fp32", 9.0, device="cpu"), 10**9, "it ran on cpu, and the peak is of cuda"),
        (planted("ort-cuda fp32", 9.0), None, "not counted"),
    ],
)
def test_a_share_without_a_peak_of_its_own_is_none_with_the_reason(
    row: dict[str, Any], operations: int | None, said: str
) -> None:
    found = best_of([row], operations)
    assert (found["peak_share"], found["peak_reason"]) == (None, said)


def test_what_is_claimed_of_a_gpu_is_told_at_batch_128() -> None:
    lacking = planted("torch-compile fp16", 1.0, status="unavailable")
    rows = [PLAIN, planted("tensorrt fp16", 100.0, [{}]), lacking]
    document = {"rows": rows, "best": [best_of(rows)], "gpu": "present"}
    (claim,) = summary.on_gpu(document)
    assert (claim["best"], claim["peak_share"], claim["reason"]) == ("tensorrt fp16", 0.5, "")
    assert claim["against"]["ort-cuda"]["ratio"] == 0.25
    assert claim["against"]["torch-compile"]["reason"] == "unavailable: there is no such library"
    for shown in (tables.text(document), tables.readme(document)):
        assert "50%" in shown
        assert "0.25x [0.25, 0.25] ort-cuda fp32: faster" in shown
        assert "not run: unavailable: there is no such library" in shown


def test_without_a_gpu_nothing_is_claimed_of_one() -> None:
    rows = [planted("ort-cpu fp32", 100.0, device="cpu"), planted("ort-cuda fp32", 1.0, status="unavailable")]
    document = {"rows": rows, "best": [best_of(rows)], "gpu": "there is no GPU driver"}
    (claim,) = summary.on_gpu(document)
    assert (claim["best"], claim["peak_share"], claim["against"]) == (None, None, {})
    assert "not run, there is no GPU driver" in tables.readme(document)
    beaten = best_of([planted("ort-cpu fp32", 1.0, device="cpu"), PLAIN])
    (claim,) = summary.on_gpu({"rows": rows, "best": [beaten], "gpu": "present"})
    assert (claim["best"], claim["reason"]) == (None, "the best is ort-cpu fp32")


def test_the_readme_lists_each_reason_once_with_whom_it_stopped() -> None:
    def stopped(model: str, name: str, batch: int, status: str, reason: str) -> dict[str, Any]:
        return planted(name, 1.0, status=status) | {"model": model, "batch": batch, "reason": reason}

    rows = [
        planted("ort-cpu fp32", 9.0, device="cpu"),
        stopped("mlp", "ort-cuda fp32", 1, "unavailable", "no CUDA"),
        stopped("minilm", "ort-cuda fp16", 8, "unavailable", "no CUDA"),
        stopped("mlp", "torch fp16", 8, "skipped", "a processor computes FP16 through FP32"),
        stopped("minilm", "torch fp16", 8, "skipped", "a processor computes FP16 through FP32"),
        stopped("minilm", "ort-cpu fp32", 128, "skipped", "a request takes 2.6 s; at most 2 s are measured here"),
        stopped("bert-base", "ort-cpu fp32", 8, "skipped",
                "a request would take about 7.1 s by its smaller batches; at most 2 s are measured here"),
        stopped("mlp", "ort-cpu int8", 128, "failed", "ended by SIGKILL: out of memory?"),
    ]  # fmt: skip
    document = {"rows": rows, "best": [], "gpu": "there is no GPU driver"}
    said = tables.readme(document).partition("Not run on this machine:")[2].split()
    assert " ".join(said) == (
        "- ort-cuda: no CUDA "
        "- torch fp16: a processor computes FP16 through FP32 "
        "- minilm x128, bert-base x8: a request takes too long; at most 2 s are measured here "
        "- ort-cpu int8 of mlp x128: ended by SIGKILL: out of memory?"
    )


def test_a_run_adds_to_an_earlier_one_group_by_group(tmp_path: Path) -> None:
    path, here = tmp_path / "o.json", settings(Effort())
    document = results.opened(path, here, ())
    for model, batch in (("resnet18", 1), ("mlp", 8), ("mlp", 1)):
        results.put(document, "rows", [{"model": model, "batch": batch, "name": name} for name in ("a", "b")])
    results.kept(path, document)
    again = results.opened(path, here, {("rows", "mlp", 1)})
    results.put(again, "rows", [{"model": "mlp", "batch": 1, "name": "c"}])
    assert [(row["model"], row["batch"], row["name"]) for row in again["rows"]] == [
        ("mlp", 1, "c"), ("mlp", 8, "a"), ("mlp", 8, "b"), ("resnet18", 1, "a"), ("resnet18", 1, "b")
    ]  # fmt: skip


def test_results_of_two_machines_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, here = tmp_path / "o.json", settings(command.QUICK)
    there = {**here, "machine": here["machine"] | {"processor": "another"}}
    path.write_text(json.dumps({**there, "rows": [{"model": "mlp", "batch": 1}, {"model": "lending", "batch": 1}]}))
    before = path.read_bytes()
    assert command.main(f"--quick --models mlp --parts latency --out {path}".split()) == 2
    assert "another processor, of what is not measured now: lending (rows)" in capsys.readouterr().err
    assert path.read_bytes() == before
    everything = {("rows", "mlp", 1), ("rows", "lending", 1)}
    assert "rows" not in results.opened(path, here, everything)
    path.write_text("[]")
    with pytest.raises(DataError, match="no results of this suite"):
        results.opened(path, here, everything)


def test_a_larger_peak_moves_all_shares() -> None:
    document: dict[str, Any] = {"best": [best_of([PLAIN])]}
    results.put_peaks(document, PEAKS)
    before = document["best"][0]["peak_share"]
    results.put_peaks(document, {"fp32": PEAKS["fp32"] | {"operations_per_second": 1e15}})
    assert document["best"][0]["peak_share"] == before / 2
    results.put_peaks(document, PEAKS)  # a smaller one, of a machine that was busy
    assert document["best"][0]["peak_share"] == before / 2


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(model: Any, suite: Any) -> Iterator[measure.Measured]:
        yield measure.Measured([planted("ort-cpu fp32", 10.0, device="cpu")], {"ort-cpu fp32": np.ones((9, 9))}, [])
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measured", interrupted)
    monkeypatch.setattr(command, "_facts", lambda options: {"peaks": PEAKS, "operations": {}})
    out = tmp_path / "o.json"
    said = f"--models mlp,resnet18 --batches 128 --precisions fp32 --out {out} --page {tmp_path / 'p.html'}"
    assert command.main(said.split()) == 130
    kept = json.loads(out.read_bytes())
    assert [row["name"] for row in kept["rows"]] == ["ort-cpu fp32"]
    assert "engines" not in kept  # nor was another part begun
    assert "ort-cpu fp32" in (tmp_path / "p.html").read_text()


def test_engines_that_cannot_be_built_are_rows_with_the_reason() -> None:
    (row,) = ahead.rows(MODELS["mlp"], ["fp32"], (), "TensorRT for RTX is not installed", 10)
    assert (row["status"], row["reason"]) == ("unavailable", "TensorRT for RTX is not installed")


def test_an_engine_is_built_for_a_gpu_that_is_not_here() -> None:
    pytest.importorskip("tensorrt_rtx")
    old, new = ahead.rows(MODELS["mlp"], ["fp32"], ("75", "89"), "", 120)
    assert (old["status"], "SM75" in old["reason"]) == ("failed", True)  # it has no FP32 products for Turing
    assert (new["status"], new["target"]) == ("built", "89")
    assert new["size_bytes"] > 4 * MODELS["mlp"].parameters
    assert new["reason"].startswith("not run: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [("--models resnet", "resnet is not one of mlp"), ("--batches 0", "at least one row"), ("--parts ,", "nothing")],
)
def test_an_unknown_choice_is_refused_with_what_there_is(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.options_of(arguments.split(" "))
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
