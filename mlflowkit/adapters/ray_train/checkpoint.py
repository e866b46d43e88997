"""Checkpoints: all tensors in one safetensors file, the scalars as JSON in its header; replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mlflowkit.errors import EngineError, UserCodeError
from mlflowkit.system.files import replace_file
from mlflowkit.system.text import shell_word


@dataclass(slots=True)
class TrainingProgress:
    """The state of training after ``epoch`` finished epochs (counted from 1)."""

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    waited: int = 0
    """Epochs since the best one."""
    stopped: bool = False
    curves: dict[str, list[float]] = field(default_factory=dict)
    scaler: dict[str, float] = field(default_factory=dict)
    """State of the fp16 gradient scaler."""


@dataclass(slots=True)
class CheckpointState:
    """The content of a checkpoint."""

    progress: TrainingProgress
    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copy the model's parameters and buffers to the CPU. Raises UserCodeError when its state is not tensors."""
    weights = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserCodeError(
                f"{type(model).__name__}: its state {name!r} is a {type(value).__name__}, not a tensor",
                hint="keep such state out of get_extra_state, or register it as a buffer",
            )
        weights[name] = value.detach().to("cpu", copy=True).contiguous()
    return weights


def write(path: Path, progress: TrainingProgress, weights: Mapping[str, Tensor], best: Mapping[str, Tensor],
          optimizer: torch.optim.Optimizer) -> None:  # fmt: skip
    """Replace the checkpoint at ``path``. Raises StoreError when that fails; the old one is then intact."""
    tensors = {f"model.{name}": value for name, value in weights.items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value.detach().cpu().contiguous()
    replace_file(path, save(tensors, metadata={"progress": json.dumps(asdict(progress))}))


def read(path: Path) -> CheckpointState | None:
    """The checkpoint at ``path``, or None when there is none. Raises EngineError when it cannot be read."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            progress = TrainingProgress(**json.loads(file.metadata()["progress"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a mapping)
    except Exception as error:
        raise EngineError(f"the checkpoint {path} cannot be read: {error}", hint=f"rm {shell_word(path)}") from error
    optimizer: dict[int, dict[str, Tensor]] = {}
    for name in [name for name in tensors if name.startswith("optimizer.")]:
        _, index, key = name.split(".", 2)
        optimizer.setdefault(int(index), {})[key] = tensors[name]
    return CheckpointState(progress, _strip_prefix("model.", tensors), _strip_prefix("best.", tensors), optimizer)


def _strip_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
