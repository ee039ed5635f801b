"""What a training step keeps in memory and computes, taken from the step itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, is_dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from .meta_pass import FlopCount


@dataclass(frozen=True)
class StepCosts:
    """Floating-point operations forward and backward, and bytes: what autograd kept between the two, what was put in,
    and the gradients that came out."""

    flops: int
    activation_bytes: int
    batch_bytes: int
    gradient_bytes: int


def step_costs(model: nn.Module, batch: dict[str, Any], count: FlopCount, weights: Iterable[Tensor]) -> StepCosts:
    """Runs `model` forward on `batch` and its loss backward, inside `meta_pass`, whose count `count` is.

    `weights`: what stays between steps, parameters and buffers, and is therefore not of the step.
    """
    before = count.total
    given = [tensor for value in batch.values() for tensor in _tensors(value)]
    losses: list[Tensor] = []
    kept = saved_bytes(lambda: losses.append(model(**batch).loss), chain(weights, given))
    losses[0].backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return StepCosts(count.total - before, kept, bytes_of(given), bytes_of(gradients))


def saved_bytes(forward: Callable[[], object], excluded: Iterable[Tensor]) -> int:
    """Bytes of all that autograd keeps of `forward` for the backward pass; a storage counts once, `excluded` never."""
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    for tensor in excluded:
        saved.pop(tensor.untyped_storage()._cdata, None)
    return bytes_of(saved.values())


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of `tensors`, each once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _tensors(value: Any) -> list[Tensor]:
    """Those of an argument: a tensor, a tuple of them, or features."""
    parts = vars(value) if is_dataclass(value) else value
    return [leaf for leaf in tree_leaves(parts) if isinstance(leaf, Tensor)]


__all__ = ["StepCosts", "bytes_of", "saved_bytes", "step_costs"]
