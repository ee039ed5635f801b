"""A frozen backbone in less memory: its linear maps in 8-bit integers (torchao) or in 4 bits (bitsandbytes)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration.backbone_reference import require_quantization
from .backbone_features import Backbone


def quantize_backbone(backbone: Backbone, kind: str | None) -> None:
    """Turns the weights of the linear maps that features come through into fewer bits, in place; None does nothing.

    Activations, embeddings, convolutions and norms stay as they are. A backbone that is being loaded is still on the
    CPU then: a GPU only gets the small maps. The same weights and inputs give the same bits, but other features than
    the whole weights: how far those of Meta-World's pictures (DINOv2-S/14, layers 3 to 12) and those of its
    instructions (MiniLM-L6) are from them, by their norm, beside bfloat16's 1 %:

    `int8`: symmetric, one scale an output; a quarter of what a map takes in float32. 2 to 3 %, and 3 %.
    `nf4`: 4-bit normal floats, scales of blocks of 64 quantized once more (QLoRA's); an eighth. 14 to 21 %, and 22 %:
    for a VLM that would not fit otherwise.

    Low-rank adapters can be trained beside such maps; the maps themselves cannot be, nor adapters merged into them.

    Raises:
        ValueError: on another kind. ImportError: when the library for it is not installed.
    """
    require_quantization(kind)
    if kind is None:
        return
    (_to_int8 if kind == "int8" else _to_nf4)(backbone)
    backbone.requires_grad_(False)
    backbone.quantization = kind


def _to_int8(backbone: Backbone) -> None:
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise _missing("torchao", "int8") from error

    chosen = {map_ for _, _, map_ in _maps(backbone)}
    quantize_(
        backbone.model, Int8WeightOnlyConfig(set_inductor_config=False), filter_fn=lambda module, name: module in chosen
    )
    # peft's, on every map: that adapters cannot be merged, which `merge_adapter` says when somebody wants to.
    warnings.filterwarnings("ignore", message=r"TorchaoLoraLinear was instantiated without `get_apply_tensor_subclass`")


def _to_nf4(backbone: Backbone) -> None:
    try:
        from bitsandbytes.nn import Params4bit
    except ImportError as error:
        raise _missing("bitsandbytes", "nf4") from error

    for parent, name, whole in list(_maps(backbone)):
        small = four_bit_map()(
            whole.in_features, whole.out_features, bias=False, compute_dtype=whole.weight.dtype, quant_type="nf4"
        )
        small.weight = Params4bit(whole.weight.data, requires_grad=False, quant_type="nf4")
        small.bias = whole.bias
        setattr(parent, name, small.to(whole.weight.device))  # where it moves to is where it is quantized


@cache
def four_bit_map() -> type[nn.Module]:
    """bitsandbytes' `Linear4bit`, with a way of our own on a CPU.

    On CPUs with AVX-512, bitsandbytes 0.50 reads weights wrongly whose rows are not whole blocks of 64 (SigLIP-So400m
    has such, of 4,304; their error was 18 % instead of 9). With bfloat16 instructions it repacks them at their first
    use, refuses those of other than multiples of 32 outputs, and computes in bfloat16. So there all rows are read as
    one, which is right everywhere. Raises ImportError without bitsandbytes.
    """
    try:
        from bitsandbytes.functional import dequantize_4bit
        from bitsandbytes.nn import Linear4bit
    except ImportError as error:
        raise _missing("bitsandbytes", "nf4") from error

    class FourBitMap(Linear4bit):  # type: ignore[misc, unused-ignore]
        def forward(self, x: Tensor) -> Tensor:
            if x.device.type != "cpu":
                told: Tensor = super().forward(x)
                return told
            codes: Any = self.weight
            flat = copy.copy(codes.quant_state)
            flat.shape = torch.Size([flat.shape.numel()])
            weight = dequantize_4bit(codes.data, flat).view(codes.quant_state.shape).to(self.compute_dtype)
            bias = None if self.bias is None else self.bias.to(weight.dtype)
            return nn.functional.linear(x.to(weight.dtype), weight, bias).to(x.dtype)

    return FourBitMap


def _maps(backbone: Backbone) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """The linear maps that features come through, each with the module that has it and its name there."""
    for place, parent in backbone.model.named_modules():
        for name, module in parent.named_children():
            full = f"{place}.{name}" if place else name
            if isinstance(module, nn.Linear) and not backbone.is_unused(full):
                yield parent, name, module


def _missing(library: str, kind: str) -> ImportError:
    return ImportError(
        f"a backbone with quantization={kind!r} needs {library}: run pip install 'priorvla[quantization]', or load "
        "with backbone_quantization=None, which takes more memory and gives other features"
    )


__all__ = ["four_bit_map", "quantize_backbone"]
