"""The built-in torch models, and how a model that a recipe names is made, checked and read back.

A model is a ``torch.nn.Module`` whose constructor takes ``features`` (columns of its input after preprocessing) and
``outputs`` (classes, or 1 for a regression) besides the recipe's ``model.args``. Its forward takes float32
[rows, features] and returns [rows, outputs]: logits (also for two classes) or values.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mlflowkit import usercode
from mlflowkit.errors import EngineError, UserCodeError, nearest

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
"""Activations by name; all of them export to ONNX and quantise."""


class TabularMLP(nn.Module):  # type: ignore[misc]  # mypy does not read torch
    """A multi-layer perceptron over one row of numbers: Linear, normalisation, activation, dropout per hidden layer.

    features     columns of the input
    outputs      classes, or 1
    hidden       width of each hidden layer; none makes a linear model
    dropout      share of activations dropped while training, in [0, 1)
    activation   relu, gelu, silu or tanh
    norm         none or batch (batch normalisation; Ioffe, Szegedy, ICML 2015)

    forward: float32 [rows, features] -> [rows, outputs]. Raises ValueError for arguments out of range.

    >>> import torch
    >>> model = TabularMLP(features=5, outputs=2, hidden=[8, 4])
    >>> model(torch.zeros(3, 5)).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.1,
        activation: str = "relu",
        norm: str = "none",
    ) -> None:
        super().__init__()
        _positive("hidden", hidden)
        _share("dropout", dropout)
        _choice("activation", activation, ACTIVATIONS)
        _choice("norm", norm, ("none", "batch"))
        layers: list[nn.Module] = []
        width = features
        for size in hidden:
            layers.append(nn.Linear(width, size))
            if norm == "batch":
                layers.append(nn.BatchNorm1d(size))
            layers.append(ACTIVATIONS[activation]())
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            width = size
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.layers(x)
        return answers


class SmallCNN(nn.Module):  # type: ignore[misc]  # mypy does not read torch
    """A small convolutional network over images that arrive flattened, one a row.

    features   columns of the input: channels * height * width of ``image``
    outputs    classes, or 1
    image      [channels, height, width]; the columns are in that order, width fastest
    channels   feature maps of each block (3x3 convolution, batch normalisation, ReLU, 2x2 max pooling)
    hidden     width of the layer before the output
    dropout    share of activations dropped before the output while training, in [0, 1)

    forward: float32 [rows, features] -> [rows, outputs]. Raises ValueError for arguments out of range, an image that
    does not have ``features`` pixels, or one too small for its blocks.

    >>> import torch
    >>> model = SmallCNN(features=64, outputs=10, image=[1, 8, 8], channels=[8, 16])
    >>> model(torch.zeros(3, 64)).shape
    torch.Size([3, 10])
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        image: Sequence[int],
        channels: Sequence[int] = (16, 32),
        hidden: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _positive("image", image)
        _positive("channels", channels)
        _positive("hidden", [hidden])
        _share("dropout", dropout)
        if len(image) != 3:
            raise ValueError(f"image must be [channels, height, width], not {list(image)}")
        if math.prod(image) != features:
            raise ValueError(f"image {list(image)} has {math.prod(image)} pixels, the table gives {features} columns")
        depth, height, width = image
        if min(height, width) < 2 ** len(channels):
            raise ValueError(f"an image of {height}x{width} is too small to be halved {len(channels)} times")
        blocks: list[nn.Module] = []
        for size in channels:
            convolution = nn.Conv2d(depth, size, kernel_size=3, padding=1, bias=False)
            blocks += [convolution, nn.BatchNorm2d(size), nn.ReLU(), nn.MaxPool2d(2)]
            depth, height, width = size, height // 2, width // 2
        self.image = tuple(image)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Linear(depth * height * width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = self.blocks(x.reshape(-1, *self.image))
        answers: Tensor = self.head(maps.flatten(1))
        return answers


def _positive(name: str, sizes: Sequence[int]) -> None:
    if isinstance(sizes, str) or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"{name} must hold positive whole numbers, not {sizes!r}")


def _share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), not {value!r}")


def _choice(name: str, value: str, allowed: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def build(reference: str, folder: Path, args: Mapping[str, Any], *, features: int, outputs: int) -> nn.Module:
    """Make the module that a recipe names, on the CPU, with its initial weights from torch's current seed.

    Raises UserCodeError when the object is not a class of ``torch.nn.Module``, when its constructor does not take
    ``features``, ``outputs`` and ``args``, when it raises, or when the model has nothing to train.

    >>> sum(p.numel() for p in build("mlflowkit.models:TabularMLP", Path(), {"hidden": []},
    ...                              features=3, outputs=1).parameters())
    4
    """
    kind = usercode.load(reference, folder)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        found = "a class" if isinstance(kind, type) else f"a {type(kind).__name__}"
        raise UserCodeError(
            f"{reference} is {found}, not a subclass of torch.nn.Module",
            hint="name a torch.nn.Module under model.module, or use model.kind: sklearn for an estimator",
        )
    check_args(kind, reference, {"features": features, "outputs": outputs}, args)
    with usercode.blame(reference, folder):
        model = kind(features=features, outputs=outputs, **args)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserCodeError(
            f"{reference} has no parameters to train", hint="assign layers to attributes of self in __init__"
        )
    return model


def check_args(kind: type, reference: str, given: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    """Raise UserCodeError unless the class can be called with ``given`` (by mlflowkit) and ``args`` (by the recipe)."""
    signature = inspect.signature(kind)
    parameters = signature.parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    own = [name for name in names if name not in given]
    takes = f"{reference} takes {', '.join(own) or 'no arguments'}"
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        names += [*given, *args]
    for name in given:
        if name in args:
            raise UserCodeError(f"model.args.{name} is set by mlflowkit from the table", hint="remove it")
        if name not in names:
            raise UserCodeError(
                f"{reference} does not take {name!r}",
                hint=f"its __init__ must accept {' and '.join(given)} as keyword arguments",
            )
    for name in args:
        if name not in names:
            near = nearest(name, own)
            raise UserCodeError(
                f"model.args.{name}: {takes}, not {name!r}", hint=f"did you mean {near}?" if near else ""
            )
    try:
        signature.bind(**given, **args)
    except TypeError as error:
        raise UserCodeError(f"model.args: {error}; {takes}", hint="add it under model.args") from error


def load_trained(trained: Path, folder: Path) -> nn.Module:
    """The model that the train stage published in ``trained``, in evaluation mode on the CPU.

    ``folder`` is the recipe's: the class is made again from it. Its answers are logits [rows, classes], or values
    [rows, 1] in units of the standardised target (see stages.train). Raises EngineError when the weights do not fit.
    """
    from safetensors.torch import load_file

    info = json.loads((trained / "spec.json").read_text())
    section = info["spec"]["model"]
    model = build(section["module"], folder, section["args"], features=info["width"], outputs=info["outputs"])
    try:
        model.load_state_dict(load_file(trained / "model.safetensors"))
    except Exception as error:
        raise EngineError(
            f"the weights in {trained} do not fit {section['module']}: {error}", hint="mlkit run --force train"
        ) from error
    return model.eval()
