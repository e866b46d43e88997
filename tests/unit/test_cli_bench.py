"""`mlkit bench` through its real processes, on small graphs: what it measures, keeps, judges, refuses and leaves."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mlflowkit.cli.app import main
from mlflowkit.graphs import cuda_device
from tests.support import onnx_graphs

pytestmark = pytest.mark.heavy

SHORT = ("--starts", "1", "--samples", "100")
NO_GPU = pytest.mark.skipif(not cuda_device.missing(), reason="this machine has what the test wants to be absent")
MLKIT = (sys.executable, "-c", "from mlflowkit.cli import main; main()")


class Told:
    """What a command answered."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        return f"{self.json['error']['message']} | {self.json['error']['hint']}"


@pytest.fixture
def bench(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def command(*arguments: object) -> Told:
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            main(["bench", *map(str, arguments)])
        said = capfd.readouterr()
        return Told(int(done.value.code or 0), said.out, said.err)

    return command


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    onnx_graphs.mlp(folder / "small.onnx")
    onnx_graphs.mlp(folder / "large.onnx", width=1024)
    return folder


@pytest.fixture(scope="module")
def kept(graphs: Path) -> Path:
    """A results file of two starts' worth of samples of the small graph."""
    out = graphs / "kept.json"
    with pytest.raises(SystemExit) as done:
        main(["bench", str(graphs / "small.onnx"), *SHORT, "--out", str(out), "--json"])
    assert not done.value.code
    return out


def altered(kept: Path, path: Path, **changes: Any) -> Path:
    """A copy of a results file whose machine, first row or samples differ: ``times`` multiplies the samples."""
    value = json.loads(kept.read_bytes())
    value["machine"].update(changes.get("machine", {}))
    value["candidates"][0].update(changes.get("row", {}))
    for start in value["measured"][0]["starts"]:
        start["samples_us"] = [us * changes.get("times", 1) for us in start["samples_us"]]
    path.write_text(json.dumps(value))
    return path


# ------------------------------------------------------------------------------------------------------ measuring


@NO_GPU
def test_two_graphs_and_a_runtime_that_is_not_there(bench: Any, graphs: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    told = bench(
        graphs / "small.onnx", "--compare", graphs / "large.onnx", "--runtime", "ort-cpu", "--runtime", "ort-cuda",
        "--batch", "1,4", *SHORT, "--page", page, "--json",
    )  # fmt: skip
    value = told.json
    assert told.code == 0
    assert value["machine"]["cores"] >= 1
    rows = {(row["name"], row["batch"]): row for row in value["candidates"]}
    assert len(rows) == 8
    small = rows["small ort-cpu", 4]
    assert (small["status"], small["samples"], small["starts"]) == ("ok", 100, 1)
    assert small["interval"][0] <= small["quantile_us"] <= small["interval"][1]
    assert small["p50_us"] <= small["p95_us"] <= small["p99_us"]
    assert small["load"] == {"kind": "closed", "callers": 1, "rate": None}
    absent = rows["large ort-cuda", 1]
    assert (absent["status"], absent["p50_us"], absent["samples"]) == ("unavailable", None, 0)
    assert "CUDAExecutionProvider" in absent["reason"]
    assert [(one["name"], one["batch"]) for one in value["comparisons"]] == [("large ort-cpu", 1), ("large ort-cpu", 4)]
    assert all(one["confidence"] == 0.975 for one in value["comparisons"]), "the intervals of both hold together"
    text = page.read_text(encoding="utf-8")
    assert all(
        word in text for word in ("small ort-cpu", "Not run", "CUDAExecutionProvider", value["machine"]["python"])
    )


@NO_GPU
def test_nothing_that_can_be_measured_is_no_success(bench: Any, graphs: Path) -> None:
    told = bench(graphs / "small.onnx", "--runtime", "ort-cuda", *SHORT)
    assert told.code == 3
    assert "not run: small on ort-cuda, batch 1: unavailable" in told.out
    assert "nothing was measured" in told.err


def test_callers_and_arrivals_are_in_the_rows(bench: Any, graphs: Path) -> None:
    calling = bench(graphs / "small.onnx", *SHORT, "--concurrency", 3, "--json").json["candidates"][0]
    assert calling["load"] == {"kind": "closed", "callers": 3, "rate": None}
    assert calling["open"] is None
    assert calling["throughput"] > 0
    arriving = bench(graphs / "small.onnx", *SHORT, "--rate", 500, "--json").json["candidates"][0]
    assert arriving["load"] == {"kind": "open", "callers": 1, "rate": 500}
    assert arriving["open"]["stretches"] >= 2
    assert arriving["open"]["offered"] == pytest.approx(500, rel=0.6)
    assert arriving["throughput"] == pytest.approx(arriving["open"]["achieved"])


def test_a_load_that_is_too_much_is_said(bench: Any, graphs: Path) -> None:
    told = bench(graphs / "small.onnx", *SHORT, "--samples", 400, "--rate", 1_000_000)
    assert told.code == 0
    assert "load: 1e+06 a second on one caller; latency counts from the intended arrival" in told.out
    assert "saturated" in told.out
    assert "could not keep up with" in told.out


def test_dry_run_measures_nothing_and_writes_nothing(bench: Any, graphs: Path, tmp_path: Path) -> None:
    told = bench(graphs / "small.onnx", "--dry-run", "--out", tmp_path / "a.json", "--rate", 10, "--json")
    assert told.code == 0
    assert told.json["candidates"][0]["seconds"] >= 200, "2,000 requests that arrive 10 a second"
    assert list(tmp_path.glob("**/*.*")) == []


# -------------------------------------------------------------------------------------------------------- the gate


@pytest.mark.parametrize(
    ("changes", "share", "code", "verdict", "words"),
    [
        ({"times": 0.01}, "5%", 1, "FAILED", "more than the limit 1.05"),
        ({"times": 100}, "5%", 0, "PASSED", "within the limit 1.05"),
        ({"machine": {"processor": "Abacus"}}, "0.05", 4, "INCONCLUSIVE", "the processor was Abacus and is"),
        (
            {"row": {"load": {"kind": "open", "callers": 2, "rate": 9.0}}}, "5%", 4, "INCONCLUSIVE",
            "the load was 9 a second on 2 callers and is one caller",
        ),
    ],
)  # fmt: skip
def test_a_baseline_is_judged_by_its_interval(
    bench: Any, graphs: Path, kept: Path, tmp_path: Path, changes: dict[str, Any], share: str, code: int, verdict: str,
    words: str,
) -> None:  # fmt: skip
    baseline = altered(kept, tmp_path / "baseline.json", **changes)
    told = bench(graphs / "small.onnx", *SHORT, "--baseline", baseline, "--fail-above", share)
    assert told.code == code
    assert f"{verdict} against the baseline" in told.out
    assert words in told.out


def test_what_else_changed_is_said_beside_the_verdict(bench: Any, graphs: Path, kept: Path, tmp_path: Path) -> None:
    row = {"graph": "0" * 64, "requests": "1" * 64, "engine": {"threads": 7}}
    baseline = altered(kept, tmp_path / "baseline.json", row=row, machine={"libraries": {"onnxruntime": "0.1"}})
    out = tmp_path / "now.json"
    told = bench(graphs / "small.onnx", *SHORT, "--baseline", baseline, "--out", out, "--json")
    notes = told.json["baseline"]["notes"]
    assert "small: another graph than the baseline's" in notes
    assert "small: other input rows than the baseline's" in notes
    assert "small: threads of its engine was 7 and is 1" in notes
    assert any(note.startswith("onnxruntime was 0.1 and is") for note in notes)
    assert json.loads(out.read_bytes())["baseline"]["changes"] == told.json["baseline"]["changes"]


def test_a_candidate_of_the_baseline_that_is_gone_or_new(bench: Any, graphs: Path, kept: Path) -> None:
    told = bench(graphs / "large.onnx", *SHORT, "--baseline", kept, "--json")
    assert told.code == 4
    assert told.json["baseline"]["new"] == ["large"]
    assert told.json["baseline"]["changes"][0]["words"].startswith("small: not measured now")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"[]", "is not a results file of mlkit bench"),
        (b'{"candidates": []}', "is not a results file of mlkit bench"),
        (None, "is not JSON"),
    ],
)
def test_a_baseline_that_is_none_is_refused_before_anything_is_measured(
    bench: Any, graphs: Path, kept: Path, tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "baseline.json"
    path.write_bytes(kept.read_bytes()[:-500] if content is None else content)
    told = bench(graphs / "small.onnx", "--samples", 10_000_000, "--baseline", path, "--json")
    assert told.code == 2
    assert words in told.error
    assert "--out" in told.error


# ----------------------------------------------------------------------------------------------------- wrong asking


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.onnx",), "there is no nowhere.onnx"),
        (("SMALL", "--candidate", "onnx-int9"), "did you mean --candidate onnx-int8?"),
        (("SMALL", "--runtime", "ort-gpu"), "did you mean --runtime ort-cpu?"),
        (("SMALL", "--candidate", "all"), "only a recipe lists candidates"),
        (("SMALL", "--fail-above", "5%"), "needs a --baseline"),
        (("SMALL", "--baseline", "KEPT", "--fail-above", "much"), "is no share"),
        (("SMALL", "--rate", "0"), "must be positive"),
        (("SMALL", "--out", "SMALL/out.json"), "cannot be written"),
        (("SMALL", "--pin", "4096"), "cannot be kept on cores 4096"),
    ],
)
def test_a_wrong_command_line_is_told_with_what_to_type(
    bench: Any, graphs: Path, kept: Path, arguments: tuple[str, ...], words: str
) -> None:
    places = {"SMALL": str(graphs / "small.onnx"), "KEPT": str(kept)}
    told = bench(
        *(one.replace("SMALL", places["SMALL"]).replace("KEPT", places["KEPT"]) for one in arguments), "--json"
    )
    assert told.code == 2
    assert words in told.error


def test_nothing_that_is_measured_or_kept_is_written_over(bench: Any, graphs: Path, tmp_path: Path) -> None:
    model, link = graphs / "small.onnx", tmp_path / "link.json"
    link.symlink_to(model)
    before = model.read_bytes()
    for options, said in (
        (("--out", model), "would replace"),
        (("--compare", graphs / "large.onnx", "--page", graphs / "large.onnx"), "would replace"),
        (("--out", link), "would replace"),
        (("--out", tmp_path / "a", "--page", tmp_path / "a"), "would replace the output of --out"),
    ):
        told = bench(model, *options, *SHORT, "--json")
        assert told.code == 2
        assert said in told.error
    assert model.read_bytes() == before


def test_a_name_that_is_too_long_is_a_wrong_command(bench: Any) -> None:
    told = bench(f"{'m' * 300}.onnx", "--json")
    assert told.code == 2
    assert "File name too long" in told.error


def test_a_pipe_is_not_waited_for(bench: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    told = bench(tmp_path / "model.onnx", "--json")
    assert told.code == 2
    assert "is neither the folder of a bundle nor an ONNX file" in told.error


def test_a_recipe_before_its_first_run(bench: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["init", str(tmp_path)])
    told = bench(tmp_path / "recipe.yaml", "--json")
    assert told.code == 2
    assert "has built a graph yet" in told.error
    assert "mlkit run" in told.error
    assert not (tmp_path / ".mlkit").exists()


def test_an_axis_that_is_left_open_has_to_be_told(bench: Any, tmp_path: Path) -> None:
    model = tmp_path / "open.onnx"
    node = onnx_graphs.helper.make_node("Relu", ["x"], ["y"])
    onnx_graphs.save(model, [node], {"x": (onnx_graphs.FLOAT, ["rows", "length"])}, {"y": onnx_graphs.FLOAT})
    told = bench(model, "--json")
    assert told.code == 2
    assert "--size length=128" in told.error
    assert bench(model, "--size", "length=16", *SHORT, "--json").code == 0


def test_the_length_of_an_axis_that_no_graph_has_is_a_slip(bench: Any, graphs: Path, tmp_path: Path) -> None:
    model = tmp_path / "open.onnx"
    node = onnx_graphs.helper.make_node("Relu", ["x"], ["y"])
    onnx_graphs.save(model, [node], {"x": (onnx_graphs.FLOAT, ["rows", "a = b"])}, {"y": onnx_graphs.FLOAT})
    assert "--size 'a = b=128'" in bench(model, "--json").error
    both = (model, "--compare", graphs / "small.onnx", *SHORT, "--json", "--size", "a = b=16")
    assert bench(*both).code == 0
    for slip, said in (("a = c=4", "did you mean --size a = b?"), ("rows=4", "--batch")):
        told = bench(*both, "--size", slip)
        assert told.code == 2
        assert said in told.error


def test_results_that_the_disk_refuses_are_still_shown(bench: Any, graphs: Path, tmp_path: Path) -> None:
    too_long_for_a_temporary = tmp_path / f"{'r' * 245}.json"
    told = bench(graphs / "small.onnx", *SHORT, "--out", too_long_for_a_temporary)
    assert told.code == 3
    assert "p50 interval" in told.out
    assert "cannot be written" in told.err


@pytest.mark.parametrize("closed", ["<&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_is_as_good_as_none(closed: str, graphs: Path) -> None:
    command = shlex.join([*MLKIT, "bench", str(graphs / "small.onnx"), *SHORT])
    done = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("p50 interval" in done.stdout) == (closed != ">&- 2>&-")


def test_a_full_disk_behind_stdout_is_no_bug(graphs: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*MLKIT, "bench", str(graphs / "small.onnx"), *SHORT], stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    assert done.returncode == 3
    assert "the disk is full while writing under stdout" in done.stderr
    assert "Traceback" not in done.stderr


def test_rows_of_ones_own(bench: Any, graphs: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.npz"
    np.savez(rows, x=np.full((16, 8), np.nan, np.float32))
    told = bench(graphs / "small.onnx", "--inputs", rows, *SHORT, "--json")
    assert told.code == 0, "a missing value is NaN, and takes its time like any other"
    assert told.json["subjects"][0]["notes"] == []
    for array, words in (
        (np.zeros((16, 9), np.float32), "has 9 along axis 1; the graph wants 8"),
        (np.zeros((16, 8)), "is float64; the graph wants float32"),
        (np.zeros((0, 8), np.float32), "0"),
    ):
        np.savez(rows, x=array)
        refused = bench(graphs / "small.onnx", "--inputs", rows, "--json")
        assert refused.code == 3
        assert words in refused.error


def test_weights_outside_the_folder_are_not_read(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(32))
    (tmp_path / "inside").mkdir()
    model = onnx_graphs.outside(tmp_path / "inside" / "model.onnx", "../secret.bin")
    told = bench(model, *SHORT, "--json")
    assert told.code != 0
    assert "secret.bin" in told.out


# ------------------------------------------------------------------------------------------------- crashes and cuts


def test_a_process_that_is_killed_is_one_failed_row_with_its_script(
    bench: Any, graphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLKIT_FAILPOINT", "trial.measuring@large:2")
    told = bench(graphs / "small.onnx", "--compare", graphs / "large.onnx", *SHORT, "--json")
    small, large = told.json["candidates"]
    assert told.code == 0
    assert (small["status"], small["samples"]) == ("ok", 100)
    assert (large["status"], large["samples"]) == ("failed", 0)
    assert "SIGKILL" in large["reason"]
    assert Path(large["script"]).is_file()
    assert told.json["comparisons"] == []


def test_without_the_first_nothing_is_compared(bench: Any, graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLKIT_FAILPOINT", "trial.loading@small")
    told = bench(graphs / "small.onnx", "--compare", graphs / "large.onnx", *SHORT, "--json")
    assert [row["status"] for row in told.json["candidates"]] == ["failed", "ok"]
    assert told.json["comparisons"] == []
    assert any("small, the baseline of the comparisons, was not measured" in note for note in told.json["notes"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(graphs: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [*MLKIT, "bench", str(graphs / "small.onnx"), "--samples", "10000000", "--starts", "1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    children: list[psutil.Process] = []
    until = time.monotonic() + 60
    while not children and process.poll() is None and time.monotonic() < until:
        children = [
            one for one in psutil.Process(process.pid).children() if "mlflowkit.processes.trial_main" in one.cmdline()
        ]
        time.sleep(0.02)
    assert children
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert list(tmp_path.glob("mlkit*")) == []
