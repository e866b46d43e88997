"""What a torch model is fitted to: loss, validation metric, optimiser and learning rate. No effects."""

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
    """The loss of one task, summed over rows, and the weight that it has to be divided by.

    Classification: cross-entropy of logits [n, classes] against indices [n], each row weighed by its class.
    Regression: squared error of values [n, 1] against standardised targets [n].
    """

    def __init__(self, task: Literal["classification", "regression"], weights: Tensor | None) -> None:
        self.task = task
        self.weights = weights

    def loss(self, answers: Tensor, target: Tensor) -> Tensor:
        """Sum of the weighted losses, float32."""
        answers = answers.float()
        if self.task == "classification":
            return functional.cross_entropy(answers, target, weight=self.weights, reduction="sum")
        return functional.mse_loss(answers.squeeze(1), target, reduction="sum")

    def weight(self, target: Tensor) -> Tensor:
        """Sum of the weights of these rows: a tensor without dimensions."""
        if self.weights is None:
            return torch.tensor(float(len(target)), device=target.device)
        return self.weights[target].sum()


def metric_name(task: str, target: Tensor, outputs: int) -> str:
    """The metric that is watched on the validation rows.

    roc_auc for two classes (accuracy where only one of them occurs: the area is then undefined), accuracy for
    more, rmse for a regression.
    """
    if task == "regression":
        return "rmse"
    return "roc_auc" if outputs == 2 and len(target.unique()) == 2 else "accuracy"


def metric(name: str, answers: Tensor, target: Tensor, scale: float) -> float:
    """The value of that metric. ``scale`` undoes the standardisation of a regression target."""
    if name == "rmse":
        return scale * math.sqrt(float(functional.mse_loss(answers.squeeze(1).double(), target.double())))
    if name == "accuracy":
        return float((answers.argmax(dim=1) == target).double().mean())
    return roc_auc(answers[:, 1] - answers[:, 0], target)


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
    """The optimiser of a stages.train.Optimizer, over the parameters that want a gradient."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    common = {"lr": section.lr, "weight_decay": section.weight_decay, "fused": True}
    if section.name == "sgd":
        return torch.optim.SGD(parameters, momentum=section.momentum, **common)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[section.name]
    return kind(parameters, **common)


def learning_rate(section: Any, base: float, step: int, steps: int, epochs: int) -> float:
    """Learning rate of step ``step`` (from 0) of ``epochs`` epochs of ``steps`` steps, by a stages.train.Schedule.

    ``onecycle`` is that of Smith and Topin (2019) with cosine slopes and no momentum cycle: it rises to ``base`` in
    the first 30 % of the steps.

    >>> from types import SimpleNamespace
    >>> section = SimpleNamespace(name="cosine", warmup_epochs=1, step_epochs=1, gamma=0.1)
    >>> [round(learning_rate(section, 1.0, step, 2, 3), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if section.name == "none":
        return base
    if section.name == "onecycle":
        return float(base * _onecycle(step, steps * epochs))
    warmup = section.warmup_epochs * steps
    if step < warmup:
        return float(base * (step + 1) / warmup)
    if section.name == "step":
        return float(base * section.gamma ** ((step - warmup) // (section.step_epochs * steps)))
    return base * _cosine(1.0, 0.0, (step - warmup) / (steps * epochs - warmup))


def _onecycle(step: int, total: int) -> float:
    top = ONECYCLE_RISE * total - 1
    if step <= top:
        return _cosine(ONECYCLE_START, 1.0, step / top if top > 0 else 1.0)
    return _cosine(1.0, ONECYCLE_END, (step - top) / (total - 1 - top) if total - 1 > top else 1.0)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * share)) / 2
