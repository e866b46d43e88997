"""Torch models, trained in this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mlflowkit.errors import DataError, EngineError, StoreError, UsageError, UserCodeError
from mlflowkit.graphs import rehearsal
from mlflowkit.models import load_trained
from mlflowkit.values import Event
from tests.support import ROOT
from tests.support.train_world import TrainWorld

MLP = {"kind": "torch", "args": {"hidden": [16], "dropout": 0.2}}
NOISY = """
import os, signal
import torch
from torch import nn

class Net(nn.Module):
    calls = 0

    def __init__(self, features, outputs):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(features, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, outputs)

    def forward(self, x):
        if self.training:
            Net.calls += 1
            if Net.calls == int(os.environ.get("KILL_AT_STEP", -1)):
                os.kill(os.getpid(), signal.SIGKILL)
        return self.head(self.body(x))
"""


def test_a_classifier_learns_and_leaves_what_the_docstring_says(world: TrainWorld, binary: Path) -> None:
    events: list[Event] = []
    trained = world.train(
        binary, MLP, {"epochs": 30, "batch_size": 32, "optimizer": {"lr": 0.01}}, progress=events.append
    )
    assert trained.result.metrics["val_roc_auc"] > 0.95
    assert trained.result.summary["epochs"] == trained.result.summary["best_epoch"] == 30
    about = trained.read("spec.json")
    assert about["features"] == {"numeric": ["a", "b"], "categorical": ["kind"]}
    assert (about["classes"], about["width"], about["outputs"]) == (["no", "yes"], 6, 2)
    assert set(trained.curves) == {"epoch", "train_loss", "val_loss", "val_roc_auc", "lr"}
    assert {len(values) for values in trained.curves.values()} == {30}
    assert trained.curves["train_loss"][-1] < trained.curves["train_loss"][0] / 2
    x, y = trained.matrix()
    model = load_trained(trained.out, world.folder)
    loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(x)).detach(), torch.from_numpy(y))
    assert float(loss) == pytest.approx(trained.result.metrics["val_loss"], rel=1e-5)
    assert events[-1].fraction == 1.0
    assert [event.metrics["epoch"] for event in events] == sorted(event.metrics["epoch"] for event in events)


def test_a_regression_keeps_the_scale_of_its_target(world: TrainWorld, regression: Path) -> None:
    trained = world.train(regression, MLP, {"epochs": 60, "batch_size": 32, "optimizer": {"lr": 0.01}})
    x, y = trained.matrix()
    scale = trained.read("spec.json")["target_scale"]
    answers = load_trained(trained.out, world.folder)(torch.from_numpy(x)).detach().numpy()[:, 0]
    rmse = float(np.sqrt(np.mean((answers * scale["scale"] + scale["mean"] - y) ** 2)))
    assert rmse == pytest.approx(trained.result.metrics["val_rmse"], rel=1e-4)
    assert rmse < 0.5 * y.std()


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(world: TrainWorld, binary: Path) -> None:
    world.module(NOISY)
    fit = {"epochs": 3, "batch_size": 32}
    model = {"kind": "torch", "module": "net:Net"}
    torch.manual_seed(1)
    first = world.train(binary, model, fit)
    noise = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(noise, torch.rand(1)), "training disturbed the caller's random state"
    second = world.train(binary, model, fit)
    assert first.weights == second.weights
    assert first.curves == second.curves
    assert world.train(binary, model, fit, seed=8).weights != first.weights


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.support.train_world import TrainWorld
world = TrainWorld.__new__(TrainWorld)
world.base, world.folder, world.count = Path({base!r}), Path({folder!r}), 100
world.train(Path({data!r}), {model!r}, {fit!r}, scratch=Path({scratch!r}))
"""


def test_a_run_killed_in_mid_epoch_ends_as_if_it_had_not_been(world: TrainWorld, binary: Path) -> None:
    world.module(NOISY)
    model = {"kind": "torch", "module": "net:Net"}
    fit = {
        "epochs": 8,
        "batch_size": 32,
        "class_weights": "balanced",
        "schedule": {"name": "onecycle"},
        "early_stopping": {"patience": 8},
    }
    uninterrupted = world.train(binary, model, fit)
    steps = len(torch.arange(len(uninterrupted.matrix("train")[1])).split(32))
    scratch = world.base / "scratch"
    scratch.mkdir()
    (scratch / rehearsal.DONE).touch()  # its steps would count
    source = KILLED.format(
        tests=str(ROOT), base=str(world.base), folder=str(world.folder), data=str(binary),
        model=model, fit=fit, scratch=str(scratch),
    )  # fmt: skip
    environment = {**os.environ, "KILL_AT_STEP": str(4 * steps + 3)}
    process = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, timeout=120)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    resumed = world.train(binary, model, fit, scratch=scratch)
    assert resumed.result.summary["resumed_from"] == 4
    assert resumed.weights == uninterrupted.weights
    assert resumed.curves == uninterrupted.curves


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_every_optimizer_resumes_exactly(world: TrainWorld, binary: Path, optimizer: str) -> None:
    def stop(event: Event) -> None:
        if event.metrics["epoch"] == 1:
            raise KeyboardInterrupt

    world.module(NOISY)
    model = {"kind": "torch", "module": "net:Net"}
    fit = {"epochs": 3, "batch_size": 64, "optimizer": {"name": optimizer, "lr": 0.01}}
    uninterrupted = world.train(binary, model, fit)
    scratch = world.base / "scratch"
    with pytest.raises(KeyboardInterrupt):
        world.train(binary, model, fit, scratch=scratch, progress=stop)
    assert world.train(binary, model, fit, scratch=scratch).weights == uninterrupted.weights


def test_early_stopping_keeps_the_best_epoch(world: TrainWorld) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(200, 20)), columns=[f"x{k}" for k in range(20)])
    frame["y"] = rng.integers(0, 2, 200)
    data = world.data(frame, "y", (0, 1))
    fit = {"epochs": 200, "batch_size": 16, "optimizer": {"lr": 0.01}, "early_stopping": {"patience": 3}}
    trained = world.train(data, {"kind": "torch"}, fit)
    losses = trained.curves["val_loss"]
    best = int(np.argmin(losses)) + 1
    assert trained.result.summary["best_epoch"] == best
    assert len(losses) == best + 3 < 200
    assert trained.result.metrics["val_loss"] == min(losses)
    x, y = trained.matrix()
    answers = load_trained(trained.out, world.folder)(torch.from_numpy(x)).detach()
    assert float(torch.nn.functional.cross_entropy(answers, torch.from_numpy(y))) == pytest.approx(
        min(losses), rel=1e-5
    )


def test_balanced_weights_lift_the_rare_class(world: TrainWorld, binary: Path) -> None:
    fit = {"epochs": 8, "batch_size": 32}
    mean_probabilities = {}
    for weights in (None, "balanced", {"yes": 20.0}):
        trained = world.train(binary, MLP, {**fit, "class_weights": weights})
        x, _ = trained.matrix()
        answers = load_trained(trained.out, world.folder)(torch.from_numpy(x)).detach()
        mean_probabilities[str(weights)] = float(answers.softmax(dim=1)[:, 1].mean())
    assert mean_probabilities["None"] < mean_probabilities["balanced"] < mean_probabilities["{'yes': 20.0}"]


def test_clipping_bounds_each_step(world: TrainWorld, regression: Path) -> None:
    linear = {"kind": "torch", "args": {"hidden": []}}
    fit = {"epochs": 1, "batch_size": 100_000, "optimizer": {"name": "sgd", "lr": 1.0, "weight_decay": 0.0}}
    still = world.train(regression, linear, {**fit, "optimizer": {**fit["optimizer"], "lr": 1e-12}})
    moved = world.train(regression, linear, {**fit, "clip_norm": 0.01})
    start, end = (load_trained(run.out, world.folder).state_dict() for run in (still, moved))
    length = torch.sqrt(sum(((end[name] - start[name]) ** 2).sum() for name in start))
    assert float(length) == pytest.approx(0.01, rel=1e-3)


def test_precision(world: TrainWorld, binary: Path) -> None:
    trained = world.train(binary, MLP, {"epochs": 20, "batch_size": 32, "precision": "bf16", "optimizer": {"lr": 0.01}})
    assert trained.result.summary["precision"] == "bf16"
    assert trained.result.metrics["val_roc_auc"] > 0.8
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="fp16 needs a GPU"):
            world.train(binary, MLP, {"epochs": 1, "precision": "fp16"})


def test_a_validation_part_of_one_class_is_watched_by_accuracy(world: TrainWorld, table: Any) -> None:
    frame = table(210).drop(columns="v")
    frame.loc[np.arange(210) % 7 == 1, "y"] = "no"
    trained = world.train(world.data(frame, "y", ("no", "yes")), MLP, {"epochs": 1})
    assert "val_accuracy" in trained.result.metrics


def test_images_through_the_built_in_network(world: TrainWorld) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    frame = pd.DataFrame(bunch.data[:700], columns=[f"p{k:02d}" for k in range(64)]).assign(y=bunch.target[:700])
    model = {"kind": "torch", "module": "mlflowkit.models:SmallCNN", "args": {"image": [1, 8, 8], "channels": [8, 16]}}
    trained = world.train(world.data(frame, "y", tuple(range(10))), model,
                          {"epochs": 6, "batch_size": 32, "optimizer": {"lr": 0.01}})  # fmt: skip
    assert trained.result.metrics["val_accuracy"] > 0.9


# ------------------------------------------------------------------------------------------------------ bad input

BAD = """
import torch
from torch import nn

class Base(nn.Module):
    def __init__(self, features, outputs):
        super().__init__()
        self.layer = nn.Linear(features, outputs)

class Narrow(Base):
    def forward(self, x):
        return self.layer(x)[:, 0]

class Labels(Base):
    def forward(self, x):
        return (self.layer(x) > 0).float()

class Tuple(Base):
    def forward(self, x):
        return self.layer(x), x

class Broken(Base):
    def forward(self, x):
        return self.layer(x.T)

class Double(Base):
    def forward(self, x):
        return self.layer(x).double()

class Late(Base):
    def forward(self, x):
        if self.training:
            raise KeyError("rows of thumb")
        return self.layer(x)
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Narrow", "net:Narrow.forward returned [2] for 2 rows; expected [2, 2] (one column per class)"),
        ("Labels", "without a gradient"),
        ("Tuple", "returned a tuple"),
        ("Broken", "net.py:24: net:Broken raised RuntimeError"),
        ("Double", "net:Double.forward returned float64; expected float32"),
        ("Late", "net.py:33: net:Late raised KeyError: 'rows of thumb'"),
    ],
)
def test_a_model_that_cannot_answer_is_named_with_its_line(
    world: TrainWorld, binary: Path, name: str, message: str
) -> None:
    world.module(BAD)
    with pytest.raises(UserCodeError) as caught:
        world.train(binary, {"kind": "torch", "module": f"net:{name}"}, {"epochs": 1})
    assert message in caught.value.message
    assert caught.value.hint


def test_a_loss_that_explodes_names_epoch_and_remedy(world: TrainWorld, regression: Path) -> None:
    fit = {"epochs": 50, "optimizer": {"name": "sgd", "lr": 1e6}}
    with pytest.raises(EngineError, match=r"loss became (nan|inf) in epoch \d+") as caught:
        world.train(regression, {"kind": "torch"}, fit)
    assert "lower train.optimizer.lr (now 1e+06), try 100000" in caught.value.hint


def test_class_weights_of_an_unknown_class(world: TrainWorld, binary: Path) -> None:
    with pytest.raises(UsageError, match="names 'maybe'") as caught:
        world.train(binary, MLP, {"class_weights": {"maybe": 2.0}})
    assert "no, yes" in caught.value.hint


def test_infinite_numbers_and_constant_targets_are_refused(world: TrainWorld, table: Any) -> None:
    frame = table(70)
    infinite = frame.assign(a=np.where(np.arange(70) == 30, np.inf, frame["a"]))
    with pytest.raises(DataError, match="column 'a' holds 1 infinite"):
        world.train(world.data(infinite.drop(columns="y"), "v"), MLP)
    with pytest.raises(DataError, match=r"'v' is 3\.0 in every training row"):
        world.train(world.data(frame.drop(columns="y").assign(v=3.0), "v"), MLP)
    missing = frame.drop(columns="y").assign(v=frame["v"].where(np.arange(70) != 2))
    with pytest.raises(DataError, match="the target 'v' is nan"):
        world.train(world.data(missing, "v"), MLP)
    with pytest.raises(DataError, match="no row of 'perhaps'"):
        world.train(world.data(frame.drop(columns="v"), "y", ("no", "perhaps", "yes")), MLP)


def test_a_damaged_checkpoint_is_said_and_not_skipped(world: TrainWorld, binary: Path) -> None:
    scratch = world.base / "scratch"
    scratch.mkdir()
    (scratch / "checkpoint.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0half a he")
    with pytest.raises(EngineError, match="cannot be read") as caught:
        world.train(binary, MLP, {"epochs": 1}, scratch=scratch)
    assert caught.value.hint.startswith("rm ")


def test_a_disk_that_refuses_a_checkpoint_stops_the_run(world: TrainWorld, binary: Path) -> None:
    """A file-size limit stands in for the full disk: writing fails in the same place, with the same kind of error."""
    source = KILLED.format(
        tests=str(ROOT), base=str(world.base), folder=str(world.folder), data=str(binary),
        model=MLP, fit={"epochs": 2}, scratch=str(world.base / "scratch"),
    )  # fmt: skip
    limit = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    process = subprocess.run([sys.executable, "-B", "-c", limit + source], capture_output=True, timeout=120, text=True)
    assert StoreError.__name__ in process.stderr
    assert "cannot be written" in process.stderr
    assert list((world.base / "scratch").iterdir()) == []


def test_summary_is_json(world: TrainWorld, binary: Path) -> None:
    result: Any = world.train(binary, MLP, {"epochs": 1}).result
    assert json.loads(json.dumps(dict(result.summary)))["model"] == "mlflowkit.models:TabularMLP"
