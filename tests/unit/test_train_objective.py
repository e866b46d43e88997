"""Loss, metric and learning rate, against torch's and scikit-learn's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mlflowkit.adapters.ray_train.loop import batches
from mlflowkit.adapters.ray_train.torch_objective import Objective, learning_rate, metric, metric_name, roc_auc
from mlflowkit.stages.train import Schedule

pytestmark = pytest.mark.heavy

STEPS, EPOCHS, BASE = 7, 6, 0.3


def rates(schedule: Schedule) -> list[float]:
    return [learning_rate(schedule, BASE, step, STEPS, EPOCHS) for step in range(STEPS * EPOCHS)]


def torch_rates(make: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE)
    scheduler, learning_rates = make(optimizer), []
    for _ in range(STEPS * EPOCHS):
        learning_rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return learning_rates


def test_onecycle_is_torchs() -> None:
    total = STEPS * EPOCHS
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, BASE, total, cycle_momentum=False))
    assert rates(Schedule(name="onecycle")) == pytest.approx(expected, rel=1e-9)


def test_cosine_is_torchs_after_a_linear_warm_up() -> None:
    total = STEPS * EPOCHS
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, total))
    assert rates(Schedule(name="cosine")) == pytest.approx(expected, rel=1e-9)
    warm = rates(Schedule(name="cosine", warmup_epochs=2))
    assert warm[: 2 * STEPS] == pytest.approx([BASE * (k + 1) / (2 * STEPS) for k in range(2 * STEPS)])
    assert warm[2 * STEPS :] == sorted(warm[2 * STEPS :], reverse=True)


def test_step_drops_by_gamma_every_so_many_epochs() -> None:
    learning_rates = rates(Schedule(name="step", step_epochs=2, gamma=0.5))
    assert learning_rates[:: 2 * STEPS] == pytest.approx([BASE, BASE / 2, BASE / 4])
    assert len(set(learning_rates)) == 3


@pytest.mark.parametrize("name", ["none", "cosine", "step", "onecycle"])
def test_every_schedule_bears_one_step(name: str) -> None:
    schedule = SimpleNamespace(name=name, warmup_epochs=0, step_epochs=1, gamma=0.1)
    assert 0 < learning_rate(schedule, BASE, 0, 1, 1) <= BASE


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_roc_auc_is_scikit_learns_with_ties(rows: list[tuple[int, bool]]) -> None:
    scores, target = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows], int)
    if len(set(target)) == 2:
        area = roc_auc(torch.from_numpy(scores), torch.from_numpy(target))
        assert area == pytest.approx(roc_auc_score(target, scores))


def test_a_part_with_one_class_is_watched_by_accuracy() -> None:
    zeros = torch.zeros(4, dtype=torch.int64)
    assert metric_name("classification", zeros, 2) == "accuracy"
    assert metric("accuracy", torch.tensor([[1.0, 0.0]] * 4), zeros, 1.0) == 1.0
    assert metric_name("classification", torch.tensor([0, 1]), 2) == "roc_auc"
    assert metric_name("classification", torch.tensor([0, 1]), 3) == "accuracy"


def test_rmse_is_in_the_units_of_the_target() -> None:
    answers, target = torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 0.5])
    assert metric("rmse", answers, target, scale=10.0) == pytest.approx(5.0)


def test_the_weighted_loss_is_torchs() -> None:
    weights = torch.tensor([1.0, 4.0, 0.5])
    answers, target = torch.randn(9, 3), torch.arange(9) % 3
    objective = Objective("classification", weights)
    expected = torch.nn.CrossEntropyLoss(weight=weights)(answers, target)
    torch.testing.assert_close(objective.loss(answers, target) / objective.weight(target), expected)


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 8))
def test_batches_hold_every_row_once_and_enough_for_each_worker(rows: int, size: int, workers: int) -> None:
    size = max(size, 2 * workers)
    cuts = batches(torch.arange(rows), size, workers)
    assert torch.cat(cuts).tolist() == list(range(rows))
    assert all(len(cut) >= 2 * workers for cut in cuts) or len(cuts) == 1
