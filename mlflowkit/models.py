"""The built-in torch models, and building, checking and loading the model of a recipe.

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

from safetensors.torch import load_file
from torch import Tensor, nn

from mlflowkit import usercode
from mlflowkit.errors import EngineError, UserCodeError, closest_match

ACTIVATIONS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
"""Activations by name; all can be exported to ONNX and quantised."""


class TabularMLP(nn.Module):  # type: ignore[misc]  # mypy does not read torch
    """A multi-layer perceptron over one row of numbers: Linear, normalisation, activation, dropout per hidden layer.

    features     columns of the input
    outputs      classes, or 1
    hidden       width of each hidden layer; [] makes a linear model
    dropout      dropout probability, in [0, 1)
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
        _check_positive("hidden", hidden)
        _check_probability("dropout", dropout)
        _check_choice("activation", activation, ACTIVATIONS)
        _check_choice("norm", norm, ("none", "batch"))
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
        return self.layers(x)


class SmallCNN(nn.Module):  # type: ignore[misc]  # mypy does not read torch
    """A small convolutional network over flattened images, one per row.

    features   columns of the input: channels * height * width of ``image``
    outputs    classes, or 1
    image      [channels, height, width]; the columns are in that order, width fastest
    channels   feature maps of each block (3x3 convolution, batch normalisation, ReLU, 2x2 max pooling)
    hidden     width of the layer before the output
    dropout    dropout probability before the output, in [0, 1)

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
        _check_positive("image", image)
        _check_positive("channels", channels)
        _check_positive("hidden", [hidden])
        _check_probability("dropout", dropout)
        if len(image) != 3:
            raise ValueError(f"image must be [channels, height, width], not {list(image)}")
        if math.prod(image) != features:
            raise ValueError(f"image {list(image)} has {math.prod(image)} pixels, the table gives {features} columns")
        depth, height, width = image
        if min(height, width) < 2 ** len(channels):
            raise ValueError(f"an image of {height}x{width} is too small to halve {len(channels)} times")
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
        return self.head(self.blocks(x.reshape(-1, *self.image)).flatten(1))


def _check_positive(name: str, sizes: Sequence[int]) -> None:
    if isinstance(sizes, str) or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"{name} must hold positive whole numbers, not {sizes!r}")


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), not {value!r}")


def _check_choice(name: str, value: str, allowed: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def build(reference: str, folder: Path, args: Mapping[str, Any], *, features: int, outputs: int) -> nn.Module:
    """Construct a recipe's module on the CPU, with initial weights from torch's current seed.

    Raises UserCodeError when the object is not a ``torch.nn.Module`` class, its constructor rejects ``features``,
    ``outputs`` and ``args`` or raises, or the model has no trainable parameters.

    >>> sum(p.numel() for p in build("mlflowkit.models:TabularMLP", Path(), {"hidden": []},
    ...                              features=3, outputs=1).parameters())
    4
    """
    kind = usercode.load(reference, folder)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        description = "a class" if isinstance(kind, type) else f"a {type(kind).__name__}"
        raise UserCodeError(
            f"{reference} is {description}, not a subclass of torch.nn.Module",
            hint="name a torch.nn.Module under model.module, or use model.kind: sklearn for an estimator",
        )
    _check_args(kind, reference, {"features": features, "outputs": outputs}, args)
    with usercode.translate_user_errors(reference, folder):
        model = kind(features=features, outputs=outputs, **args)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        hint = "assign layers to attributes of self in __init__"
        raise UserCodeError(f"{reference} has no parameters to train", hint=hint)
    return model


def _check_args(kind: type, reference: str, provided: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    """Raise UserCodeError unless the class takes ``provided`` (by mlflowkit) and ``args`` (by the recipe)."""
    signature = inspect.signature(kind)
    parameters = signature.parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    own = [name for name in names if name not in provided]
    takes = f"{reference} takes {', '.join(own) or 'no arguments'}"
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        names += [*provided, *args]
    for name in provided:
        if name in args:
            raise UserCodeError(f"model.args.{name} is set by mlflowkit from the table", hint="remove it")
        if name not in names:
            raise UserCodeError(
                f"{reference} does not take {name!r}",
                hint=f"its __init__ must accept {' and '.join(provided)} as keyword arguments",
            )
    for name in args:
        if name not in names:
            match = closest_match(name, own)
            raise UserCodeError(
                f"model.args.{name}: {takes}, not {name!r}", hint=f"did you mean {match}?" if match else ""
            )
    try:
        signature.bind(**provided, **args)
    except TypeError as error:
        raise UserCodeError(f"model.args: {error}; {takes}", hint="add it under model.args") from error


def load_trained(trained: Path, folder: Path) -> nn.Module:
    """Load the model that the train stage published in ``trained``, in evaluation mode on the CPU.

    The class is imported from the recipe's ``folder``. Returns logits [rows, classes], or values [rows, 1] of
    the standardised target (see stages.train). Raises EngineError when the weights do not fit.
    """
    info = json.loads((trained / "spec.json").read_text())
    section = info["spec"]["model"]
    model = build(section["module"], folder, section["args"], features=info["width"], outputs=info["outputs"])
    try:
        model.load_state_dict(load_file(trained / "model.safetensors"))
    except Exception as error:
        raise EngineError(
            f"the weights in {trained} do not fit {section['module']}: {error}", hint="mlkit run RECIPE --force train"
        ) from error
    return model.eval()
