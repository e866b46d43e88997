"""The networks that are measured: torch definitions with the published shapes, seeded weights, and rows to ask with.

ResNet after He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, with the stride in the 3x3
convolution of a bottleneck (as torchvision has it, "v1.5"). The transformers are `recipes.minilm`'s: MiniLM-L6 with its
published weights, BERT-base with seeded random ones; both without the pooler, which sentence embeddings do not use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu_latency import lending
from mlflowkit.models import TabularMLP
from recipes import minilm

TOKENS = 128
"""Length of every sequence."""
SEED = 7

Inputs = Mapping[str, np.ndarray]


class Block(nn.Module):
    """A residual block: two 3x3 convolutions (basic), or 1x1, 3x3, 1x1 with four times the width (bottleneck)."""

    def __init__(self, depth: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        shapes = (
            [(depth, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
            if bottleneck
            else [(depth, width, 3, stride), (width, width, 3, 1)]
        )
        layers: list[nn.Module] = []
        for shape in shapes:
            layers += [*convolution(*shape), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers[:-1])
        same = stride == 1 and depth == out
        self.shortcut = nn.Identity() if same else nn.Sequential(*convolution(depth, out, 1, stride))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [n, depth, height, width] -> [n, out, height / stride, width / stride]."""
        answers: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return answers


def convolution(depth: int, width: int, kernel: int, stride: int) -> tuple[nn.Module, nn.Module]:
    """A convolution without bias and its batch normalisation."""
    return nn.Conv2d(depth, width, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(width)


class ResNet(nn.Module):
    """forward: images float32 [n, 3, 224, 224] -> logits float32 [n, 1000]."""

    def __init__(self, blocks: tuple[int, ...], bottleneck: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [*convolution(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
        depth = 64
        for stage, count in enumerate(blocks):
            width = 64 * 2**stage
            for index in range(count):
                layers.append(Block(depth, width, 2 if stage and not index else 1, bottleneck))
                depth = 4 * width if bottleneck else width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(depth, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of 1,000 classes."""
        answers: Tensor = self.head(self.features(images).mean(dim=(2, 3)))
        return answers


@dataclass(frozen=True)
class Model:
    """One network of the suite.

    make         the torch module, in evaluation mode, the same weights each time; None where there is only a graph
    rows         the first ``n`` rows to ask with, by input name
    parameters   of the torch module, as published (see the module's docstring for what is left out)
    calibration  rows that fix INT8 ranges: enough for the speed, which does not depend on them
    heads        attention heads, 0 for a network without attention
    """

    name: str
    what: str
    rows: Callable[[int], Inputs]
    make: Callable[[], nn.Module] | None = None
    output: str = "answers"
    parameters: int = 0
    calibration: int = 16
    heads: int = 0


def seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The same module each time, whatever was drawn before."""

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(SEED)
            return build().eval()

    return make


def normal(name: str, *shape: int) -> Callable[[int], Inputs]:
    """Rows of seeded normal numbers, float32 [n, *shape]."""
    return lambda n: {name: np.random.default_rng(SEED).standard_normal((n, *shape), dtype=np.float32)}


def tokens(n: int) -> Inputs:
    """Whole sequences of words drawn at random, int64 [n, TOKENS]: no padding, so each row costs what 128 tokens do."""
    drawn = np.random.default_rng(SEED).integers(1996, 29_000, size=(n, TOKENS))
    return {"input_ids": drawn, "attention_mask": np.ones_like(drawn)}


MODELS: Mapping[str, Model] = {
    model.name: model
    for model in (
        Model(
            "mlp",
            "multi-layer perceptron 30-256-256-2",
            rows=normal("row", 30),
            make=seeded(lambda: TabularMLP(30, 2, hidden=(256, 256), dropout=0.0)),
            parameters=74_242,
            calibration=512,
        ),
        Model("lending", "recipes/lending.yaml, raw columns and strings", rows=lending.rows, calibration=512),
        Model(
            "resnet18",
            "ResNet-18, 224 x 224",
            rows=normal("images", 3, 224, 224),
            make=seeded(lambda: ResNet((2, 2, 2, 2), bottleneck=False)),
            parameters=11_689_512,
        ),
        Model(
            "resnet50",
            "ResNet-50, 224 x 224",
            rows=normal("images", 3, 224, 224),
            make=seeded(lambda: ResNet((3, 4, 6, 3), bottleneck=True)),
            parameters=25_557_032,
        ),
        Model(
            "minilm",
            "MiniLM-L6, published weights, 128 tokens",
            rows=tokens,
            make=minilm.load,
            output="embedding",
            parameters=22_713_216 - (384 * 384 + 384),
            heads=12,
        ),
        Model(
            "bert-base",
            "BERT-base, 128 tokens",
            rows=tokens,
            make=seeded(lambda: minilm.Encoder(minilm.Shape.base())),
            output="embedding",
            parameters=109_482_240 - (768 * 768 + 768),
            heads=12,
        ),
    )
}
"""By name, from light to heavy."""
