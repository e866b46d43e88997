"""What is measured: models by name, and rows to ask them with. Their torch side is in `networks`, not imported here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.gpu_latency import lending

TOKENS = 128
"""Length of every sequence."""
SEED = 7

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the suite.

    rows         the first ``n`` rows to ask with, by input name
    output       the name of the graph's answer
    network      whether there is a torch module (`networks.make`); without, there is only a graph
    parameters   of the torch module, as published, less the pooler of the transformers
    calibration  rows that fix INT8 ranges: enough for the speed, which does not depend on them
    heads        attention heads, 0 for a model without attention
    """

    name: str
    what: str
    rows: Callable[[int], Inputs]
    output: str = "answers"
    network: bool = True
    parameters: int = 0
    calibration: int = 16
    heads: int = 0


def normal(name: str, *shape: int) -> Callable[[int], Inputs]:
    """Rows of seeded normal numbers, float32 [n, *shape]."""
    return lambda n: {name: np.random.default_rng(SEED).standard_normal((n, *shape), dtype=np.float32)}


def tokens(n: int) -> Inputs:
    """Whole sequences of words drawn at random, int64 [n, TOKENS]: no padding, so each row costs what 128 tokens do."""
    drawn = np.random.default_rng(SEED).integers(1996, 29_000, size=(n, TOKENS))
    return {"input_ids": drawn, "attention_mask": np.ones_like(drawn)}


_IMAGES = normal("images", 3, 224, 224)

MODELS: Mapping[str, Model] = {
    model.name: model
    for model in (
        Model("mlp", "MLP 30-256-256-2", normal("row", 30), parameters=74_242, calibration=512),
        Model("lending", "lending.yaml, raw columns", lending.rows, output="", network=False, calibration=512),
        Model("resnet18", "ResNet-18, 224 x 224", _IMAGES, parameters=11_689_512),
        Model("minilm", "MiniLM-L6, 128 tokens", tokens, "embedding", parameters=22_565_376, heads=12),
        Model("resnet50", "ResNet-50, 224 x 224", _IMAGES, parameters=25_557_032),
        Model("bert-base", "BERT-base, 128 tokens", tokens, "embedding", parameters=108_891_648, heads=12),
    )
}
"""By name, from light to heavy."""


def pool(model: Model, batch: int) -> Inputs:
    """Rows that requests of a batch size are cut from: at least 16, and not many more than a large batch has."""
    return model.rows(batch * max(1, 16 // batch))
