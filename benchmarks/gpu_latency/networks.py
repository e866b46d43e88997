"""The networks that are measured, in torch: the published shapes, seeded weights.

ResNet after He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, with the stride in the 3x3
convolution of a bottleneck (as torchvision has it, "v1.5"). The transformers are `recipes.minilm`'s: MiniLM-L6 with its
published weights, BERT-base with seeded random ones; both without the pooler, which sentence embeddings do not use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mlflowkit.models import TabularMLP
from recipes import minilm

SEED = 7


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
    """A convolution without bias and its batch normalisation, with the weights that the network is trained from."""
    layer = nn.Conv2d(depth, width, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer, nn.BatchNorm2d(width)


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


SHAPES: Mapping[str, Callable[[], nn.Module]] = {
    "mlp": lambda: TabularMLP(30, 2, hidden=(256, 256), dropout=0.0),
    "resnet18": lambda: ResNet((2, 2, 2, 2), bottleneck=False),
    "resnet50": lambda: ResNet((3, 4, 6, 3), bottleneck=True),
    "minilm": minilm.Encoder,
    "bert-base": lambda: minilm.Encoder(minilm.Shape.base()),
}


def make(name: str) -> nn.Module:
    """A network in evaluation mode on the CPU, with the same weights each time, whatever was drawn before."""
    if name == "minilm":
        return minilm.load()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(SEED)
        return SHAPES[name]().eval()


def shape(name: str) -> nn.Module:
    """A network without its weights (torch's meta device): to count what it has and what it does."""
    with torch.device("meta"):
        return SHAPES[name]().eval()


def parameters(name: str) -> int:
    """How many numbers a network learns."""
    return sum(parameter.numel() for parameter in shape(name).parameters())


def operations(name: str, row: Mapping[str, np.ndarray]) -> int:
    """Floating-point operations of one row in matrix products and convolutions; a multiplication and an addition are
    two (torch.utils.flop_counter)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        shape(name)(*(torch.from_numpy(cells).to("meta") for cells in row.values()))
    return int(counter.get_total_flops())
