"""Data-parallel steps whose result does not depend on the number of workers.

A batch is split into a fixed number of shards, and each worker computes some of them. Every shard begins with the same
weights, buffers and, by its own seed, noise. The workers gather the gradients, losses and buffer changes of all shards
and add them in the order of the shards: floating-point addition is not associative, so the order of the sum, not only
its terms, has to be the same. One worker that computes all shards then gets the same bits as several.

A gathered step moves the gradients of all shards where an all-reduce moves their sum: use few shards for large models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn


class Gatherer(Protocol):
    """The workers of a training, for exchanging tensors."""

    rank: int
    size: int

    def gather(self, rows: Tensor) -> list[Tensor]:
        """The tensors [k, width] of all workers, by rank."""

    def broadcast(self, value: Tensor) -> Tensor:
        """The first worker's value."""


def split_shards(shards: int, workers: int) -> list[range]:
    """The shards of each worker: contiguous, in order, and as even as possible.

    >>> split_shards(5, 2)
    [range(0, 3), range(3, 5)]
    """
    small, extra = divmod(shards, workers)
    starts = [rank * small + min(rank, extra) for rank in range(workers + 1)]
    return [range(start, end) for start, end in pairwise(starts)]


class ShardedStep:
    """The gradients of a model's trainable parameters for a batch in shards.

    Buffers of floating point (the running statistics of a batch normalisation) change by the mean of the shards'
    changes; other buffers (its count of batches) become what the first shard makes of them.
    """

    def __init__(self, model: nn.Module, shards: int, group: Gatherer) -> None:
        self.group, self.shards = group, shards
        self.assignment = split_shards(shards, group.size)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        buffers = list(model.buffers())
        self.averaged = [buffer for buffer in buffers if buffer.is_floating_point()]
        self.counted = [buffer for buffer in buffers if not buffer.is_floating_point()]
        doubles = any(tensor.dtype == torch.float64 for tensor in (*self.parameters, *self.averaged))
        self.dtype = torch.float64 if doubles else torch.float32

    def backward(self, compute: Callable[[int], Tensor]) -> Tensor:
        """Set the gradients of the parameters to the sums over the shards; returns the sum of the losses, a scalar.

        ``compute(shard)`` runs a forward and a backward pass over one shard and returns its loss, a scalar.
        """
        averaged, counted = ([tensor.clone() for tensor in group] for group in (self.averaged, self.counted))
        own = self.assignment[self.group.rank]
        rows, counts = [], counted
        for shard in own:
            _restore(self.averaged, averaged)
            _restore(self.counted, counted)
            for parameter in self.parameters:
                parameter.grad = None
            loss = compute(shard)
            rows.append(self._pack(loss, averaged))
            if shard == 0:
                counts = [tensor.clone() for tensor in self.counted]
        total, mean = self._reduce(rows)
        loss_sum = self._unpack(total, mean, averaged)
        self._share_counts(counts)
        return loss_sum

    def _pack(self, loss: Tensor, before: Sequence[Tensor]) -> Tensor:
        """One shard's loss, buffer changes, gradients, and for each parameter whether it has a gradient."""
        absent = [parameter.grad is None for parameter in self.parameters]
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in self.parameters
        ]
        changes = [tensor - old for tensor, old in zip(self.averaged, before, strict=True)]
        flags = torch.tensor([0.0 if missing else 1.0 for missing in absent], device=loss.device)
        parts = [loss.detach().reshape(1), *changes, *gradients, flags]
        return torch.cat([part.reshape(-1).to(self.dtype) for part in parts])

    def _reduce(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The sum of all shards' rows, added in their order, and their mean."""
        longest = max(len(own) for own in self.assignment)
        padded = [*rows, *(torch.zeros_like(rows[0]) for _ in range(longest - len(rows)))]
        gathered = self.group.gather(torch.stack(padded))
        ordered = [part[slot] for part, own in zip(gathered, self.assignment, strict=True) for slot in range(len(own))]
        total = ordered[0].clone()
        for row in ordered[1:]:
            total += row
        return total, total / self.shards

    def _unpack(self, total: Tensor, mean: Tensor, before: Sequence[Tensor]) -> Tensor:
        position = 1
        for tensor, old in zip(self.averaged, before, strict=True):
            change = mean[position : position + old.numel()].reshape(old.shape)
            tensor.copy_(old + change.to(old.dtype))
            position += old.numel()
        flags = total[len(total) - len(self.parameters) :].tolist()
        for parameter, shards in zip(self.parameters, flags, strict=True):
            gradient = total[position : position + parameter.numel()].reshape(parameter.shape)
            parameter.grad = gradient.to(parameter.dtype) if shards else None
            position += parameter.numel()
        return total[0]

    def _share_counts(self, counts: Sequence[Tensor]) -> None:
        """Set the buffers that are no floating-point numbers to the first worker's, which has the first shard."""
        if not counts:
            return
        flat = self.group.broadcast(torch.cat([tensor.reshape(-1).to(torch.int64) for tensor in counts]))
        parts = flat.split([tensor.numel() for tensor in counts])
        for tensor, part in zip(self.counted, parts, strict=True):
            tensor.copy_(part.reshape(tensor.shape))


def _restore(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
