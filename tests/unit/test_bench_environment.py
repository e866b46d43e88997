"""What latency depends on is in every result: cores, governor, clocks, GPUs; what is hidden is None with its reason."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import mlflowkit as mk
from mlflowkit.bench import environment
from mlflowkit.bench.environment import machine_info, pinned_to, read_moment, usable_cores
from mlflowkit.bench.nvml import read_gpus
from mlflowkit.bench.result import BenchSettings
from mlflowkit.errors import UsageError

ON_CORES = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")


# ----------------------------------------------------------------------------------------------------------- affinity


@ON_CORES
def test_a_process_is_kept_on_cores_and_let_go_even_after_an_error() -> None:
    before = usable_cores()
    with pinned_to(before[-1:]) as held:
        assert held == usable_cores() == before[-1:]
    assert usable_cores() == before
    with pytest.raises(ZeroDivisionError), pinned_to(before[:1]):
        raise ZeroDivisionError
    assert usable_cores() == before


@ON_CORES
@pytest.mark.parametrize("wanted", [(), (100_000,)])
def test_cores_that_may_not_be_used_are_refused(wanted: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="cannot be kept on cores") as caught, pinned_to(wanted):
        pass
    assert str(usable_cores()[0]) in caught.value.hint


@ON_CORES
def test_a_description_has_the_cores_that_the_process_is_kept_on() -> None:
    with pinned_to(usable_cores()[:1]):
        assert machine_info().affinity == usable_cores()[:1]
        assert machine_info().cores == 1


# ------------------------------------------------------------------------------------------------ what the system tells


def test_a_description_is_json_and_says_why_something_is_unknown() -> None:
    told = json.loads(json.dumps(machine_info().to_json()))
    assert told["processor"]
    assert told["kernel"]
    assert told["libraries"]["numpy"]
    for name in ("governor", "min_mhz", "max_mhz"):
        assert told[name] is not None or told["unknown"][name], f"{name} is hidden, and nothing says why"
    assert told["gpus"] is not None or told["gpus_reason"]


def clocks(folder: Path, monkeypatch: pytest.MonkeyPatch, governors: list[str]) -> None:
    """A system that tells its clocks, as Linux does on a machine of one's own."""
    for core in usable_cores():
        place = folder / f"cpu{core}"
        place.mkdir()
        written = {
            "scaling_governor": governors[core % len(governors)],
            "cpuinfo_min_freq": "1500000",
            "cpuinfo_max_freq": "3700000",
            "scaling_cur_freq": "3400000",
        }
        for name, text in written.items():
            (place / name).write_text(text + "\n")
    monkeypatch.setattr(environment, "CPUFREQ", str(folder / "cpu{core}"))


def test_governor_and_clocks_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks(tmp_path, monkeypatch, ["powersave"])
    told = machine_info()
    assert (told.governor, told.min_mhz, told.max_mhz) == ("powersave", 1500.0, 3700.0)
    assert told.unknown == {}
    assert read_moment().mhz == 3400.0


@pytest.mark.skipif(len(usable_cores()) < 2, reason="one core has one governor")
def test_cores_of_several_governors_are_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks(tmp_path, monkeypatch, ["performance", "powersave"])
    assert machine_info().governor == "mixed"


def test_two_moments_tell_what_was_done_between_them() -> None:
    before = read_moment()
    while read_moment().busy_ticks == before.busy_ticks and before.busy_ticks is not None:
        sum(range(100_000))
    after = read_moment()
    assert before.busy_ticks is None or (after.busy_ticks or 0) > before.busy_ticks
    json.dumps(after.to_json())


@ON_CORES
def test_a_result_has_the_machine_its_cores_and_a_moment_after_each_start(tmp_path: Path) -> None:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", tensors[:1], tensors[1:])
    model = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    core = usable_cores()[-1]
    found = mk.benchmark(model, model, settings=BenchSettings(samples=150, starts=3, cores=(core,))).to_json()
    assert found["machine"]["processor"] == machine_info().processor
    assert found["settings"]["cores"] == [core]
    assert len(found["moments"]) == 4
    busy = [one["busy_ticks"] for one in found["moments"]]
    assert busy == sorted(busy)
    assert [row["starts"] for row in found["candidates"]] == [3, 3]
    assert found["comparisons"][0]["low"] <= found["comparisons"][0]["ratio"] <= found["comparisons"][0]["high"]


# --------------------------------------------------------------------------------------------------------------- GPUs


class Nvml(ModuleType):
    """NVIDIA's library as a machine with one card answers it."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self, reasons: int = 0, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.reasons, self.driver, self.open = reasons, driver, 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65"

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"NVIDIA H100"

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:
        return self.reasons

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        memory = ModuleType("memory")
        memory.total = 80 << 30  # type: ignore[attr-defined]
        return memory

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        return {self.NVML_CLOCK_SM: 1755, self.NVML_CLOCK_MEM: 2619}[kind]

    def nvmlDeviceGetMaxClockInfo(self, handle: int, kind: int) -> int:
        return 1980

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 61


def test_a_gpus_clocks_temperature_and_what_holds_it_back_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml(reasons=0x04 | 0x40)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    told = read_moment().to_json()["gpus"][0]
    assert (told["name"], told["driver"]) == ("NVIDIA H100", "580.65")
    assert (told["clock_mhz"], told["max_clock_mhz"], told["memory_clock_mhz"]) == (1755, 1980, 2619)
    assert told["temperature_celsius"] == 61
    assert told["held_back"] == ["power cap", "thermal (hardware)"]
    assert told["power_watts"] is None, "what a model does not tell is None"
    assert not told["idle"]
    assert nvml.open == 0, "the library is closed again"
    assert machine_info().to_json()["gpus"][0]["name"] == "NVIDIA H100"


def test_a_gpu_with_nothing_to_do_is_idle_and_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(reasons=0x01))
    found = read_gpus().readings
    assert found is not None
    assert found[0].idle
    assert found[0].held_back == ()


def test_without_a_driver_or_a_library_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(driver=False))
    assert read_gpus().to_json() == {"gpus": None, "gpus_reason": "NVML cannot be read: Driver Not Loaded"}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_gpus().reason == "nvidia-ml-py is not installed"
