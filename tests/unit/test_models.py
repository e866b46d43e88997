"""The built-in models, and the construction of a recipe model."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from mlflowkit.errors import UserCodeError
from mlflowkit.models import SmallCNN, TabularMLP, build

pytestmark = pytest.mark.heavy

MODELS: dict[str, Any] = {
    "mlp": lambda: TabularMLP(features=12, outputs=3, hidden=[16, 8], norm="batch", activation="gelu"),
    "linear": lambda: TabularMLP(features=12, outputs=1, hidden=[]),
    "cnn": lambda: SmallCNN(features=2 * 8 * 6, outputs=10, image=[2, 8, 6], channels=[4, 8], dropout=0.2),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_export_at_any_batch(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    width = 96 if name == "cnn" else 12
    x = torch.randn(5, width)
    buffer = io.BytesIO()
    axes = {"x": {0: "n"}, "y": {0: "n"}}
    sample = (torch.randn(3, width),)
    torch.onnx.export(model, sample, buffer, input_names=["x"], output_names=["y"], dynamo=False, dynamic_axes=axes)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {"x": x.numpy()})
    np.testing.assert_allclose(answers, model(x).detach().numpy(), atol=1e-5)


def test_cnn_reads_columns_as_channels_rows_and_pixels() -> None:
    model = SmallCNN(features=2 * 4 * 4, outputs=2, image=[2, 4, 4], channels=[3]).eval()
    image = torch.randn(1, 2, 4, 4)
    expected = model.head(model.blocks(image).flatten(1))
    torch.testing.assert_close(model(image.reshape(1, -1)), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TabularMLP(4, 2, hidden=[0]), "hidden must hold positive whole numbers"),
        (lambda: TabularMLP(4, 2, dropout=1.0), r"dropout must be in \[0, 1\)"),
        (lambda: TabularMLP(4, 2, activation="rleu"), "activation must be one of relu, gelu, silu, tanh, not 'rleu'"),
        (lambda: TabularMLP(4, 2, norm="layer"), "norm must be one of none, batch"),
        (lambda: SmallCNN(64, 10, image=[8, 8]), r"image must be \[channels, height, width\]"),
        (lambda: SmallCNN(64, 10, image=[3, 8, 8]), "has 192 pixels, the table gives 64 columns"),
        (lambda: SmallCNN(64, 10, image=[1, 8, 8], channels=[4, 4, 4, 4]), "too small to halve 4 times"),
    ],
)
def test_models_refuse_bad_arguments_in_words(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


USER = """
import torch
from torch import nn

def factory(features, outputs):
    return nn.Linear(features, outputs)

class Plain:
    pass

class NoOutputs(nn.Module):
    def __init__(self, features):
        super().__init__()

class Needy(nn.Module):
    def __init__(self, features, outputs, depth, width=3):
        super().__init__()
        self.layer = nn.Linear(features, outputs)

class Frozen(nn.Module):
    def __init__(self, features, outputs):
        super().__init__()

class Raises(nn.Module):
    def __init__(self, features, outputs):
        super().__init__()
        raise RuntimeError("no weights today")

class Anything(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.layer = nn.Linear(settings["features"], settings["outputs"])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(USER)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "args", "message", "hint"),
    [
        ("factory", {}, "net:factory is a function, not a subclass of torch.nn.Module", "model.module"),
        ("Plain", {}, "net:Plain is a class, not a subclass of torch.nn.Module", "sklearn"),
        ("NoOutputs", {}, "does not take 'outputs'", "features and outputs"),
        ("Needy", {"dept": 3}, "model.args.dept: net:Needy takes depth, width, not 'dept'", "did you mean depth?"),
        ("Needy", {}, "missing a required argument: 'depth'; net:Needy takes depth, width", "model.args"),
        ("Needy", {"depth": 1, "features": 4}, "model.args.features is set by mlflowkit", "remove it"),
        ("Frozen", {}, "has no parameters to train", "__init__"),
        ("Raises", {}, "net.py:27: net:Raises raised RuntimeError: no weights today", "net.py:27"),
    ],
)
def test_build_says_what_is_wrong_with_a_class(
    folder: Path, name: str, args: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(UserCodeError) as caught:
        build(f"net:{name}", folder, args, features=4, outputs=2)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_build_takes_a_class_with_keyword_arguments_of_any_name(folder: Path) -> None:
    model = build("net:Anything", folder, {"extra": 1}, features=4, outputs=2)
    assert model.layer.weight.shape == (2, 4)
