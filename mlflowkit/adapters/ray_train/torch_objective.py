"""The training objective: loss, validation metric, optimiser and learning-rate schedule. Pure functions."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

ONECYCLE_RISE = 0.3
"""Share of the steps in which a one-cycle schedule rises; then it falls."""
ONECYCLE_START, ONECYCLE_END = 1 / 25, 1 / 25 / 1e4
"""First and last learning rate of a one-cycle schedule, as factors of the peak."""


class Objective:
    """The loss of one task, summed over rows, and the weight to divide it by.

    Classification: cross-entropy of logits [n, classes] against indices [n], each row weighted by its class.
    Regression: squared error of values [n, 1] against standardised targets [n].
    """

    def __init__(self, task: Literal["classification", "regression"], weights: Tensor | None) -> None:
        self.task, self.weights = task, weights

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Sum of the weighted losses, float32."""
        outputs = outputs.float()
        if self.task == "classification":
            return functional.cross_entropy(outputs, target, weight=self.weights, reduction="sum")
        return functional.mse_loss(outputs.squeeze(1), target, reduction="sum")

    def weight(self, target: Tensor) -> Tensor:
        """Sum of the weights of these rows: a scalar tensor."""
        if self.weights is None:
            return torch.tensor(float(len(target)), device=target.device)
        return self.weights[target].sum()


def metric_name(task: str, target: Tensor, outputs: int) -> str:
    """The metric of the validation rows.

    roc_auc for two classes (accuracy if only one of them occurs, as the area is then undefined), accuracy for more,
    rmse for a regression.
    """
    if task == "regression":
        return "rmse"
    return "roc_auc" if outputs == 2 and len(target.unique()) == 2 else "accuracy"


def metric(name: str, outputs: Tensor, target: Tensor, scale: float) -> float:
    """The value of a metric. ``scale`` undoes the standardisation of a regression target."""
    if name == "rmse":
        return scale * math.sqrt(float(functional.mse_loss(outputs.squeeze(1).double(), target.double())))
    if name == "accuracy":
        return float((outputs.argmax(dim=1) == target).double().mean())
    return roc_auc(outputs[:, 1] - outputs[:, 0], target)


def roc_auc(scores: Tensor, target: Tensor) -> float:
    """Area under the ROC curve by rank sums, ties counting half (Mann-Whitney). ``target`` holds 0 and 1.

    >>> roc_auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 1, 0, 1]))
    0.875
    """
    _, group, counts = scores.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    ranks = (ends - (counts.double() - 1) / 2)[group]
    positives = int(target.sum())
    negatives = len(target) - positives
    return (float(ranks[target == 1].sum()) - positives * (positives + 1) / 2) / (positives * negatives)


def optimizer(section: Any, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a stages.train.Optimizer, over the trainable parameters."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options = {"lr": section.lr, "weight_decay": section.weight_decay, "fused": True}
    if section.name == "sgd":
        return torch.optim.SGD(parameters, momentum=section.momentum, **options)
    optimizer_class = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[section.name]
    return optimizer_class(parameters, **options)


def learning_rate(section: Any, base: float, step: int, steps: int, epochs: int) -> float:
    """Learning rate of step ``step`` (from 0) of ``epochs`` epochs of ``steps`` steps, by a stages.train.Schedule.

    ``onecycle`` follows Smith and Topin (2019) with cosine slopes and no momentum cycle: it rises to ``base`` in the
    first 30 % of the steps.

    >>> from types import SimpleNamespace
    >>> section = SimpleNamespace(name="cosine", warmup_epochs=1, step_epochs=1, gamma=0.1)
    >>> [round(learning_rate(section, 1.0, step, 2, 3), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if section.name == "none":
        return base
    total = steps * epochs
    if section.name == "onecycle":
        peak = ONECYCLE_RISE * total - 1
        if step <= peak:
            return base * _cosine(ONECYCLE_START, 1.0, step / peak if peak > 0 else 1.0)
        return base * _cosine(1.0, ONECYCLE_END, (step - peak) / (total - 1 - peak) if total - 1 > peak else 1.0)
    warmup = section.warmup_epochs * steps
    if step < warmup:
        return float(base * (step + 1) / warmup)
    if section.name == "step":
        return float(base * section.gamma ** ((step - warmup) // (section.step_epochs * steps)))
    return base * _cosine(1.0, 0.0, (step - warmup) / (total - warmup))


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * fraction)) / 2
