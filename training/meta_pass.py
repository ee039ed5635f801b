"""A model's real code without numbers: weights and activations are shapes, only coordinates and masks are real.

On torch's meta device nothing is stored and nothing computed, but code that looks at a tensor's contents (which rows
are of which body, which cameras are there, how many patches an image has) fails there. All that it looks at are whole
numbers, truth values and ranges; so these stay real and on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
RANGES = {aten.arange, aten.linspace, aten.scalar_tensor}
FUSED_ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
FUSED_ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward


class FlopCount:
    """Floating-point operations so far, a multiplication and an addition being two; see `meta_pass`."""

    total = 0


@contextmanager
def meta_pass() -> Iterator[FlopCount]:
    """Inside, what is made on the meta device has a shape and no contents, but real coordinates and masks.

    Models and batches must be made inside too. Attention is the fused kernel of torch's CPU, which keeps no
    probabilities for the backward pass; those of GPUs save the same tensors. What is counted are matrix products,
    convolutions and attention, as torch's `FlopCounterMode` does, forward and backward.
    """
    count = FlopCount()
    with _fused_attention(), _RealLiterals(), _RealCoordinates(count):
        yield count


class _RealCoordinates(TorchDispatchMode):
    """Takes every operation: on real tensors alone it is done, otherwise its result is a shape."""

    def __init__(self, count: FlopCount) -> None:
        super().__init__()
        self.count = count

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = list(_tensors((*args, *kwargs.values())))
        if any(tensor.is_meta for tensor in given):
            if func._schema.is_mutable and not args[0].is_meta:
                return args[0]  # of the coordinates that would be written the shape is known, and nothing else matters
            if func is aten.index.Tensor:
                args = (args[0], _whole_numbers(args[1]))
            if not all(tensor.is_meta for tensor in given):
                args, kwargs = tree_map(_shape_of, (args, kwargs))
        elif _gives_coordinates(func, args, kwargs):
            kwargs["device"] = torch.device("cpu")
        result = func(*args, **kwargs)
        formula = FORMULAS.get(func.overloadpacket)
        if formula is not None:
            self.count.total += formula(*args, **kwargs, out_val=result)
        return result


class _RealLiterals(TorchFunctionMode):
    """Numbers that are written in the code are there whatever device they are for; they never come to dispatch."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor):
            kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)


@contextmanager
def _fused_attention() -> Iterator[None]:
    """For attention the meta device would take single operations, and torch decides so before dispatch.

    By name, because function modes do not reach into a backward pass, where checkpointed layers run again.
    """
    plain = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = _attend  # type: ignore[assignment]  # takes the same
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = plain


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        seen, unseen = (torch.scalar_tensor(number, dtype=query.dtype) for number in (0.0, -math.inf))
        attn_mask = torch.where(attn_mask, seen, unseen)
    attended: Tensor = FUSED_ATTENTION(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return attended


def _gives_coordinates(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation that is asked for a tensor on the meta device gives one that code may look into."""
    device, dtype, packet = kwargs.get("device"), kwargs.get("dtype"), func.overloadpacket
    if device is None or device.type != "meta":
        return False
    if packet in RANGES:
        return True
    if dtype is None and packet is aten._to_copy:
        dtype = args[0].dtype
    if dtype is None and packet is aten.full:
        return isinstance(args[1], int)
    return dtype is not None and not (dtype.is_floating_point or dtype.is_complex)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those of an operation's arguments, lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _whole_numbers(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Indices without masks, whose result would have a size that nobody knows."""
    numbers: list[Tensor | None] = []
    for index in indices:
        masked = index is not None and index.dtype == torch.bool and not index.is_meta
        numbers += list(index.nonzero(as_tuple=True)) if masked and index is not None else [index]
    return numbers


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Of (B, heads, T, head_dim) and (B, heads or fewer, S, head_dim): scores, and their sum of values."""
    return 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _attention_backward_flops(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> int:
    """Scores again, and the gradients of scores, queries, keys and values."""
    return 5 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


FORMULAS: dict[Any, Any] = {
    **flop_registry,
    FUSED_ATTENTION: _attention_flops,
    FUSED_ATTENTION_BACKWARD: _attention_backward_flops,
}


def _shape_of(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("meta")
    return value.to("meta") if isinstance(value, Tensor) and not value.is_meta else value


__all__ = ["FORMULAS", "FlopCount", "meta_pass"]
